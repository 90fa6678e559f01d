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
import collections
import contextlib
import dataclasses
import fnmatch
import functools
import hashlib
import http.client
import lzma
import os
import re
import stat
import struct
import sys
import tarfile
import tempfile
import threading
import time
import urllib.error
import urllib.request
import zipfile
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from memory.files import files_digest, lock, remove, write_file, write_json
from memory.licences import classify, find_licence
from memory.output import UserError, progress, run_script
from memory.settings import nearest, parse
from memory.swhid import folder_swhid, git_hash
from memory.tokenizer import EOS, LARGE, Tokenizer, TooManyPieces, choose_packer, compressed_bits
from memory.windows import opening, quote, unquote

VERSION = "1.0"
SHA256 = "014cc3ea69a3db6a483eb743e3140e0e45a4a8c168c59f8c3b090cd72ab01802"  # of linux-1.0.tar.gz
FILES_DIGEST = "ac2660ca575d036f216fa0fc62dd8aa78a8284b6d4b070cf9031ac3b6f4324ba"  # of its files (files_digest)
MIRRORS = ["https://cdn.kernel.org/pub/linux/kernel", "https://mirrors.edge.kernel.org/pub/linux/kernel"]
STAND_IN = Path("/usr/include/linux")
TIMEOUT, TRIES = 20, 3  # seconds without a byte; attempts at each mirror
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
    max_bytes: int = 4 * 2**30  # refuse a tree larger than this once unpacked
    quiet: bool = False  # no table and no progress bars; errors and warnings are still printed


class Unreachable(UserError):
    """No server gave the file."""


# 1. Where the tree comes from

def fetch(url, limit, bar=progress):
    """What a URL serves, as an open temporary file, with a progress bar, time-outs and retries.

    Raises Unreachable if the server cannot be reached or breaks off each time, UserError for more than `limit` bytes.
    """
    for attempt in range(TRIES):
        file = tempfile.TemporaryFile()
        try:
            with urllib.request.urlopen(url, timeout=TIMEOUT) as response:
                size, name = int(response.headers.get("Content-Length") or 0), url.rsplit("/", 1)[1]
                with bar(total=size or None, unit="B", unit_scale=True, desc=name) as shown:
                    while chunk := response.read(65536):
                        file.write(chunk)
                        shown.update(len(chunk))
                        if file.tell() > limit:
                            raise UserError(f"{url} is larger than {limit:,} bytes; raise --max_bytes to allow it")
            if file.tell() < size:
                raise http.client.IncompleteRead(b"", size - file.tell())
            return file
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


def sha256_of(file):
    """SHA-256 (hex) of an open file, which is at its start before and after."""
    file.seek(0)
    found = hashlib.file_digest(file, "sha256").hexdigest()
    file.seek(0)
    return found


def check_hash(file, sha256, name):
    """Raises UserError if the open file does not hash to the hex string sha256."""
    found = sha256_of(file)
    if found != sha256.lower():
        raise UserError(f"{name} has SHA-256 {found}, expected {sha256}; nothing was kept: try again, or doubt "
                        f"the server")


def release(version, downloads, limit, bar):
    """(open file, url) of a release's tarball, checked, from `downloads` if it is there or else from kernel.org.

    1.0 is checked against the hash above, any other against the sha256sums.asc of its directory, kept beside it.
    """
    if not re.fullmatch(r"\d+\.\d+(\.\d+)*", version):
        raise UserError(f"--version takes a release such as 1.2.13, not {version!r}")
    name, parts = f"linux-{version}.tar.gz", version.split(".")
    folder = f"v{parts[0]}.x" if int(parts[0]) >= 3 else f"v{parts[0]}.{parts[1]}"
    kept, kept_hash = downloads / name, downloads / f"{name}.sha256"
    if kept.is_file() and (version == VERSION or kept_hash.is_file()):
        try:
            file = open(kept, "rb")
            if sha256_of(file) == (SHA256 if version == VERSION else kept_hash.read_text().strip()):
                return file, f"{MIRRORS[0]}/{folder}/{name}"
            print(f"{kept} is damaged: downloading it again", file=sys.stderr)
        except (OSError, ValueError) as error:
            print(f"{kept} cannot be read ({error}): downloading it again", file=sys.stderr)
    for mirror in MIRRORS:
        try:
            sha256 = SHA256
            if version != VERSION:
                sums = fetch(f"{mirror}/{folder}/sha256sums.asc", 2**24, bar)
                sums.seek(0)
                sums = sums.read().decode(errors="replace")
                match = re.search(rf"^([0-9a-f]{{64}})\s+\*?{re.escape(name)}$", sums, re.M)
                if not match:
                    raise UserError(f"kernel.org's {folder}/ lists no {name}; see {mirror}/{folder}/")
                sha256 = match[1]
            file = fetch(f"{mirror}/{folder}/{name}", limit, bar)
        except Unreachable as error:
            print(error, file=sys.stderr)
            continue
        check_hash(file, sha256, name)
        write_file(kept, iter(functools.partial(file.read, 2**20), b""))
        if version != VERSION:
            write_file(kept_hash, sha256.encode())
        file.seek(0)
        return file, f"{mirror}/{folder}/{name}"
    raise Unreachable("kernel.org cannot be reached")


