"""A model's folder says what it is, and every statement that is not true is found by name."""
import contextlib
import hashlib
import json
import os
import re
import shutil
import subprocess
import tarfile
from pathlib import Path

import mlcroissant
import pytest
import yaml
from conftest import ROOT, says_no, script
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file

from memory import evidence, items, licences, mof, personal
from memory.urls import public_address
from memory.files import read_json, write_json
from memory.output import UserError
from memory.windows import unquote
import extract
import openness
import prepare

WRITTEN = {"README.md", "LICENSE", "NOTICES", "manifest.json", "build.json", "extraction.json", "openness.json",
           "croissant.json", "mof.yml", "SHA256SUMS"}


@pytest.fixture(scope="module")
def stated(learned, tmp_path_factory):
    """A working folder of its own with data/tiny-1.0 and out/tiny, a model that has learned all of it, measured."""
    folder = tmp_path_factory.mktemp("stated")
    shutil.copytree(learned / "data", folder / "data")
    shutil.copytree(learned / "out/tiny", folder / "out/tiny")
    for words in (["extract.py", "--check"], ["openness.py", "--source_archive", "--contact=a@example.org"]):
        done = script(*words, cwd=folder)
        assert done.returncode == 0, done.stdout.decode() + done.stderr.decode()
    return folder


