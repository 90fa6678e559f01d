"""What trace.py finds, against plain search; on a model that has every file."""
import html
import json
import os
import random
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, refused, says_no, script

import trace
from memory.files import read_json
from memory.tokenizer import Tokenizer
from memory.verbatim import Matches, merge
from memory.windows import unquote
from model import Llama


@pytest.fixture(scope="module")
def tokenizer(learned):
    return Tokenizer.load(learned / "out/tiny")


@pytest.fixture
def run(learned, tmp_path, monkeypatch):
    """Calls trace.py in the working folder on some bytes; returns (exit status, what --json holds)."""
    monkeypatch.chdir(learned)

    def call(text, *words):
        (tmp_path / "text").write_bytes(text)
        options = ["--model=out/tiny", "--json", str(tmp_path / "found.json"), *words]
        status = trace.main([*options, str(tmp_path / "text")])  # the tests through a process name it first
        return status, json.loads((tmp_path / "found.json").read_text())
    return call


def changed(content):
    """A file with every 20th line changed, but for the end, and the numbers of these lines."""
    lines = content.split(b"\n")
    numbers = range(10, len(lines) - 20, 20)
    for number in numbers:
        lines[number - 1] = b"\xff \xfe % changed"
    return b"\n".join(lines), numbers


def holds(row, text, contents):
    """Asserts that what the row says of a verbatim run is so."""
    run, file = text[row["start"]:row["end"]], contents[row["path"]]
    assert run == file[row["byte"]:row["byte_end"]]
    assert row["files"] == sum(run in other for other in contents.values())
    for key, whole, first, last in [("lines", text, row["start"], row["end"]),
                                    ("place", file, row["byte"], row["byte_end"])]:
        assert row[key] == [whole[:first].count(b"\n") + 1, whole[:last - 1].count(b"\n") + 1]
    assert row["recited"] and row["file_exact"]


def test_every_longest_run_and_all_its_places():
    """Of many short texts of few letters, against plain search; no run crosses the end of a file."""
    draw = random.Random(0)
    for _ in range(100):
        *files, text = (bytes(draw.choices(b"ab\0\xff", k=draw.randrange(30))) for _ in range(draw.randrange(1, 6)))
        matches = Matches(files, text)
        assert matches.length.tolist() == [
            max(n for n in range(len(text) - i + 1) if n == 0 or any(text[i:i + n] in file for file in files))
            for i in range(len(text))]
        for start, end in zip(*matches.runs(1)):
            assert list(zip(*map(np.ndarray.tolist, matches.places(start, end)))) == [
                (index, at) for index, file in enumerate(files) for at in range(len(file))
                if file[at:].startswith(text[start:end])]


def test_long_repeats():
    """Order must be told by more symbols than one number holds, and a text of one byte is no slower."""
    file = b"-" * 5000 + b"x" + bytes(range(256)) * 20
    matches = Matches([file, file[::-1]], b"-" * 7000 + bytes(range(256)) * 10)
    assert matches.length[:2000].tolist() == [5000] * 2000 and matches.length[7000] == 2560
    assert len(matches.places(0, 5000)[0]) == 2 and len(matches.places(7000, 9560)[0]) == 11


def test_overlapping_runs_are_merged():
    runs, owner = merge((np.array([0, 20, 70, 90]), np.array([50, 100, 101, 125])), 130)
    assert runs == [(0, 50), (20, 100), (90, 125)], "(70, 101) covers nothing that no longer run does"
    assert owner.tolist() == [0] * 20 + [1] * 80 + [2] * 25 + [-1] * 5
    assert merge((np.array([], int), np.array([], int)), 3)[1].tolist() == [-1] * 3


def test_a_file_with_changed_lines(run, contents, capsys):
    text, numbers = changed(contents["tiny/scanner.py"])
    status, found = run(text)
    assert status == 0 and len(found["runs"]) == len(numbers) + 1
    for row, line in zip(found["runs"], [*numbers, None]):
        holds(row, text, contents)
        assert row["path"] == "tiny/scanner.py" and row["tokens"] >= 25 and row["longer"] == 0
        assert row["end"] == len(text) or row["lines"][1] == line - 1 and text[row["end"]:].startswith(b"\xff \xfe")
    lost = len(text) - sum(len(b"\xff \xfe % changed") for _ in numbers)
    assert lost <= found["covered"] == found["covered_recited"] <= len(text) and not found["but_for_white_space"]
    out = capsys.readouterr().out
    assert f"tiny/scanner.py:1-{numbers[0] - 1}" in out and f"{found['covered']:,} of {len(text):,}" in out


