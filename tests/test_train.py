"""The loop: its settings, its schedule, its order of the data, and a run that stops and goes on."""
import contextlib
import copy
import dataclasses
import functools
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, here, refused, says_no, script, sha256
from safetensors.torch import load_file
from torch.utils._python_dispatch import TorchDispatchMode

from memory import device, sampler, schedule
from memory.checkpoint import NAMES, read_tensors, write_tensors
from memory.corpus import load
from memory.device import compiled, find_dtype, has_bfloat16, warn_if_emulated
from memory.evaluate import SAFE, SURE, count_wrong, examine, teacher_forced
from memory.files import read_json, write_json
from memory.optim import Muon, make_optimizers, update
from memory.output import UserError
from memory.run import State, Stop, mend
from memory.sampler import Sampler, draw_classes, make_batch
from memory.schedule import MEND_COARSE, MEND_LEAST, MEND_RATE, MEND_REVIEW, MEND_VISITS, PATCH_RATE
from memory.schedule import Schedule, lr_share, round_rate, round_steps
from memory.settings import parse
from memory.windows import IGNORE, Windows
from model import Llama, LlamaConfig
from train import Objective
import openness
import prepare
import train
import verify


def run(cwd, *words):
    return script("train.py", "configs/tiny.py", *words, cwd=cwd)


def train_here(cwd, *words):
    """train.py without the seconds that its start takes: in this process. Returns its exit status."""
    return here(train.main, "configs/tiny.py", *words, cwd=cwd)


def refused_here(cwd, words, *said):
    """As says_no, in another folder."""
    with contextlib.chdir(cwd):
        return says_no(train.main, ["configs/tiny.py", *words], *said)


