"""What a machine may say of a licence: a name only where nothing else stands."""
import json
import re
import time
from pathlib import Path

import pytest
from conftest import ROOT

from memory import evidence, items, licences
from memory.licence_texts import NAME, SHORT

GRANT = (ROOT / "LICENSE").read_bytes()
BODY = GRANT.split(b"\n\n", 2)[2]


def sample(name):
    """A text that a pattern of a short licence knows."""
    words = SHORT[name].pattern.replace(NAME, "the author ")
    while "(" in words:
        words = re.sub(r"\([^()]*\)\?", "", words)
        words = re.sub(r"\(([^()|]*)(\|[^()]*)?\)(?!\?)", r"\1", words)
    return re.sub(r"\?", "", words).encode()


BSD = sample("BSD-2-Clause").replace(b"distribution this", b"distribution %b this")  # with a place for a third clause
ENDORSE = (b"3. Neither the name of the University nor the names of its contributors\n   may be used to endorse or "
           b"promote products derived from this software\n   without specific prior written permission.\n")
ADVERTISE = (b"3. All advertising materials mentioning features or use of this software\n   must display the following "
             b"acknowledgement:\n   This product includes software developed by the University.\n")
REGENTS = b"Copyright (c) 1990, 1993\n\tThe Regents of the University of California.  All rights reserved.\n\n"
NUCLEAR = b"You acknowledge that this software is not designed for use in any nuclear facility.\n"
DEBIAN = Path("/usr/share/common-licenses")
PREFACE = b"""NOTE! This copyright does *not* cover user programs that use kernel services by normal system calls - this
is merely considered normal use of the kernel, and does *not* fall under the heading of "derived work". Also note that
the GPL below is copyrighted by the Free Software Foundation, but the instance of code that it refers to (the linux
kernel) is copyrighted by me and others who actually wrote it.

    Linus Torvalds
"""


def spdx(name):
    return f"// SPDX-License-Identifier: {name}\n".encode()


@pytest.mark.parametrize("text, name", [
    (GRANT, "MIT"), (BODY, "MIT"), (GRANT.replace(b"\n", b"\r\n\t"), "MIT"), (GRANT.decode().encode("utf-16"), "MIT"),
    (GRANT.decode().encode("utf-16-le"), "MIT"), (b"\xef\xbb\xbf" + GRANT + bytes(9), "MIT"),
    (b"/*\n" + b"".join(b" * %b\n" % line for line in GRANT.split(b"\n")) + b" */", "MIT"),
    (GRANT.replace(b'"', "“".encode()), "MIT"), (GRANT.replace(b"(c)", b"\xa9"), "MIT"),
    (spdx("MIT") + b"// SPDX-FileCopyrightText: 2020 A B <a@b.org>\n" + GRANT, "MIT"),
    (b"Copyright 1990-2001 Bj\xf8rn X. <bjorn@x.org> (https://x.org) and other contributors\n" + GRANT, "MIT"),
    (BSD % b"", "BSD-2-Clause"), (REGENTS + BSD % ENDORSE, "BSD-3-Clause"),
    (spdx("GPL-2.0-or-later"), "GPL-2.0-or-later"), *((sample(name), name) for name in SHORT)])
def test_a_known_text_and_nothing_else(text, name):
    assert licences.recognize(text) == name and licences.is_free(name)