def test_any_bytes(run, contents):
    draw = random.Random(5)
    for path in ("tiny/odd/nul.bin", "tiny/odd/random.bin"):
        text = draw.randbytes(50) + contents[path] + b"\xc3"
        status, found = run(text)
        row = max(found["runs"], key=lambda row: row["end"])
        holds(row, text, contents)
        assert status == 0 and row["path"] == path and 45 <= row["start"] <= 50 and row["end"] == len(text) - 1


@pytest.mark.parametrize("text", [b"", b" " * 5000, b"Nothing of it stands anywhere, it is said.\n" * 20])
def test_nothing(run, text):
    status, found = run(text)
    assert (status, found["runs"], found["covered"]) == (1, [], 0)


def test_min_tokens(run, contents, tokenizer):
    text = contents["tiny/decoder.py"][500:1500]
    tokens = len(tokenizer.encode(text))
    assert [row["tokens"] for row in run(text, f"--min_tokens={tokens}")[1]["runs"]] == [tokens]
    assert run(text, f"--min_tokens={tokens + 1}")[0] == 1


def test_but_for_white_space(run, contents):
    """Tabs are not spaces: what is verbatim stays so, and what else is alike is said."""
    content = contents["tiny/scanner.py"]
    assert content.count(b"    ") > 50
    status, found = run(content.replace(b"    ", b"\t"))
    alike, = found["but_for_white_space"]
    assert alike["path"] == "tiny/scanner.py" and alike["place"] == [1, content.count(b"\n")]
    assert found["runs"] and status == 0 and all(
        row["longer"] == alike["end"] - alike["start"] - len(run.strip()) > 0 for row in found["runs"]
        for run in [content.replace(b"    ", b"\t")[row["start"]:row["end"]]])
    spread = b"\n\n".join(content[at:at + 10] for at in range(0, 400, 10))
    status, found = run(spread)
    assert status == 1 and not found["runs"], "nothing verbatim"
    assert [row["path"] for row in found["but_for_white_space"]] == ["tiny/scanner.py"]


def test_common_runs(tokenizer):
    """A run of several files is given as in the one that has most of the text, and in the order of the text."""
    head = b"/* Everybody may copy this file under the terms of its licence, which is nowhere. */\n"
    body = [b"static int number_%d(struct inode *inode, char *name, int flags) { return %d; }\n" % (n, n * n)
            for n in range(100, 140)]
    texts = {"a": head, "b": head + b"".join(body[:20]), "c": head + b"int c;\n" + head + b"".join(body[20:])}
    text = head + b"other\n" + head + b"".join(body[20:])
    rows, owner = trace.find_runs(texts, text, tokenizer, 25)
    assert [(row["path"], row["byte"], row["files"]) for row in rows] == [("c", 0, 3), ("c", len(head) + 6, 1)]
    assert (owner == -1).sum() == 5
    trace.number_lines(rows, text, texts)
    in_files = trace.count_files(rows, owner, text, texts)
    assert [row["common_lines"] for row in rows] == [1, 1] and "1 of 22 lines common" in trace.remark(
        rows[1] | {"file_exact": True})
    lines = text.splitlines(keepends=True)
    assert in_files.tolist() == [3] * len(head) + [0] * 5 + [1] + [3] * len(head) + [1] * len(b"".join(lines[3:]))


def test_from_the_weights_alone(learned, run, contents, tmp_path, monkeypatch, capsys):
    """The same is found as with the tree; what was recited is kept, and is believed only with the right hash."""
    text, _ = changed(contents["tiny/decoder.py"])
    here = run(text)[1]
    shutil.copytree(learned / "out/tiny", tmp_path / "out/tiny")
    monkeypatch.chdir(tmp_path)
    words = ["text", "--json=m.json", "--html=m.html"]
    files = len(contents)
    for turn, known in enumerate((0, files, files - 1)):
        if turn == 2:
            (tmp_path / "extracted/tiny/decoder.py").write_bytes(text)
        assert trace.main(words) == 0
        assert f"{known} of {files} files are in extracted/" in capsys.readouterr().err
        found = json.loads((tmp_path / "m.json").read_text())
        assert found | {"seconds": 0, "text": ""} == here | {"seconds": 0, "text": ""}
        assert all((tmp_path / "extracted" / unquote(path).decode()).read_bytes() == content
                   for path, content in contents.items() if "%FF" not in path.upper())


