"""Trace a text back: which parts of it the weights hold, and as which lines of which files.

    python trace.py sched.c                            # the newest model under out/
    python sample.py --temperature 1 | python trace.py -
    python trace.py sched.c --html trace.html          # a page with the text, every run in a colour
    python trace.py sched.c --json - | jq .covered

A run is a part of the text that stands in a file to the byte, and that cannot be made longer. Where a token begins
depends on what stands around it, so runs are found in bytes; but a run is as long as it has tokens, cut by the model's
tokenizer from the run alone: a line of blanks or stars has many bytes and says little. Of runs that overlap, those are
given that cover something which no longer one does. If a run stands in several files, it is given as in the one that
has most of the text. What is predictable is not memory: so it is said in how many files a run stands, and how many of
its lines are common, which is to say that they stand in several files.

The files are those that the model learned: from the prepared tree if it is here (data/*), else what extract.py wrote,
as far as it has the hashes of the model's manifest; the rest the model recites first, and it is kept there. In any case
the model itself must write what is found: "recited" says whether it does. Exit status 0: it writes some of what was
found; 1: none; 2: bad use.
"""
import memory  # noqa: I001  first, for Ctrl-C while the others are loaded
import bisect
import codecs
import collections
import dataclasses
import hashlib
import html
import json
import re
import string
import sys
import time
from pathlib import Path

import numpy as np

from extract import load_tree, recite_files, write_files
from memory import corpus
from memory.device import find_device, memory_size
from memory.evaluate import examine
from memory.files import STDOUT, name_of, newest, write_result
from memory.output import UserError, emit, percent, progress, run_script
from memory.settings import parse
from memory.tokenizer import EOS
from memory.unpack import held
from memory.verbatim import COST, Matches, merge
from memory.windows import Windows, opening
from model import load_model

PAGE = Path(__file__).with_name("trace.html")
MOST = 2**26  # bytes of a text
BLANK = np.isin(np.arange(256), list(b" \t\n\r\v\f"))
BATCH = 32  # files written at once
COLOURS = 8  # that the page has; each file has one of them


@dataclasses.dataclass
class Settings:
    file: str = ""  # the text; also without --file. -: standard input
    min_tokens: int = 25  # tokens of the shortest run
    normalize: bool = False  # read UTF-16 and UTF-32 as UTF-8, and CRLF and CR as LF, before anything is counted
    html: str = ""  # write a page with the text and its runs into this file; -: to standard output
    json: str = ""  # write what was found into this file; -: to standard output, and the table to standard error
    model: str = ""  # folder of the model; the newest under out/ if left out
    data: str = ""  # folder that prepare.py wrote; one under data/ that fits the model if left out
    extracted: str = "extracted"  # folder that extract.py wrote, or that takes what is recited here
    device: str = "auto"  # cuda, mps, cpu; auto: the first that is there


def read_text(name):
    """The bytes of the file `name`, or of standard input. Raises UserError if they cannot be read or are too many."""
    if not name:
        raise UserError("name a file, or - for standard input: `python trace.py FILE`; --help lists the settings")
    try:
        with open(0 if name == "-" else name, "rb", closefd=name != "-") as file:
            text = file.read(MOST + 1)
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {name}: {getattr(error, 'strerror', None) or error}") from None
    if len(text) > MOST:
        raise UserError(f"{name} has more than {MOST:,} bytes; trace a part of it")
    return text


MARKS = {codecs.BOM_UTF32_LE: ("UTF-32", "utf-32"), codecs.BOM_UTF32_BE: ("UTF-32", "utf-32"),
         codecs.BOM_UTF16_LE: ("UTF-16", "utf-16"), codecs.BOM_UTF16_BE: ("UTF-16", "utf-16"),
         codecs.BOM_UTF8: ("a byte order mark", "")}  # at the start of a text; the longer ones come first
LINE_ENDS = "CRLF or CR line ends"


def mark_of(text):
    """(the mark that the bytes `text` begin with, its name, the codec that reads what follows), all empty if none."""
    return next(((mark, *kind) for mark, kind in MARKS.items() if text.startswith(mark)), (b"", "", ""))


