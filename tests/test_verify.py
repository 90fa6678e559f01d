"""A model built again from its data: equal to the bit, or told where it is not."""
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from conftest import OPTIONS, ROOT, here, says_no, sha256, start

from memory.checkpoint import NAMES, read_metas, read_tensors, write_tensors
from memory.files import digest_of, read_json, write_json
from memory.output import UserError
from memory.records import BUILD
from verify import differences, where_they_differ
import train
import verify


def contents_of(folder):
    """{name: bytes} of a folder, but for the lock."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != ".lock"}


def rewrite(folder, change):
    """Changes build.json, a dict, and its digest."""
    record = read_json(folder / "build.json")
    change(record)
    write_json(folder / "build.json", record)


def no_build(*_):
    raise AssertionError("nothing is to be built")


def test_built_again_and_compared(work, tmp_path, whole, other, monkeypatch, capfd):
    """In surroundings of its own, whatever this process has set, also if tokens were left wrong."""
    torch.set_default_dtype(torch.float64)
    try:
        assert here(verify.main, "--model=out/undisturbed", "--out", tmp_path / "again", cwd=work) == 0
    finally:
        torch.set_default_dtype(torch.float32)
    said = capfd.readouterr().out
    assert "160 steps in" in said and f"equal: out/undisturbed and {tmp_path}/again" in said and whole in said
    assert "another" not in said, "the surroundings are the same"
    items = {item["number"]: item for item in read_json(work / "out/undisturbed/openness.json")["items"]}
    rebuilt = read_json(work / "out/undisturbed/rebuilt.json")
    assert items[16]["answer"] == "yes" and rebuilt["rebuilt_sha256"] == whole and rebuilt["steps"] == 160
    assert rebuilt["built_by"] == read_json(tmp_path / "again/build.json")["built_by"]
    monkeypatch.chdir(work)
    monkeypatch.setattr(verify, "build", no_build)
    before = contents_of(tmp_path / "again")
    says_no(verify.main, ["--model=out/undisturbed", "--out", tmp_path / "again"], "finished", "another --out")
    assert contents_of(tmp_path / "again") == before
    says_no(verify.main, ["--model=out/undisturbed", "--out=out/../out/undisturbed"], "the model itself")
    says_no(verify.main, ["--model=out/undisturbed", "--data", other, "--out", tmp_path / "new"], str(other),
            "not the tree")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("what", ["another run", "a model", "somebody's page", "a damaged state"])
def test_a_folder_of_something_else_is_not_built_in(work, whole, stopped, learned, tmp_path, monkeypatch, what):
    out = tmp_path / "out"
    if what == "another run":
        shutil.copytree(stopped, out)
        tensors, metadata = read_tensors(out / NAMES[0])
        meta = json.loads(metadata["run"])
        meta["settings"]["seed"] = 5
        write_tensors(out / NAMES[0], tensors, run=json.dumps(meta))
    else:
        out.mkdir()
        name = {"a model": "model.safetensors", "somebody's page": "index.html"}.get(what, NAMES[0])
        (out / name).write_bytes(b"mine")
    before = contents_of(out)
    monkeypatch.chdir(work)
    if what == "a damaged state":  # of which train.py says so
        assert verify.main(["--model=out/undisturbed", "--out", str(out)]) == 2
    else:
        monkeypatch.setattr(verify, "build", no_build)
        says_no(verify.main, ["--model=out/undisturbed", "--out", out], str(out), "holds", "another --out")
    assert contents_of(out) == before


def test_an_interrupted_build_goes_on(work, tmp_path, whole, stopped, capfd):
    """Also with the same tokens under another manifest, as another way to the tree gives."""
    tensors, metadata = read_tensors(stopped / NAMES[0])
    meta = json.loads(metadata["run"])
    meta["corpus"]["url"], meta["corpus"]["manifest"] = "https://example.org/tiny.tar", "0" * 64
    write_tensors(stopped / NAMES[0], tensors, run=json.dumps(meta))
    (stopped / "build.json").unlink()  # as after a kill
    assert here(verify.main, "--model=out/undisturbed", "--out", stopped, cwd=work) == 0
    said = capfd.readouterr().out
    assert "going on at step" in said and "equal: " in said


def test_a_signal_reaches_the_build(work, whole, tmp_path):
    """Which saves, and verify.py ends as it does. The build is one that would take long."""
    shutil.copytree(work / "out/undisturbed", tmp_path / "m")
    rewrite(tmp_path / "m", lambda record: record["settings"].update(max_steps=100_000))
    out = tmp_path / "again"
    process = subprocess.Popen([sys.executable, ROOT / "verify.py", "--model", tmp_path / "m", "--out", out], cwd=work,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    while not (out / NAMES[0]).exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    said, err = process.communicate(timeout=300)
    assert process.returncode == 143 and b"goes on from here" in said, said + err
    assert b"Traceback" not in err and b"equal" not in said
    (meta, *_) = read_metas(out)
    assert meta["step"] > 0 and not meta["done"]


def test_built_again_with_a_compiler_and_two_threads(work, tmp_path, capfd):
    """Which add up in parallel, in whatever order unless told otherwise. This process has one thread."""
    words = ["configs/tiny.py", "--compile=true", "--dtype=auto", "--hidden_size=128", "--num_hidden_layers=1",
             "--max_position_embeddings=128", "--batch_size=16", "--negatives=200", "--max_steps=20", "--out",
             str(tmp_path / "m")]
    done = subprocess.run([sys.executable, ROOT / "train.py", *words], cwd=work, capture_output=True, timeout=600,
                          env=os.environ | {"OMP_NUM_THREADS": "2"})
    assert done.returncode == 1, done.stderr.decode()
    assert read_json(tmp_path / "m/build.json")["built_by"][-1]["threads"] == 2
    assert here(verify.main, "--model", tmp_path / "m", "--out", tmp_path / "again", cwd=work) == 0
    said = capfd.readouterr().out
    assert "equal: " in said and "another" not in said, "so it had two threads too"


def test_all_turns_are_compared():
    one, two = {"threads": 1, "compile": True, "torch": "2", "from_step": 0}, {"threads": 2, "compile": True,
                                                                              "torch": "2", "from_step": 9}
    assert list(differences([one, two], [two | {"from_step": 0}])) == ["another threads: 1 there, 2 here"]
    assert list(differences([one], [two, one | {"compile": False}])) == []
    assert list(differences([one], [one | {"compile": False}])) == ["another compile: True there, False here"]
    assert list(differences([one], [{"threads": 1, "compile": True}])) == ["another torch: 2 there, None here"]


def test_turns_in_other_surroundings_are_said(work, tmp_path, whole, monkeypatch, capsys):
    """A model of two turns, of which the build again has only one's threads, and a compiler that did not work."""
    shutil.copytree(work / "out/undisturbed", tmp_path / "m")
    shutil.copytree(work / "out/undisturbed", tmp_path / "made")
    rewrite(tmp_path / "m", lambda record: record["built_by"].insert(0, record["built_by"][0] | {
        "threads": 7, "compile": True}))
    monkeypatch.chdir(work)
    monkeypatch.setattr(verify, "build", lambda training, threads: shutil.copytree(tmp_path / "made", training.out))
    assert verify.main(["--model", str(tmp_path / "m"), "--out", str(tmp_path / "again")]) == 0
    said = capsys.readouterr().out
    assert "another threads: 7 there, 1 here" in said and "another compile: True there, False here" in said


