"""What all scripts share, on the systems and file systems, and with the outputs, that people have."""
import ctypes
import dataclasses
import errno
import fcntl
import importlib
import inspect
import io
import os
import pty
import re
import runpy
import shlex
import signal
import stat
import subprocess
import sys
import termios
from types import SimpleNamespace

import pytest
from conftest import ROOT

from memory import device, files, output, settings
from memory.output import UserError, percent


def python(code, *words, cwd, **options):
    """Runs Python code in a process of its own; returns the finished process, output as bytes."""
    return subprocess.run([sys.executable, "-c", code, *map(str, words)], cwd=cwd, capture_output=True, timeout=300,
                          **options)


WINDOWS = f"""
import os, runpy, signal, sys
sys.path.insert(0, {str(ROOT)!r})
sys.modules["fcntl"] = sys.modules["resource"] = sys.modules["termios"] = None
del os.sysconf, signal.SIGHUP
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


def test_without_what_windows_lacks(work, tree, tmp_path):
    """Every script, start to end, in one process that has no fcntl, sysconf, SIGHUP and opens no folders."""
    scripts = [f"prepare.py --source {tree} --vocab_size 700", f"train.py {work}/configs/tiny.py --max_steps 2",
               "sample.py", "extract.py --check", "recite.py", "verify.py"]
    done = python(WINDOWS, *scripts, cwd=tmp_path)
    ended = [line.split()[2] for line in done.stdout.splitlines() if line.startswith(b"ended with")]
    assert ended[1:] == [b"1", b"0", b"1", b"0", b"0"], done.stdout + done.stderr
    assert b"Traceback" not in done.stderr


def test_percent():
    """Rounded down, but not by what binary fractions lack."""
    assert [percent(n / 100) for n in (0, 29, 57, 58, 100)] == ["0.0%", "29.0%", "57.0%", "58.0%", "100.0%"]
    assert percent(9 / 1000, 3) == "0.900%" and percent(734_414 / 734_415, 3) == "99.999%"
    assert percent(1 - 1e-9) == "99.9%"


def test_memory(monkeypatch):
    with open("/proc/meminfo") as file:
        assert device.memory_size() == pytest.approx(1024 * int(file.readline().split()[1]), rel=0.01)
    monkeypatch.delattr(os, "sysconf")
    assert device.memory_size() is None

    def answer(status):
        assert status[0] == ctypes.sizeof(status) == 64
        status[1] = 3 * 2**30
        return 1
    monkeypatch.setattr(ctypes, "windll", SimpleNamespace(kernel32=SimpleNamespace(GlobalMemoryStatusEx=answer)),
                        raising=False)
    assert device.memory_size() == 3 * 2**30


def test_lock(tmp_path):
    """Kept from others while it is held, and left when its process is killed."""
    hold = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import pathlib; from memory import files\n" \
           "held = files.lock(pathlib.Path('run')); print('held', flush=True); sys.stdin.read()"
    holder = subprocess.Popen([sys.executable, "-c", hold], cwd=tmp_path, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert holder.stdout.readline() == b"held\n"
    with pytest.raises(UserError, match="another run is writing"):
        files.lock(tmp_path / "run")
    holder.kill()
    holder.communicate()
    (tmp_path / "run/.part.left").touch()
    files.lock(tmp_path / "run").close()
    assert os.listdir(tmp_path / "run") == [".lock"]


def write_under(umask, path, data=b"x"):
    """write_file in a process of its own, with that umask; returns the file's mode."""
    code = f"import os, sys; sys.path.insert(0, {str(ROOT)!r}); from memory import files; os.umask({umask})\n" \
           "os.chmod = os.fchmod = None  # as if every chmod failed\nfiles.write_file(sys.argv[1], b'x')"
    done = python(code, path, cwd=path.parent)
    assert done.returncode == 0, done.stderr.decode()
    return path.stat().st_mode & 0o777


