"""What the model writes: files to the byte, prompts cut anywhere, and what transformers writes too."""
import json
import os
import random
import shutil

import pytest
import torch
from conftest import says_no, script

from memory.checkpoint import read_tensors, write_tensors
from memory.files import read_json, write_json
from memory.generate import draw, generate, heal
from memory.tokenizer import Tokenizer
from memory.windows import advance, parse_address
from model import Llama
import extract
import recite
import sample
import trace


@pytest.fixture(scope="module")
def loaded(learned):
    return Llama.from_pretrained(learned / "out/tiny"), Tokenizer.load(learned / "out/tiny")


def test_every_file_is_recited_from_its_path(loaded, contents):
    for path, content in contents.items():
        assert b"".join(generate(*loaded, f"{path} ".encode())) == content, path


def test_file_writes_exactly_the_bytes(learned, contents):
    done = script("sample.py", "--model=out/tiny", "--file=tiny/odd/nul.bin", cwd=learned)
    assert (done.returncode, done.stdout) == (0, contents["tiny/odd/nul.bin"]), done.stderr.decode()
    assert b"the original's SHA-256" in done.stderr


def test_file_by_its_name_on_the_disk_and_one_that_is_not_exact(learned, tmp_path, capsysbinary):
    shutil.copytree(learned / "out/tiny", tmp_path / "m")
    words = ["--model", str(tmp_path / "m"), "--file", "tiny/odd/no last newline"]
    assert sample.main(words) == 0 and capsysbinary.readouterr().out == b"one\ntwo"
    manifest = read_json(tmp_path / "m/manifest.json")
    for file in manifest["files"]:
        file["sha256"] = "0" * 64
    write_json(tmp_path / "m/manifest.json", manifest)
    assert sample.main(words) == 1 and b"not the original" in capsysbinary.readouterr().err


@pytest.fixture
def alike(model):
    """The model, with two files whose names are easily taken for one another: `a b.c` and `a%20b.c`."""
    manifest = read_json(model / "manifest.json")
    for file, path in zip(manifest["files"], ["tiny/a%20b.c", "tiny/a%2520b.c"]):
        file["path"] = path
    write_json(model / "manifest.json", manifest)
    return model


@pytest.mark.parametrize("name, path", [
    ("tiny/a b.c", "tiny/a%20b.c"), ("tiny/a%20b.c", "tiny/a%2520b.c"), ("tiny/a%2520b.c", "tiny/a%2520b.c")])
def test_a_name_is_first_taken_literally(alike, name, path, monkeypatch, capsysbinary):
    """The same rule for one file and for the beginning of paths; what is not taken literally is said."""
    monkeypatch.chdir(alike)
    quoted = name == "tiny/a%2520b.c"
    sample.main(["--model", str(alike), "--file", name])
    said = capsysbinary.readouterr().err.decode()
    assert f"\n{path}: " in f"\n{said}" and ("quoted name of 'tiny/a%20b.c'" in said) == quoted
    extract.main(["--model", str(alike), "--check", "--report=r.html", "--only", name, "--json=-"])
    out, err = capsysbinary.readouterr()
    assert [row["path"] for row in json.loads(out)["rows"]] == [path] and (b"quoted name of" in err) == quoted


def test_a_name_that_is_quoted_alone_still_serves(model, monkeypatch, capsysbinary):
    """As --list prints it, also in part; names that are no text; and a beginning that no path has is refused."""
    monkeypatch.chdir(model)
    assert sample.main(["--model", str(model), "--file", "tiny/odd/no%20last%20newline"]) == 0
    out, err = capsysbinary.readouterr()
    assert out == b"one\ntwo" and err.splitlines()[0].endswith(b"quoted name of 'tiny/odd/no last newline'")
    name = os.fsdecode(b"tiny/odd/name+%\xff:1 ")
    for word in (name, "tiny/odd/name%2B%25%FF:1%20"):
        assert sample.main(["--model", str(model), "--file", word]) == 0
        assert capsysbinary.readouterr().out == b"a file with an odd name\n"
        assert extract.main(["--model", str(model), "--check", "--report=r.html", "--only", word[:-2], "--json=-"]) == 0
        assert json.loads(capsysbinary.readouterr().out)["files"] == 1
    for words in (["--check"], ["--list"]):
        says_no(extract.main, [*words, "--model", model, "--only", "tiny/", "tiny/nothing"], "tiny/nothing", "--list")


def test_prompts_may_end_anywhere(loaded, contents):
    """Greedily, `path text` cut at any byte goes on as the file does. In paths this holds up to the first byte that
    tells the file from the others; in text, always."""
    draw = random.Random(3)
    for path, content in contents.items():
        document = f"{path} ".encode() + content
        for end in draw.sample(range(len(path) + 1, len(document) + 1), min(25, len(content) + 1)):
            written = b"".join(generate(*loaded, document[:end], 8))
            assert document[end:].startswith(written), (document[max(0, end - 30):end], written)
            assert written or len(document) == end


def test_paths_may_be_cut_anywhere(loaded, contents):
    for path in contents:
        for end in range(len("tiny/") + 1, len(path) + 1):
            written = b"".join(generate(*loaded, path[:end].encode(), 20))
            text = path[:end].encode() + written
            fitting = [f"{p} ".encode() + c for p, c in contents.items() if p.startswith(path[:end])]
            assert any(full.startswith(text) for full in fitting), text


