"""Which code and which packages a run computes with."""
import functools
import hashlib
import os
import re
import subprocess
from importlib import metadata

from memory.files import json_digest
from memory.licences import recognize
from memory.settings import ROOT

SCRIPTS = ("*.py", "memory/*.py")
CODE = (*SCRIPTS, "configs/*.py", "requirements.txt", "LICENSE")
REPORT = "docs/recipe.md"
# Git alone: no repository that a hook names, no configuration of the machine, no replaced objects, no network
GIT = {"GIT_CONFIG_NOSYSTEM": "1", "GIT_CONFIG_GLOBAL": os.devnull, "GIT_NO_REPLACE_OBJECTS": "1",
       "GIT_ALLOW_PROTOCOL": ""}


def _matches(path, patterns):
    """Whether one of the patterns, as of pathlib's glob, finds a path."""
    return any(re.fullmatch(re.escape(pattern).replace(r"\*", "[^/]*"), path) for pattern in patterns)


def _sha256(data):
    """SHA-256 (hex) of a text, bytes, with LF at the line ends, where git may have put CRLF."""
    return hashlib.sha256(data.replace(b"\r\n", b"\n")).hexdigest()


def files_here(patterns=CODE):
    """{path: SHA-256 (hex) of its text} of the files below the scripts' folder, by default of all code."""
    return {path.relative_to(ROOT).as_posix(): _sha256(path.read_bytes()) for pattern in patterns
            for path in sorted(ROOT.glob(pattern)) if path.is_file()}


@functools.cache
def at_commit(commit, patterns=CODE):
    """The same of a commit, from the contents as git keeps them; {} if git does not know the commit here."""
    if not re.fullmatch(r"[0-9a-f]{40,64}", commit or ""):
        return {}
    if _git("cat-file", "-t", commit) != b"commit\n":  # a folder has contents too
        return {}
    listed = os.fsdecode(_git("ls-tree", "-r", "-z", "--name-only", commit)).split("\0")
    paths = [path for path in listed if _matches(path, patterns) and "\n" not in path]
    asked = "".join(f"{commit}:{path}\n" for path in paths)
    found, packed = {}, _git("cat-file", "--batch", "--follow-symlinks", asked=os.fsencode(asked))
    for path in paths:
        head, _, packed = packed.partition(b"\n")
        if not head or head.endswith(b" missing"):  # a clone may have the names alone
            return {}
        *_, kind, size = head.split()
        if kind == b"blob":  # else a link that leads out of the tree, or nowhere
            found[path] = _sha256(packed[:int(size)])
        packed = packed[int(size) + 1:]
    return found


@functools.cache
def code_digest():
    """SHA-256 (hex) over the names and contents of all scripts and modules."""
    return digest_of_code(files_here())


def digest_of_code(files):
    """The same, of the {path: SHA-256 (hex)} that a record of a code has, which lists other files too."""
    return json_digest({path: sha256 for path, sha256 in files.items() if _matches(path, SCRIPTS)})


def _git(*words, asked=b""):
    """What git prints about the scripts' folder, bytes; none if it does not know, or is not there."""
    surroundings = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    try:
        done = subprocess.run(["git", "-C", ROOT, *words], input=asked, capture_output=True, timeout=30,
                              env=surroundings | GIT)
    except (OSError, ValueError, subprocess.SubprocessError):
        return b""
    return done.stdout if done.returncode == 0 else b""


def describe_code():
    """The code as JSON holds it: the SHA-256 of each file, its licence, the commit, the files that are not as it has
    them, and the packages installed. The folder must be a checkout of its own, or there is no commit."""
    ours = _git("rev-parse", "--show-prefix") == b"\n"
    files, commit = files_here(), ours and _git("rev-parse", "HEAD").decode().strip() or None
    changed = sorted({path for path, _ in files.items() ^ at_commit(commit).items()}) if commit else []
    packages = re.findall(r"^[\w-]+", _read("requirements.txt").decode(), re.M)
    return {"commit": commit, "changed_since": changed, "licence": recognize(_read("LICENSE")), "files": files,
            "report": files_here((REPORT,)), "packages": {name: metadata.version(name) for name in packages}}


def _read(name):
    return (ROOT / name).read_bytes() if (ROOT / name).is_file() else b""