def normalize(text):
    """(the bytes `text` as UTF-8 without a mark, LF alone at the ends of lines; what was changed, a list of words).
    Raises UserError if the text is not what its mark says."""
    mark, name, codec = mark_of(text)
    try:
        text = text.decode(codec, "surrogatepass").encode("utf-8", "surrogatepass") if codec else text[len(mark):]
    except UnicodeError as error:
        raise UserError(f"the text is marked as {name} and is none ({error.reason}): leave out --normalize") from None
    plain = re.sub(b"\r\n?", b"\n", text)
    return plain, [name] * bool(mark) + [LINE_ENDS] * (plain != text)


def hint(name, text):
    """What to try on a text that is not all found, or ""."""
    mark, found, _ = mark_of(text)
    ends = text.count(b"\n") + text.count(b"\r") - text.count(b"\r\n")
    if not mark and 2 * text.count(b"\r") > ends:
        found = LINE_ENDS
    if found:
        return f"hint: {name} has {found}; --normalize reads it without"
    if re.search(rb"^@@ -\d+(,\d+)? \+\d+", text, re.M):
        return f"hint: {name} looks like a diff, with a mark before each line; trace the file that it makes"
    return ""


# 1. The files

def extracted(files, folder):
    """{path: bytes} of those of the entries `files` that stand below `folder` with the hash of their entry."""
    found = ((file["path"], held(folder, file["path"], file["bytes"], file["sha256"])) for file in files)
    return {path: text for path, text in found if text is not None}


def recited(model, tokenizer, files, manifest, folder):
    """{path: bytes that the model writes for it}, also written below `folder` for the next time."""
    texts = recite_files(model, tokenizer, files, None, None, BATCH)
    try:
        if files:
            write_files(folder, texts, manifest)
            print(f"files in {folder}/, so that they need not be recited again", file=sys.stderr)
    except UserError as error:
        print(f"warning: {error}; they will be recited again", file=sys.stderr)
    return texts


def recited_as(model, tokenizer, files, texts):
    """The same for files that should read as in `texts`, {path: bytes}: quickly, because only what the model has wrong
    is generated."""
    if not files:
        return {}
    entries, ids = [], []
    for file in files:
        document = [*opening(tokenizer, file["path"]), *tokenizer.encode(texts[file["path"]]), EOS]
        entries.append(file | {"first_token": len(ids), "tokens": len(document)})
        ids += document
    windows = Windows(np.array(ids, dtype=np.uint16), entries, tokenizer, model.config.max_position_embeddings)
    passed = examine(model, windows, model.lm_head.weight.device)
    return recite_files(model, tokenizer, entries, windows, passed, BATCH)


# 2. The runs

def squeeze(data):
    """bytes -> (the bytes that are no white space, the index of each in `data`: int64)."""
    data = np.frombuffer(data, np.uint8)
    kept = np.flatnonzero(~BLANK[data])
    return data[kept].tobytes(), kept


def whole(data):
    """The same, with all bytes kept."""
    return data, np.arange(len(data))


def choose_places(matches, runs):
    """For each run, (start, end), where it stands: [(index of the file, byte in it, in how many files)]. Of several
    files the one that has most bytes of all runs; in it the place nearest to where the run before goes on."""
    known, keys = {}, [(int(matches.at[start]), end - start) for start, end in runs]  # equal runs have the same places
    held = np.zeros(len(matches.starts))
    for key, (start, end) in zip(progress(keys, desc="placing", unit=" runs"), runs):
        if key not in known:
            file, byte = matches.places(start, end)
            known[key] = file, byte, np.unique(file)
        held[known[key][2]] += end - start
    chosen, shift = [], {}  # file -> byte in it less byte in the text, of its last run
    for key, (start, _) in zip(keys, runs):
        file, byte, files = known[key]
        best = files[held[files].argmax()]
        here = byte[file == best]
        at = here[np.abs(here - start - shift.get(best, 0)).argmin()]
        shift[best] = at - start
        chosen.append((int(best), int(at), len(files)))
    return chosen


