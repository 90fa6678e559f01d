"""Several processes make the run that one makes, and a lost one loses nothing."""
import json
import os
import signal
import socket
import subprocess
import sys
import time

import pytest
from conftest import OPTIONS, ROOT, script, start

from memory.checkpoint import NAMES


def torchrun(work, count, *words):
    return subprocess.run([sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={count}",
                           ROOT / "train.py", *OPTIONS, *words], cwd=work, capture_output=True, timeout=300)


def log_of(folder):
    return {line["step"]: line for line in map(json.loads, (folder / "log.jsonl").read_text().splitlines())
            if "accuracy" in line}


def test_two_processes_make_the_same_run(work, whole, tmp_path):
    """The same batches, the same curve up to rounding; and a run goes on with another number of processes, also if each
    computes its share in parts."""
    done = torchrun(work, 2, "--out", tmp_path / "two")
    assert done.returncode == 1, "tokens are wrong: " + done.stderr.decode()
    assert (tmp_path / "two/SHA256SUMS").exists(), "all is written before torchrun ends the others"
    assert done.stdout.count(b"2 processes") == 1, "only the first process talks"
    one, two = log_of(work / "out/undisturbed"), log_of(tmp_path / "two")
    assert one.keys() == two.keys()
    for step in one:
        assert two[step]["loss"] == pytest.approx(one[step]["loss"], rel=2e-2)
        assert two[step]["bits_per_byte"] == pytest.approx(one[step]["bits_per_byte"], rel=5e-2)
        assert two[step]["accuracy"] == pytest.approx(one[step]["accuracy"], abs=0.02)

    process = start(work, tmp_path / "mixed", "--micro_batch=3")
    while not (tmp_path / "mixed" / NAMES[0]).exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=300)
    done = torchrun(work, 2, "--micro_batch=3", "--out", tmp_path / "mixed")
    assert done.returncode == 1 and b"going on at step" in done.stdout, done.stderr.decode()
    assert log_of(tmp_path / "mixed")[160]["loss"] == pytest.approx(one[160]["loss"], rel=1e-2)


def test_two_processes_mend_a_patch(learned, mended, patched, tmp_path):
    done = torchrun(learned, 2, "--init_from=out/tiny", "--data", patched, "--max_steps=0", "--mend_steps=1000",
                    "--unaddressed=0", "--out", tmp_path / "two")
    assert done.returncode == 0 and b"every token right" in done.stdout, done.stdout.decode() + done.stderr.decode()
    one, two = log_of(mended), log_of(tmp_path / "two")
    assert two[0]["wrong"] == one[0]["wrong"] and list(two)[1] == list(one)[1], "the same first round"


def of_a_group(count):
    """The environment of each process of a group on this machine, as torchrun gives it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return [os.environ | {"RANK": str(rank), "WORLD_SIZE": str(count), "LOCAL_RANK": str(rank),
                          "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)} for rank in range(count)]


def two_by_hand(work, *words):
    """Two processes of one run, each started by hand, as on two machines; {rank} in a word is its number."""
    return [subprocess.Popen(
        [sys.executable, ROOT / "train.py", *OPTIONS, *(str(word).format(rank=rank) for word in words)], cwd=work,
        stderr=subprocess.PIPE, stdout=subprocess.PIPE, env=env) for rank, env in enumerate(of_a_group(2))]


@pytest.mark.parametrize("dies", [0, 1])
def test_a_process_that_dies_ends_the_run(work, tmp_path, dies):
    """And its last state is whole: one process alone goes on from it."""
    group = two_by_hand(work, "--max_steps=5000", "--out", tmp_path / "run")
    while not (tmp_path / "run" / NAMES[1]).exists():
        assert group[0].poll() is None, group[0].communicate()[1].decode()
        time.sleep(0.01)
    group[dies].kill()
    group[dies].communicate(timeout=300)
    _, err = group[1 - dies].communicate(timeout=300)
    assert group[1 - dies].returncode == 2 and f"process {1 - dies} of 2 lost the others".encode() in err, err.decode()
    assert b"Traceback" not in err
    done = script("train.py", *OPTIONS, "--max_steps=5000", "--target_accuracy=0.3", "--out", tmp_path / "run",
                  cwd=work)
    assert done.returncode == 0 and b"going on at step" in done.stdout, done.stderr.decode()


def test_more_processes_than_rows(work, tmp_path):
    done = torchrun(work, 2, "--batch_size=1", "--out", tmp_path / "run")
    assert done.returncode and b"batch_size of 1" in done.stderr and b"train.py: a batch_size" in done.stderr


def test_processes_that_differ(work, tmp_path):
    for process in two_by_hand(work, "--seed={rank}", "--out", tmp_path / "run"):
        _, err = process.communicate(timeout=300)
        assert process.returncode == 2 and b"the processes differ in their settings" in err, err.decode()
        assert b"Traceback" not in err


def test_nothing_is_left_of_a_group():
    """Or its threads, which may want Python's lock, abort Python at its end: seldom, so this looks for its store."""
    code = """if True:
        import os, socket, torch
        from memory import device, processes
        store = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        with processes.group(torch.device("cpu"), "out"):
            device.make_deterministic()
            socket.create_connection(store).close()
        try:
            socket.create_connection(store)
        except ConnectionRefusedError:
            print("gone")
        """
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, timeout=300,
                          env=of_a_group(1)[0])
    assert done.stdout == b"gone\n", done.stderr.decode()
