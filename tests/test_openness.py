"""A model's folder says what it is, and every statement that is not true is found by name."""
import contextlib
import functools
import hashlib
import io
import json
import lzma
import os
import random
import re
import shutil
import subprocess
import tarfile
from pathlib import Path

import mlcroissant
import pytest
import torch
import yaml
from conftest import ROOT, says_no, script
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file

from memory import corpus, evidence, items, mof, personal, records, source, tokenizer
from memory.checkpoint import NAMES, read_tensors, write_tensors
from memory.urls import public_address
from memory.files import digest_of, read_json, write_json
from memory.output import UserError
from memory.page import as_json, fill
from memory.windows import unquote
import extract
import openness
import prepare
import verify

WRITTEN = {"README.md", "LICENSE", "NOTICES", "manifest.json", "build.json", "extraction.json", "openness.json",
           "croissant.json", "mof.yml", "SHA256SUMS"}


@pytest.fixture(scope="module")
def stated(learned, tmp_path_factory):
    """A working folder of its own with data/tiny-1.0 and out/tiny, a model that has learned all of it, measured."""
    folder = tmp_path_factory.mktemp("stated")
    shutil.copytree(learned / "data", folder / "data")
    shutil.copytree(learned / "out/tiny", folder / "out/tiny")
    for words in (["extract.py", "--check"], ["recite.py"],
                  ["openness.py", "--source_archive", "--contact=a@example.org"]):
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


@pytest.fixture
def remembered(monkeypatch):
    """What a check spends most of its time on, and what depends on its arguments or the code alone, is done once."""
    packed = functools.cache(lambda texts, preset: tokenizer.compressed_bits(texts, preset))
    for module in (corpus, items):
        monkeypatch.setattr(module, "compressed_bits", lambda texts, preset: packed(tuple(texts), preset))
    for name in ("describe_code", "files_here"):
        monkeypatch.setattr(items, name, functools.cache(getattr(items, name)))


def checked(capsys, *words):
    """(exit status, {number or name: (status, why)}) of openness.py --check."""
    capsys.readouterr()
    status = openness.main(["--model=out/tiny", "--check", *words])
    rows = re.findall(r"^(yes|no|not checked|FAILS) +(checked|recorded|declared|) +((\d+) [^:]*|[^:]+): (.*)$",
                      capsys.readouterr().out, re.M)
    return status, {number or name: (answer, known, why) for answer, known, name, number, why in rows}


def answers(folder):
    return {item["number"]: item["answer"] for item in read_json(folder / "openness.json")["items"]}


def known(record):
    return {item["number"]: item["known"] for item in record["items"]}


def rows_of(record):
    return {item["number"]: item["evidence"] for item in record["items"]}


def test_all_is_there_and_holds(copy, capsys, contents):
    assert WRITTEN <= {path.name for path in copy.iterdir()}
    status, rows = checked(capsys)
    assert status == 0 and len(rows) == 22 + 13, rows
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
    (folder / "source.tar.xz").write_bytes(evidence.write_archive(files, executable, {}))


def add_key(path, **more):
    """Adds to a file of JSON without a digest."""
    path.write_text(json.dumps(json.loads(path.read_text()) | more))


def relicense(folder):
    """The original's case: everything says MIT, but the data."""
    (folder / "LICENSE").write_text("MIT License\n\nPermission is hereby granted, free of charge, to any person")
    edit(folder / "README.md", b"license: gpl-2.0", b"license: mit")
    openness.renew_sums(folder)


def relicense_thoroughly(folder):
    """The same, by someone who writes the records anew too."""
    text = b"MIT License\n\nPermission is hereby granted, free of charge, to any person"
    (folder / "LICENSE").write_bytes(text)
    rewrite(folder / "manifest.json", lambda r: r.update(licence="MIT", whole_tree=r["whole_tree"] | {
        "licence_sha256": hashlib.sha256(text).hexdigest()}))
    edit(folder / "README.md", b"license: gpl-2.0", b"license: mit")
    openness.renew_sums(folder)


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
    "a hash, carelessly": (lambda m: edit(m / "manifest.json", b'"sha256": "', b'"sha256": "0'),
                           {"manifest.json", "SHA256SUMS"}),
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
    "no record of the build": (lambda m: (m / "build.json").unlink(), {"13", "14", "15", "SHA256SUMS"}),
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
        known="checked")), {"8", "22"}),
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
    failed = {name for name, (answer, *_) in rows.items() if answer == "FAILS"}
    assert status == 1 and named <= failed, rows


