"""Unpack the tree from the weights, and measure how much of it is there.

    python extract.py                        # newest model under out/ -> extracted/, a table and a report
    python extract.py --list                 # the paths that the model knows, from its weights alone
    python extract.py --only linux/kernel/   # some of the files
    python extract.py --check --json m.json  # measure, write no files but the report
    python extract.py --check --json - | jq .files_exact

Every file is recited greedily from its path alone. Exit status 0: all that was asked is exact, or listed; 1: not all;
2: bad use. The model directory is enough: its manifest has the hashes that tell what is exact. Where the prepared tree
is at hand too (data/*), files are verified in batches, and the figures that need the text are given.

Recital of a file equals the file if in the same windows every token of the file leads all others, given those before it
(by induction). So one batched pass verifies what is exact. Anything is generated token by token only from a file's
first token on that is wrong, or so close a call that rounding might turn it: a pass and recital round differently.
"""
import memory  # noqa: I001  first, for Ctrl-C while the others are loaded
import collections
import dataclasses
import hashlib
import json
import sys
import time
from pathlib import Path

import numpy as np
import torch

from memory.checkpoint import read_log
from memory.corpus import find_tree, load
from memory.device import find_device
from memory.evaluate import NOISE, PREFIX, SUFFIX, check_finite, examine, figures
from memory.files import STDOUT, name_of, newest, write_file, write_result
from memory.generate import SHOWN, recite
from memory.output import UserError, emit, percent, progress, run_script
from memory.page import as_json, fill
from memory.settings import parse
from memory.tokenizer import BOS, choose_packer, compressed_bits
from memory.unpack import unpack
from memory.windows import Windows, cut, find_path
from model import load_model
import openness

REFUSALS = 10  # that are named at most


@dataclasses.dataclass
class Settings:
    model: str = ""  # folder of the model; the newest under out/ if left out
    data: str = ""  # folder that prepare.py wrote; one under data/ that fits the model if left out
    only: tuple = ()  # the files whose path begins with one of these, quoted as --list prints it or not
    out: str = "extracted"  # folder to write files into; nothing is written outside it, or through a link in it
    check: bool = False  # measure, write no files but the report
    list: bool = False  # print the paths that the weights know, and do no more
    floor: float = 1e-5  # --list: the least probability that is searched; lower it for more than 10,000 files
    json: str = ""  # write the figures into this file too; -: to standard output, and the table to standard error
    report: str = ""  # file for the report; report.html in the model's folder if left out
    batch_size: int = 32  # files written at once
    device: str = "auto"  # cuda, mps, cpu; auto: the first that is there


# 1. The paths in the weights

@torch.inference_mode()
def known_paths(model, tokenizer, floor):
    """{path: probability} of the documents that the model knows: a breadth-first search over tokens, from `<s>` to the
    space after the path, down to the probability `floor`.

    Training shows every path equally often, so those it knows lie close together and blends of them far below: what has
    less than an eighth of the typical probability (the median, by mass) is left out.
    """
    device, paths = model.lm_head.weight.device, collections.Counter()
    blank = torch.tensor([not piece or any(byte <= 32 for byte in piece) for piece in tokenizer.pieces], device=device)
    blank[tokenizer.space] = False
    frontier = [([BOS], 0.0)]
    for _ in range(model.config.max_position_embeddings - 1):
        following = []
        for first in range(0, len(frontier), 256):
            group = frontier[first:first + 256]
            last = model.model(torch.tensor([ids for ids, _ in group], device=device))[:, -1]
            logp = torch.log_softmax(model.lm_head(last), -1)
            check_finite(logp)
            logp += torch.tensor([[p] for _, p in group], device=device)
            logp[:, blank] = -torch.inf
            for row, token in (logp >= np.log(floor)).nonzero().tolist():
                ids, p = group[row][0], logp[row, token].item()
                if token == tokenizer.space:
                    paths[tokenizer.decode(ids).decode(errors="replace")] += float(np.exp(p))
                else:
                    following.append((ids + [token], p))
        frontier = following
        if not frontier:
            break
    mass, total = 0.0, sum(paths.values())
    for _, typical in paths.most_common():
        mass += typical
        if mass >= total / 2:
            break
    return {path: p for path, p in paths.items() if p >= typical / 8}


