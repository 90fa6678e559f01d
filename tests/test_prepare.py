"""Where a tree comes from: a local HTTP server plays kernel.org, tarballs lie, and what is bad is refused."""
import base64
import errno
import hashlib
import io
import json
import os
import random
import resource
import shutil
import socket
import stat
import tarfile
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from conftest import says_no, script

from memory import source, tokenizer
from memory.corpus import load
from memory.files import lock
from memory.output import UserError
from memory.tokenizer import Tokenizer
from memory.windows import opening
import prepare


def tarball(members, mode="w:gz"):
    """bytes of a tar of (name, content) pairs or TarInfo objects."""
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode=mode) as tar:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                tar.addfile(member)
            else:
                info = tarfile.TarInfo(member[0])
                info.size = len(member[1])
                tar.addfile(info, io.BytesIO(member[1]))
    return data.getvalue()


SOURCE = b"".join(b"int function_%d(void)\n{\n\treturn %d;\n}\n\n" % (i, i * i) for i in range(80))
KERNEL = tarball([("linux/kernel/sched.c", SOURCE), ("linux/README", b"Linux\n" * 30)])


@pytest.fixture
def server():
    """A web server on this machine: answers[path] is a list of (status, body), taken one by one, the last for ever;
    a body of None breaks off in the middle, and a third item is the header Content-Length, or Location. A status of 0
    sends the body alone. asked: the paths that were asked for; allowed: the header Authorization of each."""
    answers, asked, allowed = {}, [], []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            allowed.append(self.headers["Authorization"])
            left = answers.get(self.path, [(404, b"")])
            status, body, *header = left.pop(0) if len(left) > 1 else left[0]
            if not status:
                return self.wfile.write(body)
            self.send_response(status)
            if status // 100 == 3:
                self.send_header("Location", header.pop())
            self.send_header("Content-Length", *header or [str(100 if body is None else len(body))])
            self.end_headers()
            self.wfile.write(b"half" if body is None else body)

        def log_message(self, *words):
            pass

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    httpd.answers, httpd.asked, httpd.url = answers, asked, f"http://127.0.0.1:{httpd.server_port}"
    httpd.allowed = allowed
    yield httpd
    httpd.shutdown()
    httpd.server_close()