# 2. The files of a tree

KINDS = {stat.S_IFREG: "file", 0: "file", stat.S_IFLNK: "link", stat.S_IFIFO: "pipe", stat.S_IFSOCK: "socket"}
TAR_KINDS = {tarfile.LNKTYPE: "hard link", tarfile.SYMTYPE: "link", tarfile.FIFOTYPE: "pipe"}


@dataclasses.dataclass
class Member:
    """What stands at a path (bytes) of a tree, by its own account, folders apart."""
    path: bytes
    kind: str  # "file", "hard link" to `target`, or what is left out: "link", "pipe", "socket", "device", …
    size: int  # bytes
    read: object = None  # a function without arguments that returns the content
    target: bytes = b""
    executable: bool = False


@dataclasses.dataclass
class Tree:
    """The regular files of a tree."""
    files: dict  # {path: bytes}
    executable: set = dataclasses.field(default_factory=set)  # the paths of those that are
    links: dict = dataclasses.field(default_factory=dict)
    left_out: dict = dataclasses.field(default_factory=dict)  # {what is no regular file: how many}


def normal(path):
    """The bytes of a path without empty parts; b"" if it is absolute or climbs out, on any system."""
    parts = [part for part in path.split(b"/") if part not in (b"", b".")]
    unsafe = re.match(rb"[/\\]|[A-Za-z]:[/\\]", path) or b".." in re.split(rb"[/\\]", path)
    return b"" if unsafe else b"/".join(parts)


def gather(members, limit, name):
    """The Tree of the regular files among the Members. Nothing a member says of itself is trusted: a path that
    is absolute or climbs out, and links, devices and the like, are left out and counted; sizes are held to `limit`. A
    hard link has the content of the file before it that it points to. What is in a folder .git is no part of the tree.
    """
    files, executable, left_out, total = {}, set(), collections.Counter(), 0

    def grow(size):
        if total + size > limit:
            raise UserError(f"{name} holds more than {limit:,} bytes; raise --max_bytes to allow it")

    for member in members:
        path, target = normal(member.path), normal(member.target)
        if b".git" in path.split(b"/")[:-1]:
            continue
        if member.kind not in ("file", "hard link"):
            left_out[member.kind] += 1
        elif not path:
            left_out["unsafe path"] += 1
        elif member.kind == "hard link" and target not in files:
            left_out["link"] += 1
        else:
            grow(member.size)  # before it is read
            content = files[target] if member.kind == "hard link" else member.read()
            grow(len(content))
            total += len(content)
            files[path] = content
            if member.executable or target in executable:
                executable.add(path)
    for kind, count in left_out.items():
        print(f"left out of {name}: {count} {kind}{'s' * (count > 1)}", file=sys.stderr)
    return Tree(files, executable, dict(left_out))


def tar_members(file):
    """Yields the Members of an open tarball."""
    with tarfile.open(fileobj=file, mode="r|*", encoding="utf-8", errors="surrogateescape") as tar:
        for member in tar:
            def read(member=member):
                content = tar.extractfile(member).read()
                if len(content) != member.size:
                    raise tarfile.ReadError("it ends early")
                return content
            if not member.isdir():
                kind = "file" if member.isreg() else TAR_KINDS.get(member.type, "device")
                yield Member(os.fsencode(member.name), kind, member.size if kind == "file" else 0, read,
                             os.fsencode(member.linkname), bool(member.mode & 0o100))


def zip_members(file):
    """Yields the Members of an open zip."""
    with zipfile.ZipFile(file) as archive:
        for info in archive.infolist():
            mode = info.external_attr >> 16  # 0 unless it was made on Unix
            if info.is_dir() or stat.S_ISDIR(mode):
                continue
            kind = "encrypted file" if info.flag_bits & 1 else KINDS.get(stat.S_IFMT(mode), "device")
            path = info.orig_filename.encode("utf-8" if info.flag_bits & 0x800 else "cp437").split(b"\0")[0]
            yield Member(path, kind, info.file_size, functools.partial(archive.read, info),
                         executable=bool(mode & 0o100))


def folder_members(folder):
    """Yields the Members of a folder, but of no .git in it, which can be large; links are not followed."""
    def unreadable(error):
        raise UserError(f"cannot read {os.fsdecode(error.filename)}: {error.strerror}") from None

    def read(path):
        try:
            with open(path, "rb") as file:
                return file.read()
        except OSError as error:
            unreadable(error)

    for at, folders, names in os.walk(os.fsencode(folder), onerror=unreadable):
        links = [name for name in folders if os.path.islink(os.path.join(at, name))]
        folders[:] = sorted(name for name in folders if name != b".git" and name not in links)
        for name in names + links:
            path = os.path.join(at, name)
            try:
                status = os.lstat(path)
            except OSError as error:
                unreadable(error)
            relative = os.path.relpath(path, os.fsencode(folder)).replace(os.fsencode(os.sep), b"/")
            yield Member(relative, KINDS.get(stat.S_IFMT(status.st_mode), "device"),
                         status.st_size, functools.partial(read, path), executable=bool(status.st_mode & 0o100))


