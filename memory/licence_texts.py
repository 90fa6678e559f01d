"""Which licence a text is, if it is the whole of a known text and nothing else.

A text is compared by its words alone. Layout, comment marks and punctuation may differ; lines of copyright may stand
anywhere, and SPDX lines that agree. Every other word counts, in whatever script: it may take away what is granted.
"""
import hashlib
import re

# Plain words

TYPOGRAPHIC = "\x80-\xa0\xa7\xa9\xab\xad\xae\xb6\xb7\xbb\u2000-\u206f\u2122\ufeff"  # marks, not letters
WORD = re.compile(rf"[a-z0-9]+|[^\x00-\x7f{TYPOGRAPHIC}]+")
SAME = [(re.compile(rf"\b({pattern})(?!\w)"), words) for pattern, words in (  # in which printings of one text differ
    ("https", "http"), ("library general public license", "lesser general public license"), ("19yy|yyyy", "year"),
    ("appendix how to apply these terms", "how to apply these terms"),
    ("a brief idea of what it does", "an idea of what it does"),
    (r"copyright( c)?( \d{4})+ free software foundation inc( http (www )?fsf org)?"
     r"|copyright( c)? year name of (author|copyright owner)|675 mass ave(nue)? cambridge ma 02139 usa"
     r"|59 temple place suite 330 boston ma 02111 1307 usa"
     r"|51 franklin st(reet)? (fifth floor|suite 500) boston ma 02110 1301 usa", ""))]


def decode(data):
    """The text of a file, bytes, in UTF-16, UTF-8 or else Latin-1, without null characters."""
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        return data.decode("utf-16", "replace").replace("\0", "")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = data.decode("latin-1")
    return text.replace("\0", "")


def plain_words(text):
    """The words of a text, in lower case, with one space between, as the known texts are compared."""
    words = " ".join(WORD.findall(text.lower()))
    for pattern, same in SAME:
        words = pattern.sub(same, words)
    return " ".join(words.split())


# SPDX

SPDX = re.compile(r"SPDX-License-Identifier[ \t]*[:=][ \t]*([^\x00-\x20\x7f][^\x00-\x1f\x7f]*)")
EXCEPTIONS = (r"(Linux-syscall-note|Classpath-exception-2\.0|GCC-exception-(2\.0|3\.1)|LLVM-exception"  # they only add
              r"|Font-exception-2\.0|Bison-exception-2\.2|Autoconf-exception-[23]\.0|Libtool-exception)")  # permissions


def spdx(text):
    """The names in the SPDX lines of a text as one expression, or None."""
    return join(name.strip(" \t*/#;\"'<>-") for name in SPDX.findall(text))


def join(names):
    """SPDX expressions, each once, as one that asks for all of them; None if there are none."""
    names = list(dict.fromkeys(filter(None, names)))
    return " AND ".join(f"({name})" if " OR " in name and len(names) > 1 else name for name in names) or None


def base(name):
    """An SPDX name without what the licence's text does not decide, as in GPL-2.0-or-later, or what only adds to it."""
    return re.sub(rf"(-only|-or-later|\+)?( WITH {EXCEPTIONS})?$", "", name or "")


# Lines of copyright

MARKS = " \t\r\f*#|!;/\\\"'+-="  # what a comment may put around its lines
COPYRIGHT = re.compile(r"(SPDX-FileCopyrightText:|copyright\b|\(c\)|\xa9)(?=.*(\(c\)|\xa9|\d{4}|\byear\b|yyyy))", re.I)
RIGHTS = re.compile(r"all rights reserved\.?", re.I)
SMALL = set(  # what is in names beside words with a capital, numbers and addresses
    "al and author authors by c contributors copyright company community de der developer developers et foundation "
    "from fullname group his holder holders in its jr la maintainers name of other others owner present project "
    "respective team the van von year yyyy".split())
