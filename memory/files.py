"""Files: written under a temporary name, synced and renamed, so that a reader sees the old file or the new one, never
half of one."""
import errno
import hashlib
import json
import os
import re
import secrets
import stat
import sys
from pathlib import Path

from filelock import lock_descriptor

from memory.output import ReaderGone, UserError, emit, warn_once
from memory.settings import command

REFUSED = {errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOLCK, errno.ENOTTY, errno.EACCES,
           errno.EPERM, errno.EBADF}  # how file systems say that they cannot lock or sync


def sync(file):
    """Waits until what an open file or folder (a descriptor) holds is on the disk; one warning if the file system
    knows no such thing. Raises OSError if the disk fails."""
    try:
        os.fsync(file)
    except OSError as error:
        if error.errno not in REFUSED:
            raise
        warn_once(f"this file system cannot sync ({error.strerror}): a power cut may lose what was just written")


def sync_folder(folder):
    """The same for the names in a folder. Windows keeps them by itself, and opens no folders."""
    if os.name == "nt":
        return
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError as error:
        warn_once(f"this file system opens no folder to sync it ({error.strerror}): a power cut may lose what was "
                  f"just written")
        return
    try:
        sync(descriptor)
    finally:
        os.close(descriptor)


def refuse_irregular(path):
    """Raises OSError if a pipe, a device or a folder stands at `path`: to read one could take for ever."""
    if os.path.exists(path) and not os.path.isfile(path):
        raise OSError(errno.EEXIST, f"{Path(path).name} is no regular file")


def write_through(path, parts):
    """Writes an iterable of bytes into what stands at `path`, if that is no regular file: a device, a pipe, or whatever
    standard output and error go to. Returns whether it did. Raises OSError."""
    try:
        there = os.stat(path)
    except FileNotFoundError:
        return False
    for number in (1, 2):  # a regular file may be one of these too, and goes on after what was printed
        try:
            same = os.path.samestat(there, os.fstat(number))
        except OSError:
            continue
        if same:
            sys.stdout.flush()
            sys.stderr.flush()
            with open(os.dup(number), "wb") as file:
                file.writelines(parts)
            return True
    if stat.S_ISREG(there.st_mode):
        return False
    with open(path, "wb") as file:  # which says so if it is a folder
        file.writelines(parts)
    return True


def write_file(path, data):
    """Writes `data`, bytes or an iterable of them, to `path` in a folder of ours, whole or not at all. A link there is
    replaced by the file, and what it names is not touched. Raises UserError if the disk refuses, or a device, a pipe or
    a folder stands there."""
    path, parts = Path(path), [data] if isinstance(data, bytes) else data
    part = path.with_name(f".part.{secrets.token_hex(8)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and not path.is_symlink() and not path.is_file():  # root may replace even a device
            raise OSError(errno.EEXIST, "it is no regular file")
        try:
            with open(part, "xb") as file:  # made with the mode that the umask leaves
                file.writelines(parts)
                file.flush()
                sync(file.fileno())
            os.replace(part, path)
        except BaseException:
            part.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)
    except OSError as error:
        size = f" ({len(data):,} bytes)" if isinstance(data, bytes) else ""
        raise UserError(f"cannot write {path}{size}: {error.strerror}") from None


STDOUT = ("-", "/dev/stdout")


def write_result(path, data):
    """Writes `data`, bytes, to where a user wants it: "-" and its other name are standard output, what is no regular
    file is written through, and a link stays, and the file that it names is written. Raises UserError if that cannot
    be."""
    if path in STDOUT:
        return emit(data + b"\n")
    try:
        through = write_through(path, [data])
    except BrokenPipeError:
        raise ReaderGone from None
    except OSError as error:
        raise UserError(f"cannot write {path} ({len(data):,} bytes): {error.strerror}") from None
    if not through:
        write_file(os.path.realpath(path), data)


def remove(path):
    """Deletes a file if it is there. Raises UserError if that cannot be."""
    try:
        Path(path).unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"cannot replace {path}: {error.strerror}") from None


