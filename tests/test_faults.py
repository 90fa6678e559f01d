"""What machines and people do to a run: kills, full disks, flipped bits, other corpora, a second run."""
import contextlib
import dataclasses
import errno
import io
import json
import os
import random
import resource
import shutil
import signal
import time

import pytest
import torch
from conftest import OPTIONS, here, refused, says_no, script, sha256, start

import extract
from memory.checkpoint import NAMES, load_state, read_metas, read_tensors, trim_log, write_tensors
from memory.corpus import load
from memory.files import lock, read_json, write_json
from memory.output import UserError
from memory.run import State, in_background, resume
from memory.settings import parse
import sample
import train


def kills(work, out, number, seed):
    """Starts a run over and over and kills it with SIGKILL at random moments after its first step of the turn; returns
    how many kills found it running, and the hash of what came out."""
    draw, survived = random.Random(seed), 0
    while survived < number:
        process = start(work, out, "--checkpoint_every=1")
        saved = (work / out / NAMES[0]).stat().st_mtime_ns if (work / out / NAMES[0]).exists() else 0
        while process.poll() is None:  # until it has saved once more, so that every turn gets further
            path = work / out / NAMES[0]
            try:
                if path.stat().st_mtime_ns != saved:
                    break
            except FileNotFoundError:
                pass
            time.sleep(0.002)
        time.sleep(draw.uniform(0, 0.06))  # saving is most of what it does
        alive = process.poll() is None
        process.kill()
        out_, err = process.communicate(timeout=300)
        if not alive:
            assert process.returncode == 1, err.decode()  # done, with tokens wrong
            break
        survived += 1
    assert here(train.main, *OPTIONS, f"--out={out}", cwd=work) == 1
    assert not list((work / out).glob(".part.*")), "what a kill left half-written is cleared away"
    return survived, sha256(work / out)


def test_five_kills(work, whole):
    survived, found = kills(work, "out/killed", 5, seed=1)
    assert survived, "none found it running"
    assert found == whole
    killed, once = ([line["step"] for line in map(json.loads, (folder / "log.jsonl").read_text().splitlines())
                     if "accuracy" in line] for folder in (work / "out/killed", work / "out/undisturbed"))
    assert killed == once and once[0] == 80 < once[-1], "each evaluation is logged once"


@pytest.mark.soak
def test_a_hundred_kills(work, whole):
    for seed in range(5):
        survived, found = kills(work, f"out/soak{seed}", 20, seed=100 + seed)
        print(f"{survived} kills")
        assert found == whole


@pytest.mark.parametrize("size", [2_000, 700_000])
def test_disk_full(work, stopped, whole, size):
    """A limit on the size of files stands for the disk: writes fail in the middle, as they do on a full one."""
    before = read_tensors(stopped / NAMES[0])[1]
    done = script("train.py", *OPTIONS, "--out", stopped, cwd=work, preexec_fn=lambda: resource.setrlimit(
        resource.RLIMIT_FSIZE, (size, size)))
    assert done.returncode == 2 and b"Traceback" not in done.stderr
    assert done.stderr.decode().split("\n")[-2].startswith(f"train.py: cannot write {stopped}/"), done.stderr.decode()
    assert not [name for name in os.listdir(stopped) if name.startswith(".part")], "nothing half-written"
    kept = next(stopped / name for name in NAMES if (stopped / name).exists())
    assert json.loads(read_tensors(kept)[1]["run"])["step"] >= json.loads(before["run"])["step"]
    assert here(train.main, *OPTIONS, "--out", stopped, cwd=work) == 1
    assert sha256(stopped) == whole, "it goes on once there is room"


def test_read_only_directory(work, stopped):
    """Root may write anywhere, so the file system refuses: /proc takes no new files."""
    with contextlib.chdir(work):
        says_no(train.main, [*OPTIONS, "--out=/proc/self/run"], "cannot write", "/proc/self/run")
        if os.getuid():
            stopped.chmod(0o500)
            says_no(train.main, [*OPTIONS, "--out", stopped], "cannot write", str(stopped))
            stopped.chmod(0o700)