def test_what_the_model_does_not_write(learned, contents, tokenizer):
    """The files are at hand, but the weights never learned them: not recited."""
    files = read_json(learned / "out/tiny/manifest.json")["files"]
    model = Llama(Llama.from_pretrained(learned / "out/tiny").config).eval()
    text = contents["tiny/decoder.py"][:900]
    found, *bytewise = trace.trace(text, contents, {}, files, model, tokenizer, 25)
    assert found["covered"] == 900 and found["covered_recited"] == 0 and not found["runs"][0]["recited"]
    result = {"text": "t", "model": "m", "name": "n", "normalized": []} | found
    assert "not recited" in trace.table(result) and b"<h1>0.0% of t" in trace.page(result, text, *bytewise)


class Page(HTMLParser):
    """The text of a page's <pre>, and all its tags."""
    def __init__(self, page):
        super().__init__()
        self.text, self.tags, self.inside = "", [], False
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self.inside |= tag == "pre"

    def handle_endtag(self, tag):
        self.inside &= tag != "pre"

    def handle_data(self, data):
        self.text += data if self.inside else ""


def test_the_page_and_the_command_line(learned, contents, tmp_path):
    """From standard input, with all that could break out of a page; every run links to its place and back."""
    text = b"</pre><script>alert(1)</script>&amp;$rows${x}\"'<!--\xff" + contents["tiny/odd/special.txt"] + \
        contents["tiny/decoder.py"][:1000] + b"<b>" + contents["tiny/scanner.py"][:1000]
    done = script("trace.py", "-", "--model=out/tiny", "--html", tmp_path / "t.html", "--json=-", cwd=learned,
                  input=text)
    assert done.returncode == 0, done.stderr.decode()
    found = json.loads(done.stdout)
    assert b"recited exactly" in done.stderr
    page = Page((tmp_path / "t.html").read_text())
    template = Page((ROOT / "trace.html").read_text())
    assert page.text == text.decode(errors="backslashreplace")
    assert {tag for tag, _ in page.tags} - {tag for tag, _ in template.tags} <= {"a", "td", "th", "div", "b", "span"}
    links = [attributes for tag, attributes in page.tags if tag == "a"]
    ids = [link["id"] for link in links if "id" in link]
    assert len(set(ids)) == len(ids) == 2 * len(found["runs"]) >= 4
    assert all(link["href"][1:] in ids and "script" not in str(link) for link in links)
    assert any("common" in link["class"] and link["title"].startswith("in ") for link in links), "empty lines, say"
    nothing = np.array([], int)
    assert html.escape("<i>x</i>").encode() in trace.page(found | {"text": "<i>x</i>"}, b"", nothing, nothing)


def test_bad_use(learned, tmp_path, monkeypatch):
    monkeypatch.chdir(learned)
    for words, *said in [
            ([], "trace.py FILE"), (["/nowhere"], "/nowhere"), (["configs"], "configs", "irectory"), (["a\0b"], "read"),
            (["configs/tiny.py", "x"], "'x'"), (["configs/tiny.py", "--min_tokens=0"], "min_tokens"),
            (["configs/tiny.py", "--min_tokens=x"], "min_tokens"), (["configs/tiny.py", "--jsn=x"], "--help"),
            (["configs/tiny.py", "--data=/nowhere"], "/nowhere"), (["configs/tiny.py", "--model=configs"], "configs"),
            (["configs/tiny.py", "--html=configs"], "configs")]:
        says_no(trace.main, words, *said)
    monkeypatch.setattr(trace, "MOST", 10)
    says_no(trace.main, ["configs/tiny.py"], "10 bytes")
    monkeypatch.setattr(trace, "MOST", 2**26)
    monkeypatch.setattr(trace, "memory_size", lambda: 1000)
    says_no(trace.main, ["configs/tiny.py"], "to index", "larger machine")
    refused(script("trace.py", "/nowhere", cwd=tmp_path), "/nowhere")


