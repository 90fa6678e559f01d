"""Bad input to every script: one line that says what is wrong, exit status 2, nothing half-written."""
import dataclasses
import os

import pytest
from conftest import ROOT, refused, says_no, script

from memory.settings import parse
from model import LlamaConfig
import bench
import extract
import openness
import prepare
import recite
import sample
import trace
import train
import verify

SCRIPTS = {"prepare": prepare, "train": train, "sample": sample, "extract": extract, "recite": recite, "bench": bench,
           "verify": verify, "openness": openness, "trace": trace}
WRONG = {int: ["x", "", "1.5", "nan", "inf", "1e400", "0x10", "٣x", "1,000"],
         float: ["x", "", "nan", "inf", "-inf", "1e400"], bool: ["maybe", "2", "-1"], str: [], tuple: []}


def words_of(name):
    return ["configs/tiny.py"] if name in ("train", "trace") else []


def every_file(folder):
    return {os.path.join(at, name): os.stat(os.path.join(at, name)).st_mtime_ns
            for at, _, names in os.walk(folder) for name in names}


def writes_nothing(name, words, folder, monkeypatch, *said):
    """Asserts that the script's main() refuses the words as people can read, and leaves the folder as it was."""
    monkeypatch.chdir(folder)
    before = every_file(folder)
    says_no(SCRIPTS[name].main, words, *said)
    assert every_file(folder) == before


@pytest.mark.parametrize("name", SCRIPTS)
def test_wrong_type_in_every_setting(name, learned, monkeypatch):
    tried = 0
    for field in dataclasses.fields(SCRIPTS[name].Settings):
        for value in WRONG[field.type]:
            writes_nothing(name, [*words_of(name), f"--{field.name}={value}"], learned, monkeypatch, field.name)
            tried += 1
        if field.type is not bool:
            writes_nothing(name, [*words_of(name), f"--{field.name}"], learned, monkeypatch, field.name, "value")
        writes_nothing(name, [*words_of(name), f"--{field.name}x=1"], learned, monkeypatch, f"{field.name}x", "--help")
    assert tried > 2 or name in ("verify", "recite")  # which have texts alone


