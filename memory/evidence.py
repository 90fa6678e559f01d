"""What is at hand to judge a model's folder by: its own records, its weights, and the text of the tree, from wherever
that can be had; and the manifest as it must be, made again from that text."""
import collections
import dataclasses
import hashlib
import io
import json
import lzma
import os
import posixpath
import re
import tarfile
import types
from pathlib import Path

import numpy as np

from memory import records, source
from memory.checkpoint import NAMES, read_tensors
from memory.corpus import choose_files, compressed_sizes, find_tree, fitting, load, read_manifest, texts
from memory.files import digest_of, files_digest, json_bytes, read_json, refuse_pipes
from memory.licences import LICENCE_FILE, SEEN, classify, find_licence, notice
from memory.output import UserError, progress
from memory.page import as_json, fill
from memory.personal import Count
from memory.swhid import git_hash, tree_swhid
from memory.tokenizer import Tokenizer
from memory.urls import public_address
from memory.windows import Windows, unquote

ARCHIVE = "source.tar.xz"
MOST = 2**32  # bytes of a tree that a check unpacks
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
    whole: dict  # what a manifest must say of a whole tree with these files
    digest: str = ""  # SHA-256 (hex) of the archive they came in

    def wrong(self, entries):
        """The paths of the manifest's entries whose text is missing or other."""
        return [entry["path"] for entry in entries if self.hashes.get(entry["path"]) != entry["sha256"]]


def survey(files, manifest, way, executable=None, links=None):
    """The Survey of an iterable of (path, bytes), as the manifest of a model asks. executable, links: as in whole_tree,
    if something else than the manifest says which files are executable, and which links there are."""
    learned, tree = {entry["path"] for entry in manifest["files"]}, manifest["whole_tree"]
    executable = set(tree["executable"] if executable is None else executable)
    links = tree["links"] if links is None else links
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
    whole = {"licence": licence, "files": len(hashes), "bytes": size, "digest": files_digest(hashes),
             "swhid": tree_swhid(blobs, executable, links, tree["root"]), "executable": sorted(executable),
             "links": dict(links), "licence_path": path, "licence_sha256": hashes.get(path), "not_prepared": []}
    return Survey(way, hashes, classes, b"".join(parts), count.counts, whole)


@dataclasses.dataclass(eq=False)
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
    begins: list = dataclasses.field(default_factory=list)  # the lines of log.jsonl with which turns begin
    looks: list = dataclasses.field(default_factory=list)  # and those on full passes
    states: dict = dataclasses.field(default_factory=dict)  # {name: what a state of the run says of itself}
    damaged: dict = dataclasses.field(default_factory=dict)
    weights: str = ""  # SHA-256 (hex) of model.safetensors
    model: object = None  # the Llama in it, or None if it cannot be loaded
    tokenizer: Tokenizer = None
    base: dict = dataclasses.field(default_factory=dict)  # manifest of the weights that the run began from, if at hand
    tree: dict = dataclasses.field(default_factory=dict)  # the manifest of the prepared tree
    data: str = ""  # its folder
    survey: Survey = None  # of it
    archive: Survey = None  # of ARCHIVE
    recital: Survey = None  # of what the weights write, if they were asked
    fetched: Survey = None  # of what the public address serves, if it was asked
    made: dict = dataclasses.field(default_factory=dict)  # manifest.json as it must be, if all text is at hand
    windows: Windows = None  # of the files learned, then
    control: Windows = None  # and of those held out, if there are any
    measured_now: dict = dataclasses.field(default_factory=dict)  # as extraction.json, if it was measured again
    built_now: dict = dataclasses.field(default_factory=dict)  # as rebuilt.json, if it was built again just now
    card: bytes = b""  # README.md
    writing: bool = False  # whether the folder is being written, so that what it states is not there yet

    @property
    def any_survey(self):
        """The Survey of the files learned, from the best source that is at hand, or None."""
        return self.survey or self.archive or self.recital

    @property
    def parameters(self):
        return self.model.config.num_parameters if self.model else 0