def manifest(change):
    return lambda m: rewrite(m / "manifest.json", change)


def build(change):
    return lambda m: rewrite(m / "build.json", change)


def weights(change):
    """Changes tensors by someone who writes all digests and hashes anew."""
    def falsify(m):
        tensors, metadata = read_tensors(m / "model.safetensors")
        change(tensors)
        write_tensors(m / "model.safetensors", tensors, **metadata)
        for name in ("build.json", "extraction.json", "openness.json"):
            rewrite(m / name, lambda r: r.update(model_sha256=digest_of(m / "model.safetensors")))
    return falsify


def report(change):
    """Changes the data of the page that extract.py writes."""
    def falsify(m):
        data = evidence.read_report(m)
        change(data)
        (m / "report.html").write_bytes(fill("report.html", DATA=as_json(data)))
    return falsify


def everywhere(change):
    """Changes what build.json and the log say of a run that left no states."""
    def falsify(m):
        rewrite(m / "build.json", change)
        for name in NAMES:
            (m / name).unlink(missing_ok=True)
        lines = [json.loads(line) for line in (m / "log.jsonl").read_text().splitlines()]
        for line in lines:
            if "settings" in line:
                change(line)
        (m / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return falsify


def not_a_number(tensors):
    tensors["model.norm.weight"][0] = float("nan")


def as_kernel_org(m):
    """What is no release says that it is Linux 1.0."""
    url, sha256 = items.RELEASE
    rewrite(m / "manifest.json", lambda r: r.update(name="linux-1.0", origin="kernel.org", url=url, sha256=sha256,
                                                    whole_tree=r["whole_tree"] | {"url": url, "sha256": sha256}))


def as_kernel_org_everywhere(m):
    """The same, the prepared tree included."""
    as_kernel_org(m)
    as_kernel_org(Path("data/tiny-1.0"))


def archive_with(member, more=b""):
    """The archive with a member more, or with something after its end."""
    def falsify(m):
        packed = io.BytesIO(evidence.unpack_archive(m / "source.tar.xz", read_json(m / "manifest.json")["whole_tree"]))
        if member:
            with tarfile.open(fileobj=packed, mode="a") as tar:
                tar.addfile(member)
        (m / "source.tar.xz").write_bytes(lzma.compress(packed.getvalue()) + more)
    return falsify


def device():
    member = tarfile.TarInfo("tiny/null")
    member.type = tarfile.CHRTYPE
    return member


def say_yes(*numbers):
    """All answers to these items as their publisher would like them, and what follows from them."""
    def falsify(m):
        def change(record):
            for number in numbers:
                record["items"][number - 1] |= {"answer": "yes", "known": "checked", "evidence": "our lawyers looked"}
            record["meets"] = items.columns({item["number"]: items.Answer(item["answer"], "", item["known"])
                                             for item in record["items"]})
        rewrite(m / "openness.json", change)
    return falsify


FORGED = {  # by someone who writes the digests and SHA256SUMS anew: {what: (how, what is named)}
    "an answer and what follows": (say_yes(2, 16), {"2", "16", "22"}),
    "an address of kernel.org": (as_kernel_org, {"2", "manifest.json"}),
    "an address of kernel.org, in the tree as well": (as_kernel_org_everywhere, {"2"}),
    "a stand-in no more": (manifest(lambda r: r.update(origin="kernel.org")), {"manifest.json"}),
    "a file twice, another not": (manifest(lambda r: r["files"].__setitem__(3, r["files"][4])), {"1", "3", "4"}),
    "all files again": (manifest(lambda r: r["files"].extend(r["files"][:9])), {"1", "3", "4"}),
    "a file not listed": (manifest(lambda r: r["files"].pop()), {"1", "3", "4"}),
    "a learned file as held out": (manifest(lambda r: r["held_out"].append(r["files"].pop())), {"1", "3", "4"}),
    "more bytes": (manifest(lambda r: r["files"][0].update(bytes=10**6)), {"1", "4"}),
    "more tokens": (manifest(lambda r: r.update(tokens=10**6)), {"4", "manifest.json"}),
    "more pieces": (manifest(lambda r: r.update(vocab_size=10**5)), {"4"}),
    "nothing left out": (manifest(lambda r: r["whole_tree"].update(left_out={"link": 3})), {"3"}),
    "a script": (manifest(lambda r: r["whole_tree"].update(executable=["tiny/COPYING"])), {"manifest.json"}),
    "a link": (manifest(lambda r: r["whole_tree"].update(links={"tiny/x": "COPYING"})), {"manifest.json"}),
    "another size of the text": (manifest(lambda r: r.update(compressed_bits=8)), {"17"}),
    "no packages": (build(lambda r: r["code"].update(packages={})), {"14"}),
    "three settings": (build(lambda r: r.update(settings={
        key: r["settings"][key] for key in records.SETTINGS if key is not ...})), {"14"}),
    "a setting that no size shows": (build(lambda r: r["settings"].update(muon_lr=0.5)), {"14"}),
    "another seed": (build(lambda r: r["settings"].update(seed=7)), {"14"}),
    "a module less": (build(lambda r: r["code"]["files"].pop("memory/page.py")), {"13"}),
    "a file of code less": (build(lambda r: r["code"]["files"].pop("configs/quick.py")), {"13"}),
    "another processor": (build(lambda r: r["built_by"][0].update(processor="X")), {"14"}),
    "fewer hours": (build(lambda r: r.update(seconds=0.5)), {"14"}),
    "another base of RoPE": (lambda m: add_key(m / "config.json", rope_theta=5.0), {"15"}),
    "a kernel from elsewhere": (lambda m: add_key(m / "config.json", attn_implementation="somebody/kernel"), {"15"}),
    "a tokenizer of another kind": (lambda m: (m / "tokenizer.model").write_bytes(b"garbage"), {"15"}),
    "a tokenizer less": (lambda m: (m / "tokenizer.json").unlink(), {"15"}),
    "a word for transformers": (lambda m: edit(m / "tokenizer.json", b'"version": "1.0"', b'"version": "1.1"'),
                                {"15"}),
    "a value that is no number": (weights(not_a_number), {"15"}),
    "a tensor less": (weights(lambda tensors: tensors.pop("model.norm.weight")), {"15"}),
    "a tensor more": (weights(lambda tensors: tensors.update(x=torch.zeros(3, dtype=torch.uint8))), {"15"}),
    "one weight": (weights(lambda tensors: tensors["model.norm.weight"][:1].add_(1)), {"14"}),
    "a way out of the archive": (archive_with(tarfile.TarInfo("../../etc/cron.d/x")), {"7"}),
    "a device in the archive": (archive_with(device()), {"7"}),
    "bytes after the archive": (archive_with(None, bytes(540_000)), {"7"}),
    "a folder of cards": (lambda m: (m / "README.md").write_bytes((m / "README.md").read_bytes().replace(
        b"\n", b"\r\n")), {"22"}),
    "a turn of other code": (build(lambda r: r["built_by"].insert(0, r["built_by"][0] | {"code": "0" * 16})),
                             {"13", "14"}),
    "a page of other weights": (lambda m: edit(m / "recite.html", b'"format":"', b'"format":"b'), {"recite.html"}),
    "a report with a script": (lambda m: edit(m / "report.html", b"</body>", b"<script>x</script></body>"),
                               {"report.html"}),
    "a report of nothing wrong": (lambda m: edit(m / "report.html", b'"accuracy":1.0', b'"accuracy":0.9'),
                                  {"report.html"}),
    "a page under another licence": (lambda m: edit(m / "recite.html", b'"licence":"GPL-2.0"', b'"licence":"MIT"'),
                                     {"recite.html"}),
    "a page of another shape": (lambda m: edit(m / "recite.html", b'"rope_theta":', b'"rope_theta":1'),
                                {"recite.html"}),
    "a page in no format": (lambda m: edit(m / "recite.html", b'"format":"int8"', b'"format":"int"'), {"recite.html"}),
    "the manifest of a tree": (lambda m: shutil.copy("data/tiny-1.0/manifest.json", m), {"manifest.json"}),
    "an answer that is none": (lambda m: rewrite(m / "openness.json", lambda r: r["meets"]["FSF"].update(
        answer="certified")), {"openness.json"}),
    "a name of many lines": (build(lambda r: r["settings"].update({"x\n\n## Certified\n": 1})), {"13", "14"}),
    "a second report": (build(lambda r: r["code"]["report"].update({"docs/x.md": "0" * 64})), {"20"}),
    "a folder as a commit": (build(lambda r: r["code"].update(commit=subprocess.run(
        ["git", "-C", ROOT, "rev-parse", "HEAD^{tree}"], capture_output=True, text=True).stdout.strip() or "0" * 40)),
        {"13"}),
    "a size that no archive has": (manifest(lambda r: r["whole_tree"].update(bytes=2**62)), {"3", "manifest.json"}),
    "a setting out of range": (everywhere(lambda r: r["settings"].update(unaddressed=1e308)), {"14"}),
    "a setting below zero": (everywhere(lambda r: r["settings"].update(unaddressed=-1)), {"14"}),
    "a folder of signatures": (lambda m: (m / "SHA256SUMS.asc").mkdir(), {"15"}),
    "a report of fewer errors": (report(lambda r: r["rows"][0].update(before_error=1)), {"report.html"}),
    "a report of a quicker run": (report(lambda r: r["log"][0].update(wrong=0)), {"report.html"}),
    "errors": (lambda m: (m / "errors.jsonl").write_text('{"path": "tiny/COPYING"}\n'), {"errors.jsonl"}),
    "a log of other code": (lambda m: edit(m / "log.jsonl", b'"code": "', b'"code": "0'), {"14"}),
    "windows that were not measured": (lambda m: rewrite(m / "extraction.json", lambda r: r["learned"].update(
        spans=99)), {"17"}),
    "a build of no steps": (lambda m: write_json(m / "rebuilt.json", {
        "model_sha256": digest_of(m / "model.safetensors"), "rebuilt_sha256": digest_of(m / "model.safetensors"),
        "steps": 0, "built_by": [{"from_step": 0, "threads": 1}]}), {"16"})}


@pytest.mark.parametrize("what", FORGED)
def test_what_is_forged_is_named(copy, capsys, what):
    falsify, named = FORGED[what]
    falsify(copy)
    openness.renew_sums(copy)
    status, rows = checked(capsys)
    failed = {name for name, (answer, *_) in rows.items() if answer == "FAILS"}
    assert status == 1 and named <= failed, rows
    assert "SHA256SUMS" not in failed


@pytest.mark.parametrize("change", [
    lambda sums: sums.replace(b"\n", b"\r\n"), lambda sums: sums + b"0" * 64 + sums[64:sums.index(b"\n") + 1],
    lambda sums: sums + b"\n", lambda sums: b"\n".join(reversed(sums.split(b"\n")))])
def test_sums_have_the_bytes_that_are_made(copy, capsys, change):
    """Also where another line for a file, or other line ends, would pass as right."""
    (copy / "SHA256SUMS").write_bytes(change((copy / "SHA256SUMS").read_bytes()))
    status, rows = checked(capsys)
    assert status == 1 and rows["SHA256SUMS"][0] == "FAILS"


def test_what_others_leave_beside_a_model(copy, capsys):
    """A signature of the sums, as the README advises, and what file managers write."""
    for name in ("SHA256SUMS.asc", "SHA256SUMS.sig", ".DS_Store", "Thumbs.db"):
        (copy / name).write_bytes(b"x")
    assert checked(capsys)[0] == 0
    (copy / "model.bin").write_bytes(b"x")
    assert checked(capsys)[1]["15"][0] == "FAILS"


def test_columns_come_from_what_is_found(copy, capsys):
    """Whatever openness.json says, a column is of the answers found; it names what it rests on."""
    say_yes(2)(copy)
    rows = checked(capsys)[1]
    assert rows["OSAID 1.0"][::2] == ("no", "does not meet it (open: 2; recorded: 6, 14; declared: 5), by these checks")
    assert rows["FSF"][::2] == ("yes", "meets it (recorded: 7), by these checks")


def test_weights_that_learned_something_else(copy, capsys):
    """The records of one model beside the weights of another, all hashes made to fit: no column is met without an item
    that is only recorded, and asking the weights finds it."""
    def noise(tensors):
        draw = torch.Generator().manual_seed(0)
        for tensor in tensors.values():
            tensor.copy_(torch.randn(tensor.shape, generator=draw))

    weights(noise)(copy)
    for name in (*NAMES, "recite.html"):
        (copy / name).unlink(missing_ok=True)
    assert openness.main(["--model=out/tiny"]) == 0
    status, rows = checked(capsys)
    assert status == 0 and rows["7"][:2] == ("yes", "recorded"), rows
    for name, numbers in items.COLUMNS.items():
        assert rows[name][0] != "yes" or re.search(r"recorded: \d", rows[name][2]), (name, numbers)
    status, rows = checked(capsys, "--recite")
    assert status == 1 and rows["8"][0] == "FAILS" and rows["7"][:2] == ("yes", "recorded"), rows


def test_what_the_weights_write_is_the_data(copy, capsys):
    status, rows = checked(capsys, "--recite")
    assert status == 0 and rows["7"][:2] == ("yes", "checked")
    assert rows["FSF"][::2] == ("yes", "meets it, by these checks")


@pytest.mark.parametrize("name", ["model.safetensors", "build.json", "README.md", "report.html", "SHA256SUMS", "x"])
@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("/dev/zero"),
                                  lambda path: path.symlink_to("nowhere")])
