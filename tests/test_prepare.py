"""Where a tree comes from: a local HTTP server plays kernel.org, tarballs lie, and what is bad is refused."""
import hashlib
import io
import json
import os
import tarfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from conftest import refused, script

import prepare
from common import UserError, newest
from tokenizer import Tokenizer


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
    a body of None breaks off in the middle."""
    answers, asked = {}, []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            left = answers.get(self.path, [(404, b"")])
            status, body = left.pop(0) if len(left) > 1 else left[0]
            self.send_response(status)
            self.send_header("Content-Length", str(100 if body is None else len(body)))
            self.end_headers()
            self.wfile.write(b"half" if body is None else body)

        def log_message(self, *words):
            pass

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    httpd.answers, httpd.asked, httpd.url = answers, asked, f"http://127.0.0.1:{httpd.server_port}"
    yield httpd
    httpd.shutdown()
    httpd.server_close()


@pytest.fixture
def kernel_org(server, tmp_path, monkeypatch):
    """prepare.py in an empty folder, with the server as kernel.org and no stand-in."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(prepare, "MIRRORS", [server.url + "/a", server.url + "/b"])
    monkeypatch.setattr(prepare, "SHA256", hashlib.sha256(KERNEL).hexdigest())
    monkeypatch.setattr(prepare, "STAND_IN", tmp_path / "no headers")
    monkeypatch.setattr(prepare.time, "sleep", lambda seconds: None)
    return server


def prepared(*words):
    assert prepare.main(["--vocab_size", "400", *words]) is None
    folder = newest("prepared tree")
    return json.loads((folder / "manifest.json").read_text())


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


def test_download_from_the_mirror(kernel_org):
    kernel_org.answers["/b" + NAME] = [(200, KERNEL)]
    assert prepared()["url"] == kernel_org.url + "/b" + NAME
    assert kernel_org.asked == ["/a" + NAME, "/b" + NAME]


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
    monkeypatch.setattr(prepare, "STAND_IN", headers)
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
    hard.type, hard.linkname = tarfile.LNKTYPE, "t/good.c"
    device.type = tarfile.CHRTYPE
    before = sorted(os.listdir(tmp_path.parent))
    (tmp_path / "evil.tar").write_bytes(tarball(
        [("t/good.c", SOURCE), ("/etc/evil", b"x"), ("../evil", b"x"), ("t/../../evil", b"x"), link, hard, device], "w"))
    manifest = prepared("--source", "evil.tar")
    assert [file["path"] for file in manifest["files"]] == ["t/good.c", "t/hard"]
    said = capsys.readouterr().err
    assert "3 unsafe paths" in said and "1 link\n" in said and "1 device\n" in said
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


@pytest.mark.parametrize("name, root", [
    ("linux-2.0.40", "linux"), ("linux-6.1-rc3", "linux"), ("bzip2-1.0.8", "bzip2"), ("x264", "x264"), ("lz4_v1.9", "lz4"),
    ("i386-tools", "i386-tools")])
def test_the_root_carries_no_version(name, root):
    assert list(prepare.rooted({b"a": b"", b"b/c": b""}, name)) == [f"{root}/a", f"{root}/b/c"]
    assert list(prepare.rooted({name.encode() + b"/a": b"", name.encode() + b"/b": b""}, "x")) == [f"{root}/a", f"{root}/b"]


def test_only(work, tree, tmp_path):
    done = script("prepare.py", "--source", tree, "--only", "tiny/scanner", "tiny/dec", "--vocab_size=400", cwd=tmp_path)
    assert done.returncode == 0, done.stderr.decode()
    manifest = json.loads((tmp_path / "data/tiny-1.0/manifest.json").read_text())
    assert [file["path"] for file in manifest["files"]] == ["tiny/decoder.py", "tiny/scanner.py"]
    assert Tokenizer.load(tmp_path / "data/tiny-1.0").vocab_size == 400


def test_the_same_tree_gives_the_same_bytes(tree, work, tmp_path):
    assert script("prepare.py", "--source", tree, "--vocab_size", 700, cwd=tmp_path).returncode == 0
    for name in ("train.bin", "tokenizer.model", "manifest.json"):
        assert (tmp_path / "data/tiny-1.0" / name).read_bytes() == (work / "data/tiny-1.0" / name).read_bytes()


def test_bad_use(tree, tmp_path):
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
        refused(script("prepare.py", *words, cwd=tmp_path), *said)
    assert not (tmp_path / "data").exists()
