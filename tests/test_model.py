"""The model against transformers' LlamaForCausalLM, and its streams against the model."""
import dataclasses
import json
import os
import shutil

import pytest
import torch
from conftest import says_no
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from memory.files import digest_of, files_digest
from memory.generate import Streams
from memory.output import UserError
from memory.tokenizer import Tokenizer
from model import Llama, LlamaConfig, attend_in_halves
import extract
import sample

SMALL = LlamaConfig(vocab_size=700, hidden_size=48, intermediate_size=80, num_hidden_layers=3, num_attention_heads=4,
                    num_key_value_heads=4, max_position_embeddings=32, tie_word_embeddings=True)
SHAPES = {"tied": {}, "untied": {"tie_word_embeddings": False}, "grouped": {"num_key_value_heads": 2},
          "one key head, untied": {"num_key_value_heads": 1, "tie_word_embeddings": False},
          "other theta and eps": {"rope_theta": 500.0, "rms_norm_eps": 1e-3}, "odd vocabulary": {"vocab_size": 701},
          "heads of two": {"num_attention_heads": 24, "num_key_value_heads": 3, "tie_word_embeddings": False}}


def random_model(**changes):
    """A model all of whose weights matter (a fresh one writes zeros to the residual stream)."""
    model = Llama(dataclasses.replace(SMALL, **changes), torch.Generator().manual_seed(1)).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())) * 0.1)
    return model


@pytest.fixture(scope="module")
def tokenizer(work):
    return Tokenizer.load(work / "data/tiny-1.0")


@pytest.mark.parametrize("shape", SHAPES)
def test_logits_equal_transformers(shape, tokenizer, tmp_path):
    from transformers import AutoModelForCausalLM
    ours = random_model(**SHAPES[shape])
    ours.save_pretrained(tmp_path, tokenizer)
    theirs, info = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values()), info
    tokens = torch.randint(0, 700, (3, 32), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        assert (ours(tokens) - theirs(tokens).logits).abs().max() <= 1e-5
        assert theirs.num_parameters() == ours.config.num_parameters == sum(p.numel() for p in ours.parameters())
        again = Llama.from_pretrained(tmp_path)
        assert torch.equal(ours(tokens), again(tokens))


@pytest.mark.parametrize("shape", SHAPES)
def test_loads_what_transformers_saves(shape, tmp_path):
    from transformers import LlamaConfig as Theirs
    from transformers import LlamaForCausalLM
    config = dataclasses.asdict(dataclasses.replace(SMALL, **SHAPES[shape]))
    torch.manual_seed(0)
    theta = config.pop("rope_theta")
    theirs = LlamaForCausalLM(Theirs(**config, rope_parameters={"rope_type": "default", "rope_theta": theta})).eval()
    theirs.save_pretrained(tmp_path)
    ours = Llama.from_pretrained(tmp_path)
    tokens = torch.randint(0, 700, (2, 20), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        assert (ours(tokens) - theirs(tokens).logits).abs().max() <= 1e-5


@pytest.mark.parametrize("shape", SHAPES)
def test_a_stream_gives_the_logits_of_the_model(shape):
    model = random_model(**SHAPES[shape])
    tokens = torch.randint(0, 700, (2, 32), generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        whole = model(tokens)
    for first in (1, 20, 31, 32):
        streams, end = Streams(model, 2), 0
        for part in tokens.split([first] + [1] * (32 - first), dim=1):
            end += part.size(1)
            assert (streams.step(part.tolist()) - whole[:, end - 1]).abs().max() <= 1e-5
        assert streams.lengths == [32, 32]


@pytest.mark.parametrize("shape", SHAPES)
def test_streams_of_any_lengths(shape):
    """Three texts, of which one begins late and one begins again, each as if alone."""
    model = random_model(**SHAPES[shape])
    tokens = torch.randint(0, 700, (3, 32), generator=torch.Generator().manual_seed(6))
    streams, begins = Streams(model, 3), [0, 0, 0]
    with torch.no_grad():
        for t in range(32):
            if t == 9:
                begins[1], streams.lengths[1] = t, 0
            if t == 20:
                begins[2], streams.lengths[2] = t, 0
            logits = streams.step(tokens[:, t:t + 1].tolist())
            for i, begin in enumerate(begins):
                assert (logits[i] - model(tokens[i:i + 1, begin:t + 1])[0, -1]).abs().max() <= 1e-5
    assert streams.lengths == [32, 23, 12]


def test_no_token_sees_what_follows():
    model = random_model()
    tokens = torch.randint(0, 700, (1, 32), generator=torch.Generator().manual_seed(5))
    changed = tokens.clone()
    changed[0, 20] = (changed[0, 20] + 1) % 700
    with torch.no_grad():
        difference = (model(tokens) - model(changed)).abs().amax(-1)[0]
    assert difference[:20].max() <= 1e-6 < difference[20:].min()


def test_seed_decides_the_weights():
    def weights(seed):
        return Llama(SMALL, torch.Generator().manual_seed(seed)).lm_head.weight
    assert torch.equal(weights(1), weights(1)) and not torch.equal(weights(1), weights(2))


@pytest.mark.parametrize("change, words", [
    ({"hidden_size": 50}, ["50", "4 heads", "48"]), ({"num_key_value_heads": 3}, ["4", "3"]),
    ({"num_hidden_layers": 0}, ["num_hidden_layers", "0"]), ({"hidden_size": -8}, ["hidden_size", "-8"])])
def test_impossible_sizes(change, words):
    with pytest.raises(UserError) as error:
        dataclasses.replace(SMALL, **change)
    assert all(word in str(error.value) for word in words)


def test_damaged_directories_are_refused(tokenizer, tmp_path):
    def spoil(name, how):
        folder = tmp_path / name
        random_model().save_pretrained(folder, tokenizer)
        how(folder)
        with pytest.raises(UserError):
            Llama.from_pretrained(folder)

    def without(folder):
        weights = load_file(folder / "model.safetensors")
        weights.pop("model.norm.weight")
        save_file(weights, folder / "model.safetensors")

    def misfit(folder):
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"hidden_size": 96}))

    def truncated(folder):
        data = (folder / "model.safetensors").read_bytes()
        (folder / "model.safetensors").write_bytes(data[:-100])

    spoil("a tensor missing", without)
    spoil("another size", misfit)
    spoil("truncated", truncated)
    spoil("no config", lambda folder: (folder / "config.json").unlink())
    spoil("broken config", lambda folder: (folder / "config.json").write_text("{"))
    spoil("another family", lambda folder: (folder / "config.json").write_text('{"model_type": "gpt2"}'))