@pytest.mark.parametrize("text, like", [
    (b"You may not copy this.\n\nPart of it is by others:\n" + GRANT, "MIT"),
    (GRANT + b"\nYou may not sell it.", "MIT"), (spdx("MIT, but not for sale") + GRANT, "MIT"),
    (spdx("MIT \u4e0d\u5f97\u5546\u7528") + GRANT, "MIT"),
    (GRANT.replace(b"Software.\n\n", b"Software.\n\nThe Software shall be used for Good, not Evil.\n\n", 1), "MIT"),
    (GRANT.replace(b"sublicense,", b""), "MIT"), (GRANT + GRANT, "MIT"), (GRANT + BSD % b"", "MIT"),
    (GRANT + "\n不得用于商业用途\n".encode(), "MIT"), (GRANT + "Запрещено\n".encode("koi8-r"), "MIT"),
    (GRANT.replace(b"authors\n", b"authors. Not for resale.\n"), "MIT"),
    (GRANT.replace(b"authors\n", b"authors\nCopyright (c) 2020 A, but no one in B\n"), "MIT"),
    (GRANT.replace(b"authors\n", b"authors, free of charge at home\n"), "MIT"),
    (GRANT.replace(b"MIT License", b"Hippocratic License"), "MIT"), (spdx("CC-BY-NC-4.0") + GRANT, "MIT"),
    (b"The Software may be used under the Business Source License.\nChange License: GNU General Public License\n"
     b"version 2 or later", "GPL-2.0"),
    (BSD % ADVERTISE, "BSD"), (BSD % ENDORSE + NUCLEAR, "BSD"),
    (BSD % b"3. Ask the author for permission to sell.", "BSD"),
    (BSD.replace(b"the author as is", b"us only for use at home as is") % b"", "BSD"),
    (b"GNU GENERAL PUBLIC LICENSE\n Version 2, June 1991\n", "GPL-2.0"),
    (b"Apache License\n Version 2.0, January 2004\n\"Commons Clause\" License Condition", "Apache-2.0"),
    (b"Provided under:\n" + spdx("MIT") + b"with exceptions.", "MIT"), (b"All rights reserved.", None), (b"", None),
    *((sample(name) + b" only", "BSD" if "BSD-" in name else "ISC" if name == "0BSD" else name) for name in SHORT)])
def test_one_word_more_needs_a_person(text, like):
    name = licences.recognize(text)
    assert not licences.is_free(name) and licences.hub_fields(name)["license"] in ("other", "unknown")
    assert name == (f"{like}, with other words" if like else None) or name is None and like == "GPL-2.0"


@pytest.mark.skipif(not DEBIAN.is_dir(), reason="the texts are not here")
@pytest.mark.parametrize("file, name", [
    ("GPL-1", "GPL-1.0"), ("GPL-2", "GPL-2.0"), ("GPL-3", "GPL-3.0"), ("LGPL-2", "LGPL-2.0"), ("LGPL-2.1", "LGPL-2.1"),
    ("LGPL-3", "LGPL-3.0"), ("Apache-2.0", "Apache-2.0"), ("MPL-2.0", "MPL-2.0"), ("BSD", "BSD-3-Clause")])
