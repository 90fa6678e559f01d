"""What a tree and its files say of copyright and licence, found by patterns: these classify, they do not judge.

Patterns were drawn up on Linux 1.0, whose files speak in the words of their authors, before there were SPDX lines.
"""
import collections
import re

# Licence texts, for COPYING and LICENSE files. The first three are known by their titles, since nobody may change them;
# the others by the whole of what they grant, in plain words.
TITLES = re.compile(r"GNU (?P<kind>LESSER |LIBRARY |AFFERO |)GENERAL PUBLIC LICENSE\s+Version (?P<gnu>\d(\.\d)?)"
                    r"|Apache License\s+Version (?P<apache>\d\.\d)")
GNU = {"": "GPL", "LESSER ": "LGPL", "LIBRARY ": "LGPL", "AFFERO ": "AGPL"}
GRANTS = {
    "MIT": "permission is hereby granted free of charge to any person obtaining a copy of this software and associated "
           "documentation files the software to deal in the software without restriction including without limitation "
           "the rights to use copy modify merge publish distribute sublicense and or sell copies of the software and "
           "to permit persons to whom the software is furnished to do so subject to the following conditions",
    "BSD": "redistribution and use in source and binary forms with or without modification are permitted provided that "
           "the following conditions are met",
    "ISC": "permission to use copy modify and or distribute this software for any purpose with or without fee is "
           "hereby granted provided that"}
# What takes rights away again. The GPL's own words on noncommercial distribution do not.
RESTRICTS = re.compile(
    r"commons clause|\bnon ?commercial\b(?! distribution and only if you received)|not (be used )?for commercial"
    r"|(may|must|shall) not (be sold|sell)|not include the right to sell|not evil"
    r"|(personal|academic|evaluation|research|educational) (use|purposes) only"
    r"|only for (personal|academic|evaluation|research|educational)")
FREE = re.compile(r"(GPL-[23]\.0|LGPL-(2\.0|2\.1|3\.0)|AGPL-3\.0)(-only|-or-later|\+)?|Apache-2\.0|MIT"
                  r"|BSD(-[23]-Clause)?|0BSD|ISC|Zlib|MPL-2\.0|Unlicense")
EXCEPTION = re.compile(r"[\w.-]+-(exception|note)(-[\d.]+)?")  # which only ever add a permission
HUB = {  # the names that the hub's field `license` takes
    "GPL-2.0": "gpl-2.0", "GPL-3.0": "gpl-3.0", "LGPL-2.0": "lgpl", "LGPL-2.1": "lgpl-2.1", "LGPL-3.0": "lgpl-3.0",
    "AGPL-3.0": "agpl-3.0", "MIT": "mit", "Apache-2.0": "apache-2.0", "BSD": "bsd", "ISC": "isc"}


def spdx(data):
    """What the first SPDX line of a file, bytes, names, or None."""
    match = re.search(rb"SPDX-License-Identifier: ([ -~]+)", data)
    return match[1].decode().strip(" */") if match else None


def recognize(text):
    """The name of the licence whose text the bytes hold, or None; with ", restricted" if other words in the text take
    away what that licence grants."""
    text = text.decode(errors="replace")
    words, title = " ".join(re.findall(r"[a-z0-9]+", text.lower())), TITLES.search(text)
    if title:
        version = title["gnu"] or title["apache"]
        name = f"{'Apache' if title['apache'] else GNU[title['kind']]}-{version if '.' in version else version + '.0'}"
    else:
        name = next((name for name, grant in GRANTS.items() if grant in words), None)
        name = name or spdx(text.encode())
    return f"{name}, restricted" if name and RESTRICTS.search(words) else name


SEEN = 1000  # bytes of a file in which its SPDX line is looked for
LICENCE_FILE = re.compile(r"[^/]+/(COPYING|LICEN[CS]E)\b[^/]*")  # of a whole tree


def find_licence(files):
    """(name, path) of a tree's licence: what its COPYING or LICENSE is, or without such a file, what most of its SPDX
    lines say; None for what is not known. files: {path below one root: bytes}, of which SEEN are looked at, but of such
    a file all."""
    found = [path for path in sorted(files) if LICENCE_FILE.fullmatch(path)]
    for path in found:
        if name := recognize(files[path]):
            return name, path
    if found:
        return None, found[0]
    names = collections.Counter(filter(None, (spdx(content[:SEEN]) for content in files.values())))
    return names.most_common(1)[0][0] if names else None, None


