"""What is at hand to judge a model's folder by: its own records, its weights, and the text of the tree, from wherever
that can be had."""
import dataclasses
import hashlib
import io
import json
import lzma
import math
import tarfile
from pathlib import Path

from safetensors import SafetensorError, safe_open

from memory import records
from memory.checkpoint import NAMES, read_tensors
from memory.corpus import find_tree, load, read_manifest, texts
from memory.files import digest_of, files_digest, read_json
from memory.licences import LICENCE_FILE, SEEN, classify, find_licence, notice
from memory.output import UserError, progress
from memory.personal import Count
from memory.source import read_archive as read_tree
from memory.source import rooted
from memory.swhid import git_hash, tree_swhid
from memory.urls import public_address
from memory.windows import unquote

ARCHIVE = "source.tar.xz"
NOTICES = """What the files that this model learned say of copyright and licence, in their own words: of each file the
paragraphs that speak of it, of a licence text all. LICENSE has the licence of the whole.
"""


@dataclasses.dataclass
class Survey:
    """What one look at the text of the tree found."""
    way: str  # where the text came from, in words
    hashes: dict  # {path: SHA-256 (hex)}
    classes: dict  # {path: licences.classify}, of the files learned
    notices: bytes  # what NOTICES must hold
    personal: dict  # personal.Count.counts of the files learned
    swhid: str  # of all files seen
    whole: dict  # what a manifest must say of a whole tree with these files
    digest: str = ""  # SHA-256 (hex) of the archive they came in

    def wrong(self, entries):
        """The paths of the manifest's entries whose text is missing or other."""
        return [entry["path"] for entry in entries if self.hashes.get(entry["path"]) != entry["sha256"]]


def survey(files, manifest, way, executable=None):
    """The Survey of an iterable of (path, bytes), as the manifest of a model asks. executable: paths, if something else
    than the manifest says which are."""
    learned = {entry["path"] for entry in manifest["files"]}
    executable = set(manifest["whole_tree"]["executable"] if executable is None else executable)
    hashes, blobs, classes, count, heads, size = {}, {}, {}, Count(), {}, 0
    parts = [NOTICES.encode()]
    for path, data in progress(files, desc=f"reading {way}", unit=" files"):
        hashes[path], size = hashlib.sha256(data).hexdigest(), size + len(data)
        blobs[path] = git_hash("blob", data)
        heads[path] = data if LICENCE_FILE.fullmatch(path) else data[:SEEN]
        if path in learned:
            count.add(path, data)
            classes[path] = classify(path, data)
            if words := notice(path, data):
                parts.append(b"\n==> " + path.encode() + b" <==\n\n" + words.rstrip(b"\n") + b"\n")
    licence, path = find_licence(heads)
    swhid = tree_swhid(blobs, executable, manifest["whole_tree"]["links"], manifest["whole_tree"]["root"])
    whole = {"licence": licence, "files": len(hashes), "bytes": size, "digest": files_digest(hashes),
             "licence_path": path, "licence_sha256": hashes.get(path)}
    return Survey(way, hashes, classes, b"".join(parts), count.counts, swhid, whole)


@dataclasses.dataclass
class Evidence:
    """What is at hand about the model in `folder`. A record that is missing is {}, and one that is damaged is too; then
    `damaged` says why: {name: reason}."""
    folder: Path
    manifest: dict = dataclasses.field(default_factory=dict)
    build: dict = dataclasses.field(default_factory=dict)
    extraction: dict = dataclasses.field(default_factory=dict)
    rebuilt: dict = dataclasses.field(default_factory=dict)
    stated: dict = dataclasses.field(default_factory=dict)  # openness.json
    config: dict = dataclasses.field(default_factory=dict)  # config.json
    state: dict = dataclasses.field(default_factory=dict)  # what the last but one of the run's states says of itself
    damaged: dict = dataclasses.field(default_factory=dict)
    weights: str = ""  # SHA-256 (hex) of model.safetensors
    parameters: int = 0
    tree: dict = dataclasses.field(default_factory=dict)  # the manifest of the prepared tree
    data: str = ""  # its folder
    survey: Survey = None
    archive: Survey = None  # of ARCHIVE
    recital: Survey = None  # of what the weights write, if they were asked
    built_now: dict = dataclasses.field(default_factory=dict)  # as rebuilt.json, if it was built again just now
    fetched: Survey = None  # of what the public address serves, if it was asked
    completed: bool = False  # whether the manifest had to be completed from the tree's
    card: str = ""  # the text of README.md
    writing: bool = False  # whether the folder is being written, so that what it states is not there yet

    @property
    def any_survey(self):
        """The text's Survey, from the best source that is at hand, or None."""
        return self.survey or self.archive or self.recital

    @property
    def whole(self):
        """(where it is from, what a manifest must say of the whole tree) by the best source at hand; ("", {}) if none
        has all of it."""
        if self.survey and "whole_tree" in self.tree:
            return self.survey.way, self.tree["whole_tree"] | {"licence": self.tree["licence"]}
        for text in filter(None, (self.archive, self.fetched, self.recital)):
            if text is not self.recital or len(text.hashes) == self.manifest["whole_tree"]["files"]:
                return text.way, text.whole
        return "", {}


