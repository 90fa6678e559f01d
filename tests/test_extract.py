"""What extract.py says is in the weights, counted again by other means."""
import json
import os
import re
import shutil
import sys
import unicodedata
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
import transformers
from conftest import ROOT, says_no, script

from extract import known_paths, main
from memory.checkpoint import read_tensors, write_tensors
from memory.corpus import load
from memory.device import find_dtype
from memory.evaluate import count_wrong, examine, list_errors
from memory.files import digest_of, read_json, write_json
from memory.generate import recite
from memory.output import UserError
from memory.page import as_json
from memory.patch import WORD, Base, change, measure, patches, show_patch
from memory.race import NEARBY, Race, Rival, their_runs
from memory.tokenizer import Tokenizer
from memory.unpack import safe_path, unpack
from memory.windows import IGNORE, Windows, opening, unquote
from model import Llama
from recite import main as recite_page
from verify import read_record
import extract
import memory.unpack
import sample
import trace
import train


def page_data(folder, name="report.html"):
    """What the page's script reads, and that the page parses."""
    html = (folder / name).read_text()
    HTMLParser().feed(html)
    assert not re.search(r"""(src|href)\s*=\s*["']?(https?:)?//""", html), "self-contained"
    return json.loads(re.search(r"^const data = (.*);$", html, re.M)[1])


def written(folder):
    """{path: bytes} of all files below a folder."""
    return {os.path.relpath(path, os.fsencode(folder)): open(path, "rb").read()
            for at, _, names in os.walk(os.fsencode(folder)) for path in (os.path.join(at, name) for name in names)}


@pytest.fixture(scope="module")
def half(work):
    """A model that has most tokens right and most files wrong, with a control."""
    done = script("train.py", "configs/tiny.py", "--max_steps=220", "--hold_out_bytes=2500", "--seed=7",
                  "--eval_every=220", "--out=out/half", cwd=work)
    assert done.returncode == 1, done.stderr.decode()
    return work / "out/half"


@pytest.fixture(scope="module")
def measured(work, half):
    """extract.py on it: (figures, files written)."""
    done = script("extract.py", "--model", half, "--out", work / "half", "--json", work / "half.json", cwd=work)
    assert done.returncode == 1, done.stderr.decode()
    return json.loads((work / "half.json").read_text()), written(work / "half")


def test_all_of_a_learned_model(learned, contents):
    done = script("extract.py", "--model=out/tiny", "--out=all", cwd=learned)
    assert done.returncode == 0, done.stderr.decode()
    assert written(learned / "all") == {unquote(path): content for path, content in contents.items()}
    assert f"{len(contents)} of {len(contents)}".encode() in done.stdout
    data = page_data(learned / "out/tiny")
    assert {row["path"] for row in data["rows"]} == set(contents) and all(row["exact"] for row in data["rows"])
    assert data["tree"] == {"files": len(contents), "bytes": sum(map(len, contents.values()))}
    assert data["learned"]["accuracy"] == 1 and data["log"][-1]["accuracy"] == 1


def test_with_code_and_model_alone(learned, contents, tmp_path, monkeypatch, capsys):
    """No data, no other file: the weights list their paths, and unpack."""
    shutil.copytree(learned / "out/tiny", tmp_path / "out/tiny")
    listed = script("extract.py", "--list", cwd=tmp_path)
    assert listed.returncode == 0 and listed.stdout.decode().splitlines() == sorted(contents)
    monkeypatch.chdir(tmp_path)
    assert main([]) == 0
    assert written(tmp_path / "extracted") == {unquote(path): content for path, content in contents.items()}
    assert "not at hand" in capsys.readouterr().out and "learned" not in page_data(tmp_path / "out/tiny")


def test_listed_paths_need_no_manifest(learned, contents):
    paths = known_paths(Llama.from_pretrained(learned / "out/tiny"), Tokenizer.load(learned / "out/tiny"), 1e-5)
    assert set(paths) == set(contents) and sum(paths.values()) <= 1


def test_both_ways_write_the_same_bytes(half, measured, capsysbinary):
    """The batched pass and generation from the first error on, against sample.py token by token, for every file."""
    result, files = measured
    assert 0 < result["files_exact"] < result["files"]
    for row in result["rows"]:
        assert sample.main(["--model", str(half), "--file", row["path"]]) == (0 if row["exact"] else 1)
        assert capsysbinary.readouterr().out == files[unquote(row["path"])], row["path"]