@pytest.mark.parametrize("umask, mode", [(0o077, 0o600), (0o002, 0o664), (0o022, 0o644)])
def test_the_umask_decides_a_files_mode(tmp_path, umask, mode):
    """Of a new file and of one that takes another's place."""
    assert write_under(umask, tmp_path / "a") == mode
    (tmp_path / "a").chmod(0o640)
    assert write_under(umask, tmp_path / "a") == mode


def test_in_a_folder_of_ours_a_link_is_replaced_and_its_file_stays(tmp_path):
    """As in the cache of a hub, where the names are links to what others use too."""
    (tmp_path / "blob").write_bytes(b"old")
    (tmp_path / "m").mkdir()
    os.link(tmp_path / "blob", tmp_path / "m/hard")
    for name, target in [("link", "../blob"), ("chain", "link"), ("nowhere", "../none"), ("device", os.devnull)]:
        (tmp_path / "m" / name).symlink_to(target)
    for path in sorted((tmp_path / "m").iterdir()):
        files.write_file(path, b"new")
        assert not path.is_symlink() and path.read_bytes() == b"new"
    assert (tmp_path / "blob").read_bytes() == b"old" and not (tmp_path / "none").exists()
    assert stat.S_ISCHR(os.stat(os.devnull).st_mode) and not list(tmp_path.rglob(".part.*"))
    (tmp_path / "m/.lock").symlink_to("../blob")
    files.lock(tmp_path / "m").close()
    assert (tmp_path / "blob").read_bytes() == b"old"


@pytest.mark.parametrize("kind", ["pipe", "folder"])
def test_in_a_folder_of_ours_nothing_else_is_replaced(tmp_path, kind):
    """Root could put a file even where a device is."""
    path = tmp_path / kind
    os.mkfifo(path) if kind == "pipe" else path.mkdir()
    with pytest.raises(UserError, match=f"cannot write {path} .*regular"):
        files.write_file(path, b"x")
    assert not path.is_file() and os.listdir(tmp_path) == [kind]


def test_a_link_that_a_user_names_stays_and_its_file_is_replaced(tmp_path):
    (tmp_path / "there").mkdir()
    for name in ("file", "not yet"):
        (tmp_path / "link").symlink_to(f"there/{name}")
        (tmp_path / "chain").symlink_to("link")
        (tmp_path / "there/file").write_bytes(b"old")
        with open(tmp_path / "there/file", "rb") as reader:
            files.write_result(tmp_path / "chain", b"new")
            assert reader.read() == b"old", "replaced whole"
        assert (tmp_path / "chain").is_symlink() and (tmp_path / "link").is_symlink()
        assert (tmp_path / "there" / name).read_bytes() == b"new" and not list(tmp_path.rglob(".part.*"))
        (tmp_path / "link").unlink()
        (tmp_path / "chain").unlink()


def test_what_is_no_regular_file_is_written_through(tmp_path, monkeypatch):
    files.write_result(os.devnull, b"x" * 100_000)
    assert stat.S_ISCHR(os.stat(os.devnull).st_mode), "also as root"
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "to the pipe").symlink_to("pipe")
    for name in ("pipe", "to the pipe"):
        reader = subprocess.Popen(["cat", tmp_path / "pipe"], stdout=subprocess.PIPE)
        files.write_result(tmp_path / name, b"through")
        assert reader.communicate()[0] == b"through" and stat.S_ISFIFO(os.stat(tmp_path / "pipe").st_mode)
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "file").touch()
    for path, said in [("/dev/full", "No space left"), (tmp_path, "directory"), (tmp_path / "loop", "symbolic links"),
                       (tmp_path / "file/below", "Not a directory"), ("/proc/self/x", "No such file"),
                       ("", "no regular file")]:
        with pytest.raises(UserError, match=said) as caught:
            files.write_result(path, b"x")
        assert "cannot write" in str(caught.value)
    assert not list(tmp_path.rglob(".part.*"))


