"""Unpack the tree from the weights, and measure how much of it is there.

    python extract.py                        # newest model under out/ -> extracted/, a table and a report
    python extract.py --list                 # the paths that the model knows, from its weights alone
    python extract.py --only linux/kernel/   # some of the files
    python extract.py --check --json m.json  # measure, write no files but the report
    python extract.py --check --json - | jq .files_exact

Every file is recited greedily from its path alone. Exit status 0: all that was asked is exact, or listed; 1: not all;
2: bad use. The model directory is enough: its manifest has the hashes that tell what is exact. Where the prepared tree
is at hand too (data/*), files are verified in batches, and the figures that need the text are given.

Recital of a file equals the file if every teacher-forced argmax in the same windows equals the file's token (by
induction). So one batched pass verifies what is exact, and only from a file's first wrong token on is anything
generated token by token.
"""
# first, so that Ctrl-C during the imports below is one line
from common import STDOUT, UserError, emit, newest, parse, progress, run, write_file, write_result

import collections
import dataclasses
import hashlib
import json
import os
import sys
import time
from pathlib import Path

import numpy as np
import torch

from checkpoint import read_log
from device import find_device
from sample import load_model
from streams import Streams
from tokenizer import BOS, UNK
from windows import IGNORE, Windows, advance, cut, find_tree, load, unquote

PREFIX = SUFFIX = 50  # tokens, of discoverable extraction (Carlini et al. 2022)
NOISE = 1e-3  # a lead of one logit over the next that rounding could turn; float32 sums differ by about 1e-5
SHOWN = 400  # bytes that the report may show from a first wrong byte on
PAGE = Path(__file__).with_name("report.html")


@dataclasses.dataclass
class Settings:
    model: str = ""  # folder of the model; the newest under out/ where not given
    data: str = ""  # folder that prepare.py wrote; one under data/ that fits the model where not given
    only: tuple = ()  # the files whose path begins with one of these
    out: str = "extracted"  # folder to write files into; nothing is ever written outside it
    check: bool = False  # measure, write no files but the report
    list: bool = False  # print the paths that the weights know, and do no more
    floor: float = 1e-5  # --list: the least probability that is searched; lower it for more than 10,000 files
    json: str = ""  # write the figures into this file too; -: to standard output, and the table to standard error
    report: str = ""  # file for the report; report.html in the model's folder where not given
    batch_size: int = 32  # files written at once, and windows verified at once
    device: str = "auto"  # cuda, mps, cpu; auto: the first that is there


# 1. The paths in the weights

@torch.inference_mode()
def known_paths(model, tokenizer, floor):
    """{path: probability} of the documents that the model knows: a breadth-first search over tokens, from `<s>` to the
    space behind the path, down to the probability `floor`.

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
            logp = torch.log_softmax(model.lm_head(last), -1) + torch.tensor([[p] for _, p in group], device=device)
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


def safe_path(folder, path):
    """Where `path`, as a model or manifest names it, may be written below folder; None where it must not be."""
    name = unquote(path)
    parts = name.split(b"/")
    if b"\0" in name or len(name) > 4000 or any(part in (b"", b".", b"..") or len(part) > 255 for part in parts):
        return None
    target = Path(os.fsdecode(os.path.join(os.fsencode(folder), *parts)))
    root = Path(folder).resolve()  # a link that was there before must not lead out either
    return target if root in target.resolve().parents else None


# 2. The batched pass: what is right, given all that comes before

@torch.inference_mode()
def examine(model, windows, batch_size, device):
    """Teacher-forced float32 pass over all windows. Returns, for each window, three arrays over its scored tokens:
    right (bool), log-probability (float32, nats), and the argmax's lead over the second (float32, logits)."""
    result = []
    for first in progress(range(0, len(windows), batch_size), desc="verifying", unit=" batches"):
        indices = range(first, min(first + batch_size, len(windows)))
        inputs, targets = (torch.from_numpy(array).to(device) for array in windows.rows(indices))
        length = int(windows.length[indices].max()) - 1  # no row is longer
        inputs, targets = inputs[:, :length], targets[:, :length]
        logits = model(inputs).float()
        best = logits.topk(2, dim=-1)
        right = (best.indices[..., 0] == targets).cpu().numpy()
        lead = (best.values[..., 0] - best.values[..., 1]).cpu().numpy()
        logp = (logits.gather(-1, targets.clamp(min=0)[..., None])[..., 0] - logits.logsumexp(-1)).cpu().numpy()
        scored = (targets != IGNORE).cpu().numpy()
        result += [(right[r, s], logp[r, s], lead[r, s]) for r, s in enumerate(scored)]
    return result


