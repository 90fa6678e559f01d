"""What a tree and its files say of copyright and licence, found by patterns: these classify, they do not judge.

Patterns were drawn up on Linux 1.0, whose files speak in the words of their authors, before there were SPDX lines.
"""
import collections
import re

from memory.licence_texts import EXCEPTIONS, MARKS, base, decode, join, recognize, spdx

FREE = re.compile(r"(GPL-[23]\.0|LGPL-(2\.0|2\.1|3\.0)|AGPL-3\.0)(-only|-or-later|\+)?|Apache-2\.0|MIT|BSD-[23]-Clause"
                  r"|0BSD|ISC|Zlib|MPL-2\.0|Unlicense")
HUB = {  # the names that the hub's field `license` takes
    "GPL-2.0": "gpl-2.0", "GPL-3.0": "gpl-3.0", "LGPL-2.0": "lgpl", "LGPL-2.1": "lgpl-2.1", "LGPL-3.0": "lgpl-3.0",
    "AGPL-3.0": "agpl-3.0", "MIT": "mit", "Apache-2.0": "apache-2.0", "BSD-2-Clause": "bsd-2-clause",
    "BSD-3-Clause": "bsd-3-clause", "ISC": "isc", "Zlib": "zlib", "MPL-2.0": "mpl-2.0", "Unlicense": "unlicense"}

# The licence of a whole tree

SEEN = 1000  # bytes of a file in which its SPDX lines are looked for
NAMED = (r"((COPYING|COPYRIGHT|(UN)?LICEN[CS]ES?|NOTICES?|PATENTS|EULA|TERMS)(?![A-Za-z0-9])[^/]*"
         r"|(?i:copying|copyright|(un)?licen[cs]es?|notices?|patents|eula|terms)(([-_.][\w.-]+)?\.(txt|md|rst))?)")
TEXT = re.compile(rf"[^/]+/(LICENSES/.*|{NAMED})")
LISTS = re.compile(r"[^/]+/((.*/)?REUSE\.toml|\.reuse/dep5|debian/copyright)")  # of files and licences
PACKAGE = re.compile(r"[^/]+/((package|composer|bower)\.json|pyproject\.toml|Cargo\.toml|setup\.(cfg|py)|DESCRIPTION)")
LICENCE_FILE = re.compile("|".join(pattern.pattern for pattern in (TEXT, LISTS, PACKAGE)))
FIELD = re.compile(r"\b(?:SPDX-License-Identifier|licen[cs]es?(?:-file)?)[\"']?[ \t]*[:=](?!:)[ \t]*(\[[^]]*|.*)"
                   r"|\b(License :: (?!OSI Approved)[^\"'\n]*)", re.I)


def declared(data):
    """What a file, bytes, that other programs read has in its fields for a licence: a list of names, or of files."""
    found = []
    for value in map("".join, FIELD.findall(decode(data))):
        quoted = re.findall(r"[\"']([^\"']*)[\"']", value) or [value]
        found += [text.strip() for text in (quoted if value.startswith("[") else quoted[:1])]
    return found


