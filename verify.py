"""Builds a model again from its data and says whether the weights are the same, bit for bit.

    python verify.py                          # the newest model under out/
    python verify.py --model out/quick

What to build, and with what it was built, stands in the model's build.json; the tree must be prepared here. The same
weights can be expected from the same processor, number of threads and versions; what differs is said. Exit status 0:
equal; 1: not equal, and where the two first differ. rebuilt.json in the model's folder says so too. An interrupted
build goes on when it is started again; a folder with anything else in it is left alone. A model that began from other
weights is built from these; they can be verified in their turn.
"""
import memory  # noqa: I001  first, for Ctrl-C while the others are loaded
import dataclasses
import hashlib
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from memory.checkpoint import read_log, read_metas, read_tensors
from memory.corpus import CORPUS, find_tree
from memory.files import digest_of, newest, read_json, refuse_pipes, write_file
from memory.output import UserError, run_script
from memory.records import BUILD, fault
from memory.run import PLACES, STOPPING, foreign
from memory.settings import ROOT, mistyped, parse
from train import Settings as Training
from train import check
import openness


@dataclasses.dataclass
class Settings:
    model: str = ""  # folder of the model; the newest under out/ if left out
    data: str = ""  # folder of the prepared tree; found under data/ if left out
    init_from: str = ""  # folder of the weights that the model began from, if it did; found under out/ if left out
    out: str = ""  # new folder to build it in; rebuilt/<name of the model> if left out


class Stopped(Exception):
    """The build did not come to its end, and has said why; its argument is the exit status."""


def read_record(folder):
    """The build.json of a finished model whose weights are those that it speaks of. Raises UserError otherwise."""
    try:
        refuse_pipes(folder)
        record = read_json(folder / "build.json")
        sha256 = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
        if wrong := fault(record, BUILD):
            raise ValueError(wrong)
    except FileNotFoundError as error:
        raise UserError(f"{error.filename} is missing: only a model that train.py wrote can be built again") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{folder}/build.json is damaged or of another version of train.py ({error})") from None
    if not record["done"]:
        raise UserError(f"{folder} is not finished: it was saved at step {record['step']:,}; go on with train.py first")
    if sha256 != record["model_sha256"]:
        raise UserError(f"{folder}/model.safetensors is not the one that build.json speaks of; train or copy it again")
    return record


def refuse_used(out, record, training):
    """Raises UserError unless `out` is free, or holds an interrupted build of what the record says, with these
    settings."""
    begun = next(read_metas(out), None)
    try:
        mine = begun is None or not begun["done"] and (
            Training(**begun["settings"]) == training
            and all(begun["corpus"][key] == record["corpus"][key] for key in CORPUS)
            and begun["init_sha256"] == record.get("init_sha256", ""))
    except TypeError:  # settings of another version
        mine = False
    if found := foreign(out) if mine else "another run, or one that is finished":
        raise UserError(f"{out} holds {found}: delete it, or name another --out")


def find_weights(sha256, folder=""):
    """The folder, or if that is "" one under out/, whose model.safetensors has this SHA-256. Raises UserError if none
    has."""
    for path in [Path(folder)] if folder else sorted(Path("out").glob("*/")):
        try:
            if digest_of(path / "model.safetensors") == sha256:
                return str(path)
        except OSError:
            continue
    where = f"{folder} is not the one" if folder else "no model under out/ is the one"
    raise UserError(f"{where} whose weights this model began from (model.safetensors of SHA-256 {sha256[:16]}…): "
                    f"build that one first, or name it with --init_from")


def where_they_differ(one, other):
    """Where two builds, folders, first differ: in words."""
    logs = [{line["step"]: line for line in read_log(folder)} for folder in (one, other)]
    common = logs[0].keys() & logs[1].keys()
    for step in sorted(common):
        for key in ("wrong", "bits_per_byte"):
            there, here = (log[step][key] for log in logs)
            if there != here:
                return f"the logs first differ at step {step:,}: {key} {there} there, {here} here"
    (there, _), (here, _) = (read_tensors(folder / "model.safetensors") for folder in (one, other))
    agree = "the logs agree; " if common else ""
    for name in there:
        if name not in here:
            return f"{name} is there, and not here"
        if there[name].shape != here[name].shape:
            return f"{name} has the shape {tuple(there[name].shape)} there, {tuple(here[name].shape)} here"
        differ = there[name] != here[name]
        if differ.any():
            return (f"{agree}{name} is the first tensor that differs, in {int(differ.sum()):,} of "
                    f"{differ.numel():,} values")
    return "every tensor is equal; only the headers differ"


