"""Which code and which packages a run computes with."""
import functools
import hashlib
import io
import re
import subprocess
import tarfile
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
    return digest_of_code({path: hashlib.sha256(data).hexdigest() for path, data in _read(*SCRIPTS).items()})


def digest_of_code(files):
    """The same, of the {path: SHA-256 (hex)} that a record of a code has, which lists other files too."""
    return json_digest({path: sha256 for path, sha256 in files.items() if re.fullmatch(r"(memory/)?[^/]+\.py", path)})


def _git(*words):
    """What git prints about the scripts' folder, bytes; none without git, or if it is no checkout of its own."""
    try:
        done = subprocess.run(["git", "-C", ROOT, *words], capture_output=True, timeout=30)
    except (OSError, ValueError, subprocess.SubprocessError):
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


@functools.cache
def at_commit(commit):
    """{path: SHA-256 (hex)} of the files that a commit has; {} if git does not know it here."""
    packed = _git("archive", "--format=tar", commit) if re.fullmatch(r"[0-9a-f]{40,64}", commit or "") else b""
    with tarfile.open(fileobj=io.BytesIO(packed or tarfile.NUL * tarfile.RECORDSIZE)) as tar:
        return {member.name: hashlib.sha256(tar.extractfile(member).read()).hexdigest()
                for member in tar if member.isreg()}


def describe_code():
    """The code as JSON holds it: the SHA-256 of each file, its licence, the commit, and the packages installed."""
    files, report = _read(*SCRIPTS, *OTHERS), _read(REPORT)
    commit, changed = _commit(files)
    packages = re.findall(r"^[\w-]+", files.get("requirements.txt", b"").decode(), re.M)
    return {"commit": commit, "changed_since": changed, "licence": recognize(files.get("LICENSE", b"")),
            "files": {path: hashlib.sha256(data).hexdigest() for path, data in files.items()},
            "report": {path: hashlib.sha256(data).hexdigest() for path, data in report.items()},
            "packages": {name: metadata.version(name) for name in packages}}