def spoil(path, how):
    """Damages a file in one of the ways that files get damaged."""
    data = bytearray(path.read_bytes())
    if how == "truncated":
        data = data[:len(data) * 2 // 3]
    elif how == "emptied":
        data = b""
    else:  # a bit flipped near the start, in the middle, at the end
        data[{"header": 20, "middle": len(data) // 2, "end": len(data) - 3}[how]] ^= 4
    path.write_bytes(data)


HOW = ["truncated", "emptied", "header", "middle", "end"]


@pytest.mark.parametrize("how", HOW)
def test_damaged_checkpoint(stopped, how, capsys):
    """The previous state takes over; if both are damaged, that is said, and nothing is touched."""
    previous = read_tensors(stopped / NAMES[1])[1]["run"]
    spoil(stopped / NAMES[0], how)
    _, meta, path = load_state(stopped)
    assert path == stopped / NAMES[1] and meta == json.loads(previous)
    said = capsys.readouterr().err
    assert "checkpoint.safetensors is damaged" in said and "going on from checkpoint.previous.safetensors" in said
    spoil(stopped / NAMES[1], how)
    before = {name: (stopped / name).read_bytes() for name in os.listdir(stopped)}
    with pytest.raises(UserError, match=r"damaged.*damaged.*another --out.*--fresh"):
        load_state(stopped)
    assert {name: (stopped / name).read_bytes() for name in os.listdir(stopped)} == before


def test_damaged_checkpoint_and_a_full_disk(work, stopped, whole):
    """The state before the damaged one is kept until there is a newer one."""
    spoil(stopped / NAMES[0], "middle")
    done = script("train.py", *OPTIONS, "--out", stopped, cwd=work, preexec_fn=lambda: resource.setrlimit(
        resource.RLIMIT_FSIZE, (700_000, 700_000)))
    assert done.returncode == 2 and b"cannot write" in done.stderr
    assert here(train.main, *OPTIONS, "--out", stopped, cwd=work) == 1
    assert sha256(stopped) == whole


def test_states_of_a_wrong_shape(stopped, work, monkeypatch):
    """A digest that fits says nothing of what is in it. Every field of each wrong kind: refused in one line, or one
    that may be, and gone on with; the states stay as they are."""
    monkeypatch.chdir(work)
    settings, _ = parse(train.Settings, "", [*OPTIONS, "--out", str(stopped)], True)
    run = train.new_run(settings, stopped, torch.device("cpu"), torch.float32, *load("data/tiny-1.0"))
    tensors, metadata = read_tensors(stopped / NAMES[0])
    meta, first = json.loads(metadata["run"]), run.state
    assert meta.keys() == {field.name for field in dataclasses.fields(State)}
    refused, fields = 0, [(key, None) for key in meta] + [
        (key, name) for key in ("settings", "corpus") for name in meta[key]]
    for key, name in fields:
        for value in (None, True, -7, 1.5, "x\ny", [[]], {"a": {}}):
            changed = value if name is None else meta[key] | {name: value}
            write_tensors(stopped / NAMES[0], tensors, run=json.dumps(meta | {key: changed}))
            before, run.state = contents_of(stopped), first
            try:
                resume(run)
            except UserError as error:
                refused += 1
                assert "\n" not in str(error) and str(stopped) in str(error)
            assert contents_of(stopped) == before
    assert refused > 5 * len(meta)


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO, errno.ELOOP])
@pytest.mark.parametrize("name", NAMES)
def test_a_state_that_cannot_be_read_is_not_damaged(stopped, work, monkeypatch, name, number):
    """It may be whole, and can be read again tomorrow."""
    before = contents_of(stopped)
    fail_to_read(monkeypatch, stopped / name, number)
    if name == NAMES[1]:
        assert load_state(stopped)[2] == stopped / NAMES[0], "it is not needed"
        return
    with pytest.raises(UserError, match=f"cannot read .*{name}: {os.strerror(number)}"):
        load_state(stopped)
    monkeypatch.chdir(work)
    says_no(train.main, [*OPTIONS, "--out", stopped], "cannot read", name, os.strerror(number))
    says_no(train.main, [*OPTIONS, "--data=data/tiny-1.0", "--out", stopped], "cannot read", name)
    monkeypatch.undo()
    assert contents_of(stopped) == before


def test_a_state_that_is_a_folder(stopped, work, monkeypatch):
    (stopped / NAMES[0]).unlink()
    (stopped / NAMES[0]).mkdir()
    monkeypatch.chdir(work)
    says_no(train.main, [*OPTIONS, "--out", stopped], "cannot read", NAMES[0])
    assert (stopped / NAMES[0]).is_dir() and (stopped / NAMES[1]).is_file()


def fail_to_read(monkeypatch, path, number):
    """From now on, reading that file fails, by whichever function."""
    def failing(function):
        def opened(name, *words, **options):
            if not isinstance(name, int) and os.fspath(name) == os.fspath(path):
                raise OSError(number, os.strerror(number), os.fspath(name))
            return function(name, *words, **options)
        return opened

    monkeypatch.setattr("builtins.open", failing(open))
    monkeypatch.setattr(io, "open", failing(io.open))


def contents_of(folder):
    """{name: bytes} of a folder, but for the lock."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != ".lock"}


OF_A_MODEL = ["model.safetensors", "config.json", "generation_config.json", "tokenizer.model", "tokenizer.json",
              "tokenizer_config.json", "manifest.json", "build.json"]


@pytest.mark.parametrize("how", ["missing", "older", *HOW])
def test_a_finished_run_writes_its_model_again(work, tmp_path, whole, stopped, how):
    """Whichever file of it is gone or damaged, or if it is that of an earlier stop, because a kill came between the
    last state and the model."""
    run = tmp_path / "run2"
    shutil.copytree(work / "out/undisturbed", run)
    before = contents_of(run)
    for name in [None] if how == "older" else ["errors.jsonl", *OF_A_MODEL] if how == "missing" else OF_A_MODEL:
        if how == "older":
            for name in ("model.safetensors", "manifest.json"):
                shutil.copy(stopped / name, run)
            for name in ("build.json", "errors.jsonl"):
                (run / name).unlink()
        elif how == "missing":
            (run / name).unlink()
        else:
            spoil(run / name, how)
        assert here(train.main, *OPTIONS, "--out", run, cwd=work) == 1, "tokens are wrong, again"
        assert sha256(run) == whole
        for name in {"errors.jsonl", *OF_A_MODEL} - {"build.json"}:
            assert (run / name).read_bytes() == before[name], name


def test_a_whole_model_is_left_alone(work, tmp_path, whole, capsys):
    """But for what of its card is missing. Its status is what it was."""
    run = tmp_path / "run2"
    shutil.copytree(work / "out/undisturbed", run)
    before = contents_of(run)
    for name in (None, "README.md", "NOTICES", "SHA256SUMS"):
        if name:
            (run / name).unlink()
        assert here(train.main, *OPTIONS, "--out", run, cwd=work) == 1
        assert "is done" in capsys.readouterr().out and contents_of(run).keys() == before.keys()
        assert (run / "model.safetensors").read_bytes() == before["model.safetensors"]


def test_a_model_that_cannot_be_read_is_not_replaced(work, tmp_path, whole, monkeypatch):
    run = tmp_path / "run2"
    shutil.copytree(work / "out/undisturbed", run)
    before = contents_of(run)
    monkeypatch.chdir(work)
    for name in OF_A_MODEL:
        with monkeypatch.context() as patch:
            fail_to_read(patch, run / name, errno.EIO)
            says_no(train.main, [*OPTIONS, "--out", run], "cannot read", name, "Input/output error")
    assert contents_of(run) == before


def test_links_in_a_models_folder_are_replaced(work, stopped, tmp_path, whole):
    """As a hub's cache has them: what they name belongs to others too."""
    blobs = tmp_path / "blobs"
    blobs.mkdir()
    for path in list(stopped.iterdir()):
        path.rename(blobs / path.name)
        path.symlink_to(f"../blobs/{path.name}")
    before = contents_of(blobs)
    assert here(train.main, *OPTIONS, "--out", stopped, cwd=work) == 1
    assert contents_of(blobs) == before and sha256(stopped) == whole
    assert not [path for path in stopped.iterdir() if path.is_symlink() and path.name != ".lock"]


@pytest.mark.parametrize("holds", ["a model without states", "a stopped model without states", "transformers' model",
                                   "a page", "a folder", "damaged states"])
def test_a_folder_with_what_is_not_a_run_is_refused(work, stopped, tmp_path, whole, monkeypatch, holds):
    """Nothing in it is touched, without --fresh."""
    out = tmp_path / "out"
    if "without states" in holds:
        shutil.copytree(stopped if "stopped" in holds else work / "out/undisturbed", out)
        for name in NAMES:
            (out / name).unlink(missing_ok=True)
    elif holds == "damaged states":
        shutil.copytree(stopped, out)
        for name in NAMES:
            (out / name).write_bytes(b"")
    else:
        out.mkdir()
        name = {"transformers' model": "config.json", "a page": "index.html", "a folder": "notes/x"}[holds]
        (out / name).parent.mkdir(exist_ok=True)
        (out / name).write_bytes(b"mine")
    before = {path: path.is_dir() or path.read_bytes() for path in out.rglob("*") if path.name != ".lock"}
    monkeypatch.chdir(work)
    says_no(train.main, [*OPTIONS, "--data=data/tiny-1.0", "--out", out], str(out), "another --out", "--fresh")
    assert {path: path.is_dir() or path.read_bytes() for path in out.rglob("*") if path.name != ".lock"} == before


def test_what_a_run_leaves_before_its_first_state_is_no_hindrance(work, tmp_path, whole):
    """As after a kill: its log, its lock, what was half written; nor is a checkout of git."""
    for name in (".lock", "log.jsonl", ".part.0", ".gitattributes"):
        (tmp_path / name).write_text('{"step": 3, "accuracy": 1}\n')
    assert here(train.main, *OPTIONS, "--out", tmp_path, cwd=work) == 1
    steps = [json.loads(line)["step"] for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert steps[:2] == [0, 80] and sha256(tmp_path) == whole


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.model", "manifest.json", "config.json"])
def test_damaged_model(model, name, how, capsys):
    spoil(model / name, how)
    for main, words in ((sample.main, ["--prompt=tiny/"]), (extract.main, ["--check"])):
        says_no(main, [*words, "--model", model],
                name if name in ("tokenizer.model", "manifest.json") else "model", "again")
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("name", ["train.bin", "tokenizer.model", "manifest.json"])
def test_damaged_tree(work, tmp_path, name, how):
    shutil.copytree(work / "data/tiny-1.0", tmp_path / "t")
    spoil(tmp_path / "t" / name, how)
    says_no(train.main, [work / OPTIONS[0], "--data", tmp_path / "t", "--out", tmp_path / "o"], name, "prepare.py")
    assert not (tmp_path / "o").exists(), "nothing is begun"


def test_other_corpus(work, learned, stopped, model, other):
    """Refused at going on, sampling and extraction alike."""
    with contextlib.chdir(work):
        says_no(train.main, [*OPTIONS, "--out", stopped, "--data", other], "another tree", "leave --data out")
    refused(script("extract.py", "--model", model, "--data", other, cwd=learned), str(other), "not the tree")
    shutil.copy(other / "tokenizer.model", model)
    for main, words in ((sample.main, []), (extract.main, ["--check"])):
        says_no(main, [*words, "--model", model], "tokenizer.model", "manifest.json")
    shutil.copy(other / "manifest.json", model)
    says_no(sample.main, ["--model", model], "manifest.json is that of a prepared tree")
    write_json(model / "manifest.json", read_json(other / "manifest.json") | {
        "tree": {"files": 1, "bytes": 1}, "held_out": [], "piece_bytes": 1, "piece_bits": 8})
    # now these two fit, but not the weights
    for main, words in ((sample.main, []), (extract.main, ["--check"])):
        says_no(main, [*words, "--model", model], "was not trained on", "model.safetensors")


def test_second_run_in_the_same_folder(work, tmp_path):
    held = lock(tmp_path / "run")
    with contextlib.chdir(work):
        says_no(train.main, [*OPTIONS, "--out", tmp_path / "run"], "another run", str(tmp_path / "run"))
    held.close()
    process = start(work, tmp_path / "run", "--max_steps=50000")
    while not (tmp_path / "run" / NAMES[0]).exists():
        assert process.poll() is None
        time.sleep(0.01)
    with contextlib.chdir(work):
        says_no(train.main, [*OPTIONS, "--out", tmp_path / "run", "--fresh"], "another run")
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 128 + signal.SIGTERM and b"goes on from here" in out, "the first was not disturbed"


def test_weights_that_are_not_finite_are_never_saved(work, stopped):
    """The step that breaks the weights may still have a finite loss."""
    before = {name: (stopped / name).read_bytes() for name in (*NAMES, "model.safetensors")}
    tensors, metadata = read_tensors(stopped / NAMES[0])
    name = next(name for name in tensors if "momentum" in name)
    write_tensors(stopped / NAMES[0], tensors | {name: torch.full_like(tensors[name], torch.inf)}, **metadata)
    with contextlib.chdir(work):
        says_no(train.main, [*OPTIONS, "--out", stopped], "not finite at step")
    assert (stopped / "model.safetensors").read_bytes() == before["model.safetensors"]


@pytest.mark.parametrize("name, look", [
    (NAMES[0], load_state), (NAMES[1], load_state), (NAMES[0], lambda folder: list(read_metas(folder))),
    (".lock", lock), ("log.jsonl", lambda folder: trim_log(folder / "log.jsonl", 1, 1))])
def test_a_pipe_in_the_folder_of_a_run_is_not_waited_for(name, look, tmp_path):
    os.mkfifo(tmp_path / name)
    with pytest.raises(UserError, match=f"{name} is no regular file"):
        in_background(look, tmp_path).result(timeout=60)


def test_a_folder_that_looks_half_written_is_left(tmp_path):
    (tmp_path / ".part.mine").mkdir()
    (tmp_path / ".part.0").touch()
    lock(tmp_path).close()
    assert sorted(os.listdir(tmp_path)) == [".lock", ".part.mine"]


@pytest.mark.parametrize("name", ["prepare", "train", "extract", "sample", "trace", "verify", "recite", "bench"])
def test_ctrl_c_while_a_script_loads_its_modules(name, tmp_path):
    """numpy is the first that takes long; any other error still has its traceback."""
    for error, said in [("KeyboardInterrupt", b"\ninterrupted\n"), ("OSError('x')", b"OSError: x\n")]:
        (tmp_path / "numpy.py").write_text(f"raise {error}")
        process = script(f"{name}.py", cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(tmp_path),
                                                                     "PYTHONDONTWRITEBYTECODE": "1"})
        assert process.returncode in (-signal.SIGINT, 1) and process.stderr.endswith(said)
        assert (b"Traceback" in process.stderr) == (process.returncode == 1)