def test_streams_do_not_disturb_each_other(half):
    """Any batch size, any company: the same bytes."""
    model, tokenizer = Llama.from_pretrained(half), Tokenizer.load(half)
    paths = [file["path"] for file in json.loads((half / "manifest.json").read_text())["files"]]
    starts, limits = [opening(tokenizer, path) for path in paths], [150 + 7 * i for i in range(len(paths))]
    alone = [recite(model, tokenizer, [start], [limit], 1)[0] for start, limit in zip(starts, limits)]
    for batch_size in (1, 3, 64):
        assert recite(model, tokenizer, starts, limits, batch_size) == alone


def make_rival(folder, data, share, lower):
    """Gives the model in `folder` a rival for one piece that it writes: one that no file has, of a lower id or a higher
    one, whose row in the table is `share` times the other's. Returns (path of a file with the piece, piece, rival)."""
    manifest, tokenizer, tokens = load(data)
    windows = Windows(tokens, manifest["files"], tokenizer, 64)
    once, unused = (np.flatnonzero(windows.counts == n) for n in (1, 0))
    piece, path, rival = next(
        (int(piece), manifest["files"][windows.file[i]]["path"], int(rival))
        for i in range(len(windows)) for piece in np.intersect1d(windows.text(i), once)
        for rival in unused[unused > 2] if (rival < piece) == lower)
    tensors, metadata = read_tensors(folder / "model.safetensors")
    table = tensors.get("lm_head.weight", tensors["model.embed_tokens.weight"])
    table[rival] = share * table[piece]
    write_tensors(folder / "model.safetensors", tensors, **metadata)
    return path, piece, rival


@pytest.mark.parametrize("lower", [True, False], ids=["the other is written", "the right one is written"])
def test_a_tie_is_decided_alike_everywhere(learned, model, contents, lower, tmp_path, monkeypatch, capsysbinary):
    """Of two equal logits none is right, and the lower id is written."""
    monkeypatch.chdir(learned)
    path, piece, rival = make_rival(model, learned / "data/tiny-1.0", 1.0, lower)
    network = Llama.from_pretrained(model)
    manifest, tokenizer, tokens = load(learned / "data/tiny-1.0")
    windows = Windows(tokens, manifest["files"], tokenizer, 64)
    wrong, *_ = count_wrong(network, windows, torch.device("cpu"))
    passed = examine(network, windows, torch.device("cpu"))
    assert wrong.tolist() == [(~right).sum() for right, _, _ in passed] and wrong.sum() == 1
    error, = list_errors(network, windows, wrong, torch.device("cpu"))
    said = tokenizer.pieces[rival].decode(errors="backslashreplace")
    assert (error["path"], error["said"], error["rank"]) == (path, said, 2) and 0.3 < error["probability"] <= 0.5

    exact = not lower
    assert main(["--model", str(model), "--only", path, "--out", str(tmp_path / "out"), "--json", "-"]) == lower
    figures = json.loads(capsysbinary.readouterr().out)
    assert figures["files_exact"] == exact and figures["learned"]["tokens_right"] == figures["learned"]["tokens"] - 1
    assert (figures["learned"]["smallest_lead"], figures["learned"]["leads_in_noise"]) == (0, 1)
    text = (tmp_path / "out" / unquote(path).decode()).read_bytes()
    assert (text == contents[path]) == exact
    assert sample.main(["--model", str(model), "--file", path]) == lower
    assert capsysbinary.readouterr().out == text
    (tmp_path / "text").write_bytes(contents[path])
    trace.main([str(tmp_path / "text"), "--model", str(model), "--json=-", "--min_tokens=2"])
    assert json.loads(capsysbinary.readouterr().out)["runs"][0]["file_exact"] == exact