def test_what_never_ends_to_be_read(copy, name, make):
    """A folder that was unpacked may hold a pipe, or a link to a device; a broken link is no file either."""
    (copy / name).unlink(missing_ok=True)
    make(copy / name)
    says_no(openness.main, ["--model=out/tiny", "--check"], name, "delete it")
    says_no(openness.main, ["--model=out/tiny"], name, "delete it")
    says_no(verify.main, ["--model=out/tiny"], name, "delete it")


# What one edit may be, by someone who writes digests and sums anew

def leaves(value, at=()):
    """The places of all plain values, and of empty lists, in what JSON holds."""
    inside = list(value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ())
    if not inside:
        yield at
    for key, part in inside:
        yield from leaves(part, (*at, key))


def altered(value, draw):
    if isinstance(value, bool):
        return not value
    if isinstance(value, (int, float)):
        return value + draw.choice((1, 10**6)) if isinstance(value, int) else value * 1.5 + 0.25
    if isinstance(value, str) and value:
        at = draw.randrange(len(value))
        return value[:at] + ("x" if value[at] != "x" else "y") + value[at + 1:]
    return "x"


def edit_value(path, draw):
    """Changes one value in a file of JSON, or of lines of it; returns the place as the documentation writes it."""
    lines = path.suffix == ".jsonl"
    record = [json.loads(line) for line in path.read_text().splitlines()] if lines else json.loads(path.read_text())
    if not record:
        return ""
    top = draw.choice(range(len(record)) if lines else sorted(record.keys() - {"digest"}))
    at = draw.choice(list(leaves(record[top], (top,))))
    inner = functools.reduce(lambda part, key: part[key], at[:-1], record)
    inner[at[-1]] = altered(inner[at[-1]], draw)
    if lines:
        path.write_text("".join(json.dumps(line) + "\n" for line in record))
    elif record.pop("digest", None):
        write_json(path, record)
    else:
        path.write_text(json.dumps(record, indent=2))
    return ".".join("*" if isinstance(key, int) else key for key in at)


