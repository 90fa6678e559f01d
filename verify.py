"""Builds a model again from its data and says whether the weights are the same, bit for bit.

    python verify.py                          # the newest model under out/
    python verify.py --model out/quick

What to build, and with what it was built, stands in the model's build.json; the tree must be prepared here. The same
weights can be expected from the same processor, number of threads and versions; what differs is said. Exit status 0:
equal; 1: not equal, and where the two first differ. rebuilt.json in the model's folder says so too. An interrupted
build goes on when it is started again. A model that began from other weights is built from these; they can be verified
in their turn.
"""
import dataclasses
import hashlib
import os
import sys
from pathlib import Path

import torch

from memory.checkpoint import read_log, read_metas, read_tensors
from memory.corpus import CORPUS, find_tree
from memory.device import find_device, find_dtype, surroundings
from memory.files import digest_of, newest, read_json
from memory.output import UserError, run_script
from memory.records import BUILD, fault
from memory.settings import parse
from train import Settings as Training
from train import check, train
import openness


@dataclasses.dataclass
class Settings:
    model: str = ""  # folder of the model; the newest under out/ if left out
    data: str = ""  # folder of the prepared tree; found under data/ if left out
    init_from: str = ""  # folder of the weights that the model began from, if it did; found under out/ if left out
    out: str = ""  # folder to build it in; rebuilt/<name of the model> if left out


class Stopped(Exception):
    """The build was asked to stop; its argument is the exit status."""


def read_record(folder):
    """The build.json of a finished model whose weights are those that it speaks of. Raises UserError otherwise."""
    try:
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


def is_unfinished(out, record):
    """Whether `out` holds an interrupted build of what the record says, to go on with."""
    try:
        begun = next(read_metas(out))
        elsewhere = {"data": "", "out": "", "init_from": "", "fresh": False}
        mine, its = (dataclasses.asdict(Training(**build["settings"])) | elsewhere for build in (begun, record))
        return (not begun["done"] and all(begun["corpus"][key] == record["corpus"][key] for key in CORPUS)
                and mine == its and begun.get("init_sha256", "") == record.get("init_sha256", ""))
    except (StopIteration, KeyError, TypeError):
        return False


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


def rebuild(folder, data="", out="", init_from=""):
    """Builds the model in `folder` again in `out`, or in rebuilt/; returns (what rebuilt.json holds: both hashes, and
    with what it was built; the folder of the new model). Raises UserError if that cannot be, Stopped if it was asked to
    stop on the way."""
    if "RANK" in os.environ:
        raise UserError("verify.py builds in one process: start it without torchrun")
    out = Path(out or Path("rebuilt") / folder.resolve().name)
    if out.resolve() == folder.resolve():
        raise UserError(f"{out} is the model itself: name another --out")
    record = read_record(folder)
    try:
        training = Training(**record["settings"])
        for field in dataclasses.fields(training):
            value, kinds = getattr(training, field.name), (int, float) if field.type is float else (field.type,)
            if type(value) not in kinds:
                raise TypeError(f"{field.name} is {value!r}")
    except TypeError as error:
        raise UserError(f"{folder} was built by another version of train.py ({error})") from None
    check(training)
    device, there = find_device(training.device), record["built_by"][-1]
    torch.set_num_threads(there["threads"])
    here = surroundings(device, find_dtype(training.dtype, device), training.compile)
    corpus = record["corpus"]
    training.data = find_tree(corpus, data)
    if not training.data:
        raise UserError(f"no tree under data/ is the {corpus['name']} that this model was built from (train.bin of "
                        f"SHA-256 {corpus['train_bin_sha256'][:16]}…); run prepare.py as it was run then")
    if not data:
        print(f"tree: {training.data}, which the model learned", file=sys.stderr)
    if init_from and not record.get("init_sha256"):
        raise UserError(f"{folder} began from no other weights: leave --init_from out")
    if record.get("init_sha256"):
        training.init_from = find_weights(record["init_sha256"], init_from)
    training.fresh = not is_unfinished(out, record)
    if len(record["built_by"]) > 1:
        print(f"{folder} was built in {len(record['built_by'])} turns in different surroundings; the weights may "
              f"differ")
    for key in sorted((here.keys() | there.keys()) - {"from_step", "compile"}):
        if here.get(key) != there.get(key):
            print(f"another {key}: {there.get(key)} there, {here.get(key)} here; the weights may differ")
    if status := train(training, out, device):
        raise Stopped(status)
    return {"model_sha256": record["model_sha256"], "rebuilt_sha256": read_record(out)["model_sha256"],
            "built_by": here}, out


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