def parse_json(text):
    """What JSON, text or bytes, holds. Raises ValueError."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deep") from None


def read_plain(path):
    """What a file of JSON without a digest holds. Raises OSError or ValueError."""
    return parse_json(Path(path).read_bytes())


def read_record(path):
    """What a file that write_json wrote holds. Raises OSError, or ValueError if it has other bytes than it writes."""
    record = read_json(path)
    if Path(path).read_bytes() != json_bytes(record):
        raise ValueError("its bytes are not as they are written here")
    return record


RECORDS = {  # field of the Evidence: (file, how it is read, its shape)
    "build": ("build.json", read_record, records.BUILD),
    "extraction": ("extraction.json", read_record, records.EXTRACTION),
    "rebuilt": ("rebuilt.json", read_record, records.REBUILT), "stated": ("openness.json", read_record, records.STATED),
    "config": ("config.json", read_plain, records.CONFIG)}


def damage(name, error):
    return f"{name} is damaged: {' '.join(str(error).split())[:200]}"


def gather(folder, data=""):
    """The Evidence on the model in `folder`. data: folder of a prepared tree, or "" to find it under data/. Raises
    UserError if there is no model, or --data names no tree that can be read."""
    found = Evidence(Path(folder))
    try:
        refuse_pipes(folder)
        found.weights = digest_of(found.folder / "model.safetensors")
    except OSError as error:
        raise UserError(f"no model in {folder}: {error.strerror}") from None
    for field, (name, read, shape) in RECORDS.items():
        try:
            record = read(found.folder / name)
            if wrong := records.fault(record, shape):
                raise ValueError(wrong)
            setattr(found, field, record)
        except FileNotFoundError:
            pass
        except (OSError, ValueError) as error:
            found.damaged[name] = damage(name, error)
    read_log(found)
    load_model(found)
    read_states(found)
    try:
        found.card = (found.folder / "README.md").read_bytes()
    except OSError:  # which is no card
        pass
    try:
        found.manifest = sound_manifest(folder, "train or copy it again")
        if "held_out" not in found.manifest:
            raise UserError(f"{folder}/manifest.json is that of a prepared tree, not of a model; train or copy it "
                            f"again")
    except UserError as error:
        found.manifest, found.damaged["manifest.json"] = {}, str(error)
        return found
    if found.build.get("init_sha256"):
        found.base = find_base(found.build["init_sha256"])
    find_text(found, data)
    return found


def read_log(found):
    """Puts the lines of log.jsonl into the Evidence."""
    try:
        for line in (found.folder / "log.jsonl").read_bytes().splitlines(keepends=True):
            record = parse_json(line)
            looks = type(record) is dict and "accuracy" in record
            if wrong := records.fault(record, records.LOOK if looks else records.BEGIN):
                raise ValueError(wrong)
            if line != json.dumps(record).encode() + b"\n":
                raise ValueError("its bytes are not as they are written here")
            (found.looks if looks else found.begins).append(record)
    except FileNotFoundError:
        pass
    except (OSError, ValueError) as error:
        found.begins, found.looks, found.damaged["log.jsonl"] = [], [], damage("log.jsonl", error)


def load_model(found):
    """Puts the model and its tokenizer into the Evidence, as far as they can be loaded."""
    from model import Llama
    try:
        found.model = Llama.from_pretrained(found.folder)
    except UserError as error:
        found.damaged["model.safetensors"] = str(error)
    try:
        found.tokenizer = Tokenizer.load(found.folder)
    except UserError as error:
        found.damaged["tokenizer.model"] = str(error)


def read_states(found):
    """Puts what the states of the run say of themselves into the Evidence. The weights in the last must be the model's.
    """
    for name in NAMES:
        try:
            tensors, metadata = read_tensors(found.folder / name, ours=True)
            meta = parse_json(metadata.get("run", ""))
            if wrong := records.fault(meta, records.STATE):
                raise ValueError(wrong)
            if name == NAMES[0] and found.model:
                theirs = {key.removeprefix("model."): value for key, value in tensors.items() if key[:6] == "model."}
                ours = found.model.tensors()
                if theirs.keys() != ours.keys() or not all(
                        np.array_equal(theirs[key].numpy(), ours[key].numpy()) for key in ours):
                    raise ValueError("it has other weights than the model")
            found.states[name] = meta
        except FileNotFoundError:
            pass
        except (OSError, ValueError) as error:
            found.damaged[name] = damage(name, error)


def sound_manifest(folder, remedy):
    """What read_manifest gives, if its bytes are as they are written here. The address in it is a public one, or none.
    Raises UserError."""
    manifest, path = read_manifest(folder, remedy), Path(folder) / "manifest.json"
    if path.read_bytes() != json_bytes(manifest):
        raise UserError(f"{path} is damaged (its bytes are not as they are written here); {remedy}")
    manifest["whole_tree"]["url"] = public_address(manifest["whole_tree"]["url"])
    return manifest


def read_report(folder):
    """The data in the page report.html. Raises OSError, or ValueError if it is not the page that extract.py writes."""
    page = (Path(folder) / "report.html").read_bytes()
    data = parse_json((re.search(rb"^const data = (.*);$", page, re.M) or [b"", b""])[1])
    if wrong := records.fault(data, records.REPORT):
        raise ValueError(wrong)
    if page != fill("report.html", DATA=as_json(data)):
        raise ValueError("its bytes are not as they are written here")
    return data


def find_base(sha256):
    """The manifest of the model under out/ whose weights have this SHA-256, if it began from nothing; else {}."""
    for path in sorted(Path("out").glob("*/model.safetensors")):
        try:
            if digest_of(path) == sha256 and not read_json(path.with_name("build.json")).get("init_sha256"):
                return read_manifest(path.parent, "")
        except (OSError, ValueError, UserError):
            continue
    return {}


# The text

def find_text(found, data):
    """Puts the prepared tree and ARCHIVE into the Evidence, as far as they are there, and from them what the manifest
    must hold."""
    corpus = found.manifest | (found.model.metadata if found.model else {})  # the weights know the tree they learned
    found.data, files, origin = str(data or find_tree(corpus)), {}, found.manifest
    if found.data:
        try:
            found.tree = sound_manifest(found.data, "run prepare.py again")
            _, tokenizer, tokens = load(found.data)
            files, origin = dict(texts(found.tree["files"], tokenizer, tokens)), found.tree
            found.survey = survey(files.items(), found.manifest | {"whole_tree": found.tree["whole_tree"]},
                                  "the prepared tree")
        except UserError as error:
            if data and not found.tree:
                raise
            found.damaged["the prepared tree"] = str(error)
    if (found.folder / ARCHIVE).exists():
        try:
            tree = read_archive(found.folder / ARCHIVE, found.manifest["whole_tree"])
            found.archive = survey(sorted(tree.files.items()), found.manifest, ARCHIVE, tree.executable, tree.links)
            check_archive(found, files, tree)
            if not found.data and not found.manifest["whole_tree"]["not_prepared"]:
                files = tree.files
        except UserError as error:
            found.archive, found.damaged[ARCHIVE] = None, str(error)
    if files and found.build and found.tokenizer:
        try:
            make_manifest(found, files, origin)
        except (UserError, AttributeError, TypeError, ValueError) as error:  # settings that cannot be
            found.damaged["build.json"] = damage("build.json", error)


def make_manifest(found, files, origin):
    """Makes again what manifest.json must hold. files: {path: bytes} of all files that were prepared; origin: the
    manifest that has what the text does not tell. Raises UserError, AttributeError, TypeError or ValueError if the
    settings in build.json cannot be."""
    from prepare import tokenize
    entries, tokenizer, settings = [], found.tokenizer, types.SimpleNamespace(**found.build["settings"])
    tokens = np.concatenate(list(tokenize(files, tokenizer, entries, progress)))
    learned, held_out = choose_files(fitting(entries, tokenizer, settings), settings, found.base.get("files", ()))
    if found.build.get("init_sha256") and not found.base:
        held_out = found.manifest["held_out"]  # drawn from what the first weights had not learned
    windows = [Windows(tokens, part, tokenizer, settings.max_position_embeddings) for part in (learned, held_out)
               if part]
    whole, seen = origin["whole_tree"], found.survey or found.archive
    if not whole["not_prepared"]:
        whole = whole | {key: seen.whole[key] for key in seen.whole.keys() & whole.keys()}
    made = {key: origin[key] for key in records.TREE} | {
        "whole_tree": whole, "vocab_size": tokenizer.vocab_size, "tokens": len(tokens),
        "train_bin_sha256": hashlib.sha256(tokens).hexdigest(),
        "tokenizer_sha256": hashlib.sha256(tokenizer.proto).hexdigest(),
        "files": learned, "held_out": held_out,
        "tree": {"files": len(entries), "bytes": sum(entry["bytes"] for entry in entries)}}
    if not whole["not_prepared"]:
        made["licence"] = seen.whole["licence"]
    found.windows, found.control = windows[0], windows[1] if held_out else None
    found.made = made | compressed_sizes(found.windows)


def differences(found):
    """{key of the manifest, as "whole_tree.url": why it is wrong}: what manifest.json says otherwise than what was made
    again; without the text, what it says that contradicts itself, or the text that was fetched or recited."""
    ours, wrong = found.manifest, {}

    def compare(there, here, way, above=""):
        for key in there:
            if isinstance(there[key], dict) and key in ("whole_tree", "tree"):
                compare(there[key], here[key], way, f"{key}.")
            elif there[key] != here[key]:
                said, true = first_difference(here[key], there[key])
                wrong[above + key] = f"manifest.json says {above}{key} {said}, {way} {true}"

    if found.made:
        compare(found.made, ours, (found.survey or found.archive).way)
    (path, times), = collections.Counter(entry["path"] for entry in ours["files"] + ours["held_out"]).most_common(1)
    if times > 1:
        wrong["files"] = f"manifest.json lists {path} {times} times"
    for text in filter(None, (found.fetched, found.recital)):
        if text is found.fetched or len(text.hashes) == ours["whole_tree"]["files"]:
            whole = {key: value for key, value in text.whole.items() if key not in ("licence", "not_prepared")}
            compare({"licence": text.whole["licence"], "whole_tree": whole}, ours, text.way)
    return wrong


def first_difference(one, other):
    """Two values in short: of lists the first items that differ, with their numbers."""
    if isinstance(one, list) and isinstance(other, list):
        at = next((i for i, pair in enumerate(zip(one, other)) if pair[0] != pair[1]), min(len(one), len(other)))
        return tuple(f"of {len(part)}, number {at + 1} {str(part[at:at + 1])[1:-1][:90]}" for part in (one, other))
    return str(one)[:90], str(other)[:90]


# The tree as an archive

def make_tar(files, executable, links):
    """The bytes of a tree as tar, the same each time. files: {quoted path: bytes}; executable: paths; links: {quoted
    path: quoted target}."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT, encoding="utf-8",
                      errors="surrogateescape") as tar:
        for path in sorted([*files, *links]):
            name = posixpath.normpath(unquote(path))  # a link may be outside the folder of the files
            member = tarfile.TarInfo(name.decode("utf-8", "surrogateescape"))
            if path in links:
                member.type, member.mode = tarfile.SYMTYPE, 0o777
                member.linkname = unquote(links[path]).decode("utf-8", "surrogateescape")
                tar.addfile(member)
                continue
            member.size, member.mode = len(files[path]), 0o755 if path in executable else 0o644
            tar.addfile(member, io.BytesIO(files[path]))
    return packed.getvalue()