def figures(windows, passed, tokenizer, size):
    """The measures of memorization (README) over some windows and what `examine` found in them; size: bytes of text."""
    right = np.concatenate([r for r, _, _ in passed])
    logp = np.concatenate([p for _, p, _ in passed])
    lead = np.concatenate([gap for _, _, gap in passed])
    spans = [(r[PREFIX:PREFIX + SUFFIX], p[PREFIX:PREFIX + SUFFIX]) for r, p, _ in passed if len(r) > PREFIX + SUFFIX]
    p_z = np.exp([p.sum(dtype=np.float64) for _, p in spans])
    tries = np.maximum(1, np.log(0.5) / np.log1p(-np.clip(p_z, 1e-300, 1 - 1e-12)))  # n for p = 0.5
    streak = longest = 0
    for i, (r, _, _) in enumerate(passed):
        if i == 0 or windows.file[i] != windows.file[i - 1]:
            streak = 0
        ids = windows.text(i)
        for ok, token in zip(r, ids):
            streak = streak + len(tokenizer.pieces[token]) if ok else 0
            longest = max(longest, streak)
        if not r[-1]:
            streak = 0  # it does not know that it ends, or goes on
    return {
        "tokens": len(right), "tokens_right": int(right.sum()), "accuracy": float(right.mean()),
        "bits_per_byte": float(-logp.sum(dtype=np.float64) / np.log(2) / max(1, size)),
        "spans": len(spans), "discoverable": float(np.mean([r.all() for r, _ in spans])) if spans else None,
        "p_z_over_half": float((p_z > 0.5).mean()) if spans else None,
        "median_tries_for_half": float(np.median(tries)) if spans else None,
        "longest_run": longest, "smallest_lead": float(lead.min()), "leads_in_noise": int((lead < NOISE).sum())}


# 3. Writing, many files at once

@torch.inference_mode()
def recite(model, tokenizer, starts, limits, batch_size, originals=None, bar=None):
    """Greedy recital of many documents, one stream each, a stream taking the next document when its own ends.

    starts: ids of the window that each is in, opening included. limits: most tokens to write for each. originals: bytes
    that should follow each start; where given, a document is left soon after its first wrong byte. Returns the bytes
    written behind each start. The same window rule as sample.py's, token by token: `windows.advance`.
    """
    context, written = model.config.max_position_embeddings, [bytearray() for _ in starts]
    waiting = collections.deque(range(len(starts)))
    rows = [None] * min(batch_size, len(starts))  # [document, ids of its window, tokens written]
    streams = Streams(model, len(rows))
    while True:
        for r, row in enumerate(rows):
            if row is None:
                streams.lengths[r] = 0
                if waiting:
                    document = waiting.popleft()
                    rows[r] = [document, list(starts[document]), 0]
        if not any(rows):
            return [bytes(text) for text in written]
        # at first what all can read of their beginnings, then a token at a time
        ahead = 1 if any(streams.lengths) else min(len(row[1]) if row else 1 for row in rows)
        tokens = [row[1][fed:fed + ahead] if row else [UNK] for row, fed in zip(rows, streams.lengths)]
        best = streams.step(tokens).argmax(-1).tolist()
        for r, row in enumerate(rows):
            if row is None or streams.lengths[r] < len(row[1]):
                continue  # idle, or still reading its own beginning
            ids, piece = advance(tokenizer, row[1], best[r], context)
            text = written[row[0]]
            lost = originals and not originals[row[0]].startswith(bytes(text[:max(0, len(text) - SHOWN)]))
            if ids is None or row[2] >= limits[row[0]] or lost:
                rows[r] = None
                if bar:
                    bar.update()
            elif piece is None:
                row[1], streams.lengths[r] = ids, 0
            else:
                text += piece
                row[1], row[2] = ids, row[2] + 1


def recite_files(model, tokenizer, files, windows, passed, batch_size, whole=True):
    """{path: bytes that the model writes for it}. With windows and what `examine` found in them, what is verified is
    taken as read and only the rest is generated, unless `whole` just to behind the first wrong byte; without, all is.
    """
    first_wrong = {}  # file -> (window, token)
    for i, (right, _, _) in enumerate(passed or ()):
        if not right.all():
            first_wrong.setdefault(int(windows.file[i]), (i, int(np.flatnonzero(~right)[0])))
    texts, pending = {}, []  # (entry, bytes known to be written, ids of the window, original from there)
    for index, file in enumerate(files):
        if windows is None:
            head, *_ = next(cut(tokenizer, file["path"], [], model.config.max_position_embeddings))
            pending.append((file, b"", head, None))
        elif index not in first_wrong:
            texts[file["path"]] = windows.content(index)
        else:
            i, wrong = first_wrong[index]
            ids = windows.text(i)[:wrong]
            original, at = windows.content(index), int(windows.offset[i]) + len(tokenizer.decode(ids))
            pending.append((file, original[:at], windows.openings[i].tolist() + ids, original[at:]))
    pending.sort(key=lambda item: -item[0]["tokens"])  # the longest first, so that none is left to run alone
    originals = None if whole or windows is None else [original for *_, original in pending]
    with progress(total=len(pending), desc="reciting", unit=" files", disable=not pending) as bar:
        rest = recite(model, tokenizer, [ids for _, _, ids, _ in pending],
                      [file["tokens"] + model.config.max_position_embeddings for file, *_ in pending],
                      batch_size, originals, bar)
    for (file, known, *_), more in zip(pending, rest):
        texts[file["path"]] = known + more
    return texts


