"""Readers of what strangers write find clean errors and nothing else (hypothesis)."""
import json
import shutil

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from memory.checkpoint import NAMES, load_state, read_log, read_metas, read_tensors, trim_log
from memory.corpus import load, read_manifest
from memory.files import write_json
from memory.generate import generate
from memory.output import UserError
from memory.settings import read_config
from memory.tokenizer import Tokenizer
from memory.unpack import safe_path
from memory.windows import parse_address, quote, unquote
from model import Llama, load_model

settings.register_profile("tests", max_examples=60, deadline=None, database=None, derandomize=True,
                          suppress_health_check=list(HealthCheck))
settings.load_profile("tests")

JSON = st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
                    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
                    max_leaves=6)


@st.composite
def damage(draw, data):
    """The bytes `data` with some replaced, cut, doubled, or put in."""
    data = bytearray(data)
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(data)) | st.integers(0, min(200, len(data))))
        new = draw(st.binary(max_size=9))
        kind = draw(st.sampled_from(["replace", "insert", "cut", "end"]))
        if kind == "end":
            del data[at:]
        else:
            data[at:at + (len(new) if kind == "replace" else 7 if kind == "cut" else 0)] = new if kind != "cut" else b""
    return bytes(data)


def clean(work):
    """work() gives a result or raises a UserError of one line."""
    try:
        return work()
    except UserError as error:
        assert "\n" not in str(error)
        return None


@pytest.fixture(scope="module")
def model(learned, tmp_path_factory):
    return shutil.copytree(learned / "out/tiny", tmp_path_factory.mktemp("fuzz") / "m")


FILES = ["model.safetensors", "config.json", "tokenizer.model", "manifest.json"]


@pytest.mark.parametrize("name", FILES)
def test_model_directories(learned, model, name):
    whole = (learned / "out/tiny" / name).read_bytes()
    weights = load_file(learned / "out/tiny/model.safetensors")
    config = Llama.from_pretrained(learned / "out/tiny").config

    @given(damage(whole))
    def damaged(data):
        (model / name).write_bytes(data)
        read = clean(lambda: load_model(model, "cpu"))
        if read:
            assert read[0].config == config
            assert all((read[0].state_dict()[key] == weights[key]).all() for key in weights)
    damaged()
    (model / name).write_bytes(whole)


def test_config_json_with_any_values(learned, model):
    whole = json.loads((learned / "out/tiny/config.json").read_bytes())

    @given(st.sampled_from(sorted(whole)), JSON | st.sampled_from([10**12, 10**400, -1, 0, 1e400, "64"]))
    def changed(key, value):
        (model / "config.json").write_text(json.dumps(whole | {key: value}))
        clean(lambda: load_model(model, "cpu"))
    changed()
    (model / "config.json").write_text(json.dumps(whole))


def test_json_nested_too_deep(learned, model, tmp_path):
    deep = b"[" * 200_000
    for name in ("config.json", "manifest.json"):
        whole = (model / name).read_bytes()
        (model / name).write_bytes(deep)
        with pytest.raises(UserError, match=name.split(".")[0] if name == "manifest.json" else "damaged"):
            load_model(model, "cpu")
        (model / name).write_bytes(whole)
    (tmp_path / "log.jsonl").write_bytes(deep)
    assert read_log(tmp_path) == []
    trim_log(tmp_path / "log.jsonl", 5, 5)


def test_a_config_that_asks_for_too_much(learned, model):
    """Refused before memory is taken, however it asks for it."""
    whole = json.loads((learned / "out/tiny/config.json").read_bytes())
    for key, value in [("hidden_size", 10**6), ("num_hidden_layers", 10**9), ("vocab_size", 10**12),
                       ("intermediate_size", 10**12), ("num_hidden_layers", 10**400)]:
        (model / "config.json").write_text(json.dumps(whole | {key: value}))
        with pytest.raises(UserError, match="parameters"):
            Llama.from_pretrained(model)
    (model / "config.json").write_text(json.dumps(whole))


def test_manifests_that_are_whole_but_false(learned, model):
    """The digest fits, so only what it says can be wrong."""
    whole = json.loads((learned / "out/tiny/manifest.json").read_bytes())
    whole.pop("digest")

    @given(st.sampled_from(sorted(whole)), st.sampled_from(sorted(whole["files"][0])), JSON)
    def changed(key, inner, value):
        write_json(model / "manifest.json", whole | {key: value})
        clean(lambda: read_manifest(model, "again"))
        write_json(model / "manifest.json", whole | {"files": [whole["files"][0] | {inner: value}]})
        clean(lambda: read_manifest(model, "again"))
    changed()
    write_json(model / "manifest.json", whole)


@pytest.mark.parametrize("name", ["train.bin", "tokenizer.model", "manifest.json"])
def test_prepared_trees(work, tmp_path, name):
    shutil.copytree(work / "data/tiny-1.0", tmp_path / "t")
    whole = (work / "data/tiny-1.0" / name).read_bytes()

    @given(damage(whole))
    def damaged(data):
        (tmp_path / "t" / name).write_bytes(data)
        read = clean(lambda: load(tmp_path / "t"))
        assert read is None or data == whole or name == "manifest.json"
    damaged()


def test_checkpoints(learned, tmp_path):
    whole = (learned / "out/tiny" / NAMES[0]).read_bytes()
    _, metadata = read_tensors(learned / "out/tiny" / NAMES[0])
    meta = json.loads(metadata["run"])

    @given(damage(whole))
    def damaged(data):
        (tmp_path / NAMES[0]).write_bytes(data)
        read = clean(lambda: load_state(tmp_path))
        assert read is None or read[1] == meta
        assert list(read_metas(tmp_path)) in ([], [meta]) or read is None
    damaged()


def test_logs(tmp_path):
    line = b'{"step": 3, "accuracy": 0.5}\n'

    @given(st.binary(max_size=60) | damage(line * 3))
    def any_bytes(data):
        (tmp_path / "log.jsonl").write_bytes(data)
        read_log(tmp_path)
        clean(lambda: trim_log(tmp_path / "log.jsonl", 5, 5))
        assert all(json.loads(line)["step"] <= 5 for line in (tmp_path / "log.jsonl").read_bytes().splitlines())
    any_bytes()


@given(st.text(max_size=60) | st.sampled_from(["x = ", "x = -", "(", "x = {1: "]).flatmap(
    lambda start: st.integers(1, 3000).map(lambda n: start * n)))
def test_config_files(tmp_path_factory, text):
    path = tmp_path_factory.getbasetemp() / "fuzz.py"
    path.write_text(text, encoding="utf-8", errors="replace")
    clean(lambda: read_config(path))


@given(st.binary(max_size=300))
def test_tokenizer_files(data):
    clean(lambda: Tokenizer(data))


@given(st.binary(max_size=80), st.integers(0, 3))
def test_prompts_of_any_bytes(learned_model, prompt, count):
    model, tokenizer, _ = learned_model
    for text in (prompt, b"tiny/" + prompt, b"tiny/decoder.py+7 " + prompt):
        assert len(list(generate(model, tokenizer, text, 1 + count))) <= 1 + count


@pytest.fixture(scope="module")
def learned_model(learned):
    return load_model(learned / "out/tiny", "cpu")


@given(st.binary(max_size=60), st.text(max_size=60))
def test_paths(tmp_path_factory, raw, text):
    base = tmp_path_factory.getbasetemp()
    assert unquote(quote(raw)) == raw
    parse_address(raw)
    for path in (quote(raw), text):
        target = safe_path(base / "out", path)
        assert target is None or (base / "out") in target.parents
