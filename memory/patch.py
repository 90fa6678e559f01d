"""The patches of bench.py --patch: a tree that was changed, and what it takes until a model that knows the old tree
knows the new one."""
import dataclasses
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from memory.corpus import load, texts
from memory.evaluate import count_wrong
from memory.files import write_file
from memory.output import UserError
from memory.settings import ROOT
from memory.windows import Windows, unquote
from model import load_model

WORD = re.compile(rb"[A-Za-z_]\w+")


# Patches

def places(files):
    """[(path, number of the line)] of the lines that have a word."""
    return [(path, i) for path, text in sorted(files.items()) for i, line in enumerate(text.split(b"\n"))
            if WORD.search(line)]


def reword(line, words, random):
    """The line with one of its words replaced by one of `words`."""
    found = list(WORD.finditer(line))
    word = found[random.integers(len(found))]
    return line[:word.start()] + words[random.integers(len(words))] + line[word.end():]


def change(files, share, random, insert=False):
    """{path: bytes} with one word replaced in this share of the lines that have one, at least in one line; or with
    insert=True, the reworded line comes after the old one."""
    lines, words = places(files), [word for _, text in sorted(files.items()) for word in WORD.findall(text)]
    texts = {path: text.split(b"\n") for path, text in files.items()}
    for k in random.choice(len(lines), max(1, round(share * len(lines))), replace=False):
        path, i = lines[k]
        line = reword(texts[path][i], words, random)
        texts[path][i] = texts[path][i] + b"\n" + line if insert else line
    return {path: b"\n".join(text) for path, text in texts.items()}


def add(files, path, random):
    """The files and one more beside `path`, of as many lines: each is one of the tree's, drawn, with one word replaced.
    So every line looks like the tree's own, and none tells the next."""
    lines, count = places(files), files[path].count(b"\n") + 1
    drawn = [files[p].split(b"\n")[i] for p, i in (lines[k] for k in random.integers(len(lines), size=count))]
    name = path.rsplit("/", 1)[0] + "/added.c"
    return files | change({name: b"\n".join(drawn) + b"\n"}, 1.0, random)