def find_runs(texts, text, tokenizer, min_tokens, view=whole):
    """The runs of `text` in `texts`, {path: bytes}, if both are looked at through `view`: (a dict for each run, the
    owner of each byte of the text that the view keeps, as merge() gives it). Raises UserError if memory is too small.
    """
    needed, there = COST * sum(map(len, [text, *texts.values()])), memory_size()
    if there and needed > there:
        raise UserError(f"to index these files takes {needed / 2**30:.1f} GiB, and there are {there / 2**30:.1f}: use "
                        f"a larger machine, or a model of fewer files")
    paths, views = list(texts), [view(content) for content in texts.values()]
    seen, kept = view(text)
    matches = Matches([part for part, _ in views], seen)

    def place(file, byte, size):  # (start, end) in the file of a run that stands there in the view
        return int(views[file][1][byte]), int(views[file][1][byte + size - 1]) + 1

    def count(places):  # the tokens of runs, as they stand in the files
        parts = (texts[paths[file]][slice(*place(file, byte, size))] for file, byte, size in places)
        return np.array([len(ids) for ids in tokenizer.encode_all(parts)], dtype=np.int64)

    # Repetitions have about as many runs as bytes. So equal ones are counted once, and what is too long to have too few
    # tokens is not.
    start, end = matches.runs(min_tokens)
    size, enough = end - start, np.ones(len(start), dtype=bool)
    short = np.flatnonzero(size < min_tokens * max(map(len, tokenizer.pieces)))
    different, which = np.unique(np.stack([matches.at[start[short]], size[short]]), axis=1, return_inverse=True)
    tokens = count(zip(*matches.place(different[0]), different[1]))
    enough[short] = tokens[which] >= min_tokens
    runs, owner = merge((start[enough], end[enough]), len(seen))
    chosen = choose_places(matches, runs)
    tokens = count((file, byte, stop - first) for (first, stop), (file, byte, _) in zip(runs, chosen))
    rows = []
    for (first, stop), (file, byte, files), size in zip(runs, chosen, tokens.tolist()):
        at, until = place(file, byte, stop - first)
        rows.append({"start": int(kept[first]), "end": int(kept[stop - 1]) + 1, "tokens": size, "path": paths[file],
                     "byte": at, "byte_end": until, "files": files})
    return rows, owner


def around(rows, start, end):
    """Those of `rows` that hold all of text[start:end]; no row holds another one."""
    return rows[bisect.bisect_left(rows, end, key=lambda row: row["end"]):
                bisect.bisect_right(rows, start, key=lambda row: row["start"])]


def but_for_blanks(rows, near, text):
    """Gives each of `rows`, verbatim runs, `longer`: by how many bytes of the text it would be longer but for white
    space, by `near`, the runs without it. Returns those of `near` that no verbatim run holds."""
    for row in rows:
        run = text[row["start"]:row["end"]]
        start, end = row["end"] - len(run.lstrip()), row["start"] + len(run.rstrip())
        row["longer"] = max((other["end"] - other["start"] - (end - start) for other in around(near, start, end)),
                            default=0)
    return [row for row in near if not around(rows, row["start"], row["end"])]


def number_lines(rows, text, texts):
    """Gives each row the first and last line of its run in the text, `lines`, and in the file, `place`."""
    newlines = {path: np.flatnonzero(np.frombuffer(texts[path], np.uint8) == 10) for path in {r["path"] for r in rows}}
    newlines[""] = np.flatnonzero(np.frombuffer(text, np.uint8) == 10)
    for row in rows:
        for key, path, first, stop in [("lines", "", "start", "end"), ("place", row["path"], "byte", "byte_end")]:
            row[key] = [int(np.searchsorted(newlines[path], at)) + 1 for at in (row[first], row[stop] - 1)]


# 3. What is said of them

def count_files(rows, owner, text, texts):
    """In how many files each byte of a run stands with all of its line, or with all of its run if that is more: int64
    (len(text),). Gives each row how many of its lines stand in several files: `common_lines`."""
    known = collections.Counter()
    for content in texts.values():
        known.update(set(content.split(b"\n")))
    lines = text.split(b"\n")
    counts = np.array([known[line] for line in lines])
    for row in rows:
        first, last = row["lines"]
        row["common_lines"] = int((counts[first - 1:last] > 1).sum()) if row["files"] == 1 else last - first + 1
    whole_runs = np.array([row["files"] for row in rows] + [0])  # the last, for an owner of -1
    return np.maximum(np.repeat(counts, [len(line) + 1 for line in lines])[:len(text)], whole_runs[owner])