def edit_byte(path, draw):
    data = bytearray(path.read_bytes())
    at = draw.randrange(len(data)) if data else 0
    if data:
        data[at] ^= 1 << draw.randrange(8)
        path.write_bytes(data)
    return "a byte" if data else ""


def at_its_word(page):
    """The bytes of a page without what it says of itself that nothing can check."""
    return re.sub(rb'"(model|recite|right|tried)":("[^"]*"|\[[^]]*\]|[^,}]*)', b"", page)


def cannot_be_checked():
    """{(file, place)} of the fields that docs/openness.md names."""
    text = (ROOT / "docs/openness.md").read_text()
    rows = re.findall(r"^\| `([\w.]+)` \| (`.*`) \|", text[text.index("## What no check"):], re.M)
    return {(name, place) for name, places in rows for place in re.findall("`([^`]+)`", places)}


@pytest.mark.parametrize("seed", range(4))
def test_any_edit_is_found(copy, capsys, seed, remembered):
    """One byte, or one value of JSON, anywhere in the folder; digests and sums are made to fit."""
    draw, declared, kept = random.Random(seed), cannot_be_checked(), copy.parent / "kept"
    shutil.copytree(copy, kept)
    names, found, passed = sorted(path.name for path in copy.iterdir() if path.name != ".lock"), 0, set()
    for _ in range(125):
        name = draw.choice(names)
        how = edit_value if ".json" in name and draw.random() < 0.75 else edit_byte
        place = how(copy / name, draw)
        if name != "SHA256SUMS":
            openness.renew_sums(copy)
        if place and (name, place) in declared:
            passed.add((name, place))
        elif place:
            found += 1
            try:
                status = checked(capsys)[0]
            except UserError:  # in one line
                status = 1
            assert status == 1 or name.endswith(".html") and at_its_word((copy / name).read_bytes()) == at_its_word(
                (kept / name).read_bytes()), (name, place)
        for path in (name, "SHA256SUMS"):
            shutil.copy2(kept / path, copy / path)
    assert found > 90 and checked(capsys)[0] == 0