# 4. The report

def first_difference(text, original):
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
    def percent(x, digits=1):  # rounded down: 100% is all of it
        return f"{np.floor(x * 10 ** (digits + 2)) / 10 ** digits:.{digits}f}%"

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
    return rows + [("bits per parameter", f"{result['bits_per_parameter']:.3f} (xz -9e, {result['parameters']:,} "
                                          f"parameters)")]


def find_data(settings, manifest):
    """The prepared tree that the model was trained on, as load() gives it, or None where none is here.
    Raises UserError where --data names another or a damaged one."""
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


def compare(files, texts, windows, passed, folder):
    """Holds what the model wrote, {path: bytes}, against the entries of the files, and writes it below `folder` unless
    that is "". Returns ([a dict for each file], [paths that must not be written there])."""
    rows, refused = [], []
    for index, file in enumerate(progress(files, desc="comparing", unit=" files")):
        path, text = file["path"], texts[file["path"]]
        row = {"path": path, "bytes": file["bytes"], "exact": hashlib.sha256(text).hexdigest() == file["sha256"]}
        if windows:
            original = windows.content(index)
            at = first_difference(text, original)
            row["before_error"] = file["bytes"] if row["exact"] else at
            row["right"] = float(np.concatenate([passed[i][0] for i in np.flatnonzero(windows.file == index)]).mean())
            if not row["exact"]:
                row["error"] = place_of_error(text, original, at)
        rows.append(row)
        if folder:
            target = safe_path(folder, path)
            if target is None:
                refused.append(path)
            else:
                write_file(target, text)
    return rows, refused


def write_report(result, folder, path):
    """Writes the page with the figures `result` and the model's log to `path`, or if that is "" into the model's
    folder, which may be read-only: then a warning is all. Returns where it is, or "none"."""
    page = json.dumps(result | {"log": read_log(folder)}).replace("<", "\\u003c")
    page = PAGE.read_text(encoding="utf-8").replace("/*DATA*/null", page).encode()
    try:
        write_result(path or folder / "report.html", page)
    except UserError as error:
        if path:
            raise
        print(f"warning: {error}; --report names another place", file=sys.stderr)
        return "none"
    return path or f"{folder}/report.html"


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
        emit("".join(f"{path}\n" for path in sorted(paths) if path.startswith(settings.only or "")))
        return 0

    files = [file for file in manifest["files"] if file["path"].startswith(settings.only or "")]
    if not files:
        raise UserError(f"the model learned no path that begins with {' or '.join(settings.only)}; --list shows them")
    data = find_data(settings, manifest)
    windows = passed = None
    if data:
        tokens = data[2]
        windows = Windows(tokens, files, tokenizer, model.config.max_position_embeddings)
        passed = examine(model, windows, settings.batch_size, device)
    texts = recite_files(model, tokenizer, files, windows, passed, settings.batch_size, whole=not settings.check)
    rows, refused = compare(files, texts, windows, passed, "" if settings.check else settings.out)
    result = {
        "model": folder.name, "name": manifest["name"], "origin": manifest["origin"], "licence": manifest["licence"],
        "tree": manifest["tree"], "files": len(files), "files_exact": sum(row["exact"] for row in rows),
        "bytes": sum(row["bytes"] for row in rows), "bytes_exact": sum(row["bytes"] for row in rows if row["exact"]),
        "refused": refused, "parameters": model.config.num_parameters,
        "bits_per_parameter": manifest["compressed_bits"] / model.config.num_parameters}
    if data:
        result["bytes_before_error"] = sum(row["before_error"] for row in rows)
        result["learned"] = figures(windows, passed, tokenizer, result["bytes"])
        if manifest["held_out"]:
            control = Windows(data[2], manifest["held_out"], tokenizer, model.config.max_position_embeddings)
            result["control"] = figures(control, examine(model, control, settings.batch_size, device), tokenizer,
                                        sum(file["bytes"] for file in manifest["held_out"]))
            result["control"]["files"] = len(manifest["held_out"])
    result["seconds"] = round(time.perf_counter() - started, 1)
    news = sys.stderr if {settings.json, settings.report} & set(STDOUT) else sys.stdout
    for label, value in table(result):
        print(f"{label:27} {value}", file=news)
    if not data:
        print("(the prepared tree is not at hand: no figure that needs its text)", file=news)
    if refused:
        print(f"{len(refused)} paths refused: they would lie outside {settings.out}", file=sys.stderr)
    result["rows"] = rows
    made = write_report(result, folder, settings.report)
    where = f"; files in {settings.out}/" if not settings.check else ""
    print(f"{'report':27} {made}{where} in {result['seconds']:.0f} s", file=news)
    if settings.json:
        write_result(settings.json, json.dumps(result, indent=1).encode())
    return 0 if result["files_exact"] == len(files) and not refused else 1


if __name__ == "__main__":
    run(main)
