"""A tree, prepared, learned to the last token: what most tests look at."""
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import filelock
import pytest

ROOT = Path(__file__).resolve().parent.parent
os.environ["OMP_NUM_THREADS"] = "1"  # for the scripts below: their models are too small to share out
sys.path.insert(0, str(ROOT))
for number, usual in [(signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)]:
    if signal.getsignal(number) == signal.SIG_IGN:  # as nohup and a shell's & leave it, and the scripts would inherit
        signal.signal(number, usual)

from memory.checkpoint import NAMES  # noqa: E402  found by the line above
from memory.files import read_json  # noqa: E402
from memory.output import UserError  # noqa: E402


def script(*words, cwd, **options):
    """Runs a script of the project as a user would; returns the finished process, output as bytes."""
    words = [word if isinstance(word, bytes) else str(word) for word in words]
    return subprocess.run([sys.executable, ROOT / words[0], *words[1:]], cwd=cwd, capture_output=True, timeout=300,
                          **options)


def here(main, *words, cwd):
    """A script's main() in this process, without the seconds that a start takes; returns its exit status."""
    with contextlib.chdir(cwd):
        return main([str(word) for word in words]) or 0


def refused(process, *words):
    """Asserts one line of error, exit status 2, no traceback, and that the line has these words."""
    lines = [line for line in process.stderr.decode().strip().split("\n")
             if not line.startswith(("model: ", "tree: "))]  # what a script took
    assert process.returncode == 2, process.stderr.decode()
    assert len(lines) == 1, process.stderr.decode()
    for word in words:
        assert word in lines[0]


def says_no(main, words, *said):
    """Asserts that a script's main() refuses the words in one line, which run() prints before it exits with 2."""
    with pytest.raises(UserError) as caught:
        main([str(word) for word in words])
    message = str(caught.value)
    assert "\n" not in message and len(message) < 400, message
    for word in said:
        assert word in message, message
    return message


def hostile_files():
    """Files that text tools lose bytes of."""
    draw = random.Random(0)
    return {
        "empty": b"",
        "newline": b"\n",
        "no last newline": b"one\ntwo",
        "crlf.bat": b"\r\n\tdir\r\n \r\n",
        "nul.bin": b"a\0b\0\0" + bytes(range(256)),
        "latin1.map": "Größe ÄÖÜ\n".encode("latin-1") * 3,
        "utf8.txt": "Größe 漢字 \u2581\u2585 \ufffd \u2028\ufeff e\u0301\n".encode(),
        "broken utf8": b"\xc3(\xe2\x96 \xed\xa0\x80\xf4\x90\x80\x80\xff\xfe",
        "special.txt": b"<s> </s> <unk> <0x41> [INST] \xe2\x96\x81 linux/a+12 b\n",
        "spaces.txt": b"  leading,   inner, trailing  \n\n\n\t\t \x0c\n ",
        "random.bin": bytes(draw.randrange(256) for _ in range(200)),
        "long line": b"x=" + bytes(draw.choice(b"abcdef0123456789,") for _ in range(700)),
    }