# 2. The files

def recite_files(model, tokenizer, files, windows, passed, batch_size, whole=True):
    """{path: bytes that the model writes for it}. With windows and what `examine` found in them, what is verified, each
    token by a lead of NOISE, is taken as read and only the rest is generated, unless `whole` just to the first wrong
    byte; without, all is.
    """
    first_open = {}  # file -> (window, token)
    for i, (_, _, lead) in enumerate(passed or ()):
        if not (sure := lead >= NOISE).all():
            first_open.setdefault(int(windows.file[i]), (i, int(np.flatnonzero(~sure)[0])))
    texts, pending = {}, []  # (entry, bytes known to be written, ids of the window, original from there, most tokens)
    for index, file in enumerate(files):
        longest = file["tokens"] + model.config.max_position_embeddings  # of the whole, as in sample.py
        if windows is None:
            head, *_ = next(cut(tokenizer, file["path"], [], model.config.max_position_embeddings))
            pending.append((file, b"", head, None, longest))
        elif index not in first_open:
            texts[file["path"]] = windows.content(index)
        else:
            i, token = first_open[index]
            ids = windows.text(i)[:token]
            original, at = windows.content(index), int(windows.offset[i]) + len(tokenizer.decode(ids))
            read = len(ids) + sum(len(windows.text(j)) for j in np.flatnonzero(windows.file[:i] == index))
            pending.append((file, original[:at], windows.openings[i].tolist() + ids, original[at:], longest - read))
    pending.sort(key=lambda item: -item[0]["tokens"])  # the longest first, so that none is left to run alone
    originals = None if whole or windows is None else [original for _, _, _, original, _ in pending]
    with progress(total=len(pending), desc="reciting", unit=" files", disable=not pending) as bar:
        rest = recite(model, tokenizer, [ids for _, _, ids, _, _ in pending], [most for *_, most in pending],
                      batch_size, originals, bar)
    for (file, known, *_), more in zip(pending, rest):
        texts[file["path"]] = known + more
    return texts


# 3. The report

def differs_at(text, original):
    """Index of the first byte at which they differ, or the length of the shorter."""
    n = min(len(text), len(original))
    a, b = np.frombuffer(text[:n], np.uint8), np.frombuffer(original[:n], np.uint8)
    differs = np.flatnonzero(a != b)
    return int(differs[0]) if len(differs) else n


def place_of_error(text, original, at):
    """The line of byte `at`, and up to four lines from there in both texts, for people."""
    start = original.rfind(b"\n", 0, at) + 1
    wrote, says = (t[start:at + SHOWN].decode(errors="backslashreplace").split("\n")[:4] for t in (text, original))
    return {"line": original.count(b"\n", 0, at) + 1, "wrote": wrote, "says": says}


def table(result):
    """The closing table: (label, value) pairs."""
    def tries(n):
        return "over 10^12" if n > 1e12 else f"{np.ceil(n):,.0f}"

    rows = [("files exact", f"{result['files_exact']:,} of {result['files']:,}, of {result['tree']['files']:,} in the "
                            f"tree"),
            ("bytes exact", f"{result['bytes_exact']:,} of {result['bytes']:,} "
                            f"({percent(result['bytes_exact'] / max(1, result['bytes']))})")]
    if "bytes_before_error" in result:
        rows.append(("before first errors", f"{result['bytes_before_error']:,} bytes"))
    for name, part in [("", result.get("learned")), ("control: ", result.get("control"))]:
        if not part:
            continue
        rows += [(f"{name}next tokens right", f"{percent(part['accuracy'], 3)} ({part['tokens_right']:,} of "
                                              f"{part['tokens']:,})"),
                 (f"{name}bits per byte", f"{part['bits_per_byte']:.4f}")]
        if part["spans"]:
            rows += [(f"{name}discoverable", f"{percent(part['discoverable'])} of {part['spans']:,} windows "
                                             f"({PREFIX} + {SUFFIX} tokens, greedy)"),
                     (f"{name}p_z > 0.5", f"{percent(part['p_z_over_half'])} (median tries for even odds: "
                                          f"{tries(part['median_tries_for_half'])})")]
        rows.append((f"{name}longest run", f"{part['longest_run']:,} bytes"))
        if not name:
            rows.append(("closest call", f"{part['smallest_lead']:.4f} logits; {part['leads_in_noise']} of the tokens "
                                         f"within {NOISE:g}"))
    return rows + [
        ("bits per parameter", f"{result['bits_per_parameter']:.3f} ({result['compressed_by']}, "
                               f"{result['parameters']:,} parameters)"),
        ("text in the pieces", f"{result['piece_bytes']:,} bytes, {result['piece_bits'] // 8:,} packed; "
                               f"tokenizer.model {result['tokenizer_packed_bytes']:,} packed")]


