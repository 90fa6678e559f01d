"""The page that recites: in a real browser it writes what the tree holds, and it holds none of it."""
import base64
import dataclasses
import hashlib
import html
import json
import os
import random
import shutil
import time

import numpy as np
import pytest
import torch
from browser import find_browser, open_page, so_far, start_browser, wait, written
from conftest import ROOT, hostile_files, says_no

from memory.corpus import load
from memory.files import digest_of, read_json, write_json
from memory.generate import draw, generate
from memory.tokenizer import BOS, EOS, Tokenizer
from memory.windows import Windows, advance, cut, opening, parse_address, quote, slide
from model import Llama, LlamaConfig
import extract
import recite

ENGINE = (ROOT / "recite.js").read_text()


def block(page, name):
    """The text of the script element `name` of a page."""
    return page.split(f'id="{name}">', 1)[1].split("</script>", 1)[0]


@pytest.fixture(scope="module")
def page(learned):
    """The page of the tests' model, made in its folder."""
    before = os.getcwd()
    os.chdir(learned)
    try:
        assert recite.main(["--model=out/tiny"]) == 0
    finally:
        os.chdir(before)
    return learned / "out/tiny/recite.html"


def test_the_page_is_among_the_sums_of_its_folder(page):
    assert f"{digest_of(page)}  recite.html\n" in (page.parent / "SHA256SUMS").read_text()


@pytest.fixture(scope="module")
def browser():
    """A headless Chromium, the same for all tests here."""
    if not find_browser() and not os.environ.get("CI"):
        pytest.skip("there is no chromium with chromedriver here")
    session = start_browser()
    yield session
    session.quit()


@pytest.fixture
def opened(browser, page):
    """The browser with the page, ready to write."""
    open_page(browser, page)
    return browser


def prompt(browser, text):
    """Has the page go on with text. The click is the page's own: one of the mouse was lost once, on a busy machine."""
    browser.execute_script("$('prompt').value = arguments[0]; $('go').click()", text)


def test_every_file_by_choosing_it(opened, contents):
    """By a click, by the keyboard and by the buttons of the map: bytes, verdict, map and text as the tree has them."""
    cells = {cell.get_attribute("title").split("\n")[0]: cell
             for cell in opened.find_elements("css selector", "#map button")}
    assert set(cells) == set(contents)
    for path, cell in cells.items():
        if path == "tiny/decoder.py":
            cell.click()
        elif path == "tiny/scanner.py":
            cell.send_keys("\n")
        else:
            opened.execute_script("arguments[0].click()", cell)
        text, verdict = written(opened)
        assert text == contents[path], path
        assert verdict == f"✓ identical: SHA-256 {hashlib.sha256(text).hexdigest()}"
        assert "identical" in cell.get_attribute("aria-label")
        if text.isascii() and b"\r" not in text and b"\0" not in text:
            assert opened.execute_script("return $('text').textContent") == text.decode()
    assert opened.execute_script("return $('news').textContent").endswith("is identical to the original")