SPEAKS = (  # what is in no name: a line with one of these says more
    r"\b(not?|non\w*|never|none|nor|only|except|unless|if|but|for|to|with\w*|is|are|be|this|that|which|who|any|all|each"
    r"|you|your|we|our|under|see|us(e|es|ed|age|ing)|may|must|shall|will|can|cannot|permi\w+|prohibit\w*|forbid\w*"
    r"|restrict\w*|allow\w*|agree\w*|reserv\w+|grant\w*|commercial\w*|licen[cs]\w+|patents?|terms?|conditions?|fees?"
    r"|royalt\w+|pay\w*|proprietary|confidential|secret|evaluat\w+|trial|academic|military|weapons?|nuclear|harm|evil"
    r"|sale|sell\w*|resale|resell\w*|cop(y|ies|ying)|distribut\w+|redistribut\w+)\b")


def is_copyright(line):
    """Whether a line, without comment marks, says whose copyright it is, and nothing else."""
    found = COPYRIGHT.match(line)
    return bool(RIGHTS.fullmatch(line) or found and is_name(RIGHTS.sub("", line[found.end(1):])))


def is_name(text):
    """Whether a text can be names, years and addresses alone."""
    def part(word):
        return (any(c.isupper() for c in word) or not any(c.isalpha() for c in word)
                or "@" in word or "://" in word or re.sub(r"\W", "", word) in SMALL)
    return not re.search(SPEAKS, text.lower()) and all(map(part, text.split()))


# The known texts

NAME = rf"(?:(?!{SPEAKS})[^ ]+ ){{1,12}}?"
ITEM = "([1-4a-d] |o )?"  # the mark of a clause
ISC = ("permission to use copy modify and (or )?distribute this software for any purpose with or without fee is hereby "
       "granted")
MIT = "permission is hereby granted free of charge to any person obtaining a copy of this software and associated"
BSD = "redistribution and use in source and binary forms with or without modification are permitted provided that"
ZLIB = "this software is provided as is without any express or implied warranty in no event"
UNLICENSE = "this is free and unencumbered software released into the public domain"
MIT_AS_IS = (
    "the software is provided as is without warranty of any kind express or implied including but not limited to the "
    "warranties of merchantability fitness for a particular purpose and non ?infringement in no event shall "
    f"{NAME}be liable for any claim damages or other liability whether in an action of contract tort or otherwise "
    "arising from out of or in connection with the software or the use or other dealings in the software")
ISC_AS_IS = (
    f"the software is provided as is and {NAME}disclaims? all warranties with regard to this software including all "
    f"implied warranties of merchantability and fitness in no event shall {NAME}be liable for any special direct "
    "indirect or consequential damages or any damages whatsoever resulting from loss of use data or profits whether in "
    "an action of contract negligence or other tortious action arising out of or in connection with the use or "
    "performance of this software")
BSD_2 = (
    f"{BSD} the following conditions are met {ITEM}redistributions of source code must retain the above copyright "
    f"notice this list of conditions and the following disclaimer {ITEM}redistributions in binary form must reproduce "
    "the above copyright notice this list of conditions and the following disclaimer in the documentation and or other "
    "materials provided with the distribution ")
BSD_3 = (
    f"{ITEM}(neither the name of {NAME}nor the names of ((its|any) )?{NAME}may|the names? of {NAME}may not) be used to "
    "endorse or promote products derived from this software without specific prior written permission ")
BSD_AS_IS = (
    f"this software is provided by {NAME}as is and any express or implied warranties including but not limited to the "
    "implied warranties of merchantability and fitness for a particular purpose are disclaimed in no event shall "
    f"{NAME}be liable for any direct indirect incidental special exemplary or consequential damages including but not "
    "limited to procurement of substitute goods or services loss of use data or profits or business interruption "
    "however caused and on any theory of liability whether in contract strict liability or tort including negligence "
    "or otherwise arising in any way out of the use of this software even if advised of the possibility of such damage")
