"""What machines and people do to a run: kills, full disks, flipped bits, other corpora, a second run."""
import json
import os
import random
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time

import pytest
import torch
from conftest import ROOT, refused, says_no, script

import extract
from memory.checkpoint import NAMES, read_tensors, write_tensors
from memory.files import lock, read_json, write_json
import sample
import train

OPTIONS = ["configs/tiny.py", "--max_steps=80", "--mend_steps=80", "--eval_every=80",
           "--checkpoint_every=20"]


def start(work, out, *words):
    return subprocess.Popen([sys.executable, ROOT / "train.py", *OPTIONS, f"--out={out}", *words], cwd=work,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def sha256(folder):
    return read_json(folder / "build.json")["model_sha256"]


@pytest.fixture(scope="module")
def whole(work):
    """The hash of the weights of one undisturbed run."""
    assert script("train.py", *OPTIONS, "--out=out/undisturbed", cwd=work).returncode == 0
    return sha256(work / "out/undisturbed")


@pytest.fixture
def stopped(work, tmp_path):
    """A folder with a run stopped half-way, and both states in it."""
    folder = work / "out/half-way"
    if not folder.exists():
        process = start(work, "out/half-way")
        while not (folder / NAMES[1]).exists() and process.poll() is None:
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
    shutil.copytree(folder, tmp_path / "run")
    return tmp_path / "run"


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


def test_twenty_kills(work, whole):
    survived, found = kills(work, "out/killed", 20, seed=1)
    assert survived == 20, "the run was long enough"
    assert found == whole
    lines = [json.loads(line) for line in (work / "out/killed/log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "accuracy" in line] == [80, 160], "each evaluation is logged once"


@pytest.mark.soak
def test_a_hundred_kills(work, whole):
    for seed in range(5):
        survived, found = kills(work, f"out/soak{seed}", 20, seed=100 + seed)
        print(f"{survived} kills")
        assert found == whole


@pytest.mark.parametrize("size", [2_000, 100_000, 700_000])
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
def test_damaged_checkpoint(work, stopped, whole, how):
    """The previous state takes over; where both are damaged, that is said, and nothing is touched."""
    spoil(stopped / NAMES[0], how)
    done = script("train.py", *OPTIONS, "--out", stopped, cwd=work)
    assert done.returncode == 0 and b"checkpoint.safetensors is damaged" in done.stderr, done.stderr.decode()
    assert b"going on from checkpoint.previous.safetensors" in done.stderr
    assert sha256(stopped) == whole
    for name in NAMES:
        spoil(stopped / name, how)
    before = {name: (stopped / name).read_bytes() for name in os.listdir(stopped)}
    refused(script("train.py", *OPTIONS, "--out", stopped, cwd=work), *NAMES, "damaged", "--fresh")
    assert {name: (stopped / name).read_bytes() for name in os.listdir(stopped)} == before


def test_damaged_checkpoint_and_a_full_disk(work, stopped, whole):
    """The state before the damaged one is kept until there is a newer one."""
    spoil(stopped / NAMES[0], "middle")
    done = script("train.py", *OPTIONS, "--out", stopped, cwd=work, preexec_fn=lambda: resource.setrlimit(
        resource.RLIMIT_FSIZE, (700_000, 700_000)))
    assert done.returncode == 2 and b"cannot write" in done.stderr
    done = script("train.py", *OPTIONS, "--out", stopped, cwd=work)
    assert done.returncode == 0 and sha256(stopped) == whole, done.stderr.decode()


def test_a_finished_run_writes_its_model_again(work, tmp_path, whole):
    shutil.copytree(work / "out/undisturbed", tmp_path / "run")
    spoil(tmp_path / "run/model.safetensors", "middle")
    done = script("train.py", *OPTIONS, "--out", tmp_path / "run", cwd=work)
    assert done.returncode == 0 and whole.encode() in done.stdout, done.stderr.decode()
    assert (tmp_path / "run/model.safetensors").read_bytes() == (work / "out/undisturbed/model.safetensors").read_bytes()


@pytest.fixture
def model(learned, tmp_path):
    return shutil.copytree(learned / "out/tiny", tmp_path / "m")


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


@pytest.fixture(scope="module")
def other(work, tree, tmp_path_factory):
    """Another tree, with a tokenizer of its own of as many pieces."""
    folder = tmp_path_factory.mktemp("other")
    (folder / "s").mkdir()
    (folder / "s/decoder.py").write_bytes((tree / "decoder.py").read_bytes()[::-1] * 2)
    done = script("prepare.py", "--source", folder / "s", "--vocab_size=700", "--out", folder / "t", cwd=folder)
    assert done.returncode == 0, done.stderr.decode()
    return folder / "t"


def test_other_corpus(work, learned, stopped, model, other):
    """Refused at going on, sampling and extraction alike."""
    refused(script("train.py", *OPTIONS, "--out", stopped, "--data", other, cwd=work), "another tree", "leave --data out")
    refused(script("extract.py", "--model", model, "--data", other, cwd=learned), str(other), "not the tree")
    shutil.copy(other / "tokenizer.model", model)
    for words in (["sample.py"], ["extract.py", "--check"]):
        refused(script(*words, "--model", model, cwd=learned), "tokenizer.model", "manifest.json")
    shutil.copy(other / "manifest.json", model)  # now these two fit, but not the weights
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


def test_built_again_and_compared(work, tmp_path, whole, other):
    done = script("verify.py", "--model=out/undisturbed", "--out", tmp_path / "again", cwd=work)
    assert done.returncode == 0 and f"equal: out/undisturbed and {tmp_path}/again" in done.stdout.decode()
    assert whole in done.stdout.decode()
    assert b"another" not in done.stdout, "the surroundings are the same"
    again = script("verify.py", "--model=out/undisturbed", "--out", tmp_path / "again", cwd=work)
    assert again.returncode == 0 and b"160 steps in" in again.stdout, "it builds each time, and believes no old build"
    refused(script("verify.py", "--model=out/undisturbed", "--out=out/../out/undisturbed", cwd=work), "the model itself")
    refused(script("verify.py", "--model=out/undisturbed", "--data", other, cwd=work), str(other), "not the tree")


def test_an_interrupted_build_goes_on(work, tmp_path, whole, stopped):
    """Also with the same tokens under another manifest, as another way to the tree gives."""
    record = read_json(stopped / "build.json")
    record["corpus"]["url"], record["corpus"]["manifest"] = "https://example.org/tiny.tar", "0" * 64
    del record["settings"]["unaddressed"]  # as if the build were older than that setting
    write_json(stopped / "build.json", record)
    done = script("verify.py", "--model=out/undisturbed", "--out", stopped, cwd=work)
    assert done.returncode == 0 and b"going on at step" in done.stdout, done.stdout.decode() + done.stderr.decode()
    assert b"equal: " in done.stdout


def test_built_again_with_a_compiler_and_two_threads(work, tmp_path):
    """Which add up in parallel, in whatever order unless told otherwise."""
    environment = os.environ | {"OMP_NUM_THREADS": "2"}
    done = script("train.py", "configs/tiny.py", "--compile=true", "--dtype=auto", "--hidden_size=128",
                  "--max_position_embeddings=128", "--batch_size=16", "--max_steps=20", "--out", tmp_path / "m", cwd=work,
                  env=environment)
    assert done.returncode == 0, done.stderr.decode()
    assert read_json(tmp_path / "m/build.json")["built_by"][-1]["threads"] == 2
    done = script("verify.py", "--model", tmp_path / "m", "--out", tmp_path / "again", cwd=work, env=environment)
    assert done.returncode == 0 and b"equal: " in done.stdout, done.stdout.decode() + done.stderr.decode()


def test_built_again_and_not_the_same(work, tmp_path, whole):
    """Weights that another seed made, passed off as those of this one."""
    other = script("train.py", *OPTIONS, "--seed=5", "--out", tmp_path / "m", cwd=work)
    assert other.returncode == 0
    record = read_json(tmp_path / "m/build.json")
    record["settings"]["seed"] = 1337
    write_json(tmp_path / "m/build.json", record)
    done = script("verify.py", "--model", tmp_path / "m", "--out", tmp_path / "again", cwd=work)
    assert done.returncode == 1 and b"NOT equal" in done.stdout, done.stderr.decode()
    assert b"the logs first differ at step 80: wrong" in done.stdout


def test_nothing_to_build_again(work, stopped, learned, model, tmp_path):
    refused(script("verify.py", "--model", stopped, cwd=work), "not finished")
    (model / "build.json").unlink()
    refused(script("verify.py", "--model", model, cwd=learned), "build.json")
    refused(script("verify.py", "--model", tmp_path / "nowhere", cwd=learned), "nowhere")


def torchrun(work, count, *words):
    return subprocess.run([sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={count}",
                           ROOT / "train.py", *OPTIONS, *words], cwd=work, capture_output=True, timeout=300)


def log_of(folder):
    return {line["step"]: line for line in map(json.loads, (folder / "log.jsonl").read_text().splitlines())
            if "accuracy" in line}


def test_two_processes_make_the_same_run(work, whole, tmp_path):
    """The same batches, the same curve up to rounding; and a run goes on with another number of processes."""
    done = torchrun(work, 2, "--out", tmp_path / "two")
    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout.count(b"2 processes") == 1, "only the first process talks"
    one, two = log_of(work / "out/undisturbed"), log_of(tmp_path / "two")
    assert one.keys() == two.keys()
    for step in one:
        assert two[step]["loss"] == pytest.approx(one[step]["loss"], rel=2e-2)
        assert two[step]["bits_per_byte"] == pytest.approx(one[step]["bits_per_byte"], rel=5e-2)
        assert two[step]["accuracy"] == pytest.approx(one[step]["accuracy"], abs=0.02)

    process = start(work, tmp_path / "mixed")
    while not (tmp_path / "mixed" / NAMES[0]).exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    done = torchrun(work, 2, "--out", tmp_path / "mixed")
    assert done.returncode == 0 and b"going on at step" in done.stdout, done.stderr.decode()
    assert log_of(tmp_path / "mixed")[160]["loss"] == pytest.approx(one[160]["loss"], rel=1e-2)


def two_by_hand(work, *words):
    """Two processes of one run, each started by hand, as on two machines; {rank} in a word is its number."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return [subprocess.Popen(
        [sys.executable, ROOT / "train.py", *OPTIONS, *(str(word).format(rank=rank) for word in words)], cwd=work,
        stderr=subprocess.PIPE, stdout=subprocess.PIPE, env=os.environ | {
            "RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port)}) for rank in range(2)]


@pytest.mark.parametrize("dies", [0, 1])
def test_a_process_that_dies_ends_the_run(work, tmp_path, dies):
    """And its last state is whole: one process alone goes on from it."""
    group = two_by_hand(work, "--max_steps=5000", "--out", tmp_path / "run")
    while not (tmp_path / "run" / NAMES[1]).exists():
        assert group[0].poll() is None, group[0].communicate()[1].decode()
        time.sleep(0.01)
    group[dies].kill()
    group[dies].communicate(timeout=60)
    _, err = group[1 - dies].communicate(timeout=120)
    assert group[1 - dies].returncode == 2 and f"process {1 - dies} of 2 lost the others".encode() in err, err.decode()
    assert b"Traceback" not in err
    done = script("train.py", *OPTIONS, "--max_steps=5000", "--target_accuracy=0.3", "--out", tmp_path / "run", cwd=work)
    assert done.returncode == 0 and b"going on at step" in done.stdout, done.stderr.decode()


def test_more_processes_than_rows(work, tmp_path):
    done = torchrun(work, 2, "--batch_size=1", "--out", tmp_path / "run")
    assert done.returncode and b"batch_size of 1" in done.stderr and b"train.py: a batch_size" in done.stderr


def test_weights_that_are_not_finite_are_never_saved(work, stopped):
    """The step that breaks the weights may still have a finite loss."""
    before = {name: (stopped / name).read_bytes() for name in (*NAMES, "model.safetensors")}
    tensors, metadata = read_tensors(stopped / NAMES[0])
    name = next(name for name in tensors if "momentum" in name)
    write_tensors(stopped / NAMES[0], tensors | {name: torch.full_like(tensors[name], torch.inf)}, **metadata)
    done = script("train.py", *OPTIONS, "--out", stopped, cwd=work)
    assert done.returncode == 2 and b"not finite at step" in done.stderr, done.stderr.decode()
    assert (stopped / "model.safetensors").read_bytes() == before["model.safetensors"]


def test_processes_that_differ(work, tmp_path):
    for process in two_by_hand(work, "--seed={rank}", "--out", tmp_path / "run"):
        _, err = process.communicate(timeout=120)
        assert process.returncode == 2 and b"the processes differ in their settings" in err, err.decode()
        assert b"Traceback" not in err
