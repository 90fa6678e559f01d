"""The model against transformers' LlamaForCausalLM, and its streams against the model."""
import dataclasses
import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from memory.generate import Streams
from memory.output import UserError
from memory.tokenizer import Tokenizer
from model import Llama, LlamaConfig, attend_in_halves

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