def parse_json(text):
    """What JSON, text or bytes, holds. Raises ValueError."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deep") from None


def read_plain(path):
    """What a file of JSON without a digest holds. Raises OSError or ValueError."""
    return parse_json(Path(path).read_bytes())


def read_state(path):
    """What a state of a run says of itself. Raises OSError or ValueError."""
    _, metadata = read_tensors(path, ours=True)
    return parse_json(metadata.get("run", ""))


RECORDS = {  # field of the Evidence: (file, how it is read, its shape)
    "build": ("build.json", read_json, records.BUILD), "extraction": ("extraction.json", read_json, records.EXTRACTION),
    "rebuilt": ("rebuilt.json", read_json, records.REBUILT), "stated": ("openness.json", read_json, records.STATED),
    "config": ("config.json", read_plain, records.CONFIG), "state": (NAMES[1], read_state, records.STATE)}


def gather(folder, data=""):
    """The Evidence on the model in `folder`. data: folder of a prepared tree, or "" to find it under data/. Raises
    UserError if there is no model, or --data names no tree that can be read."""
    found = Evidence(Path(folder))
    try:
        found.weights = digest_of(found.folder / "model.safetensors")
    except OSError as error:
        raise UserError(f"no model in {folder}: {error.strerror}") from None
    found.parameters = count_parameters(found.folder / "model.safetensors")
    for field, (name, read, shape) in RECORDS.items():
        try:
            record = read(found.folder / name)
            if wrong := records.fault(record, shape):
                raise ValueError(wrong)
            setattr(found, field, record)
        except FileNotFoundError:
            pass
        except (OSError, ValueError) as error:
            found.damaged[name] = f"{name} is damaged: {' '.join(str(error).split())[:200]}"
    try:
        found.manifest = sound_manifest(folder, records.MANIFEST, "train or copy it again")
    except UserError as error:
        found.damaged["manifest.json"] = str(error)
        return found
    find_text(found, data)
    try:
        found.card = (found.folder / "README.md").read_text(encoding="utf-8", errors="replace")
    except OSError:  # which is no card
        pass
    return found


def sound_manifest(folder, shape, remedy):
    """What read_manifest gives, if it has the shape. The address in it is a public one, or none. Raises UserError."""
    manifest = read_manifest(folder, remedy)
    if wrong := records.fault(manifest, shape):
        raise UserError(f"{folder}/manifest.json is damaged ({wrong}); {remedy}")
    if "whole_tree" in manifest:
        manifest["whole_tree"]["url"] = public_address(manifest["whole_tree"]["url"])
    return manifest


def count_parameters(path):
    """The number of values in a safetensors file; 0 if it is damaged."""
    try:
        with safe_open(path, "np") as file:
            return sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())
    except SafetensorError:
        return 0


def find_text(found, data):
    """Puts the prepared tree and ARCHIVE into the Evidence, as far as they are there."""
    found.data = str(data or find_tree(found.manifest))
    if found.data:
        found.tree = sound_manifest(found.data, records.TREE, "run prepare.py again")
        complete_manifest(found)
    if "whole_tree" not in found.manifest:
        return
    if found.data:
        try:
            _, tokenizer, tokens = load(found.data)
            found.survey = survey(texts(found.tree["files"], tokenizer, tokens), found.manifest, "the prepared tree")
        except UserError as error:
            found.damaged["the prepared tree"] = str(error)
    if (found.folder / ARCHIVE).exists():
        try:
            tree = read_archive(found.folder / ARCHIVE, found.manifest["whole_tree"])
            found.archive = survey(tree.files.items(), found.manifest, ARCHIVE, tree.executable)
        except UserError as error:
            found.damaged[ARCHIVE] = str(error)


def complete_manifest(found):
    """Adds to the manifest of a model what that of its tree says of the whole tree and of each file's notice: an older
    prepare.py did not."""
    theirs = {(entry["path"], entry["sha256"]): entry for entry in found.tree["files"]}
    if "whole_tree" in found.tree and "whole_tree" not in found.manifest:
        found.manifest["whole_tree"], found.completed = found.tree["whole_tree"], True
        for key in ("files", "held_out"):
            found.manifest[key] = [theirs.get((entry["path"], entry["sha256"]), entry) for entry in found.manifest[key]]
    if "whole_tree" in found.manifest and not all("notice" in entry for entry in found.manifest["files"]):
        del found.manifest["whole_tree"]  # without these it counts as an older one


def write_archive(files, executable):
    """The bytes of a tree as tar.xz, the same each time. files: {quoted path: bytes}; executable: paths."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:xz", format=tarfile.PAX_FORMAT, preset=9 | lzma.PRESET_EXTREME,
                      encoding="utf-8", errors="surrogateescape") as tar:
        for path in sorted(files):
            member = tarfile.TarInfo(unquote(path).decode("utf-8", "surrogateescape"))
            member.size, member.mode = len(files[path]), 0o755 if path in executable else 0o644
            tar.addfile(member, io.BytesIO(files[path]))
    return packed.getvalue()


def read_archive(path, whole):
    """The Tree, with quoted paths, of a tree's tar.xz. whole: what the manifest says of it, so also how much it may
    unpack to. Raises UserError."""
    most = whole["bytes"] + whole["files"] * 2**13 + 2**20  # headers of a file, long path included; the end
    unpacker, name = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=2**28), Path(path).name
    try:
        with open(path, "rb") as file:
            data = unpacker.decompress(file.read(most), most + 1)
    except (OSError, lzma.LZMAError) as error:
        raise UserError(f"{name} is no tree that can be read: {error}") from None
    if len(data) > most or not unpacker.eof or data[257:262] != b"ustar":
        raise UserError(f"{name} is no tar of the {whole['bytes']:,} bytes that manifest.json has")
    return rooted(read_tree(io.BytesIO(data), most, name), "tree")