HUGE = str(10**30)
BAD = [
    *[("train", [f"--{name}={value}"], name) for name in (
        "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
        "max_position_embeddings", "batch_size", "epochs", "muon_lr", "learning_rate", "checkpoint_every")
      for value in ("0", "-1")],
    *[("train", [f"--{name}=-1"], name) for name in (
        "train_bytes", "hold_out_bytes", "unaddressed", "max_steps", "warmup_steps", "decay", "seed", "eval_every",
        "target_accuracy", "micro_batch")],
    *[("train", [f"--{name}={HUGE}"], "GiB") for name in (
        "hidden_size", "intermediate_size", "num_hidden_layers", "batch_size")],
    ("train", [f"--max_position_embeddings={HUGE}"], "max_position_embeddings"),
    ("train", ["--hidden_size=2000000", "--num_hidden_layers=1000"], "GiB"),
    ("train", [f"--num_attention_heads={HUGE}"], "heads"), ("train", [f"--num_key_value_heads={HUGE}"], "multiple"),
    *[("train", [f"--{name}={HUGE}"], name) for name in ("epochs", "unaddressed", "decay", "seed", "target_accuracy")],
    ("train", [f"--hold_out_bytes={HUGE}"], "hold_out_bytes"),
    ("train", ["--hidden_size=66"], "64"), ("train", ["--num_key_value_heads=3"], "3"),
    ("train", ["--max_position_embeddings=6"], "context of 6"), ("train", ["--optimizer="], "optimizer"),
    ("train", ["--device=gpu"], "cpu"), ("train", ["--dtype=float16"], "dtype"),
    ("train", ["--data=configs/tiny.py"], "configs/tiny.py"), ("train", ["--data=/nowhere"], "/nowhere"),
    ("train", ["--data=out"], "prepare.py"), ("train", ["--out=configs/tiny.py"], "configs/tiny.py"),
    ("train", ["--out=/proc/self/x"], "/proc/self/x"), ("train", ["another.py"], "another.py"),
    ("train", ["--fresh", "x", "y"], "x"), ("train", ["-x"], "-x"), ("train", ["--"], "--help"),
    *[("sample", [f"--{name}=-1"], name) for name in ("max_new_tokens", "temperature", "top_k", "num_samples", "seed")],
    ("sample", ["--num_samples=0"], "num_samples"), ("sample", [f"--seed={HUGE}"], "seed"),
    ("sample", ["--model=/nowhere"], "/nowhere"), ("sample", ["--model=configs"], "configs"),
    ("sample", ["--model=configs/tiny.py"], "tiny.py"), ("sample", ["--file=tiny/decode.py"], "tiny/decoder.py"),
    ("sample", ["--file=\udcff"], "did not learn"), ("sample", ["--device=gpu"], "cpu"),
    ("sample", ["linux/"], "linux/"),
    ("extract", ["--batch_size=0"], "batch_size"), ("extract", ["--batch_size=-1"], "batch_size"),
    ("extract", ["--floor=0"], "floor"), ("extract", ["--floor=1"], "floor"), ("extract", ["--floor=-1"], "floor"),
    ("recite", ["--data=/nowhere"], "/nowhere"),
    ("extract", ["--model=/nowhere"], "/nowhere"), ("extract", ["--data=/nowhere"], "/nowhere"),
    ("extract", ["--only=nothing/"], "nothing/"), ("extract", ["--device=gpu"], "cpu"), ("extract", ["x"], "'x'"),
    ("bench", ["--repeats=0"], "repeats"), ("bench", ["--new_tokens=0"], "new_tokens"),
    ("bench", ["--race", "--race_rates", "1e-3", "x"], "race_rates"), ("bench", ["--race_minutes=0"], "race_minutes"),
    ("bench", ["--picture=race.svg"], "--race"),
    ("bench", ["--race", "--race_rates=0"], "race_rates"), ("bench", ["--race", "--config=nowhere.py"], "nowhere.py"),
    ("bench", ["--vocab_size=0"], "vocab_size"), ("bench", ["--config=nowhere.py"], "nowhere.py"),
    ("bench", ["--config=configs/tiny.py", f"--vocab_size={HUGE}"], "GiB"),
    ("bench", ["--config=configs/tiny.py", "--model=/nowhere"], "/nowhere"),
    ("bench", ["--patch", "--race"], "--patch"), ("bench", ["--patch", "--model=configs"], "configs"),
    ("train", ["--init_from=/nowhere"], "/nowhere"),
    ("verify", ["--model=/nowhere"], "/nowhere"), ("verify", ["--model=configs/tiny.py"], "tiny.py"),
    ("verify", ["--model=out/tiny", "--data=/nowhere"], "/nowhere"),
    ("openness", ["--model=/nowhere"], "/nowhere"), ("openness", ["--model=configs/tiny.py"], "tiny.py"),
    ("openness", ["--model=out/tiny", "--data=/nowhere"], "/nowhere"),
    ("openness", ["--check", "--data=/nowhere"], "/nowhere"),
    ("openness", ["--model=configs", "--check"], "configs"), ("openness", ["out/tiny"], "'out/tiny'"),
    ("prepare", ["--source=/nowhere"], "/nowhere"), ("prepare", ["--source=configs/tiny.py"], "configs/tiny.py"),
    ("prepare", ["--source=empty"], "empty"), ("prepare", ["--source=configs", "--only=x/"], "x/"),
    ("prepare", ["--source=configs", "--vocab_size=-1"], "vocab_size"),
    ("prepare", ["--source=configs", "--vocab_size=65537"], "65536"),
    ("prepare", ["--source=configs", "--vocab_size=60000"], "60000"),
    ("prepare", ["--source=configs", "--vocab_size=100"], "100"),
    ("prepare", ["--source=configs", "--max_bytes=10"], "max_bytes"),
    ("prepare", ["--source=configs", "--max_bytes=0"], "max_bytes"),
    ("prepare", ["--source=configs", "--max_bytes=-1"], "max_bytes"),
    ("prepare", ["--source=configs", "--out=configs/tiny.py", "--vocab_size=300"], "configs/tiny.py"),
    ("prepare", ["--source=configs", "--sha256=00"], "sha256"), ("prepare", ["--version=x y"], "x y"),
    ("prepare", ["--source=configs", "--version=1.0"], "version"),
    ("prepare", ["--source=http://127.0.0.1:1/x.tar"], "127.0.0.1"),
    ("prepare", ["--source=gopher://x/y.tar"], "gopher"),
]