def read_folder(folder, limit):
    """The Tree of a folder."""
    return gather(folder_members(folder), limit, folder)


def read_archive(file, limit, name):
    """The Tree of an open tarball or zip. Raises UserError if it cannot be read."""
    try:
        is_zip = file.read(4) in (b"PK\3\4", b"PK\5\6")
        file.seek(0)
        return gather(zip_members(file) if is_zip else tar_members(file), limit, name)
    except (tarfile.TarError, zipfile.BadZipFile, EOFError, OSError, ValueError, NotImplementedError, RuntimeError,
            struct.error, zlib.error, lzma.LZMAError) as error:
        raise UserError(f"{name} is not a tarball or zip that can be read: {error}") from None


def rooted(tree, name):
    """The same Tree below one root that carries no version: linux-2.0.40/Makefile and Makefile -> linux/Makefile. Its
    paths are quoted."""
    tops, above = {path.split(b"/")[0] for path in tree.files}, 0
    if len(tops) == 1 and all(b"/" in path for path in tree.files):
        name, above = os.fsdecode(tops.pop()), 1
    root = re.sub(r"[-_.]v?\d[\w.-]*$", "", name) or name
    paths = {path: quote(os.fsencode(root) + b"/" + path.split(b"/", above)[-1]) for path in tree.files}
    return Tree({paths[path]: content for path, content in tree.files.items()},
                {paths[path] for path in tree.executable}, tree.left_out)


def open_source(source, limit):
    """The file `source`, open for reading; of a pipe or device a copy, which can be read twice. Raises UserError if it
    cannot be read, or a copy would have more than `limit` bytes."""
    try:
        file = open(source, "rb")
        if not stat.S_ISREG(os.stat(file.fileno()).st_mode):
            with file as pipe:
                file = tempfile.TemporaryFile()
                while chunk := pipe.read(2**20):
                    file.write(chunk)
                    if file.tell() > limit:
                        raise UserError(f"{source} is larger than {limit:,} bytes; raise --max_bytes to allow it")
        return file
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read the source {source}: {getattr(error, 'strerror', error)}") from None


def without_password(url):
    """The URL as a record may hold it."""
    return re.sub(r"^(\w+://)[^/?#]*@", r"\1", url)


def collect(settings, bar):
    """(name, Tree, where it came from as entries of the manifest), as the settings ask."""
    limit, downloads = settings.max_bytes, Path("data")
    source, origin = settings.source, {"origin": "source", "url": None, "sha256": None}
    if source and settings.version:
        raise UserError("--source and --version exclude each other")
    if settings.sha256 and (not source or os.path.isdir(source)):
        raise UserError("--sha256 is for the tarball, zip or URL that --source names")
    if not source:
        version = settings.version or VERSION
        try:
            file, url = release(version, downloads, limit, bar)
            origin = {"origin": "kernel.org", "url": url, "sha256": sha256_of(file)}
            return f"linux-{version}", rooted(read_archive(file, limit, f"linux-{version}.tar.gz"), "linux"), origin
        except Unreachable as error:
            ways = "name a tree with --source DIR|TARBALL|ZIP|URL"
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
        file, origin["url"] = fetch(source, limit, bar), without_password(source)
    else:
        file = open_source(source, limit)
    with file:
        if settings.sha256:
            check_hash(file, settings.sha256, source)
        origin["sha256"] = sha256_of(file)
        name = re.sub(r"\.(tar(\.\w+)?|t[gbx]z|zip)$", "", source.rstrip("/").rsplit("/", 1)[-1]) or "tree"
        return name, rooted(read_archive(file, limit, source), name), origin


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
    url, sha256 = (f"{MIRRORS[0]}/v{VERSION}/linux-{VERSION}.tar.gz", SHA256) if digest == FILES_DIGEST else (
        origin["url"], origin["sha256"])
    swhid = folder_swhid({unquote(path).split(b"/", 1)[1]: (git_hash("blob", content), "100755" if path in tree.executable
                                                               else "100644")
                          for path, content in tree.files.items()})
    return {"files": len(tree.files), "bytes": sum(map(len, tree.files.values())), "digest": digest, "swhid": swhid,
            "executable": sorted(tree.executable), "links": {}, "root": "", "url": url,
            "sha256": sha256, "licence_path": licence_path,
            "licence_sha256": hashes.get(licence_path), "left_out": tree.left_out,
            "not_prepared": sorted(tree.files.keys() - kept.keys())}


# 3. Tokens

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
        raise UserError(f"{settings.source or name} holds no text: {len(files)} files, 0 bytes")
    folder = Path(settings.out or Path("data") / name)
    refuse_model(folder)

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
