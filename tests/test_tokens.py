"""Bytes, ids and windows: nothing is lost, and transformers agrees."""
import collections
import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import hostile_files, says_no

from memory.corpus import choose, load
from memory.output import UserError
from memory.tokenizer import BOS, EOS, Tokenizer, rarest
from memory.windows import IGNORE, Windows, address, opening, parse_address, quote, unquote
import sample


@pytest.fixture(scope="module")
def prepared(work):
    return load(work / "data/tiny-1.0")


@pytest.mark.parametrize("name", hostile_files())
def test_hostile_bytes_round_trip(prepared, name):
    data = hostile_files()[name]
    assert prepared[1].decode(prepared[1].encode(data)) == data


def test_random_bytes_round_trip(prepared):
    draw = random.Random(1)
    alphabet = b"\0 \n\t\r<s/>aA1" + bytes([0xE2, 0x96, 0x81, 0x85, 0xC3, 0x28, 0xF0, 0xFF])
    for _ in range(3000):
        data = bytes(draw.choices(alphabet, k=draw.randrange(14)))
        assert prepared[1].decode(prepared[1].encode(data)) == data


def test_a_text_is_cut_where_no_piece_crosses(prepared):
    """So its ids are those of SentencePiece on the whole, and of each run between what is spelled in bytes."""
    tokenizer, draw = prepared[1], random.Random(4)
    source = Path(json.__file__).read_text() * 4
    lines = source.splitlines(keepends=True)
    for text in (source, "".join(draw.choices(lines, k=3000)), " ".join(draw.sample(source.split(), 900)),
                 "é漢" * 3000):
        assert len(list(tokenizer._cut(text.encode()))) > 5
        assert tokenizer.encode(text.encode()) == tokenizer.sp.encode(text)
    marks = [b"\0", b"\xff\xfe", "\u2581".encode(), "\U00100041".encode(), b"\xf4\x80\x81"]
    runs = [(line.encode(), draw.choice(marks)) for line in lines]
    ids = [i for line, mark in runs
           for i in tokenizer.sp.encode(line.decode()) + [tokenizer.byte_ids[byte] for byte in mark]]
    assert tokenizer.encode(b"".join(line + mark for line, mark in runs)) == ids
    documents = [b"", source.encode(), b"\0" * 5000, b"", b"*" * 40_000, b"x", os.urandom(9000), b""]
    together = list(tokenizer.encode_all(documents))
    assert [tokenizer.decode(found.tolist()) for found in together] == documents
    assert all(found.dtype == np.uint16 and found.tolist() == tokenizer.encode(data)
               for found, data in zip(together, documents))


def test_characters_get_half_of_the_pieces_at_most():
    words = b" ".join(b"%x" % i for i in range(2000))
    many = "".join(map(chr, range(0x4E00, 0x5E00))).encode()
    tokenizer = Tokenizer.train([words, many, "\u4e01".encode() * 5, bytes(range(128, 256)) * 9], 1000)
    characters = [i for i in range(259, 1000) if len(tokenizer.sp.id_to_piece(i)) == 1]
    assert len(characters) <= 371 and len(tokenizer.encode("\u4e01".encode())) == 1
    data = many + words + many[::-1]
    assert tokenizer.decode(tokenizer.encode(data)) == data and len(tokenizer.encode(words)) < len(words) / 2
    assert rarest([b"aab", b"\0" * 9, b"\xff" * 9], 2) == [] and rarest([b"aabbc"], 1) == ["b", "c"]


def test_train_bin_holds_every_file(prepared, contents):
    manifest, tokenizer, tokens = prepared
    assert {file["path"] for file in manifest["files"]} == set(contents)
    for file in manifest["files"]:
        document = tokens[file["first_token"]:file["first_token"] + file["tokens"]].tolist()
        assert document[0] == BOS and document[-1] == EOS
        assert tokenizer.decode(document) == file["path"].encode() + b" " + contents[file["path"]]


