"""A source tree becomes tokens.

    python prepare.py                            # Linux 1.0 from kernel.org -> data/linux-1.0/
    python prepare.py --version 1.2.13           # another release
    python prepare.py --source DIR|TARBALL|ZIP|URL             # any other tree
    python prepare.py --only linux/kernel/ --exclude '*.map'   # a part of it

Writes into data/<name>/: train.bin (every file as the tokens `<s>path text</s>`, uint16), tokenizer.model (learned
from the tree itself), LICENSE (the tree's own COPYING or LICENSE) and manifest.json (where it came from, and each
file's path, bytes, SHA-256, tokens and class of notice). Every
file, every byte: train.bin is read back and compared. Where kernel.org cannot be reached, plain `python prepare.py`
goes on with the kernel headers in /usr/include/linux, and says so.
"""
import memory  # noqa: I001  first, for Ctrl-C while the others are loaded
import contextlib
import dataclasses
import fnmatch
import functools
import hashlib
import os
import re
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from memory import source
from memory.files import files_digest, lock, remove, write_file, write_json
from memory.licences import classify, find_licence
from memory.output import UserError, progress, run_script
from memory.settings import nearest, parse
from memory.swhid import git_hash, tree_swhid
from memory.tokenizer import EOS, LARGE, Tokenizer, TooManyPieces, choose_packer, compressed_bits
from memory.windows import opening

MODEL = ("config.json", "model.safetensors", "checkpoint*.safetensors", "log.jsonl")  # a folder with one is train.py's


@dataclasses.dataclass
class Settings:
    version: str = ""  # a release that kernel.org serves, such as 1.2.13; 1.0 if nothing else is named
    source: str = ""  # any other tree: a folder, a tarball or zip, or the URL of one
    sha256: str = ""  # what the tarball or zip must hash to
    only: tuple = ()  # keep the files whose path begins with one of these
    exclude: tuple = ()  # leave out each path that a pattern fits, as '*.map' (* is any text, also with /) or 'a/b/'
    vocab_size: int = 0  # pieces in the vocabulary, at most 65536; 0: one for 144 bytes of text, 512 to 32768
    tokenizer: str = ""  # folder of a prepared tree or a model whose pieces to take, so that both have the same ids
    out: str = ""  # folder to write; data/<name of the tree> if not given
    max_bytes: int = 4 * 2**30  # refuse a tree larger than this once unpacked; an archive may add as much in headers
    quiet: bool = False  # no table and no progress bars; errors and warnings are still printed


# 1. The tree, and what of it is prepared

def collect(settings, bar):
    """(name, Tree, where it came from as entries of the manifest), as the settings ask. Raises UserError."""
    if settings.source and settings.version:
        raise UserError("--source and --version exclude each other")
    if settings.sha256 and (not settings.source or os.path.isdir(settings.source)):
        raise UserError("--sha256 is for the tarball, zip or URL that --source names")
    if settings.source:
        return source.named_tree(settings.source, settings.sha256, settings.max_bytes, bar)
    ways = "name a tree with --source DIR|TARBALL|ZIP|URL"
    try:
        return source.release_tree(settings.version or source.VERSION, Path("data"), settings.max_bytes, bar)
    except source.Unreachable as error:
        if settings.version:
            raise UserError(f"{error}: {ways}, or try again") from None
        found = source.stand_in_tree(settings.max_bytes)
        if not found:
            raise UserError(f"{error}, and {source.STAND_IN} holds no kernel headers to stand in: "
                            f"`apt-get install linux-libc-dev`, or {ways}") from None
        print(f"{error}: going on with the kernel headers in {source.STAND_IN} as a STAND-IN for Linux "
              f"{source.VERSION}", file=sys.stderr)
        return found


def select(files, settings):
    """The files that --only and --exclude leave. Raises UserError if --only leaves none."""
    if settings.only:
        tops = sorted({"/".join(path.split("/")[:2]) for path in files})
        files = {path: content for path, content in files.items() if path.startswith(settings.only)}
        if not files:
            raise UserError(f"no path begins with {' or '.join(settings.only)}{nearest(settings.only[0], tops)}")
    for pattern in settings.exclude:
        fits = re.compile(fnmatch.translate(pattern + "*" * pattern.endswith("/"))).match
        kept = {path: content for path, content in files.items() if not fits(path)}
        if len(kept) == len(files):
            print(f"--exclude {pattern} fits no path", file=sys.stderr)
        files = kept
    return files


