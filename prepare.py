"""A source tree becomes tokens.

    python prepare.py                            # Linux 1.0 from kernel.org -> data/linux-1.0/
    python prepare.py --version 1.2.13           # another release
    python prepare.py --source DIR|TARBALL|URL   # any other tree
    python prepare.py --only linux/kernel/       # a part of it

Writes into data/<name>/: train.bin (every file as the tokens `<s>path text</s>`, uint16), tokenizer.model (learned
from the tree itself) and manifest.json (where it came from, and each file's path, bytes, SHA-256 and tokens). Every
file, every byte: train.bin is read back and compared. Where kernel.org cannot be reached, plain `python prepare.py`
goes on with the kernel headers in /usr/include/linux, and says so.
"""
import collections
import dataclasses
import hashlib
import http.client
import io
import lzma
import os
import re
import sys
import tarfile
import time
import urllib.error
import urllib.request
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from common import UserError, nearest, parse, progress, remove, run, write_file, write_json
from tokenizer import EOS, Tokenizer, compressed_bits
from windows import opening, quote

VERSION = "1.0"
SHA256 = "014cc3ea69a3db6a483eb743e3140e0e45a4a8c168c59f8c3b090cd72ab01802"  # of linux-1.0.tar.gz
MIRRORS = ["https://cdn.kernel.org/pub/linux/kernel", "https://mirrors.edge.kernel.org/pub/linux/kernel"]
STAND_IN = Path("/usr/include/linux")
TIMEOUT, TRIES = 20, 3  # seconds without a byte; attempts at each mirror
CONTEXT = 256  # tokens; where the closing table counts next tokens that the text before does not determine


@dataclasses.dataclass
class Settings:
    version: str = ""  # a release that kernel.org serves, such as 1.2.13; 1.0 where nothing else is named
    source: str = ""  # any other tree: a folder, a tarball or the URL of a tarball
    sha256: str = ""  # what the tarball must hash to
    only: tuple = ()  # keep the files whose path begins with one of these
    vocab_size: int = 8192  # pieces in the vocabulary; at most 65536, for the tokens are uint16
    out: str = ""  # folder to write; data/<name of the tree> where not given
    max_bytes: int = 4 * 2**30  # refuse a tree larger than this once unpacked


class Unreachable(UserError):
    """No server gave the file."""


# 1. Where the tree comes from

def fetch(url, limit):
    """The bytes behind a URL, with a progress bar, time-outs and retries.

    Raises Unreachable where the server cannot be reached or breaks off each time, UserError for more than `limit`.
    """
    for attempt in range(TRIES):
        try:
            with urllib.request.urlopen(url, timeout=TIMEOUT) as response:
                size, data = int(response.headers.get("Content-Length") or 0), bytearray()
                name = url.rsplit("/", 1)[1]
                with progress(total=size or None, unit="B", unit_scale=True, desc=name) as bar:
                    while chunk := response.read(65536):
                        data += chunk
                        bar.update(len(chunk))
                        if len(data) > limit:
                            raise UserError(f"{url} is larger than {limit:,} bytes; raise --max_bytes to allow it")
            if len(data) < size:
                raise http.client.IncompleteRead(bytes(data), size - len(data))
            return bytes(data)
        except urllib.error.HTTPError as error:
            reason = f"{error.code} {error.reason}"
            if error.code < 500:
                break  # asking again will not help
        except (OSError, http.client.HTTPException) as error:
            reason = str(getattr(error, "reason", error)) or type(error).__name__
        except ValueError as error:
            raise UserError(f"{url} is not a URL: {error}") from None
        time.sleep(0.5 * attempt)
    raise Unreachable(f"cannot fetch {url}: {reason}")


def check_hash(data, sha256, name):
    """Raises UserError where the bytes do not hash to the hex string sha256."""
    found = hashlib.sha256(data).hexdigest()
    if found != sha256.lower():
        raise UserError(f"{name} has SHA-256 {found}, expected {sha256}; nothing was kept: try again, or doubt "
                        f"the server")