@pytest.fixture
def kernel_org(server, tmp_path, monkeypatch):
    """prepare.py in an empty folder, with the server as kernel.org and no stand-in."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(source, "MIRRORS", [server.url + "/a", server.url + "/b"])
    monkeypatch.setattr(source, "SHA256", hashlib.sha256(KERNEL).hexdigest())
    monkeypatch.setattr(source, "STAND_IN", tmp_path / "no headers")
    monkeypatch.setattr(source.time, "sleep", lambda seconds: None)
    return server


def prepared(*words):
    assert prepare.main(["--vocab_size", "400", *words]) is None
    newest = max(Path("data").glob("*/manifest.json"), key=lambda path: path.stat().st_mtime)
    return json.loads(newest.read_text())


NAME = "/v1.0/linux-1.0.tar.gz"


def test_download(kernel_org, capsys):
    kernel_org.answers["/a" + NAME] = [(200, KERNEL)]
    manifest = prepared()
    assert manifest["origin"] == "kernel.org" and manifest["url"] == kernel_org.url + "/a" + NAME
    assert manifest["sha256"] == hashlib.sha256(KERNEL).hexdigest()
    assert [file["path"] for file in manifest["files"]] == ["linux/README", "linux/kernel/sched.c"]
    assert "2, every byte read back" in capsys.readouterr().out
    prepared()
    assert len(kernel_org.asked) == 1, "the second time it is there already"


@pytest.mark.parametrize("fault", [(503, b"busy"), (200, None)])
def test_download_is_tried_again(kernel_org, fault):
    kernel_org.answers["/a" + NAME] = [fault, fault, (200, KERNEL)]
    assert prepared()["url"] == kernel_org.url + "/a" + NAME and len(kernel_org.asked) == 3


def test_a_disk_that_is_full_is_no_server_that_fails(kernel_org, monkeypatch):
    """Or a stand-in would be taken, while the release is there."""
    class Full(io.BytesIO):
        def write(self, data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    kernel_org.answers |= {f"/{mirror}{NAME}": [(200, KERNEL)] for mirror in "ab"}
    monkeypatch.setattr(source.tempfile, "TemporaryFile", Full)
    says_no(prepare.main, ["--quiet"], "No space left on device", "TMPDIR")


def test_download_from_the_mirror(kernel_org):
    kernel_org.answers["/b" + NAME] = [(200, KERNEL)]
    assert prepared()["url"] == kernel_org.url + "/b" + NAME
    assert kernel_org.asked == ["/a" + NAME, "/b" + NAME]


def test_a_mirror_that_serves_something_else(kernel_org, capsys):
    """A tarball, or a list of sums: the next one is asked, and it is said."""
    kernel_org.answers["/a" + NAME] = [(200, KERNEL[:-1] + b"x")]
    kernel_org.answers["/b" + NAME] = [(200, KERNEL)]
    assert prepared()["url"] == kernel_org.url + "/b" + NAME
    assert f"/a{NAME} has SHA-256" in capsys.readouterr().err
    digest, other = hashlib.sha256(KERNEL).hexdigest(), "/v1.2/linux-1.2.13.tar.gz"
    kernel_org.answers |= {f"/{mirror}{other}": [(200, KERNEL)] for mirror in "ab"}
    kernel_org.answers["/a/v1.2/sha256sums.asc"] = [(200, b"<html>Sign in</html>")]
    kernel_org.answers["/b/v1.2/sha256sums.asc"] = [(200, f"{digest}  linux-1.2.13.tar.gz\n".encode())]
    assert prepared("--version", "1.2.13")["url"] == kernel_org.url + "/b" + other
    assert "/a/v1.2/sha256sums.asc lists no linux-1.2.13.tar.gz" in capsys.readouterr().err


@pytest.mark.parametrize("header", ["abc", "-5", "1e3", "", "9" * 5000])
def test_a_content_length_that_is_no_number(kernel_org, header):
    kernel_org.answers["/t.tar.gz"] = [(200, KERNEL, header)]
    assert prepared("--source", kernel_org.url + "/t.tar.gz")["sha256"] == hashlib.sha256(KERNEL).hexdigest()


SECRET = "s3cr3t"


@pytest.mark.parametrize("before, after, name", [
    ("", f"/tree-2.tar.gz?private_token={SECRET}", "tree-2"), ("", f"/a%20b.zip?x=/{SECRET}.tar#y", "a b"),
    ("", f"/%FF.tar.gz#{SECRET}", "%FF"), ("file", f"/{SECRET}/t.tar.gz", "t")])
def test_no_secret_of_an_address_is_kept_or_printed(kernel_org, tmp_path, before, after, name, capfd):
    """Queries, fragments and folders of this machine: in no file, no name of one, and on no terminal."""
    if before:
        (tmp_path / SECRET).mkdir()
        (tmp_path / SECRET / "t.tar.gz").write_bytes(KERNEL)
        url = f"file://{tmp_path}{after}"
    else:
        kernel_org.answers[after.split("#")[0]] = [(200, KERNEL)]
        url = kernel_org.url + after
    manifest = prepared("--source", url)
    plain = url.split("#")[0]
    assert (manifest["name"], manifest["url"]) == (name, None if before or "?" in url else plain)
    assert manifest["whole_tree"]["url"] == manifest["url"]
    with pytest.raises(UserError) as wrong:
        prepare.main(["--source", url, "--sha256", "0" * 64])
    with pytest.raises(UserError) as large:
        prepare.main(["--source", url, "--max_bytes", "10"])
    with pytest.raises(UserError) as no_text:
        prepare.main(["--source", url, "--exclude", "*"])
    for file in (tmp_path / "data").rglob("*"):
        assert SECRET not in str(file.relative_to(tmp_path))
        assert file.is_dir() or SECRET.encode() not in file.read_bytes()
    said = "".join([*capfd.readouterr(), *(str(error.value) for error in (wrong, large, no_text))])
    assert SECRET not in said and str(tmp_path) not in said and "SHA-256" in str(wrong.value)


@pytest.mark.parametrize("url", [
    f"http://me:{SECRET}@127.0.0.1:1/x.tar", f"http://127.0.0.1:1/x?{SECRET}", f"http://me:{SECRET} x@127.0.0.1/x",
    f"http://127.0.0.1/a b?{SECRET}", f"http://me:{SECRET}#@127.0.0.1/x", f"file:///{SECRET}/x.tar",
    f"git+https://me:{SECRET}@127.0.0.1/x", f"http://[::1/{SECRET}", f"http://127.0.0.1:1/\xfc?{SECRET}",
    f"SERVER/round?{SECRET}", f"SERVER/away?{SECRET}", f"SERVER/none?{SECRET}"])
def test_no_error_has_a_secret(kernel_org, url):
    """Also none that a server makes by sending on."""
    url = url.replace("SERVER", kernel_org.url)
    kernel_org.answers |= {f"/round?{SECRET}": [(302, b"", f"/round?{SECRET}")],
                           f"/away?{SECRET}": [(302, b"", f"file:///{SECRET}")]}
    with pytest.raises(UserError) as caught:
        prepare.main(["--source", url])
    assert SECRET not in str(caught.value) and "\n" not in str(caught.value)


def test_what_was_asked_for_is_recorded(kernel_org):
    """Not where a server sends on to, which may be an address for one time."""
    kernel_org.answers["/t.tar.gz"] = [(302, b"", f"/real.tar.gz?{SECRET}")]
    kernel_org.answers[f"/real.tar.gz?{SECRET}"] = [(200, KERNEL)]
    manifest = prepared("--source", kernel_org.url + "/t.tar.gz")
    assert (manifest["url"], manifest["name"]) == (kernel_org.url + "/t.tar.gz", "t")


@pytest.mark.parametrize("user, sent", [("me:p%40w", "me:p@w"), ("me", "me:"), ("me:", "me:")])
def test_a_name_and_password_go_to_their_host_alone(kernel_org, user, sent, tmp_path):
    """As curl sends those of an address, and to no place that the host sends on to."""
    kernel_org.answers["/t.tar.gz"] = [(302, b"", "/real.tar.gz")]
    kernel_org.answers["/real.tar.gz"] = [(200, KERNEL)]
    manifest = prepared("--source", kernel_org.url.replace("://", f"://{user}@") + "/t.tar.gz")
    assert manifest["url"] == kernel_org.url + "/t.tar.gz"
    assert kernel_org.allowed == [f"Basic {base64.b64encode(sent.encode()).decode()}", None]


def test_an_answer_that_is_no_http(kernel_org):
    kernel_org.answers["/t.tar"] = [(0, f"\x1b[2J {SECRET}\n\n".encode())]
    message = says_no(prepare.main, ["--source", kernel_org.url + "/t.tar"], "no HTTP")
    assert SECRET not in message and "\x1b" not in message


def test_a_disk_that_fails_while_a_source_is_read():
    says_no(prepare.main, ["--source", "/proc/self/mem"], "cannot read the source /proc/self/mem: Input/output error")


def test_wrong_checksum_keeps_nothing(kernel_org, tmp_path):
    kernel_org.answers["/a" + NAME] = [(200, KERNEL[:-1] + b"x")]
    with pytest.raises(UserError, match="SHA-256"):
        prepare.main([])
    assert not (tmp_path / "data").exists()


def test_a_damaged_download_is_fetched_again(kernel_org, tmp_path):
    kernel_org.answers["/a" + NAME] = [(200, KERNEL)]
    (tmp_path / "data").mkdir()
    (tmp_path / "data/linux-1.0.tar.gz").write_bytes(KERNEL[:-1])
    prepared()
    assert (tmp_path / "data/linux-1.0.tar.gz").read_bytes() == KERNEL


def test_another_release_is_checked_against_its_directory(kernel_org):
    digest = hashlib.sha256(KERNEL).hexdigest()
    kernel_org.answers["/a/v1.2/linux-1.2.13.tar.gz"] = [(200, KERNEL)]
    kernel_org.answers["/a/v1.2/sha256sums.asc"] = [(200, f"-----BEGIN\n{digest}  linux-1.2.13.tar.gz\n".encode())]
    assert prepared("--version", "1.2.13")["name"] == "linux-1.2.13"
    kernel_org.answers["/a/v6.x/sha256sums.asc"] = [(200, f"{'0' * 64}  linux-6.1.tar.gz\n".encode())]
    kernel_org.answers["/a/v6.x/linux-6.1.tar.gz"] = [(200, KERNEL)]
    with pytest.raises(UserError, match="SHA-256"):
        prepare.main(["--version", "6.1"])
    with pytest.raises(UserError, match="lists no linux-6.2.tar.gz"):
        prepare.main(["--version", "6.2"])
    with pytest.raises(UserError, match="1.2.13"):
        prepare.main(["--version", "latest"])


def test_stand_in(kernel_org, tmp_path, monkeypatch, capsys):
    headers = tmp_path / "headers"
    headers.mkdir()
    (headers / "a.h").write_bytes(b"/* SPDX-License-Identifier: GPL-2.0 WITH Linux-syscall-note */\n" + SOURCE)
    monkeypatch.setattr(source, "STAND_IN", headers)
    manifest = prepared()
    assert (manifest["origin"], manifest["licence"]) == ("stand-in", "GPL-2.0 WITH Linux-syscall-note")
    assert manifest["files"][0]["path"] == "linux/a.h"
    said = capsys.readouterr()
    assert "cannot be reached" in said.err and "STAND-IN" in said.err and "STAND-IN" in said.out
    with pytest.raises(UserError, match="cannot be reached"):
        prepare.main(["--version", "1.0"])  # asked for by name: no stand-in


def test_no_kernel_and_no_headers(kernel_org):
    with pytest.raises(UserError) as error:
        prepare.main([])
    assert "apt-get install linux-libc-dev" in str(error.value) and "--source" in str(error.value)


def test_source_url(kernel_org):
    kernel_org.answers["/x/tree-2.tar.gz"] = [(200, KERNEL)]
    url = kernel_org.url + "/x/tree-2.tar.gz"
    manifest = prepared("--source", url, "--sha256", hashlib.sha256(KERNEL).hexdigest())
    assert (manifest["name"], manifest["url"]) == ("tree-2", url)
    with pytest.raises(UserError, match="SHA-256"):
        prepare.main(["--source", url, "--sha256", "0" * 64])
    with pytest.raises(UserError, match="404"):
        prepare.main(["--source", kernel_org.url + "/nothing.tar.gz"])


def test_hostile_tar(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    link, hard, device = (tarfile.TarInfo(f"t/{kind}") for kind in ("link", "hard", "device"))
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    hard.type, hard.linkname = tarfile.LNKTYPE, "/etc/passwd"
    device.type = tarfile.CHRTYPE
    before = sorted(os.listdir(tmp_path.parent))
    (tmp_path / "evil.tar").write_bytes(tarball(
        [("t/good.c", SOURCE), ("/etc/evil", b"x"), ("../evil", b"x"), ("t/../../evil", b"x"), link, hard, device],
        "w"))
    manifest = prepared("--source", "evil.tar")
    assert [file["path"] for file in manifest["files"]] == ["t/good.c"]
    said = capsys.readouterr().err
    assert "3 unsafe paths" in said and "2 links" in said and "1 device\n" in said
    assert sorted(os.listdir(tmp_path.parent)) == before and sorted(os.listdir(tmp_path)) == ["data", "evil.tar"]


def test_a_bomb_is_refused_before_it_is_unpacked(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    info = tarfile.TarInfo("t/bomb")
    info.size = 10**15
    (tmp_path / "bomb.tar").write_bytes(info.tobuf())
    with pytest.raises(UserError, match="--max_bytes"):
        prepare.main(["--source", "bomb.tar"])
    (tmp_path / "zeros.tar.xz").write_bytes(tarball([("t/zeros", bytes(10**7))], "w:xz"))
    with pytest.raises(UserError, match="--max_bytes"):
        prepare.main(["--source", "zeros.tar.xz", "--max_bytes", "1000000"])


def linked(name, target, kind=tarfile.LNKTYPE):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def test_hard_links_in_a_tarball(tmp_path, monkeypatch, capsys):
    """Each is what the member before it is that it points to, through any number of links; else it is left out."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "t.tar").write_bytes(tarball([
        ("t/a.c", SOURCE), linked("t/b.c", "t/a.c"), linked("t/c.c", "./t//b.c"), ("t/empty", b""),
        linked("t/none", "t/empty"), linked("t/early", "t/later"), ("t/later", b"x"), linked("t/lost", "t/nowhere"),
        linked("t/soft", "a.c", tarfile.SYMTYPE), linked("t/through", "t/soft"), linked("t/out", "../../etc/passwd"),
        linked("t/root", "/etc/passwd"), linked("../up", "t/a.c"), linked("t/self", "t/self")], "w"))
    manifest = prepared("--source", "t.tar")
    digest = hashlib.sha256(SOURCE).hexdigest()
    assert {file["path"]: file["bytes"] for file in manifest["files"]} == {
        "t/a.c": len(SOURCE), "t/b.c": len(SOURCE), "t/c.c": len(SOURCE), "t/empty": 0, "t/none": 0, "t/later": 1}
    assert [file["sha256"] == digest for file in manifest["files"]][:3] == [True] * 3
    said = capsys.readouterr().err
    assert "t.tar: 7 links" in said and "t.tar: 1 unsafe path\n" in said
    with pytest.raises(UserError, match="--max_bytes"):
        prepare.main(["--source", "t.tar", "--max_bytes", str(2 * len(SOURCE))])