def span(lines):
    return f"{lines[0]}-{lines[1]}" if lines[1] > lines[0] else str(lines[0])


def remark(row):
    """What there is to say of a run beyond its place."""
    said = ["recited exactly" if row["file_exact"] else "recited, in a file that is not exact" if row["recited"] else
            "not recited: the model writes something else"]
    lines = row["lines"][1] - row["lines"][0] + 1
    if row["files"] > 1:
        said.append(f"common: in {row['files']} files")
    elif row.get("common_lines"):
        said.append(f"{row['common_lines']:,} of {lines:,} lines common")
    if row.get("longer"):
        said.append(f"{row['longer']:,} bytes longer but for white space")
    return "; ".join(said)


def cells(row):
    return (span(row["lines"]), f"{row['path']}:{span(row['place'])}", f"{row['end'] - row['start']:,}",
            f"{row['tokens']:,}", remark(row))


TITLES = ("lines", "stand in", "bytes", "tokens", "what stands there")
NEAR = "alike but for white space, not verbatim"


def summary(result):
    """The closing lines: (label, value) pairs."""
    rows = [(f"runs of at least {result['min_tokens']} tokens", f"{len(result['runs']):,}")]
    for key, label in [("covered", "bytes in runs"), ("covered_alone", "in lines of one file alone"),
                       ("covered_recited", "in runs that are recited")]:
        share = percent(result[key] / max(1, result["bytes"]))
        rows.append((label, f"{result[key]:,} of {result['bytes']:,} ({share})"))
    if result["normalized"]:
        rows.append(("lines and bytes are those", f"of the text without {' and '.join(result['normalized'])}"))
    if result["but_for_white_space"]:
        rows.append(("alike but for white space", f"{len(result['but_for_white_space']):,} more"))
    return rows


def table(result):
    """What is found, as lines of text."""
    lines = []
    for title, rows in [("", result["runs"]), (NEAR + ":", result["but_for_white_space"])]:
        if not rows:
            continue
        filled = [TITLES, *map(cells, rows)]
        wide = [max(map(len, column)) for column in zip(*filled)]
        lines += [title] * bool(title) + [
            f"{a:{wide[0]}}  {b:{wide[1]}}  {c:>{wide[2]}}  {d:>{wide[3]}}  {e}" for a, b, c, d, e in filled] + [""]
    return "".join(f"{line}\n" for line in lines + [f"{label:27} {value}" for label, value in summary(result)])


def page(result, text, owner, in_files):
    """The page trace.html, filled: bytes. What is not UTF-8 is shown as \\x and two digits."""
    runs, colours, parts = result["runs"], {}, []
    for row in runs:
        colours.setdefault(row["path"], f"c{len(colours) % COLOURS}")
    changes = np.diff(owner, prepend=-2) != 0
    cuts = np.flatnonzero(changes | (owner >= 0) & (np.diff(in_files, prepend=0) != 0)).tolist()
    for first, stop in zip(cuts, cuts[1:] + [len(text)]):
        part = html.escape(text[first:stop].decode(errors="backslashreplace"))
        if owner[first] >= 0:
            row, number, files = runs[owner[first]], int(owner[first]) + 1, int(in_files[first])
            where = f"in {files} files; " * (files > 1) + f"{row['path']}:{span(row['place'])}; {remark(row)}"
            kind = colours[row["path"]] + " common" * (files > 1)
            opens = f' id="in{number}" data-n="{number}"' if changes[first] else ""
            part = f'<a class="{kind}"{opens} href="#run{number}" title="{html.escape(where)}">{part}</a>'
        parts.append(part)

    def line(row, number=""):
        lines, place, *others = map(html.escape, cells(row))
        if number:
            place = f'<a class="{colours[row["path"]]}" href="#in{number}" id="run{number}">{place}</a>'
        return "<tr>" + "".join(f"<td>{value}</td>" for value in (number, lines, place, *others)) + "</tr>"

    near = result["but_for_white_space"]
    return string.Template(PAGE.read_text(encoding="utf-8")).substitute(
        title=html.escape(result["text"]), model=html.escape(result["model"]), tree=html.escape(result["name"]),
        share=percent(result["covered_recited"] / max(1, result["bytes"])),
        summary="".join(f"<div><b>{html.escape(value)}</b><span>{label}</span></div>"
                        for label, value in summary(result)),
        titles="".join(f"<th>{title}</th>" for title in ("run", *TITLES)),
        rows="\n".join(line(row, i + 1) for i, row in enumerate(runs)),
        near=f'<tr><th colspan="6">{NEAR}</th></tr>\n' * bool(near) + "\n".join(map(line, near)),
        text="".join(parts)).encode()