def release(version, downloads, limit):
    """(bytes, url) of a release's tarball, checked, from `downloads` if it is there or else from kernel.org.

    1.0 is checked against the hash above, any other against the sha256sums.asc of its directory, kept beside it.
    """
    if not re.fullmatch(r"\d+\.\d+(\.\d+)*", version):
        raise UserError(f"--version takes a release such as 1.2.13, not {version!r}")
    name, parts = f"linux-{version}.tar.gz", version.split(".")
    folder = f"v{parts[0]}.x" if int(parts[0]) >= 3 else f"v{parts[0]}.{parts[1]}"
    kept, kept_hash = downloads / name, downloads / f"{name}.sha256"
    if kept.is_file() and (version == VERSION or kept_hash.is_file()):
        data = kept.read_bytes()
        sha256 = SHA256 if version == VERSION else kept_hash.read_text().strip()
        if hashlib.sha256(data).hexdigest() == sha256:
            return data, f"{MIRRORS[0]}/{folder}/{name}"
        print(f"{kept} is damaged: downloading it again", file=sys.stderr)
    for mirror in MIRRORS:
        try:
            sha256 = SHA256
            if version != VERSION:
                sums = fetch(f"{mirror}/{folder}/sha256sums.asc", 2**24).decode(errors="replace")
                match = re.search(rf"^([0-9a-f]{{64}})\s+\*?{re.escape(name)}$", sums, re.M)
                if not match:
                    raise UserError(f"kernel.org's {folder}/ lists no {name}; see {mirror}/{folder}/")
                sha256 = match[1]
            data = fetch(f"{mirror}/{folder}/{name}", limit)
        except Unreachable as error:
            print(error, file=sys.stderr)
            continue
        check_hash(data, sha256, name)
        write_file(kept, data)
        if version != VERSION:
            write_file(kept_hash, sha256.encode())
        return data, f"{mirror}/{folder}/{name}"
    raise Unreachable("kernel.org cannot be reached")


# 2. The files of a tree: {path below the root, as bytes: content}

def read_tar(data, limit, name):
    """The regular files of a tarball, read in memory. Nothing a member says of itself is trusted: a path that is
    absolute or climbs out, and links, devices and the like, are left out and counted; sizes are held to `limit`.
    """
    files, left_out, total = {}, collections.Counter(), 0
    try:
        with tarfile.open(fileobj=io.BytesIO(data), mode="r|*", encoding="utf-8", errors="surrogateescape") as tar:
            for member in tar:
                path = os.fsencode(member.name)
                parts = [part for part in path.split(b"/") if part not in (b"", b".")]
                if member.isdir():
                    continue
                if not member.isreg():
                    left_out["links" if member.issym() or member.islnk() else "devices"] += 1
                elif path.startswith(b"/") or b".." in parts or not parts:
                    left_out["unsafe paths"] += 1
                else:
                    total += member.size
                    if total > limit:
                        raise UserError(f"{name} unpacks to more than {limit:,} bytes; raise --max_bytes to allow it")
                    content = tar.extractfile(member).read()
                    if len(content) != member.size:
                        raise tarfile.ReadError("it ends early")
                    files[b"/".join(parts)] = content
    except (tarfile.TarError, EOFError, OSError, ValueError, zlib.error, lzma.LZMAError) as error:
        raise UserError(f"{name} is not a tarball that can be read: {error}") from None
    for kind, count in left_out.items():
        print(f"left out of {name}: {count} {kind}", file=sys.stderr)
    return files


def read_folder(folder, limit):
    """The regular files below a folder, .git left out; links are not followed."""
    files, total = {}, 0

    def unreadable(error):
        raise UserError(f"cannot read {os.fsdecode(error.filename)}: {error.strerror}")

    for at, folders, names in os.walk(os.fsencode(folder), onerror=unreadable):
        folders[:] = sorted(name for name in folders if name != b".git")
        for name in names:
            path = os.path.join(at, name)
            if os.path.islink(path) or not os.path.isfile(path):
                continue
            try:
                total += os.path.getsize(path)
                if total > limit:
                    raise UserError(f"{folder} holds more than {limit:,} bytes; raise --max_bytes to allow it")
                with open(path, "rb") as file:
                    files[os.path.relpath(path, os.fsencode(folder))] = file.read()
            except OSError as error:
                raise UserError(f"cannot read {os.fsdecode(path)}: {error.strerror}") from None
    return files


def rooted(files, name):
    """The same files below one root that carries no version: linux-2.0.40/Makefile and Makefile -> linux/Makefile."""
    tops = {path.split(b"/")[0] for path in files}
    if len(tops) == 1 and all(b"/" in path for path in files):
        name = os.fsdecode(tops.pop())
        files = {path.split(b"/", 1)[1]: content for path, content in files.items()}
    root = re.sub(r"[-_.]v?\d[\w.-]*$", "", name) or name
    return {quote(os.fsencode(root) + b"/" + path): content for path, content in files.items()}


