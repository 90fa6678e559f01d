"""Files put where a model's paths say: below one folder, through no link, and read back before they count as there.

A model and its manifest are anybody's, and so may be what stands in the folder already. Links, folders, pipes and
devices in the way are left as they are, and the file is refused.
"""
import collections
import contextlib
import hashlib
import os
import stat
from pathlib import Path

from memory.files import write_file
from memory.output import UserError, progress, warn_once
from memory.windows import unquote


def safe_path(folder, path):
    """Where a quoted path is to stand below `folder`, a Path; None if it names no place there."""
    name = unquote(path)
    parts = name.split(b"/")
    if b"\0" in name or len(name) > 4000 or any(part in (b"", b".", b"..") or len(part) > 255 for part in parts):
        return None
    if os.name == "nt" and (b"\\" in name or b":" in name):  # which separate there too, or name a drive
        return None
    return Path(os.fsdecode(os.path.join(os.fsencode(folder), *parts)))


def obstacle(folder, target):
    """What keeps a regular file from standing at the Path `target` below `folder`, in words, or ""."""
    below = [place for place in (target, *target.parents) if Path(folder) in place.parents]
    for place in reversed(below):
        try:
            mode = os.lstat(place).st_mode
        except FileNotFoundError:
            break
        if not (stat.S_ISREG if place == target else stat.S_ISDIR)(mode):
            kind = {stat.S_IFLNK: "a link", stat.S_IFDIR: "a folder", stat.S_IFREG: "a file"}.get(stat.S_IFMT(mode))
            return f"{place} is {kind or 'a pipe or a device'}"
    return ""


def held(folder, path, size, sha256):
    """The bytes of the regular file that stands for a quoted path below `folder`; None if there is none of this size
    and hash."""
    target = safe_path(folder, path)
    try:
        if not target or obstacle(folder, target) or os.lstat(target).st_size != size:
            return None
        data = target.read_bytes()
    except OSError:
        return None
    return data if hashlib.sha256(data).hexdigest() == sha256 else None


def put(folder, path, data, executable):
    """Writes the bytes of a quoted path below `folder`. Returns what kept them from it, in words, or ""."""
    target = safe_path(folder, path)
    try:
        if reason := obstacle(folder, target) if target else f"it names no place in {folder}":
            return reason
        write_file(target, data)
    except (UserError, OSError) as error:
        return str(error)
    if executable:
        try:
            mode = target.stat().st_mode
            target.chmod(mode | (mode & 0o444) >> 2)  # for all who may read it, as the umask leaves that
        except OSError as error:
            warn_once(f"this file system keeps no executable bits ({error.strerror})")
    return ""


def unpack(folder, texts, executable=()):
    """Writes {quoted path: bytes} below `folder`, and reads all back. executable: the paths of those that are. Returns
    {path: why it is not there as it should be, in words}. Raises UserError if the folder cannot be made."""
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write in {folder}: {error.strerror}") from None
    refused, same, executable = {}, collections.defaultdict(list), set(executable)
    for path, data in progress(texts.items(), total=len(texts), desc="writing", unit=" files"):
        if reason := put(folder, path, data, path in executable):
            refused[path] = reason
    for path in progress([path for path in texts if path not in refused], desc="reading back", unit=" files"):
        if held(folder, path, len(texts[path]), hashlib.sha256(texts[path]).hexdigest()) is None:
            refused[path] = "it does not read as it was written"
        with contextlib.suppress(OSError):
            status = os.lstat(safe_path(folder, path))
            same[status.st_dev, status.st_ino].append(path)
    for paths in same.values():  # a disk may ignore case, or how a letter is composed
        for path in paths if len(paths) > 1 else ():
            refused[path] = f"to this disk it is the same file as {next(other for other in paths if other != path)}"
    return refused