def test_built_again_and_not_the_same(work, tmp_path, whole, capfd):
    """Weights that another seed made, passed off as those of this one."""
    assert here(train.main, *OPTIONS, "--seed=5", "--out", tmp_path / "m", cwd=work) == 1
    rewrite(tmp_path / "m", lambda record: record["settings"].update(seed=1337))
    assert here(verify.main, "--model", tmp_path / "m", "--out", tmp_path / "again", cwd=work) == 1
    said = capfd.readouterr().out
    assert "NOT equal" in said and "the logs first differ at step 80: wrong" in said
    (tmp_path / "m/log.jsonl").unlink()
    said = where_they_differ(tmp_path / "m", tmp_path / "again")
    assert "is the first tensor that differs" in said and "logs" not in said


def test_a_model_that_began_from_another(learned, mended, patched, tmp_path, monkeypatch, capfd):
    """It is built from the same weights, wherever they are, and from no others."""
    words = ["--model", mended, "--data", patched, "--out", tmp_path / "again"]
    monkeypatch.chdir(tmp_path)
    says_no(verify.main, words, "no model under out/", sha256(learned / "out/tiny")[:16], "--init_from")
    says_no(verify.main, [*words, "--init_from", mended], "is not the one")
    assert here(verify.main, *words, cwd=learned) == 0 and "equal: " in capfd.readouterr().out


