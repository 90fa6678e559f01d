"""Where a tree comes from: a release of kernel.org, a folder, a tarball or zip, or the URL of one. What is read is read
whole, or refused: an archive that is damaged or cut off, that goes on after its end, or that says two things of one
path. Nothing that it says of itself is trusted."""
import base64
import bz2
import collections
import dataclasses
import errno
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
import time
import urllib.error
import urllib.parse
import urllib.request
import zipfile
import zlib
from pathlib import Path

from memory.files import name_of, write_file
from memory.output import UserError, progress
from memory.urls import recorded, shown
from memory.windows import quote

VERSION = "1.0"
SHA256 = "014cc3ea69a3db6a483eb743e3140e0e45a4a8c168c59f8c3b090cd72ab01802"  # of linux-1.0.tar.gz
FILES_DIGEST = "ac2660ca575d036f216fa0fc62dd8aa78a8284b6d4b070cf9031ac3b6f4324ba"  # of its files
MIRRORS = ["https://cdn.kernel.org/pub/linux/kernel", "https://mirrors.edge.kernel.org/pub/linux/kernel"]
STAND_IN = Path("/usr/include/linux")
TIMEOUT, TRIES = 20, 3  # seconds without a byte; attempts at each mirror
PIECE = 2**20  # bytes that are read, or unpacked, at a time
HEADER = 2**20  # bytes, the most that a tar may say of one member
NOT_OF_THE_TREE = (".git", "__MACOSX")  # what git and macOS put beside it: left out, and nothing is lost


class Unreachable(UserError):
    """No server gave the file."""


# 1. Files from servers

def request_of(url):
    """The request for a URL. A name and password in it, which urllib takes for a part of the host, go to that host
    alone, and to none that it redirects to. Raises ValueError if it is no URL."""
    parts = urllib.parse.urlsplit(url)
    user, at, host = parts.netloc.rpartition("@")
    if not at or parts.scheme not in ("http", "https"):
        return urllib.request.Request(url)
    request = urllib.request.Request(parts._replace(netloc=host).geturl())
    secret = base64.b64encode(urllib.parse.unquote_to_bytes(user if ":" in user else user + ":")).decode()
    request.add_unredirected_header("Authorization", f"Basic {secret}")
    return request