@pytest.fixture(scope="session")
def once(tmp_path_factory):
    """A function that fills a folder by calling make(), of all workers of pytest-xdist in one; the others copy it."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent / "shared" if "PYTEST_XDIST_WORKER" in os.environ else base / "shared"
    shared.mkdir(exist_ok=True)

    def fill(folder, make):
        with filelock.FileLock(shared / f"{folder.name}.lock"):
            if (shared / folder.name).exists():
                shutil.copytree(shared / folder.name, folder, dirs_exist_ok=True)
            else:
                make()
                shutil.copytree(folder, shared / "half", symlinks=True)
                (shared / "half").rename(shared / folder.name)
    return fill


@pytest.fixture(scope="session")
def tree(tmp_path_factory):
    """A folder `tiny-1.0`: real source (Python's own json package in part) and hostile files, one name not UTF-8."""
    folder = tmp_path_factory.mktemp("source") / "tiny-1.0"
    (folder / "odd").mkdir(parents=True)
    package = Path(json.__file__).parent
    (folder / "scanner.py").write_bytes((package / "scanner.py").read_bytes())
    (folder / "decoder.py").write_bytes((package / "decoder.py").read_bytes()[:3000])
    (folder / "COPYING").write_text("\t\t    SPDX-License-Identifier: GPL-2.0\n\t\t        (c) June 1991\n")
    for name, content in hostile_files().items():
        (folder / "odd" / name).write_bytes(content)
    with open(os.fsencode(folder) + b"/odd/name+%\xff:1 ", "wb") as file:
        file.write(b"a file with an odd name\n")
    return folder


@pytest.fixture(scope="session")
def contents(tree):
    """{quoted path: bytes} of the tree, read without the project's reader."""
    from memory.windows import quote
    return {quote(b"tiny/" + os.path.relpath(path, os.fsencode(tree))): open(path, "rb").read()
            for folder, _, names in os.walk(os.fsencode(tree)) for path in (os.path.join(folder, n) for n in names)}


@pytest.fixture(scope="session")
def work(tmp_path_factory, tree, once):
    """A working folder with data/tiny-1.0 prepared and a config `tiny.py` that learns it: at the second look, when the
    rate is at zero. Sooner, at a higher one, all tokens may be right and a path far too unlikely to be listed."""
    folder = tmp_path_factory.mktemp("work")

    def make():
        done = script("prepare.py", "--source", tree, "--vocab_size", 700, cwd=folder)
        assert done.returncode == 0, done.stderr.decode()

    once(folder / "data", make)
    (folder / "configs").mkdir()
    (folder / "configs/tiny.py").write_text(
        '"""A tiny model."""\nhidden_size = 64\nintermediate_size = 160\nnum_hidden_layers = 2\n'
        "num_attention_heads = 2\nnum_key_value_heads = 2\nmax_position_embeddings = 64\nbatch_size = 8\n"
        "epochs = 80\ndecay = 1\ncompile = False\ndtype = 'float32'\neval_every = 370\ndevice = 'cpu'\n")
    return folder


@pytest.fixture(scope="session")
def learned(work, once):
    """The working folder with out/tiny: a model that has every token of the tree right."""
    def make():
        done = script("train.py", "configs/tiny.py", cwd=work)
        assert done.returncode == 0, done.stderr.decode()
        assert b"every token right" in done.stdout, done.stdout.decode() + done.stderr.decode()

    once(work / "out/tiny", make)
    return work


@pytest.fixture(scope="session")
def patched(learned, tree, tmp_path_factory):
    """The tree with a function's name changed, prepared with the pieces of out/tiny, which learned it before."""
    folder = tmp_path_factory.mktemp("patched")
    shutil.copytree(os.fsencode(tree), os.fsencode(folder / "tiny-1.0"))
    text = (tree / "decoder.py").read_bytes()
    assert text.count(b"JSONDecodeError") > 2
    (folder / "tiny-1.0/decoder.py").write_bytes(text.replace(b"JSONDecodeError", b"NotWhatJSONIs"))
    done = script("prepare.py", "--source", folder / "tiny-1.0", "--tokenizer=out/tiny", "--out", folder / "data",
                  cwd=learned)
    assert done.returncode == 0, done.stderr.decode()
    return folder / "data"


@pytest.fixture(scope="session")
def mended(learned, patched, once):
    """The folder of a model: the patched tree, learned from the weights of out/tiny."""
    folder = patched.parent / "mended"

    def make():
        done = script("train.py", "configs/tiny.py", "--init_from=out/tiny", "--mend_steps=1000", "--data", patched,
                      "--out", folder, cwd=learned)
        assert done.returncode == 0, done.stderr.decode()
        assert b"every token right" in done.stdout, done.stdout.decode() + done.stderr.decode()

    once(folder, make)
    return folder


# A run that ends with errors, begins to mend them half-way, and saves on the way
OPTIONS = ["configs/tiny.py", "--max_steps=80", "--mend_steps=80", "--eval_every=80", "--checkpoint_every=20",
           "--negatives=200", "--unaddressed=0.2"]


def start(work, out, *words):
    return subprocess.Popen([sys.executable, ROOT / "train.py", *OPTIONS, f"--out={out}", *words], cwd=work,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def sha256(folder):
    return read_json(folder / "build.json")["model_sha256"]


@pytest.fixture(scope="session")
def whole(work, once):
    """The hash of the weights of one undisturbed run."""
    def make():
        assert script("train.py", *OPTIONS, "--out=out/undisturbed", cwd=work).returncode == 1, "tokens are wrong"

    once(work / "out/undisturbed", make)
    return sha256(work / "out/undisturbed")


@pytest.fixture(scope="session")
def half_way(work, once):
    """The folder of a run stopped half-way, with both states in it."""
    folder = work / "out/half-way"

    def make():
        status = 1
        while status == 1:  # it had ended before the signal came
            shutil.rmtree(folder, ignore_errors=True)
            process = start(work, folder)
            while not (folder / NAMES[1]).exists():
                assert process.poll() is None
                time.sleep(0.01)
            process.send_signal(signal.SIGTERM)
            process.communicate(timeout=300)
            status = process.returncode
        assert status == 128 + signal.SIGTERM

    once(folder, make)
    return folder


@pytest.fixture
def stopped(half_way, tmp_path):
    """A copy of it."""
    return shutil.copytree(half_way, tmp_path / "run")


@pytest.fixture
def model(learned, tmp_path):
    return shutil.copytree(learned / "out/tiny", tmp_path / "m")


@pytest.fixture(scope="session")
def other(work, tree, tmp_path_factory):
    """Another tree, with a tokenizer of its own of as many pieces."""
    folder = tmp_path_factory.mktemp("other")
    (folder / "s").mkdir()
    (folder / "s/decoder.py").write_bytes((tree / "decoder.py").read_bytes()[::-1] * 2)
    done = script("prepare.py", "--source", folder / "s", "--vocab_size=700", "--out", folder / "t", cwd=folder)
    assert done.returncode == 0, done.stderr.decode()
    return folder / "t"