MADE = {"prepared tree": ("data/*/manifest.json", ["prepare.py"]),
        "model": ("out/*/model.safetensors", ["train.py", "configs/quick.py"])}


def newest(what):
    """The folder of the newest "prepared tree" or "model", by the time of its file. A copy may have a new time: so the
    folder is named on stderr. Raises UserError, naming how to make one, if there is none."""
    pattern, script = MADE[what]
    found = sorted(Path().glob(pattern), key=lambda path: path.stat().st_mtime)
    if not found:
        raise UserError(f"there is no {what} here yet: run `{command(*script)}` first")
    folder = found[-1].parent
    if os.environ.get("RANK", "0") == "0":  # of several processes, the first talks
        took = f"the newest of {len(found)}" if len(found) > 1 else "the only one"
        print(f"{what.split()[-1]}: {folder}, {took}", file=sys.stderr)
    return folder


ODD = "\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff\ufffe\uffff"  # what is no text of one line


def name_of(path):
    """The last part of a path, str or bytes, as a record may hold it: one line of UTF-8. Other bytes and control
    characters become %XX, and then so does `%`."""
    name = os.path.basename(os.path.normpath(os.fsencode(path))).decode("utf-8", "surrogateescape")
    if not re.search(f"[{ODD}]", name):
        return name
    return re.sub(f"[{ODD}%]", lambda odd: "".join(
        f"%{byte:02X}" for byte in odd[0].encode("utf-8", "surrogateescape")), name)


def refuse_pipes(folder):
    """Raises UserError if the folder holds a pipe, a device or a link to one or to nothing, which may never end to be
    read; OSError if there is no folder."""
    for path in sorted(Path(folder).iterdir()):
        if not path.is_file() and not path.is_dir():
            raise UserError(f"{str(path)!r} is no file that can be read, but a pipe, a device or a broken link: delete "
                            f"it")


def digest_of(path):
    """SHA-256 (hex) of a file. Raises OSError."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def json_digest(value):
    """SHA-256 (hex) of what a dict holds, in whatever order it is written."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def files_digest(hashes):
    """SHA-256 (hex) of the hashes of files, {path: SHA-256 (hex)}: what
    `find DIR -type f | LC_ALL=C sort | xargs sha256sum | sha256sum` prints, for names without spaces."""
    lines = "".join(f"{hashes[path]}  {path}\n" for path in sorted(hashes))
    return hashlib.sha256(lines.encode()).hexdigest()


def json_bytes(value):
    """A dict as JSON with its digest."""
    return json.dumps(value | {"digest": json_digest(value)}, indent=1).encode()


def write_json(path, value):
    """Writes a dict as JSON with its digest. Raises UserError if the disk refuses."""
    write_file(path, json_bytes(value))


def read_json(path):
    """The dict that write_json wrote. Raises OSError if there is none, ValueError if it is damaged."""
    try:
        value = json.loads(Path(path).read_bytes())
        if not isinstance(value, dict) or "digest" not in value:
            raise ValueError("it has no digest")
        if value.pop("digest") != json_digest(value):
            raise ValueError("its digest does not fit its content")
    except RecursionError:
        raise ValueError("it is nested too deep") from None
    return value


def lock(folder):
    """Makes `folder`, keeps every other process out for as long as the file returned is open, or this process lives,
    and clears away what a killed one left half-written. Raises UserError if another has it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        refuse_irregular(folder / ".lock")
        file = open(folder / ".lock", "a")
        try:
            if not lock_descriptor(file.fileno(), blocking=False):
                raise UserError(f"another run is writing {folder}; wait for it, or name another --out")
        except OSError as error:
            if error.errno not in REFUSED:
                raise
            warn_once(f"this file system cannot lock ({error.strerror}): start no second run in {folder} meanwhile")
        for left in folder.glob(".part.*"):  # by a process that was killed while it wrote
            if not left.is_dir():
                left.unlink()
    except OSError as error:
        raise UserError(f"cannot write in {folder}: {error.strerror}") from None
    return file
