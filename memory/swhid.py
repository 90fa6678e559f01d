"""The names that git gives to contents and folders: those of Software Heritage (SWHID, ISO/IEC 18670) are the same."""
import hashlib
import posixpath

from memory.windows import unquote

FILE, SCRIPT, LINK = "100644", "100755", "120000"  # git's modes of what is no folder


def git_hash(kind, data):
    """Git's SHA-1 (hex) of an object of a kind, "blob" or "tree", with the content `data`, bytes."""
    return hashlib.sha1(f"{kind} {len(data)}\0".encode() + data, usedforsecurity=False).hexdigest()


def folder_swhid(files):
    """The SWHID of a folder: "swh:1:dir:" and the hash that `git write-tree` prints for it. Empty folders do not count.
    files: {path below it, bytes: (git_hash of its content, its mode: FILE, SCRIPT or LINK)}."""
    entries = {b"": []}  # folder -> (name by which git sorts, mode, name, hash)
    for path, (sha1, mode) in files.items():
        folder, _, name = path.rpartition(b"/")
        entries.setdefault(folder, []).append((name, mode.encode(), name, sha1))
        while folder:
            folder = folder.rpartition(b"/")[0]
            entries.setdefault(folder, [])
    for folder in sorted(entries, key=lambda path: path.count(b"/") + bool(path), reverse=True):  # the deepest first
        data = b"".join(mode + b" " + name + b"\0" + bytes.fromhex(sha1)
                        for _, mode, name, sha1 in sorted(entries[folder]))
        sha1 = git_hash("tree", data)
        if folder:
            above, _, name = folder.rpartition(b"/")
            entries[above].append((name + b"/", b"40000", name, sha1))
    return f"swh:1:dir:{sha1}"


def tree_swhid(hashes, executable, links, root):
    """The SWHID of a whole tree, as a manifest describes one. hashes: {quoted path: git_hash of the file}; executable:
    the paths of those that are; links: {quoted path: quoted target}; root: the quoted folder, with a "/" at its end,
    between the root of the tree as it came and the paths, mostly ""."""
    def below(path):
        return posixpath.normpath(unquote(root + path.partition("/")[2]))

    files = {below(path): (sha1, SCRIPT if path in executable else FILE) for path, sha1 in hashes.items()}
    return folder_swhid(files | {below(path): (git_hash("blob", unquote(target)), LINK)
                                 for path, target in links.items()})
