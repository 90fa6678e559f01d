"""An archive is read whole, or refused in one line: damage, odd but sound forms, bombs, and what git says of the tree.
The real tar, zip and git are the judges."""
import bz2
import gzip
import io
import lzma
import os
import random
import shutil
import struct
import subprocess
import tarfile
import tracemalloc
import zipfile
import zlib

import pytest
from conftest import says_no
from hypothesis import given
from hypothesis import strategies as st
from test_fuzz import clean, damage
from test_prepare import linked, tarball

from memory import source
from memory.files import read_json
from memory.output import UserError
from memory.settings import parse
from memory.swhid import git_hash, tree_swhid
from memory.urls import public_address, recorded, shown
from memory.windows import quote
import extract
import prepare

FILES = {b"t/a.c": b"int a;\n" * 40, b"t/b/c.h": b"#define C\n" * 70, b"t/empty": b"",
         b"t/b/d.bin": bytes(range(256)) * 3, b"t/long/" + b"n" * 120: b"a path that ustar has no room for\n",
          b"t/z.c": b"int z;\n" * 90}


def read(data, limit=10**6):
    """The Tree of an archive's bytes."""
    return source.read_archive(io.BytesIO(data), limit, "x")


def refused(data, *said, limit=10**6):
    """Asserts that an archive's bytes are refused in one line with these words."""
    with pytest.raises(UserError) as caught:
        read(data, limit)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300
    for words in said:
        assert words in str(caught.value)


def write(folder, files):
    for path, content in files.items():
        target = os.path.join(os.fsencode(folder), path)
        os.makedirs(os.path.dirname(target), exist_ok=True)
        with open(target, "wb") as file:
            file.write(content)


