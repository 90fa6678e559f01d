"""Which code a run computes with: git's answer, whatever surrounds it, for the set of files and each of them."""
import hashlib
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from conftest import ROOT

from memory import versions
from memory.files import json_digest

FILES = {"train.py": b"import memory\n", "memory/a.py": b"a = 1\nb = 2\n", "configs/c.py": b"x = 1\n",
         "requirements.txt": b"numpy>=1\n", "LICENSE": (ROOT / "LICENSE").read_bytes(), "docs/recipe.md": b"# How\n"}
CODE = FILES.keys() - {"docs/recipe.md"}


def git(folder, *words):
    env = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    done = subprocess.run(
        ["git", "-c", "user.name=A", "-c", "user.email=a@example.org", "-c", "protocol.file.allow=always", *words],
        cwd=folder, env=env, capture_output=True, check=True)
    return done.stdout.decode().strip()


def write(folder, files):
    for path, data in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)


def commit(folder, *words):
    git(folder, "add", "-A")
    git(folder, "commit", "-qm", "x", *words)
    return git(folder, "rev-parse", "HEAD")


def sha256(data):
    return hashlib.sha256(data).hexdigest()


@pytest.fixture
def at(monkeypatch):
    """Makes a folder that of the scripts."""
    def at(folder):
        monkeypatch.setattr(versions, "ROOT", Path(folder))
        for cached in (versions.at_commit, versions.code_digest):
            cached.cache_clear()
        return Path(folder)
    yield at
    for cached in (versions.at_commit, versions.code_digest):
        cached.cache_clear()


@pytest.fixture(params=["sha1", "sha256"])
def code(request, at, tmp_path):
    """(folder, commit) of a checkout of FILES that is the scripts' folder."""
    git(tmp_path, "init", "-q", f"--object-format={request.param}", "code")
    write(tmp_path / "code", FILES)
    return at(tmp_path / "code"), commit(tmp_path / "code")


def test_a_checkout_as_it_is(code):
    folder, head = code
    record = versions.describe_code()
    assert (record["commit"], record["changed_since"], record["licence"]) == (head, [], "MIT")
    assert record["files"] == versions.at_commit(head) == {path: sha256(FILES[path]) for path in CODE}
    assert record["report"] == versions.at_commit(head, (versions.REPORT,)) == {"docs/recipe.md": sha256(b"# How\n")}
    digest = json_digest({path: sha256(FILES[path]) for path in ("train.py", "memory/a.py")})
    assert versions.code_digest() == versions.digest_of_code(record["files"]) == digest
    less = {path: found for path, found in record["files"].items() if path != "memory/a.py"}
    assert less.keys() != versions.at_commit(head).keys(), "a record without a module is another set"
    for other in ("0" * len(head), "HEAD", "", None, head[:39], "--help"):
        assert versions.at_commit(other) == {}


CHANGES = {
    "another text": (lambda f: write(f, {"memory/a.py": b"a = 2\n"}), ["memory/a.py"]),
    "a file deleted": (lambda f: (f / "memory/a.py").unlink(), ["memory/a.py"]),
    "a folder deleted": (lambda f: shutil.rmtree(f / "configs"), ["configs/c.py"]),
    "an untracked module": (lambda f: write(f, {"memory/new.py": b""}), ["memory/new.py"]),
    "a module that git ignores": (
        lambda f: write(f, {"memory/new.py": b"", ".gitignore": b"new.py"}), ["memory/new.py"]),
    "a staged module": (lambda f: (write(f, {"new.py": b""}), git(f, "add", "-A")), ["new.py"]),
    "a change that git is told to overlook": (
        lambda f: (git(f, "update-index", "--assume-unchanged", "train.py"), write(f, {"train.py": b""})),
        ["train.py"]),
    "a module that is now a link elsewhere": (
        lambda f: ((f / "memory/a.py").unlink(), (f / "memory/a.py").symlink_to("/etc/hostname")), ["memory/a.py"]),
    "a link that leads nowhere": (
        lambda f: ((f / "memory/a.py").unlink(), (f / "memory/a.py").symlink_to("nowhere")), ["memory/a.py"]),
    "CRLF": (lambda f: write(f, {path: FILES[path].replace(b"\n", b"\r\n") for path in CODE}), []),
    "no code": (lambda f: write(f, {"notes.txt": b"", "tests/test_x.py": b"", "memory/deep/x.py": b""}), []),
    "a mode": (lambda f: (f / "train.py").chmod(0o755), [])}


@pytest.mark.parametrize("what", CHANGES)
def test_what_is_not_as_the_commit_has_it(code, what):
    folder, head = code
    change, changed = CHANGES[what]
    change(folder)
    record = versions.describe_code()
    assert (record["commit"], record["changed_since"]) == (head, changed)
    assert versions.at_commit(head) == {path: sha256(FILES[path]) for path in CODE}, "the commit stays what it is"


