"""Which code and which packages a run computes with."""
import functools
import hashlib
import re
import subprocess
from importlib import metadata

from memory.files import json_digest
from memory.licences import recognize
from memory.settings import ROOT
from memory.swhid import git_hash

SCRIPTS = ("*.py", "memory/*.py")
OTHERS = ("configs/*.py", "requirements.txt", "LICENSE")
REPORT = "docs/recipe.md"


def _read(*patterns):
    """{path below the scripts' folder: bytes} of the files there."""
    return {path.relative_to(ROOT).as_posix(): path.read_bytes() for pattern in patterns
            for path in sorted(ROOT.glob(pattern)) if path.is_file()}


@functools.cache
def code_digest():
    """SHA-256 (hex) over the names and contents of all scripts and modules."""
    return json_digest({path: hashlib.sha256(data).hexdigest() for path, data in _read(*SCRIPTS).items()})


def _git(*words):
    """What git prints about the scripts' folder, bytes; none without git, or if it is no checkout of its own."""
    try:
        done = subprocess.run(["git", "-C", ROOT, *words], capture_output=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return b""
    return done.stdout if done.returncode == 0 else b""


def _commit(files):
    """(the commit checked out, or None; those of the files, {path: bytes}, that are not as it has them)."""
    if _git("rev-parse", "--show-prefix") != b"\n":
        return None, []
    commit = _git("rev-parse", "HEAD").decode().strip()
    listed = re.findall(r"^\d+ blob (\w+)\t(.*)$", _git("ls-tree", "-r", "HEAD").decode(errors="replace"), re.M)
    there = {path: sha1 for sha1, path in listed}
    return commit or None, sorted(path for path, data in files.items() if there.get(path) != git_hash("blob", data))


def at_commit(commit, path):
    """SHA-256 (hex) of a file as a commit has it, or "" if that cannot be had."""
    data = _git("cat-file", "blob", f"{commit}:{path}") if re.fullmatch(r"[0-9a-f]{40,64}", commit or "") else b""
    return hashlib.sha256(data).hexdigest() if data else ""


def describe_code():
    """The code as JSON holds it: the SHA-256 of each file, its licence, the commit, and the packages installed."""
    files, report = _read(*SCRIPTS, *OTHERS), _read(REPORT)
    commit, changed = _commit(files)
    packages = re.findall(r"^[\w-]+", files.get("requirements.txt", b"").decode(), re.M)
    return {"commit": commit, "changed_since": changed, "licence": recognize(files.get("LICENSE", b"")),
            "files": {path: hashlib.sha256(data).hexdigest() for path, data in files.items()},
            "report": {path: hashlib.sha256(data).hexdigest() for path, data in report.items()},
            "packages": {name: metadata.version(name) for name in packages}}