def patches(files, seed):
    """{name: {path: bytes}} of a tree's files, patched in several ways that the seed draws."""
    middle = sorted(files, key=lambda path: (len(files[path]), path))[len(files) // 2]

    def random(number):
        return np.random.default_rng((seed, number))
    return {
        "one line changed": change(files, 0, random(0)),
        "1% of the lines changed": change(files, 0.01, random(1)),
        "1% more lines": change(files, 0.01, random(2), insert=True),
        "10% of the lines changed": change(files, 0.1, random(3)),
        "a file removed": {path: text for path, text in files.items() if path != middle},
        "a file added": add(files, middle, random(4))}


# What they take

@dataclasses.dataclass
class Base:
    """The model that all patches begin from, and what it knows."""
    folder: Path
    settings: dict  # of its run
    steps: int  # of its run
    seconds: float  # of these steps
    windows: Windows  # of what it learned
    control: Windows  # of the files that its run held out, or None
    device: object

    @classmethod
    def load(cls, folder, record, data, device):
        """The Base in `folder`, of which `record` is the build.json; data: the prepared tree that it learned. Raises
        UserError."""
        if not record["step"] or not record.get("seconds") or not record["settings"].get("mend_steps"):
            raise UserError(f"{folder} is no base for patches: it needs a run of some steps with mend_steps")
        model, _, manifest = load_model(folder, device)
        _, tokenizer, tokens = load(data)
        windows, control = (Windows(tokens, files, tokenizer, model.config.max_position_embeddings) if files else None
                            for files in (manifest["files"], manifest["held_out"]))
        return cls(folder, record["settings"], record["step"], record["seconds"], windows, control, device)

    @property
    def files(self):
        """{path: bytes} of what it learned."""
        return dict(texts(self.windows.files, self.windows.tokenizer, self.windows.tokens))


def run(words, out=None):
    """Runs a script as a user would, but for its table. Raises UserError if it fails; then it has said why. out: the
    folder of a model, which train.py may write with tokens wrong, and end with 1."""
    status = subprocess.run([sys.executable, ROOT / words[0], *words[1:]], stdout=subprocess.DEVNULL).returncode
    if status and not (status == 1 and out and (out / "build.json").exists()):
        raise UserError(f"{words[0]} ended with status {status}, and there are no figures: what it said stands above")


def learn(base, files, folder):
    """Prepares {path: bytes} and learns them from the base's weights; all is kept in `folder`. Returns (Windows of the
    files; the full passes of the run, a list of dict; seconds that train.py took)."""
    source = os.fsencode(folder / "source")
    for path, text in files.items():
        write_file(os.fsdecode(os.path.join(source, unquote(path))), text)
    data, out, config = folder / "data", folder / "out", folder / "patch.py"
    run(["prepare.py", "--source", folder / "source", "--tokenizer", base.folder, "--out", data, "--quiet"])
    settings = base.settings | {"data": str(data), "out": str(out), "init_from": str(base.folder), "fresh": False,
                                "device": base.device.type, "train_bytes": 0, "hold_out_bytes": 0}
    write_file(config, "".join(f"{name} = {value!r}\n" for name, value in settings.items()).encode())
    started = time.perf_counter()
    run(["train.py", config], out)
    seconds = time.perf_counter() - started
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    tree, tokenizer, tokens = load(data)
    windows = Windows(tokens, tree["files"], tokenizer, base.windows.context)
    return windows, [line for line in lines if "wrong" in line], seconds


def contents(windows):
    """[what a window holds, opening and text], by which two of them are the same."""
    return [(tuple(opening.tolist()), tuple(windows.text(i))) for i, opening in enumerate(windows.openings)]


def share_right(model, windows, chosen, device):
    """The share of the tokens of the windows `chosen`, a bool array (windows,), that are right in a full pass."""
    wrong, *_ = count_wrong(model, windows, device)
    return 1 - int(wrong[chosen].sum()) / int((windows.length - windows.start)[chosen].sum())


def measure(base, name, files):
    """What the patch takes that makes the base's files {path: bytes} `files`, as a dict."""
    old = base.files
    changed = [path for path, text in files.items() if old.get(path) != text]
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        windows, looks, seconds = learn(base, files, folder)
        before, now = contents(base.windows), contents(windows)
        gone, new = (np.array([content not in others for content in mine])
                     for mine, others in ((before, set(now)), (now, set(before))))
        of_changed = np.isin([windows.files[i]["path"] for i in windows.file], changed)
        model, _, _ = load_model(folder / "out", base.device)
        last = looks[-1]
        figures = {
            "patch": name, "files": len(files), "tokens": windows.scored, "files_changed": len(changed),
            "windows": len(windows), "windows_of_changed_files": int(of_changed.sum()),
            "windows_new": int(new.sum()), "wrong_at_first": looks[0]["wrong"], "wrong": last["wrong"],
            "files_exact": last["files_exact"], "steps": last["step"], "step_share": last["step"] / base.steps,
            "seconds_of_steps": last["seconds"], "seconds_share": last["seconds"] / base.seconds,
            "seconds_in_all": seconds,
            "old_right": share_right(model, base.windows, gone, base.device) if gone.any() else None,
            "control_right": share_right(model, base.control, slice(None), base.device) if base.control else None}
        if 0 < 2 * len(changed) < len(files):
            figures["without_the_rest"] = without_the_rest(
                base, {path: files[path] for path in changed}, windows, folder / "alone")
    return figures


def without_the_rest(base, files, windows, folder):
    """What becomes of the other files if only the changed ones are learned, as by someone who has the weights and no
    source, as a dict. windows: of the whole patched tree."""
    _, looks, _ = learn(base, files, folder)
    model, _, _ = load_model(folder / "out", base.device)
    wrong, *_ = count_wrong(model, windows, base.device)
    others = np.array([windows.files[i]["path"] not in files for i in windows.file])
    return {"wrong": looks[-1]["wrong"], "steps": looks[-1]["step"], "others": len(windows.files) - len(files),
            "others_broken": len(np.unique(windows.file[others & (wrong > 0)])),
            "others_wrong": int(wrong[others].sum())}


PATCH_HEAD = (f"{'patch':26} {'wrong at first':>14} {'at the end':>10} {'steps':>6} {'of all':>7} "
              f"{'min':>6} {'in all':>6} {'old text right':>14} {'others broken without the rest':>30}")


def show_patch(figures, file):
    """Prints a row of the table."""
    alone, old = figures.get("without_the_rest"), figures["old_right"]
    print(f"{figures['patch']:26} {figures['wrong_at_first']:14,} {figures['wrong']:10,} {figures['steps']:6,} "
          f"{figures['step_share']:7.1%} {figures['seconds_of_steps'] / 60:6.1f} {figures['seconds_in_all'] / 60:6.1f} "
          + (f"{old:14.1%} " if old is not None else f"{'-':>14} ")
          + (f"{alone['others_broken']:22,} of {alone['others']:,}" if alone else f"{'-':>30}"), file=file)
