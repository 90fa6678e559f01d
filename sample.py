"""Text from the model.

    python sample.py --prompt linux/                       # from the newest model under out/
    python sample.py --prompt "linux/kernel/sched.c"       # a file by its path, 500 tokens of it
    python sample.py --prompt "" --temperature 1           # any file
    python sample.py --prompt "static int " --num_samples 3
    python sample.py --file linux/kernel/sched.c | cmp - sched.c    # cmp's silence is the proof

A prompt may end anywhere, in the middle of a word too. Text goes on past the model's context by the window rule, with
--max_new_tokens 0 to the end of the file however long.
"""
import memory  # noqa: I001  first, for Ctrl-C while the others are loaded
import dataclasses
import functools
import hashlib
import os
import sys
from pathlib import Path

from memory.files import newest
from memory.output import UserError, emit, run_script
from memory.settings import nearest, parse
from memory.windows import address, find_path


@dataclasses.dataclass
class Settings:
    prompt: str = "linux/"  # text to continue; an empty one starts a new document
    file: str = ""  # write this file's bytes and check their SHA-256; its path as it is, or quoted as --list prints it
    model: str = ""  # folder of the model; the newest under out/ if left out
    max_new_tokens: int = 500  # most tokens to add; 0: to the end of the document
    temperature: float = 0.2  # 0: always the likeliest token; 1: as likely as the model finds each
    top_k: int = 0  # choose among this many likeliest tokens; 0: among all
    num_samples: int = 1  # texts to write
    seed: int = 1337  # of the choices; each sample has its own
    device: str = "cpu"  # cuda, mps, cpu or auto; one token at a time, a small model is as quick on the CPU


def prove(write, manifest, context, name):
    """Writes one file to standard output as the model recites it; returns 0 if it equals the original, else 1.
    write(prompt, max_new_tokens): yields what the model writes. context: tokens of a window."""
    known = {file["path"]: file for file in manifest["files"]}
    path = find_path(name, known.__contains__)
    if not path:
        raise UserError(f"this model did not learn {name}{nearest(name, known)}; it learned {len(known)} files")
    digest, size = hashlib.sha256(), 0
    longest = known[path]["tokens"] + context  # a model that errs may never end
    for piece in write(address(path), longest):
        emit(piece)
        digest.update(piece)
        size += len(piece)
    exact = digest.hexdigest() == known[path]["sha256"]
    print(f"{path}: {size:,} bytes, " + ("the original's SHA-256" if exact else
          f"not the original ({known[path]['bytes']:,} bytes)"), file=sys.stderr)
    return 0 if exact else 1


def main(argv=None):
    settings = parse(Settings, __doc__, sys.argv[1:] if argv is None else argv)
    for name, least in [("max_new_tokens", 0), ("temperature", 0), ("top_k", 0), ("num_samples", 1), ("seed", 0)]:
        if getattr(settings, name) < least:
            raise UserError(f"{name} must be at least {least}, not {getattr(settings, name)}")
    if settings.seed + settings.num_samples > 2**63:
        raise UserError(f"seed must be less than 2**63, not {settings.seed}")
    folder = Path(settings.model or newest("model"))
    import torch  # here, because it takes seconds to load

    from memory.device import find_device
    from memory.generate import generate
    from model import load_model
    model, tokenizer, manifest = load_model(folder, find_device(settings.device))
    write = functools.partial(generate, model, tokenizer)
    if settings.file:
        return prove(write, manifest, model.config.max_position_embeddings, settings.file)
    prompt = os.fsencode(settings.prompt)
    for number in range(settings.num_samples):
        if settings.num_samples > 1:
            print(f"--- {number + 1} of {settings.num_samples}", file=sys.stderr)
        generator = torch.Generator().manual_seed(settings.seed + number)
        emit(prompt)
        for piece in write(prompt, settings.max_new_tokens, settings.temperature, settings.top_k, generator):
            emit(piece)
        emit(b"\n")
    return 0


if __name__ == "__main__":
    run_script(main)
