"""What machines and people do to a run: kills, full disks, flipped bits, other corpora, a second run."""
import json
import os
import random
import resource
import shutil
import signal
import time

import pytest
import torch
from conftest import OPTIONS, refused, says_no, script, sha256, start

import extract
from memory.checkpoint import NAMES, load_state, read_tensors, write_tensors
from memory.files import lock, read_json, write_json
from memory.output import UserError
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
        out_, err = process.communicate(timeout=60)
        if not alive:
            assert process.returncode == 0, err.decode()
            break
        survived += 1
    done = script("train.py", *OPTIONS, f"--out={out}", cwd=work)
    assert done.returncode == 0, done.stderr.decode()
    assert not list((work / out).glob(".part.*")), "what a kill left half-written is cleared away"
    return survived, sha256(work / out)


def test_five_kills(work, whole):
    survived, found = kills(work, "out/killed", 5, seed=1)
    assert survived == 5, "the run was long enough"
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
    done = script("train.py", *OPTIONS, "--out", stopped, cwd=work)
    assert done.returncode == 0 and sha256(stopped) == whole, "it goes on once there is room"


def test_read_only_directory(work, stopped):
    """Root may write anywhere, so the file system refuses: /proc takes no new files."""
    refused(script("train.py", *OPTIONS, "--out=/proc/self/run", cwd=work), "cannot write", "/proc/self/run")
    if os.getuid():
        stopped.chmod(0o500)
        refused(script("train.py", *OPTIONS, "--out", stopped, cwd=work), "cannot write", str(stopped))
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
    done = script("train.py", *OPTIONS, "--out", stopped, cwd=work)
    assert done.returncode == 0 and sha256(stopped) == whole, done.stderr.decode()


@pytest.mark.parametrize("left", ["damaged", "older"])
def test_a_finished_run_writes_its_model_again(work, tmp_path, whole, stopped, left):
    """If it is damaged, or that of an earlier stop, because a kill came between the last state and the model."""
    shutil.copytree(work / "out/undisturbed", tmp_path / "run2")
    if left == "damaged":
        spoil(tmp_path / "run2/model.safetensors", "middle")
    else:
        for name in ("model.safetensors", "manifest.json"):
            shutil.copy(stopped / name, tmp_path / "run2")
        for name in ("build.json", "errors.jsonl"):
            (tmp_path / "run2" / name).unlink()
    done = script("train.py", *OPTIONS, "--out", tmp_path / "run2", cwd=work)
    assert done.returncode == 0 and whole.encode() in done.stdout, done.stderr.decode()
    for name in ("model.safetensors", "errors.jsonl"):
        assert (tmp_path / "run2" / name).read_bytes() == (work / "out/undisturbed" / name).read_bytes()


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
    refused(script("train.py", *OPTIONS, "--out", stopped, "--data", other, cwd=work),
            "another tree", "leave --data out")
    refused(script("extract.py", "--model", model, "--data", other, cwd=learned), str(other), "not the tree")
    shutil.copy(other / "tokenizer.model", model)
    for words in (["sample.py"], ["extract.py", "--check"]):
        refused(script(*words, "--model", model, cwd=learned), "tokenizer.model", "manifest.json")
    shutil.copy(other / "manifest.json", model)
    refused(script("sample.py", "--model", model, cwd=learned), "manifest.json is that of a prepared tree")
    write_json(model / "manifest.json", read_json(other / "manifest.json") | {"tree": {}, "held_out": []})
    # now these two fit, but not the weights
    for words in (["sample.py"], ["extract.py", "--check"]):
        refused(script(*words, "--model", model, cwd=learned), "was not trained on", "model.safetensors")


def test_second_run_in_the_same_folder(work, tmp_path):
    held = lock(tmp_path / "run")
    refused(script("train.py", *OPTIONS, "--out", tmp_path / "run", cwd=work), "another run", str(tmp_path / "run"))
    held.close()
    process = start(work, tmp_path / "run", "--max_steps=50000")
    while not (tmp_path / "run" / NAMES[0]).exists():
        assert process.poll() is None
        time.sleep(0.01)
    refused(script("train.py", *OPTIONS, "--out", tmp_path / "run", "--fresh", cwd=work), "another run")
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM and b"goes on from here" in out, "the first was not disturbed"


def test_weights_that_are_not_finite_are_never_saved(work, stopped):
    """The step that breaks the weights may still have a finite loss."""
    before = {name: (stopped / name).read_bytes() for name in (*NAMES, "model.safetensors")}
    tensors, metadata = read_tensors(stopped / NAMES[0])
    name = next(name for name in tensors if "momentum" in name)
    write_tensors(stopped / NAMES[0], tensors | {name: torch.full_like(tensors[name], torch.inf)}, **metadata)
    done = script("train.py", *OPTIONS, "--out", stopped, cwd=work)
    assert done.returncode == 2 and b"not finite at step" in done.stderr, done.stderr.decode()
    assert (stopped / "model.safetensors").read_bytes() == before["model.safetensors"]
