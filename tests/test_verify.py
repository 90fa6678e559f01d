"""A model built again from its data: equal to the bit, or told where it is not."""
import json
import os

from conftest import OPTIONS, refused, script, sha256

from memory.checkpoint import NAMES, read_tensors, write_tensors
from memory.files import read_json, write_json
from verify import where_they_differ


def test_built_again_and_compared(work, tmp_path, whole, other):
    done = script("verify.py", "--model=out/undisturbed", "--out", tmp_path / "again", cwd=work)
    assert done.returncode == 0 and f"equal: out/undisturbed and {tmp_path}/again" in done.stdout.decode()
    assert whole in done.stdout.decode()
    assert b"another" not in done.stdout, "the surroundings are the same"
    items = {item["number"]: item for item in read_json(work / "out/undisturbed/openness.json")["items"]}
    assert items[16]["answer"] == "yes" and read_json(work / "out/undisturbed/rebuilt.json")["rebuilt_sha256"] == whole
    again = script("verify.py", "--model=out/undisturbed", "--out", tmp_path / "again", cwd=work)
    assert again.returncode == 0 and b"160 steps in" in again.stdout, "it builds each time, and believes no old build"
    refused(script("verify.py", "--model=out/undisturbed", "--out=out/../out/undisturbed", cwd=work),
            "the model itself")
    refused(script("verify.py", "--model=out/undisturbed", "--data", other, cwd=work), str(other), "not the tree")


def test_an_interrupted_build_goes_on(work, tmp_path, whole, stopped):
    """Also with the same tokens under another manifest, as another way to the tree gives."""
    tensors, metadata = read_tensors(stopped / NAMES[0])
    meta = json.loads(metadata["run"])
    meta["corpus"]["url"], meta["corpus"]["manifest"] = "https://example.org/tiny.tar", "0" * 64
    del meta["settings"]["focal"]  # as if the build were older than that setting
    write_tensors(stopped / NAMES[0], tensors, run=json.dumps(meta))
    (stopped / "build.json").unlink()  # as after a kill
    done = script("verify.py", "--model=out/undisturbed", "--out", stopped, cwd=work)
    assert done.returncode == 0 and b"going on at step" in done.stdout, done.stdout.decode() + done.stderr.decode()
    assert b"equal: " in done.stdout


def test_built_again_with_a_compiler_and_two_threads(work, tmp_path):
    """Which add up in parallel, in whatever order unless told otherwise."""
    environment = os.environ | {"OMP_NUM_THREADS": "2"}
    done = script("train.py", "configs/tiny.py", "--compile=true", "--dtype=auto", "--hidden_size=128",
                  "--num_hidden_layers=1", "--max_position_embeddings=128", "--batch_size=16", "--negatives=200",
                  "--max_steps=20", "--out", tmp_path / "m", cwd=work, env=environment)
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
    (tmp_path / "m/log.jsonl").unlink()
    said = where_they_differ(tmp_path / "m", tmp_path / "again")
    assert "is the first tensor that differs" in said and "logs" not in said


def test_a_model_that_began_from_another(learned, mended, patched, tmp_path):
    """It is built from the same weights, wherever they are, and from no others."""
    words = ["verify.py", "--model", mended, "--data", patched]
    refused(script(*words, cwd=tmp_path), "no model under out/", sha256(learned / "out/tiny")[:16], "--init_from")
    refused(script(*words, "--init_from", mended, cwd=tmp_path), "is not the one")
    done = script(*words, "--out", tmp_path / "again", cwd=learned)
    assert done.returncode == 0 and b"equal: " in done.stdout, done.stdout.decode() + done.stderr.decode()


def test_nothing_to_build_again(work, stopped, learned, model, tmp_path):
    refused(script("verify.py", "--model", stopped, cwd=work), "not finished")
    (model / "build.json").unlink()
    refused(script("verify.py", "--model", model, cwd=learned), "build.json")
    refused(script("verify.py", "--model", tmp_path / "nowhere", cwd=learned), "nowhere")