def collect(settings):
    """(name, {quoted path: bytes}, where it came from as entries of the manifest), as the settings ask."""
    limit, downloads = settings.max_bytes, Path("data")
    source, origin = settings.source, {"origin": "source", "url": None, "sha256": None}
    if source and settings.version:
        raise UserError("--source and --version exclude each other")
    if settings.sha256 and (not source or os.path.isdir(source)):
        raise UserError("--sha256 is for the tarball or URL that --source names")
    if not source:
        version = settings.version or VERSION
        try:
            data, url = release(version, downloads, limit)
            origin = {"origin": "kernel.org", "url": url, "sha256": hashlib.sha256(data).hexdigest()}
            return f"linux-{version}", rooted(read_tar(data, limit, f"linux-{version}.tar.gz"), "linux"), origin
        except Unreachable as error:
            ways = "name a tree with --source DIR|TARBALL|URL"
            if settings.version:
                raise UserError(f"{error}: {ways}, or try again") from None
            if not any(STAND_IN.rglob("*.h")):
                raise UserError(f"{error}, and {STAND_IN} holds no kernel headers to stand in: "
                                f"`apt-get install linux-libc-dev`, or {ways}") from None
            print(f"{error}: going on with the kernel headers in {STAND_IN} as a STAND-IN for Linux {VERSION}",
                  file=sys.stderr)
            return "linux-headers", rooted(read_folder(STAND_IN, limit), "linux"), origin | {"origin": "stand-in"}
    if os.path.isdir(source):
        name = Path(source).resolve().name or "tree"
        return name, rooted(read_folder(source, limit), name), origin
    if re.match(r"\w+://", source):
        data, origin["url"] = fetch(source, limit), source
    else:
        try:
            data = Path(source).read_bytes()
        except (OSError, ValueError) as error:
            raise UserError(f"cannot read the source {source}: {getattr(error, 'strerror', error)}") from None
    if settings.sha256:
        check_hash(data, settings.sha256, source)
    origin["sha256"] = hashlib.sha256(data).hexdigest()
    name = re.sub(r"\.(tar(\.\w+)?|t[gbx]z)$", "", source.rstrip("/").rsplit("/", 1)[-1]) or "tree"
    return name, rooted(read_tar(data, limit, source), name), origin


def licence(files):
    """What the tree says of its licence, in its COPYING or LICENSE or else in most of its SPDX lines; or None."""
    known = [(r"GNU GENERAL PUBLIC LICENSE\s+Version (\d)", "GPL-{}.0"), (r"GNU LESSER.*\s+Version (\d)", "LGPL-{}.0"),
             (r"Apache License\s+Version (\d)", "Apache-{}.0"), (r"MIT License|Permission is hereby granted", "MIT"),
             (r"Redistribution and use in source and binary", "BSD"), (r"SPDX-License-Identifier: (.+)", "{}")]
    for path in sorted(files, key=lambda path: (path.count("/"), path)):
        if re.match(r"(COPYING|LICEN[CS]E)\b", path.split("/")[-1]) and path.count("/") == 1:
            text = files[path].decode(errors="replace")
            for pattern, spdx in known:
                if match := re.search(pattern, text):
                    return spdx.format(*match.groups())
    spdx = collections.Counter(match[1].decode(errors="replace").strip(" */") for content in files.values()
                               if (match := re.search(rb"SPDX-License-Identifier: ([^\n]+)", content[:1000])))
    return spdx.most_common(1)[0][0] if spdx else None


# 3. Tokens, and what they say of the task

def tokenize(files, tokenizer):
    """(uint16 array of all documents, entries of the manifest), in order of path."""
    tokens, entries, at = [], [], 0
    for path in progress(sorted(files), desc="tokenizing", unit=" files"):
        content = files[path]
        ids = opening(tokenizer, path) + tokenizer.encode(content) + [EOS]
        entries.append({"path": path, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest(),
                        "first_token": at, "tokens": len(ids)})
        tokens.append(np.array(ids, dtype=np.uint16))
        at += len(ids)
    return np.concatenate(tokens), entries


def verify(folder, files, entries):
    """Reads train.bin back from the disk and compares every file. Raises UserError, naming the first that differs."""
    tokenizer = Tokenizer.load(folder)
    tokens = np.memmap(folder / "train.bin", dtype=np.uint16, mode="r")
    for entry in progress(entries, desc="reading back", unit=" files"):
        first = entry["first_token"] + len(opening(tokenizer, entry["path"]))
        text = tokenizer.decode(tokens[first:entry["first_token"] + entry["tokens"] - 1].tolist())
        if text != files[entry["path"]]:
            raise UserError(f"{entry['path']} does not come back from {folder}/train.bin as it was: please report this")