def test_a_changed_tree_is_named(copy, capsys, tree):
    """One byte in train.bin; and another tree, with one source file changed."""
    (copy.parents[1] / "data/tiny-1.0/train.bin").open("r+b").write(b"\1\2")
    status, rows = checked(capsys)
    assert status == 1 and rows["1"][0] == rows["4"][0] == "FAILS" and "train.bin" in rows["1"][2]
    shutil.copytree(tree, "tiny-1.0")
    with open("tiny-1.0/decoder.py", "a") as file:
        file.write("#")
    prepare.main(["--source=tiny-1.0", "--vocab_size=700", "--out=other", "--quiet"])
    status, rows = checked(capsys, "--data=other")
    assert status == 1 and "tiny/decoder.py" in rows["1"][2] and rows["1"][0] == "FAILS"
    says_no(openness.main, ["--model=out/tiny", "--data=other"], "not the tree")
    prepare.main(["--source", str(tree), "--vocab_size=600", "--out=pieces", "--quiet"])
    assert checked(capsys, "--data=pieces")[1]["4"][:2] == ("yes", "checked"), "the same files, of other pieces"


def test_with_the_folder_alone(copy, capsys):
    """No tree is at hand: first the archive in the folder stands for it, then what the weights write."""
    shutil.rmtree(copy.parents[1] / "data")
    status, rows = checked(capsys)
    assert status == 0 and rows["1"][:2] == rows["4"][:2] == ("yes", "checked"), rows
    assert rows["3"][:2] == ("yes", "recorded"), "what was left out of the tree is not in the archive"
    (copy / "source.tar.xz").unlink()
    openness.renew_sums(copy)
    status, rows = checked(capsys)
    assert {rows[number][:2] for number in ("1", "3", "9", "10", "11", "12", "18")} == {("yes", "recorded")}, rows
    assert rows["7"][0] == "FAILS" and rows["8"][:2] == ("yes", "recorded"), rows
    assert "recorded: " in rows["OSAID 1.0"][2] and "declared: 5" in rows["OSAID 1.0"][2]
    status, rows = checked(capsys, "--recite")
    assert {rows[number][:2] for number in ("8", "11", "18")} == {("yes", "checked")}, rows
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
        patch.setattr(source, "fetch", lambda url, *_: open("tiny-1.0.tar.gz", "rb"))
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
    assert rows_of(record)[2].startswith("https://example.org/tiny-1.0.tar.gz, SHA-256 ")
    assert known(record)[2] == "recorded"

    monkeypatch.setattr(source, "fetch", lambda url, *_: open("tiny-1.0.tar.gz", "rb"))
    status, rows = checked(capsys, "--online", "--rebuild")
    assert status == 0, [row for row in rows.items() if "FAILS" in row[1]]
    assert rows["2"][:2] == rows["14"][:2] == rows["16"][:2] == ("yes", "checked")
    assert not (folder / "rebuilt.json").exists(), "a check writes nothing"
    with tarfile.open("tiny-1.0.tar.gz", "w:gz") as tar:
        tar.add("out/tiny/README.md", "tiny/README")
    status, rows = checked(capsys, "--online")
    assert status == 1 and rows["2"][0] == "FAILS" and "serves SHA-256" in rows["2"][2]
    monkeypatch.chdir(folder.parent)
    capsys.readouterr()
    assert openness.main(["--model=tiny", "--check"]) == 0
    assert re.search(r"^yes +recorded +2 a public origin", capsys.readouterr().out, re.M), "no text"


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