SHORT = {name: re.compile(f"((the )?({title}) )?{text}") for name, title, text in (
    ("MIT", "mit license( mit)?|expat license",
     f"{MIT} documentation files the software to deal in the software without restriction including without "
     "limitation the rights to use copy modify merge publish distribute sublicense and or sell copies of the software "
     "and to permit persons to whom the software is furnished to do so subject to the following conditions the above "
     "copyright notice and this permission notice( including the next paragraph)? shall be included in all copies or "
     f"substantial portions of the software {MIT_AS_IS}"),
    ("BSD-2-Clause", "(new |simplified )?bsd( 2 clause)?( simplified)? licen[cs]e", BSD_2 + BSD_AS_IS),
    ("BSD-3-Clause", "(new |revised )?bsd( 3 clause)?( new or revised)? licen[cs]e", BSD_2 + BSD_3 + BSD_AS_IS),
    ("ISC", "isc license( isc)?",
     f"{ISC} provided that the above copyright notice and this permission notice appear in all copies {ISC_AS_IS}"),
    ("0BSD", "(bsd zero clause|zero clause bsd) license( 0bsd)?|0bsd", f"{ISC} {ISC_AS_IS}"),
    ("Zlib", "zlib license",
     f"{ZLIB} will the authors? be held liable for any damages arising from the use of this software permission is "
     "granted to anyone to use this software for any purpose including commercial applications and to alter it and "
     f"redistribute it freely subject to the following restrictions {ITEM}the origin of this software must not be "
     "misrepresented you must not claim that you wrote the original software if you use this software in a product an "
     f"acknowledge?ment in the product documentation would be appreciated but is not required {ITEM}altered source "
     "versions must be plainly marked as such and must not be misrepresented as being the original software "
     f"{ITEM}this notice may not be removed or altered from any source distribution"),
    ("Unlicense", "unlicense",
     f"{UNLICENSE} anyone is free to copy modify publish use compile sell or distribute this software either in source "
     "code form or as a compiled binary for any purpose commercial or non commercial and by any means in jurisdictions "
     "that recognize copyright laws the author or authors of this software dedicate any and all copyright interest in "
     "the software to the public domain we make this dedication for the benefit of the public at large and to the "
     "detriment of our heirs and successors we intend this dedication to be an overt act of relinquishment in "
     "perpetuity of all present and future rights to this software under copyright law "
     f"{MIT_AS_IS}( for more information please refer to http unlicense org)?"))}