def write_archive(files, executable, links):
    """The same as tar.xz."""
    return lzma.compress(make_tar(files, executable, links), preset=9 | lzma.PRESET_EXTREME)


def unpack_archive(path, whole):
    """The bytes of a tree's tar, from its tar.xz. whole: what the manifest says of it, so also how much it may unpack
    to. Raises UserError."""
    most = whole["bytes"] + (whole["files"] + len(whole["links"])) * 2**13 + 2**20  # headers, long paths too; the end
    most = min(most, MOST)  # what the manifest says of itself is no limit
    unpacker, name = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=2**28), Path(path).name
    try:
        with open(path, "rb") as file:
            packed = file.read(min(most, os.fstat(file.fileno()).st_size) + 1)
            data = unpacker.decompress(packed, most + 1)
    except (OSError, lzma.LZMAError) as error:
        raise UserError(f"{name} is no tree that can be read: {error}") from None
    if len(packed) > most or len(data) > most or not unpacker.eof or unpacker.unused_data:
        raise UserError(f"{name} is no tar.xz of the {whole['bytes']:,} bytes that manifest.json has, and no more")
    return data


def read_archive(path, whole):
    """The Tree, with quoted paths, of a tree's tar.xz. Raises UserError."""
    data = unpack_archive(path, whole)
    return source.rooted(source.read_archive(io.BytesIO(data), len(data), Path(path).name), "tree")


def check_archive(found, files, tree):
    """Raises UserError if ARCHIVE is not the tar that is made of the Tree in it, or, if all of the tree is at hand as
    `files`, {path: bytes}, of those."""
    whole = found.manifest["whole_tree"]
    data, made = unpack_archive(found.folder / ARCHIVE, whole), make_tar(tree.files, tree.executable, tree.links)
    if data != made:
        raise UserError(f"{ARCHIVE} is not as it is written here: it holds more than the files of the tree, or others")
    if found.survey and not found.tree["whole_tree"]["not_prepared"]:
        whole = found.tree["whole_tree"]
        if data != make_tar(files, whole["executable"], whole["links"]):
            raise UserError(f"{ARCHIVE} is not the prepared tree")