def settings_of(folder, record):
    """The train.Settings that the record of the model in `folder` has. Raises UserError if they cannot be."""
    values = {name: value for name, value in record["settings"].items() if name not in PLACES}
    if wrong := mistyped(Training, values):
        raise UserError(f"{folder} was built by another version of train.py ({wrong[0]} is {values[wrong[0]]!r})")
    training = Training(**values)
    check(training)
    return training


def build(training, threads):
    """Runs train.py with the settings and that number of threads, in a process of its own, which nothing reaches that
    this one has set. Signals that ask this one to stop go to it. Raises Stopped if it does not come to its end."""
    process, signals = None, []

    def pass_on(number, frame):
        signals.append(number)
        if process:
            process.send_signal(number)

    before = {number: signal.signal(number, pass_on) for number in STOPPING
              if signal.getsignal(number) != signal.SIG_IGN}
    try:
        with tempfile.TemporaryDirectory() as folder:
            config = Path(folder) / "build.py"
            write_file(config, "".join(f"{name} = {value!r}\n" for name, value in vars(training).items()).encode())
            sys.stdout.flush()
            process = subprocess.Popen([sys.executable, ROOT / "train.py", config],
                                       env=os.environ | {"OMP_NUM_THREADS": str(threads)})
            for number in signals:  # that came before
                process.send_signal(number)
            status = process.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if status not in (0, 1):  # 1: to its end, with tokens wrong
        raise Stopped(status if status > 0 else 128 - status)


def differences(there, here):
    """Yields in words what surroundings the turns `there` had, and none of the turns `here`: lists of dict."""
    for key in sorted(set().union(*there, *here) - {"from_step"}):
        before, now = (dict.fromkeys(turn.get(key) for turn in turns) for turns in (there, here))
        for value in before:
            if value not in now:
                yield f"another {key}: {value} there, {' and '.join(map(str, now))} here"


def rebuild(folder, data="", out="", init_from=""):
    """Builds the model in `folder` again in `out`, or in rebuilt/; returns (what rebuilt.json holds: both hashes, how
    many steps it took, and with what it was built; the folder of the new model). Raises UserError if that cannot be,
    Stopped if the build did not come to its end, of which it has said why."""
    if "RANK" in os.environ:
        raise UserError("verify.py builds in one process: start it without torchrun")
    out = Path(out or Path("rebuilt") / folder.resolve().name)
    if out.resolve() == folder.resolve():
        raise UserError(f"{out} is the model itself: name another --out")
    record = read_record(folder)
    sha256, first = record["model_sha256"], record.get("init_sha256")
    if not record["step"] or first == sha256:
        raise UserError(f"{folder} has the weights that it began from: there is nothing to build, verify the model "
                        f"that they are of")
    training, corpus = settings_of(folder, record), record["corpus"]
    refuse_used(out, record, training)
    training.out, training.data = str(out), find_tree(corpus, data)
    if not training.data:
        raise UserError(f"no tree under data/ is the {corpus['name']} that this model was built from (train.bin of "
                        f"SHA-256 {corpus['train_bin_sha256'][:16]}…); run prepare.py as it was run then")
    if not data:
        print(f"tree: {training.data}, which the model learned", file=sys.stderr)
    if init_from and not first:
        raise UserError(f"{folder} began from no other weights: leave --init_from out")
    if first:
        training.init_from = find_weights(first, init_from)
    if len(record["built_by"]) > 1:
        print(f"{folder} was built in {len(record['built_by'])} turns in different surroundings; the weights may "
              f"differ")
    build(training, record["built_by"][-1]["threads"])
    made = read_record(out)
    if not made["step"]:
        raise UserError(f"{training.init_from} knows the tree already: a build from it has no steps and shows nothing")
    for difference in differences(record["built_by"], made["built_by"]):
        print(f"{difference}; the weights may differ")
    return {"model_sha256": sha256, "rebuilt_sha256": made["model_sha256"], "steps": made["step"],
            "built_by": made["built_by"]}, out


def main(argv=None):
    settings = parse(Settings, __doc__, sys.argv[1:] if argv is None else argv)
    folder = Path(settings.model or newest("model"))
    try:
        found, out = rebuild(folder, settings.data, settings.out, settings.init_from)
    except Stopped as stopped:
        return stopped.args[0]
    one, other = found["model_sha256"], found["rebuilt_sha256"]
    if one == other:
        print(f"equal: {folder} and {out} have the same weights, SHA-256 {one}")
    else:
        print(f"NOT equal: {folder} has SHA-256 {one}, {out} {other}")
        print(where_they_differ(folder, out))
    openness.keep_record(folder, "rebuilt.json", found, settings.data)
    return 0 if one == other else 1


if __name__ == "__main__":
    run_script(main)