# {SHA-256 (hex) of plain_words of a text, without its lines of copyright: name}. Each text is here as SPDX, Debian, the
# FSF or Apache print it, and once more without what follows "END OF TERMS AND CONDITIONS". The last is COPYING of Linux
# 1.0, whose preface only adds a permission: SPDX's Linux-syscall-note.
LONG = {
    "a9c71a6b42c22cb213da9292f35271a7227adcc5b45d0279f15ec4b6210a5379": "GPL-1.0",
    "9679cb8f8a7c25e849b925136d793d1bec010b8b9270e6ba898e2cefcb3e1f6d": "GPL-1.0",
    "5d1532d7a3c49b832ba87ffefad0fa9919987ff51c8cae76bb024a914b966df3": "GPL-2.0",
    "184a2335deb42be227f71e5c7b70fa8e6b78c0b7d1b520cf7403fea9a83c833b": "GPL-2.0",
    "4d729bdddc70d9a669190716ea9ecd650abd42a5478aa9419f0065814055c0fd": "GPL-2.0",
    "34cacbc5d4c8288f220e8dfade5276e6f76704f67150b4388c9ed3e3ff88cd90": "GPL-2.0",
    "0a039a842a964db13b35df4c92e6a115b72b5d030bd3885e0763fd1e7ba1f8e4": "GPL-3.0",
    "ac6b52d57c0104e687039148f7b8e370e04c9bb5705bb786f8ef814eb65e8636": "GPL-3.0",
    "a0d19641eaa176647d711aed45f8f7ca3ecaea730704dd86b6644aea100ad739": "GPL-3.0",
    "7b958c48a14c07076faa0e7c8e9157ef79aef7d303aa0bebc7c6d3617c10664f": "LGPL-2.0",
    "12f515c1d9fb9057dcbf17f4f2b0d4351615282723beb7876f862bb6607c5929": "LGPL-2.0",
    "5483cd3e72201dcd7a890ea41f50cbfb9ef6140ae0efd4b7c569c9c3ffcbb98b": "LGPL-2.1",
    "a6742add8db4ff9ba6917da0bd1f95927436acfd65ae81933f1e9a859d38d9fa": "LGPL-2.1",
    "ebbd37911c208fcd77c98f737e2785b4948567141a7e9bee3cc24121d800f8c8": "LGPL-3.0",
    "a8d2bd3591af677d5379a6d359d7e0ca15fc0483e763a8f964752d73812ae25d": "LGPL-3.0",
    "aae2b222477171fb64e298e7965e768a9a6f85320646b266c94399ac029d42be": "LGPL-3.0",
    "882fb998eee4a1b7c8d2eeb7e8c3b5ff325a2a7bb3c9c6e6a24121a1a38b0881": "AGPL-3.0",
    "9e9fd46d44e1f77e094c532f0ad3d8f3125624511b7123b17ffa9aab7dbc53b0": "AGPL-3.0",
    "e87dea5078ce2faaea46d3475af18d30a5c0ac0f09425b60b3e0c6569f72f8d2": "Apache-2.0",
    "f45538b138cf9aea39fa205de037a0bede8305e68281650e7ab809a8b3ebb2f0": "Apache-2.0",
    "37599287c15c2f2ec060c3c3b55bdf69e3bc7a8aeeb9cd57e18800088789538a": "Apache-2.0",
    "f82071285728ca3ec7685ee9bc4acdae0b8267142a4d20b8f1805eabedb4a98a": "MPL-2.0",
    "8218cbdd0dbaf04d1385e047bce87fb9d4575505aed32af9eb729feab8645a32": "GPL-2.0"}

# What a text resembles that is none of these: the first words of each
LIKE = {
    "MIT": MIT, "BSD": "redistribution and use in source and binary forms", "ISC": "permission to use copy modify and",
    "Zlib": ZLIB, "Unlicense": UNLICENSE, "Apache-2.0": "apache license version 2 0",
    "MPL-2.0": "mozilla public license version 2 0", "GPL-1.0": "gnu general public license version 1",
    "GPL-2.0": "gnu general public license version 2", "GPL-3.0": "gnu general public license version 3",
    "LGPL-2.1": "gnu lesser general public license version 2 1",
    "LGPL-2.0": "gnu lesser general public license version 2",
    "LGPL-3.0": "gnu lesser general public license version 3",
    "AGPL-3.0": "gnu affero general public license version 3"}


def known_words(text):
    """The plain words of a text without its lines of copyright and SPDX."""
    kept, begun = [], False
    for line in text.splitlines():
        bare = line.strip(MARKS)
        whose = is_copyright(bare) or begun and is_name(RIGHTS.sub("", bare))
        begun = whose and re.search(r"(\d|,|\bby|\band)$", bare)  # the name is in the next line
        if not whose and not SPDX.match(bare):
            kept.append(line)
    return plain_words("\n".join(kept))


def fingerprint(words):
    return hashlib.sha256(words.encode()).hexdigest()


def recognize(data):
    """The SPDX name of the licence whose text the bytes hold, or which their SPDX lines name, if nothing else stands
    there; "NAME, with other words" for what resembles it; None for what is not known."""
    text = decode(data)
    words, said = known_words(text), spdx(text)
    name = LONG.get(fingerprint(words)) or next((name for name, known in SHORT.items() if known.fullmatch(words)), None)
    if said and (not words or base(said) == name):
        return said
    if name and not said:
        return name
    at = {like: f"{words} ".find(f"{start} ") for like, start in LIKE.items()}
    like = min((like for like in at if at[like] >= 0), key=at.get, default=said)
    return f"{like}, with other words" if like else None