def run(*words, cwd):
    done = subprocess.run(words, cwd=cwd, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


@pytest.fixture(scope="module")
def archives(tmp_path_factory):
    """{ending: bytes} of FILES, as real programs write them."""
    folder = tmp_path_factory.mktemp("archives")
    write(folder, FILES)
    same = ["--sort=name", "--mtime=@1", "--owner=0", "--group=0", "--numeric-owner", "--mode=a=rX,u+w", "--pax-option="
            "exthdr.name=pax,delete=atime,delete=ctime", "--format=pax"]  # the same bytes each time
    for flag, ending, options in [("", "tar", same[:-2]), ("", "pax", same), ("z", "tar.gz", same[:-2]),
                                  ("j", "tar.bz2", same[:-2]), ("J", "tar.xz", same[:-2])]:
        run("tar", *options, f"-c{flag}f", f"x.{ending}", "t", cwd=folder)
    with zipfile.ZipFile(folder / "x.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for path in FILES:
            archive.writestr(zipfile.ZipInfo(os.fsdecode(path)), FILES[path], zipfile.ZIP_DEFLATED)
    return {path.name[2:]: path.read_bytes() for path in folder.glob("x.*")}


ENDINGS = ["tar", "pax", "tar.gz", "tar.bz2", "tar.xz", "zip"]


def by_tar(data, folder):
    """{path: bytes} of what tar unpacks, or None if it refuses."""
    folder.mkdir()
    if subprocess.run(["tar", "-xf", "-", "--force-local"], input=data, cwd=folder, capture_output=True).returncode:
        return None
    return source.read_folder(folder, 10**7).files


@pytest.mark.parametrize("ending", ENDINGS)
def test_damage(archives, ending, tmp_path):
    """Bit flips and cuts, drawn by a fixed seed: refused, or nothing is lost; of a plain tar, whose contents have no
    sums, what tar itself unpacks. What is left out is said."""
    pristine, draw, same = archives[ending], random.Random(ending), 0
    assert read(pristine).files == FILES
    for i in range(60):
        data = bytearray(pristine)
        if i % 4:
            data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        else:
            del data[draw.randrange(len(data)):]
        try:
            tree = read(data)
        except UserError as error:
            assert "\n" not in str(error) and len(str(error)) < 300
            continue
        if tree.files == FILES:
            same += 1
        elif ending in ("tar", "pax"):
            assert tree.files == by_tar(data, tmp_path / str(i)), i
        else:
            assert ending == "zip" and len(tree.files) + sum(tree.left_out.values()) == len(FILES), i
    assert same < 40, "not all of the damage is beside the point"


@pytest.mark.parametrize("ending", ENDINGS)
def test_damage_of_any_kind(archives, ending):
    @given(st.binary(max_size=300) | damage(archives[ending]))
    def damaged(data):
        clean(lambda: read(data))
    damaged()


def test_every_bit_of_a_tar_gz_is_checked(archives):
    """What is accepted unpacks to the same bytes, and gzip accepts it too; the sum and the length have no such bits."""
    data, accepted = archives["tar.gz"], 0
    for at in [*range(4, len(data) - 8, 3), *range(len(data) - 8, len(data))]:
        flipped = data[:at] + bytes([data[at] ^ 1 << at % 8]) + data[at + 1:]
        try:
            assert read(flipped).files == FILES and gzip.decompress(flipped) == gzip.decompress(data)
            accepted += 1
            assert at < len(data) - 8
        except UserError:
            pass
    assert 0 < accepted < len(data) / 30


SIX = [(f"t/{i}", b"%d\n" % i * 200) for i in range(6)]  # 512 bytes of header and 512 of content each
PLAIN = tarball(SIX, "w")


def pax_member(records, content=b"x" * 600):
    """bytes of a member "t/p" with a pax header of these bytes."""
    header, member = tarfile.TarInfo("pax"), tarfile.TarInfo("t/p")
    header.type, header.size, member.size = tarfile.XHDTYPE, len(records), len(content)
    pad = lambda data: data + bytes(-len(data) % 512)  # noqa: E731
    return header.tobuf() + pad(records) + member.tobuf() + pad(content)


END = bytes(1024)


@pytest.mark.parametrize("data, said", [
    (PLAIN[:2048] + b"?" + PLAIN[2049:], "bad checksum"), (PLAIN[:2048 + 148] + b"zz" + PLAIN[2048 + 150:], "2,048"),
    (PLAIN[:2048], "empty header"), (PLAIN[:2048 + 100], "truncated header"), (PLAIN[:2048 + 512], "end of data"),
    (PLAIN[:6144], "empty header"), (PLAIN + PLAIN, "second archive"), (PLAIN[:6144 + 512] + PLAIN, "second archive"),
    (PLAIN + b"x", "second archive"), (PLAIN[:2048] + bytes(512) + PLAIN[2048 + 512:], "second archive"),
    (pax_member(b"11 size=zz\n") + END, "size"), (pax_member(b"11 size=-1\n") + END, "size"),
    (pax_member(b"99 path=t/q\n") + END, "pax"), (pax_member(b"12 path=t/q\n!") + END, "pax"),
    (pax_member(b"path=t/q\n") + END, "pax"), (pax_member(b"12 path=t/q\n"), "empty header"),
    (pax_member(b"12 path=t/q\n")[:1024] + END, "end of file"),
    (b"", "empty"), (b"\n" * 3000, "begins like neither")])
def test_a_tar_that_ends_early_or_late(data, said):
    refused(data, said)
    refused(gzip.compress(data), said if data and data[0] != 10 else "no member")


def test_sound_ends():
    for end in (bytes(512), END, bytes(20480)):
        assert read(PLAIN[:6144] + end).files == {name.encode(): content for name, content in SIX}
    assert read(pax_member(b"12 path=t/q\n\0\0") + END).files == {b"t/q": b"x" * 600}
    assert read(END).files == {}


PACKERS = {"gzip": gzip.compress, "bzip2": bz2.compress, "xz": lzma.compress}


@pytest.mark.parametrize("name", PACKERS)
def test_streams_one_after_another(name):
    """As gzip, bzip2 and xz read them: all, with zeros between them; and nothing else."""
    pack, files = PACKERS[name], {name.encode(): content for name, content in SIX}
    parts = [pack(PLAIN[at:at + 1024]) for at in range(0, len(PLAIN), 1024)]
    for data in (b"".join(parts), (bytes(8)).join(parts), b"".join(parts) + bytes(4), pack(b"") + b"".join(parts)):
        assert read(data).files == files
    large = tarball([("t/large", bytes(3 * 2**20 + 5))], "w")
    assert len(read(pack(large), 2**23).files[b"t/large"]) == 3 * 2**20 + 5
    for data in (b"".join(parts) + b"garbage", b"".join(parts[:6]), b"".join(parts)[:-1], parts[0] + b"xx" + parts[1],
                 b"".join(parts[:3]), pack(PLAIN) + pack(PLAIN)):
        refused(data)


def test_a_gzip_header_with_all_its_fields(archives):
    """As Docker, Helm and bgzip write them."""
    packed = gzip.compress(archives["tar"])[10:]
    head = b"\x1f\x8b\x08" + bytes([2 + 4 + 8 + 16]) + bytes(4) + b"\0\3"
    head += struct.pack("<H", 9) + b"HM\5\0helm!" + b"name\0" + b"a comment\0"
    assert read(head + struct.pack("<H", zlib.crc32(head) & 0xFFFF) + packed).files == FILES


@pytest.fixture(scope="module")
def odd(tmp_path_factory):
    """A folder t with all that tar can hold."""
    folder = tmp_path_factory.mktemp("odd")
    write(folder / "t", {b"a.c": b"int a;\n", b"run": b"#!\n", b"d/e/f": b"f\n", b"n\xe9\xff": b"not UTF-8\n",
                         b"x" * 99 + b"/" + b"y" * 60: b"long\n"})
    os.chmod(folder / "t/run", 0o744)
    os.truncate(folder / "t/a.c", 300_000)  # with a hole
    with open(folder / "t/a.c", "ab") as file:
        file.write(b"end\n")
    os.link(folder / "t/run", folder / "t/hard")
    os.mkfifo(folder / "t/pipe")
    for name, target in [("to file", "a.c"), ("to folder", "d/e"), ("nowhere", "x/y"), ("root", "/etc/passwd"),
                         ("d/e/up", "../../.."), (b"l\xff", b"t\xfe"), ("long", "z" * 150)]:
        os.symlink(os.fsencode(target), os.fsencode(folder / "t") + b"/" + os.fsencode(name))
    return folder


@pytest.mark.parametrize("form, option", [("ustar", ""), *(
    (form, option) for form in ("gnu", "oldgnu", "pax")
    for option in ("", "-S", "--listed-incremental=snapshot", "--label=a label"))])
def test_what_gnu_tar_writes(odd, form, option):
    """Folders of an incremental archive, with times where ustar has a prefix, and labels are no members; holes are
    zeros; links and hard links are what they are in the folder."""
    (odd / "snapshot").unlink(missing_ok=True)
    done = subprocess.run(["tar", f"--format={form}", *filter(None, [option]), "-cf", "t.tar", "t"], cwd=odd,
                          capture_output=True)
    assert done.returncode == 0 or form == "ustar" and b"link name is too long" in done.stderr
    data = (odd / "t.tar").read_bytes()
    if form == "gnu":  # its own kinds are there
        assert data[156:157] == {"-": b"5", "": b"5", "--listed": b"D", "--label=": b"V"}[option[:8].rstrip("S")]
    folder, tar = source.read_folder(odd / "t", 10**6), read(data)
    if form == "ustar":  # which has no room for the target of "long", and cuts it
        del folder.links[b"long"], tar.links[b"t/long"]

    def strip(paths):
        return {path.removeprefix(b"t/") for path in paths}

    assert {path.removeprefix(b"t/"): content for path, content in tar.files.items()} == folder.files
    assert strip(tar.executable) == folder.executable == {b"run", b"hard"}
    assert strip(tar.links) == set(folder.links) and set(tar.links.values()) == set(folder.links.values())
    assert tar.left_out == folder.left_out == {"link": 7, "pipe": 1}


def test_volumes(tmp_path):
    """Neither the first nor the last of several is a whole archive."""
    write(tmp_path, {b"t/large": os.urandom(30_000), b"t/small": b"x"})
    run("tar", "-cM", "-L", "20", "-f", "1.tar", "-f", "2.tar", "t", cwd=tmp_path)
    refused((tmp_path / "1.tar").read_bytes(), "end of data")
    refused((tmp_path / "2.tar").read_bytes(), "later volume")


@pytest.mark.parametrize("form", [
    "--format=gnu", "--sparse-version=0.0", "--sparse-version=0.1", "--sparse-version=1.0"])
def test_damaged_holes(form, tmp_path):
    """Also where the sums of the headers fit: no error but those for people."""
    (tmp_path / "t").mkdir()
    with open(tmp_path / "t/holes", "wb") as file:
        for at in range(12):
            file.seek(at * 10_000)
            file.write(b"data")
    run("tar", "-S", *([form] if "gnu" in form else ["--format=pax", form]), "-cf", "t.tar", "t", cwd=tmp_path)
    whole, draw = (tmp_path / "t.tar").read_bytes(), random.Random(form)
    assert len(read(whole).files[b"t/holes"]) == 110_004
    for _ in range(150):
        data = bytearray(whole[:draw.choice((len(whole), draw.randrange(512, 3000)))])
        at = draw.randrange(min(len(data), 3000))
        data[at:at + 1] = draw.randbytes(1)
        for start in range(0, len(data) - 511, 512):
            if data[start + 257:start + 262] == b"ustar":
                data[start + 148:start + 156] = b" " * 8
                data[start + 148:start + 156] = b"%06o\0 " % sum(data[start:start + 512])
        clean(lambda: read(bytes(data)))


def test_two_members_with_one_path(capsys):
    """The later one counts, with its mode and kind; one path that is a folder and a file is refused."""
    script, later = tarfile.TarInfo("t/a"), tarfile.TarInfo("t/./a")
    script.mode, later.mode = 0o755, 0o644
    folder = tarfile.TarInfo("t/b")
    folder.type = tarfile.DIRTYPE
    link = linked("t/l", "a", tarfile.SYMTYPE)
    tree = read(tarball([script, later, ("t/b", b"1"), folder, ("t/b/c", b"2"), link, ("t/l", b"3"), ("t/m", b"4"),
                         linked("t/m", "l", tarfile.SYMTYPE), linked("t/m", "a", tarfile.SYMTYPE)]))
    assert tree.files == {b"t/a": b"", b"t/b/c": b"2", b"t/l": b"3"} and not tree.executable
    assert tree.links == {b"t/m": b"a"} and tree.left_out == {"link": 1}
    assert read(tarball([("t/a", b"1"), ("t/a", b"22")])).files == {b"t/a": b"22"}
    refused(tarball([("t/a", b"1"), ("t/a/b", b"2")]), "t/a both")
    refused(tarball([("t/a/b", b"2"), ("t/a", b"1")]), "t/a both")
    refused(tarball([link, ("t/l/b", b"2")]), "t/l both")


def zipped(members, **options):
    """bytes of a zip of (name or ZipInfo, content) pairs."""
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", options.pop("compression", zipfile.ZIP_DEFLATED)) as archive:
        for name, content in members:
            with archive.open(name, "w", **options) as file:
                file.write(content)
    return data.getvalue()


def windows(name):
    info = zipfile.ZipInfo(name)
    info.create_system = 0
    return info


def test_a_zip_with_backslashes(capsys):
    """As PowerShell writes it; on Unix a backslash is a character like any other."""
    tree = read(zipped([(windows("t\\d\\"), b""), (windows("t\\d\\a.c"), b"a"), (windows("t\\b"), b"b"),
                        (windows("..\\evil"), b"x"), (windows("C:\\evil"), b"x"), ("t/c\\d", b"c")]))
    assert tree.files == {b"t/d/a.c": b"a", b"t/b": b"b", b"t/c\\d": b"c"} and tree.left_out == {"unsafe path": 2}
    assert "x: 5 paths with backslashes" in capsys.readouterr().err


ZIP = zipped(list((os.fsdecode(path), content) for path, content in FILES.items()))


def test_odd_zips(capsys):
    assert read(zipped([("t/a", b"a" * 99)], force_zip64=True)).files == {b"t/a": b"a" * 99}
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        assert read(zipped([("t/a", b"a" * 99)], compression=method)).files == {b"t/a": b"a" * 99}
    assert read(b"#!/bin/sh\nunzip $0\n" + ZIP).files == FILES
    assert "x: 19 bytes before the zip" in capsys.readouterr().err
    refused(zipped([("t/lost", b"1")]) + ZIP, "its directory does not speak of")
    refused(ZIP + b"x", "follows its end")
    refused(ZIP + PLAIN, "follows its end")
    stored = zipped([("t/a", b"content")], compression=zipfile.ZIP_STORED)
    refused(stored.replace(b"content", b"contend"), "CRC")
    at = stored.rindex(b"PK\1\2")
    refused(stored[:at + 10] + b"\x63\0" + stored[at + 12:], "compression", "unpack it with another program")
    refused(stored[:at + 8] + b"\1\0" + stored[at + 10:], "t/a is encrypted only")
    assert read(ZIP + bytes(10240 - len(ZIP) % 10240)).files == FILES, "bsdtar pads what it writes to a pipe"
    with pytest.warns(UserWarning, match="Duplicate"):
        assert read(zipped([("t/a", b"1"), ("t/a", b"22")])).files == {b"t/a": b"22"}
    ends = ZIP.rindex(b"PK\5\6")
    refused(ZIP[:ends + 10] + b"\5" + ZIP[ends + 11:], "6 members of 5")


@pytest.mark.parametrize("name, mode", [("t/a", 0o040755), ("t/a/", 0o100644), ("t/a", 0o010644), ("t/a", 0o140644)])
def test_a_zip_loses_no_content_to_a_kind(name, mode):
    """What is no file by its mode or name, and has content, is a file to unzip."""
    info = zipfile.ZipInfo(name)
    info.external_attr = mode << 16
    refused(zipped([("t/b", b"b"), (info, b"content")]), "with content")
    assert read(zipped([("t/b", b"b"), (info, b"")])).files == {b"t/b": b"b"}


def test_a_tar_that_takes_much_memory_is_told_from_a_damaged_one():
    large = lzma.compress(PLAIN, filters=[{"id": lzma.FILTER_LZMA2, "dict_size": 2**29}])
    refused(large, "Memory usage limit", "unpack it with another program")
    refused(zipped([("t/ä", b"x")]).replace("ä".encode(), b"\xe4\xe4"), "utf-8", "unpack it with another program")


def peak(work):
    """The most memory in bytes that Python took meanwhile."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("name", PACKERS)
@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.REGTYPE, b"V"])
def test_bombs_are_held_to_max_bytes(name, kind):
    """Whatever part of a tar they are in: memory stays small."""
    header = tarfile.TarInfo("t/bomb")
    header.type, header.size = kind, 40_000_000
    pack = PACKERS[name]
    data = pack(header.tobuf() + bytes(10_000_000)) + pack(bytes(10_000_000)) * 3
    if pack is gzip.compress:
        data = pack(header.tobuf() + bytes(40_000_000))
    assert len(data) < 10**5
    assert peak(lambda: refused(data, "--max_bytes" if kind in (tarfile.REGTYPE, b"V") else "header")) < 20_000_000


def test_many_headers_are_held_to_max_bytes():
    header = tarfile.TarInfo("pax")
    header.type = tarfile.XHDTYPE
    chain = gzip.compress(header.tobuf() * 2000 + END)
    many = gzip.compress(b"".join(tarfile.TarInfo(f"t/{i}").tobuf() for i in range(8000)) + END)
    assert peak(lambda: refused(many, "--max_bytes")) < 20_000_000
    assert len(read(many, 2 * 10**6).files) == 8000
    refused(chain)


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_zip_that_lies_of_a_size(method):
    data = bytearray(zipped([("t/bomb", bytes(30_000_000))], compression=method))
    for head, at in ((b"PK\3\4", 22), (b"PK\1\2", 24)):
        struct.pack_into("<I", data, data.index(head) + at, 10)
    assert len(data) < 10**5
    assert peak(lambda: refused(data)) < 10_000_000 or method == zipfile.ZIP_BZIP2  # a block of which can be large
    refused(zipped([("t/bomb", bytes(30_000_000))], compression=method), "--max_bytes")


BESIDE = {b".git/config": b"[user]", b"sub/.git": b"gitdir: /home/me/x\n", b"sub/deep/.git/HEAD": b"ref",
          b"__MACOSX/sub/._a.c": b"\0\5\x16\7/home/me", b"sub/._a.c": b"no magic, but beside a.c",
          b"._gone": b"\0\5\x16\7\0\2"}
KEPT = {b"a.c": b"int a;\n" * 9, b"sub/a.c": b"int b;\n", b".gitignore": b"x\n", b"._x": b"a name like any\n",
        b"sub/x.git": b"y\n"}


def test_what_is_not_of_the_tree(tmp_path, capsys):
    """What git and macOS put beside it is left out and said, with the same numbers for a folder and its archives."""
    write(tmp_path / "t", KEPT | BESIDE)
    run("tar", "-cf", "t.tar", "t", cwd=tmp_path)
    archive = zipped([(f"t/{os.fsdecode(path)}", content) for path, content in (BESIDE | KEPT).items()])
    for tree in (source.read_folder(tmp_path / "t", 10**6), read((tmp_path / "t.tar").read_bytes()), read(archive)):
        assert tree.left_out == {".git": 3, "__MACOSX": 3}
        assert {path.removeprefix(b"t/"): content for path, content in tree.files.items()} == KEPT
    said = capsys.readouterr().err
    assert said.count(": 3 × .git\n") == said.count(": 3 × __MACOSX\n") == 3
    assert set(source.NOT_OF_THE_TREE) == {".git", "__MACOSX"}


def write_tree(folder, *excluded):
    """The SWHID by git itself."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
    environment |= {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1", "GIT_DIR": str(folder) + ".git",
                    "GIT_WORK_TREE": str(folder)}
    for words in (["init", "-q"], ["-c", "core.autocrlf=false", "add", "-Af"], ["write-tree"]):
        done = subprocess.run(["git", *words], cwd=folder, env=environment, capture_output=True)
        assert done.returncode == 0, done.stderr.decode()
    shutil.rmtree(str(folder) + ".git")
    return "swh:1:dir:" + done.stdout.decode().strip()


def swhid(tree):
    return tree_swhid({path: git_hash("blob", content) for path, content in tree.files.items()}, tree.executable,
                      tree.links, tree.root)


def test_the_swhid_of_a_tree_with_links(odd, tmp_path):
    """Of the folder, which also may hold a single folder, and of its archive, which may hold more than one."""
    folder = shutil.copytree(odd / "t", tmp_path / "t-1.0/only", symlinks=True, ignore=lambda *_: ["pipe"])
    (tmp_path / "t-1.0/link").symlink_to("only/a.c")
    os.chmod(folder / "d/e/f", 0o654)  # git looks at the owner's bit alone
    folder, limit = tmp_path / "t-1.0", 10**7
    for source_folder, root in [(folder / "only", ""), (folder, "only/")]:
        tree = source.rooted(source.read_folder(source_folder, limit), source_folder.name, folder=True)
        assert (swhid(tree), tree.root) == (write_tree(source_folder), root)
        assert {path.split("/")[0] for path in tree.files} == {source_folder.name if not root else "only"}
    assert tree.links["only/../link"] == "only/a.c" and tree.links["only/d/e/up"] == "../../.."
    assert tree.links["only/l%FF"] == "t%FE" and tree.links["only/to%20file"] == "a.c"
    for words, source_folder, root in [(["t-1.0"], folder, ""), (["-C", "t-1.0", "only"], folder / "only", ""),
                               (["-C", "t-1.0", "."], folder, "only/"),
                               (["-C", "t-1.0/only", "."], folder / "only", "")]:
        run("tar", "-cf", "t.tar", *words, cwd=tmp_path)
        tree = source.rooted(read((tmp_path / "t.tar").read_bytes(), limit), "x")
        assert (swhid(tree), tree.root) == (write_tree(source_folder), root), words
    assert len(tree.executable) == 2
    (folder / "link").unlink()
    tree = source.rooted(source.read_folder(folder, limit), "t-1.0", folder=True)
    assert (swhid(tree), tree.root) == (write_tree(folder), "only/")


def test_the_manifest_names_links(odd, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "t").mkdir()
    write(tmp_path / "t", {b"a.c": b"int a;\n" * 60})
    (tmp_path / "t/l").symlink_to("a.c")
    run("git", "init", "-q", "t", cwd=tmp_path)  # its .git is no part of it
    prepare.main(["--source=t", "--vocab_size=280", "--quiet"])
    whole = read_json("data/t/manifest.json")["whole_tree"]
    assert (whole["links"], whole["root"], whole["left_out"]) == ({"t/l": "a.c"}, "", {"link": 1, ".git": 1})
    shutil.rmtree("t/.git")
    assert whole["swhid"] == write_tree(tmp_path / "t")


@pytest.mark.parametrize("head, said", [
    (b"\x28\xb5\x2f\xfd", "zstd -d"), (b"\x04\x22\x4d\x18", "lz4 -d"), (b"7z\xbc\xaf\x27\x1c", "7z x"),
    (b"Rar!\x1a\x07\x01\0", "unrar x"), (b"LZIP\1", "lzip -d"), (b"\x1f\x9d\x90", "gzip -d"),
    (b"\xef\xbb\xbf\n <!DOCTYPE html>\n<title>Sign in", "a web page"), (b"<HTML><body>", "a web page"),
    (b"070701", "cpio -i"), (b"!<arch>\ndebian-binary", "ar x")])
def test_what_is_no_tarball_or_zip_is_named(head, said):
    refused(head + bytes(600), said)


def test_a_tar_whose_first_name_looks_like_another_format():
    for name in ("LZIP", "BZhello", "070701", "PK", "7z"):
        assert read(tarball([(name, b"x")], "w")).files == {name.encode(): b"x"}
    archive = tarball([("t/a", b"a"), ("t/last.zip", ZIP)], "w")
    assert read(archive).files == {b"t/a": b"a", b"t/last.zip": ZIP}


@pytest.mark.parametrize("url, kept, said", [
    ("https://me:pw@example.org:81/x.tar#part", "https://example.org:81/x.tar", "https://example.org:81/x.tar"),
    ("https://example.org/x.tar?token=1", None, "https://example.org/x.tar"),
    ("file:///home/me/x.tar", None, "file://…/x.tar"),
    ("http://[2001:4860::1]:8/x?", "http://[2001:4860::1]:8/x", "http://[2001:4860::1]:8/x")])
def test_what_is_kept_of_an_address(url, kept, said):
    assert (recorded(url), shown(url), public_address(url)) == (kept, said, kept)


@pytest.mark.parametrize("cls, name", [(prepare.Settings, "only"), (prepare.Settings, "exclude"),
                                       (extract.Settings, "only")])
def test_lists_that_are_given_twice_add_up(cls, name):
    settings = parse(cls, "", [f"--{name}=a", f"--{name}", "b", "c", f"--{name}=d"])
    assert getattr(settings, name) == ("a", "b", "c", "d")


def test_two_excludes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "t", {b"a.c": b"int a;\n" * 60, b"b.map": b"b", b"c.map": b"c"})
    prepare.main(["--source=t", "--vocab_size=280", "--quiet", "--exclude", "t/b*", "--exclude", "t/c*"])
    manifest = read_json("data/t/manifest.json")
    assert [file["path"] for file in manifest["files"]] == ["t/a.c"] and manifest["exclude"] == ["t/b*", "t/c*"]


def test_a_folder_whose_name_is_not_utf8(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path, {b"caf\xe9-1.0/a.c": b"int a;\n" * 60})
    prepare.main(["--source", os.fsdecode(b"caf\xe9-1.0"), "--vocab_size=280", "--quiet"])
    manifest = read_json("data/caf%E9-1.0/manifest.json")
    assert manifest["name"] == "caf%E9-1.0" and manifest["files"][0]["path"] == quote(b"caf\xe9/a.c")
    says_no(prepare.main, ["--source", os.fsdecode(b"caf\xe9"), "--vocab_size=280"], "cannot read the source")