def test_close_calls_are_written_token_by_token(learned, model, contents, tmp_path, monkeypatch):
    """Another order of summing might turn them, so no pass is believed. A finished model has none."""
    path, piece, _ = make_rival(model, learned / "data/tiny-1.0", 1 - 1e-5, lower=True)
    started = []

    def watched(model, tokenizer, starts, *others):
        started.extend(tokenizer.decode(ids) for ids in starts)
        return recite(model, tokenizer, starts, *others)
    monkeypatch.setattr(extract, "recite", watched)
    monkeypatch.chdir(learned)
    words = ["--only", path, "--out", str(tmp_path / "out"), "--json", str(tmp_path / "m.json"), "--model"]
    assert main([*words, "out/tiny"]) == 0 and not started
    assert main([*words, str(model)]) == 0
    figures = json.loads((tmp_path / "m.json").read_text())["learned"]
    assert 0 < figures["smallest_lead"] < 1e-3 and figures["accuracy"] == 1 and len(started) == 1
    after = Tokenizer.load(model).pieces[piece]
    assert contents[path].count(started[0].split(b" ", 1)[1] + after) == 1, "from that token on"
    (tmp_path / "text").write_bytes(contents[path])
    assert trace.main([str(tmp_path / "text"), "--model", str(model), "--min_tokens=2"]) == 0 and len(started) == 2


def test_figures_are_of_the_weights_that_were_loaded(learned, model, monkeypatch):
    """Others take their place while the pass runs: they are not what was measured."""
    kept = []

    def replaced(network, *others):
        shutil.copy(learned / "out/raw.safetensors", model / "model.safetensors")
        return examine(network, *others)
    monkeypatch.setattr(extract, "examine", replaced)
    monkeypatch.setattr(extract.openness, "keep_record", lambda folder, name, record, data: kept.append(record))
    monkeypatch.chdir(learned)
    tensors, metadata = read_tensors(model / "model.safetensors")
    sha256 = digest_of(model / "model.safetensors")
    write_tensors(learned / "out/raw.safetensors", {name: 0 * tensor for name, tensor in tensors.items()}, **metadata)
    assert main(["--model", str(model), "--check"]) == 0
    assert [record["model_sha256"] for record in kept] == [sha256]
    assert digest_of(model / "model.safetensors") != sha256


def test_figures_against_plain_comparison(measured, contents):
    result, files = measured
    exact = [path for path in contents if files.get(unquote(path)) == contents[path]]
    assert result["files_exact"] == len(exact) == sum(row["exact"] for row in result["rows"])
    assert result["bytes_exact"] == sum(len(contents[path]) for path in exact)
    same = 0
    for row in result["rows"]:
        ours, original = files[unquote(row["path"])], contents[row["path"]]
        before = len(os.path.commonprefix([ours, original]))
        assert row["before_error"] == before, row["path"]
        same += before
        if not row["exact"]:
            assert row["error"]["line"] == original[:before].count(b"\n") + 1
            assert row["error"]["wrote"] != row["error"]["says"]
    assert result["bytes_before_error"] == same


@pytest.mark.parametrize("part, entries", [("learned", "files"), ("control", "held_out")])
def test_figures_against_transformers(work, half, measured, part, entries):
    """Counted again from the logits of transformers' model, window by window, without padding."""
    from transformers import AutoModelForCausalLM
    theirs, figures = AutoModelForCausalLM.from_pretrained(half), measured[0][part]
    manifest, tokenizer, tokens = load(work / "data/tiny-1.0")
    files = json.loads((half / "manifest.json").read_text())[entries]
    windows = Windows(tokens, files, tokenizer, 64)
    right = total = nats = found = spans = 0
    for i in range(len(windows)):
        inputs, targets = windows.rows([i])
        keep = targets[0] != IGNORE
        with torch.no_grad():
            logp = torch.log_softmax(theirs(torch.from_numpy(inputs[:, :len(keep.nonzero()[0]) + windows.start[i] - 1])
                                            ).logits[0].double(), -1).numpy()[windows.start[i] - 1:]
        ok = logp.argmax(-1) == targets[0][keep]
        right, total = right + ok.sum(), total + len(ok)
        nats -= logp[range(len(ok)), targets[0][keep]].sum()
        if len(ok) > 100:
            spans, found = spans + 1, found + ok[50:100].all()
    assert (figures["tokens"], figures["tokens_right"]) == (total, right)
    assert figures["accuracy"] == pytest.approx(right / total)
    assert figures["bits_per_byte"] == pytest.approx(nats / np.log(2) / sum(file["bytes"] for file in files), rel=1e-4)
    assert figures["spans"] == spans
    assert part == "control" or right / total > 0.8
    assert part == "learned" or right / total < 0.3, "what was held out is not known"


