"""What all scripts share, on the systems and file systems, and with the outputs, that people have."""
import ctypes
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
from conftest import ROOT

import common
from common import UserError


def python(code, *words, cwd, **options):
    """Runs Python code in a process of its own; returns the finished process, output as bytes."""
    return subprocess.run([sys.executable, "-c", code, *map(str, words)], cwd=cwd, capture_output=True, timeout=300,
                          **options)


WINDOWS = f"""
import os, runpy, signal, sys
sys.path.insert(0, {str(ROOT)!r})
sys.modules["fcntl"] = sys.modules["resource"] = sys.modules["termios"] = None
del os.sysconf, os.getuid, signal.SIGHUP
def files_only(path, *more, open=os.open, **options):
    if os.path.isdir(path):
        raise PermissionError(13, "Permission denied", path)
    return open(path, *more, **options)
os.open = files_only
for words in sys.argv[1:]:
    sys.argv = words.split()
    try:
        runpy.run_path(os.path.join({str(ROOT)!r}, sys.argv[0]), run_name="__main__")
    except SystemExit as end:
        print("ended with", end.code, *sys.argv)
"""


def test_without_what_windows_lacks(learned, tree):
    """Every script, start to end, in one process that has no fcntl, sysconf, SIGHUP and opens no folders."""
    scripts = [f"prepare.py --source {tree} --vocab_size 700 --out data/again",
               "train.py configs/tiny.py --data data/again --max_steps 2 --out out/again", "sample.py --model out/again",
               "extract.py --model out/again --check --data data/again", "verify.py --model out/again --data data/again"]
    done = python(WINDOWS, *scripts, cwd=learned)
    ended = [line.split()[2] for line in done.stdout.decode().splitlines() if line.startswith("ended with")]
    assert ended == ["0", "0", "0", "1", "0"], done.stdout.decode() + done.stderr.decode()
    assert b"Traceback" not in done.stderr


def test_memory(monkeypatch):
    with open("/proc/meminfo") as file:
        assert common.memory_size() == pytest.approx(1024 * int(file.readline().split()[1]), rel=0.01)
    monkeypatch.delattr(os, "sysconf")
    assert common.memory_size() is None

    def answer(status):
        assert status[0] == ctypes.sizeof(status) == 64
        status[1] = 3 * 2**30
        return 1
    monkeypatch.setattr(ctypes, "windll", SimpleNamespace(kernel32=SimpleNamespace(GlobalMemoryStatusEx=answer)),
                        raising=False)
    assert common.memory_size() == 3 * 2**30


def test_lock(tmp_path):
    """Kept from others while it is held, and left when its process is killed."""
    hold = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import common, pathlib\n" \
           "held = common.lock(pathlib.Path('run')); print('held', flush=True); sys.stdin.read()"
    holder = subprocess.Popen([sys.executable, "-c", hold], cwd=tmp_path, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert holder.stdout.readline() == b"held\n"
    with pytest.raises(UserError, match="another run is writing"):
        common.lock(tmp_path / "run")
    holder.kill()
    holder.communicate()
    (tmp_path / "run/.part.left").touch()
    common.lock(tmp_path / "run").close()
    assert os.listdir(tmp_path / "run") == [".lock"]