def test_windows_hold_every_file_once(prepared, contents):
    manifest, tokenizer, tokens = prepared
    windows = Windows(tokens, manifest["files"], tokenizer, 64)
    inputs, targets = windows.rows(range(len(windows)))
    found, ends = {}, {}
    for i in range(len(windows)):
        path, offset, length = parse_address(tokenizer.decode(inputs[i]))
        assert (path, offset) == (manifest["files"][windows.file[i]]["path"], windows.offset[i])
        assert offset == len(found.setdefault(path, b"")), "a window opens where the one before ended"
        scored = targets[i][targets[i] != IGNORE]
        assert len(scored) and not set(scored[:-1]) & {BOS, EOS}
        assert path not in ends or ends[path] == BOS
        found[path], ends[path] = found[path] + tokenizer.decode(scored[:-1]), scored[-1]
        assert inputs[i][:windows.start[i]].tolist() == opening(tokenizer, path, offset)
    assert found == contents
    assert set(ends.values()) == {EOS}
    assert windows.scored == (targets != IGNORE).sum()


def test_openings_of_documents_are_learned_and_no_others(prepared):
    manifest, tokenizer, tokens = prepared
    windows = Windows(tokens, manifest["files"], tokenizer, 64)
    indices = np.random.default_rng(0).permutation(len(windows) + 3)  # the last three are without an address
    rows, columns, about, following, shares = windows.paths(indices)
    firsts = [row for row, i in enumerate(indices) if i < len(windows) and windows.offset[i] == 0]
    assert sorted(set(rows.tolist())) == firsts and (rows[1:] >= rows[:-1]).all()
    paths = [file["path"].encode() for file in manifest["files"]]
    ids = [tokenizer.encode(path) + [tokenizer.space] for path in paths]
    for p, (row, column) in enumerate(zip(rows, columns)):
        whole = ids[windows.file[indices[row]]]
        expected = collections.Counter(other[column] for other in ids if other[:column] == whole[:column])
        found = dict(zip(following[about == p].tolist(), shares[about == p].tolist()))
        assert found == pytest.approx({token: n / expected.total() for token, n in expected.items()})
        assert whole[column] in found and column < len(whole)
    assert len(rows) == sum(map(len, ids)) and shares.dtype == np.float32
    assert (shares < 1).any(), "a choice between paths"
    assert all(len(array) == 0 for array in windows.paths([len(windows)])), "no document begins there"


def test_windows_without_address_are_text_from_a_line_on(prepared, contents):
    manifest, tokenizer, tokens = prepared
    windows = Windows(tokens, manifest["files"], tokenizer, 64)
    inputs, targets = windows.batch([len(windows)] * 50, 5)
    again, _ = windows.batch([len(windows)] * 50, 5)
    assert (inputs == again).all() and len(np.unique(inputs, axis=0)) > 25
    for row, target in zip(inputs, targets):
        text = tokenizer.decode(row)
        home = [content for content in contents.values() if text in content]
        assert home and any(b"\n" + text in b"\n" + content for content in home)
        scored = np.flatnonzero(target != IGNORE)
        if len(scored):
            assert tokenizer.decode(row[:scored[0] + 1]).endswith(b"\n"), "the first line is given, not asked"


def test_a_tree_without_lines_has_windows_without_address(prepared):
    tokenizer = prepared[1]
    ids = opening(tokenizer, "t/a") + tokenizer.encode(b"x = 1; " * 99) + [EOS]
    entry = {"path": "t/a", "first_token": 0, "tokens": len(ids)}
    windows = Windows(np.array(ids, dtype=np.uint16), [entry], tokenizer, 64)
    inputs, targets = windows.batch([len(windows)] * 3, 0)
    assert tokenizer.decode(inputs[0]).startswith(b"x = 1; ") and (targets == IGNORE).all(), "one line, all of it given"


def test_paths_are_quoted_and_addresses_read_back():
    for path in (b"linux/a.c", b"a b/c+1%d\n\xff", "größe/x:1".encode()):
        assert unquote(quote(path)) == path
        for offset in (0, 7, 94851):
            text = address(quote(path), offset)
            if b"/" in path:
                assert parse_address(text + b"text") == (quote(path), offset, len(text))
    for text in (b"static int x", b"/* a comment */ x", b"// x/y z", b"linux/a.c", b"", b" linux/a.c x"):
        assert parse_address(text) is None


def test_choose_takes_whole_files_of_about_the_size():
    files = [{"path": f"t/{i}", "bytes": 10 * i} for i in range(40)]
    chosen = choose(files, 1000, 3)
    assert 900 <= sum(file["bytes"] for file in chosen) <= 1000
    assert chosen == choose(files, 1000, 3) != choose(files, 1000, 4)
    assert choose(files, 0, 3) == [], 'not even the empty file'