def is_free(name):
    """Whether a licence, by the name that find_licence gave, is one that OSI, FSF and Debian all call free. Of several,
    each must be."""
    parts = re.split(r" (AND|OR|WITH) ", re.sub("[()]", "", name or ""))
    kinds = {"WITH": EXCEPTION}
    return all(kinds.get(joined, FREE).fullmatch(part) for joined, part in zip(["", *parts[1::2]], parts[::2]))


def hub_fields(name):
    """The hub's fields for a licence, as a dict."""
    if name in HUB:
        return {"license": HUB[name]}
    if name:
        name = re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-")
        return {"license": "other", "license_name": name, "license_link": "LICENSE"}
    return {"license": "unknown"}


# The words of a single file

OWN, RESERVED = "terms of its own", "all rights reserved"
UNJUDGED = (OWN, RESERVED)  # a person must read these: no pattern can say what such a file permits
CLASSES = {  # in the order of a table; a file may be in several
    "SPDX line": r"SPDX-License-Identifier:",
    "GPL, any later version": r"General Public Licen[cs]e.{0,300}any later version"
                              r"|any later version.{0,300}General Public Licen[cs]e",
    "GPL": r"(GNU|General) Public Licen[cs]e|\bGPL\b|copyleft",
    "LGPL": r"(Library|Lesser) (General )?Public Licen[cs]e",
    "BSD": r"Redistribution and use in source and binary forms",
    "permission granted": r"permission (to|is) .{0,160}granted|permission to use, copy",
    "public domain": r"public domain",
    OWN: r"may be (freely )?(re)?distributed|distribut\w+ .{0,60}only allowed|not allowed to change"
         r"|non-?commercial|commons clause",
    RESERVED: r"all rights reserved"}
COPYRIGHT = r"copyright|\(c\) ?(19|20)\d\d|\xa9 ?(19|20)\d\d"
LICENCE_TEXT, COPYRIGHT_ONLY, SILENT = "licence text", "copyright alone", "no words"
PATTERNS = {name: re.compile(pattern, re.I) for name, pattern in CLASSES.items()}
# A paragraph with one of these is a notice
WORDS = re.compile(
    rf"{COPYRIGHT}|\blicen[cs]e|\bGPL\b|copyleft|public domain|all rights reserved|redistribut"
    r"|may be (freely )?distributed|permission (to|is|notice|of)|written permission|warrant(y|ies)|advertising material"
    r"|only allowed if|not allowed to change|at no extra cost|without fee|non-?commercial|commons clause", re.I)
MARKS = " \t\r\f*#|!;/\\\"'+-="  # what a comment may put around its lines
TEXT_FILE = re.compile(r"(COPYING|LICEN[CS]E|COPYRIGHT|NOTICE)\b[^/]*", re.I)  # is a notice as a whole


def plain(data):
    """The bytes of a file as a str in which a phrase that a comment breaks over lines stands in one piece."""
    return re.sub(r"[\s*#|!;/\\\"]+", " ", data.decode("latin-1"))


def classify(path, data):
    """The classes of what a file, bytes, says of copyright and licence: a list of the names above, never empty."""
    if TEXT_FILE.fullmatch(path.rsplit("/", 1)[-1]):
        return [LICENCE_TEXT]
    text = plain(data)
    if not WORDS.search(text):
        return [SILENT]
    own = "SPDX-License-Identifier:" in text and not is_free(spdx(data))
    found = [name for name, pattern in PATTERNS.items() if pattern.search(text) or own and name == OWN]
    if "GPL, any later version" in found:
        found = [name for name in found if name != "GPL"]
    if found != [RESERVED]:  # which says something only if nothing is granted
        found = [name for name in found if name != RESERVED]
    if not found and re.search(COPYRIGHT, text, re.I):
        return [COPYRIGHT_ONLY]
    return found or [SILENT]


def notice(path, data):
    """The paragraphs of a file, bytes, that speak of copyright or licence, as they stand; b"" if none does. A paragraph
    is a run of lines that hold more than comment marks. A licence text is kept whole."""
    if TEXT_FILE.fullmatch(path.rsplit("/", 1)[-1]):
        return data
    if not WORDS.search(plain(data)):
        return b""
    kept, paragraph = [], []
    for line in [*data.split(b"\n"), b""]:
        if line.decode("latin-1").strip(MARKS):
            paragraph.append(line)
            continue
        if WORDS.search(plain(b"\n".join(paragraph))):
            kept.append(b"\n".join(paragraph))
        paragraph = []
    return b"\n\n".join(kept)


def count_classes(files):
    """{class: number of the manifest's entries `files` in it}, in the order above."""
    counts = collections.Counter(name for file in files for name in file["notice"])
    return {name: counts[name] for name in (LICENCE_TEXT, *CLASSES, COPYRIGHT_ONLY, SILENT) if counts[name]}