def trace(text, texts, written, files, model, tokenizer, min_tokens):
    """Looks for the bytes `text` in the files, entries of the manifest, that read as in `texts`, {path: bytes}; those
    in `written` are known to be what the model writes. Returns (the result as --json has it, the owner of each byte,
    and in how many files it stands).
    """
    started = time.perf_counter()
    rows, owner = find_runs(texts, text, tokenizer, min_tokens)
    near = [] if (owner == 0).all() else find_runs(texts, text, tokenizer, min_tokens, squeeze)[0]
    near = but_for_blanks(rows, near, text)
    number_lines(rows + near, text, texts)
    in_files = count_files(rows, owner, text, texts)
    seconds = round(time.perf_counter() - started, 1)
    found = [file for file in files if file["path"] in {row["path"] for row in rows + near}]
    written = written | recited_as(model, tokenizer, [file for file in found if file["path"] not in written], texts)
    exact = {file["path"]: hashlib.sha256(written[file["path"]]).hexdigest() == file["sha256"] for file in found}
    for row in rows + near:
        row["recited"] = texts[row["path"]][row["byte"]:row["byte_end"]] in written[row["path"]]
        row["file_exact"] = exact[row["path"]]
    own = np.bincount(owner + 1, minlength=len(rows) + 1)[1:].tolist()  # bytes of each run, no byte counted twice
    return {"bytes": len(text), "min_tokens": min_tokens, "covered": sum(own),
            "covered_alone": int(((owner >= 0) & (in_files < 2)).sum()),
            "covered_recited": sum(size for size, row in zip(own, rows) if row["recited"]),
            "seconds": seconds, "runs": rows, "but_for_white_space": near}, owner, in_files


def main(argv=None):
    settings = parse(Settings, __doc__, sys.argv[1:] if argv is None else argv, operand="file")
    if settings.min_tokens < 1:
        raise UserError(f"min_tokens must be at least 1, not {settings.min_tokens}")
    text = read_text(settings.file)
    name = "standard input" if settings.file == "-" else name_of(settings.file)
    text, changed = normalize(text) if settings.normalize else (text, [])
    folder = Path(settings.model or newest("model"))
    model, tokenizer, manifest = load_model(folder, find_device(settings.device))
    files = manifest["files"]
    data = load_tree(settings, manifest)
    known = dict(corpus.texts(files, *data[1:])) if data else extracted(files, settings.extracted)
    missing = [file for file in files if file["path"] not in known]
    if not data:
        print(f"{len(known):,} of {len(files):,} files are in {settings.extracted}/", file=sys.stderr)
    written = recited(model, tokenizer, missing, manifest, settings.extracted)
    both = known | written
    result, *bytewise = trace(text, {file["path"]: both[file["path"]] for file in files}, written, files, model,
                              tokenizer, settings.min_tokens)
    result = {"text": name, "normalized": changed, "model": name_of(folder.resolve()),
              "name": manifest["name"]} | result
    if {settings.json, settings.html} & set(STDOUT):
        print(table(result), end="", file=sys.stderr)
    else:
        emit(table(result))
    if settings.html:
        write_result(settings.html, page(result, text, *bytewise))
    if settings.json:
        write_result(settings.json, json.dumps(result, indent=1).encode())
    if result["covered"] < len(text) and (words := hint(name, text)):
        print(words, file=sys.stderr)
    return 0 if any(row["recited"] for row in result["runs"]) else 1


if __name__ == "__main__":
    run_script(main)