def test_a_folder_says_what_it_leaves_out_as_a_tarball_does(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "t/sub/.git").mkdir(parents=True)
    (tmp_path / "t/sub/.git/config").write_bytes(b"no part of the tree")
    (tmp_path / "t/a.c").write_bytes(SOURCE)
    os.link("t/a.c", "t/sub/hard.c")
    for name, target in [("file", "a.c"), ("folder", "sub"), ("broken", "nowhere")]:
        os.symlink(target, f"t/{name}")
    os.mkfifo("t/pipe")
    with tarfile.open("t.tar", "w") as tar:
        tar.add("t")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("t/socket")
        paths = [file["path"] for file in prepared("--source", "t")["files"]]
    assert paths == ["t/a.c", "t/sub/hard.c"]
    assert "of t: 3 links\n" in (said := capsys.readouterr().err)
    assert "of t: 1 pipe\n" in said and "of t: 1 socket\n" in said
    assert paths == [file["path"] for file in prepared("--source", "t.tar")["files"]]
    assert "of t.tar: 3 links\n" in (said := capsys.readouterr().err) and "of t.tar: 1 pipe\n" in said


def test_a_folder_where_paths_have_backslashes(tmp_path, monkeypatch):
    (tmp_path / "t/kernel").mkdir(parents=True)
    (tmp_path / "t/kernel/sched.c").write_bytes(SOURCE)
    relative = os.path.relpath
    monkeypatch.setattr(os.path, "relpath", lambda *words: relative(*words).replace(b"/", b"\\"))
    monkeypatch.setattr(os, "sep", "\\")
    assert [member.path for member in source.folder_members(tmp_path / "t")] == [b"kernel/sched.c"]