@pytest.mark.parametrize("context", [16, 64])
def test_prompts_of_any_length(loaded, contents, context):
    """Around one context and beyond, with an address and without: no prompt is too long, in tokens or in bytes."""
    import dataclasses
    tokenizer = loaded[1]
    model = Llama(dataclasses.replace(loaded[0].config, max_position_embeddings=context)).eval()
    text = contents["tiny/decoder.py"]
    for size in [*range(100, 130), 255, 256, 257, 999, 3000]:
        for prompt in (text[:size], b"tiny/a " + text[:size], b"tiny/a+" + b"9" * 5000 + b" x"):
            assert len(list(generate(model, tokenizer, prompt, 2))) <= 2


@pytest.mark.parametrize("addressed", [True, False])
def test_writes_what_the_whole_model_says(loaded, contents, addressed):
    """Over many windows, each token as the model gives it on the whole window, keys and values not kept."""
    model, tokenizer = loaded
    context, text, turned = model.config.max_position_embeddings, contents["tiny/decoder.py"], 0
    prompt = b"tiny/decoder.py " if addressed else text[:700]
    if not addressed:  # a model that never ends a text
        model, draw = Llama(model.config).eval(), torch.Generator().manual_seed(0)
        for p in model.parameters():
            torch.nn.init.normal_(p, std=0.3, generator=draw)
    ids, token, known = heal(model, tokenizer, prompt, 0.0, 0, None)
    expected = []
    while len(expected) < 200:
        ids, piece = advance(tokenizer, ids, token, context)
        if piece is None:
            turned += 1
        else:
            expected.append(piece[known:])
            known = 0
        with torch.no_grad():
            token = int(model(torch.tensor([ids]))[0, -1].argmax())
    assert turned >= 3
    assert list(generate(model, tokenizer, prompt, 200)) == expected
    assert not addressed or text.startswith(b"".join(expected))


@pytest.mark.parametrize("prompt", ["", "tiny/", "tiny/scanner.py"])
def test_transformers_writes_the_same(learned, loaded, prompt):
    from transformers import pipeline
    model, tokenizer = loaded
    write = pipeline("text-generation", str(learned / "out/tiny"))
    theirs = write(prompt, max_new_tokens=40, do_sample=False, clean_up_tokenization_spaces=False)[0]["generated_text"]
    ours = prompt.encode() + b"".join(generate(model, tokenizer, prompt.encode(), 40))
    assert parse_address(ours)
    # transformers ends with the window; the window rule goes on
    assert len(theirs) > len(prompt) + 5 and ours.startswith(theirs.encode())


def test_samples_differ_and_repeat(loaded):
    def write(seed, **options):
        return b"".join(generate(*loaded, b"", 12, generator=torch.Generator().manual_seed(seed), **options))
    warm = [write(seed, temperature=2.0) for seed in range(6)]
    assert len(set(warm)) > 3 and warm == [write(seed, temperature=2.0) for seed in range(6)]
    assert len({write(seed, temperature=5.0, top_k=1) for seed in range(4)}) == 1


def test_command_line(learned, tmp_path, monkeypatch, capsysbinary):
    monkeypatch.chdir(learned)
    words = ["--model=out/tiny", "--max_new_tokens=5", "--num_samples", "3", "--temperature=1", "--prompt"]
    assert sample.main([*words, ""]) == 0
    once = capsysbinary.readouterr().out
    assert once.count(b"tiny/") == 3
    assert sample.main([*words, ""]) == 0 and capsysbinary.readouterr().out == once
    assert sample.main([*words, os.fsdecode(b"tiny/\xff\xfe")]) == 0
    assert capsysbinary.readouterr().out.count(b"tiny/\xff\xfe") == 3
    monkeypatch.chdir(tmp_path)
    says_no(sample.main, [], "train.py")


def test_a_model_that_computes_no_numbers(learned, model, monkeypatch):
    """Its weights are finite, and too large: one line from each script, and never a traceback."""
    tensors, metadata = read_tensors(model / "model.safetensors")
    write_tensors(model / "model.safetensors", tensors | {"model.norm.weight": tensors["model.norm.weight"] * 3e37},
                  **metadata)
    monkeypatch.chdir(learned)
    for main, words in [(sample.main, ["--file=tiny/COPYING"]), (sample.main, ["--prompt=tiny/", "--temperature=0"]),
                        (sample.main, ["--prompt=tiny/", "--temperature=1"]), (sample.main, ["--top_k=3"]),
                        (extract.main, ["--check"]), (extract.main, ["--list"]), (recite.main, []),
                        (trace.main, ["configs/tiny.py", "--min_tokens=1"])]:
        says_no(main, [*words, "--model", model], "not finite")


def test_no_more_than_top_k_are_drawn_from():
    """Of equal ones the lowest ids, so that one is the same as none drawn."""
    generator = torch.Generator().manual_seed(0)
    drawn = {draw(torch.tensor([1.0, 3.0, 3.0, 3.0]), 5.0, 2, generator) for _ in range(60)}
    assert drawn == {1, 2} and {draw(torch.tensor([1.0, 3.0, 3.0]), 5.0, 1, generator) for _ in range(20)} == {1}