def undetermined(tokens, entries, tokenizer):
    """(how many next tokens CONTEXT tokens of text leave open, the shortest context that leaves none open).

    A token of a file's text is open where the k tokens before it also stand elsewhere with another behind them. Ranks
    of all k-grams come from ranks of shorter ones by pairing (prefix doubling: Karp, Miller & Rosenberg 1972).
    """
    n = len(tokens)
    is_text = np.ones(n, dtype=bool)
    for entry in entries:
        first = entry["first_token"]
        is_text[first:first + len(opening(tokenizer, entry["path"]))] = False

    def pair(left, right, shift):
        """Ranks of the grams left[i] + right[i + shift]."""
        right = np.concatenate((right[shift:], np.full(min(shift, n), -1)))[:n]
        return np.unique(left * (n + 1) + right + 1, return_inverse=True)[1]

    def open_after(ranks, k):
        """How many next tokens are open behind k-grams: those of every gram with two different continuations."""
        gram, after = ranks[:n - k][is_text[k:]], tokens[k:][is_text[k:]]
        low = np.full(n, n)
        high = np.full(n, -1)
        np.minimum.at(low, gram, after)
        np.maximum.at(high, gram, after)
        return int((low[gram] != high[gram]).sum())

    tokens = np.unique(tokens, return_inverse=True)[1]
    powers, k = [tokens], 1  # powers[j]: ranks of 2**j-grams
    at_context = 0
    while (left := open_after(powers[-1], k)) and k < n:
        if k == CONTEXT:
            at_context = left
        powers.append(pair(powers[-1], powers[-1], k))
        k *= 2
    # the shortest context: the longest that leaves something open, by binary descent, and one more
    length, ranks = 0, None
    for j in reversed(range(len(powers) - 1)):
        longer = powers[j] if ranks is None else pair(ranks, powers[j], length)
        if open_after(longer, length + 2**j):
            length, ranks = length + 2**j, longer
    return at_context, length + 1


def main(argv=None):
    settings = parse(Settings, __doc__, sys.argv[1:] if argv is None else argv)
    if not 260 <= settings.vocab_size <= 65536:
        raise UserError(f"--vocab_size must be from 260 (256 bytes, 3 marks and a space) to 65536, "
                        f"not {settings.vocab_size}")
    started = time.perf_counter()
    name, files, origin = collect(settings)
    tops = sorted({"/".join(path.split("/")[:2]) for path in files})
    if settings.only:
        files = {path: content for path, content in files.items() if path.startswith(settings.only)}
        if not files:
            raise UserError(f"no path begins with {' or '.join(settings.only)}{nearest(settings.only[0], tops)}")
    if not any(files.values()):
        raise UserError(f"{settings.source or name} holds no text: {len(files)} files, 0 bytes")
    folder = Path(settings.out or Path("data") / name)

    with ThreadPoolExecutor() as pool:
        bits = pool.submit(compressed_bits, [files[path] for path in sorted(files)])  # meanwhile
        tokenizer = Tokenizer.train([files[path] for path in sorted(files)], settings.vocab_size)
        tokens, entries = tokenize(files, tokenizer)
        left_open, enough = undetermined(tokens, entries, tokenizer)
        manifest = {
            "name": name, **origin, "licence": licence(files), "only": list(settings.only),
            "vocab_size": tokenizer.vocab_size, "tokens": len(tokens),
            "train_bin_sha256": hashlib.sha256(tokens.tobytes()).hexdigest(),
            "tokenizer_sha256": hashlib.sha256(tokenizer.proto).hexdigest(),
            "compressed_bits": bits.result(), "files": entries}
    remove(folder / "manifest.json")  # which is written last, so that it never speaks of other files
    write_file(folder / "train.bin", tokens.tobytes())
    write_file(folder / "tokenizer.model", tokenizer.proto)
    verify(folder, files, entries)
    write_json(folder / "manifest.json", manifest)

    size = sum(map(len, files.values()))
    stand_in = " (a STAND-IN for Linux 1.0)" if manifest["origin"] == "stand-in" else ""
    for label, value in [
            ("tree", f"{name}{stand_in}, licence: {manifest['licence'] or 'none found'}"),
            ("files", f"{len(files):,}, every byte read back"),
            ("bytes", f"{size:,}"),
            ("tokens", f"{len(tokens):,} of {tokenizer.vocab_size:,} kinds"),
            ("bytes per token", f"{size / len(tokens):.2f}"),
            ("to be memorized", f"at most {manifest['compressed_bits'] / 1e6:.2f} Mbit (xz -9e)"),
            ("by text alone", f"{left_open:,} next tokens stay open after {CONTEXT} tokens, none after {enough:,}"),
            ("by address", "none stays open: each window opens with its own"),
            ("written", f"{folder}/ in {time.perf_counter() - started:.1f} s")]:
        print(f"{label:16} {value}")


if __name__ == "__main__":
    run(main)
