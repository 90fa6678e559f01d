"""Tensors on disk, with a digest of what a file holds, so that damage shows; and what else a run keeps in its folder.

A run's folder holds its two latest states, so that there is another one if a state is damaged, its log, and when it
ends or stops the model with a record of how it was built.
"""
import hashlib
import json
import os
import sys
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load, save

from memory import processes
from memory.files import refuse_irregular, remove, write_file
from memory.output import UserError
from memory.records import LOOK, STATE, fault


def digest(tensors, metadata):
    """SHA-256 (hex) of what a file of tensors holds: {name: tensor} and {str: str}."""
    sha256 = hashlib.sha256(json.dumps(metadata, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        sha256.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        sha256.update(tensor.numpy().tobytes())
    return sha256.hexdigest()


def tensor_bytes(tensors, **metadata):
    """The bytes of {name: tensor} as safetensors with the str values `metadata`: the same each time."""
    data = save(tensors, metadata | {"digest": digest(tensors, metadata)})
    end = 8 + int.from_bytes(data[:8], "little")  # safetensors writes its header's keys in no fixed order
    header = json.dumps(json.loads(data[8:end]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + data[end:]


def write_tensors(path, tensors, **metadata):
    """Writes what tensor_bytes gives. Raises UserError if the disk refuses."""
    write_file(path, tensor_bytes(tensors, **metadata))


def parse_tensors(data, ours=False):
    """({name: tensor}, metadata) of the bytes of a safetensors file. Raises ValueError if they are damaged; what has no
    digest, as other software writes it, is believed unless it must be `ours`."""
    try:
        tensors = load(data)
        metadata = json.loads(data[8:8 + int.from_bytes(data[:8], "little")]).get("__metadata__", {})
    except (SafetensorError, KeyError, RuntimeError) as error:  # the last two: a number format that torch lacks
        raise ValueError(str(error)) from None
    written = metadata.pop("digest", None)
    try:
        if (written or ours) and written != digest(tensors, metadata):
            raise ValueError("its digest does not fit its content")
    except TypeError:
        raise ValueError("its digest is none of ours: it has a number format that nothing here writes") from None
    return tensors, metadata


def read_tensors(path, ours=False):
    """The same of a file. Raises OSError if it cannot be read."""
    refuse_irregular(path)
    return parse_tensors(Path(path).read_bytes(), ours)


# The states of a run

NAMES = ("checkpoint.safetensors", "checkpoint.previous.safetensors")


def save_state(folder, tensors, meta):
    """Writes a state, {name: tensor} and what JSON holds of it; the state saved before becomes the previous one."""
    latest, previous = (folder / name for name in NAMES)
    if latest.exists():
        remove(previous)
        try:
            os.link(os.path.realpath(latest), previous)  # so that there is a latest state at every moment
        except OSError:  # a file system without links
            latest.replace(previous)
    write_tensors(latest, tensors, run=json.dumps(meta))


def load_state(folder):
    """({name: tensor}, meta, path) of the latest whole state in `folder`, or None if there is no state. Raises
    UserError if every state is damaged, or one cannot be read or is none of ours."""
    damaged = []
    for path in (folder / name for name in NAMES):
        try:
            tensors, metadata = read_tensors(path, ours=True)
            meta = json.loads(metadata["run"])
        except FileNotFoundError:
            continue
        except OSError as error:
            raise unreadable(path, error) from None
        except (ValueError, KeyError, RecursionError) as error:
            damaged.append(f"{path} is damaged ({error})")
            continue
        if wrong := fault(meta, STATE):
            raise another_version(path, wrong)
        if damaged and processes.rank() == 0:
            print(f"{damaged[0]}: going on from {path.name}, of step {meta['step']:,}", file=sys.stderr)
        return tensors, meta, path
    if damaged:
        raise UserError(f"{'; '.join(damaged)}; name another --out, or start over with --fresh")
    return None


def unreadable(path, error):
    """The UserError for an OSError of reading a state, which may be whole."""
    return UserError(f"cannot read {path}: {error.strerror or error}")


def another_version(path, why):
    """The UserError for a state that is whole, and does not fit."""
    return UserError(f"{path} was saved by another version of train.py ({why}): name another --out")


def read_metas(folder):
    """Yields of each state in `folder` what load_state would give as meta, read without the tensors and their digest.
    Raises UserError if one cannot be read."""
    for path in (folder / name for name in NAMES):
        try:
            refuse_irregular(path)
            with open(path, "rb") as file:
                header = file.read(min(int.from_bytes(file.read(8), "little"), 10**8))  # safetensors allows no more
            meta = json.loads(json.loads(header)["__metadata__"]["run"])
        except FileNotFoundError:
            continue
        except OSError as error:
            raise unreadable(path, error) from None
        except (ValueError, KeyError, TypeError, RecursionError):
            continue
        if not fault(meta, STATE):
            yield meta


def pack(model, optimizers, sampler):
    """{name: tensor} of all that a run's next step depends on."""
    tensors = {f"model.{name}": tensor for name, tensor in model.tensors().items()}
    tensors |= {f"sampler.{name}": tensor for name, tensor in sampler.state().items()}
    for i, (optimizer, _) in enumerate(optimizers):
        for j, state in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{i}.{j}.{key}": value.detach().cpu().contiguous() for key, value in state.items()}
    return tensors


def unpack(tensors, model, optimizers, sampler):
    """Puts what pack() gave back."""
    def part(prefix):
        return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}

    weights = part("model.")
    if model.config.tie_word_embeddings:
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
    model.load_state_dict(weights)
    for i, (optimizer, _) in enumerate(optimizers):
        state = {}
        for name, tensor in part(f"optimizer.{i}.").items():
            j, key = name.split(".")
            state.setdefault(int(j), {})[key] = tensor
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    sampler.load_state(part("sampler."))


# The log of a run, and the model that it leaves

def trim_log(path, step, looked):
    """Drops what a run lost: the lines of steps after `step`, the full passes of steps after `looked`, and a last line
    that a kill cut off."""
    def kept(line):
        try:
            line = json.loads(line)
            return line["step"] <= (looked if "accuracy" in line else step)
        except (ValueError, KeyError, TypeError, RecursionError):
            return False
    try:
        refuse_irregular(path)
        lines = path.read_bytes().splitlines(keepends=True)
    except FileNotFoundError:
        lines = []
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    write_file(path, b"".join(filter(kept, lines)))


def append_log(path, line):
    """Adds a dict to a log, as a line of JSON."""
    try:
        with open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from None


def read_log(folder):
    """The evaluations in a run's log.jsonl, a list of dict, or [] if it is missing or damaged."""
    try:
        lines = [json.loads(line) for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]
        looks = [{key: line[key] for key in LOOK} for line in lines if "accuracy" in line]
        return [] if fault(looks, [LOOK]) else looks
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return []