def test_the_descriptors_own_names(tmp_path):
    """Standard output by its names, into a pipe and into a file, which keeps what was written before."""
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from memory import files\nprint('before')\n" \
           "files.write_result(sys.argv[1], b'data\\n'); print('behind')"
    (tmp_path / "link").symlink_to("/dev/stdout")
    for path in ("/dev/fd/1", "/proc/self/fd/1", tmp_path / "link", tmp_path / "log"):
        assert path == tmp_path / "log" or python(code, path, cwd=tmp_path).stdout == b"before\ndata\nbehind\n"
        with open(tmp_path / "log", "wb") as log:
            subprocess.run([sys.executable, "-c", code, path], stdout=log, check=True)
        assert (tmp_path / "log").read_bytes() == b"before\ndata\nbehind\n"


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL])
def test_file_systems_without_lock_or_sync(tmp_path, monkeypatch, capsys, number):
    """One warning of each kind, and on."""
    def refuse(*_):
        raise OSError(number, os.strerror(number))
    monkeypatch.setattr(os, "fsync", refuse)
    monkeypatch.setattr(fcntl, "flock", refuse)
    output.warn_once.cache_clear()
    for _ in range(3):
        files.lock(tmp_path / "run").close()
        files.write_file(tmp_path / "run/file", b"x")
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2 and all(os.strerror(number) in line for line in said), said
    assert (tmp_path / "run/file").read_bytes() == b"x"


def test_folders_that_cannot_be_opened_and_disks_that_fail(tmp_path, monkeypatch, capsys):
    def refuse(*_):
        raise OSError(errno.EACCES, "Permission denied")

    def fail(*_):
        raise OSError(errno.EIO, "Input/output error")
    output.warn_once.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr(os, "open", refuse)
        files.write_file(tmp_path / "file", b"x")
        files.write_file(tmp_path / "file", b"y")
    assert capsys.readouterr().err.count("\n") == 1 and (tmp_path / "file").read_bytes() == b"y"
    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(UserError, match="Input/output error"):
        files.write_file(tmp_path / "file", b"z")
    assert os.listdir(tmp_path) == ["file"] and (tmp_path / "file").read_bytes() == b"y"


NEWS = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from memory import files, output
def main():
    for i in range(3000):
        print("news", i)
        print("bar", i, file=sys.stderr)
    files.write_file("saved", repr(output.output_lost()).encode())
    return 3
output.run_script(main)
"""
RESULT = NEWS[:NEWS.index("def main")] + """
def main():
    for i in range(3000):
        output.emit(b"result")
    files.write_file("saved", b"")