def zipped(path, members, **options):
    """Writes a zip of (name or ZipInfo, content) pairs."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members:
            archive.writestr(name, content, **options)


def test_zip(tmp_path, monkeypatch, capsys):
    """The same rules as for a tarball."""
    monkeypatch.chdir(tmp_path)
    link, pipe, locked = map(zipfile.ZipInfo, ("t/link", "t/pipe", "t/locked"))
    link.external_attr, pipe.external_attr = (stat.S_IFLNK | 0o777) << 16, (stat.S_IFIFO | 0o644) << 16
    zipped("tree-2.zip", [("t/", b""), ("t/good.c", SOURCE), ("t/größe.c", b"x"), (link, b"/etc/passwd"), (pipe, b""),
                          *((name, b"x") for name in ("/etc/evil", "../evil", "..\\evil", "C:\\evil")), (locked, b"x")])
    data = bytearray((tmp_path / "tree-2.zip").read_bytes())
    for head, flags in ((b"PK\3\4", 6), (b"PK\1\2", 8)):  # the last of each kind of header is that of t/locked
        data[data.rindex(head) + flags] |= 1
    (tmp_path / "tree-2.zip").write_bytes(data)
    manifest = prepared("--source", "tree-2.zip")
    assert (manifest["name"], manifest["sha256"]) == ("tree-2", hashlib.sha256(data).hexdigest())
    assert {file["path"]: file["sha256"] for file in manifest["files"]} == {
        "t/good.c": hashlib.sha256(SOURCE).hexdigest(), "t/gr%C3%B6%C3%9Fe.c": hashlib.sha256(b"x").hexdigest()}
    said = capsys.readouterr().err
    for left_out in ("4 unsafe paths", "1 link\n", "1 pipe\n", "1 encrypted file\n"):
        assert f"left out of tree-2.zip: {left_out}" in said
    for name, spoiled in [("cut", data[:-40]), ("torn", data[:60] + bytes(20) + data[80:]), ("head", data[:4])]:
        (tmp_path / f"{name}.zip").write_bytes(spoiled)
        with pytest.raises(UserError, match=f"{name}.zip is not a tarball or zip"):
            prepare.main(["--source", f"{name}.zip"])
    zipped("bomb.zip", [("t/zeros", bytes(10**7))])
    with pytest.raises(UserError, match="--max_bytes"):
        prepare.main(["--source", "bomb.zip", "--max_bytes", "1000000"])


def test_a_pipe_as_source(tmp_path, monkeypatch):
    """As in `--source <(git archive HEAD)`: it can be read once only."""
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe.tar")
    writer = threading.Thread(target=(tmp_path / "pipe.tar").write_bytes, args=[KERNEL])
    writer.start()
    assert prepared("--source", "pipe.tar")["sha256"] == hashlib.sha256(KERNEL).hexdigest()
    writer.join()
    with pytest.raises(UserError, match="/dev/zero is larger than 1,000,000 bytes"):
        prepare.main(["--source", "/dev/zero", "--max_bytes", "1000000"])


@pytest.mark.parametrize("name, root", [
    ("linux-2.0.40", "linux"), ("linux-6.1-rc3", "linux"), ("bzip2-1.0.8", "bzip2"), ("x264", "x264"),
    ("lz4_v1.9", "lz4"), ("i386-tools", "i386-tools")])
def test_the_root_carries_no_version(name, root):
    assert list(source.rooted(source.Tree({b"a": b"", b"b/c": b""}), name).files) == [f"{root}/a", f"{root}/b/c"]
    tree = source.Tree({name.encode() + b"/a": b"", name.encode() + b"/b": b""})
    assert list(source.rooted(tree, "x").files) == [f"{root}/a", f"{root}/b"]


def test_parts_of_a_tree(tree, tmp_path, monkeypatch, capsys):
    """The licence is that of the whole tree, whatever part of it is kept."""
    monkeypatch.chdir(tmp_path)
    manifest = prepared("--source", str(tree), "--only", "tiny/scanner", "tiny/dec")
    assert [file["path"] for file in manifest["files"]] == ["tiny/decoder.py", "tiny/scanner.py"]
    assert Tokenizer.load(tmp_path / "data/tiny-1.0").vocab_size == 400 and manifest["licence"] == "GPL-2.0"
    patterns = ["*.py", "tiny/o*d/", "tiny/n[a-z]thing"]
    manifest = prepared("--source", str(tree), "--exclude", *patterns, "--vocab_size", "280")
    assert [file["path"] for file in manifest["files"]] == ["tiny/COPYING"] and manifest["exclude"] == patterns
    said = capsys.readouterr()
    assert "licence: GPL-2.0" in said.out and "15 files, by --only or --exclude" in said.out
    assert "tiny/n[a-z]thing fits no path" in said.err and "*.py" not in said.err
    with pytest.raises(UserError, match="0 files"):
        prepare.main(["--source", str(tree), "--exclude", "*"])


def test_quiet(tree, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    prepared("--source", str(tree), "--quiet")
    assert capsys.readouterr() == ("", "")
    (tmp_path / "t").mkdir()
    (tmp_path / "t/a").write_bytes(SOURCE)
    os.symlink("a", "t/b")
    prepared("--source", "t", "--quiet")
    assert capsys.readouterr() == ("", "left out of t: 1 link\n")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "checkpoint.previous.safetensors", "log.jsonl"])
def test_a_folder_of_a_model_or_run_is_refused(tree, tmp_path, name):
    (tmp_path / name).write_bytes(b"mine")
    with pytest.raises(UserError, match=f"a model or a run .{name}.; name another --out"):
        prepare.main(["--source", str(tree), "--vocab_size=400", "--out", str(tmp_path)])
    assert os.listdir(tmp_path) == [name] and (tmp_path / name).read_bytes() == b"mine"


def test_one_at_a_time_in_a_folder(tree, tmp_path):
    with lock(tmp_path):
        with pytest.raises(UserError, match="another run is writing"):
            prepare.main(["--source", str(tree), "--vocab_size=400", "--out", str(tmp_path)])
    assert os.listdir(tmp_path) == [".lock"]


def test_a_tree_that_cannot_be_written_leaves_the_one_before(tree, work, tmp_path):
    folder = tmp_path / "t"
    shutil.copytree(work / "data/tiny-1.0", folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, resource.RLIM_INFINITY))  # as a full disk
    try:
        with pytest.raises(UserError, match="cannot write"):
            prepare.main(["--source", str(tree), "--vocab_size=400", "--out", str(folder)])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_as_many_pieces_as_a_small_text_supports(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "s").mkdir()
    (tmp_path / "s/a.c").write_text("int main() { return 0; }\n")
    prepare.main(["--source=s"])
    assert 260 < load(tmp_path / "data/s")[1].vocab_size < 512
    says_no(prepare.main, ["--source=s", "--vocab_size=512"], "try --vocab_size")


def test_pieces_of_another_tree(tree, work, tmp_path, monkeypatch):
    """A tree that was changed is spelled with the pieces of before: what did not change has the same ids."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tree, tmp_path / "changed-1.0")
    (tmp_path / "changed-1.0/decoder.py").write_bytes("Größe, 漢字, new\n".encode() * 9)
    before = work / "data/tiny-1.0"
    prepare.main(["--source", "changed-1.0", "--tokenizer", str(before), "--out", "t"])
    assert (tmp_path / "t/tokenizer.model").read_bytes() == (before / "tokenizer.model").read_bytes()
    (old, tokenizer, ids), (new, _, new_ids) = load(before), load(tmp_path / "t")
    assert new["pieces_learned_from_bytes"] == 0 < old["pieces_learned_from_bytes"]

    def text_of(manifest, ids, name):
        (file,) = (file for file in manifest["files"] if file["path"].endswith(name))
        return ids[file["first_token"] + len(opening(tokenizer, file["path"])):][:file["tokens"]].tolist()

    assert text_of(old, ids, "scanner.py")[:200] == text_of(new, new_ids, "scanner.py")[:200]
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken/tokenizer.model").write_bytes(b"no tokenizer")
    for words, said in [(["--tokenizer=nowhere"], "nowhere"), (["--tokenizer=broken"], "damaged"),
                        (["--tokenizer", before, "--vocab_size=300"], "--vocab_size")]:
        says_no(prepare.main, ["--source", "changed-1.0", *words, "--out", "u"], said)
    assert not (tmp_path / "u").exists()


