"""What the documentation promises by itself: its links lead somewhere, its commands exist, README.md stays short."""
import dataclasses
import functools
import importlib
import re
import shlex
from pathlib import Path
from urllib.parse import unquote

import pytest

from conftest import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
OF_TODAY = [page for page in PAGES if page.parent.name != "log" and page.name != "results.md"]  # others record commands
MOST_WORDS, MOST_COLUMNS = 1200, 128


def without_code(text):
    """A page without its fenced blocks and inline code."""
    return re.sub(r"`[^`]*`", "", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S))


def anchors(text):
    """The anchors that GitHub gives a page's headings."""
    found = {}
    for heading in re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S), re.M):
        heading = re.sub(r"!?\[([^]]*)\]\([^)]*\)", r"\1", heading)
        slug = re.sub(r"[^\w -]", "", heading.strip().lower()).replace(" ", "-")
        found[slug] = found.get(slug, 0) + 1
    return {slug if n == 0 else f"{slug}-{n}" for slug, count in found.items() for n in range(count)}


def broken_links(text, page):
    """The relative links of a page, a Path, that lead to no file of the project or to no heading in it."""
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", without_code(text)):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / unquote(name)).resolve() if name else page
        if not target.exists() or not target.is_relative_to(ROOT):
            broken.append(link)
        elif anchor and anchor not in anchors(text if target == page else target.read_text()):
            broken.append(link)
    return broken


def commands(text):
    """The commands of a page that start a script or pip, each a list of words: of code blocks, where `$` may come
    first, and of inline code. Raises ValueError if a quote is not closed."""
    fence = re.compile(r"^```.*?^```", re.M | re.S)
    rest = fence.sub("", text)
    lines = [line for block in fence.findall(text) for line in re.findall(r"^(?:\$ )?(\S.*)$", block, re.M)]
    lines += re.findall(r"^    (\S.*)$", rest, re.M)
    lines += [" ".join(code.split()) for code in re.findall(r"`([^`]*)`", rest)]
    found = []
    for line in lines:
        if not re.match(r"(python|torchrun|pip|\w+\.py) \S", line):
            continue
        words = shlex.shlex(line, posix=True, punctuation_chars=True)  # without what stands after #
        words.whitespace_split = True
        found.append([])
        for word in words:
            if word and set(word) <= set("|&;"):
                found.append([])
            else:
                found[-1].append(word)
    return [words for words in found if words and re.fullmatch(r"python|torchrun|pip|\w+\.py", words[0])]


@functools.cache
def options(script):
    """The settings that the --help of a script lists."""
    return {field.name for field in dataclasses.fields(importlib.import_module(Path(script).stem).Settings)}


def faults(words):
    """What is wrong with a command, a list of words: files that are not there, options that its script lacks."""
    missing = [word for word in words if re.match(r"(configs|tests)(/|$)|requirements\.txt", word)
               and not (ROOT / word).exists()]
    at = next((i for i, word in enumerate(words) if word.endswith(".py") and not word.startswith("configs/")), None)
    if at is None or "pytest" in words:
        return missing
    script = words[at]
    if not (ROOT / script).is_file():
        return [*missing, script]
    given = [word[2:].partition("=")[0] for word in words[at + 1:] if re.match(r"--\w", word)]
    return [*missing, *(f"--{name}" for name in given if name.replace("-", "_") not in options(script))]


def long_lines(text):
    """The lines that are too long, tables left out."""
    return [line for line in text.split("\n") if len(line) > MOST_COLUMNS and not line.startswith("|")]


def traces(text):
    """Paths of a machine, and hashes of commits."""
    hashes = [word for word in re.findall(r"\b[0-9a-f]{7,64}\b", text) if re.search("[a-f]", word)
              and re.search("[0-9]", word)]
    return hashes + re.findall(r"(?<![\w.])/(?:home|root|work|tmp|mnt|Users)/\S*|\b[A-Z]:\\\S*", text)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere_and_lines_fit(page):
    text = page.read_text()
    assert not broken_links(text, page)
    assert not long_lines(text)


@pytest.mark.parametrize("page", OF_TODAY, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_exist_with_their_options(page):
    found = commands(page.read_text())
    assert {" ".join(words): faults(words) for words in found if faults(words)} == {}
    if page.name == "README.md":
        assert {"prepare.py", "train.py", "sample.py", "extract.py"} <= {word for words in found for word in words}


def test_the_readme_is_short_and_of_no_machine():
    text = (ROOT / "README.md").read_text()
    assert len(text.split()) <= MOST_WORDS
    assert not traces(text)


@pytest.mark.parametrize("text, broken", [
    ("[a](docs/nothing.md)", ["docs/nothing.md"]),
    ("[a](README.md#no-such-heading)", ["README.md#no-such-heading"]),
    ("# One\n# One\n[a](#one) [b](#one-1) [c](#one-2)", ["#one-2"]),
    ("```sh\n# Not a heading\n```\n[a](#not-a-heading)", ["#not-a-heading"]),
    ("![a\nb](docs/report.jpg)", ["docs/report.jpg"]),
    ("[a](../elsewhere.md)", ["../elsewhere.md"]),
    ("## `x` and [y](LICENSE): z's\n[a](#x-and-y-zs) [b](https://a.b/c) `[c](d)`", [])])
def test_a_broken_link_is_found(text, broken):
    assert broken_links(text, ROOT / "README.md") == broken


@pytest.mark.parametrize("text, wrong", [
    ("    python smaple.py --prompt x", ["smaple.py"]),
    ("```console\n$ python sample.py --promt x | cmp - y\n--not an option\n```", ["--promt"]),
    ("    python prepare.py && python extract.py --chekc=1    # --comment", ["--chekc"]),
    ("and `python train.py configs/quik.py --seed\n7`", ["configs/quik.py"]),
    ("    torchrun --nnodes=2 train.py configs/quick.py --seeed 7", ["--seeed"]),
    ("    pip install -r tests/requirement.txt", ["tests/requirement.txt"]),
    ("    python -m pytest -n0 tests/test_nothing.py -k x", ["tests/test_nothing.py"]),
    ("`trace.py --htm x`", ["--htm"]),
    ('    python sample.py --prompt "" --temprature 1', ["--temprature"]),
    ("```sh\npython verify.py --modle x\n```", ["--modle"]),
    ("    python tests/browser.py --pages x", ["--pages"]),
    ("    python sample.py --num-samples 3 --prompt \"# -- |\"", [])])
def test_a_wrong_command_is_found(text, wrong):
    found = commands(text)
    assert found
    assert [fault for words in found for fault in faults(words)] == wrong


@pytest.mark.parametrize("find, text, found", [
    (long_lines, "x" * 129 + "\n" + "x" * 128 + "\n|" + "x" * 200, ["x" * 129]),
    (traces, "see /home/me/x and C:\\me", ["/home/me/x", "C:\\me"]),
    (traces, "by commit 1d9d9c0, of 4719743 bytes in /usr/include/linux, facade", ["1d9d9c0"])])
def test_long_lines_paths_and_hashes_are_found(find, text, found):
    assert find(text) == found