@pytest.fixture
def copy(stated, tmp_path, monkeypatch):
    """A copy of that folder's model in out/tiny, beside the same tree; the working folder."""
    shutil.copytree(stated / "out", tmp_path / "out")
    shutil.copytree(stated / "data", tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "out/tiny"


def checked(capsys, *words):
    """(exit status, {number or name: (status, why)}) of openness.py --check."""
    capsys.readouterr()
    status = openness.main(["--model=out/tiny", "--check", *words])
    rows = re.findall(r"^(yes|no|not checked|FAILS) +((\d+) [^:]*|[^:]+): (.*)$", capsys.readouterr().out, re.M)
    return status, {number or name: (answer, why) for answer, name, number, why in rows}


def answers(folder):
    return {item["number"]: item["answer"] for item in read_json(folder / "openness.json")["items"]}


def rows_of(record):
    return {item["number"]: item["evidence"] for item in record["items"]}


def test_all_is_there_and_holds(copy, capsys, contents):
    assert WRITTEN <= {path.name for path in copy.iterdir()}
    status, rows = checked(capsys)
    assert status == 0 and len(rows) == 22 + 9, rows
    no = {number for number, answer in answers(copy).items() if answer != "yes"}
    assert no - {19} == {2, 16}, "a folder has no public address, and verify.py did not run"
    assert {name: column["answer"] for name, column in read_json(copy / "openness.json")["meets"].items()} == {
        "OSAID draft 0.0.8": "yes", "OSAID 1.0": "no", "FSF": "yes", "Debian, Zhou": "yes", "Debian, Glaser": "yes"}
    assert (copy / "LICENSE").read_bytes() == contents["tiny/COPYING"]
    assert contents["tiny/COPYING"] in (copy / "NOTICES").read_bytes()
    done = subprocess.run(["sha256sum", "--strict", "-c", "SHA256SUMS"], cwd=copy, capture_output=True)
    assert done.returncode == 0 and done.stdout.count(b": OK") == len(list(copy.iterdir())) - 2, done.stderr.decode()


def test_the_same_model_gives_the_same_bytes(copy):
    before = {path.name: path.read_bytes() for path in copy.iterdir()}
    for name in WRITTEN - {"manifest.json", "build.json", "extraction.json", "openness.json"}:
        (copy / name).unlink()
    assert openness.main(["--model=out/tiny"]) == 0
    assert {path.name: path.read_bytes() for path in copy.iterdir()} == before
    assert read_json(copy / "openness.json")["publisher"]["contact"] == "a@example.org", "what was given is kept"


def test_others_can_read_it(copy, contents):
    """The hub's own parser, MLCommons' validator, a YAML parser, tar."""
    found = ModelCard.load(copy / "README.md").data
    assert found.license == "gpl-2.0" and found.library_name == "transformers"
    figures = {result.metric_type: result.metric_value for result in found.eval_results}
    assert figures["files_exact"] == len(contents) and figures["next_tokens_right"] == 1
    data = mlcroissant.Dataset(copy / "croissant.json")
    assert not data.metadata.ctx.issues.errors
    assert {record["files/path"].decode(): record["files/bytes"] for record in data.records("files")} == {
        path: len(content) for path, content in contents.items()}
    record = yaml.safe_load((copy / "mof.yml").read_text())
    assert record["framework"]["name"] == "Model Openness Framework" and record["release"]["type"] == "code"
    assert {"name": "Datasets", "license": "GPL-2.0"} in record["release"]["components"]
    with tarfile.open(copy / "source.tar.xz", errors="surrogateescape") as tar:
        assert {os.fsencode(member.name): tar.extractfile(member).read() for member in tar} == {
            unquote(path): content for path, content in contents.items()}


def test_patterns_end_on_a_hostile_text():
    """Without limits to what they repeat, hours would pass here."""
    count = personal.Count()
    for text in (b"copyright 1999" + b" " * 1_000_000, b"a" * 1_000_000, b"N: x\n" + b"y\n" * 50_000,
                 b"N: x\n" * 200_000):
        count.add("linux/CREDITS", text)
    assert count.counts["names in CREDITS"] == 1 and sum(count.counts.values()) == 1


def test_the_card_says_no_more_than_the_records(copy, contents):
    card = (copy / "README.md").read_text()
    assert f"a copy of {len(contents)} files of tiny-1.0" in card and "a@example.org" in card
    assert not re.search(r"TODO|TBD|[Mm]ore [Ii]nformation|lorem|None\b|nan\b", card)
    titles = re.findall(r"^## (.*)\n\n(.*)", card, re.M)
    assert len(titles) == 10 and all(first.strip() for _, first in titles), "no empty section"
    (copy / "extraction.json").unlink()
    assert openness.main(["--model=out/tiny"]) == 0
    card = (copy / "README.md").read_text()
    assert "a copy of 1" not in card and "has not been measured" in card and "model-index" not in card


def edit(path, old, new):
    data = path.read_bytes()
    assert old in data, data[:200]
    path.write_bytes(data.replace(old, new, 1))


def rewrite(path, change):
    """Changes a record as someone does who knows of its digest."""
    record = read_json(path)
    change(record)
    write_json(path, record)


def archived(folder):
    return evidence.read_archive(folder / "source.tar.xz", read_json(folder / "manifest.json")["whole_tree"]).files


def pack(folder, more=b"", executable=()):
    """The archive beside the model, packed again with a file that has more, or with other modes."""
    files = archived(folder)
    files["tiny/scanner.py"] += more
    (folder / "source.tar.xz").write_bytes(evidence.write_archive(files, executable))


def add_key(path, **more):
    """Adds to a file of JSON without a digest."""
    path.write_text(json.dumps(json.loads(path.read_text()) | more))


def relicense(folder):
    """The original's case: everything says MIT, but the data."""
    (folder / "LICENSE").write_text("MIT License\n\nPermission is hereby granted, free of charge, to any person")
    edit(folder / "README.md", b"license: gpl-2.0", b"license: mit")
    openness.write_sums(folder)


def relicense_thoroughly(folder):
    """The same, by someone who writes the records anew too."""
    text = b"MIT License\n\nPermission is hereby granted, free of charge, to any person"
    (folder / "LICENSE").write_bytes(text)
    rewrite(folder / "manifest.json", lambda r: r.update(licence="MIT", whole_tree=r["whole_tree"] | {
        "licence_sha256": hashlib.sha256(text).hexdigest()}))
    edit(folder / "README.md", b"license: gpl-2.0", b"license: mit")
    openness.write_sums(folder)


FALSE = {
    "a byte of LICENSE": (lambda m: edit(m / "LICENSE", b"June", b"Junf"), {"10", "SHA256SUMS"}),
    "a LICENSE that is none": (lambda m: (m / "LICENSE").write_bytes(b"no words"), {"10", "12", "SHA256SUMS"}),
    "MIT": (relicense, {"10", "12", "22"}),
    "MIT, thoroughly": (relicense_thoroughly, {"10", "9", "22"}),
    "MIT, by no file": (lambda m: rewrite(m / "manifest.json", lambda r: r.update(licence="MIT", whole_tree=r[
        "whole_tree"] | {"licence_path": None, "licence_sha256": None})), {"9", "10", "22"}),
    "the size of the tree": (lambda m: rewrite(m / "manifest.json", lambda r: r["whole_tree"].update(files=3)), {"3"}),
    "a figure in the card": (lambda m: edit(m / "README.md", b"6,860", b"6,861"), {"22", "SHA256SUMS"}),
    "a hash": (lambda m: rewrite(m / "manifest.json", lambda r: r["files"][3].update(sha256="0" * 64)),
               {"1", "4", "7", "SHA256SUMS"}),
    "a hash, carelessly": (lambda m: edit(m / "manifest.json", b'"sha256": "', b'"sha256": "0'), {"1", "SHA256SUMS"}),
    "the tree's name": (lambda m: rewrite(m / "manifest.json", lambda r: r["whole_tree"].update(swhid="swh:1:dir:0")),
                        {"2", "7", "22"}),
    "a class of notice": (lambda m: rewrite(m / "manifest.json", lambda r: r["files"][0].update(notice=["BSD"])),
                          {"9"}),
    "an address": (lambda m: rewrite(m / "manifest.json", lambda r: r["whole_tree"].update(
        url="https://example.org/x.tar", sha256="0" * 64)), {"2", "croissant.json", "mof.yml"}),
    "no notices": (lambda m: (m / "NOTICES").unlink(), {"11", "SHA256SUMS"}),
    "a notice less": (lambda m: edit(m / "NOTICES", b"==> tiny/COPYING <==", b""), {"11"}),
    "one source file": (lambda m: pack(m, b"#"), {"7", "SHA256SUMS"}),
    "a folder in the archive's place": (
        lambda m: ((m / "source.tar.xz").unlink(), (m / "source.tar.xz").mkdir()), {"7", "SHA256SUMS"}),
    "weights of another format": (lambda m: save_file(
        {name: tensor.bfloat16() for name, tensor in load_file(m / "model.safetensors").items()},
        m / "model.safetensors"), {"15", "8", "17"}),
    "an archive that is none": (lambda m: (m / "source.tar.xz").write_bytes(b"x"), {"7"}),
    "a weight": (lambda m: (m / "model.safetensors").write_bytes((m / "model.safetensors").read_bytes()[:-1] + b"\7"),
                 {"15", "8", "17"}),
    "code beside the weights": (lambda m: (m / "weights.pkl").write_bytes(b""), {"15", "SHA256SUMS"}),
    "a setting": (lambda m: rewrite(m / "build.json", lambda r: r["settings"].update(hidden_size=65)), {"14", "22"}),
    "no record of the build": (lambda m: (m / "build.json").unlink(), {"14", "15", "SHA256SUMS"}),
    "the code's licence": (lambda m: rewrite(m / "build.json", lambda r: r["code"].update(licence="GPL-3.0")), {"13"}),
    "what was measured": (lambda m: rewrite(m / "extraction.json", lambda r: r["learned"].update(tokens_right=7)),
                          {"17", "SHA256SUMS"}),
    "no measurement": (lambda m: (m / "extraction.json").unlink(), {"8", "17", "22", "SHA256SUMS"}),
    "personal data": (lambda m: rewrite(m / "openness.json", lambda r: r["personal_data"].update(
        {"mail addresses": 77})), {"18", "22"}),
    "an answer": (lambda m: rewrite(m / "openness.json", lambda r: r["items"][1].update(answer="yes")), {"2", "22"}),
    "a column": (lambda m: rewrite(m / "openness.json", lambda r: r["meets"]["OSAID 1.0"].update(answer="yes")),
                 {"OSAID 1.0", "22"}),
    "openness.json, carelessly": (lambda m: edit(m / "openness.json", b'"no"', b'"yes"'),
                                  {"openness.json", "SHA256SUMS"}),
    "more than there is to state": (lambda m: rewrite(m / "openness.json", lambda r: r.update(certified="yes")),
                                    {"openness.json"}),
    "another item": (lambda m: rewrite(m / "openness.json", lambda r: r["items"].append(r["items"][0])),
                     {"openness.json"}),
    "who asks": (lambda m: rewrite(m / "openness.json", lambda r: r["items"][0].update(asked_by="ISO")),
                 {"openness.json"}),
    "another column": (lambda m: rewrite(m / "openness.json", lambda r: r["meets"].update(ISO=r["meets"]["FSF"])),
                       {"ISO", "22"}),
    "a file not learned": (lambda m: rewrite(m / "openness.json", lambda r: r["not_learned"].append("tiny/x")),
                           {"not_learned"}),
    "the words of what is not checked": (lambda m: rewrite(m / "openness.json", lambda r: r["items"][15].update(
        evidence="certified")), {"16", "22"}),
    "a record as if made again": (lambda m: rewrite(m / "openness.json", lambda r: r["items"][7].update(
        evidence=r["items"][7]["evidence"].removeprefix("recorded: "))), {"8", "22"}),
    "bytes exact": (lambda m: rewrite(m / "extraction.json", lambda r: r.update(bytes_exact=1)), {"8", "17"}),
    "bits per parameter": (lambda m: rewrite(m / "extraction.json", lambda r: r.update(bits_per_parameter=9.5)),
                           {"8", "17"}),
    "no code": (lambda m: rewrite(m / "build.json", lambda r: r["code"].update(files={})), {"13"}),
    "the code of a turn": (lambda m: rewrite(m / "build.json", lambda r: r["built_by"].append(
        r["built_by"][0] | {"code": "0" * 16})), {"13"}),
    "another report": (lambda m: rewrite(m / "build.json", lambda r: r["code"].update(report={"x.md": "0" * 64})),
                       {"20"}),
    "code that a key names": (lambda m: add_key(m / "config.json", auto_map={"AutoModel": "x.Y"}), {"15"}),
    "a template": (lambda m: add_key(m / "tokenizer_config.json", chat_template="{{ x }}"), {"15"}),
    "a folder": (lambda m: (m / "custom_generate").mkdir(), {"15"}),
    "a mode in the archive": (lambda m: pack(m, executable=["tiny/COPYING"]), {"7"}),
    "an archive that never ends": (lambda m: pack(m, bytes(50_000_000)), {"7"}),
    "the framework's record": (lambda m: edit(m / "mof.yml", b"GPL-2.0", b"MIT"), {"mof.yml"}),
    "the data set": (lambda m: (m / "croissant.json").unlink(), {"croissant.json", "SHA256SUMS"}),
    "a file of no record": (lambda m: edit(m / "log.jsonl", b"step", b"stop"), {"SHA256SUMS"}),
    "the sums": (lambda m: (m / "SHA256SUMS").unlink(), {"SHA256SUMS"})}


@pytest.mark.parametrize("what", FALSE)
def test_what_is_false_is_named(copy, capsys, what):
    falsify, named = FALSE[what]
    falsify(copy)
    status, rows = checked(capsys)
    failed = {name for name, (answer, _) in rows.items() if answer == "FAILS"}
    assert status == 1 and named <= failed, rows


def test_a_changed_tree_is_named(copy, capsys, tree):
    """One byte in train.bin; and another tree, with one source file changed."""
    (copy.parents[1] / "data/tiny-1.0/train.bin").open("r+b").write(b"\1\2")
    status, rows = checked(capsys)
    assert status == 1 and rows["1"][0] == rows["4"][0] == "FAILS" and "train.bin" in rows["1"][1]
    shutil.copytree(tree, "tiny-1.0")
    with open("tiny-1.0/decoder.py", "a") as file:
        file.write("#")
    prepare.main(["--source=tiny-1.0", "--vocab_size=700", "--out=other", "--quiet"])
    status, rows = checked(capsys, "--data=other")
    assert status == 1 and "tiny/decoder.py" in rows["1"][1] and rows["1"][0] == "FAILS"
    says_no(openness.main, ["--model=out/tiny", "--data=other"], "not the tree")
    prepare.main(["--source", str(tree), "--vocab_size=600", "--out=pieces", "--quiet"])
    assert checked(capsys, "--data=pieces")[1]["4"][0] == "not checked", "the same files, of another train.bin"


def test_with_the_folder_alone(copy, capsys):
    """No tree is at hand: first the archive in the folder stands for it, then what the weights write."""
    shutil.rmtree(copy.parents[1] / "data")
    status, rows = checked(capsys)
    assert status == 0 and rows["1"][0] == "yes" and rows["4"][0] == "not checked", rows
    (copy / "source.tar.xz").unlink()
    sums = (copy / "SHA256SUMS").read_text().splitlines(keepends=True)
    (copy / "SHA256SUMS").write_text("".join(line for line in sums if "source.tar.xz" not in line))
    status, rows = checked(capsys)
    assert {rows[number][0] for number in ("1", "3", "9", "10", "11", "12", "18")} == {"not checked"}, rows
    assert rows["7"][0] == "FAILS" and rows["8"][1].startswith("recorded: "), rows
    status, rows = checked(capsys, "--recite")
    assert all(rows[number][0] == "yes" for number in ("1", "8", "9", "10", "11", "12", "18")), rows
    assert "recorded" not in rows["8"][1]
    assert openness.main(["--model=out/tiny"]) == 2 and "left without a card" in capsys.readouterr().err


ADDRESS = "https://me:secret@example.org/tiny-1.0.tar.gz"


@pytest.fixture(scope="module")
def part(work, tree, tmp_path_factory):
    """A working folder with out/tiny, two steps into a part of a tree that came from an address."""
    folder = tmp_path_factory.mktemp("part")
    with tarfile.open(folder / "tiny-1.0.tar.gz", "w:gz") as tar:
        tar.add(tree, "tiny-1.0")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(prepare, "fetch", lambda url, *_: open("tiny-1.0.tar.gz", "rb"))
        prepare.main([f"--source={ADDRESS}", "--vocab_size=600", "--exclude=*.bat", "--quiet"])
    done = script("train.py", work / "configs/tiny.py", "--max_steps=2", "--train_bytes=4000",
                  "--hold_out_bytes=2500", cwd=folder)
    assert done.returncode == 1, done.stderr.decode()
    return folder


def test_a_part_says_so_and_is_built_again(part, monkeypatch, capsys, contents):
    """Right after the run; then with the address fetched and the weights built again; then from another address."""
    monkeypatch.chdir(part)
    folder = part / "out/tiny"
    record, card = read_json(folder / "openness.json"), (folder / "README.md").read_text()
    assert {number: answer for number, answer in answers(folder).items() if answer != "yes"} == {
        3: "no", 7: "no", 19: "no", 21: "no", 8: "not checked", 16: "not checked", 17: "not checked"}
    learned = {file["path"] for key in ("files", "held_out") for file in read_json(folder / "manifest.json")[key]}
    assert set(record["not_learned"]) == set(contents) - learned and "tiny/odd/crlf.bat" in record["not_learned"]
    assert (folder / "LICENSE").read_bytes() == contents["tiny/COPYING"]
    assert f"{len(record['not_learned'])} files, listed in openness.json" in card and "has not been measured" in card
    says_no(openness.main, ["--source_archive"], "a part of the tree")

    assert "secret" not in "".join(path.read_text() for path in folder.glob("*.[jmRy][sdEm]*")), "in no record"
    assert rows_of(record)[2].startswith("recorded: https://example.org/tiny-1.0.tar.gz, SHA-256 ")

    monkeypatch.setattr(prepare, "fetch", lambda url, *_: open("tiny-1.0.tar.gz", "rb"))
    status, rows = checked(capsys, "--online", "--rebuild")
    assert status == 0 and rows["2"][0] == rows["16"][0] == "yes", [row for row in rows.items() if "FAILS" in row[1]]
    assert not (folder / "rebuilt.json").exists(), "a check writes nothing"
    with tarfile.open("tiny-1.0.tar.gz", "w:gz") as tar:
        tar.add("out/tiny/README.md", "tiny/README")
    status, rows = checked(capsys, "--online")
    assert status == 1 and rows["2"][0] == "FAILS" and "serves SHA-256" in rows["2"][1]
    monkeypatch.chdir(folder.parent)
    capsys.readouterr()
    assert openness.main(["--model=tiny", "--check"]) == 0
    assert re.search(r"^not checked +2 a public origin", capsys.readouterr().out, re.M), "no text, no yes"


def test_stopped_and_stand_in(stopped, work, tmp_path, monkeypatch):
    """A run that is not finished, on what is no release."""
    shutil.copytree(work / "data", tmp_path / "data")
    for manifest in (stopped / "manifest.json", tmp_path / "data/tiny-1.0/manifest.json"):
        rewrite(manifest, lambda r: r.update(origin="stand-in"))
    monkeypatch.chdir(tmp_path)
    assert openness.main(["--model", str(stopped)]) == 0
    found = answers(stopped)
    assert found[2] == found[6] == found[14] == found[21] == "no"
    card = (stopped / "README.md").read_text()
    assert "**not finished**" in card and "**stand-in**" in card


def test_extract_keeps_what_it_measured(copy, capsys):
    """With the page's line in SHA256SUMS; and a part, or a look without the tree, does not take its place."""
    before = (copy / "extraction.json").read_bytes()
    assert extract.main(["--model=out/tiny", "--check", "--only", "tiny/COPYING"]) == 0
    assert (copy / "extraction.json").read_bytes() == before and checked(capsys)[0] == 0
    shutil.move("data", "elsewhere")
    assert extract.main(["--model=out/tiny", "--check"]) == 0
    assert (copy / "extraction.json").read_bytes() == before and checked(capsys)[0] == 0
    page = json.loads(re.search(r"^const data = (.*);$", (copy / "report.html").read_text(), re.M)[1])
    assert "openness" not in page, "without the tree there is nothing to state"


def test_an_older_model_gets_its_card(copy, capsys):
    """One whose manifest and build.json hold less, as before this was written."""
    def strip(record):
        del record["whole_tree"]
        for file in record["files"]:
            del file["notice"]
    rewrite(copy / "manifest.json", strip)
    rewrite(copy / "build.json", lambda r: [r.pop(key) for key in ("code", "seconds")])
    for path in [copy / name for name in WRITTEN - {"manifest.json", "build.json"}]:
        path.unlink()
    assert openness.main(["--model=out/tiny"]) == 0 and checked(capsys)[0] == 0
    assert answers(copy)[13] == "no" and answers(copy)[1] == "yes"
    rewrite(Path("data/tiny-1.0/manifest.json"), strip)
    rewrite(copy / "manifest.json", strip)
    assert openness.main(["--model=out/tiny"]) == 2 and "older prepare.py" in capsys.readouterr().err


def test_the_swhid_is_gits_hash(tree, work, tmp_path):
    """Also with names that git sorts in its own way, a script, and empty folders."""
    folder = shutil.copytree(tree, tmp_path / "tiny-1.0")
    for name in ("a/b/c", "a.b", "a0", "a-", "a/b.c"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    (folder / "a0").chmod(0o755)
    (folder / "empty").mkdir()
    prepare.main(["--source", str(folder), "--out", str(tmp_path / "out"), "--vocab_size=700", "--quiet"])
    for words in (["init", "-q"], ["-c", "core.autocrlf=false", "add", "-Af"], ["write-tree"]):
        done = subprocess.run(["git", *words], cwd=folder, capture_output=True)
        assert done.returncode == 0, done.stderr.decode()
    swhid = read_json(tmp_path / "out/manifest.json")["whole_tree"]["swhid"]
    assert swhid == "swh:1:dir:" + done.stdout.decode().strip()


@pytest.mark.parametrize("text, classes", [
    ("int x;\n", ["no words"]), ("int permission(struct inode * inode)\n{ return granted; }\n", ["no words"]),
    ("/* Copyright (C) 1991 A. B. */\n", ["copyright alone"]), ("/* (C) 1991 A. B. */\n", ["copyright alone"]),
    ("/*\n * under the terms of the GNU General\n * Public License; either version 2, or any\n * later version.\n */",
     ["GPL, any later version"]),
    ("# may be used under the GNU Public\n# License\n", ["GPL"]),
    ("/* Redistribution and use in\n * source and binary forms", ["BSD"]),
    ("Permission to use, copy and distribute this is hereby granted", ["permission granted"]),
    ("! Copyright 1993 X. All rights\n! reserved.\n", ["all rights reserved"]),
    ("(c) 1990 Y. All rights reserved. May be freely distributed.", ["terms of its own"]),
    ("// SPDX-License-Identifier: MIT\n", ["SPDX line"]), ("put in the public domain by Z", ["public domain"]),
    ("/* in the public\n * domain. */", ["public domain"]), ("/* may be\n * distributed */", ["terms of its own"]),
    ("/* For non-commercial use only. */", ["terms of its own"]),
    ("# the Commons\n# Clause applies", ["terms of its own"])])
def test_classes_of_notices(text, classes):
    assert licences.classify("t/x.c", text.encode()) == classes
    assert bool(licences.notice("t/x.c", text.encode())) == (classes != ["no words"])


def test_notices_are_whole_paragraphs():
    text = (b"/*\n * Copyright 1990\n *  by A\n *\n * Works well.\n *\n * THIS IS PROVIDED WITHOUT WARRANTY\n * of "
            b"any kind\n */\n"
            b"int x; /* \xe9 */\n")
    assert licences.notice("t/x.c", text) == (
        b" * Copyright 1990\n *  by A\n\n * THIS IS PROVIDED WITHOUT WARRANTY\n * of any kind")
    assert licences.notice("t/COPYING.LIB", b"any\n\ntext\xff") == b"any\n\ntext\xff"


def test_personal_data_is_counted():
    count = personal.Count()
    count.add("t/a.c", b"(C) 1990 by Ann Lee, Copyright (C) 1991, 1992  Ann B. Lee <ann@x.example.org>, "
                       b"ANN@X.example.ORG")
    count.add("t/CREDITS", b"N: Ann Lee\nE: ann@x.example.org\nS: Street 1\nS: Town\n\nN: Bo Ek\nD: nothing\n\nN: "
                           b"Cy\nS: Rd\n")
    assert count.counts == {"mail addresses": 1, "names in copyright lines": 1, "names in CREDITS": 3,
                            "postal addresses in CREDITS": 2}


@pytest.mark.parametrize("name, free, fields", [
    ("GPL-2.0", True, "gpl-2.0"), ("GPL-2.0 WITH Linux-syscall-note", True, "other"), ("MIT", True, "mit"),
    ("(GPL-2.0 OR MIT)", True, "other"), ("CC-BY-NC-4.0", False, "other"), ("MIT AND Proprietary", False, "other"),
    ("MIT-Nonsense", False, "other"), ("Apache-2.0 WITH Commons-Clause", False, "other"), (None, False, "unknown")])
def test_licences_by_name(name, free, fields):
    assert licences.is_free(name) == free and licences.hub_fields(name)["license"] == fields


def test_damaged_records_are_named(copy, capsys):
    """Each value of each record in turn is of another kind: no traceback, neither in a check nor in writing."""
    weights = read_json(copy / "build.json")["model_sha256"]
    write_json(copy / "rebuilt.json", {"model_sha256": weights, "rebuilt_sha256": weights, "steps": 1, "built_by": [
        {"processor": "x", "torch": "2", "threads": 1}]})
    shutil.move("data", "elsewhere")
    (copy / "source.tar.xz").unlink()  # no text to read each time
    for name in ("manifest.json", "build.json", "extraction.json", "rebuilt.json", "openness.json", "config.json"):
        before = (copy / name).read_bytes()
        record = json.loads(before)
        for key in record.keys() - {"digest"}:
            for value in ([], "x", None, -1):
                if value == record[key]:
                    continue
                other = {k: v for k, v in record.items() if k != "digest"} | {key: value}
                (copy / name).write_text(json.dumps(other)) if name == "config.json" else write_json(copy / name, other)
                assert checked(capsys)[0] == 1, (name, key, value)
        for data in (b"", b"[]", b"null", b"\xff\xfe", b"[" * 100_000, b'{"a": ' * 990 + b"1" + b"}" * 990):
            (copy / name).write_bytes(data)
            rows = checked(capsys)[1].items()
            named = {row for row, (answer, why) in rows if answer == "FAILS" and name in why}
            assert named - {"SHA256SUMS"}, (name, data)
        shutil.copytree(copy, "again", dirs_exist_ok=True)
        with contextlib.suppress(UserError):
            openness.main(["--model=again", "--data=elsewhere/tiny-1.0"])
        (copy / name).write_bytes(before)


def test_a_commit_that_nobody_has(copy, capsys):
    rewrite(copy / "build.json", lambda r: r["code"].update(commit="0" * 40, changed_since=[]))
    assert checked(capsys)[1]["13"][0] == "not checked"


def test_built_again_elsewhere():
    """Other weights are no proof against a model if the processor is another."""
    turn = {"processor": "A", "torch": "2", "code": "0"}
    found = evidence.Evidence(Path(), build={"built_by": [turn]}, weights="1")
    for processor, answer in [("A", "no"), ("B", "not checked")]:
        found.built_now = {"model_sha256": "1", "rebuilt_sha256": "2", "built_by": [turn | {"processor": processor}]}
        assert items.built_again(found)[0] == answer


@pytest.mark.parametrize("notices, path, said", [
    (["BSD", "GPL", "copyright alone"], "t/COPYING", ""), (["terms of its own"], "t/COPYING", "a person must read"),
    (["all rights reserved"], "t/COPYING", "a person must read"), (["SPDX line"], None, ""),
    (["SPDX line", "no words", "copyright alone"], None, "2 of the files learned name no licence")])
def test_files_with_terms_of_their_own(notices, path, said):
    found = evidence.Evidence(Path(), manifest={
        "licence": "GPL-2.0", "whole_tree": {"licence_path": path},
        "files": [{"path": "t/a", "notice": [name]} for name in notices]})
    answer, why = items.free(found)
    assert answer == ("not checked" if said else "yes") and said in why


def test_the_table_agrees_with_the_columns_and_the_documentation():
    short = {"OSAID draft 0.0.8": {"draft 0.0.8"}, "OSAID 1.0": {"OSAID 1.0"}, "FSF": {"FSF"},
             "Debian, Zhou": {"Debian"}, "Debian, Glaser": {"Debian", "Debian (Glaser)"}}
    for name, numbers in items.COLUMNS.items():
        assert set(numbers) == {number for number, (_, asked, *_) in items.ITEMS.items()
                                if short[name] & set(asked.split("; "))}, name
    rows = re.findall(r"^\| (\d+) \| ([^|]*) \| ([^|]*) \|", Path(ROOT / "docs/openness.md").read_text(), re.M)
    assert [(int(number), text, asked) for number, text, asked in rows] == [
        (number, text, asked) for number, (text, asked, *_) in items.ITEMS.items()]
    answers = dict.fromkeys(items.ITEMS, "yes")
    assert mof.classify(answers)[0] == 2 and "Model parameters (Final)" in mof.classify(answers | {12: "no"})[1]


@pytest.mark.parametrize("url, public", [
    ("https://cdn.kernel.org/pub/x.tar.gz", "https://cdn.kernel.org/pub/x.tar.gz"),
    ("https://me:secret@example.org:8443/x", "https://example.org:8443/x"), ("file:///x.tar", None), ("/x.tar", None),
    (None, None), ("http://localhost/x", None), ("http://127.0.0.1:80/x", None), ("http://10.1.2.3/x", None),
    ("http://192.168.0.1/x", None), ("http://[::1]/x", None), ("http://2130706433/", None), ("http://box.lan/x", None)])
def test_public_addresses(url, public):
    assert public_address(url) == public


GRANT = (ROOT / "LICENSE").read_bytes()


@pytest.mark.parametrize("text, name", [
    (GRANT, "MIT"), (GRANT.replace(b"\n", b"\r\n\t"), "MIT"), (GRANT.replace(b"sublicense,", b""), None),
    (GRANT + b"\nThe Software is for non-commercial use.", "MIT, restricted"),
    (b"Apache License\n Version 2.0, January 2004\n\"Commons Clause\" License Condition", "Apache-2.0, restricted"),
    (b"GNU LESSER GENERAL PUBLIC LICENSE\n Version 2.1, February 1999\n the ordinary GNU GENERAL PUBLIC LICENSE\n "
     b"Version 2", "LGPL-2.1"),
    (b"GNU GENERAL PUBLIC LICENSE\n Version 2, June 1991\n is allowed only for noncommercial distribution and only if "
     b"you received the program", "GPL-2.0"), (b"GNU AFFERO GENERAL PUBLIC LICENSE\n Version 3", "AGPL-3.0"),
    (b"All rights reserved.", None)])
def test_licences_by_text(text, name):
    assert licences.recognize(text) == name
    assert licences.is_free(name) == bool(name and "restricted" not in name)


def test_the_licence_of_a_tree():
    files = {"t/a.c": b"// SPDX-License-Identifier: MIT\n", "t/b.c": b"int x;\n"}
    assert licences.find_licence(files) == ("MIT", None)
    assert licences.find_licence(files | {"t/LICENSE": b"Ask us."}) == (None, "t/LICENSE"), "one file is not the tree"
    assert licences.find_licence(files | {"t/COPYING": b"Ask us.", "t/LICENSE": GRANT}) == ("MIT", "t/LICENSE")


def test_nothing_stated(copy, capsys):
    for path in copy.iterdir():
        if path.name in WRITTEN - {"manifest.json", "build.json"}:
            path.unlink()
    says_no(openness.main, ["--model=out/tiny", "--check"], "states nothing of itself yet", "openness.py")
    says_no(openness.main, ["--model=/nowhere"], "no model in /nowhere")
    says_no(openness.main, ["--model=out/tiny", "--data=/nowhere"], "/nowhere")
    says_no(openness.main, ["--model=out/tiny", "--recite"], "--check")


def test_a_name_that_is_no_text(copy):
    says_no(openness.main, ["--model=out/tiny", "--producer=Bj\udcf6rn"], "--producer is not UTF-8")
    assert (copy / "SHA256SUMS").exists(), "nothing was begun"