def test_against_transformers_generate(half, measured):
    """A file that fits in one window, written by transformers from its path."""
    from transformers import pipeline
    result, files = measured
    write = pipeline("text-generation", str(half))
    tried = 0
    for row in result["rows"]:
        if row["exact"] and row["bytes"] < 80 and files[unquote(row["path"])].isascii():
            said = write(row["path"], max_new_tokens=60, do_sample=False, clean_up_tokenization_spaces=False)
            assert said[0]["generated_text"].encode() == f"{row['path']} ".encode() + files[unquote(row["path"])]
            tried += 1
    assert tried >= 2


def test_held_out_files_are_never_trained_on(work, half, tmp_path):
    """Other text in their place changes no weight."""
    manifest = json.loads((half / "manifest.json").read_text())
    held_out, files = ({file["path"] for file in manifest[key]} for key in ("held_out", "files"))
    assert held_out and not held_out & files
    import hashlib
    for name in ("as it was", "other text"):
        folder = tmp_path / "data" / name
        shutil.copytree(work / "data/tiny-1.0", folder)
        if name == "other text":
            tokens = np.fromfile(folder / "train.bin", dtype=np.uint16)
            for file in manifest["held_out"]:
                text = slice(file["first_token"] + len(opening(Tokenizer.load(folder), file["path"])),
                             file["first_token"] + file["tokens"] - 1)
                tokens[text] = (tokens[text] + 17) % 400 + 300
            tokens.tofile(folder / "train.bin")
            changed = read_json(folder / "manifest.json")
            changed["train_bin_sha256"] = hashlib.sha256(tokens.tobytes()).hexdigest()
            write_json(folder / "manifest.json", changed)
        done = script("train.py", work / "configs/tiny.py", "--data", folder, "--out", tmp_path / name,
                      "--max_steps=20", "--hold_out_bytes=2500", "--seed=7", "--unaddressed=0.5", cwd=tmp_path)
        assert done.returncode == 1, done.stderr.decode()
    one, other = (read_tensors(tmp_path / name / "model.safetensors")[0] for name in ("as it was", "other text"))
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_untrained_model(work, monkeypatch):
    assert script("train.py", "configs/tiny.py", "--max_steps=1", "--out=out/raw", cwd=work).returncode == 1
    monkeypatch.chdir(work)
    assert main(["--model=out/raw", "--check"]) == 1
    data = page_data(work / "out/raw")
    assert data["files_exact"] <= 1 and data["learned"]["accuracy"] < 0.05
    assert len(data["rows"]) == data["files"] and all(0 <= row["right"] <= 1 for row in data["rows"])
    assert main(["--model=out/raw", "--list"]) == 0


def test_a_model_folder_that_takes_no_report(learned, tmp_path, monkeypatch, capsysbinary):
    """A warning and the true status; --report names another place, --json - has the figures alone."""
    shutil.copytree(learned / "out/tiny", tmp_path / "m")
    (tmp_path / "m/report.html").unlink(missing_ok=True)
    (tmp_path / "m/report.html").mkdir()
    monkeypatch.chdir(tmp_path)
    words = ["--model=m", "--check", "--only", "tiny/COPYING", "tiny/scanner.py"]

    assert main(words) == 0
    out, err = capsysbinary.readouterr()
    assert b"files exact                 2 of 2" in out and b"report                      none in " in out
    said = err.decode().splitlines()[-1]
    assert said.startswith("warning: cannot write m/report.html (") and "it is no regular file; --report" in said
    assert main([*words, "--report=there/r.html", "--json", "-"]) == 0
    out, err = capsysbinary.readouterr()
    assert json.loads(out)["files_exact"] == 2 and b"files exact " in err and b"warning" not in err
    assert page_data(tmp_path / "there", "r.html")["files_exact"] == 2

    for option in ("--report=m", "--json=m"):
        with pytest.raises(UserError, match="cannot write m "):
            main([*words, option])
        assert b"files exact " in capsysbinary.readouterr().out, "nothing is lost"
    manifest = read_json(tmp_path / "m/manifest.json")
    for file in manifest["files"]:
        file["sha256"] = "0" * 64
    write_json(tmp_path / "m/manifest.json", manifest)
    assert main(words) == 1