def find_licence(files):
    """(name, path) of a tree's licence. The name is an SPDX expression if all that the tree says of itself agrees: its
    licence texts, in which nothing else stands, the SPDX lines of its files, and what it declares to other programs.
    Else the name says what is there, for a person to judge; neither is_free nor the hub knows it. None if no licence in
    the tree is known. path: of the first licence text, or None.

    files: {path below one root: bytes}, of which SEEN are looked at, but of those that match LICENCE_FILE all."""
    texts, packages, lines = {}, {}, collections.Counter()
    for path in sorted(files, key=lambda path: (path.count("/"), path)):
        if TEXT.fullmatch(path):
            texts[path] = recognize(files[path])
        elif LISTS.fullmatch(path):
            lines.update(declared(files[path]))
        elif PACKAGE.fullmatch(path):
            packages[path] = declared(files[path])
        elif name := spdx(decode(files[path][:SEEN])):
            lines[name] += 1
    names, shipped = [name for name, _ in lines.most_common()], {path.rsplit("/", 1)[-1] for path in texts}
    for path, found in packages.items():
        packages[path] = join(name for name in found if (name.split() or [""])[-1] not in shipped)
    packages = {path: name for path, name in packages.items() if name}
    path, said = next(iter(texts), None), [*texts.values(), *names]
    if said and len({base(name) for name in [*said, *packages.values()]}) == 1:
        return said[0], path
    meant = {base(part) for name in names for part in re.split(r" AND | OR | WITH |[()]", name)}
    texts = {path: name for path, name in texts.items() if path.count("/") == 1 or base(name) not in meant}
    if not texts and not packages:  # the folder LICENSES has what the SPDX lines name
        return join(names), None
    said = [(path.split("/", 1)[1], name) for path, name in [*texts.items(), *packages.items()]]
    said += [("SPDX lines", join(names))] if names else []
    return ", ".join(f"{name or 'unknown words'} ({where})" for where, name in said), path


def is_free(name):
    """Whether a licence, by the name that find_licence gave, is for certain one that OSI, FSF and Debian all call free.
    Of several, each must be. What is not is for a person to judge."""
    parts = re.split(r" (AND|OR|WITH) ", re.sub("[()]", "", name or ""))
    kinds = {"WITH": re.compile(EXCEPTIONS)}
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

OWN, RESERVED, ADVERTISED = "terms of its own", "all rights reserved", "advertising clause"
UNJUDGED = (OWN, RESERVED, ADVERTISED)  # a person must read these: no pattern can say what such a file permits
KIND = "(personal|educational|research|academic|evaluation|non-?profit)"
DEED = "(use|copy|modify|distribute|sell|publish|rent|lease|sublicen[cs]e|share|incorporate|deploy)"
DONE = "(used|copied|modified|distributed|sold|published)"
LIMITS = (
    r"may be (freely )?(re)?distributed", r"distribut\w{0,9} .{0,60}only allowed",  # short grants
    # who may not, and what
    rf"\b(you|users?|licensees?) (may|must|shall) not (re)?{DEED}\b(?! this file except in compliance)",
    rf"\b(may|shall) not be (re)?{DONE}\b(?! (in advertis|to endorse))",
    rf"not (allowed|permitted|entitled) to (change|(re)?{DEED})\b", r"prohibited\b(?! by (applicable )?law)",
    r"not for (re)?sale", r"reverse.engineer", r"proprietary (and|source|information|software|rights)",
    r"without (the |my |our )?(express |explicit |prior )*(written )?(permission|consent)\b",
    # for what, and by whom
    r"non-?commercial", r"commercial (use|purposes?|gain|exploitation)", r"for profit", r"commons clause",
    r"academic(?! press)", rf"for {KIND} (use|purposes)", rf"{KIND} (and \w{{1,20}} )?(use|purposes) only",
    rf"(only|solely|exclusively) for {KIND}", r"for evaluation", r"evaluation (copy|version|licen[cs]e)",
    r"may (only be used|be used (only|solely|exclusively)) (for|in|by|on|with)\b",
    r"licen[cs]ed (only|solely|exclusively)", r"(only|solely|exclusively) for use",
    r"for use (only|solely|exclusively)", r"fields? of (use|endeavou?r)", r"military (use|purpose)",
    r"nuclear (facilit|power|plant|reactor|weapon)",
    r"licen[cs]e ?[:=]{1,2} ?(unlicensed|other|proprietary|commercial)", r"\bweapons? (of|systems?)",
    r"\b(not|no) evil", r"human rights", r"\bethical",
    # what is secret, and terms that are not free by their names
    r"(may|can) be reproduced", r"(do|must) not (re)?distribute\b", r"\bconfidential", r"trade secrets? of",
    r"unpublished", r"for internal use only", r"module_licen[cs]e ?\( ?proprietary",
    r"\bby-n[cd]\b", r"no ?derivatives",
    r"(business|server side public|elastic|polyform \w{1,20}) licen[cs]e|business source licen[cs]e",
    # the commonest such words of other languages
    r"alle rechte vorbehalten", r"verboten", r"untersagt", r"nur f\xfcr", r"tous droits r\xe9serv\xe9s",
    r"interdite?s?\b", r"todos los derechos reservados", r"prohibid[oa]", r"tutti i diritti riservati", r"vietat[oae]",
    "\u7981\u6b62", "\u7248\u6743\u6240\u6709", "\u975e\u5546", "\u7121\u65ad", "\u0437\u0430\u043f\u0440\u0435\u0449")