def fetch(url, limit, bar=progress):
    """What a URL serves, as an open temporary file, with a progress bar, time-outs and retries.

    Raises Unreachable if the server cannot be reached or breaks off each time, UserError for more than `limit` bytes.
    No error quotes what urllib says of a URL, which may hold a secret.
    """
    for attempt in range(TRIES):
        try:
            file = tempfile.TemporaryFile()
            with urllib.request.urlopen(request_of(url), timeout=TIMEOUT) as response:
                said = response.headers.get("Content-Length") or ""
                size = int(said) if re.fullmatch("[0-9]{1,18}", said) else 0  # some servers say nonsense
                with bar(total=size or None, unit="B", unit_scale=True, desc=name_of(stem(url))) as done:
                    while chunk := response.read(65536):
                        file.write(chunk)
                        done.update(len(chunk))
                        if file.tell() > limit:
                            raise UserError(f"{shown(url)} is larger than {limit:,} bytes; raise --max_bytes to allow "
                                            f"it")
            if file.tell() < size:
                raise http.client.IncompleteRead(b"", size - file.tell())
            file.seek(0)
            return file
        except urllib.error.HTTPError as error:
            reason = f"{error.code} {http.client.responses.get(error.code, '')}".rstrip()
            if error.code < 500:
                break  # asking again will not help
        except (ValueError, http.client.InvalidURL):
            raise UserError(f"{shown(url)} is not a URL that can be fetched") from None
        except (OSError, http.client.HTTPException) as error:
            cause = getattr(error, "reason", error)
            if getattr(cause, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
                raise UserError(f"cannot keep what {shown(url)} serves ({cause.strerror}): make room in "
                                f"{tempfile.gettempdir()}, or set TMPDIR to another folder") from None
            reason = getattr(cause, "strerror", None) or str(cause) or type(cause).__name__
            if isinstance(cause, http.client.BadStatusLine) and not isinstance(cause, OSError):  # which quotes it
                reason = "its answer is no HTTP"
        time.sleep(0.5 * attempt)
    raise Unreachable(f"cannot fetch {shown(url)}: {reason}")


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

    1.0 is checked against the hash above, any other against the sha256sums.asc of its directory, kept beside it. The
    next mirror is asked if one cannot be reached, or serves something else. Raises Unreachable if none can be reached,
    UserError if none serves the release as it must be.
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
    refused = None
    for mirror in MIRRORS:
        try:
            sha256 = SHA256 if version == VERSION else listed(f"{mirror}/{folder}", name, bar)
            file = fetch(f"{mirror}/{folder}/{name}", limit, bar)
            check_hash(file, sha256, f"{mirror}/{folder}/{name}")
        except UserError as error:
            print(error, file=sys.stderr)
            refused = refused if isinstance(error, Unreachable) else error
            continue
        write_file(kept, iter(functools.partial(file.read, PIECE), b""))
        if version != VERSION:
            write_file(kept_hash, sha256.encode())
        file.seek(0)
        return file, f"{mirror}/{folder}/{name}"
    if refused:
        raise UserError(f"no mirror gave {name} as it must be: {refused}")
    raise Unreachable("kernel.org cannot be reached")


def listed(address, name, bar):
    """The SHA-256 (hex) that the sha256sums.asc of a directory of a mirror has for a file. Raises UserError."""
    match = re.search(rf"^([0-9a-f]{{64}})\s+\*?{re.escape(name)}$",
                      fetch(f"{address}/sha256sums.asc", 2**24, bar).read().decode(errors="replace"), re.M)
    if not match:
        raise UserError(f"{address}/sha256sums.asc lists no {name}; see {address}/")
    return match[1]


# 2. The files of a tree

KINDS = {stat.S_IFREG: "file", 0: "file", stat.S_IFLNK: "link", stat.S_IFDIR: "folder", stat.S_IFIFO: "pipe",
         stat.S_IFSOCK: "socket", stat.S_IFCHR: "device", stat.S_IFBLK: "device"}
BESIDE = {name.encode(): name for name in NOT_OF_THE_TREE}
APPLE_DOUBLE = b"\0\5\x16\7"  # how a file begins that macOS puts beside another, with its attributes


@dataclasses.dataclass
class Member:
    """What stands at a path (bytes) of a tree, by its own account."""
    path: bytes
    kind: str  # "file", "folder", "link" or "hard link" to `target`, or what is left out: "pipe", "device", …
    size: int = 0  # bytes, of a file
    read: object = None  # a function without arguments that returns a file's content
    target: bytes = b""
    executable: bool = False


@dataclasses.dataclass
class Tree:
    """The regular files of a tree."""
    files: dict  # {path: bytes}
    executable: set = dataclasses.field(default_factory=set)  # the paths of those that are
    left_out: dict = dataclasses.field(default_factory=dict)  # {what is no regular file: how many}
    links: dict = dataclasses.field(default_factory=dict)  # {path: target}; they count as left out too
    root: str = ""  # the quoted folder, with a "/" at its end, between the root of the tree as it came and the paths


def normal(path):
    """The bytes of a path without empty parts; b"" if it is absolute or climbs out, on any system, or cannot be."""
    parts = [part for part in path.split(b"/") if part not in (b"", b".")]
    unsafe = re.match(rb"[/\\]|[A-Za-z]:[/\\]", path) or b".." in re.split(rb"[/\\]", path) or b"\0" in path
    return b"" if unsafe else b"/".join(parts)


def read_members(members, limit, name):
    """The Tree of the regular files among the Members. Nothing a member says of itself is trusted: a path that is
    absolute or climbs out, and links, devices and the like, are left out and counted; sizes are held to `limit`. Of two
    members with one path the later counts, as when they are unpacked. A hard link has the content of the file before it
    that it points to. What git and macOS put beside a tree is left out too; a folder of it counts once.

    Raises UserError for more than `limit` bytes, and if a path goes through what is no folder.
    """
    found, total = {}, 0  # path -> (kind, content or target, executable)

    def grow(size):
        if total + size > limit:
            raise UserError(f"{name} holds more than {limit:,} bytes; raise --max_bytes to allow it")

    for member in members:
        path, kind, content, executable = normal(member.path), member.kind, None, member.executable
        parts = path.split(b"/")
        beside = next((i for i, part in enumerate(parts) if part in BESIDE), None)
        if beside is not None:
            path, kind = b"/".join(parts[:beside + 1]), BESIDE[parts[beside]]
        elif kind == "folder":
            found.pop(path, None)  # a file that it replaces
            continue
        elif kind == "link":
            content = member.target if path else None
            grow(len(member.target))
            total += len(member.target)
        elif kind in ("file", "hard link") and not path:
            kind = "unsafe path"
        elif kind == "hard link":
            kind, content, script = found.get(normal(member.target), ("", None, False))
            executable = executable or script
            if kind != "file":
                kind, content = "link", None
        elif kind == "file":
            grow(member.size)  # before it is read
            content = member.read()
        if kind == "file":
            grow(len(content))
            total += len(content)
        found[path or member.path] = kind, content, executable

    files = {path: content for path, (kind, content, _) in found.items() if kind == "file"}
    for path in list(files):
        folder, slash, last = path.rpartition(b"/")
        if last[:2] == b"._" and (files[path][:4] == APPLE_DOUBLE or folder + slash + last[2:] in files):
            found[path] = NOT_OF_THE_TREE[1], None, False
            del files[path]
    links = {path: content for path, (kind, content, _) in found.items() if kind == "link" and content is not None}
    for path in (*files, *links):
        while path := path.rpartition(b"/")[0]:
            if path in files or path in links:
                raise UserError(f"{name} has {quote(path)} both as a folder and as something else")
    left_out = collections.Counter(kind for kind, *_ in found.values() if kind != "file")
    for kind, count in left_out.items():
        what = f"× {kind}" if kind in NOT_OF_THE_TREE else kind + "s" * (count > 1)
        print(f"left out of {name}: {count} {what}", file=sys.stderr)
    return Tree(files, {path for path in files if found[path][2]}, dict(left_out), links)


# 3. Archives

def unpacked(file, unpacker):
    """Yields what the streams of gzip, bzip2 or xz in an open file unpack to, in pieces, and checks their sums. Zeros
    after one are padding. Raises EOFError for a stream that is cut off, and what the library raises for a damaged one
    or anything else between and after streams. unpacker: makes what unpacks a stream."""
    data = file.read(PIECE)
    while data:
        stream, piece = unpacker(), b""
        while not stream.eof:
            if not data and len(piece) < PIECE and not (data := file.read(PIECE)):
                raise EOFError("it is cut off")
            piece = stream.decompress(data, PIECE)
            data = getattr(stream, "unconsumed_tail", b"")  # zlib's way; the others keep it themselves
            yield piece
        data = stream.unused_data
        while not (data := data.lstrip(b"\0")) and (data := file.read(PIECE)):
            pass


UNPACKERS = {b"\x1f\x8b": functools.partial(zlib.decompressobj, 16 + zlib.MAX_WBITS), b"BZh": bz2.BZ2Decompressor,
             **dict.fromkeys((b"\xfd7zXZ", b"\x5d\0\0"), functools.partial(lzma.LZMADecompressor, memlimit=2**28))}


class Stream:
    """What tarfile reads: an iterable of pieces of bytes, forward only, `most` bytes in all, of which `name` is to be
    accused if there are more. While a header is read, not beyond `stop`."""

    def __init__(self, pieces, most, name):
        self.pieces, self.most, self.name = iter(pieces), most, name
        self.at, self.stop, self.ahead, self.last = 0, HEADER, bytearray(), b""

    def peek(self, size):
        """The next `size` bytes, or all there are, which are read again then."""
        if self.at + size > self.stop:
            raise tarfile.ReadError(f"a header of more than {HEADER:,} bytes")
        while len(self.ahead) < size and (piece := next(self.pieces, None)) is not None:
            self.ahead += piece
        data = bytes(self.ahead[:size])
        if self.at + len(data) > self.most:
            raise UserError(f"{self.name} unpacks to more than {self.most:,} bytes, headers included; raise "
                            f"--max_bytes to allow it")
        return data

    def read(self, size):
        self.last = self.peek(size)
        del self.ahead[:size]
        self.at += len(self.last)
        return self.last

    def tell(self):
        return self.at

    def seek(self, at):
        if at < self.at:
            raise tarfile.ReadError("a size that cannot be")
        while self.at < at:
            if not self.read(min(PIECE, at - self.at)):
                raise EOFError("it is cut off")

    def seekable(self):
        return True


def check_pax(data):
    """Raises ReadError for a damaged pax header: records of "length keyword=value\\n", one after another. tarfile stops
    reading at a bad one, and takes a bad size for 0."""
    at, end = 0, len(data.rstrip(b"\0"))
    while at < end:
        match = re.compile(rb"(\d{1,9}) ([^=]+)=").match(data, at)
        stop = at + int(match[1]) if match else 0
        if not match or not match.end() < stop <= end or data[stop - 1:stop] != b"\n":
            raise tarfile.ReadError("a damaged pax header")
        if match[2] == b"size" and not data[match.end():stop - 1].isdigit():
            raise tarfile.ReadError("a pax header with a size that is no number")
        at = stop


class Header(tarfile.TarInfo):
    """A header of a tar. tarfile takes a damaged one, or none at all, for the end of the archive; here it is refused,
    and the end must be there: a block of zeros."""

    @classmethod
    def fromtarfile(cls, tar):
        try:
            return super().fromtarfile(tar)
        except tarfile.EOFHeaderError:
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(f"at byte {tar.offset:,} no member and no end, but {error}") from None

    def _proc_member(self, tar):  # tarfile's hook for each header, right after its block was read
        block = tar.fileobj.last
        if block[257:263] != b"ustar\0":  # then other things, such as times, are where tarfile looks for a prefix
            self.name = block[:100].split(b"\0")[0].decode(tar.encoding, tar.errors)
        if self.size < 0:
            raise tarfile.ReadError("a size that cannot be")
        if self.type in (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE):
            check_pax(tar.fileobj.peek(self.size))
        return super()._proc_member(tar)


TAR_KINDS = {**dict.fromkeys(tarfile.REGULAR_TYPES, "file"), tarfile.DIRTYPE: "folder", tarfile.LNKTYPE: "hard link",
             tarfile.SYMTYPE: "link", tarfile.FIFOTYPE: "pipe", tarfile.CHRTYPE: "device", tarfile.BLKTYPE: "device",
             b"D": "folder"}  # with what was in it, as GNU tar writes it for --listed-incremental
LABEL, CONTINUED = b"V", b"M"  # GNU tar's: the name of the archive; the rest of a file that another volume begins


def tar_members(pieces, most, name):
    """Yields the Members of a tar, which comes as an iterable of pieces of bytes. After its end only zeros may follow:
    anything else is most likely a second archive, which tar itself would pass over in silence."""
    stream = Stream(pieces, most, name)
    tar = tarfile.TarFile(fileobj=stream, tarinfo=Header, encoding="utf-8", errors="surrogateescape")

    def read(member):
        content = tar.extractfile(member).read()
        if len(content) != member.size:
            raise EOFError("it is cut off")
        return content

    while (member := tar.next()) is not None:
        tar.members.clear()  # which would hold them all
        stream.stop = float("inf")
        if member.type == CONTINUED:
            raise UserError(f"{name} is a later volume of an archive: unpack all with `tar -M`, and name the folder")
        if member.type != LABEL:
            kind = TAR_KINDS.get(member.type, "unknown kind")
            yield Member(member.name.encode("utf-8", "surrogateescape"), kind, member.size if kind == "file" else 0,
                         functools.partial(read, member), member.linkname.encode("utf-8", "surrogateescape"),
                         bool(member.mode & 0o100))
        stream.seek(tar.offset)
        stream.stop = stream.at + HEADER
    stream.stop = float("inf")
    while rest := stream.read(PIECE):
        if rest.strip(b"\0"):
            raise tarfile.ReadError(f"something follows its end at byte {tar.offset:,}: a second archive, or damage")


def zip_members(file, most, name):
    """Yields the Members of an open zip. Bytes before its first member are passed over, and said, unless they begin as
    a zip does; zeros after its end are padding. A zip that was made on Windows may have backslashes in its paths."""
    size = file.seek(0, os.SEEK_END)
    if size > most:
        raise UserError(f"{name} has {size:,} bytes; raise --max_bytes to allow it")
    with zipfile.ZipFile(file) as archive:
        members, backslashes = archive.infolist(), 0
        file.seek(max(0, size - 22 - 2**16))  # zipfile looks no further back for its end
        tail = file.read()
        end = tail.rindex(b"PK\5\6")
        (count,) = struct.unpack_from("<H", tail, end + 10)
        if tail[end + 22 + len(archive.comment):].strip(b"\0"):
            raise zipfile.BadZipFile("something follows its end")
        if count not in (len(members) % 2**16, 2**16 - 1):  # the last stands for a number that has no room
            raise zipfile.BadZipFile(f"its directory names {len(members):,} members of {count:,}")
        if before := min((info.header_offset for info in members), default=0):
            file.seek(0)
            if file.read(4) == b"PK\3\4":
                raise zipfile.BadZipFile(f"its directory does not speak of its first {before:,} bytes")
            print(f"{name}: {before:,} bytes before the zip are passed over", file=sys.stderr)

        def read(info):
            content, size = bytearray(), PIECE
            with archive.open(info) as packed:  # which checks the sum at the end
                if info.compress_type in (zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):  # not unpacked piece by piece
                    size, packed.MIN_READ_SIZE = 64, 1  # but these go in, so not much can come out at once
                while piece := packed.read(size):
                    content += piece
            if len(content) != info.file_size:
                raise EOFError(f"{info.filename} is cut off")
            return bytes(content)

        for info in members:
            mode = info.external_attr >> 16  # 0 unless it was made on Unix
            path = info.orig_filename.encode("utf-8" if info.flag_bits & 0x800 else "cp437").split(b"\0")[0]
            if info.create_system == 0 and b"\\" in path and b"/" not in path:  # as unzip does
                path, backslashes = path.replace(b"\\", b"/"), backslashes + 1
            kind = "folder" if path.endswith(b"/") else KINDS.get(stat.S_IFMT(mode), "unknown kind")
            if info.file_size and kind not in ("file", "link"):  # some programs would unpack a file
                raise zipfile.BadZipFile(f"{quote(path)} is a {kind} with content")
            if info.flag_bits & 1:
                kind = "encrypted file"
                file.seek(info.header_offset + 6)
                if not file.read(1)[0] & 1:
                    raise zipfile.BadZipFile(f"{quote(path)} is encrypted only by the word of its directory")
            yield Member(path, kind, info.file_size, functools.partial(read, info),
                         read(info) if kind == "link" and info.file_size <= PIECE else b"", bool(mode & 0o100))
        if backslashes:
            print(f"{name}: {backslashes:,} paths with backslashes, which are read as folders", file=sys.stderr)


OTHERS = [  # how a file begins that is no tar or zip, what it is, and what to do
    (b"\x28\xb5\x2f\xfd", "packed with zstd", "unpack it with `zstd -d`"),
    (b"\x04\x22\x4d\x18", "packed with lz4", "unpack it with `lz4 -d`"),
    (b"\x02\x21\x4c\x18", "packed with lz4", "unpack it with `lz4 -d`"),
    (b"LZIP", "packed with lzip", "unpack it with `lzip -d`"),
    (b"\x89LZO", "packed with lzop", "unpack it with `lzop -d`"),
    (b"\x1f\x9d", "packed with compress", "unpack it with `gzip -d`"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", "unpack it with `7z x`, and name the folder"),
    (b"Rar!\x1a\x07", "a rar archive", "unpack it with `unrar x`, and name the folder"),
    (b"07070", "a cpio archive", "unpack it with `cpio -i`, and name the folder"),
    (b"!<arch>\n", "an ar archive, such as a .deb", "unpack it with `ar x`, and name the .tar in it"),
    (b"<!doctype html", "a web page", "name the address of the archive itself"),
    (b"<html", "a web page", "name the address of the archive itself")]


def is_tar_header(block):
    """Whether 512 bytes are a header of a tar, or its end, as in one without members."""
    try:
        return bool(tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape"))
    except tarfile.EOFHeaderError:
        return True
    except (tarfile.HeaderError, ValueError):
        return False


def archive_members(file, limit, name):
    """Yields the Members of an open tarball or zip. All it unpacks to is counted while it is unpacked: `limit` bytes of
    content, and as many again, and 1 MiB, for what it says of its members."""
    most, head = 2 * limit + 2**20, file.read(512)
    file.seek(0)
    page = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if is_tar_header(head):
        return tar_members(iter(functools.partial(file.read, PIECE), b""), most, name)
    for magic, unpacker in UNPACKERS.items():
        if head.startswith(magic):
            return tar_members(unpacked(file, unpacker), most, name)
    for magic, what, remedy in OTHERS:
        if head.startswith(magic) or page.startswith(magic):
            raise UserError(f"{name} is {what}, which is not read here: {remedy}")
    if head.startswith(b"PK") or zipfile.is_zipfile(file):
        return zip_members(file, most, name)
    raise tarfile.ReadError("it begins like neither" if head else "it is empty")


def read_archive(file, limit, name):
    """The Tree of an open tarball or zip. Raises UserError if it cannot be read, or not whole."""
    try:
        return read_members(archive_members(file, limit, name), limit, name)
    except (tarfile.TarError, zipfile.BadZipFile, EOFError, OSError, ValueError, RuntimeError, LookupError,
            OverflowError, struct.error, zlib.error, lzma.LZMAError) as error:
        reason, remedy = " ".join(str(error).split())[:200] or type(error).__name__, "get it again"
        if isinstance(error, (NotImplementedError, UnicodeDecodeError)) or "Memory usage limit" in reason:
            remedy = "if it is whole, unpack it with another program, and name the folder"
        raise UserError(f"{name} is not a tarball or zip that can be read whole: {reason}; {remedy}") from None


# 4. Folders

def folder_members(folder):
    """Yields the Members of a folder; links are not followed, and what is not of the tree, which can be large, is not
    walked into."""
    def unreadable(error):
        raise UserError(f"cannot read {os.fsdecode(error.filename)}: {error.strerror}") from None

    def read(path):
        with open(path, "rb") as file:
            return file.read()

    def asked(work, path):
        try:
            return work(path)
        except OSError as error:
            unreadable(error)

    for at, folders, names in os.walk(os.fsencode(folder), onerror=unreadable):
        shut = [name for name in folders if os.path.islink(os.path.join(at, name)) or name in BESIDE]
        folders[:] = sorted(set(folders) - set(shut))
        for name in names + shut:
            path = os.path.join(at, name)
            status = asked(os.lstat, path)
            kind = KINDS.get(stat.S_IFMT(status.st_mode), "unknown kind")
            relative = os.path.relpath(path, os.fsencode(folder)).replace(os.fsencode(os.sep), b"/")
            yield Member(relative, kind, status.st_size, functools.partial(asked, read, path),
                         asked(os.readlink, path) if kind == "link" else b"", bool(status.st_mode & 0o100))


def read_folder(folder, limit):
    """The Tree of a folder."""
    return read_members(folder_members(folder), limit, folder)


# 5. A tree and its name

def rooted(tree, name, folder=False):
    """The same Tree below one root that carries no version: linux-2.0.40/Makefile and Makefile -> linux/Makefile. Its
    paths are quoted. A link that is outside the root is named by way of it: linux/../link. folder: whether the tree
    came as a folder, which stays its root for git, where an archive's is the one folder in it."""
    tops, above = {path.split(b"/")[0] for path in tree.files}, b""
    if len(tops) == 1 and all(b"/" in path for path in tree.files):
        (top,) = tops
        name, above = os.fsdecode(top), top + b"/"
    root = os.fsencode(re.sub(r"[-_.]v?\d[\w.-]*$", "", name) or name)

    def below(path):
        return quote(root + b"/" + (path[len(above):] if path.startswith(above) else b"../" + path))

    outside = any(not path.startswith(above) for path in tree.links)
    return Tree({below(path): content for path, content in tree.files.items()}, set(map(below, tree.executable)),
                tree.left_out, {below(path): quote(target) for path, target in tree.links.items()},
                quote(above) if folder or outside else "")


def open_source(source, limit):
    """The file `source`, open for reading; of a pipe or device a copy, which can be read twice. Raises UserError if it
    cannot be read, or a copy would have more than `limit` bytes."""
    try:
        file = open(source, "rb")
        if not stat.S_ISREG(os.stat(file.fileno()).st_mode):
            with file as pipe:
                file = tempfile.TemporaryFile()
                while chunk := pipe.read(PIECE):
                    file.write(chunk)
                    if file.tell() > limit:
                        raise UserError(f"{source} is larger than {limit:,} bytes; raise --max_bytes to allow it")
        return file
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read the source {source}: {getattr(error, 'strerror', error)}") from None


def is_url(source):
    return bool(re.match(r"[\w+.-]+://", source))


def stem(source):
    """The name of the archive at a path or URL without its ending: of a URL the last part of its path, decoded."""
    if is_url(source):
        path = re.split("[?#]", source.split("://", 1)[1])[0].rstrip("/")
        last = urllib.parse.unquote_to_bytes(path.rpartition("/")[2] if "/" in path else "")
    else:
        last = os.fsencode(source)
    name = re.sub(rb"\.(tar(\.\w+)?|t[gbx]z|zip)$", b"", os.path.basename(os.path.normpath(last)))
    return "tree" if name in (b"", b".", b"..") else os.fsdecode(name)


def named_tree(source, sha256, limit, bar):
    """(name, Tree, where it came from as entries of the manifest) of a folder, a tarball or zip, or the URL of one.
    sha256 (hex): what the tarball or zip must hash to, or ""."""
    origin = {"origin": "source", "url": None, "sha256": None}
    if os.path.isdir(source):
        name = os.path.basename(os.path.realpath(source)) or "tree"
        return name_of(name), rooted(read_folder(source, limit), name, folder=True), origin
    if is_url(source):
        file, label = fetch(source, limit, bar), shown(source)
        origin["url"] = recorded(source)
    else:
        file, label = open_source(source, limit), source
    with file:
        try:
            if sha256:
                check_hash(file, sha256, label)
            origin["sha256"] = sha256_of(file)
        except OSError as error:  # of the disk that it is on
            raise UserError(f"cannot read the source {label}: {error.strerror}") from None
        return name_of(stem(source)), rooted(read_archive(file, limit, label), stem(source)), origin


def release_tree(version, downloads, limit, bar):
    """The same of a release. Raises Unreachable if kernel.org cannot be reached."""
    file, url = release(version, downloads, limit, bar)
    with file:
        origin = {"origin": "kernel.org", "url": url, "sha256": sha256_of(file)}
        return f"linux-{version}", rooted(read_archive(file, limit, f"linux-{version}.tar.gz"), "linux"), origin


def stand_in_tree(limit):
    """The same of the kernel's headers on this machine, or None if there are none."""
    if not any(STAND_IN.rglob("*.h")):
        return None
    return ("linux-headers", rooted(read_folder(STAND_IN, limit), "linux", folder=True),
            {"origin": "stand-in", "url": None, "sha256": None})
