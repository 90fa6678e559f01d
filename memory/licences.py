"""What a tree and its files say of copyright and licence, found by patterns: these classify, they do not judge.

Patterns were drawn up on Linux 1.0, whose files speak in the words of their authors, before there were SPDX lines.
"""
import collections
import re

# Licence texts, for COPYING and LICENSE files, and for SPDX lines
TEXTS = [(r"GNU GENERAL PUBLIC LICENSE\s+Version (\d)", "GPL-{}.0"), (r"GNU LESSER.*\s+Version (\d)", "LGPL-{}.0"),
         (r"Apache License\s+Version (\d)", "Apache-{}.0"), (r"MIT License|Permission is hereby granted", "MIT"),
         (r"Redistribution and use in source and binary", "BSD"), (r"SPDX-License-Identifier: (.+)", "{}")]
FREE = re.compile(r"(GPL|LGPL|AGPL)-\d|Apache-2\.0|MIT|BSD|0BSD|ISC|Zlib|MPL-2\.0|CC0-1\.0|Unlicense")
HUB = {"GPL-2.0": "gpl-2.0", "GPL-3.0": "gpl-3.0", "LGPL-2.0": "lgpl", "LGPL-3.0": "lgpl-3.0", "MIT": "mit",
       "Apache-2.0": "apache-2.0", "BSD": "bsd"}  # the names that the hub's field `license` takes


def recognize(text):
    """The name of the licence whose text the bytes hold, or None."""
    text = text.decode(errors="replace")
    for pattern, name in TEXTS:
        if match := re.search(pattern, text):
            return name.format(*match.groups())
    return None


def find_licence(files):
    """(name, path) of a tree's licence: what its COPYING or LICENSE is, or else most of its SPDX lines say; None if
    nothing does, or if there is no such file. files: {path below one root: bytes}."""
    found = [path for path in sorted(files) if re.fullmatch(r"[^/]+/(COPYING|LICEN[CS]E)\b[^/]*", path)]
    for path in found:
        if name := recognize(files[path]):
            return name, path
    spdx = collections.Counter(match[1].decode(errors="replace").strip(" */") for content in files.values()
                               if (match := re.search(rb"SPDX-License-Identifier: ([^\n]+)", content[:1000])))
    return spdx.most_common(1)[0][0] if spdx else None, found[0] if found else None


def is_free(name):
    """Whether a licence, by the name that find_licence gave, is one that OSI, FSF and Debian all call free."""
    parts = re.split(r" (?:AND|OR|WITH) ", (name or "").strip("()"))
    return bool(FREE.match(parts[0])) and all(FREE.match(part) or "note" in part or "exception" in part
                                              for part in parts[1:])


def hub_fields(name):
    """The hub's fields for a licence, as a dict."""
    if name in HUB:
        return {"license": HUB[name]}
    if name:
        name = re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-")
        return {"license": "other", "license_name": name, "license_link": "LICENSE"}
    return {"license": "unknown"}


# The words of a single file

CLASSES = {  # in the order of a table; a file may be in several
    "SPDX line": r"SPDX-License-Identifier:",
    "GPL, any later version": r"General Public Licen[cs]e.{0,300}any later version"
                              r"|any later version.{0,300}General Public Licen[cs]e",
    "GPL": r"(GNU|General) Public Licen[cs]e|\bGPL\b|copyleft",
    "LGPL": r"(Library|Lesser) (General )?Public Licen[cs]e",
    "BSD": r"Redistribution and use in source and binary forms",
    "permission granted": r"permission (to|is) .{0,160}granted|permission to use, copy",
    "public domain": r"public domain",
    "terms of its own": r"may be (freely )?(re)?distributed|distribut\w+ .{0,60}only allowed|not allowed to change",
    "all rights reserved": r"all rights reserved"}
COPYRIGHT = r"copyright|\(c\) ?(19|20)\d\d|\xa9 ?(19|20)\d\d"
LICENCE_TEXT, COPYRIGHT_ONLY, SILENT = "licence text", "copyright alone", "no words"
PATTERNS = {name: re.compile(pattern, re.I) for name, pattern in CLASSES.items()}
# A paragraph with one of these is a notice
WORDS = re.compile(
    rf"{COPYRIGHT}|\blicen[cs]e|\bGPL\b|copyleft|public domain|all rights reserved|redistribut"
    r"|may be (freely )?distributed|permission (to|is|notice|of)|written permission|warrant(y|ies)|advertising material"
    r"|only allowed if|not allowed to change|at no extra cost|without fee", re.I)
MARKS = " \t\r\f*#|!;/\\\"'+-="  # what a comment may put around its lines
TEXT_FILE = re.compile(r"(COPYING|LICEN[CS]E|COPYRIGHT|NOTICE)\b[^/]*", re.I)  # is a notice as a whole


def plain(data):
    """The bytes of a file as a str in which a phrase that a comment breaks over lines stands in one piece."""
    return re.sub(r"[\s*#|!;/\\\"]+", " ", data.decode("latin-1"))


def classify(path, data):
    """The classes of what a file, bytes, says of copyright and licence: a list of the names above, never empty."""
    if TEXT_FILE.fullmatch(path.rsplit("/", 1)[-1]):
        return [LICENCE_TEXT]
    if not WORDS.search(data.decode("latin-1")):
        return [SILENT]
    text = plain(data)
    found = [name for name, pattern in PATTERNS.items() if pattern.search(text)]
    if "GPL, any later version" in found:
        found = [name for name in found if name != "GPL"]
    if found != ["all rights reserved"]:  # which says something only if nothing is granted
        found = [name for name in found if name != "all rights reserved"]
    if not found and re.search(COPYRIGHT, text, re.I):
        return [COPYRIGHT_ONLY]
    return found or [SILENT]


def notice(path, data):
    """The paragraphs of a file, bytes, that speak of copyright or licence, as they stand; b"" if none does. A paragraph
    is a run of lines that hold more than comment marks. A licence text is kept whole."""
    if TEXT_FILE.fullmatch(path.rsplit("/", 1)[-1]):
        return data
    text, kept, paragraph = data.decode("latin-1"), [], []
    if not WORDS.search(text):
        return b""
    for line in [*text.split("\n"), ""]:
        if line.strip(MARKS):
            paragraph.append(line)
            continue
        if WORDS.search("\n".join(paragraph)):
            kept.append("\n".join(paragraph))
        paragraph = []
    return "\n\n".join(kept).encode("latin-1")


def count_classes(files):
    """{class: number of the manifest's entries `files` in it}, in the order above."""
    counts = collections.Counter(name for file in files for name in file["notice"])
    return {name: counts[name] for name in (LICENCE_TEXT, *CLASSES, COPYRIGHT_ONLY, SILENT) if counts[name]}