CLASSES = {  # in the order of a table; a file may be in several. Patterns of plain text, one of which is enough
    "SPDX line": ("spdx-license-identifier ?[:=]",),
    "GPL, any later version": ("general public licen[cs]e.{0,300}any later version",
                               "any later version.{0,300}general public licen[cs]e"),
    "GPL": ("gnu public licen[cs]e", "general public licen[cs]e", r"\bgpl\b", "copyleft"),
    "LGPL": ("library (general )?public licen[cs]e", "lesser (general )?public licen[cs]e"),
    "BSD": ("redistribution and use in source and binary forms",),
    ADVERTISED: ("advertising materials? mentioning",
                 "(display|include|contain|carry)s? the following ac?knowledge?ment"),
    "permission granted": ("permission (to|is) .{0,160}granted", "permission to use, copy"),
    "public domain": ("public domain",),
    OWN: LIMITS,
    RESERVED: ("all rights reserved",)}
COPYRIGHT = r"copyright|\(c\) ?(19|20)\d\d|\xa9 ?(19|20)\d\d"
LICENCE_TEXT, COPYRIGHT_ONLY, SILENT = "licence text", "copyright alone", "no words"
PATTERNS = {name: [re.compile(pattern) for pattern in patterns] for name, patterns in CLASSES.items()}
WORDS = re.compile("|".join((  # a paragraph with one of these is a notice
    COPYRIGHT, r"\blicen[cs]e", r"\bgpl\b", "copyleft", "public domain", "all rights reserved", "redistribut",
    "permission (to|is|notice|of)", "written permission", "warrant(y|ies)", "advertising material",
    "at no extra cost", "without fee", *CLASSES[ADVERTISED], *LIMITS)))
TEXT_FILE = re.compile(rf"(.*/)?({NAMED}|LICENSES/[^/]*)")  # is a notice as a whole


def plain(data):
    """The bytes of a file as a str in lower case, in which a phrase that a comment breaks over lines is one piece."""
    return re.sub(r"[\s*#|!;/\\\"]+", " ", decode(data).lower())


def classify(path, data):
    """The classes of what a file, bytes, says of copyright and licence: a list of the names above, never empty."""
    if TEXT_FILE.fullmatch(path):
        return [LICENCE_TEXT] if is_free(recognize(data)) else [LICENCE_TEXT, OWN]
    text = plain(data)
    if not WORDS.search(text):
        return [SILENT]
    own = re.search(CLASSES["SPDX line"][0], text) and not is_free(spdx(decode(data)))
    found = [name for name, patterns in PATTERNS.items()
             if own and name == OWN or any(pattern.search(text) for pattern in patterns)]
    if "GPL, any later version" in found:
        found = [name for name in found if name != "GPL"]
    if found != [RESERVED]:  # which says something only if nothing is granted
        found = [name for name in found if name != RESERVED]
    if not found and re.search(COPYRIGHT, text):
        return [COPYRIGHT_ONLY]
    return found or [SILENT]


def notice(path, data):
    """The paragraphs of a file, bytes, that speak of copyright or licence, as they stand; b"" if none does. A paragraph
    is a run of lines that hold more than comment marks. A licence text is kept whole."""
    if TEXT_FILE.fullmatch(path):
        return data
    if not WORDS.search(plain(data)):
        return b""
    kept, paragraph = [], []
    for line in [*data.split(b"\n"), b""]:
        if line.decode("latin-1").strip(MARKS + "\0"):
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
