"""The prepared tree: manifest, tokens and tokenizer as prepare.py wrote them; finding, checking and choosing."""
import hashlib
import sys
from pathlib import Path

import numpy as np

from memory import processes
from memory.checkpoint import read_metas
from memory.files import newest, read_json
from memory.output import UserError
from memory.records import MANIFEST, TREE, fault
from memory.tokenizer import Tokenizer, choose_packer, compressed_bits
from memory.windows import opening


def read_manifest(folder, remedy):
    """The manifest.json that prepare.py or train.py wrote into `folder`. Raises UserError, with the remedy, if it
    is missing, damaged or of another shape."""
    path = Path(folder) / "manifest.json"
    try:
        manifest = read_json(path)
        if wrong := fault(manifest, MANIFEST if "held_out" in manifest else TREE):
            raise ValueError(wrong)
    except FileNotFoundError as error:
        if (path.parent / "config.json").exists():
            remedy = "if transformers saved this model, copy it from the folder that train.py wrote; else " + remedy
        raise UserError(f"there is no {path} ({error.strerror}); {remedy}") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is damaged ({' '.join(str(error).split())[:200]}); {remedy}") from None
    return manifest


CORPUS = ("train_bin_sha256", "tokenizer_sha256")  # what of a manifest says which tokens a model was trained on


def find_tree(corpus, data=""):
    """The folder `data`, or if that is "" one under data/, with the prepared tree whose CORPUS entries the dict
    `corpus` has; "" if none under data/ is it. Raises UserError if `data` is not it."""
    for folder in [data] if data else sorted(map(str, Path("data").glob("*/"))):
        try:
            manifest = read_manifest(folder, "run prepare.py again")
        except UserError:
            if data:
                raise
            continue
        if all(manifest[key] == corpus.get(key) for key in CORPUS):
            return folder
    if data:
        raise UserError(f"{data} is not the tree that this model learned; name another --data, or none")
    return ""


def load(folder):
    """(manifest, Tokenizer, tokens) of a tree that prepare.py wrote; tokens is train.bin memory-mapped, uint16.

    Raises UserError if something is missing or not what the manifest says.
    """
    folder, remedy = Path(folder), "run prepare.py again"
    manifest = read_manifest(folder, remedy)
    try:
        tokens = np.memmap(folder / "train.bin", dtype=np.uint16, mode="r")
    except OSError as error:
        raise UserError(f"cannot read {folder}/train.bin ({error.strerror}); {remedy}") from None
    except ValueError as error:  # empty, or half a token at its end
        raise UserError(f"{folder}/train.bin is damaged ({error}); {remedy}") from None
    tokenizer = Tokenizer.load(folder)
    for name, found, expected in [("train.bin", tokens, manifest["train_bin_sha256"]),
                                  ("tokenizer.model", tokenizer.proto, manifest["tokenizer_sha256"])]:
        if hashlib.sha256(found).hexdigest() != expected:
            raise UserError(f"{folder}/{name} is not what its manifest.json says; {remedy}")
    return manifest, tokenizer, tokens


def choose(files, size, seed):
    """The entries of whole files of about `size` bytes in all, drawn by the seed, in their order."""
    chosen, total = [], 0
    for i in np.random.default_rng(seed).permutation(len(files)):
        if total >= 0.9 * size:  # to fill the rest would draw only small files
            break
        if total + files[i]["bytes"] <= size:
            chosen.append(i)
            total += files[i]["bytes"]
    return [files[i] for i in sorted(chosen)]


def without(files, others):
    """The entries `files` less those in `others`."""
    paths = {file["path"] for file in others}
    return [file for file in files if file["path"] not in paths]


def find_data(settings, out):
    """The folder of the tree to learn: the one that is named, the one of the run that `out` holds, or the newest."""
    corpora = [] if settings.data or settings.fresh else [meta["corpus"] for meta in read_metas(out)]
    if not corpora:
        return Path(settings.data or newest("prepared tree"))
    folder = next(filter(None, map(find_tree, corpora)), "")
    if not folder:
        raise UserError(f"{out} holds a run on {corpora[0].get('name')} (train.bin of SHA-256 "
                        f"{str(corpora[0].get('train_bin_sha256'))[:16]}…), which is not under data/: prepare that "
                        f"tree again, or name another --out")
    if processes.rank() == 0:
        print(f"tree: {folder}, which the run in {out} learns", file=sys.stderr)
    return Path(folder)


def fitting(files, tokenizer, settings):
    """The entries of the files whose path leaves room for text in a window: all files, unless the settings ask to leave
    out the others."""
    if not settings.skip_long_paths:
        return files
    context = settings.max_position_embeddings
    kept = [file for file in files if len(opening(tokenizer, file["path"], file["bytes"])) < context]
    for file in without(files, kept) if processes.rank() == 0 else ():
        print(f"left out: {file['path']}, whose path takes a window of {context} tokens", file=sys.stderr)
    return kept


def choose_files(files, settings, known=()):
    """(the files to learn, the files held out) of the entries of a tree. known: entries that the first weights learned,
    whose paths and texts are no control. Raises UserError if none is left to learn."""
    learn = choose(files, settings.train_bytes, settings.seed)
    hashes = {file["sha256"] for file in known}
    unknown = [file for file in without(without(files, learn), known) if file["sha256"] not in hashes]
    held_out = choose(unknown, settings.hold_out_bytes, (settings.seed, 1))
    if not settings.train_bytes:
        learn = without(files, held_out)
    if not learn:
        raise UserError(f"of {len(files)} files none is left to learn with train_bytes {settings.train_bytes} and "
                        f"hold_out_bytes {settings.hold_out_bytes}; raise the one or lower the other")
    return learn, held_out


def texts(entries, tokenizer, tokens):
    """Yields (path, bytes) of the files that the manifest's entries name, decoded from the tokens of train.bin."""
    for entry in entries:
        first = entry["first_token"] + len(opening(tokenizer, entry["path"]))
        yield entry["path"], tokenizer.decode(tokens[first:entry["first_token"] + entry["tokens"] - 1].tolist())


def compressed_sizes(windows):
    """What the manifest says of how much text there is to learn: bits of the files (paths included) under xz, and of
    the pieces that they consist of, which are text that tokenizer.model holds and not the weights."""
    packer, preset = choose_packer(sum(file["bytes"] for file in windows.files))
    tokens, tokenizer = windows.tokens, windows.tokenizer
    texts = (tokenizer.decode(tokens[file["first_token"]:][:file["tokens"]].tolist()) for file in windows.files)
    pieces = b"".join(tokenizer.pieces[i] for i in np.flatnonzero(windows.counts))
    return {"compressed_by": packer, "compressed_bits": compressed_bits(texts, preset),
            "piece_bytes": len(pieces), "piece_bits": compressed_bits([pieces], preset)}