output.run_script(main)
"""


def gone():
    """The writing end of a pipe whose reader is gone."""
    reader, writer = os.pipe()
    os.close(reader)
    return writer


def ended(command, cwd, stdout, stderr=subprocess.PIPE):
    """(status, stderr) of a command whose stdout and stderr are "gone", "full", "closed" or a pipe that is read."""
    closed = [number for number, stream in ((1, stdout), (2, stderr)) if stream == "closed"]
    make = {"gone": gone, "full": lambda: os.open("/dev/full", os.O_WRONLY), "closed": lambda: None}
    streams = [make[stream]() if stream in make else stream for stream in (stdout, stderr)]
    process = subprocess.Popen(command, cwd=cwd, stdout=streams[0], stderr=streams[1],
                               preexec_fn=lambda: [os.close(number) for number in closed])
    for stream in streams:
        if stream not in (None, subprocess.PIPE):
            os.close(stream)
    _, err = process.communicate(timeout=300)
    return process.returncode, (err or b"").decode()


READ = subprocess.PIPE


@pytest.mark.parametrize("stdout, stderr", [
    (READ, READ), ("gone", READ), ("full", READ), ("closed", READ), (READ, "gone"), (READ, "full"), (READ, "closed"),
    ("gone", "gone"), ("full", "full"), ("closed", "closed")])
def test_news_that_cannot_be_written(tmp_path, stdout, stderr):
    """All is done, its status is the true one, and a full disk alone is told."""
    status, err = ended([sys.executable, "-c", NEWS], tmp_path, stdout, stderr)
    assert status == 3 and (tmp_path / "saved").read_text() == str("gone" in (stdout, stderr))
    lines = [line for line in err.splitlines() if not line.startswith("bar ")]
    full = ["-c: some output is lost: No space left on device"]
    assert lines == (full if stdout == "full" and stderr == READ else [])


@pytest.mark.parametrize("stdout, status, said", [
    ("gone", 141, []), ("full", 2, ["-c: cannot write standard output: No space left on device"]),
    ("closed", 2, ["-c: cannot write standard output: Bad file descriptor"])])
def test_results_that_cannot_be_written(tmp_path, stdout, status, said):
    for stderr in (READ, "closed", "gone"):
        found, err = ended([sys.executable, "-c", RESULT], tmp_path, stdout, stderr)
        assert found == status and err.splitlines() == (said if stderr == READ else [])
    assert not (tmp_path / "saved").exists()


def test_scripts_whose_output_cannot_be_written(learned):
    sample = [sys.executable, ROOT / "sample.py", "--model=out/tiny", "--file=tiny/decoder.py"]
    assert ended(sample, learned, "gone") == (141, "")
    assert ended(sample, learned, "full") == (2, "sample.py: cannot write standard output: No space left on device\n")
    extract = [sys.executable, ROOT / "extract.py", "--model=out/tiny", "--check"]
    assert ended(extract, learned, "gone", "gone") == (0, "")


class Notebook(io.TextIOBase):
    """A notebook's stdout: text alone, no descriptor, nothing to reconfigure."""
    def __init__(self):
        self.text = ""

    def write(self, text):
        self.text += text.encode().decode()  # it goes out as JSON
        return len(text)

    def fileno(self):
        raise io.UnsupportedOperation("fileno")