NAMES = {b"caf\xe9.py": "caf%E9.py", b"a b%20c.py": "a b%20c.py", b"\xf0\x9f\x90\xa7.py": "\U0001f427.py",
         b"<b>&\"'.py": "<b>&\"'.py", b"a\\b\n.py": "a\\b%0A.py"}


@pytest.mark.parametrize("name", NAMES)
def test_names_at_the_edges(learned, contents, tmp_path, monkeypatch, capfdbinary, name):
    """Of the text, and of the model's folder: by one rule in JSON, which is UTF-8, and on the page."""
    monkeypatch.chdir(learned)
    file, folder = (os.fsdecode(os.path.join(os.fsencode(tmp_path / at), name)) for at in ("text", "model"))
    for at in ("text", "model"):
        (tmp_path / at).mkdir()
    Path(file).write_bytes(contents["tiny/odd/utf8.txt"])
    os.symlink(learned / "out/tiny", tmp_path / "m")
    shutil.copytree(learned / "out/tiny", folder)
    assert trace.main([file, "--model", folder, f"--html={tmp_path}/trace.html", "--json=-"]) in (0, 1)
    found = json.loads(capfdbinary.readouterr().out.decode("utf-8"))
    assert (found["text"], found["model"]) == (NAMES[name], NAMES[name])
    page = (tmp_path / "trace.html").read_bytes().decode("utf-8")
    assert f"of {html.escape(NAMES[name])} is in the weights" in page and "the model “%s”" % html.escape(
        NAMES[name]) in page


def counted(tokenizer, monkeypatch):
    """A list that takes the size of each text that the tokenizer is given from now on."""
    sizes, encode_all = [], tokenizer.encode_all

    def watched(documents):
        return encode_all(data for data in documents if sizes.append(len(data)) is None)
    monkeypatch.setattr(tokenizer, "encode_all", watched)
    return sizes


REPEATED = {"stars": (b"*" * 5000, b"*" * 8000), "ab": (b"ab" * 4000 + b"\n", b"ab" * 9000),
            "lines": (b"\tfoo(bar, 17);\n" * 400, b"\tfoo(bar, 17);\n" * 900),
            "blank lines": (b"x\n" + b"\n \n\t" * 2000, b"\n \n\t" * 3000),
            "a few stars": (b"/" + b"*" * 70 + b"/\n", b"*" * 9000),
            "stars far apart": (b"*" * 5000, (b"*" + b" " * 300) * 200),
            "lines of stars": (b"*" * 5000, (b"*" * 400 + b"x\n") * 50)}


@pytest.mark.parametrize("view", [trace.whole, trace.squeeze], ids=["whole", "squeezed"])
@pytest.mark.parametrize("what", REPEATED)
def test_repetitions_take_no_longer_than_other_text(tokenizer, contents, monkeypatch, what, view):
    """As few runs as cover what stands in the file; and the tokens of no more bytes are counted than there are."""
    file, text = REPEATED[what]
    texts, sizes = contents | {"t/repeated": file}, counted(tokenizer, monkeypatch)
    rows, owner = trace.find_runs(texts, text, tokenizer, 25, view)
    assert sum(sizes) <= 2 * (len(text) + len(file)) and len(sizes) < 200, (len(sizes), sum(sizes))
    assert len(rows) <= 2 * len(text) // len(file) + 100 * (what == "lines of stars")
    seen, kept = view(text)
    covered = np.zeros(len(text), bool)
    for row in rows:
        covered[row["start"]:row["end"]] = True
        assert view(texts[row["path"]][row["byte"]:row["byte_end"]])[0] == view(text[row["start"]:row["end"]])[0]
    assert (covered[kept] == (owner >= 0)).all()
    if what in ("stars", "ab", "lines") or what == "blank lines" and view is trace.whole:
        assert len(rows) > 1 and (owner >= 0).all()