@pytest.mark.parametrize("claim", ["no steps", "its own weights", "itself, unsaid", "weights that know the tree"])
def test_weights_that_were_not_built_are_not_verified(learned, model, tmp_path, monkeypatch, claim):
    """A build.json that leads back to the weights themselves proves nothing."""
    own = sha256(model)
    if claim in ("no steps", "its own weights"):
        rewrite(model, lambda record: record.update({"step": 0} if claim == "no steps" else {"init_sha256": own}))
    monkeypatch.chdir(learned)
    words = ["--model", model, "--out", tmp_path / "again"]
    if claim == "itself, unsaid":
        rewrite(model, lambda record: record["settings"].update(init_from=str(model), fresh=True))

        def build(training, threads):
            assert training.init_from == "" and not training.fresh
            raise verify.Stopped(130)
        monkeypatch.setattr(verify, "build", build)
        assert here(verify.main, *words, cwd=learned) == 130
    elif claim == "weights that know the tree":  # the same ones in another file
        shutil.copytree(model, tmp_path / "first")
        tensors, metadata = read_tensors(model / "model.safetensors")
        first = tmp_path / "first/model.safetensors"
        write_tensors(first, tensors, **metadata | {"note": "another header"})
        rewrite(model, lambda record: record.update(init_sha256=digest_of(first)))
        says_no(verify.main, [*words, "--init_from", tmp_path / "first"], "knows the tree already", "no steps")
    else:
        monkeypatch.setattr(verify, "build", no_build)
        says_no(verify.main, words, "began from", "nothing to build")
    assert not (model / "rebuilt.json").exists()


def test_nothing_to_build_again(work, stopped, learned, model, tmp_path, monkeypatch):
    monkeypatch.chdir(learned)
    says_no(verify.main, ["--model", stopped], "not finished")
    (model / "build.json").unlink()
    says_no(verify.main, ["--model", model], "build.json")
    says_no(verify.main, ["--model", tmp_path / "nowhere"], "nowhere")


WRONG = [None, True, -1, 1.5, 2**70, "x", "a\nb", "\udcff", [], [[]], {}, {"a": {}}]


@pytest.mark.parametrize("key", [*(key.rstrip("?") for key in BUILD), "digest of nothing"])
def test_records_of_another_shape(work, whole, tmp_path, monkeypatch, key):
    """build.json with every value of each other kind: it is refused in one line, or right, and then built."""
    shutil.copytree(work / "out/undisturbed", tmp_path / "m")
    record = read_json(tmp_path / "m/build.json")

    def build(training, threads):
        assert threads > 0
        raise verify.Stopped(99)

    monkeypatch.chdir(work)
    monkeypatch.setattr(verify, "build", build)
    inner = [(key, name) for name in record.get(key, {})] if isinstance(record.get(key), dict) else []
    for outer, name in [(key, None), *inner]:
        for value in WRONG:
            changed = record | {outer: value if name is None else record[outer] | {name: value}}
            (tmp_path / "m/build.json").write_text(json.dumps(changed))
            write_json(tmp_path / "m/build.json", changed)
            try:
                assert verify.main(["--model", str(tmp_path / "m"), "--out", str(tmp_path / "again")]) == 99
            except UserError as error:
                assert "\n" not in str(error)


def test_logs_of_another_shape(work, whole, tmp_path):
    for name in ("a", "b"):
        shutil.copytree(work / "out/undisturbed", tmp_path / name)
    lines = [json.loads(line) for line in (tmp_path / "a/log.jsonl").read_text().splitlines()]
    for key in lines[-1]:
        for value in WRONG:
            for name in ("a", "b"):
                text = "\n".join(json.dumps(line | {key: value}) for line in lines)
                (tmp_path / name / "log.jsonl").write_text(text)
            assert "\n" not in where_they_differ(tmp_path / "a", tmp_path / "b")


def test_a_folder_whose_name_is_no_text(work, whole, tmp_path, capfd):
    """Built, verified and described; JSON stays UTF-8."""
    odd = os.fsdecode(os.fsencode(tmp_path) + b"/\xff odd")
    process = start(work, odd, "--max_steps=2", "--mend_steps=0")
    said, err = process.communicate(timeout=300)
    assert process.returncode == 1 and b"done, " in said and b"Traceback" not in err, err.decode()
    assert here(verify.main, "--model", odd, "--out", odd + " again", cwd=work) == 0
    for folder in (odd, odd + " again"):
        for name in os.listdir(folder):
            if name.endswith((".json", ".jsonl", ".md")):
                with open(os.path.join(folder, name), "rb") as file:
                    text = file.read().decode()
                if name.endswith("json"):
                    json.dumps(json.loads(text), ensure_ascii=False).encode()