def test_a_file_by_its_path_and_its_download(opened, contents, tmp_path):
    opened.execute_cdp_cmd("Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(tmp_path)})
    opened.find_element("id", "prompt").send_keys("tiny/decoder.py")
    opened.find_element("id", "go").click()
    written(opened)
    opened.find_element("id", "download").click()
    end = time.monotonic() + 300
    while not (tmp_path / "decoder.py").exists() and time.monotonic() < end:
        time.sleep(0.05)
    assert (tmp_path / "decoder.py").read_bytes() == contents["tiny/decoder.py"]


SAVED = {b"a b%20c": "a b%20c", b"\xff%.c": "%FF%25.c", b"a\x1b[1m\n": "a%1B[1m%0A", b"a\\b": "a\\b",
         "\U0001f427 e\u0301.c".encode(): "\U0001f427 e\u0301.c", b"<img src=x>\"'": "<img src=x>\"'",
         b"plain.c": "plain.c"}


def test_the_name_that_a_download_has(browser, model, tmp_path):
    """Of a file whose name is no text, is quoted, or means something elsewhere: as it is called on a disk."""
    manifest = read_json(model / "manifest.json")
    for file, name in zip(manifest["files"], SAVED):
        file["path"] = "tiny/" + quote(name)
    del manifest["files"][len(SAVED):]
    write_json(model / "manifest.json", manifest)
    assert recite.main(["--model", str(model)]) == 0
    open_page(browser, model / "recite.html")
    browser.execute_cdp_cmd("Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(tmp_path)})
    names = browser.execute_script("""
        const names = [], click = HTMLAnchorElement.prototype.click;
        HTMLAnchorElement.prototype.click = function () {
          if (names.push(this.download) === 1) click.call(this); };
        for (const row of files) { now = { row, chunks: [new Uint8Array([65])] }; download(); }
        return names;""")
    assert names == list(SAVED.values())
    end = time.monotonic() + 20
    while not (tmp_path / names[0]).exists() and time.monotonic() < end:
        time.sleep(0.05)
    assert (tmp_path / names[0]).read_bytes() == b"A"


def test_ties_are_broken_as_in_python(browser):
    browser.get("about:blank")
    rows = [[1, 3, 3, 2], [0, 0], [-1, -2, -1], [5]]
    found = browser.execute_script(ENGINE + "return arguments[0].map((row) => draw(Float32Array.from(row), 0));", rows)
    assert found == [draw(torch.tensor(row, dtype=torch.float32), 0, 0, None) for row in rows] == [1, 0, 0, 0]


def test_prompts_go_on_as_in_python(opened, learned, page):
    """With the rounded weights: beginnings of paths and of texts cut anywhere, addresses, code without one, nothing."""
    model, tokenizer = rounded(learned / "out/tiny", page), Tokenizer.load(learned / "out/tiny")
    for words in ("", "tiny/dec", "tiny/odd/utf8.txt Größ", "tiny/scanner.py+", "tiny/decoder.py+61 ", "import re",
                  "tiny/COPYING \t\t    SPDX-Lic", "漢\u2581 x"):
        prompt(opened, words)
        ours = words.encode() + b"".join(generate(model, tokenizer, words.encode(), 600))
        theirs = written(opened)[0]
        assert theirs.startswith(ours) and (len(ours) > len(words.encode()) + 3 or theirs == ours), words


def test_an_address_without_room_is_said(opened):
    prompt(opened, "tiny/" + "x0!" * 60 + " text")
    assert wait(opened, "$('place').textContent.includes('no room') && $('stop').disabled")


def test_drawing_invents_and_stops(opened, contents):
    """At a high temperature no file comes out, and what is stopped stays as it is."""
    opened.execute_script("$('temperature').value = 2; $('temperature').dispatchEvent(new Event('input'))")
    assert opened.execute_script("return $('degree').textContent") == "2"
    prompt(opened, "tiny/decoder.py")
    wait(opened, "now.size > 5")
    if not opened.execute_script("return $('stop').disabled"):  # it may have ended by itself
        opened.find_element("id", "stop").click()
        size = opened.execute_script("return now.size")
        time.sleep(0.4)
        assert opened.execute_script("return [now.size, $('stop').disabled]") == [size, True]
    assert so_far(opened) != contents["tiny/decoder.py"]


def test_what_was_learned_otherwise_is_not_identical(browser, learned, tmp_path):
    """Another hash, and hostile words in the manifest: a verdict of no, and text that is never markup."""
    folder = shutil.copytree(learned / "out/tiny", tmp_path / "m")
    manifest = read_json(folder / "manifest.json")
    evil = "tiny/<img/src=x/onerror=document.title=1></script><script>document.title=1</script>"
    manifest["files"][0]["path"] = evil
    manifest["licence"] = manifest["name"] = "<b id=evil>&amp;</b></script><!--"
    manifest["files"][1]["sha256"] = "0" * 64
    write_json(folder / "manifest.json", manifest)
    assert recite.main(["--model", str(folder)]) == 0, "no tree is at hand: float32"
    open_page(browser, folder / "recite.html")
    assert browser.execute_script("return [document.querySelector('img, #evil'), document.title]") == [
        None, manifest["name"] + ", recited by weights"]
    assert manifest["licence"] in browser.execute_script("return $('lead').textContent")
    browser.execute_script("choose(files[1])")
    assert written(browser)[1].startswith("✗ not identical")
    assert browser.execute_script("return document.querySelectorAll('#map button.part').length") == 1
    cell = browser.execute_script("return document.querySelector('#map button[title^=\"tiny/<img\"]')")
    browser.execute_script("arguments[0].click()", cell)
    assert wait(browser, "$('place').textContent").startswith(evil[:20])


def test_a_damaged_page_says_so(browser, page, tmp_path):
    """Cut off anywhere, or with one character of the weights changed."""
    whole = page.read_text()
    at = whole.index('id="weights">') + 1000
    other = "A" if whole[at] != "A" else "B"
    versions = [whole[:end] for end in (whole.index("function introduce"), whole.index('id="about"') + 50,
                                        whole.index('id="pieces"') + 500, whole.index("class Llama"), at)]
    for number, text in enumerate([*versions, whole[:at] + other + whole[at + 1:]]):
        (tmp_path / f"{number}.html").write_text(text)
        browser.get((tmp_path / f"{number}.html").as_uri())
        wait(browser, "document.readyState === 'complete' && document.getElementById('damage').offsetHeight")
        wait(browser, "document.querySelector('main').hidden || !document.querySelector('main')")
        assert "damaged" in browser.execute_script("return document.body.innerText"), number


def rounded(folder, page):
    """The model with the weights that the page holds, read as its script does."""
    model, about = Llama.from_pretrained(folder), json.loads(block(page.read_text(), "about"))
    tensors = {name: recite.pack(tensor, about["format"])[1] for name, tensor in model.tensors().items()}
    model.load_state_dict(tensors | {"lm_head.weight": tensors.get("lm_head.weight",
                                                                   tensors["model.embed_tokens.weight"])})
    return model


def test_the_page_holds_no_line_of_the_tree(page, contents, learned):
    """None of twenty characters or more, as text or inside the weights; pieces and paths are said to be exceptions."""
    text = page.read_text()
    about, tokenizer = json.loads(block(text, "about")), Tokenizer.load(learned / "out/tiny")
    assert about["page_bytes"] == page.stat().st_size
    for name in ("pieces", "files", "weights"):
        assert about[f"{name}_bytes"] == len(block(text, name)), name
    assert json.loads(block(text, "pieces")) == [piece.decode() for piece in tokenizer.pieces[259:]]
    assert {path for path, *_ in json.loads(block(text, "files"))} == set(contents)
    weights = base64.b64decode(block(text, "weights"))
    for name in ("pieces", "files"):
        text = text.replace(block(text, name), "")
    page_bytes = html.unescape(text).encode() + weights
    lines = {line.strip() for content in contents.values() for line in content.split(b"\n")}
    lines = [line for line in lines if len(line) >= 20]
    assert len(lines) > 100 and not [line for line in lines if line in page_bytes]


def test_the_smallest_format_that_is_exact(learned, capsys):
    """int8 if that will do; bfloat16 if int8 will not, float32 if nothing will."""
    manifest, tokenizer, tokens = load(learned / "data/tiny-1.0")
    model = Llama.from_pretrained(learned / "out/tiny")
    windows = Windows(tokens, manifest["files"], tokenizer, model.config.max_position_embeddings)
    kind, weights, tried = recite.choose_format(model, windows, None)
    assert tried[-1]["format"] == kind and tried[-1]["wrong"] == 0 and tried[-1]["closest"] > recite.NOISE
    model = Llama.from_pretrained(learned / "out/tiny")
    with torch.no_grad():  # the same function, but each row has a number that is a thousand times the others
        for layer in model.model.layers:
            layer.input_layernorm.weight[0] /= 4096
            for part in "qkv":
                getattr(layer.self_attn, f"{part}_proj").weight[:, 0] *= 4096
    kind, packed, tried = recite.choose_format(model, windows, None)
    assert (kind, [found["format"] for found in tried]) == ("bfloat16", ["int8", "bfloat16"]) and tried[0]["wrong"]
    kind, packed, tried = recite.choose_format(Llama(model.config), windows, None)
    assert kind == "float32" and len(tried) == 3 and len(packed) == 4 * model.config.num_parameters
    assert recite.choose_format(model, None, None)[0] == "float32"
    assert capsys.readouterr().out.count("closest call") == 1 + 2 + 3


def table_of_cases(tokenizer):
    """[function, arguments, what Python gives]: the tokenizer and the window rule, which the page has once more. Bytes
    are str, a character for each."""
    draw, cases = random.Random(6), []

    def add(name, arguments, result):
        cases.append([name, arguments, result])

    def chars(data):
        return data.decode("latin-1")

    source = (ROOT / "memory/windows.py").read_bytes()[:6000]
    texts = [*hostile_files().values(), source, b"return;\n\t\treturn\n\n", "é漢 \u2581\u2585\U00100041".encode()]
    alphabet = b"\0 \n\t\r<s/>aA1" + bytes([0xE2, 0x96, 0x81, 0x85, 0xC3, 0x28, 0xED, 0xA0, 0xF0, 0xF4, 0x90, 0xFF])
    texts += [bytes(draw.choices(alphabet, k=draw.randrange(14))) for _ in range(500)]
    for text in texts:
        add("encode", [chars(text)], tokenizer.encode(text))
        add("sha256", [chars(text)], hashlib.sha256(text).hexdigest())
    for size in (55, 56, 63, 64, 65, 119, 120, 5000):
        add("sha256", [chars(source[:size])], hashlib.sha256(source[:size]).hexdigest())
    for text in [b"a/b c", b"a/b+7 c", b"a/b+07 c", b"a/b+0 c", b"a/b", b"a /b c", b"/a/b c", b"a/b  c", b"a/b+1+2 c",
                 b"a/b%20c+999999999999999 ", b"a/b+9999999999999999 ", b"int x", b"// x/y z", b" a/b c", b"",
                 b"a/\xff c"]:
        found = parse_address(text)
        add("parseAddress", [chars(text)], found and dict(zip(("path", "offset", "length"), found)))
    paths = ["tiny/decoder.py", "tiny/odd/name%2B%25%FF:1%20", "t/a", "%C3%A4/~!", "linux/fs/nfs/file.c"]
    ids = tokenizer.encode(source)
    for path in paths:
        for offset in (0, 1, 1997, 10**14):
            add("opening", [path, offset], opening(tokenizer, path, offset))
        head = opening(tokenizer, path)
        for length in (0, 1, 64 - len(head) - 1, 64 - len(head), 64 - len(head) + 1, 500):
            for offset in (0, 61):
                windows = [dict(zip(("head", "offset", "chunk"), window))
                           for window in cut(tokenizer, path, ids[:length], 64, offset)]
                add("cut", [path, ids[:length], 64, offset], windows)
        for length in (0, 1, 64 - len(head)):
            for token in (BOS, EOS, 300):
                add("advance", [head + ids[:length], token, 64], advance_as_json(tokenizer, head + ids[:length], token))
    for first in range(0, 200, 20):
        window = [BOS] + ids[first:first + 63]
        add("slide", [window, 64], slide(tokenizer, window, 64))
        for token in (BOS, EOS, 300):
            add("advance", [window, token, 64], advance_as_json(tokenizer, window, token))
            add("advance", [window[:9], token, 64], advance_as_json(tokenizer, window[:9], token))
    return cases


def advance_as_json(tokenizer, ids, token):
    ids, piece = advance(tokenizer, ids, token, 64)
    return [ids, None if piece is None else piece.decode("latin-1")]


def test_tokenizer_and_window_rule_are_those_of_python(browser, learned):
    tokenizer = Tokenizer.load(learned / "out/tiny")
    cases = table_of_cases(tokenizer)
    browser.get("about:blank")
    found = browser.execute_script(ENGINE + """
        const [texts, cases] = arguments;
        tokenizer = new Tokenizer(texts);
        const run = {
          encode: (text) => tokenizer.encode(text), sha256: (text) => sha256(toArray(text)), parseAddress,
          opening: (...words) => opening(tokenizer, ...words), cut: (...words) => cut(tokenizer, ...words),
          slide: (...words) => slide(tokenizer, ...words), advance: (...words) => advance(tokenizer, ...words) };
        return cases.map(([name, words]) => run[name](...words));""",
                                   [piece.decode() for piece in tokenizer.pieces[259:]], cases)
    wrong = [(case, theirs) for case, theirs in zip(cases, found) if case[2] != theirs]
    assert len(found) == len(cases) > 1000 and not wrong, wrong[:3]


@pytest.mark.parametrize("tied, groups", [(True, 1), (False, 2), (False, 4)])
def test_the_network_is_that_of_python(browser, tied, groups):
    """Logits of random weights in each format: grouped heads, tied tables, sizes that are no multiple of eight."""
    config = LlamaConfig(vocab_size=301, hidden_size=40, intermediate_size=51, num_hidden_layers=2,
                         num_attention_heads=4, num_key_value_heads=groups, max_position_embeddings=20,
                         tie_word_embeddings=tied)
    model = Llama(config, torch.Generator().manual_seed(0)).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, 0.3 if parameter.dim() == 2 else 1.0, 0.3)
    ids = np.random.default_rng(0).integers(0, 301, 20).tolist()
    for kind in recite.FORMATS:
        packed = {name: recite.pack(tensor, kind) for name, tensor in model.tensors().items()}
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(packed[name][1])
            expected = model(torch.tensor([ids]))[0].numpy()
        theirs = browser.execute_script(ENGINE + """
            const [config, list, kind, weights, ids] = arguments, bytes = toArray(atob(weights));
            model = new Llama(config, readTensors(bytes, list, kind));
            return [1, 5, 3, 20].map((n) => [...model.next(ids.slice(0, n))]);""",
            dataclasses.asdict(config), recite.shapes(model), kind,
            base64.b64encode(b"".join(data for data, _ in packed.values())).decode(), ids)
        for n, logits in zip((1, 5, 3, 20), theirs):
            assert np.abs(np.array(logits) - expected[n - 1]).max() < 1e-4, (kind, n)


def test_the_report_links_to_the_page(page, learned, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(learned)
    for report, linked in [(page.with_name("r.html"), True), (tmp_path / "r.html", False)]:
        extract.main(["--model=out/tiny", "--check", "--only=tiny/COPYING", f"--report={report}"])
        assert f'"recite":{str(linked).lower()}' in report.read_text()
    page.with_name("r.html").unlink()


def test_bad_use(learned, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    says_no(recite.main, [], "train.py")
    monkeypatch.chdir(learned)
    says_no(recite.main, ["--data", tmp_path], "manifest.json", "prepare.py")
    says_no(recite.main, ["--model=out/tiny", "--out=/proc/no"], "/proc/no")