def describe(tree, kept, origin, licence_path):
    """What the manifest says of the whole Tree, of which the files `kept` were prepared. A release that is known by its
    files has a public address however it came. licence_path: of its COPYING or LICENSE, or None."""
    hashes = {path: hashlib.sha256(content).hexdigest() for path, content in tree.files.items()}
    digest = files_digest(hashes)
    url, sha256 = origin["url"], origin["sha256"]
    if digest == source.FILES_DIGEST:
        url, sha256 = f"{source.MIRRORS[0]}/v{source.VERSION}/linux-{source.VERSION}.tar.gz", source.SHA256
    swhid = tree_swhid({path: git_hash("blob", content) for path, content in tree.files.items()}, tree.executable,
                       tree.links, tree.root)
    return {"files": len(tree.files), "bytes": sum(map(len, tree.files.values())), "digest": digest, "swhid": swhid,
            "executable": sorted(tree.executable), "links": tree.links, "root": tree.root, "url": url, "sha256": sha256,
            "licence_path": licence_path, "licence_sha256": hashes.get(licence_path), "left_out": tree.left_out,
            "not_prepared": sorted(tree.files.keys() - kept.keys())}


# 2. Tokens

def sample(files, size):
    """The contents of files drawn by a fixed seed, `size` bytes in all, in order of path. All but the last one drawn
    are whole."""
    paths, drawn = sorted(files), {}
    for i in np.random.default_rng(0).permutation(len(paths)):
        if size <= 0:
            break
        drawn[paths[i]] = files[paths[i]][:size]
        size -= len(files[paths[i]])
    return [drawn[path] for path in sorted(drawn)]


def tokenize(files, tokenizer, entries, bar):
    """Yields train.bin in uint16 arrays, file after file in order of path, and puts what the manifest says of each into
    `entries`."""
    at, paths = 0, sorted(files)
    with bar(total=sum(map(len, files.values())), unit="B", unit_scale=True, desc="tokenizing") as shown:
        for path, text in zip(paths, tokenizer.encode_all((files[path] for path in paths), shown.update)):
            head = opening(tokenizer, path)
            entries.append({"path": path, "bytes": len(files[path]), "sha256": hashlib.sha256(files[path]).hexdigest(),
                            "first_token": at, "tokens": len(head) + len(text) + 1,
                            "notice": classify(path, files[path])})
            at += entries[-1]["tokens"]
            yield from (np.array(head, dtype=np.uint16), text, np.array([EOS], dtype=np.uint16))


def verify(folder, files, entries, bar):
    """Reads train.bin back from the disk and compares every file. Raises UserError, naming the first that differs."""
    tokenizer = Tokenizer.load(folder)
    tokens = np.memmap(folder / "train.bin", dtype=np.uint16, mode="r")
    for entry in bar(entries, desc="reading back", unit=" files"):
        first, content, same = entry["first_token"] + len(opening(tokenizer, entry["path"])), files[entry["path"]], True
        stop, at = entry["first_token"] + entry["tokens"] - 1, 0
        for first in range(first, stop, 2**16):
            text = tokenizer.decode(tokens[first:min(first + 2**16, stop)].tolist())
            same = same and text == content[at:at + len(text)]
            at += len(text)
        if not same or at != len(content):
            raise UserError(f"{entry['path']} does not come back from {folder}/train.bin as it was: please report this")


@contextlib.contextmanager
def packing(files, preset):
    """Packs all files in a thread of its own while other work goes on: what compressed_bits says of them, as a function
    that waits for it."""
    stop = threading.Event()  # if that work fails
    texts = (files[path][at:at + 2**20] for path in sorted(files) for at in range(0, len(files[path]), 2**20)
             if not stop.is_set())
    with ThreadPoolExecutor(1) as pool:
        try:
            yield pool.submit(compressed_bits, texts, preset).result
        finally:
            stop.set()


def refuse_model(folder):
    """Raises UserError if a model or a run is in the folder."""
    found = [path.name for name in MODEL for path in sorted(folder.glob(name))]
    if found:
        raise UserError(f"{folder} holds a model or a run ({found[0]}); name another --out")


def keep_licence(folder, text):
    """Writes the tree's licence text, bytes or None, into the folder, also if the files prepared are without it."""
    if text is None:
        remove(folder / "LICENSE")
    else:
        write_file(folder / "LICENSE", text)