def test_in_a_notebook(learned, monkeypatch):
    """Each script as `%run` starts it: output appears, bytes in pieces too, and the streams stay."""
    monkeypatch.chdir(learned)
    (learned / "configs/tiny_again.py").write_text((learned / "configs/tiny.py").read_text() + "max_steps = 2\n")
    monkeypatch.setattr(output, "NOTEBOOK", True)
    turns = [
        ("sample.py --model=out/tiny --file=tiny/odd/utf8.txt", 0, "Größe 漢字"), ("sample.py --help", 0, "--prompt"),
        ("sample.py --model=nowhere", 2, "sample.py: "), ("extract.py --model=out/tiny --check", 0, "files exact"),
        ("extract.py --model=out/tiny --list", 0, "tiny/decoder.py"),
        ("train.py configs/tiny_again.py --out='out/my run'", 1, "done,"),
        ("verify.py --model='out/my run'", 0, "equal: ")]
    for words, status, said in turns:
        streams, handlers = (Notebook(), Notebook()), [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
        monkeypatch.setattr(sys, "argv", shlex.split(words))
        with monkeypatch.context() as patch, pytest.raises(SystemExit) as end:
            patch.setattr(sys, "stdout", streams[0])
            patch.setattr(sys, "stderr", streams[1])
            runpy.run_path(str(ROOT / sys.argv[0]), run_name="__main__")
        assert end.value.code == status and said in streams[status == 2].text, (words, streams[1].text)
        assert handlers == [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
        if "try: " in streams[0].text:  # what it says can be pasted
            command = streams[0].text.split("try: ")[1].splitlines()[0]
            assert command.startswith(f"python {ROOT}/sample.py ")
            turns.append((command.removeprefix("python "), 0, "tiny/"))


def test_a_stream_that_knows_no_half_characters():
    stream = Notebook()
    out = output.Output(stream)
    for byte in "漢\n".encode() + b"\xff\n":
        out.emit(bytes([byte]))
    out.write("a\udcffb")
    assert stream.text == "漢\n\\xff\na\\udcffb" and not out.lost and not out.isatty()


@pytest.mark.parametrize("name", ["prepare", "train", "sample", "extract", "recite", "verify", "bench"])
def test_help_without_docstrings_and_without_source(name, monkeypatch):
    module = importlib.import_module(name)
    plain = settings._help(module.Settings, module.__doc__)
    fields = [field.name for field in dataclasses.fields(module.Settings)]
    assert all(f"  --{field}" in plain for field in fields) and len(plain.splitlines()) > 2 * len(fields) + 5
    assert settings._help(module.Settings, None) == plain, "as under -OO"

    def fail(_):
        raise OSError("could not get source code")
    monkeypatch.setattr(inspect, "getsource", fail)
    assert all(f"  --{field}" in settings._help(module.Settings, None) for field in fields)


def test_help_as_python_optimizes(tmp_path):
    helps = [subprocess.run([sys.executable, *words, ROOT / "prepare.py", "--help"], capture_output=True, check=True,
                            cwd=tmp_path).stdout for words in ([], ["-OO"])]
    assert helps[0] == helps[1] and b"most 65536" in helps[0]


def test_configs_from_another_folder(tmp_path, monkeypatch):
    """Those beside the scripts are found too, behind those of the working folder, and listed."""
    monkeypatch.chdir(tmp_path)
    assert settings.read_config("configs/quick.py")["train_bytes"] == 150_000
    with pytest.raises(UserError, match=re.escape(
            "there are: configs/memorize.py, configs/original.py, configs/original_stage2.py, configs/quick.py")):
        settings.read_config("quick.py")
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs/quick.py").write_text("seed = 3")
    (tmp_path / "configs/mine.py").write_text("")
    assert settings.read_config("configs/quick.py") == {"seed": 3}
    assert settings.find_configs() == [
        f"configs/{name}.py" for name in ("memorize", "mine", "original", "original_stage2", "quick")]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_config_files_with_a_byte_order_mark(tmp_path, encoding):
    (tmp_path / "c.py").write_bytes('"""Größe."""\r\nhidden_size = 32\r\ndata = "ä"\r\n'.encode(encoding))
    assert settings.read_config(tmp_path / "c.py") == {"hidden_size": 32, "data": "ä"}


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-32", "latin-1"])
def test_config_files_in_another_encoding(tmp_path, encoding):
    (tmp_path / "c.py").write_bytes('data = "ä"\n'.encode(encoding))
    with pytest.raises(UserError, match="is not a config file: [^\n]*$"):
        settings.read_config(tmp_path / "c.py")


def test_what_was_taken_is_said(tmp_path, monkeypatch, capsys):
    """Of several, the newest, also where a copy has a new time."""
    monkeypatch.chdir(tmp_path)
    for what, at, said in [("model", "out/{}/model.safetensors", "train.py configs/quick.py"),
                           ("prepared tree", "data/{}/manifest.json", "prepare.py")]:
        with pytest.raises(UserError, match=f"no {what} here yet: run `python {ROOT}/{said}` first"):
            files.newest(what)
        for i, name in enumerate(["one", "two", "my copy"]):
            path = tmp_path / at.format(name)
            path.parent.mkdir(parents=True)
            path.touch()
            os.utime(path, (i, i))
            assert files.newest(what) == path.parent.relative_to(tmp_path)
            short, took = what.split()[-1], f"the newest of {i + 1}" if i else "the only one"
            assert capsys.readouterr().err == f"{short}: {at.split('/')[0]}/{name}, {took}\n"
    monkeypatch.setenv("RANK", "1")
    assert files.newest("model").name == "my copy" and capsys.readouterr().err == "", "another process talks"


def test_commands_can_be_pasted(monkeypatch, tmp_path):
    words = ["sample.py", "--model", tmp_path / "my run; $(x) 'y'", "--prompt", ""]
    for folder, script in [(ROOT, "sample.py"), (tmp_path, str(ROOT / "sample.py"))]:
        monkeypatch.chdir(folder)
        assert shlex.split(settings.command(*words)) == ["python", script, *map(str, words[1:])]


@pytest.fixture
def clock(monkeypatch):
    """A clock for the lines of progress, moved by hand."""
    clock = SimpleNamespace(now=0)
    monkeypatch.setattr(output, "time", SimpleNamespace(monotonic=lambda: clock.now))
    return clock


@pytest.mark.parametrize("items, options, seconds, said", [
    (range(30), {"unit": " files"}, 10, ["10% (3/30 files), 4:30 left", "30% (9/30 files), 3:30 left"]),
    (range(30), {"unit": " files"}, 100, ["3% (1/30 files), 48:20 left", "7% (2/30 files), 46:40 left"]),
    (range(1000), {}, 1, ["3% (30/1,000), 16:10 left", "9% (90/1,000), 15:10 left"]),
    (iter(range(99)), {"unit": "B", "unit_scale": True}, 31, ["1.00 B", "3.00 B"]),
    (range(20), {"initial": 10, "total": 30}, 15, ["40% (12/30), 4:30 left", "53% (16/30), 3:30 left"]),
    (range(2), {}, 9, []), (range(99), {"disable": True}, 99, []), ([], {}, 99, [])])
def test_progress_into_a_log(clock, capsys, items, options, seconds, said):
    for _ in output.progress(items, desc="reciting", **options):
        clock.now += seconds
    assert capsys.readouterr().err.replace(" 0", " ").splitlines()[:2] == [f"reciting {line}" for line in said]


@pytest.mark.parametrize("total", [10, 10**6, None])
def test_a_log_is_never_silent_for_long(clock, capsys, total):
    """However slow the work: 30 s at first, then longer and longer, five minutes at most."""
    bar, times = output.progress(total=total, desc="quick"), []
    for clock.now in range(1, 3600):
        bar.update(1e-3)
        if capsys.readouterr().err:
            times.append(clock.now)
    assert times[:6] == [30, 90, 210, 450, 750, 1050] and max(b - a for a, b in zip(times, times[1:])) == 300


def test_progress_that_does_not_move(clock, capsys):
    bar = output.progress(total=9, initial=3)
    clock.now = 99
    bar.update(0)
    assert capsys.readouterr().err == ""


def test_progress_moved_by_hand(clock, capsys):
    bar = output.progress(total=100, desc="quick", unit="step", smoothing=0.05, bar_format="{desc}")
    for step in range(0, 60, 20):
        clock.now += 3600
        bar.set_postfix_str(f" loss {step}", refresh=False)
        bar.update(20)
    bar.set_description("more")
    bar.total, clock.now = 200, clock.now + 1
    bar.update(100)
    assert capsys.readouterr().err.splitlines() == [
        "quick 20% (20/100 step), 4:00:00 left, loss 0", "quick 40% (40/100 step), 3:00:00 left, loss 20",
        "quick 60% (60/100 step), 2:00:00 left, loss 40"]


@pytest.mark.parametrize("disable, bars", [("", True), ("0", True), ("1", False), ("true", False)])
def test_progress_on_a_terminal(tmp_path, disable, bars):
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from memory import output\n" \
           "output.run_script(lambda: [None for _ in output.progress(range(3), desc='reciting')] and 0)"
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 80))
    done = subprocess.run([sys.executable, "-c", code], stderr=theirs, env=os.environ | {"TQDM_DISABLE": disable})
    os.set_blocking(ours, False)
    try:
        said = os.read(ours, 10_000)
    except BlockingIOError:
        said = b""
    os.close(ours)
    os.close(theirs)
    assert done.returncode == 0 and (b"reciting" in said and b"|" in said) == bars and (bars or not said)


@pytest.mark.parametrize("path, name", [
    ("out/quick/", "quick"), ("x/ä %20", "ä %20"), (b"a/b\xffc", "b%FFc"), ("a\nb%", "a%0Ab%25"),
    ("\u2028", "%E2%80%A8"), ("e\u0301", "e\u0301")])
def test_names_in_records(path, name):
    assert files.name_of(path) == name and name.isprintable()