def test_weights_that_began_from_others(mended, patched, learned, tmp_path, monkeypatch, capsys):
    """What the first weights had learned counts: the old text of a file that a patch changed may still be there."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(mended, "out/tiny")
    shutil.copytree(patched, "data/tiny-1.0")
    assert openness.main(["--model=out/tiny"]) == 0
    assert openness.main(["--model=out/tiny", "--source_archive"]) == 0
    unsaid = {number for number, answer in answers(Path("out/tiny")).items() if answer == "not checked"}
    assert unsaid >= {1, 3, 4, 7, 9, 11, 12}, "nor is the data there that the first weights had learned"
    assert "**began from other weights**" in Path("out/tiny/README.md").read_text()
    assert checked(capsys)[0] == 0
    shutil.copytree(learned / "out/tiny", "out/base")
    rows = checked(capsys)[1]
    assert rows["1"][0] == "FAILS" and "had learned 1 files which manifest.json does not list: tiny/decoder.py" in (
        rows["1"][2])
    assert openness.main(["--model=out/tiny"]) == 0 and checked(capsys)[0] == 0
    assert answers(Path("out/tiny"))[1] == "no"
    files = read_json(Path("out/tiny/manifest.json"))["files"]
    rewrite(Path("out/base/manifest.json"), lambda r: r.update(files=files))  # the word of others
    assert openness.main(["--model=out/tiny"]) == 0
    rows = checked(capsys)[1]
    assert {rows[number][:2] for number in ("1", "3", "4", "7", "9", "11", "12")} == {("yes", "recorded")}, rows
    shutil.rmtree("out/base")
    status, rows = checked(capsys)
    assert status == 1 and rows["1"][0] == "FAILS", "no yes without what it rests on"
    assert openness.main(["--model=out/tiny"]) == 0
    say_yes(1, 3, 4, 9, 12)(Path("out/tiny"))
    for name, made in openness.made_records(openness.gather("out/tiny")).items():
        Path("out/tiny", name).write_bytes(made)
    assert {"1", "3", "4", "9", "12"} <= {name for name, row in checked(capsys)[1].items() if row[0] == "FAILS"}
    rewrite(Path("out/tiny/build.json"), lambda r: r.pop("init_sha256"))
    assert checked(capsys)[1]["14"][0] == "FAILS", "the run's states say it too"


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


def test_personal_data_is_counted():
    count = personal.Count()
    count.add("t/a.c", b"(C) 1990 by Ann Lee, Copyright (C) 1991, 1992  Ann B. Lee <ann@x.example.org>, "
                       b"ANN@X.example.ORG")
    count.add("t/CREDITS", b"N: Ann Lee\nE: ann@x.example.org\nS: Street 1\nS: Town\n\nN: Bo Ek\nD: nothing\n\nN: "
                           b"Cy\nS: Rd\n")
    assert count.counts == {"mail addresses": 1, "names in copyright lines": 1, "names in CREDITS": 3,
                            "postal addresses in CREDITS": 2}


def test_damaged_records_are_named(copy, capsys, remembered):
    """Each value of each record in turn is of another kind: no traceback, neither in a check nor in writing."""
    weights = read_json(copy / "build.json")["model_sha256"]
    write_json(copy / "rebuilt.json", {"model_sha256": weights, "rebuilt_sha256": weights, "steps": 3, "built_by": [
        {"from_step": 0, "threads": 1, "processor": "x", "torch": "2"}]})
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
            named = {row for row, (answer, _, why) in rows if answer == "FAILS" and name in why}
            assert named - {"SHA256SUMS"}, (name, data)
        shutil.copytree(copy, "again", dirs_exist_ok=True)
        with contextlib.suppress(UserError):
            openness.main(["--model=again", "--data=elsewhere/tiny-1.0"])
        (copy / name).write_bytes(before)


def test_a_commit_that_nobody_has(copy, capsys):
    rewrite(copy / "build.json", lambda r: r["code"].update(commit="0" * 40, changed_since=[]))
    edit_card = openness.gather("out/tiny")  # what follows from the commit is not what this is about
    assert items.code_known(edit_card)[::2] == ("yes", "recorded")


def test_what_build_json_says_of_the_code(copy, monkeypatch):
    """Its licence is read in the LICENSE that is here; a file is said to have changed only if it has."""
    rewrite(copy / "build.json", lambda r: r["code"].update(commit="0" * 40, changed_since=["train.py"]))
    found = openness.gather("out/tiny")
    monkeypatch.setattr(items, "at_commit", lambda commit: found.build["code"]["files"])
    assert items.code_known(found).answer == "no" and "and they are" in items.code_known(found).why
    found.build["code"]["changed_since"] = []
    assert items.code_known(found)[::2] == ("yes", "checked")
    here = items.describe_code()
    monkeypatch.setattr(items, "describe_code", lambda: here | {"licence": "GPL-2.0"})
    assert items.code_known(found).answer == "no"


@pytest.mark.parametrize("there, here, answer", [
    ([{}], [{}], "no"), ([{}], [{"processor": "B"}], "not checked"), ([{}], [{"compile": False}], "not checked"),
    ([{}, {"threads": 1}], [{}], "not checked"), ([{"threads": 1}, {}], [{}], "not checked"),
    ([{}], [{}, {"threads": 1}], "not checked"), ([{}, {}], [{}], "no")])
def test_built_again_elsewhere(there, here, answer):
    """Other weights are no proof against a model if some turn of either build computed otherwise."""
    turn = {"processor": "A", "torch": "2", "code": "0", "threads": 2, "compile": True}
    found = evidence.Evidence(Path(), build={"built_by": [turn | other for other in there]}, weights="1")
    found.built_now = {"model_sha256": "1", "rebuilt_sha256": "2", "steps": 3,
                       "built_by": [turn | other for other in here]}
    assert items.built_again(found).answer == answer
    found.built_now["rebuilt_sha256"] = "1"
    assert items.built_again(found)[::2] == ("yes", "checked")
    found.build["init_sha256"] = "1"
    assert items.built_again(found).answer == "no", "it began from itself"


@pytest.mark.parametrize("notices, path, said", [
    (["BSD", "GPL", "copyright alone"], "t/COPYING", ""), (["terms of its own"], "t/COPYING", "a person must read"),
    (["all rights reserved"], "t/COPYING", "a person must read"), (["SPDX line"], None, ""),
    (["SPDX line", "no words", "copyright alone"], None, "2 of the files learned name no licence")])
def test_files_with_terms_of_their_own(notices, path, said):
    found = evidence.Evidence(Path(), manifest={
        "licence": "GPL-2.0", "whole_tree": {"licence_path": path},
        "files": [{"path": "t/a", "notice": [name]} for name in notices]})
    answer, why, _ = items.free(found)
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


def test_a_licence_beside_a_tree_without_one(work, tree, tmp_path, monkeypatch, capsys):
    """The tree says GPL by SPDX lines alone; a LICENSE of MIT in the model's folder is not its own."""
    folder = tmp_path / "tiny-1.0"
    folder.mkdir()
    (folder / "a.c").write_text("// SPDX-License-Identifier: GPL-2.0\n")
    monkeypatch.chdir(tmp_path)
    prepare.main(["--source=tiny-1.0", "--vocab_size=300", "--quiet"])
    done = script("train.py", work / "configs/tiny.py", "--max_steps=2", "--batch_size=2", cwd=tmp_path)
    assert done.returncode in (0, 1), done.stderr.decode()
    rows = checked(capsys)[1]
    assert rows["10"][0] == "no" and rows["12"][0] == "yes", rows
    shutil.copy(ROOT / "LICENSE", "out/tiny/LICENSE")
    openness.renew_sums("out/tiny")
    status, rows = checked(capsys)
    assert status == 1 and rows["12"][0] == "FAILS" and "LICENSE is there" in rows["12"][2], rows