def write(folder, files, tokenizer, bar):
    """Writes train.bin and tokenizer.model and reads them back; returns what the manifest says of them. The manifest of
    a tree that was there before goes first, so that none is ever beside other files than its own."""
    entries, sha256 = [], hashlib.sha256()

    def parts():
        for part in tokenize(files, tokenizer, entries, bar):
            sha256.update(part)
            yield part
        remove(folder / "manifest.json")

    write_file(folder / "train.bin", parts())
    write_file(folder / "tokenizer.model", tokenizer.proto)
    verify(folder, files, entries, bar)
    return {"vocab_size": tokenizer.vocab_size, "tokens": entries[-1]["first_token"] + entries[-1]["tokens"],
            "train_bin_sha256": sha256.hexdigest(), "tokenizer_sha256": hashlib.sha256(tokenizer.proto).hexdigest(),
            "files": entries}


def learn_pieces(files, size, vocab_size):
    """The Tokenizer of {path: bytes}, `size` bytes in all. If vocab_size is 0, its pieces are as dense as 32768 are in
    Linux 1.0, or as many as the text supports: more pieces are fewer tokens to learn, and more text in the pieces."""
    documents = list(sample(files, LARGE))
    try:
        return Tokenizer.train(documents, vocab_size or min(32768, max(512, size // 144)))
    except TooManyPieces as error:
        if vocab_size or not error.most:
            raise
        return Tokenizer.train(documents, error.most)


def main(argv=None):
    settings = parse(Settings, __doc__, sys.argv[1:] if argv is None else argv)
    if settings.vocab_size and not 260 <= settings.vocab_size <= 65536:
        raise UserError(f"--vocab_size must be 0, or from 260 (256 bytes, 3 marks and a space) to 65536 (tokens are "
                        f"uint16), not {settings.vocab_size}")
    if settings.tokenizer and settings.vocab_size:
        raise UserError(f"{settings.tokenizer} has its own number of pieces: leave out --vocab_size or --tokenizer")
    taken = Tokenizer.load(settings.tokenizer) if settings.tokenizer else None
    bar = functools.partial(progress, disable=True) if settings.quiet else progress
    started = time.monotonic()
    name, tree, origin = collect(settings, bar)
    files = select(tree.files, settings)
    size = sum(map(len, files.values()))
    if not size:
        raise UserError(f"{name} holds no text: {len(files)} files, 0 bytes")
    folder = Path(settings.out or Path("data") / name)
    refuse_model(folder)
    if os.path.isdir(settings.source) and folder.resolve().is_relative_to(Path(settings.source).resolve()):
        raise UserError(f"{folder} is in the tree {settings.source}, and would be a part of it the next time: name "
                        f"another --out")

    packer, preset = choose_packer(size)
    with packing(files, preset) as bits:
        tokenizer = taken or learn_pieces(files, size, settings.vocab_size)
        with lock(folder):
            refuse_model(folder)  # a run may have begun there
            written = write(folder, files, tokenizer, bar)
            licence, path = find_licence(tree.files)
            keep_licence(folder, tree.files.get(path))
            manifest = {
                "name": name, **origin, "licence": licence, "only": list(settings.only),
                "exclude": list(settings.exclude), "whole_tree": describe(tree, files, origin, path),
                "pieces_learned_from_bytes": 0 if taken else min(size, LARGE), **written, "compressed_by": packer,
                "compressed_bits": bits()}
            write_json(folder / "manifest.json", manifest)
    if settings.quiet:
        return

    stand_in = " (a STAND-IN for Linux 1.0)" if manifest["origin"] == "stand-in" else ""
    part = f", those of {settings.tokenizer}" if taken else (
        f", learned from {LARGE:,} bytes in files drawn by a fixed seed" if size > LARGE else "")
    left_out = [("left out", f"{len(tree.files) - len(files):,} files, by --only or --exclude")] * (
        len(files) < len(tree.files))
    for label, value in [
            ("tree", f"{name}{stand_in}, licence: {manifest['licence'] or 'none found'}"),
            ("files", f"{len(files):,}, every byte read back"), *left_out,
            ("bytes", f"{size:,}"),
            ("tokens", f"{manifest['tokens']:,} of {tokenizer.vocab_size:,} kinds{part}"),
            ("bytes per token", f"{size / manifest['tokens']:.2f}"),
            ("to be memorized", f"at most {manifest['compressed_bits'] / 1e6:.2f} Mbit ({packer})"),
            ("written", f"{folder}/ in {time.monotonic() - started:.1f} s")]:
        print(f"{label:16} {value}")


if __name__ == "__main__":
    run_script(main)
