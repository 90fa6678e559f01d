"""A page that recite.py made, in a real browser: for test_recite.py, and by itself to measure and to film one.

    python tests/browser.py --page out/quick/recite.html                                  # every file
    python tests/browser.py --page out/memorize/recite.html --files 20 --json figures.json
    python tests/browser.py --page out/quick/recite.html --only linux/fs/nfs/file.c --film docs/recite.webp

Each file is chosen in the page, and what it writes is held against the file's SHA-256. Exit status 0: all are
identical. In the film the text is blurred: it is the tree's, and not to be passed on with this project.
"""
import dataclasses
import hashlib
import io
import json
import random
import shutil
import sys
import time
from pathlib import Path

from selenium import webdriver

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from memory.files import write_result  # noqa: E402  found by the line above
from memory.output import UserError, progress, run_script  # noqa: E402
from memory.settings import parse  # noqa: E402

WINDOW = 1200, 900  # of the film, in pixels
BLUR = "const style = document.createElement('style'); style.textContent = '#text { filter: blur(4px) }';" \
       "document.head.append(style)"


@dataclasses.dataclass
class Settings:
    page: str = ""  # the page
    files: int = 0  # how many files, the longest and others drawn by the seed; 0: all
    only: tuple = ()  # the files whose path begins with one of these
    seed: int = 0  # of the draw
    json: str = ""  # write the figures into this file too
    film: str = ""  # write an animation of the first file to this .webp or .gif


def find_browser():
    """(chromium, chromedriver), or None if one is missing."""
    found = shutil.which("chromium"), shutil.which("chromedriver")
    return found if all(found) else None


def start_browser():
    """A headless Chromium. Raises UserError if it is not installed."""
    if not find_browser():
        raise UserError("there is no chromium with chromedriver here: apt-get install chromium chromium-driver")
    chromium, driver = find_browser()
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for word in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
                 "--force-prefers-reduced-motion"):  # no click is to aim at what still scrolls
        options.add_argument(word)
    return webdriver.Chrome(options, webdriver.ChromeService(driver))


def wait(browser, expression, seconds=300):
    """The value of a JavaScript expression, as soon as it is true."""
    end = time.monotonic() + seconds
    while not (value := browser.execute_script(f"return {expression}")):
        if time.monotonic() > end:
            raise UserError(f"the page is not ready within {seconds:.0f} s: it lacks {expression}")
        time.sleep(0.05)
    return value


def open_page(browser, page):
    """Opens the page, a path, and waits until it can write."""
    browser.get(Path(page).resolve().as_uri())
    wait(browser, "!$('go').disabled")


def so_far(browser):
    """The bytes of the text that is being written."""
    return bytes(browser.execute_script("return now.chunks.flatMap((chunk) => [...chunk])"))


def written(browser, seconds=300):
    """(bytes, verdict) of the text that is being written, once it has ended."""
    verdict = wait(browser, "!$('verdict').hidden && $('verdict').textContent", seconds)
    return so_far(browser), verdict


def peak_memory(browser):
    """The most bytes that a process of the page has had, as Linux counts them."""
    peaks = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if b"--type=renderer" in (folder / "cmdline").read_bytes():
                status = dict(line.split(":", 1) for line in (folder / "status").read_text().splitlines())
                peaks.append(1024 * int(status["VmHWM"].split()[0]))
        except (OSError, KeyError):  # it has ended
            pass
    return max(peaks, default=0)


def recite(browser, file):
    """Has the page write one file; returns what was found, as a dict."""
    browser.execute_script("choose(files.find((file) => file.path === arguments[0]))", file["path"])
    text, verdict = written(browser, 300 + file["tokens"] / 5)
    tokens, seconds = browser.execute_script("return [now.tokens, now.seconds]")
    exact = hashlib.sha256(text).hexdigest() == file["sha256"]
    if exact != verdict.startswith("✓"):
        raise UserError(f"the page says {verdict!r} of {file['path']}, and its bytes say otherwise")
    return {"path": file["path"], "bytes": len(text), "exact": exact, "tokens": tokens, "seconds": seconds}


def film(browser, file, path):
    """Writes an animation of the page that writes one file."""
    from PIL import Image
    browser.set_window_size(*WINDOW)
    browser.execute_script(BLUR)
    frames = []
    browser.execute_script("choose(files.find((file) => file.path === arguments[0]))", file["path"])
    while len(frames) < 400:
        ended = browser.execute_script("return !$('verdict').hidden")
        frames.append(Image.open(io.BytesIO(browser.get_screenshot_as_png())).convert("RGB").resize(
            (WINDOW[0] * 2 // 3, WINDOW[1] * 2 // 3)))
        if ended:
            break
        time.sleep(0.1)
    frames = frames[::max(1, len(frames) // 60)] + frames[-1:]
    data = io.BytesIO()
    frames[0].save(data, Path(path).suffix[1:], save_all=True, append_images=frames[1:], loop=0, quality=60, method=6,
                   duration=[120] * (len(frames) - 1) + [3000])
    write_result(path, data.getvalue())
    print(f"{path}: {len(frames)} frames, {len(data.getvalue()):,} bytes")


def main(argv=None):
    settings = parse(Settings, __doc__, sys.argv[1:] if argv is None else argv)
    if not Path(settings.page).is_file():
        raise UserError(f"there is no page {settings.page or '(--page)'}; make one with recite.py")
    browser = start_browser()
    try:
        open_page(browser, settings.page)
        files = browser.execute_script("return files")
        chosen = [file for file in files if file["path"].startswith(settings.only or "")]
        if settings.files:
            chosen.sort(key=lambda file: -file["bytes"])
            drawn = random.Random(settings.seed).sample(chosen[1:], min(len(chosen), settings.files) - 1)
            chosen = chosen[:1] + drawn
        if settings.film:
            film(browser, chosen[0], settings.film)
            return 0
        rows = [recite(browser, file) for file in progress(chosen, desc="reciting", unit=" files")]
        about = browser.execute_script("return about")
        agent = browser.execute_script("return navigator.userAgent")
        memory = peak_memory(browser)
    finally:
        browser.quit()
    tokens, seconds = (sum(row[key] for row in rows) for key in ("tokens", "seconds"))
    exact = sum(row["exact"] for row in rows)
    result = {"page_bytes": about["page_bytes"], "format": about["format"], "tried": about["tried"], "browser": agent,
              "files": len(rows), "files_exact": exact, "tokens_per_second": round(tokens / seconds, 1),
              "peak_memory": memory, "rows": rows}
    size = sum(row["bytes"] for row in rows)
    print(f"{exact} of {len(rows)} files identical, {size:,} bytes; {tokens / seconds:.0f} tokens/s, "
          f"{memory / 1e6:.0f} MB; page of {about['page_bytes']:,} bytes, {about['format']}")
    if settings.json:
        write_result(settings.json, json.dumps(result, indent=1).encode())
    return 0 if exact == len(rows) else 1


if __name__ == "__main__":
    run_script(main)