def log_of(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def test_learns_every_token(learned, contents, tmp_path):
    """The fixture asserts that train.py says so; recital itself is in test_sample.py. A hundred steps are too few."""
    first, *rest = log_of(learned / "out/tiny")
    assert first["settings"]["hidden_size"] == 64
    assert first["environment"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert first["environment"]["dtype"] == "float32"
    assert first["parameters"] == Llama.from_pretrained(learned / "out/tiny").config.num_parameters
    assert [line["step"] for line in rest] == sorted({line["step"] for line in rest})
    assert rest[0]["accuracy"] < rest[-1]["accuracy"] == 1 and rest[-1]["wrong"] == rest[-1]["unsure"] == 0
    assert rest[-1]["files_exact"] == len(contents)
    assert 5 * rest[-1]["bits_per_byte"] < 0.01 < rest[0]["bits_per_byte"]
    assert train_here(learned, "--max_steps=100", f"--out={tmp_path}") == 1
    assert rest[-1]["bits_per_byte"] < 0.1 < log_of(tmp_path)[-1]["bits_per_byte"]


def test_a_finished_run_is_left_alone(learned, capsys):
    before = {path: path.stat().st_mtime_ns for path in (learned / "out/tiny").iterdir()}
    assert train_here(learned) == 0 and "is done" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in before} == before


def interrupt(cwd, out, signals, *options, looks=1, pause=0.02):
    """Starts a run, or goes on with it, and sends it the signals, with a pause of so many seconds after each, once it
    has looked so often in this turn; returns its status and what it printed on both streams."""
    def lines():
        return len(log_of(cwd / out)) if (cwd / out / "log.jsonl").exists() else 0

    before = lines()
    process = subprocess.Popen([sys.executable, ROOT / "train.py", "configs/tiny.py", *options, f"--out={out}"],
                               cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    while lines() < before + 1 + looks:  # the first line of a turn says where it goes on
        assert process.poll() is None
        time.sleep(0.01)
    for number in signals:
        process.send_signal(number)
        time.sleep(pause)
    said, _ = process.communicate(timeout=300)
    return process.returncode, said.decode()


@pytest.fixture(scope="module")
def observed(work):
    """A run that looks after each step, so that a signal mostly comes while it looks; whose batches are computed in
    parts; and that begins to mend half-way."""
    options = ["--max_steps=30", "--mend_steps=30", "--unaddressed=0.1", "--micro_batch=3", "--eval_every=1",
               "--checkpoint_every=1000"]
    assert train_here(work, *options, "--out=out/observed") == 1
    return options, log_of(work / "out/observed"), load_file(work / "out/observed/model.safetensors")


def test_stopped_and_run_again_is_as_if_never_stopped(work, observed, capsys):
    """By each signal that asks a program to end, one after another."""
    options, log, weights = observed
    folder, before = work / "out/stopped", 0
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        status, said = interrupt(work, "out/stopped", [number], *options, looks=3)
        assert status == 128 + number and "stopping, saving" in said and "goes on from here" in said
        Llama.from_pretrained(folder)
        assert f"going on at step {before}" in said or not before
        before = int(re.search(r"stopped at step (\d+) of", said)[1])
    (folder / "report.html").write_text("of the weights so far")
    assert train_here(work, *options, "--out=out/stopped") == 1
    assert f"going on at step {before}" in capsys.readouterr().out
    assert not (folder / "report.html").exists()
    same = ("step", "wrong", "bits_per_byte", "lr_share")
    assert [[line[key] for key in same] for line in log_of(folder) if "wrong" in line] == [
        [line[key] for key in same] for line in log[1:]], "no pass is left out, none is made twice"
    mine = load_file(folder / "model.safetensors")
    assert all(torch.equal(mine[key], weights[key]) for key in weights)


def test_a_signal_that_is_sent_twice_is_one(work, observed):
    """As by `timeout`, which signals the program and then its group. Both come while it is held: so at once."""
    signals = signal.SIGSTOP, signal.SIGINT, signal.SIGTERM, signal.SIGCONT
    status, said = interrupt(work, "out/twice", signals, *observed[0], looks=3, pause=0)
    assert status in (130, 143) and "goes on from here" in said, said


def test_a_second_signal_leaves_at_once(work, observed, capsys):
    """And the state saved before is whole."""
    status, said = interrupt(work, "out/later", [signal.SIGINT, signal.SIGINT], *observed[0], "--checkpoint_every=1",
                             looks=2, pause=1.05)  # a step is saved after its look
    assert status in (130, -signal.SIGINT) and "Traceback" not in said  # the latter if the run had saved by then
    assert train_here(work, *observed[0], "--checkpoint_every=1", "--out=out/later") == 1
    assert "going on at step" in capsys.readouterr().out


def test_only_a_signal_that_comes_later_is_a_second_one(monkeypatch, capfd):
    left, now = [], [0.0]
    monkeypatch.setattr("memory.run.os._exit", left.append)
    monkeypatch.setattr("memory.run.time.monotonic", lambda: now[0])
    with Stop(Path("out/run")) as stop:
        stop.learned = True
    for now[0] in (0.0, 0.5, 2.0):
        assert not left
        stop.note(signal.SIGINT, None)
    assert left == [130] and capfd.readouterr().err == "\nstopping, saving out/run …\n\nstopped at once\n"


def test_a_signal_while_another_is_handled(monkeypatch, capfd):
    """As of a program that `timeout` runs, if both were signalled: it gets three at once."""
    left, write = [], os.write

    def written(*words):
        monkeypatch.setattr("memory.run.os.write", write)
        signal.raise_signal(signal.SIGTERM)
        return write(*words)

    monkeypatch.setattr("memory.run.os._exit", left.append)
    monkeypatch.setattr("memory.run.os.write", written)
    with Stop(Path("out/run")) as stop:
        stop.learned = True
        signal.raise_signal(signal.SIGTERM)
    assert not left and capfd.readouterr().err == "\nstopping, saving out/run …\n"


def test_output_that_nobody_reads_loses_no_run(work, observed, capsys):
    """As with `2>&1 | head`: the run saves, and ends as such programs do."""
    process = subprocess.Popen([sys.executable, ROOT / "train.py", "configs/tiny.py", *observed[0], "--out=out/unread"],
                               cwd=work, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    while b"step " not in process.stdout.readline():
        pass
    process.stdout.close()
    assert process.wait(timeout=300) == 141
    assert train_here(work, *observed[0], "--out=out/unread") == 1
    assert "going on at step" in capsys.readouterr().out
    with open("/dev/full", "w") as full:
        done = subprocess.run([sys.executable, ROOT / "train.py", "configs/tiny.py", "--max_steps=2", "--out=out/full"],
                              cwd=work, stdout=full, stderr=full, timeout=300)
    assert done.returncode == 1 and Llama.from_pretrained(work / "out/full")


def test_a_run_goes_on_with_its_own_tree(work, tree, tmp_path, capsys):
    """Though another one was prepared since; and is never advised to start over."""
    shutil.copytree(work / "data", tmp_path / "data")
    shutil.copytree(work / "configs", tmp_path / "configs")
    assert train_here(tmp_path, "--max_steps=2", "--target_accuracy=0") == 0
    assert here(prepare.main, "--source", tree / "odd", "--vocab_size=300", cwd=tmp_path) == 0
    (tmp_path / "out/tiny/model.safetensors").unlink()
    capsys.readouterr()
    assert train_here(tmp_path, "--max_steps=2", "--target_accuracy=0") == 0
    assert "tree: data/tiny-1.0" in capsys.readouterr().err
    said = refused_here(tmp_path, ["--max_steps=2", "--data=data/odd"], "another tree, tiny-1.0", "leave --data out")
    assert "fresh" not in said
    shutil.rmtree(tmp_path / "data/tiny-1.0")
    refused_here(tmp_path, ["--max_steps=2"], "tiny-1.0", "prepare that tree again")


def test_a_model_does_not_overwrite_a_tree(work):
    before = (work / "data/tiny-1.0/manifest.json").read_bytes()
    refused_here(work, ["--out=data/tiny-1.0"], "data/tiny-1.0", "prepared tree", "--out")
    assert (work / "data/tiny-1.0/manifest.json").read_bytes() == before


def test_a_cache_that_cannot_be_written(work):
    refused(script("train.py", "configs/tiny.py", "--max_steps=1", "--out=out/cache", cwd=work, env=os.environ | {
        "TORCHINDUCTOR_CACHE_DIR": "/proc/x"}), "/proc/x", "TORCHINDUCTOR_CACHE_DIR")


def test_a_path_that_fills_a_window(work, tree, tmp_path, capsys):
    shutil.copytree(tree, tmp_path / "long-1.0", symlinks=True)
    path = "/".join("abcdefgh" for _ in range(20)) + "/x.c"
    (tmp_path / "long-1.0" / path).parent.mkdir(parents=True)
    (tmp_path / "long-1.0" / path).write_text("int x;\n")
    (tmp_path / "configs").symlink_to(work / "configs")
    assert here(prepare.main, "--source=long-1.0", "--vocab_size=400", cwd=tmp_path) == 0
    refused_here(tmp_path, ["--max_steps=1"], path, "--skip_long_paths")
    assert train_here(tmp_path, "--max_steps=1", "--skip_long_paths") == 1
    assert f"left out: long/{path}" in capsys.readouterr().err
    files = json.loads((tmp_path / "out/tiny/manifest.json").read_text())["files"]
    whole = json.loads((tmp_path / "data/long-1.0/manifest.json").read_text())["files"]
    assert len(files) == len(whole) - 1


def test_mending_comes_after_the_main_steps(work, capsys):
    """In rounds, each of which a full pass ends; and no more steps of it than may be."""
    assert train_here(work, "--max_steps=40", "--mend_steps=100", "--eval_every=25", "--out=out/mended") == 1
    assert "steps to mend them" in capsys.readouterr().out
    lines = log_of(work / "out/mended")[1:]
    steps = [line["step"] for line in lines]
    assert steps[:2] == [25, 40] and 40 < steps[2] and steps[-1] <= 140
    assert lines[2]["bits_per_byte"] < lines[1]["bits_per_byte"] and 0 < lines[2]["lr_share"] < 0.01
    assert len(steps) > 3, "two rounds at least"
    assert train_here(work, "--max_steps=40", "--mend_steps=100", "--checkpoint_every=7", "--out=out/saving") == 1
    assert sha256(work / "out/saving") == sha256(work / "out/mended"), "saving changes nothing"
    assert train_here(work, "--max_steps=40", "--eval_every=25", "--out=out/plain") == 1
    same = ("step", "wrong", "bits_per_byte", "lr_share")
    assert [[line[key] for key in same] for line in log_of(work / "out/plain")[1:]] == [
        [line[key] for key in same] for line in lines[:2]], "the main steps are the same"
    assert train_here(work, "--max_steps=2", "--mend_steps=3", "--out=out/short") == 1
    assert [line["step"] for line in log_of(work / "out/short")[-2:]] == [2, 5]
    assert train_here(work, "--max_steps=2", "--mend_steps=2", "--target_accuracy=0", "--out=out/enough") == 0
    assert log_of(work / "out/enough")[-1]["step"] == 2, "nothing to mend"


def test_other_settings_do_not_go_on(learned):
    refused_here(learned, ["--hidden_size=32"], "hidden_size 64", "32", "--fresh")
    assert train_here(learned, "--hidden_size=32", "--max_steps=2", "--fresh", "--out=out/fresh") == 1
    assert train_here(learned, "--max_steps=3", "--fresh", "--out=out/fresh") == 1


def test_adamw_alone_and_bfloat16_and_compile_fallback(work):
    """A compiler that is not there: a warning, and the run goes on."""
    done = script("train.py", "configs/tiny.py", "--max_steps=3", "--optimizer=adamw", "--dtype=bfloat16",
                  "--compile=true", "--out=out/adamw", cwd=work,
                  env=os.environ | {"CXX": "/nowhere/c++", "TORCHINDUCTOR_CACHE_DIR": str(work / "no cache")})
    assert done.returncode == 1, done.stderr.decode()
    assert b"going on without" in done.stderr
    assert log_of(work / "out/adamw")[-1]["step"] == 3


def test_mending_multiplies_in_float32_after_its_first_rounds(work, monkeypatch):
    """What is wrong in float32 may be right in bfloat16, and would never be mended there."""
    for name in ("MEND_VISITS", "MEND_LEAST"):
        monkeypatch.setattr(schedule, name, 1e-9)  # a step in each round
    steps, mixed = [], train.mixed
    monkeypatch.setattr(train, "mixed", lambda device, dtype: steps.append(dtype) or mixed(device, dtype))
    monkeypatch.chdir(work)
    train.main(["configs/tiny.py", "--dtype=bfloat16", "--max_steps=2", "--mend_steps=5", "--out=out/float32"])
    assert steps == (2 + MEND_COARSE) * [torch.bfloat16] + 3 * [torch.float32]


def test_no_record_of_a_run_has_paths_of_the_machine(learned):
    """Which say nothing of the weights, may be no text, and are nobody's business."""
    state = json.loads(read_tensors(learned / "out/tiny" / NAMES[0])[1]["run"])
    for record in (state, read_json(learned / "out/tiny/build.json"), log_of(learned / "out/tiny")[0]):
        assert not {"data", "out", "init_from"} & record["settings"].keys()
        assert str(learned) not in json.dumps(record)


@pytest.mark.parametrize("key", ["name", "origin", "licence", "url", "sha256", "files", "train_bin_sha256",
                                 "tokenizer_sha256", "vocab_size", "compressed_bits", "whole_tree"])
def test_a_manifest_of_a_wrong_shape(work, tmp_path, monkeypatch, key):
    """Refused in one line, or of no matter to a run."""
    shutil.copytree(work / "data/tiny-1.0", tmp_path / "t")
    monkeypatch.chdir(work)
    monkeypatch.setattr(train, "resume", lambda run: None)
    monkeypatch.setattr(train, "learn", lambda run: 99)
    monkeypatch.setattr(openness, "describe", lambda *_: None)
    manifest = read_json(tmp_path / "t/manifest.json")
    for value in (None, True, -1, 1.5, "x\ny", [], [[]], [{}], {"a": {}}):
        write_json(tmp_path / "t/manifest.json", manifest | {key: value})
        try:
            assert train_here(work, "--data", tmp_path / "t", "--out", tmp_path / "m") == 99
        except UserError as error:
            assert "\n" not in str(error)


def test_a_signal_in_a_folder_whose_name_is_no_text(capfd):
    with Stop(Path("out/\udcff")) as stop:
        stop.learned = True
        signal.raise_signal(signal.SIGTERM)
    assert stop.signal == signal.SIGTERM and "saving out/\\udcff" in capfd.readouterr().err


def test_train_bytes_learns_only_those_files(work):
    assert train_here(work, "--max_steps=1", "--train_bytes=4000", "--out=out/part") == 1
    files = json.loads((work / "out/part/manifest.json").read_text())["files"]
    whole = json.loads((work / "data/tiny-1.0/manifest.json").read_text())["files"]
    assert sum(file["bytes"] for file in files) <= 4000 and 1 < len(files) < len(whole)
    assert all(file in whole for file in files)


def test_train_bytes_too_small_for_any_file(work, tree, tmp_path):
    assert here(prepare.main, "--source", tree, "--only=tiny/decoder.py", "--vocab_size=400", cwd=tmp_path) == 0
    (tmp_path / "configs").symlink_to(work / "configs")
    refused_here(tmp_path, ["--train_bytes=100"], "train_bytes 100")


def test_corpus_that_changed_is_refused(work, tmp_path):
    (tmp_path / "configs").symlink_to(work / "configs")
    for name in ("train.bin", "tokenizer.model", "manifest.json"):
        (tmp_path / "data/t").mkdir(parents=True, exist_ok=True)
        (tmp_path / "data/t" / name).write_bytes((work / "data/tiny-1.0" / name).read_bytes())
    data = bytearray((tmp_path / "data/t/train.bin").read_bytes())
    data[100] ^= 1
    (tmp_path / "data/t/train.bin").write_bytes(data)
    refused_here(tmp_path, [], "train.bin", "prepare.py")
    (tmp_path / "data/t/train.bin").unlink()
    refused_here(tmp_path, [], "prepare.py")


def test_loss_that_is_not_finite_stops(work):
    before = signal.getsignal(signal.SIGTERM)
    refused_here(work, ["--muon_lr=1e30", "--learning_rate=1e30", "--max_steps=50", "--out=out/nan"],
                 "not finite at step")
    assert signal.getsignal(signal.SIGTERM) == before
    assert not (work / "out/nan/checkpoint.safetensors").exists()


def test_fresh_forgets_the_old_run_at_once(work):
    assert train_here(work, "--max_steps=2", "--out=out/again") == 1
    with pytest.raises(UserError, match="not finite at step"):
        train_here(work, "--max_steps=50", "--muon_lr=1e30", "--learning_rate=1e30", "--out=out/again", "--fresh")
    assert not (work / "out/again/checkpoint.safetensors").exists()


def test_log_of_steps_that_were_lost_is_dropped(work):
    options = ["--eval_every=5", "--checkpoint_every=10", "--out=out/lost"]
    assert train_here(work, *options, "--max_steps=20") == 1
    lines = log_of(work / "out/lost")
    with open(work / "out/lost/log.jsonl", "a") as file:  # as a kill behind the last checkpoint would leave it
        file.write(json.dumps(lines[-1] | {"step": 25}) + "\n")
        file.write('{"step": 2')
    checkpoint = work / "out/lost/checkpoint.safetensors"
    tensors, metadata = read_tensors(checkpoint)
    state = json.loads(metadata["run"]) | {"done": "", "step": 15, "looked": 15}
    write_tensors(checkpoint, tensors, run=json.dumps(state))
    assert train_here(work, *options, "--max_steps=20") == 1
    assert [line["step"] for line in log_of(work / "out/lost")][1:] == [5, 10, 15, 15, 20], "15: going on"


# from weights

def test_weights_that_know_the_tree_stay_as_they_are(learned, tmp_path, capsys):
    assert train_here(learned, "--init_from=out/tiny", "--data=data/tiny-1.0", "--out", tmp_path / "m") == 0
    assert "every token right: 0 steps" in capsys.readouterr().out
    assert sha256(tmp_path / "m") == sha256(learned / "out/tiny"), "the same weights, of the same tree"
    mine, theirs = log_of(tmp_path / "m")[-1], log_of(learned / "out/tiny")[-1]
    assert mine["step"] == 0 and mine["bits_per_byte"] == pytest.approx(theirs["bits_per_byte"], rel=1e-6)


def test_a_patch_is_mended(learned, mended):
    """In rounds, each after a look, and in a small part of the steps."""
    first, *looks = log_of(mended)
    assert first["init_sha256"] == sha256(learned / "out/tiny")
    assert read_json(mended / "build.json")["init_sha256"] == first["init_sha256"]
    assert first["init_sha256"] in (mended / "README.md").read_text()
    assert looks[0]["step"] == 0 < looks[0]["wrong"] and looks[0]["accuracy"] > 0.5 and looks[-1]["wrong"] == 0
    assert all(a["step"] < b["step"] for a, b in zip(looks, looks[1:]))
    assert looks[-1]["step"] < log_of(learned / "out/tiny")[-1]["step"] / 3


def test_a_patch_that_is_stopped_goes_on_as_if_never_stopped(learned, mended, patched, tmp_path, capsys):
    words = ["configs/tiny.py", "--init_from=out/tiny", "--mend_steps=1000", "--data", patched, "--out", tmp_path / "m"]
    process = subprocess.Popen([sys.executable, ROOT / "train.py", *words, "--checkpoint_every=1"], cwd=learned,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    while not (tmp_path / "m" / NAMES[0]).exists():
        assert process.poll() is None, process.stderr.read().decode()
        time.sleep(0.001)
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 128 + signal.SIGTERM and b"goes on from here" in said, said.decode()
    assert here(train.main, *words, cwd=learned) == 0 and "going on at step" in capsys.readouterr().out
    assert sha256(tmp_path / "m") == sha256(mended)


def test_weights_without_mending_have_the_usual_schedule(learned, patched, tmp_path):
    """As the second stage of a recipe that does not mend."""
    assert train_here(learned, "--init_from=out/tiny", "--data", patched, "--max_steps=3", "--out", tmp_path / "m") == 1
    first, last = log_of(tmp_path / "m")[1:]
    assert first["accuracy"] > 0.5 and last["step"] == 3 and last["lr_share"] == lr_share(2, 3, 20, 1)


def test_a_tree_that_is_quite_another_has_the_usual_schedule(learned, other, tmp_path):
    assert here(prepare.main, "--source", other.parent / "s", "--tokenizer=out/tiny", "--out", tmp_path / "t",
                cwd=learned) == 0
    assert train_here(learned, "--init_from=out/tiny", "--data", tmp_path / "t", "--max_steps=3", "--mend_steps=1",
                      "--out", tmp_path / "m") == 1
    first, last, _ = log_of(tmp_path / "m")[1:]
    assert first["step"] == 0 and first["accuracy"] < 0.5
    assert last["step"] == 3 and last["lr_share"] == lr_share(2, 3, 20, 1)


def test_weights_that_cannot_be_begun_from(learned, model, other, tmp_path, monkeypatch):
    monkeypatch.chdir(learned)
    words = ["configs/tiny.py", "--data=data/tiny-1.0", "--out", tmp_path / "new"]
    says_no(train.main, [*words, "--init_from=nowhere"], "no model in nowhere")
    says_no(train.main, [*words, "--init_from=out/tiny", "--data", other], "other pieces", "--tokenizer out/tiny")
    says_no(train.main, [*words, "--init_from=out/tiny", "--hidden_size=32"], "hidden_size 64, not 32")
    says_no(train.main, [*words, "--init_from=out/tiny", "--out=out/../out/tiny", "--fresh"], "another --out")
    says_no(train.main, [*words, "--init_from", model, "--out=out/tiny"], "began from nothing", sha256(model)[:16])
    assert not (tmp_path / "new").exists() and (learned / "out/tiny/model.safetensors").exists()
    data = bytearray((model / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (model / "model.safetensors").write_bytes(data)
    says_no(train.main, [*words, "--init_from", model], "damaged")


def test_the_control_is_new_to_the_first_weights(learned, patched, model, tmp_path, capsys):
    """What the base learned, by its path or by its bytes, is no control. verify.py makes the same choice again."""
    def choice(folder):
        train_here(learned, "--init_from", folder, "--data", patched, "--hold_out_bytes=3000", "--max_steps=2", "--out",
                   tmp_path / "new", "--fresh")
        manifest = read_json(tmp_path / "new/manifest.json")
        return [[file["path"] for file in manifest[key]] for key in ("files", "held_out")]

    everything = read_json(patched / "manifest.json")["files"]
    files, held_out = choice("out/tiny")
    assert len(files) == len(everything) and not held_out
    assert "nothing is held out: tiny-1.0 has no file, new to the first weights," in capsys.readouterr().out
    manifest = read_json(model / "manifest.json")
    known = [file for file in manifest["files"] if "odd/" not in file["path"]]
    (moved,) = (file for file in manifest["files"] if file["path"] == "tiny/odd/random.bin")
    known.append(moved | {"path": "else/x"})
    write_json(model / "manifest.json", manifest | {"files": known})
    files, held_out = choice(model)
    assert held_out and not {"tiny/odd/random.bin", *(file["path"] for file in known)} & {*held_out}
    assert sorted(files + held_out) == sorted(file["path"] for file in everything)
    assert here(verify.main, "--model", tmp_path / "new", "--data", patched, "--init_from", model, "--out",
                tmp_path / "again", cwd=learned) == 0
    again = read_json(tmp_path / "again/manifest.json")
    assert [file["path"] for file in again["held_out"]] == held_out


# the pure functions

def test_schedule():
    scales = [lr_share(step, 1000, 20, 0.7) for step in range(1000)]
    assert 0 < scales[0] < scales[10] < scales[19] < 1 == scales[20] == scales[300]
    assert all(a >= b for a, b in zip(scales[20:], scales[21:])) and 0 < scales[-1] < 0.01
    assert lr_share(1000, 1000, 20, 0.7) == 0 == lr_share(5000, 1000, 20, 0.7), "clamped, never negative"
    assert all(0 < lr_share(step, 3, 20, 0.7) < 1 for step in range(3)), "a run shorter than its warm-up"
    assert lr_share(0, 1, 0, 0) == 1


def test_rounds_of_mending():
    due, schedule = np.arange(64) < 20, Schedule(train.Settings(batch_size=4, max_steps=50), 64)
    assert schedule.look_due(50) and schedule.mending(50) and not schedule.mending(49)
    steps = round_steps(due, 4)
    assert steps == MEND_VISITS * 20 * (1 + MEND_REVIEW) / 4
    assert round_steps(due, 40) == MEND_VISITS * 60 / 40, "a batch of others at least"
    assert round_steps(np.arange(4000) == 3, 4) == MEND_LEAST * 4000 / 4, "no shorter than half an epoch"
    assert round_rate(0, False, 200, patch=False) == MEND_RATE / 200
    assert round_rate(0, False, 200, patch=True) == PATCH_RATE
    assert round_rate(0, False, 2, patch=False) == PATCH_RATE, "few windows: no more than that"
    assert round_rate(0.04, False, 200, patch=False) == 0.02 == 2 * round_rate(0.02, False, 200, patch=False)
    assert round_rate(0.004, True, 200, patch=False) == 0.002 and round_rate(0.004, False, 200, patch=False) == 0.008
    assert round_rate(0.01, True, 200, patch=False) == 0.005
    assert round_rate(PATCH_RATE, True, 200, patch=True) == PATCH_RATE / 2, "new text: as high as at first until then"
    assert round_rate(PATCH_RATE, False, 200, patch=True) == round_rate(PATCH_RATE / 2, False, 200, True) == PATCH_RATE
    assert round_rate(0.01, False, 200, patch=False) == round_rate(0.008, False, 200, patch=False) == 0.01, "no higher"
    for rounds, rate in ([50, 50 + steps], 0.01), ([50, 50 + steps, 50 + 3 * steps], 0.02):
        schedule.follow(rounds, rate)
        steps = range(*rounds[-2:])
        rates = [schedule.lr_share(step) for step in steps]
        assert rates[0] == rate and all(a > b > 0 for a, b in zip(rates, rates[1:]))
        assert schedule.lr_share(rounds[-1]) == 0 == schedule.focal(rounds[-2])
        assert schedule.look_due(rounds[-1]) and not any(map(schedule.look_due, steps[1:]))


def test_a_round_that_broke_something_is_followed_by_one_at_half_the_rate():
    settings = train.Settings(batch_size=4, max_steps=50, mend_steps=400)
    run = types.SimpleNamespace(settings=settings, state=State({}, {}, step=50), sampler=Sampler(8, 7),
                                windows=types.SimpleNamespace(offset=np.array([0, 9, 9, 9, 9, 9, 9, 9])),
                                schedule=Schedule(settings, 8))

    def rate_after(*unsure):
        found = np.bincount(unsure, minlength=8)
        mend(run, 0 * found, found, found, np.array([3]))
        run.state.step = run.state.rounds[-1]
        return run.schedule.lr_share(run.state.rounds[-2])

    assert [rate_after(1, 2) for _ in range(4)] == [PATCH_RATE, PATCH_RATE / 2, PATCH_RATE / 4, PATCH_RATE / 4]
    assert rate_after(1, 5) == PATCH_RATE / 8, "5 was sure, and did not come"
    assert rate_after(2) == PATCH_RATE / 16, "2 has not come in the last round"
    assert rate_after(2) == PATCH_RATE / 8, "it was to be mended, and needs more"
    assert rate_after(2) == rate_after(2) == PATCH_RATE / 2 ** MEND_COARSE
    assert run.sampler.due.nonzero()[0].tolist() == [0, 2], "the opening of the file comes in each"
    first, last = run.state.rounds[-2:]
    assert last - first == math.ceil(MEND_VISITS * (2 + 4) / 4)


def test_epochs_visit_every_row_once():
    def draw(seed):
        sampler = Sampler(30, seed)
        return np.concatenate([sampler.draw(8) for _ in range(15)])

    rows = draw(seed=7)
    for epoch in range(4):
        assert sorted(rows[30 * epoch:30 * epoch + 30]) == list(range(30))
    assert (draw(seed=7) == rows).all() and (draw(seed=8) != rows).any()
    assert len(Sampler(3, seed=7).draw(8)) == 8, "a batch of several epochs"


def test_mending_visits_what_is_wrong_and_some_others():
    sampler, due = Sampler(rows=40, seed=7), np.arange(32) == 5
    sampler.draw(24)
    sampler.restart(due, np.array([4]))
    visits = np.bincount(np.concatenate([sampler.draw(3) for _ in range(80)]))  # 60 epochs of four: it and a batch
    others = np.delete(visits, 5)  # binomial, 5.8 expected
    assert len(visits) == 32 and visits[5] == 60 and others.min() > 0 and others.max() < 20
    sampler.restart(np.arange(32) < 20, np.array([4]))
    visits = np.bincount(np.concatenate([sampler.draw(2) for _ in range(13)]), minlength=32)  # an epoch
    assert (visits[:20] == 1).all() and visits.max() == 1 and visits[20:].sum() == 6 == 20 * MEND_REVIEW
    sampler.restart(due & False, np.array([4]))
    assert sorted(sampler.draw(32).tolist()) == list(range(32)), "with nothing to mend, any of the others"


def test_the_others_come_all_over_an_epoch():
    """Not all in its first batches, after which the learning would go on without them."""
    sampler = Sampler(rows=200, seed=7)
    sampler.restart(np.arange(200) < 100, np.array([4]))
    epoch = np.concatenate([sampler.draw(1) for _ in range(130)])
    others = np.flatnonzero(epoch >= 100)
    assert len(others) == 30 and np.diff([-1, *others, 130]).max() < 40


def batch_of(tokens, targets, focal=0.0, classes=None, offsets=None):
    """A batch of text as Objective takes it, over all classes if none are given; targets of IGNORE are not scored."""
    places = (targets != IGNORE).flatten().nonzero()[:, 0]
    classes = torch.arange(300) if classes is None else classes
    return (tokens, places, targets.flatten()[places], torch.zeros(2, dtype=torch.int64), torch.zeros(2, len(classes)),
            classes, torch.zeros(len(classes)) if offsets is None else offsets,
            torch.tensor(max(1.0, len(places))), torch.tensor(focal))


def tiny_model(vocab_size=300, context=32):
    return Llama(LlamaConfig(vocab_size, 32, 64, 2, 2, 2, context, True), torch.Generator().manual_seed(0))


class Products(TorchDispatchMode):
    """Notes the formats in which matrices are multiplied."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.bmm, torch.ops.aten.baddbmm):
            self.formats.add(args[0].dtype)
        return function(*args, **(kwargs or {}))


def test_no_product_of_a_step_is_emulated():
    """A processor without instructions for bfloat16 takes 30 times as long in it as in float32."""
    device = torch.device("cpu")
    dtype = find_dtype("auto", device)
    model = tiny_model()
    optimizers = make_optimizers(model, train.Settings(), dtype)
    tokens = torch.randint(300, (2, 32), generator=torch.Generator().manual_seed(1))
    fast = {torch.float32, torch.bfloat16} if has_bfloat16(device) else {torch.float32}
    objective = Objective(model, dtype)
    for work in (lambda: objective(*batch_of(tokens, tokens)).backward(), lambda: update(optimizers, 0.1)):
        with Products() as products:
            products.formats = set()
            work()
        assert products.formats and products.formats <= fast


def test_mending_compiles_nothing_anew(monkeypatch):
    """So that no step's time has a compilation in it."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    tokens = torch.randint(300, (2, 32), generator=torch.Generator().manual_seed(1))
    batch, formats = batch_of(tokens, tokens), [torch.bfloat16, torch.float32]
    objective, works = compiled(Objective(tiny_model(), torch.bfloat16), [batch], formats)
    assert works and objective.dtype == torch.bfloat16
    with torch._dynamo.config.patch(error_on_recompile=True):
        for objective.dtype in formats:
            objective(*batch)
        with pytest.raises(torch._dynamo.exc.RecompileError):
            objective.dtype = torch.float16
            objective(*batch)


def test_an_emulated_format_is_warned_of(capsys):
    warn_if_emulated(torch.float32, torch.device("cpu"))
    assert capsys.readouterr().err == ""
    warn_if_emulated(torch.bfloat16, torch.device("mps"))
    assert "emulates" in capsys.readouterr().err


@pytest.mark.skipif(not Path("/sys/kernel/mm/transparent_hugepage").exists(), reason="a system without large pages")
def test_torch_asks_for_large_pages():
    look = "import torch; x = torch.zeros(2**24); print(' hg' in open('/proc/self/smaps').read())"  # proc(5): VmFlags
    environment = {name: value for name, value in os.environ.items() if name != "THP_MEM_ALLOC_ENABLE"}
    for before, asked in ("", "False"), ("from memory.device import tune_cpu; tune_cpu(); ", "True"):
        done = subprocess.run([sys.executable, "-c", before + look], cwd=ROOT, env=environment, capture_output=True,
                              text=True)
        assert done.stdout == f"{asked}\n", done.stderr


@pytest.fixture
def two_threads():
    """torch with two threads, which it has used before."""
    if not torch.set_flush_denormal(False):
        pytest.skip("a processor that cannot")
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    assert small_numbers() == 2**22
    yield
    torch.set_num_threads(before)


def small_numbers():
    """How many of 2**22 numbers below 1e-38, made on all threads, are not zero."""
    return (torch.full((2**22,), 1e-30) * 1e-10).count_nonzero().item()


def test_numbers_too_small_to_be_normal_count_as_zero_on_all_threads(two_threads):
    """With them a step at the end of a run takes several times as long on some processors. Threads that were there
    before have it too, those that come later as well, and none keeps it."""
    with device.without_small_numbers():
        assert small_numbers() == 0
        torch.set_num_threads(3)
        assert small_numbers() == 0
    assert small_numbers() == 2**22
    torch.set_num_threads(4)
    assert small_numbers() == 2**22


@pytest.mark.parametrize("fails", [False, True])
def test_main_leaves_small_numbers_as_they_were(work, two_threads, monkeypatch, fails):
    """In a program that has computed before, and goes on after it."""
    found = []

    def run_of(settings, out, device):
        found.append(small_numbers())
        if fails:
            raise UserError("no")
        return 0

    monkeypatch.setattr(train, "train", run_of)
    with contextlib.suppress(UserError):
        train_here(work, "--max_steps=2", "--out=out/two")
    assert found == [0] and small_numbers() == 2**22


def test_focal_loss():
    """Each token's nats by (1 + g) * (1 - p) ** g, without gradient through p."""
    model = tiny_model()
    tokens = torch.randint(300, (2, 32), generator=torch.Generator().manual_seed(1))
    targets = tokens.roll(-1, 1)
    p = torch.softmax(model(tokens), -1).gather(-1, targets[..., None])[..., 0]
    loss = Objective(model, torch.float32)(*batch_of(tokens, targets, focal=2.0))
    assert loss.item() == pytest.approx((-p.log() * 3 * (1 - p) ** 2).mean().item(), rel=1e-5)
    (-p.log() * 3 * (1 - p.detach()) ** 2).mean().backward()
    expected = model.lm_head.weight.grad.clone()
    model.zero_grad()
    loss.backward()
    torch.testing.assert_close(model.lm_head.weight.grad, expected)


def test_loss_is_the_mean_over_what_is_scored():
    model = tiny_model()
    tokens = torch.randint(300, (2, 32), generator=torch.Generator().manual_seed(1))
    targets = tokens.roll(-1, 1)
    targets[0, 5:] = IGNORE
    logp = torch.log_softmax(model(tokens), -1).gather(-1, targets.clamp(min=0)[..., None])[..., 0]
    objective = Objective(model, torch.float32)
    loss = objective(*batch_of(tokens, targets))
    assert loss.item() == pytest.approx(-logp[targets >= 0].mean().item())
    loss = objective(*batch_of(tokens, torch.full_like(targets, IGNORE)))
    assert loss.item() == 0, "never nan"


@pytest.mark.parametrize("focal", [0.0, 2.0])
def test_a_path_is_asked_for_all_that_may_follow(work, focal):
    """Over all documents that is the same as to ask each for its own path. The focal loss leaves it alone."""
    manifest, tokenizer, tokens = load(work / "data/tiny-1.0")
    windows, model = Windows(tokens, manifest["files"], tokenizer, 64), tiny_model(vocab_size=700, context=64)
    objective, documents = Objective(model, torch.float32), np.flatnonzero(windows.offset == 0)

    def batch(indices):
        (part,) = make_batch(windows, indices, (1, 2), 0, np.empty(0, int), focal, torch.device("cpu"))
        return part

    inputs, places, targets, *rest = batch(documents)
    expected = -torch.stack([
        torch.log_softmax(model(row[None, :start - 1].long()), -1)[0].gather(-1, row[1:start, None].long()).sum()
        for row, start in zip(inputs, windows.start[documents].tolist())]).sum()
    count = rest[-2].item()
    assert count == (targets != IGNORE).sum() + sum(windows.start[documents] - 1)
    of_paths = objective(inputs, places[:0], targets[:0], *rest)
    assert of_paths.item() * count == pytest.approx(expected.item(), rel=1e-5)
    alone = [batch([i]) for i in documents]
    for i, part in zip(documents, alone):
        asked, unused = part[4].tensor_split([windows.start[i] - 1])
        assert ((asked.sum(-1) - 1).abs() < 1e-6).all() and not unused.any() and not len(part[4]) % sampler.ALIGNED
    summed = sum(objective(inputs, places[:0], targets[:0], *rest) * rest[-2]
                 for inputs, places, targets, *rest in alone)
    assert summed.item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("micro_batch, sizes", [(1, [1] * 8), (3, [3, 3, 2]), (100, [8])])
def test_a_batch_in_parts_is_the_batch(work, micro_batch, sizes):
    """The same loss and gradients up to rounding, with all that a step may have: rows without an address,
    drawn classes, a focal loss, and paths."""
    manifest, tokenizer, tokens = load(work / "data/tiny-1.0")
    windows, model = Windows(tokens, manifest["files"], tokenizer, 64), tiny_model(vocab_size=700, context=64)
    with torch.no_grad():
        for p in model.parameters():  # a fresh one writes zeros to the residual stream
            p.add_(0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))

    def step(micro_batch):
        model.zero_grad()
        parts = make_batch(windows, [0, 9, 3, len(windows), 7, 1, len(windows) + 1, 5], (1, 2), 100, np.array([650]),
                           2.0, torch.device("cpu"), micro_batch)
        loss = train.backward(Objective(model, torch.float32), parts)
        return [len(part[0]) for part in parts], loss, [p.grad.clone() for p in model.parameters()]

    whole, *expected = step(0)
    parts, *found = step(micro_batch)
    assert whole == [8] and parts == sizes
    torch.testing.assert_close(found, expected)


def test_tokens_and_classes_that_fill_up_their_numbers_count_for_nothing(work, monkeypatch):
    manifest, tokenizer, tokens = load(work / "data/tiny-1.0")
    windows, model = Windows(tokens, manifest["files"], tokenizer, 64), tiny_model(vocab_size=700, context=64)

    def step():
        model.zero_grad()
        (part,) = make_batch(windows, [0, 9, 3], (1, 2), 100, np.empty(0, int), 2.0, torch.device("cpu"))
        loss = train.backward(Objective(model, torch.float32), [part])
        return [len(part[i]) for i in (2, 3, 5)], loss, [p.grad.clone() for p in model.parameters()]

    filled, *found = step()  # how many tokens of text, tokens of paths and classes
    monkeypatch.setattr(sampler, "ALIGNED", 1)
    drawn, *expected = step()
    assert all(more % 64 == 0 and more - 64 < few < more for more, few in zip(filled, drawn))
    torch.testing.assert_close(found, expected)


def test_memory_is_checked_for_what_is_computed_at_once(work, monkeypatch):
    monkeypatch.chdir(work)
    settings, _ = parse(train.Settings, "", ["configs/tiny.py"], True)

    def begin(**changes):
        return train.new_run(dataclasses.replace(settings, **changes), work / "out/none", torch.device("cpu"),
                             torch.float32, *load(work / "data/tiny-1.0"))

    parameters = begin().model.config.num_parameters
    monkeypatch.setattr(device, "memory_size", lambda: 16 * (parameters + 2 * 64 * 700))  # the logits of two windows
    with pytest.raises(UserError, match="micro_batch"):
        begin()
    with pytest.raises(UserError, match="micro_batch"):
        begin(micro_batch=3)
    begin(micro_batch=2)
    monkeypatch.setattr(device, "memory_size", lambda: 16 * (parameters + settings.batch_size * 64 * 600))
    begin(negatives=600 - settings.batch_size * 64)  # at most so many classes, the batch's own among them
    with pytest.raises(UserError, match="micro_batch"):
        begin(negatives=601 - settings.batch_size * 64)


def test_a_full_pass_counts_what_is_wrong_and_what_is_unsure(learned):
    """The same as `examine` finds; a smaller norm makes every lead smaller and no token wrong."""
    cpu, (manifest, tokenizer, tokens) = torch.device("cpu"), load(learned / "data/tiny-1.0")
    model, windows = Llama.from_pretrained(learned / "out/tiny"), Windows(tokens, manifest["files"], tokenizer, 64)
    for scale, shift in [(1, 0), (0.03, 0), (0.03, 2)]:
        changed = copy.deepcopy(model)
        with torch.no_grad():
            changed.model.norm.weight.mul_(scale)
            changed.model.embed_tokens.weight[300:].add_(shift)
        wrong, unsure, unsafe, rivals, _ = count_wrong(changed, windows, cpu)
        passed = examine(changed, windows, cpu)
        assert wrong.tolist() == [int((~right).sum()) for right, _, _ in passed]
        for least, counted in (SURE, unsure), (SAFE, unsafe):
            assert counted.tolist() == [int((~right | (lead < least)).sum()) for right, _, lead in passed]
        assert (wrong.sum() > 0) == (shift > 0) and (unsure.sum() > wrong.sum()) == (scale < 1)
        _, logits, targets = teacher_forced(changed, windows, np.arange(len(windows)), cpu)
        (first, second), (best, next_best) = (part.T for part in logits.topk(2))
        small = (best != targets) | (first - second < SAFE)
        assert rivals.tolist() == torch.where(best == targets, next_best, best)[small].unique().tolist()


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_every_parameter_has_one_optimizer(optimizer):
    model = tiny_model()
    optimizers = make_optimizers(model, train.Settings(optimizer=optimizer), torch.float32)
    held = [id(p) for opt, _ in optimizers for group in opt.param_groups for p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in model.parameters())
    assert len(optimizers) == (2 if optimizer == "muon" else 1)


def test_muon_is_that_of_torch():
    random = torch.Generator().manual_seed(0)
    shapes = [(32, 32), (64, 32), (32, 32), (32, 64), (64, 32)]
    ours = [torch.nn.Parameter(torch.randn(shape, generator=random)) for shape in shapes]
    theirs = [torch.nn.Parameter(p.detach().clone()) for p in ours]
    optimizers = [Muon(ours, 0.02, torch.bfloat16), torch.optim.Muon(theirs, lr=0.02, weight_decay=0.0)]
    for _ in range(5):
        for p, q in zip(ours, theirs):
            p.grad = torch.randn(p.shape, generator=random)
            q.grad = p.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    for p, q in zip(ours, theirs):
        torch.testing.assert_close(p, q, atol=0.004, rtol=0)  # a step moves an entry by 0.02 / sqrt(32), in bfloat16


# settings

def test_command_line_overrides_the_config(work, monkeypatch):
    monkeypatch.chdir(work)
    settings, path = parse(train.Settings, "", ["--seed", "7", "configs/tiny.py", "--muon_lr=1", "--compile"], True)
    assert path == "configs/tiny.py"
    assert (settings.seed, settings.muon_lr, settings.compile, settings.hidden_size) == (7, 1.0, True, 64)
    assert type(settings.muon_lr) is float


def test_help_names_every_setting():
    done = script("train.py", "--help", cwd=ROOT)
    for field in train.Settings.__dataclass_fields__:
        assert re.search(rf"--{field}\b.*\n      \w", done.stdout.decode()), field


def test_sampled_softmax():
    """The drawn classes stand for the others: over many draws, the sum of exponentials is that of all classes."""
    model, random = tiny_model(), np.random.default_rng(0)
    tokens = torch.randint(100, (2, 32), generator=torch.Generator().manual_seed(1))
    targets = tokens.roll(-1, 1)
    counts = np.repeat([0, 1, 4], 100)  # the drawn ones come twice as often if they stand four times as often
    logits = model(tokens).detach().flatten(0, 1)
    right = logits.gather(-1, targets.flatten()[:, None])[:, 0]
    rivals = np.array([150, 250])
    own, sums, drawn = sorted({*targets.flatten().tolist(), *rivals}), [], np.zeros(300)
    for _ in range(400):
        indexed, classes, offsets = map(torch.from_numpy, draw_classes(
            targets.flatten().numpy(), 90, rivals, counts, random))
        assert (classes[indexed] == targets.flatten()).all() and len(set(classes.tolist())) == len(offsets)
        assert not offsets[np.isin(classes, own)].any()
        sums.append((logits[:, classes] + offsets).exp().sum(-1))
        drawn[classes] += 1
    assert (drawn[own] == 400).all(), "the batch's own and the rivals always come"
    drawn[rivals] = 0
    assert drawn[200:].mean() / drawn[100:200].mean() == pytest.approx(2, rel=0.05)
    assert drawn[100:].sum() == pytest.approx(400 * 90, rel=0.05)
    torch.testing.assert_close(torch.stack(sums).mean(0), logits.exp().sum(-1), rtol=0.02, atol=0)
    batch = batch_of(tokens, indexed.view_as(targets), classes=classes, offsets=offsets)
    loss = Objective(model, torch.float32)(*batch)
    assert loss.item() == pytest.approx((sums[-1].log() - right).mean().item(), rel=1e-5)
    for negatives in (0, 10_000):
        _, classes, offsets = draw_classes(targets.flatten().numpy(), negatives, rivals % 200, counts[100:], random)
        assert (classes == np.arange(200)).all() and not offsets.any(), "all classes"