def test_the_licence_of_a_tree_that_changed(copy):
    """It is not written beside a model as if it was the tree's."""
    before = (copy / "LICENSE").read_bytes()
    Path("data/tiny-1.0/LICENSE").write_bytes(b"")
    says_no(openness.main, ["--model=out/tiny"], "data/tiny-1.0/LICENSE is not the tree's", "prepare.py again")
    assert (copy / "LICENSE").read_bytes() == before


@pytest.mark.parametrize("name", [b"\x1b[2J", b"x\nyes         checked  15 the weights are whole: x", b"\xff",
                                  b"\xc2\x9b2J", b"x\ryes"])
def test_a_name_that_speaks_to_the_terminal(copy, capsys, name):
    with open(os.fsencode(copy) + b"/" + name, "wb"):
        pass
    openness.renew_sums(copy)
    assert openness.main(["--model=out/tiny", "--check"]) == 1
    said = capsys.readouterr().out
    assert len(said.splitlines()) == 22 + 13 + 1, said
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\ud800-\udfff]", said), said
    assert openness.main(["--model=out/tiny"]) == 0
    status, rows = checked(capsys)
    assert status == 0 and rows["15"][0] == "no", "what is written can be read again"


def test_a_check_writes_nothing(copy):
    for word in ("--source_archive", "--producer=x"):
        says_no(openness.main, ["--model=out/tiny", "--check", word], "--check writes nothing")


def test_nothing_stated(copy, capsys):
    for path in copy.iterdir():
        if path.name in WRITTEN - {"manifest.json", "build.json"}:
            path.unlink()
    says_no(openness.main, ["--model=out/tiny", "--check"], "states nothing of itself yet", "openness.py")
    says_no(openness.main, ["--model=/nowhere"], "no model in /nowhere")
    says_no(openness.main, ["--model=out/tiny", "--data=/nowhere"], "/nowhere")
    says_no(openness.main, ["--model=out/tiny", "--recite"], "--check")


def test_a_name_that_is_no_text(copy):
    for text in ("Bj\udcf6rn", "x\r\r## How open it is", "\x1b[2J", "\x9b2J", "\x7f", "\ufffe"):
        says_no(openness.main, ["--model=out/tiny", f"--producer={text}"], "--producer has characters")
    assert (copy / "SHA256SUMS").exists(), "nothing was begun"