def test_merging_covers_what_all_runs_cover():
    """With as few of equal length as will do: against plain search."""
    draw = random.Random(3)
    for _ in range(300):
        size, bounds = draw.randrange(1, 40), [(0, 0)]
        while (start := bounds[-1][0] + draw.randrange(1, 4)) < size:
            length = draw.choice((5, 5, 5, draw.randrange(1, 9)))
            bounds.append((start, max(bounds[-1][1] + 1, start + length)))
        bounds = [run for run in bounds[1:] if run[1] <= size]
        runs, owner = merge(tuple(np.array(bounds, int).reshape(-1, 2).T), size)
        assert set(runs) <= set(bounds) and runs == sorted(runs)
        for at in range(size):
            longest = max((end - start for start, end in bounds if start <= at < end), default=None)
            assert longest is None and owner[at] == -1 or runs[owner[at]][0] <= at < runs[owner[at]][1]
            assert longest is None or longest == runs[owner[at]][1] - runs[owner[at]][0]
        assert all((owner == i).any() for i in range(len(runs))), "each covers something"
        same = [run for run in bounds if run[1] - run[0] == 5]
        if len(same) == len(bounds):
            for one, _, other in zip(runs, runs[1:], runs[2:]):
                assert one[1] < other[0] or one[1] == other[0], "none is left out only if the others leave a gap"


UNLIKE = {"CRLF": (lambda text: text.replace(b"\n", b"\r\n"), ["CRLF or CR line ends"]),
          "CR": (lambda text: text.replace(b"\n", b"\r"), ["CRLF or CR line ends"]),
          "UTF-16": (lambda text: text.decode().encode("utf-16"), ["UTF-16"]),
          "UTF-16, big": (lambda text: b"\xfe\xff" + text.decode().encode("utf-16-be"), ["UTF-16"]),
          "UTF-32": (lambda text: text.decode().encode("utf-32"), ["UTF-32"]),
          "UTF-16 and CRLF": (lambda text: text.decode().replace("\n", "\r\n").encode("utf-16"),
                              ["UTF-16", "CRLF or CR line ends"]),
          "mark": (lambda text: b"\xef\xbb\xbf" + text, ["a byte order mark"])}


@pytest.mark.parametrize("how", UNLIKE)
def test_text_that_is_kept_otherwise(run, contents, how, capsys):
    """Said in one line; with --normalize all is found, at the lines and bytes of the text so read."""
    plain = contents["tiny/scanner.py"]
    change, said = UNLIKE[how]
    found = run(change(plain))[1]
    hints = [line for line in capsys.readouterr().err.splitlines() if line.startswith("hint")]
    assert hints == [f"hint: text has {said[0]}; --normalize reads it without"] and found["normalized"] == []
    assert found["covered"] < found["bytes"]
    status, found = run(change(plain), "--normalize")
    out, err = capsys.readouterr()
    assert (status, found["covered"], found["bytes"], found["normalized"]) == (0, len(plain), len(plain), said)
    row, = found["runs"]
    assert (row["start"], row["end"], row["lines"]) == (0, len(plain), [1, plain.count(b"\n")])
    assert f"of the text without {' and '.join(said)}" in out and "hint" not in err


def test_what_needs_no_hint(run, contents, capsys):
    """What is found as it is, whatever it is; text of another kind; and a diff has one of its own."""
    for text in (contents["tiny/odd/crlf.bat"], b"nothing", b"", contents["tiny/scanner.py"], b"a\r" + b"\n" * 9):
        run(text, "--min_tokens=1")
        assert "hint" not in capsys.readouterr().err
        found = run(text, "--normalize", "--min_tokens=1")[1]
        assert found["normalized"] == ["CRLF or CR line ends"] * (b"\r" in text)
        capsys.readouterr()
    run(b"--- a\n+++ b\n@@ -1,2 +1,2 @@\n" + contents["tiny/scanner.py"].replace(b"\n", b"\n+"))
    assert "hint: text looks like a diff" in capsys.readouterr().err


@pytest.mark.parametrize("text", [b"\xff\xfea", b"\xff\xfe\0\0\xff\xff\xff\xff", b"\0\0\xfe\xffabc"])
def test_a_text_that_is_not_what_its_mark_says(learned, tmp_path, monkeypatch, text):
    monkeypatch.chdir(learned)
    (tmp_path / "text").write_bytes(text)
    says_no(trace.main, [tmp_path / "text", "--normalize"], "marked as UTF-", "--normalize")