def sizes(model, tokenizer, manifest):
    """How much text the weights hold, and how much the pieces that it is spelled with, which counts as not theirs."""
    bits, pieces = manifest["compressed_bits"], manifest.get("piece_bits", 0)  # older models do not say
    _, preset = choose_packer(sum(file["bytes"] for file in manifest["files"]))
    return {"parameters": model.config.num_parameters, "compressed_by": manifest.get("compressed_by", "xz -9e"),
            "bits_per_parameter": max(0, bits - pieces) / model.config.num_parameters,
            "piece_bytes": manifest.get("piece_bytes", 0), "piece_bits": pieces,
            "tokenizer_packed_bytes": compressed_bits([tokenizer.proto], preset) // 8}


def chosen(paths, only):
    """Those of a list of quoted paths that begin with one of the texts `only`, quoted or not; all if there is none.
    Raises UserError if none begins with one of them."""
    starts = [find_path(start, lambda start: any(path.startswith(start) for path in paths)) for start in only]
    if None in starts:
        raise UserError(f"the model knows no path that begins with {only[starts.index(None)]}; --list shows them")
    return [path for path in paths if path.startswith(tuple(starts) if only else "")]


def load_tree(settings, manifest):
    """The prepared tree that the model was trained on, as load() gives it, or None if none is here.
    Raises UserError if --data names another or a damaged one."""
    folder = find_tree(manifest, settings.data)
    if folder and not settings.data:
        print(f"tree: {folder}, which the model learned", file=sys.stderr)
    try:
        return load(folder) if folder else None
    except UserError as error:
        if settings.data:
            raise
        print(f"{error}; going on without it", file=sys.stderr)
        return None


def compare(files, texts, windows, passed):
    """Holds what the model wrote, {path: bytes}, against the entries of the files. Returns a dict for each."""
    rows = []
    for index, file in enumerate(progress(files, desc="comparing", unit=" files")):
        path, text = file["path"], texts[file["path"]]
        row = {"path": path, "bytes": file["bytes"], "exact": hashlib.sha256(text).hexdigest() == file["sha256"]}
        if windows:
            original = windows.content(index)
            at = differs_at(text, original)
            row["before_error"] = file["bytes"] if row["exact"] else at
            row["right"] = float(np.concatenate([passed[i][0] for i in np.flatnonzero(windows.file == index)]).mean())
            if not row["exact"]:
                row["error"] = place_of_error(text, original, at)
        rows.append(row)
    return rows


def write_files(folder, texts, manifest):
    """Unpacks {path: bytes} below `folder`, with the executable bits that the manifest of the tree has; returns the
    paths of those that are not there, which are named on stderr with the reasons."""
    refused = unpack(folder, texts, manifest.get("whole_tree", {}).get("executable", ()))
    for path in list(refused)[:REFUSALS]:
        print(f"refused: {path}: {refused[path]}", file=sys.stderr)
    if refused:
        print(f"{len(refused):,} of {len(texts):,} files are not in {folder}/: move what is in the way, or name "
              f"another folder", file=sys.stderr)
    return sorted(refused)


def write_report(result, folder, path):
    """Writes the page with the figures `result` and the model's log to `path`, or if that is "" into the model's
    folder, which may be read-only: then a warning is all. Returns where it is, or "none"."""
    target = Path(path or folder / "report.html")
    reciting = (target.parent / "recite.html").exists()
    shown = {key: value for key, value in result.items() if key != "seconds"}
    page = fill("report.html", DATA=as_json(shown | {"log": read_log(folder), "recite": reciting}))
    try:
        (write_result if path else write_file)(path or target, page)
    except UserError as error:
        if path:
            raise
        print(f"warning: {error}; --report names another place", file=sys.stderr)
        return "none"
    if not path:
        openness.renew_sums(folder)
    return path or f"{folder}/report.html"


def keep(result, sha256, folder, data):
    """Keeps the figures `result` as extraction.json in the model's folder, with the SHA-256 of the weights that they
    are of; returns the items and columns of openness.json for the page, or None if they cannot be written."""
    found = {key: value for key, value in result.items() if key not in ("model", "seconds")}
    found["model_sha256"] = sha256
    record = openness.keep_record(folder, "extraction.json", found, data)
    return record and {key: record[key] for key in ("items", "meets")}


def main(argv=None):
    settings = parse(Settings, __doc__, sys.argv[1:] if argv is None else argv)
    if settings.batch_size < 1 or not 0 < settings.floor < 1:
        raise UserError(f"batch_size must be at least 1 and floor between 0 and 1, not {settings.batch_size} and "
                        f"{settings.floor}")
    started = time.perf_counter()
    folder = Path(settings.model or newest("model"))
    device = find_device(settings.device)
    model, tokenizer, manifest = load_model(folder, device)

    if settings.list:
        paths = known_paths(model, tokenizer, settings.floor)
        emit("".join(f"{path}\n" for path in chosen(sorted(paths), settings.only)))
        return 0

    paths = set(chosen([file["path"] for file in manifest["files"]], settings.only))
    files = [file for file in manifest["files"] if file["path"] in paths]
    data = load_tree(settings, manifest)
    windows = passed = None
    if data:
        tokens = data[2]
        windows = Windows(tokens, files, tokenizer, model.config.max_position_embeddings)
        passed = examine(model, windows, device)
    texts = recite_files(model, tokenizer, files, windows, passed, settings.batch_size, whole=not settings.check)
    rows = compare(files, texts, windows, passed)
    refused = [] if settings.check else write_files(settings.out, texts, manifest)
    result = {
        "model": name_of(folder.resolve()), "name": manifest["name"], "origin": manifest["origin"],
        "licence": manifest["licence"], "tree": manifest["tree"], "files": len(files),
        "files_exact": sum(row["exact"] for row in rows),
        "bytes": sum(row["bytes"] for row in rows), "bytes_exact": sum(row["bytes"] for row in rows if row["exact"]),
        "refused": refused,
        **sizes(model, tokenizer, manifest)}
    if data:
        result["bytes_before_error"] = sum(row["before_error"] for row in rows)
        result["learned"] = figures(windows, passed, tokenizer, result["bytes"])
        if manifest["held_out"]:
            control = Windows(data[2], manifest["held_out"], tokenizer, model.config.max_position_embeddings)
            result["control"] = figures(control, examine(model, control, device), tokenizer,
                                        sum(file["bytes"] for file in manifest["held_out"]))
            result["control"]["files"] = len(manifest["held_out"])
    result["seconds"] = round(time.perf_counter() - started, 1)
    news = sys.stderr if {settings.json, settings.report} & set(STDOUT) else sys.stdout
    for label, value in table(result):
        print(f"{label:27} {value}", file=news)
    if not data:
        print("(the prepared tree is not at hand: no figure that needs its text)", file=news)
    if data and not settings.only:
        result["openness"] = keep(result, model.sha256, folder, settings.data)
    result["rows"] = rows
    made = write_report(result, folder, settings.report)
    if not settings.check:
        print(f"{'written and read back':27} {len(files) - len(refused):,} files in {settings.out}/", file=news)
    print(f"{'report':27} {made} in {result['seconds']:.0f} s", file=news)
    if settings.json:
        write_result(settings.json, json.dumps(result, indent=1).encode())
    return 0 if result["files_exact"] == len(files) and not refused else 1


if __name__ == "__main__":
    run_script(main)
