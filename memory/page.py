"""Pages that are one file: a template beside the scripts, with what it includes and its data put in."""
import json
import re

from memory.settings import ROOT

INCLUDE = re.compile(r"(?:<!--|/\*)include (\S+?)(?:-->|\*/)")
PLACE = re.compile(r"/\*([A-Z]+)\*/null")


def as_json(value):
    """`value` as JSON, in ASCII, and so that nothing in it can close a script element."""
    return json.dumps(value, separators=(",", ":")).replace("<", "\\u003c")


def fill(template, **parts):
    """The page that the file `template` gives, as bytes. It has `<!--include FILE-->` or `/*include FILE*/` for another
    file, and `/*NAME*/null` for the text parts["NAME"]. Raises KeyError if a part is missing."""
    page = INCLUDE.sub(lambda found: (ROOT / found[1]).read_text("utf-8"), (ROOT / template).read_text("utf-8"))
    return PLACE.sub(lambda found: parts[found[1]], page).encode()