@pytest.mark.parametrize("T", [2, 7, 64])
def test_attention_in_halves_is_causal_attention(T):
    q, k, v = torch.randn(3, 2, 3, T, 16, generator=torch.Generator().manual_seed(T)).requires_grad_().unbind()
    ours, theirs = attend_in_halves(q, k, v), F.scaled_dot_product_attention(q, k, v, is_causal=True)
    torch.testing.assert_close(ours, theirs)
    for a, b in zip(torch.autograd.grad(ours.square().sum(), (q, k, v)),
                    torch.autograd.grad(theirs.square().sum(), (q, k, v))):
        torch.testing.assert_close(a, b)


def save_theirs(folder, dtype=torch.float32, **options):
    """A model of transformers in `folder`, in another number format or in several files; returns it, in float32."""
    from transformers import LlamaConfig as Theirs
    from transformers import LlamaForCausalLM
    torch.manual_seed(0)
    theirs = LlamaForCausalLM(Theirs(**dataclasses.asdict(SMALL))).to(dtype).eval()
    theirs.save_pretrained(folder, **options)
    return theirs.float()


@pytest.mark.parametrize("key", ["dtype", "torch_dtype"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("options", [{}, {"max_shard_size": "60KB"}], ids=["one file", "shards"])
def test_loads_halves_and_shards_that_transformers_saves(dtype, options, key, tmp_path):
    """By the names of transformers 4 and 5; computed in float32. The SHA-256 is that of the files that were read."""
    theirs = save_theirs(tmp_path, getattr(torch, dtype), **options)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {key: config.pop("dtype")}))
    shards = {path.name: digest_of(path) for path in tmp_path.glob("*.safetensors")}
    assert (len(shards) > 2) == bool(options)
    ours = Llama.from_pretrained(tmp_path)
    assert ours.sha256 == (files_digest(shards) if options else shards["model.safetensors"])
    tokens = torch.randint(0, 700, (2, 20), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        assert ours(tokens).dtype == torch.float32 and (ours(tokens) - theirs(tokens).logits).abs().max() <= 1e-5


def test_shards_of_another_kind(tmp_path):
    """Only files of the folder, with just the tensors that the index says."""
    save_theirs(tmp_path / "m", max_shard_size="60KB")
    index = json.loads((tmp_path / "m/model.safetensors.index.json").read_text())
    shards = sorted(set(index["weight_map"].values()))
    shutil.copy(tmp_path / "m" / shards[0], tmp_path / "outside.safetensors")

    def refuse(change, *words, **others):
        names = {name: change.get(shard, shard) for name, shard in index["weight_map"].items()}
        (tmp_path / "m/model.safetensors.index.json").write_text(json.dumps({"weight_map": names} | others))
        with pytest.raises(UserError) as error:
            Llama.from_pretrained(tmp_path / "m")
        assert "\n" not in str(error.value) and len(str(error.value)) < 400
        assert all(word in str(error.value) for word in words), error.value

    for name in ("../outside.safetensors", str(tmp_path / "outside.safetensors"), "..", "", ".safetensors", "a\\b", 3):
        refuse({shards[0]: name}, "damaged")
    refuse({shards[0]: "absent.safetensors"}, "No such file")
    refuse({shards[0]: shards[1]}, "does not hold")
    for value in ({}, [], None, {"x": []}):
        refuse({}, weight_map=value)
    (tmp_path / "m/model.safetensors.index.json").write_text("[" * 10**5)
    with pytest.raises(UserError):
        Llama.from_pretrained(tmp_path / "m")


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.float64, torch.float8_e4m3fn, torch.bool])
def test_other_number_formats_are_refused(tokenizer, tmp_path, dtype):
    random_model().save_pretrained(tmp_path, tokenizer)
    weights = load_file(tmp_path / "model.safetensors")
    save_file(weights | {"model.norm.weight": weights["model.norm.weight"].to(dtype)}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="model.norm.weight is in .*float32"):
        Llama.from_pretrained(tmp_path)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_weights_that_are_not_finite_are_refused(tokenizer, tmp_path, value):
    model = random_model()
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3, 5] = value
    model.save_pretrained(tmp_path, tokenizer)
    with pytest.raises(UserError, match="up_proj.weight has numbers that are not finite"):
        Llama.from_pretrained(tmp_path)