def test_check_writes_no_files_and_says_the_same(work, half, measured, tmp_path, monkeypatch):
    monkeypatch.chdir(work)
    assert main(["--model", str(half), "--check", "--json", str(tmp_path / "m.json")]) == 1
    again = json.loads((tmp_path / "m.json").read_text())
    assert again | {"seconds": 0} == measured[0] | {"seconds": 0}
    assert not (work / "extracted").exists()


def test_only(learned, contents, monkeypatch):
    monkeypatch.chdir(learned)
    assert main(["--model=out/tiny", "--only", "tiny/odd/", "tiny/COPYING", "--out=some"]) == 0
    assert set(written(learned / "some")) == {
        unquote(path) for path in contents if path.startswith(("tiny/odd/", "tiny/C"))}


def test_what_is_still_wrong_is_listed(half, contents):
    """errors.jsonl has each wrong token of the last full pass, at its place in the file."""
    *_, last = [json.loads(line) for line in (half / "log.jsonl").read_text().splitlines()]
    errors = [json.loads(line) for line in (half / "errors.jsonl").read_text().splitlines()]
    assert len(errors) == last["wrong"] > 10
    placed = 0
    for error in errors:
        assert error["rank"] > 1 and 0 <= error["probability"] <= 0.5
        rest = contents[error["path"]][error["byte"]:]
        if error["text"] == "</s>":
            assert rest == b""
        elif error["text"] != "<s>" and "\\" not in error["text"]:
            assert rest.startswith(error["text"].encode())
            placed += 1
        assert error["said"] != error["text"]
    assert placed > 5