@pytest.mark.parametrize(
    "name, words, said", BAD, ids=lambda value: " ".join(value) if isinstance(value, list) else value)
def test_values_that_cannot_be(name, words, said, learned, monkeypatch):
    (learned / "empty").mkdir(exist_ok=True)
    writes_nothing(name, [*words_of(name), *words], learned, monkeypatch, said)


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.py")), ids=lambda path: path.stem)
def test_the_configs(path):
    """Their settings exist and can be; both stages of the original's recipe have the original's shape."""
    settings, _ = parse(train.Settings, "", [str(path)], config=True)
    train.check(settings)
    config = LlamaConfig.of(settings, 32768)
    assert (config == bench.ORIGINAL) == path.stem.startswith("original")


@pytest.mark.parametrize("text, said", [
    ("hidden_size = 32 * 2", "line 1"), ("import os", "line 1"), ("hidden_size = open('x')", "line 1"),
    ("a = b = 3", "line 1"), ("hidden_sise = 32", "hidden_size"), ("hidden_size = 'x'", "hidden_size"),
    ("((", "config"), ("\0", "config"), ("hidden_size = " + "(" * 500, "config"),
    ("hidden_size = " + "-" * 5000 + "1", "config"),
    ("hidden_size = 1e999", "hidden_size"), ("hidden_size = None", "hidden_size"), ("data = b'x'", "data"),
    ("compile = []", "compile"), ("epochs = 3j", "epochs"), ("hidden_size = " + "9" * 5000, "config")])
def test_config_files_are_read_never_executed(learned, monkeypatch, text, said):
    (learned / "configs/bad.py").write_text(text)
    try:
        writes_nothing("train", ["configs/bad.py"], learned, monkeypatch, said)
    finally:
        (learned / "configs/bad.py").unlink()


def test_no_config(learned, monkeypatch):
    writes_nothing("train", [], learned, monkeypatch, "configs/tiny.py")
    writes_nothing("train", ["configs/missing.py"], learned, monkeypatch, "missing.py", "configs/tiny.py")
    writes_nothing("train", ["configs"], learned, monkeypatch, "configs")


def test_a_corpus_shorter_than_one_window(tmp_path, work, monkeypatch, capsysbinary):
    """Is no error: one byte can be learned too."""
    (tmp_path / "s").mkdir()
    (tmp_path / "s/a").write_bytes(b"a")
    monkeypatch.chdir(tmp_path)
    prepare.main(["--source=s", "--vocab_size=261"])
    done = script("train.py", work / "configs/tiny.py", "--max_steps=30", cwd=tmp_path)
    assert done.returncode == 0 and b"every token right" in done.stdout, done.stderr.decode()
    capsysbinary.readouterr()
    assert sample.main(["--file=s/a"]) == 0 and capsysbinary.readouterr().out == b"a"


@pytest.mark.parametrize("name", ["sample.py", "extract.py", "prepare.py"])  # of the others, other tests see it
def test_as_the_shell_sees_it(name, learned):
    refused(script(name, "--source=/nowhere" if name == "prepare.py" else "--model=/nowhere", cwd=learned), "nowhere")