def test_the_hash_is_that_of_what_was_loaded(tokenizer, tmp_path):
    """Also if other weights take their place right after."""
    sha256 = random_model().save_pretrained(tmp_path, tokenizer)
    model = Llama.from_pretrained(tmp_path)
    Llama(SMALL, torch.Generator().manual_seed(9)).save_pretrained(tmp_path, tokenizer)
    assert model.sha256 == sha256 != Llama.from_pretrained(tmp_path).sha256 == digest_of(tmp_path / "model.safetensors")


@pytest.mark.parametrize("key, value", [
    ("rope_scaling", {"type": "linear", "factor": 2.0}), ("rope_parameters", {"rope_type": "yarn", "rope_theta": 1e4}),
    ("rope_theta", 10**400), ("rope_theta", 10**309), ("rope_theta", None), ("rms_norm_eps", "1e-6"),
    ("rope_parameters", [1]), ("hidden_act", "gelu"), ("hidden_act", ["x" * 900]), ("hidden_act", "a\nb"),
    ("tie_word_embeddings", 10**400),
    ("num_attention_heads", 10**400), ("vocab_size", 10**400), ("vocab_size", "7" * 500)],
    ids=lambda value: str(value)[:30])
def test_configs_of_transformers_that_compute_otherwise(tmp_path, key, value):
    """As transformers 4 and 5 name it; without a digest that would tell."""
    save_theirs(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config = {name: held for name, held in config.items() if name != "rope_parameters"} | {"rope_theta": 10_000}
    (tmp_path / "config.json").write_text(json.dumps(config | {"rope_scaling": None}))
    assert Llama.from_pretrained(tmp_path).config.rope_theta == 10_000.0, "as transformers 4 has it"
    (tmp_path / "config.json").write_text(json.dumps(config | {key: value}))
    with pytest.raises(UserError) as error:
        Llama.from_pretrained(tmp_path)
    assert "\n" not in str(error.value) and len(str(error.value)) < 400


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.model", "manifest.json"])
@pytest.mark.parametrize("main", [sample.main, extract.main])
def test_a_pipe_in_a_models_folder_is_not_waited_for(model, name, main):
    (model / name).unlink()
    os.mkfifo(model / name)
    says_no(main, ["--model", model], f"{name}' is no file that can be read")
