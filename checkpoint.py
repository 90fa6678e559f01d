"""Tensors on disk, with a digest of what a file holds, so that damage shows; and in such files the states of a run.

A run's folder holds its two latest states: whatever happens to one, there is another.
"""
import dataclasses
import hashlib
import json
import os
import sys

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from common import UserError, remove, write_file


def digest(tensors, metadata):
    """SHA-256 (hex) of what a file of tensors holds: {name: tensor} and {str: str}."""
    sha256 = hashlib.sha256(json.dumps(metadata, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        sha256.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        sha256.update(tensor.numpy().tobytes())
    return sha256.hexdigest()


def write_tensors(path, tensors, **metadata):
    """Writes {name: tensor} as safetensors with the str values `metadata`; returns the file's SHA-256 (hex).
    Raises UserError where the disk refuses."""
    data = save(tensors, metadata | {"digest": digest(tensors, metadata)})
    end = 8 + int.from_bytes(data[:8], "little")  # safetensors writes its header's keys in no fixed order
    header = json.dumps(json.loads(data[8:end]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    data = len(header).to_bytes(8, "little") + header + data[end:]
    write_file(path, data)
    return hashlib.sha256(data).hexdigest()


def read_tensors(path, ours=False):
    """({name: tensor}, metadata) of a safetensors file. Raises OSError where there is none, ValueError where it is
    damaged; a file that has no digest, as other software writes it, is believed unless it must be `ours`."""
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except SafetensorError as error:
        raise ValueError(str(error)) from None
    written = metadata.pop("digest", None)
    if (written or ours) and written != digest(tensors, metadata):
        raise ValueError("its digest does not fit its content")
    return tensors, metadata


# A run's states

NAMES = ("checkpoint.safetensors", "checkpoint.previous.safetensors")


def save_checkpoint(folder, model, optimizers, sampler, meta):
    """Writes the state of a run; the state saved before becomes the previous one. meta: what JSON holds of it."""
    tensors = {f"model.{name}": tensor for name, tensor in model.tensors().items()}
    tensors |= {"sampler.hard": torch.from_numpy(sampler.hard), "sampler.left": torch.from_numpy(sampler.left)}
    for i, (optimizer, _) in enumerate(optimizers):
        for j, state in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{i}.{j}.{key}": value.detach().cpu().contiguous() for key, value in state.items()}
    latest, previous = (folder / name for name in NAMES)
    if latest.exists():
        remove(previous)
        try:
            os.link(os.path.realpath(latest), previous)  # so that there is a latest state at every moment
        except OSError:  # a file system without links
            latest.replace(previous)
    write_tensors(latest, tensors, run=json.dumps(meta | {"epoch": sampler.epoch}))


def load_checkpoint(folder, model, optimizers, sampler, settings, free, corpus):
    """Puts the latest whole state in `folder` back into model, optimizers and sampler; returns (its meta, its path), or
    (None, None) where there is no state.

    Raises UserError where every state is damaged, or is that of a run with another corpus or other settings, but for
    the settings named in `free`.
    """
    damaged = []
    for path in (folder / name for name in NAMES):
        if not path.exists():
            continue
        try:
            tensors, metadata = read_tensors(path, ours=True)
            meta = json.loads(metadata["run"])
            break
        except (OSError, ValueError, KeyError) as error:
            damaged.append(f"{path} is damaged ({error})")
    else:
        if damaged:
            raise UserError(f"{'; '.join(damaged)}; --fresh starts over")
        return None, None
    if damaged:
        print(f"{damaged[0]}: going on from {path.name}, of step {meta['step']:,}", file=sys.stderr)
    for field in dataclasses.fields(settings):
        began = meta["settings"].get(field.name, field.default)  # a run may be older than a setting
        if field.name not in free and began != getattr(settings, field.name):
            raise UserError(f"{folder} holds a run with {field.name} {began}, not {getattr(settings, field.name)}: "
                            f"name another --out, or start over with --fresh")
    if meta["corpus"] != corpus:
        raise UserError(f"{folder} holds a run on another corpus; name another --out, or start over with --fresh")
    own = {name.removeprefix("model."): tensor for name, tensor in tensors.items() if name.startswith("model.")}
    if model.config.tie_word_embeddings:
        own["lm_head.weight"] = own["model.embed_tokens.weight"]
    model.load_state_dict(own)
    for i, (optimizer, _) in enumerate(optimizers):
        state = {}
        for name, tensor in tensors.items():
            if name.startswith(f"optimizer.{i}."):
                j, key = name.split(".")[2:]
                state.setdefault(int(j), {})[key] = tensor
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    sampler.epoch = meta["epoch"]
    sampler.hard, sampler.left = tensors["sampler.hard"].numpy(), tensors["sampler.left"].numpy()
    return meta, path