def test_a_hooks_surroundings(code, tmp_path, monkeypatch):
    """As git sets them for a hook, or someone who works on another repository."""
    folder, head = code
    git(tmp_path, "init", "-q", "other")
    write(tmp_path / "other", {"train.py": b"other"})
    assert commit(tmp_path / "other") != head
    config = tmp_path / "config"
    config.write_text("[core]\n\tautocrlf = true\n\tquotePath = true\n[safe]\n\tdirectory = /nowhere\n")
    for name, value in {
            "GIT_DIR": tmp_path / "other/.git", "GIT_WORK_TREE": tmp_path / "other", "GIT_PREFIX": "memory/",
            "GIT_INDEX_FILE": tmp_path / "other/.git/index", "GIT_OBJECT_DIRECTORY": tmp_path / "other/.git/objects",
            "GIT_CONFIG_GLOBAL": config, "GIT_CONFIG_COUNT": "1", "GIT_CONFIG_KEY_0": "core.bare",
            "GIT_CONFIG_VALUE_0": "true", "GIT_NAMESPACE": "x", "GIT_TRACE": "1"}.items():
        monkeypatch.setenv(name, str(value))
    record = versions.describe_code()
    assert (record["commit"], record["changed_since"]) == (head, [])
    assert versions.at_commit(head) == record["files"]


def test_attributes_and_filters_change_nothing(code):
    """Neither those of line ends nor those of `git archive`, nor a filter, nor an object in another's place."""
    folder, _ = code
    write(folder, {".gitattributes": b"*.py text eol=crlf export-subst ident filter=x\nmemory/a.py export-ignore\n",
                   "train.py": b"# $Format:%H$ $Id$\n"})
    git(folder, "config", "filter.x.smudge", "cat; echo more")
    head = commit(folder)
    git(folder, "config", "core.autocrlf", "true")
    git(folder, "rm", "-rq", "--cached", ".")
    git(folder, "reset", "-q", "--hard")
    assert b"\r\n" in (folder / "configs/c.py").read_bytes() and b"more" in (folder / "configs/c.py").read_bytes()
    assert versions.at_commit(head)["train.py"] == sha256(b"# $Format:%H$ $Id$\n")
    assert versions.at_commit(head)["memory/a.py"] == sha256(FILES["memory/a.py"])
    write(folder, FILES | {"train.py": b"# $Format:%H$ $Id$\r\n"})
    other = git(folder, "hash-object", "-w", "--no-filters", "docs/recipe.md")
    git(folder, "replace", git(folder, "rev-parse", "HEAD:configs/c.py"), other)
    assert versions.describe_code()["changed_since"] == []


def test_a_linked_module(code):
    """What it leads to counts, in the tree; outside, no commit has it."""
    folder, _ = code
    write(folder, {"lib/real.py": b"y = 1\n"})
    (folder / "memory/linked.py").symlink_to("../lib/real.py")
    (folder / "memory/system.py").symlink_to("/etc/hostname")
    (folder / "memory/nowhere.py").symlink_to("nothing")
    head = commit(folder)
    assert versions.describe_code()["changed_since"] == ["memory/system.py"] * Path("/etc/hostname").is_file()
    assert versions.at_commit(head)["memory/linked.py"] == sha256(b"y = 1\n")
    write(folder, {"lib/real.py": b"y = 2\n"})
    assert "memory/linked.py" in versions.describe_code()["changed_since"]


def test_odd_names(code):
    folder, _ = code
    write(folder, {"memory/ä b\t.py": b"1\n", "memory/\"q\".py": b"2\n"})
    (folder / os.fsdecode(b"memory/\xff.py")).write_bytes(b"3\n")
    head = commit(folder)
    assert versions.describe_code()["changed_since"] == [] and len(versions.at_commit(head)) == len(CODE) + 3


def test_clones_and_where_git_does_not_know(code, at, tmp_path):
    folder, first = code
    write(folder, {"train.py": b"2\n"})
    second = commit(folder)
    git(tmp_path, "clone", "-q", "--depth=1", folder.as_uri(), "shallow")
    git(tmp_path, "init", "-q", f"--object-format={'sha1' if len(first) == 40 else 'sha256'}", "larger")
    git(tmp_path / "larger", "submodule", "add", "-q", str(folder), "sub")
    commit(tmp_path / "larger")
    for clone in ("shallow", "larger/sub"):
        at(tmp_path / clone)
        record = versions.describe_code()
        assert (record["commit"], record["changed_since"]) == (second, [])
        assert bool(versions.at_commit(first)) == (clone == "larger/sub")
    write(tmp_path / "larger/below", FILES)
    commit(tmp_path / "larger")
    write(tmp_path / "none", FILES)
    git(tmp_path, "init", "-q", "unborn")
    write(tmp_path / "unborn", FILES)
    for place in ("larger/below", "none", "unborn"):
        at(tmp_path / place)
        record = versions.describe_code()
        assert (record["commit"], record["changed_since"]) == (None, []) and len(record["files"]) == len(CODE)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root gives files away")
def test_only_a_commit_is_one(code):
    """A folder's hash names contents too, and no history."""
    folder, commit = code
    assert versions.at_commit(commit) and not versions.at_commit(git(folder, "rev-parse", f"{commit}^{{tree}}"))


def test_a_folder_that_git_does_not_trust(code):
    folder, head = code
    os.chown(folder, 12345, 12345)
    record = versions.describe_code()
    assert (record["commit"], record["changed_since"]) == (None, []) and record["files"].keys() == CODE
    assert versions.at_commit(head) == {}


def test_a_clone_that_has_the_names_alone(code, at, tmp_path):
    """Git would fetch what is missing; nothing may leave or come here for that."""
    folder, head = code
    git(folder, "config", "uploadpack.allowFilter", "true")
    git(tmp_path, "clone", "-q", "--no-checkout", "--filter=blob:none", folder.as_uri(), "partial")
    write(at(tmp_path / "partial"), FILES)
    assert versions.at_commit(head) == {}
    assert versions.describe_code()["changed_since"] == sorted(CODE)