def test_transformers_tokenizes_alike(learned, contents):
    """tokenizer.json, read by transformers without sentencepiece, on whole files and random substrings."""
    from transformers import AutoTokenizer
    theirs, ours = AutoTokenizer.from_pretrained(learned / "out/tiny"), Tokenizer.load(learned / "out/tiny")
    texts = []
    for content in contents.values():
        try:
            text = content.decode()
        except UnicodeDecodeError:
            continue
        if not any(mark in text for mark in ("<s>", "\u2581", "\u2585", "\0")):  # which mean more to transformers
            texts.append(text)
    assert len(texts) >= 8
    draw = random.Random(2)
    whole = "".join(texts)
    for _ in range(2000):
        start = draw.randrange(len(whole))
        texts.append(whole[start:start + draw.randrange(1, 200)])
    for text in texts:
        ids = theirs(text)["input_ids"]
        assert ids == [BOS] + ours.encode(text.encode())
        assert theirs.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False) == text
    assert theirs("")["input_ids"] == [BOS]


def test_a_model_that_transformers_saved_again(learned, contents, tmp_path, monkeypatch, capfdbinary):
    """It has no tokenizer.model, of which tokenizer.json gives the same bytes, and no manifest.json."""
    from transformers import AutoModelForCausalLM, AutoTokenizer
    out = learned / "out/tiny"
    AutoModelForCausalLM.from_pretrained(out).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(out).save_pretrained(tmp_path)
    assert not (tmp_path / "tokenizer.model").exists()
    assert Tokenizer.load(tmp_path).proto == (out / "tokenizer.model").read_bytes()
    says_no(sample.main, ["--model", tmp_path], "manifest.json", "copy it from the folder that train.py wrote")
    shutil.copy(out / "manifest.json", tmp_path)
    path = max(contents, key=lambda path: len(contents[path]))
    assert sample.main(["--model", str(tmp_path), "--file", path]) == 0
    assert capfdbinary.readouterr().out == contents[path]


@pytest.mark.parametrize("vocab_size", [260, 16_384])
def test_tokenizer_json_holds_all_of_tokenizer_model(tmp_path, vocab_size):
    """With one byte more for the number of pieces too."""
    draw = random.Random(5)
    words = b" ".join(b"%x" % draw.randrange(16**6) for _ in range(20_000))
    tokenizer = Tokenizer.train([words, b"\n\t\"'<s>\\" * 9, "é漢".encode()], vocab_size)
    (tmp_path / "tokenizer.json").write_bytes(tokenizer.saved(64)["tokenizer.json"])
    assert Tokenizer.load(tmp_path).proto == tokenizer.proto


@pytest.mark.parametrize("text", [
    "", "{}", "[]", '{"model": 3}', '{"model": {"vocab": []}}', '{"model": {"vocab": {"a": 0, "b": "c"}}}',
    '{"model": {"vocab": {"<unk>": 0, "<s>": 1, "</s>": 2, "a": 3}}}', "[" * 10**5])
def test_a_tokenizer_json_of_another_kind(tmp_path, text):
    (tmp_path / "tokenizer.json").write_text(text)
    with pytest.raises(UserError, match="copy tokenizer.model"):
        Tokenizer.load(tmp_path)


def test_tokenizer_needs_no_transformers_and_no_network(work):
    """The run-time scripts import nothing beyond requirements.txt."""
    code = ("import sys; sys.modules.update(dict.fromkeys(['transformers', 'protobuf', 'requests', 'tokenizers']));"
            "import prepare, train, sample")
    done = subprocess.run([sys.executable, "-c", code], cwd=os.path.dirname(os.path.dirname(__file__)),
                          capture_output=True)
    assert done.returncode == 0, done.stderr.decode()


def test_manifest_is_plain_json(work):
    manifest = json.loads((work / "data/tiny-1.0/manifest.json").read_text())
    assert manifest["origin"] == "source" and manifest["licence"] == "GPL-2.0" and manifest["vocab_size"] == 700
    assert (work / "data/tiny-1.0/train.bin").stat().st_size == 2 * manifest["tokens"]