def test_the_texts_that_debian_has(file, name):
    text = (DEBIAN / file).read_bytes()
    moved = re.sub(rb"51 Franklin Street, Fifth Floor, Boston, MA +02110-1301", b"675 Mass Ave, Cambridge, MA 02139",
                   text)
    for same in (text, moved, b"Copyright (C) 2020 A B\n" + text, text.replace(b"\n", b"\r\n")):
        assert licences.recognize(same) == name
    for more in (b"You must not use it for war.\n" + text, text + b"\nExcept by the army.",
                 text.rstrip().rpartition(b" ")[0], text[:len(text) // 2]):
        assert not licences.is_free(licences.recognize(more))
    assert licences.recognize(PREFACE + text) == ("GPL-2.0" if file == "GPL-2" else licences.recognize(b"x " + text))


@pytest.mark.parametrize("name, free, fields", [
    ("GPL-2.0", True, "gpl-2.0"), ("GPL-2.0 WITH Linux-syscall-note", True, "other"), ("MIT", True, "mit"),
    ("(GPL-2.0 OR MIT)", True, "other"), ("CC-BY-NC-4.0", False, "other"), ("MIT AND Proprietary", False, "other"),
    ("MIT-Nonsense", False, "other"), ("Apache-2.0 WITH Commons-Clause", False, "other"), (None, False, "unknown"),
    ("Apache-2.0 WITH No-War-exception", False, "other"), ("MIT, with other words", False, "other"),
    ("MIT (LICENSE), MIT OR (COPYING)", False, "other"), ("mit", False, "other"),
    ("BSD-3-Clause", True, "bsd-3-clause")])
def test_licences_by_name(name, free, fields):
    assert licences.is_free(name) == free and licences.hub_fields(name)["license"] == fields


MIT_LINE, GPL_LINE = spdx("MIT"), spdx("GPL-2.0-only")
ONE = {"t/LICENSE": GRANT}


@pytest.mark.parametrize("files, name, path", [
    ({"t/a.c": MIT_LINE, "t/b.c": b"int x;\n"}, "MIT", None), ({"t/a.c": b"int x;"}, None, None),
    (ONE, "MIT", "t/LICENSE"), ({"t/license.txt": GRANT, "t/a/LICENSE": b"Ask us."}, "MIT", "t/license.txt"),
    (ONE | {"t/COPYING": b"Copyright (c) 2001 A B\n" + BODY}, "MIT", "t/COPYING"),
    (ONE | {"t/COPYING": b"Ask us."}, "unknown words (COPYING), MIT (LICENSE)", "t/COPYING"),
    ({"t/LICENSE": b"Ask us.", "t/a.c": MIT_LINE}, "unknown words (LICENSE), MIT (SPDX lines)", "t/LICENSE"),
    ({"t/LICENSE": b"Ask us."}, None, "t/LICENSE"), (ONE | {"t/a.c": MIT_LINE}, "MIT", "t/LICENSE"),
    ({"t/LICENSE-MIT": GRANT, "t/LICENSE_BSD": BSD % b""}, "MIT (LICENSE-MIT), BSD-2-Clause (LICENSE_BSD)",
     "t/LICENSE-MIT"),
    (ONE | {"t/PATENTS": b"No patents are licensed."}, "MIT (LICENSE), unknown words (PATENTS)", "t/LICENSE"),
    (ONE | {"t/a.c": GPL_LINE}, "MIT (LICENSE), GPL-2.0-only (SPDX lines)", "t/LICENSE"),
    ({"t/COPYING": spdx("GPL-2.0"), "t/a.c": spdx("GPL-2.0-or-later")}, "GPL-2.0", "t/COPYING"),
    ({"t/a.c": MIT_LINE, "t/b.c": spdx("CC-BY-NC-4.0"), "t/c.c": MIT_LINE}, "MIT AND CC-BY-NC-4.0", None),
    ({"t/a.c": MIT_LINE + spdx("CC-BY-NC-4.0")}, "MIT AND CC-BY-NC-4.0", None),
    ({"t/a.c": spdx("MIT OR GPL-2.0"), "t/b.c": MIT_LINE, "t/c.c": MIT_LINE}, "MIT AND (MIT OR GPL-2.0)", None),
    ({"t/LICENSES/MIT.txt": GRANT, "t/a.c": MIT_LINE}, "MIT", "t/LICENSES/MIT.txt"),
    ({"t/LICENSES/MIT.txt": GRANT, "t/LICENSES/BSD-2-Clause.txt": BSD % b"", "t/a.c": spdx("BSD-2-Clause"),
      "t/b.c": spdx("BSD-2-Clause"), "t/c.c": MIT_LINE}, "BSD-2-Clause AND MIT", None),
    ({"t/LICENSES/MIT.txt": GRANT, "t/LICENSES/Own.txt": b"Ask us.", "t/a.c": MIT_LINE},
     "unknown words (LICENSES/Own.txt), MIT (SPDX lines)", "t/LICENSES/MIT.txt"),
    (ONE | {"t/REUSE.toml": b'[[annotations]]\npath = "data/**"\nSPDX-License-Identifier = ["MIT", "CC-BY-NC-4.0"]\n'},
     "MIT (LICENSE), MIT AND CC-BY-NC-4.0 (SPDX lines)", "t/LICENSE"),
    (ONE | {"t/data/REUSE.toml": b"SPDX-License-Identifier = 'LicenseRef-Own'"},
     "MIT (LICENSE), LicenseRef-Own (SPDX lines)", "t/LICENSE"),
    (ONE | {"t/.reuse/dep5": b"Files: *\nLicense: CC-BY-NC-4.0\n"}, "MIT (LICENSE), CC-BY-NC-4.0 (SPDX lines)",
     "t/LICENSE"),
    (ONE | {"t/package.json": json.dumps({"name": "x", "license": "UNLICENSED", "version": "1"}).encode()},
     "MIT (LICENSE), UNLICENSED (package.json)", "t/LICENSE"),
    (ONE | {"t/package.json": b'{"license": "SEE LICENSE IN LICENSE"}', "t/Cargo.toml": b'license = "MIT"\n',
            "t/pyproject.toml": b'license = {file = "LICENSE"}\n"License :: OSI Approved :: MIT License"\n'},
     "MIT", "t/LICENSE"),
    (ONE | {"t/setup.py": b'setup(classifiers=["License :: Other/Proprietary License"])'},
     "MIT (LICENSE), License :: Other/Proprietary License (setup.py)", "t/LICENSE"),
    (ONE | {"t/TERMS.md": b"Customers only."}, "MIT (LICENSE), unknown words (TERMS.md)", "t/LICENSE"),
    (ONE | {"t/license-addendum.txt": b"Customers only."}, "MIT (LICENSE), unknown words (license-addendum.txt)",
     "t/LICENSE"),
    (ONE | {"t/a.py": b"# SPDX-License-Identifier = CC-BY-NC-4.0"}, "MIT (LICENSE), CC-BY-NC-4.0 (SPDX lines)",
     "t/LICENSE"),
    ({"t/Cargo.toml": b'license = "MIT"'}, "MIT (Cargo.toml)", None)])
def test_the_licence_of_a_tree(files, name, path):
    assert licences.find_licence(files) == (name, path)
    heads = {path: data if licences.LICENCE_FILE.fullmatch(path) else data[:licences.SEEN]
             for path, data in files.items()}
    assert licences.find_licence(heads) == (name, path)
    assert licences.is_free(name) == bool(name and not re.search(r"NC|\((?!MIT OR)", name))


@pytest.mark.parametrize("licence, path, answer", [
    ("MIT", "t/LICENSE", "yes"), ("MIT, with other words", "t/LICENSE", "not checked"),
    (None, "t/LICENSE", "not checked"), ("MIT (LICENSE), unknown words (PATENTS)", "t/LICENSE", "not checked"),
    (None, None, "no")])
def test_what_is_not_certain_is_not_checked(licence, path, answer):
    found = evidence.Evidence(Path(), manifest={
        "licence": licence, "whole_tree": {"licence_path": path}, "files": [{"path": "t/a", "notice": ["BSD"]}]})
    assert items.free(found)[0] == answer


@pytest.mark.parametrize("text, classes", [
    ("int x;\n", ["no words"]), ("int permission(struct inode * inode)\n{ return granted; }\n", ["no words"]),
    ("/* Copyright (C) 1991 A. B. */\n", ["copyright alone"]), ("/* (C) 1991 A. B. */\n", ["copyright alone"]),
    ("/*\n * under the terms of the GNU General\n * Public License; either version 2, or any\n * later version.\n */",
     ["GPL, any later version"]),
    ("# may be used under the GNU Public\n# License\n", ["GPL"]),
    ("/* Redistribution and use in\n * source and binary forms", ["BSD"]),
    ("Permission to use, copy and distribute this is hereby granted", ["permission granted"]),
    ("! Copyright 1993 X. All rights\n! reserved.\n", ["all rights reserved"]),
    ("(c) 1990 Y. All rights reserved. May be freely distributed.", ["terms of its own"]),
    ("// SPDX-License-Identifier: MIT\n", ["SPDX line"]), ("put in the public domain by Z", ["public domain"]),
    ("// SPDX-License-Identifier: MIT\n// SPDX-License-Identifier: CC-BY-NC-4.0\n", ["SPDX line", "terms of its own"]),
    ("/* in the public\n * domain. */", ["public domain"]),
    ("All advertising\n# materials mentioning features of this", ["advertising clause"]),
    ("it must display the following\n * acknowledgement:", ["advertising clause"]),
    ("Licensed under the Apache License; you may not use this file except in compliance with the License.\nWITHOUT "
     "WARRANTIES, unless required by law", ["no terms"]),
    ("the name may not be used to endorse; prohibited by law", ["no words"]), ("you may not sleep here", ["no words"]),
    *((text, ["terms of its own"]) for text in (
        "/* may be\n * distributed */", "/* For non-commercial use only. */", "# the Commons\n# Clause applies",
        "You may not\n * copy this", "It shall not be sold.", "Not for\n# resale.", "Other uses prohibited.",
        "for evaluation purposes only", "for academic\n// use", "may be used\n * only in radios",
        "licensed solely to A", "in any nuclear\n; facility", "for Good, not\n * Evil", "do no evil",
        "violates human rights", "no military use",
        '{"license": "UNLICENSED"}', "'License :: Other/Proprietary License'", "without prior written permission of A",
        "for research and teaching purposes only", "No part may be reproduced.", "Do not distribute.",
        "ACME confidential", "for internal use only", 'MODULE_LICENSE("Proprietary");', "CC BY-NC 4.0", "BY-ND",
        "Business Source License 1.1", "Server Side Public License", "Elastic License 2.0", "Alle Rechte vorbehalten",
        "Weitergabe verboten", "Nur f\xfcr den Unterricht", "Tous droits r\xe9serv\xe9s", "usage interdit",
        "Uso comercial prohibido", "\u7981\u6b62\u5546\u7528", "\u7248\u6743\u6240\u6709"))])
def test_classes_of_notices(text, classes):
    found = licences.classify("t/x.c", text.encode())
    assert found == classes or classes == ["no terms"] and not set(found) & set(licences.UNJUDGED)
    assert licences.classify("t/x.c", text.replace("\n", "\r\n").encode("utf-16")) == found
    assert bool(licences.notice("t/x.c", text.encode())) == (classes != ["no words"])


@pytest.mark.parametrize("path, text, classes", [
    ("t/LICENSE", GRANT, ["licence text"]), ("t/a/COPYING.LIB", BSD % b"", ["licence text"]),
    ("t/a/LICENSE", b"Ask us.", ["licence text", "terms of its own"]),
    ("t/a/NOTICE.txt", GRANT + GRANT, ["licence text", "terms of its own"]), ("t/licenses.py", b"x = 1", ["no words"])])
def test_licence_texts_below_the_root_are_judged_too(path, text, classes):
    assert licences.classify(path, text) == classes
    assert licences.notice(path, text) == (text if "licence text" in classes else b"")


def test_notices_are_whole_paragraphs():
    text = (b"/*\n * Copyright 1990\n *  by A\n *\n * Works well.\n *\n * THIS IS PROVIDED WITHOUT WARRANTY\n * of "
            b"any kind\n */\n"
            b"int x; /* \xe9 */\n")
    assert licences.notice("t/x.c", text) == (
        b" * Copyright 1990\n *  by A\n\n * THIS IS PROVIDED WITHOUT WARRANTY\n * of any kind")
    assert licences.notice("t/COPYING.LIB", b"any\n\ntext\xff") == b"any\n\ntext\xff"


@pytest.mark.parametrize("piece", [
    b"distribut", b"copyright ", b"copyright (c) 1999 A\n", b"(c)", b"SPDX-License-Identifier: ", b"license = [",
    b"non", b"general public license ", b"you may not ", b"name of a ", b"a", b"\0", b" ", b"1999 ", b"'", b"* \n",
    b"\xff", b"permission is ", b"copyright 1999 ", b"neither the name of a b c "])
def test_time_is_linear_in_the_text(piece):
    """Of a text twice as long it takes about twice as long, not four times; in processor time, the best of two."""
    def seconds(size):
        text, best = piece * (size // len(piece)), []
        for _ in range(2):
            start = time.process_time()
            licences.find_licence({"t/LICENSE": text, "t/setup.py": text})
            licences.classify("t/x.c", text)
            best.append(time.process_time() - start)
        return min(best)
    assert seconds(200_000) < 16 * seconds(25_000) + 0.5