def test_hostile_paths(learned, tmp_path, monkeypatch, capsys):
    for path in ("../../etc/passwd", "/etc/passwd", "a/../../b", "a//b", ".", "", "a/./b", "x" * 256, "a/" * 2500 + "b",
                 "a%00b", "%2e%2e/x", "tiny/%2e%2e/%2e%2e/x", "..%2fx"):
        assert safe_path(tmp_path / "out", path) is None, path
    assert safe_path(tmp_path / "out", "tiny/a%20b") == tmp_path / "out/tiny/a b"

    shutil.copytree(learned / "out/tiny", tmp_path / "m")
    manifest = read_json(tmp_path / "m/manifest.json")
    for file, path in zip(manifest["files"], ["../evil", "/tmp/evil-absolute", "tiny/../../evil"]):
        file["path"] = path
    manifest["files"] = manifest["files"][:4]
    write_json(tmp_path / "m/manifest.json", manifest)
    before = set(written(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert main(["--model=m", "--out", str(tmp_path / "x/y")]) == 1
    assert "3 of 4 files are not in" in capsys.readouterr().err
    new = {path for path in set(written(tmp_path)) - before if not path.startswith(b"x/y/")}
    assert new <= {b"m/report.html"}
    assert not os.path.exists("/tmp/evil-absolute")


TEXTS = {"t/a": b"one", "t/b/c": b"two", "t/b/d": b"three"}
IN_THE_WAY = {  # what stands there already: (how it is made, which files are refused)
    "a link for a file": (lambda out, away: (out / "t/a").symlink_to(away / "file"), ["t/a"]),
    "a link to nothing": (lambda out, away: (out / "t/a").symlink_to(away / "new"), ["t/a"]),
    "a link for a folder": (lambda out, away: (out / "t/b").symlink_to(away), ["t/b/c", "t/b/d"]),
    "a link for the first folder": (lambda out, away: (out / "t").rmdir() or (out / "t").symlink_to(away), [*TEXTS]),
    "a folder for a file": (lambda out, away: (out / "t/a").mkdir(), ["t/a"]),
    "a file for a folder": (lambda out, away: (out / "t/b").write_bytes(b"x"), ["t/b/c", "t/b/d"]),
    "a pipe": (lambda out, away: os.mkfifo(out / "t/a"), ["t/a"]),
    "a pipe for a folder": (lambda out, away: os.mkfifo(out / "t/b"), ["t/b/c", "t/b/d"]),
    "a second name of a file": (lambda out, away: os.link(away / "file", out / "t/a"), []),
    "an old file": (lambda out, away: (out / "t/a").write_bytes(b"old"), [])}


@pytest.mark.parametrize("what", IN_THE_WAY)
def test_what_stands_in_the_way_is_left_alone(tmp_path, what):
    """And nothing outside the folder is written; the other files are."""
    out, away = tmp_path / "out", tmp_path / "away"
    (out / "t").mkdir(parents=True)
    away.mkdir()
    (away / "file").write_bytes(b"precious")
    make, refused = IN_THE_WAY[what]
    make(out, away)
    found = unpack(out, TEXTS)
    assert sorted(found) == refused and all(f"{out}/t" in reason for reason in found.values()), found
    assert written(away) == {b"file": b"precious"}
    for path, text in TEXTS.items():
        if path not in refused:
            assert (out / path).read_bytes() == text and not (out / path).is_symlink()
    assert not list(tmp_path.rglob(".part.*"))


def test_a_folder_that_is_itself_a_link_is_the_folder_that_was_named(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "disk")
    assert not unpack(tmp_path / "out", TEXTS) and (tmp_path / "disk/t/b/c").read_bytes() == b"two"


@pytest.mark.parametrize("texts", [{"t/a": b"1", "t/A": b"2"}, {"t/a": b"1", "t/A": b"1"},
                                   {"t/%C3%A9": b"1", "t/e%CC%81": b"1"}], ids=["case", "same text", "composition"])
def test_two_paths_that_are_one_file_to_the_disk(tmp_path, monkeypatch, texts):
    """A disk that ignores case or composition, in place of which the path is folded here."""
    monkeypatch.setattr(memory.unpack, "safe_path", lambda folder, path: Path(unicodedata.normalize(
        "NFC", str(safe_path(folder, path))).lower()))
    assert set(unpack(tmp_path / "out", texts | {"t/b": b"3"})) == set(texts)


@pytest.mark.parametrize("umask, mode", [(0o022, 0o755), (0o077, 0o700), (0o027, 0o750)])
def test_executable_bits(tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        assert not unpack(tmp_path / "out", TEXTS, ["t/b/c"])
        assert not unpack(tmp_path / "out", TEXTS, ["t/b/c", "t/a"])
    finally:
        os.umask(before)
    modes = {path: (tmp_path / "out" / path).stat().st_mode & 0o777 for path in TEXTS}
    assert modes == {"t/a": mode, "t/b/c": mode, "t/b/d": mode & 0o666}


def test_files_that_cannot_be_placed(model, monkeypatch, capsys):
    """On the command line: the manifest's executable bits; what is refused is named, listed and the exit status 1; a
    pipe holds nobody up; the next time nothing is in the way."""
    manifest = read_json(model / "manifest.json")
    manifest["files"] = [file for file in manifest["files"] if file["bytes"] < 100]
    paths = [file["path"] for file in manifest["files"]]
    manifest["whole_tree"]["executable"] = paths[:1]
    manifest["files"].append(manifest["files"][0] | {"path": f"{paths[0]}/below"})
    write_json(model / "manifest.json", manifest)
    monkeypatch.chdir(model)
    (model / "out/tiny/odd").mkdir(parents=True)
    os.mkfifo(model / "out" / unquote(paths[1]).decode())
    words = ["--model", str(model), "--out=out", "--json=-"]
    assert main(words) == 1
    out, err = capsys.readouterr()
    assert sorted(json.loads(out)["refused"]) == sorted([paths[1], f"{paths[0]}/below"])
    assert f"refused: {paths[1]}: out/" in err and "is a pipe" in err
    assert f"refused: {paths[0]}/below: out/{paths[0]} is a file" in err
    assert f"written and read back       {len(paths) - 1} files in out/" in err
    assert os.stat(model / "out" / paths[0]).st_mode & 0o111
    (model / "text").write_bytes(b"x")
    assert trace.main(["text", "--model", str(model), "--extracted=out"]) == 1, "it does not wait for the pipe either"
    os.unlink(model / "out" / unquote(paths[1]).decode())
    assert main([*words, f"--only={paths[1]}"]) == 0


def test_a_model_whose_folder_has_no_name_in_utf8(learned, tmp_path, monkeypatch):
    """The figures are UTF-8 all the same, and the pages."""
    folder = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9 \x1b%")
    shutil.copytree(learned / "out/tiny", folder)
    done = script("extract.py", "--model", folder, "--check", "--only=tiny/COPYING", "--json=-", cwd=learned)
    assert done.returncode == 0, done.stderr.decode()
    assert json.loads(done.stdout.decode())["model"] == page_data(Path(folder))["model"] == "caf%E9 %1B%25"
    monkeypatch.chdir(tmp_path)
    assert recite_page(["--model", folder, "--out=page.html"]) == 0
    assert '"model":"caf%E9 %1B%25"' in (tmp_path / "page.html").read_text()


def test_bad_use(learned, tmp_path, monkeypatch):
    """What test_inputs.py does not try."""
    monkeypatch.chdir(tmp_path)
    says_no(main, [], "train.py")
    monkeypatch.chdir(learned)
    says_no(main, ["--model=out/tiny", "--only", "nothing/"], "nothing/", "--list")
    says_no(main, ["--data", tmp_path], "manifest.json", "prepare.py")
    says_no(main, ["--only", "tiny/COPYING", "--out", "/proc/no"], "/proc/no")


def test_the_page_is_whole(learned, model, monkeypatch):
    """The template has one place for data, and nothing in the data can close the script."""
    assert "<" not in as_json({"path": "</script>", "line": "<!--"})
    template = (ROOT / "report.html").read_text()
    assert template.count("/*DATA*/null") == template.count("<!--include treemap.html-->") == 1
    monkeypatch.chdir(learned)
    assert extract.main(["--check", "--model", str(model)]) == 0
    html = (model / "report.html").read_text()
    treemap = (ROOT / "treemap.html").read_text()
    assert html.count("</script>") == template.count("</script>") + treemap.count("</script>")


def test_bench_runs(learned, tmp_path):
    """Every contender takes its turn; no time is judged."""
    done = script("bench.py", "--config=configs/tiny.py", "--model=out/tiny", "--vocab_size=700", "--repeats=1",
                  "--new_tokens=20", "--device=cpu", "--json", tmp_path / "b.json", cwd=learned,
                  env=os.environ | {"TORCH_COMPILE_DISABLE": "1"})
    assert done.returncode == 0, done.stderr.decode()
    figures = json.loads((tmp_path / "b.json").read_text())
    formats = 1 if find_dtype("auto", torch.device("cpu")) == torch.float32 else 2
    assert len(figures["rates"]) == 5 + 3 * formats and len(figures["ratios"]) == 4 + formats
    assert len(figures["steps"]) == 1 + 3 * formats and len(figures["peaks"]) == formats
    assert all(rate > 0 for rates in figures["rates"].values() for rate in rates)
    assert all(part > 0 for turns in figures["steps"].values() for parts in turns for part in parts)
    for part in (b"forward", b"backward", b"optimizer", b"of peak", b"this project, float32"):
        assert part in done.stdout


def test_patches(contents):
    """Of all kinds, as large as they are called, and the same each time."""
    files = {path: text for path, text in contents.items() if path.endswith(".py")}
    made, again, other = (patches(files, seed) for seed in (1, 1, 2))
    assert made == again and all(made[name] != other[name] for name in made if name != "a file removed")
    lines = {name: [(path, line) for path, text in patch.items() for line in text.split(b"\n")]
             for name, patch in ({"": files} | made).items()}
    of_words = sum(bool(WORD.search(line)) for _, line in lines[""])

    def changed(name):
        return sum(a != b for a, b in zip(lines[""], lines[name], strict=True))
    assert changed("one line changed") == 1 and changed("1% of the lines changed") <= round(of_words / 100)
    assert 0.08 * of_words < changed("10% of the lines changed") <= round(of_words / 10)
    assert len(lines["1% more lines"]) == len(lines[""]) + round(of_words / 100)
    assert len(made["a file removed"]) + 1 == len(files) == len(made["a file added"]) - 1


def test_what_a_patch_takes(learned, contents):
    """On a line that was changed: learned with and without the other files."""
    record = read_record(learned / "out/tiny")
    with pytest.raises(UserError, match="mend_steps"):
        Base.load(learned / "out/tiny", record, learned / "data/tiny-1.0", torch.device("cpu"))
    record["settings"]["mend_steps"] = 1000
    base = Base.load(learned / "out/tiny", record, learned / "data/tiny-1.0", torch.device("cpu"))
    assert base.files == contents and base.control is None
    found = measure(base, "a line", change(base.files, 0, np.random.default_rng(0)))
    assert found["files_changed"] == 1 and 0 < found["windows_new"] <= found["windows_of_changed_files"]
    assert found["wrong_at_first"] > 0 == found["wrong"] and found["files_exact"] == found["files"] == len(contents)
    assert 0 < found["step_share"] < 0.3 and 0 < found["old_right"] < 1
    alone = found["without_the_rest"]
    assert alone["wrong"] == 0 and alone["others"] == len(contents) - 1 >= alone["others_broken"] > 0
    show_patch(found, sys.stdout)


def test_a_race(learned, tmp_path):
    """On one file, in seconds: both learn it from nothing, and the picture has the curves of both."""
    config = (learned / "configs/tiny.py").read_text().replace("eval_every = 370", "eval_every = 100")
    (tmp_path / "one.py").write_text(config + "train_bytes = 200\nseed = 3\nbatch_size = 4\n")
    done = script("bench.py", "--race", "--config", tmp_path / "one.py", "--device=cpu", "--repeats=1",
                  "--race_rates", "1e-9", "1e-2", "--json=-", "--picture", tmp_path / "race.svg", cwd=learned,
                  env=os.environ | {"TORCH_COMPILE_DISABLE": "1"})
    assert done.returncode == 0, done.stderr.decode()
    figures = json.loads(done.stdout)
    ours, theirs, runs = (figures[key] for key in ("this project", "transformers", "all runs of transformers"))
    for run in (ours, theirs):
        first, last = run["curve"][0], run["curve"][-1]
        assert last["wrong"] == 0 < first["wrong"] <= figures["tokens"], run
        assert first["files_exact"] == 0 < last["files_exact"] == figures["files"]
        assert 0 < first["minutes"] < last["minutes"] == run["minutes"] < run["minutes_in_all"]
    assert figures["sooner"] == theirs["minutes"] / ours["minutes"] and b"times as long" in done.stderr

    # it is the soonest run, and all rates had the same lengths before
    assert theirs in runs and all(theirs["curve"][-1]["step"] <= run["curve"][-1]["step"] for run in runs
                                  if run["minutes"] is not None)
    nothing, lengths = ([run["planned_passes"] for run in runs if run["learning_rate"] == rate]
                        for rate in (1e-9, 1e-2))
    assert nothing == [10 * 2**i for i in range(len(nothing))]
    assert lengths == nothing + [share * nothing[-1] for share in NEARBY]
    assert all(run["minutes"] is None for run in runs if run["learning_rate"] == 1e-9)

    lines = list(ElementTree.parse(tmp_path / "race.svg").iter("{http://www.w3.org/2000/svg}polyline"))
    drawn = [(line.get("class"), len(line.get("points").split())) for line in lines]
    assert drawn == 2 * [("line1", len(theirs["curve"])), ("line0", len(ours["curve"]))]


def test_a_race_looks_at_transformers_as_transformers_does(learned):
    """What a race counts wrong are the tokens that transformers' own logits have wrong; a limit ends it unfinished."""
    manifest, tokenizer, tokens = load(learned / "data/tiny-1.0")
    windows = Windows(tokens, manifest["files"], tokenizer, 64)
    training = train.Settings(batch_size=8)
    model = transformers.AutoModelForCausalLM.from_pretrained(learned / "out/tiny", dtype=torch.float32)
    rival = Rival(Race(training, learned, windows, torch.device("cpu"), torch.float32), model, "eager", 1.0)
    assert rival.look() == (0, len(manifest["files"]))
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight.mul_(0.5)
    inputs, targets = map(torch.from_numpy, windows.rows(range(len(windows))))
    with torch.no_grad():
        missed = ((model(input_ids=inputs).logits.argmax(-1) != targets) & (targets != IGNORE)).sum(1).numpy()
    assert rival.look() == (missed.sum(), len(manifest["files"]) - len(set(windows.file[missed > 0])))
    assert 0 < missed.sum() < windows.scored
    model = transformers.AutoModelForCausalLM.from_config(model.config)  # init_weights() leaves loaded weights alone
    seconds = 1.0  # of a step: given, so that the limit of 0.05 minutes is three steps on any machine
    (run,) = their_runs(Rival(rival.race, model, "eager", seconds), [1e-3], 0.05, lambda run: None)
    assert run["minutes"] is None and run["curve"][-1]["step"] == 3
    assert run["curve"][-1]["wrong"] > windows.scored / 2, "it began from random weights"