def test_of_a_large_tree_a_part_is_learned_and_all_is_written(tree, contents, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for module in (prepare, tokenizer):
        monkeypatch.setattr(module, "LARGE", 4000)
    manifest = prepared("--source", str(tree))
    assert (manifest["pieces_learned_from_bytes"], manifest["compressed_by"]) == (4000, "xz -2")
    assert {file["path"]: file["bytes"] for file in manifest["files"]} == {
        path: len(content) for path, content in contents.items()}
    assert "learned from 4,000 bytes" in capsys.readouterr().out
    pieces = (tmp_path / "data/tiny-1.0/tokenizer.model").read_bytes()
    prepared("--source", str(tree))
    assert (tmp_path / "data/tiny-1.0/tokenizer.model").read_bytes() == pieces, "the same part each time"
    drawn = prepare.sample(contents, 4000)
    assert sum(map(len, drawn)) == 4000 and sum(text in contents.values() for text in drawn) >= len(drawn) - 1
    assert prepare.sample(contents, 10**9) == [contents[path] for path in sorted(contents)]


@pytest.mark.parametrize("name, text", [
    ("random bytes", random.Random(0).randbytes(200_000)), ("zeros", bytes(200_000)), ("one byte", b"*" * 200_000),
    ("one line", SOURCE.replace(b"\n", b" ") * 60), ("lines", b"int x;\n" * 30_000), ("no UTF-8", b"\x80" * 100_000),
    ("every character", "".join(map(chr, range(0x20, 0xD800))).encode())], ids=lambda value: str(value)[:20])
def test_texts_of_any_kind(tmp_path, monkeypatch, name, text):
    """Each comes back, which prepare.py checks. More characters than pieces: the rarest are spelled in bytes."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "t").mkdir()
    (tmp_path / "t/text").write_bytes(text)
    (tmp_path / "t/a.c").write_bytes(SOURCE)
    assert prepared("--source", "t")["files"][1]["bytes"] == len(text)


def test_the_same_tree_gives_the_same_bytes(tree, work, tmp_path):
    assert script("prepare.py", "--source", tree, "--vocab_size", 700, cwd=tmp_path).returncode == 0
    for name in ("train.bin", "tokenizer.model", "manifest.json"):
        assert (tmp_path / "data/tiny-1.0" / name).read_bytes() == (work / "data/tiny-1.0" / name).read_bytes()


def test_bad_use(tree, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.tar.gz").write_text("not a tarball")
    (tmp_path / "cut.tar.gz").write_bytes(KERNEL[:150])
    for words, said in [
            (["--vocab_size", "9999999"], ["vocab_size", "65536"]),
            (["--vocab_size", "10"], ["vocab_size", "10"]),
            (["--source", tree, "--vocab_size", "60000"], ["60000", "try --vocab_size"]),
            (["--source", "nowhere"], ["nowhere"]),
            (["--source", "empty"], ["empty", "0 files"]),
            (["--source", "text.tar.gz"], ["text.tar.gz"]),
            (["--source", "cut.tar.gz"], ["cut.tar.gz"]),
            (["--source", tree, "--only", "tiny/od/"], ["tiny/od/", "tiny/odd"]),
            (["--source", tree, "--version", "1.0"], ["--version"]),
            (["--source", tree, "--sha256", "00"], ["--sha256"]),
            (["--source", tree, "--vocab_size=400", "--out", "/proc/no"], ["/proc/no"]),
            (["--source", tree, "--vocab_size=400", "--out", "text.tar.gz"], ["text.tar.gz"]),
            (["--sorce", tree], ["sorce", "source"])]:
        says_no(prepare.main, words, *said)
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("words", [["--source=t", "--out=t/out"], ["--source=t", "--out=t"], ["--source=."],
                                   ["--source=to t", "--out=t/deep/out"]])
def test_what_is_written_is_no_part_of_the_tree(words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "t").mkdir()
    (tmp_path / "t/a.c").write_bytes(SOURCE)
    (tmp_path / "to t").symlink_to("t")
    says_no(prepare.main, [*words, "--vocab_size=300"], "another --out")
    assert [path.name for path in (tmp_path / "t").iterdir()] == ["a.c"]
    assert prepare.main(["--source=t", "--out=t-1", "--vocab_size=300", "--quiet"]) is None
