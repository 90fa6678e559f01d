"""Makes a model's folder say what it is, and checks every statement in it.

    python openness.py                       # newest model under out/: writes its card, licence, notices and records
    python openness.py --check               # makes all of it again, compares, and prints a table
    python openness.py --check --recite      # also: are the files in the weights? writes all of them from their paths
    python openness.py --check --rebuild     # also: does the same data give the same weights? trains again
    python openness.py --check --online      # also: does the public address serve this tree?
    python openness.py --source_archive      # adds source.tar.xz, the tree itself

If the tree is at hand, train.py, extract.py and verify.py write the same when they end. --check makes the folder again
from its weights, its pieces, the tree and git, as far as they are at hand, and compares. What an item means, who asks
for it, and which fields nothing here can check, is in docs/openness.md. Exit status of --check: 0: all that is stated
is found; 1: something is not, and is named; 2: bad use.
"""
import memory  # noqa: I001  first, for Ctrl-C while the others are loaded
import dataclasses
import hashlib
import os
import re
import sys
from pathlib import Path

from memory import card, croissant, mof, processes, records, source
from memory.corpus import find_tree, load, read_manifest, texts
from memory.evaluate import LISTED, examine, figures
from memory.evidence import ARCHIVE, MOST, RECORDS, differences, gather, parse_json, read_report, survey
from memory.evidence import write_archive
from memory.files import ODD, digest_of, name_of, newest, remove, write_file, write_json
from memory.items import CHECKED, ITEMS, NO, OF_ALL_TEXT, RECORDED, UNKNOWN, YES, Answer
from memory.items import WRITTEN, column_words, columns, foreign, judge
from memory.output import UserError, run_script
from memory.page import as_json, fill
from memory.personal import Count
from memory.settings import command, parse
from memory.windows import unquote


@dataclasses.dataclass
class Settings:
    model: str = ""  # folder of the model; the newest under out/ if left out
    data: str = ""  # folder of the prepared tree; found under data/ if left out
    check: bool = False  # write nothing; check what the folder states
    recite: bool = False  # write every file from the weights alone and compare; minutes
    rebuild: bool = False  # build the weights again, as verify.py does; as long as training took
    online: bool = False  # fetch the tree from its public address and compare
    source_archive: bool = False  # add the tree itself to the folder, as source.tar.xz
    producer: str = ""  # who publishes the model; this and what follows is kept until it is given anew
    contact: str = ""  # how to reach them
    repository: str = ""  # address of the code
    citation: str = ""  # how to cite the model
    device: str = "auto"  # for --recite: cuda, mps, cpu; auto: the first that is there


PUBLISHER = ("producer", "contact", "repository", "citation")


# Writing

def describe(folder, data="", settings=None):
    """Writes what the model in `folder` states of itself; returns the content of openness.json, or None, saying why, if
    the tree is not at hand. data: folder of the prepared tree."""
    if processes.rank() > 0:
        return None
    settings, e = settings or Settings(), gather(folder, data)
    for key in PUBLISHER:
        if not records.words(getattr(settings, key)):
            raise UserError(f"--{key} has characters that are no text in UTF-8: {getattr(settings, key)!r:.200}")
    if "manifest.json" in e.damaged:
        raise UserError(e.damaged["manifest.json"])
    if not e.survey or not e.build or not e.config or not e.made:
        damaged = [e.damaged[name] for name in ("the prepared tree", "build.json", "config.json", "tokenizer.model")
                   if name in e.damaged]
        lacks = damaged[0] if damaged else (
            "build.json is missing" if not e.build else
            "no tree under data/ is the one that it learned: prepare it")
        print(f"{folder} is left without a card: {lacks}, then `{command('openness.py', '--model', folder)}`",
              file=sys.stderr)
        return None
    if settings.source_archive and e.tree["whole_tree"]["not_prepared"]:
        raise UserError(f"{e.data} holds a part of the tree: prepare the whole for --source_archive")
    e.writing = True
    remove(e.folder / "SHA256SUMS")  # which is written last: so it is there only if all is
    drop_stale(e)
    write_texts(e, settings.source_archive)
    record = state(e, settings)
    write_json(e.folder / "openness.json", record)
    e.stated = record
    for name, made in made_records(e).items():
        write_file(e.folder / name, made)
    write_file(e.folder / "README.md", card.make(e).encode())
    renew_report(e)
    write_file(e.folder / "SHA256SUMS", made_sums(e.folder))
    return record


def renew_report(e):
    """Puts the statement into the page that extract.py wrote, if there is one that has it."""
    try:
        data = read_report(e.folder)
    except (OSError, ValueError):
        return
    if data.get("openness"):
        data["openness"] = {key: e.stated[key] for key in ("items", "meets")}
        write_file(e.folder / "report.html", fill("report.html", DATA=as_json(data)))


def keep_record(folder, name, record, data=""):
    """Writes `record`, a dict, as the file `name` into the model's folder, and describes the folder anew; returns what
    describe() does. The folder may be read-only: then a warning, and None."""
    try:
        write_json(Path(folder) / name, record)
        return describe(folder, data)
    except UserError as error:
        print(f"warning: {error}", file=sys.stderr)
        return None


def drop_stale(e):
    """Deletes the records in the folder that are about other weights, as of an earlier run there."""
    for field in ("extraction", "rebuilt"):
        record = getattr(e, field)
        if record and record["model_sha256"] != e.weights:
            remove(e.folder / RECORDS[field][0])
            setattr(e, field, {})


def write_texts(e, source_archive):
    """Writes what the folder holds of the tree: its licence, the notices, the tree itself if that is asked for."""
    if sha256 := e.tree["whole_tree"]["licence_sha256"]:
        write_file(e.folder / "LICENSE", read_licence(e.data, sha256))
    else:
        remove(e.folder / "LICENSE")
    write_file(e.folder / "NOTICES", e.survey.notices)
    if source_archive:
        _, tokenizer, tokens = load(e.data)
        files, whole = dict(texts(e.tree["files"], tokenizer, tokens)), e.tree["whole_tree"]
        write_file(e.folder / ARCHIVE, write_archive(files, whole["executable"], whole["links"]))
        e.archive = survey(files.items(), e.manifest, ARCHIVE)
        e.damaged.pop(ARCHIVE, None)


def read_licence(data, sha256):
    """The bytes of the licence that prepare.py kept in its folder. Raises UserError if it is gone, or another."""
    try:
        text = (Path(data) / "LICENSE").read_bytes()
    except OSError as error:
        raise UserError(f"{data}/LICENSE cannot be read ({error.strerror}): run prepare.py again") from None
    if hashlib.sha256(text).hexdigest() != sha256:
        raise UserError(f"{data}/LICENSE is not the tree's: run prepare.py again")
    return text


def state(e, settings):
    """The content of openness.json."""
    found, before = judge(e), e.stated.get("publisher", {})
    return {
        "model": e.stated.get("model", name_of(e.folder.resolve())), "model_sha256": e.weights,
        "items": [{"number": number, "item": text, "asked_by": asked, "answer": found[number].answer,
                   "known": found[number].known, "evidence": found[number].why, "checked_by": how}
                  for number, (text, asked, _, how) in ITEMS.items()],
        "meets": columns(found), "personal_data": e.survey.personal, "not_learned": not_learned(e),
        "publisher": {key: getattr(settings, key) or before.get(key, "") for key in PUBLISHER}}


def not_learned(e):
    """The paths of the tree's files that are neither learned nor held out, sorted; e must have the text of the others,
    or of all files."""
    kept = {entry["path"] for entry in e.manifest["files"] + e.manifest["held_out"]}
    return sorted((e.survey or e.archive).hashes.keys() - kept | set(e.manifest["whole_tree"]["not_prepared"]))


def made_records(e):
    """{name: bytes} of the other records that are made from what openness.json states and the manifest."""
    hashes = {name: digest_of(e.folder / name) for name in ("manifest.json", ARCHIVE) if (e.folder / name).is_file()}
    licence = e.build.get("code", {}).get("licence")
    return {"croissant.json": croissant.describe(e.manifest, hashes),
            "mof.yml": mof.record(e.stated["model"], e.manifest, licence,
                                  {number: answer.answer for number, answer in answers_of(e).items()},
                                  e.stated["publisher"])}


def answers_of(e):
    """{item: Answer} as openness.json states them."""
    return {item["number"]: Answer(item["answer"], item["evidence"], item["known"]) for item in e.stated["items"]}


def printable(text):
    """The text without what a terminal would take for a command or a line's end, as a name in a folder may have it."""
    return re.sub(f"[{ODD}]", lambda odd: ascii(odd[0])[1:-1], text)


def made_sums(folder):
    """The bytes of SHA256SUMS, for `sha256sum -c`: a line for each file in the folder that this project writes."""
    folder, others = Path(folder), foreign(Path(folder))
    names = sorted(path.name for path in folder.iterdir() if path.name in WRITTEN | set(others) and path.is_file()
                   and path.name != "SHA256SUMS")
    return "".join(f"{digest_of(folder / name)}  {name}\n" for name in names).encode("utf-8", "surrogateescape")


def renew_sums(folder):
    """Makes SHA256SUMS anew, if there is one, after a file was written beside it."""
    if (Path(folder) / "SHA256SUMS").exists():
        write_file(Path(folder) / "SHA256SUMS", made_sums(folder))


# The slow looks

def look_further(e, settings):
    """Adds to the Evidence what --recite, --rebuild and --online find."""
    if settings.recite:
        from extract import recite_files  # here, because extract.py and verify.py import this
        from memory.device import find_device
        from model import load_model
        model, tokenizer, _ = load_model(e.folder, find_device(settings.device))
        written = recite_files(model, tokenizer, e.manifest["files"], None, None, 32)
        e.recital = survey(sorted(written.items()), e.manifest, "what the weights write")
        for name, windows in [("learned", e.windows), ("control", e.control)]:
            if windows:
                size = sum(file["bytes"] for file in windows.files)
                passed = examine(model, windows, model.lm_head.weight.device)
                e.measured_now[name] = figures(windows, passed, tokenizer, size)
    if settings.rebuild:
        if not e.build:
            raise UserError(e.damaged.get("build.json", "build.json is missing: --rebuild cannot tell what to build"))
        from verify import Stopped, rebuild
        try:
            e.built_now, _ = rebuild(e.folder, settings.data)
        except Stopped:
            raise UserError("the build did not come to its end; the same command goes on with it") from None
    whole = e.manifest["whole_tree"]
    if settings.online and whole["url"]:
        file = source.fetch(whole["url"], MOST)
        root = e.manifest["files"][0]["path"].split("/")[0]
        digest = source.sha256_of(file)
        tree = source.rooted(source.read_archive(file, MOST, whole["url"]), os.fsdecode(unquote(root)))
        e.fetched = dataclasses.replace(
            survey(tree.files.items(), e.manifest, whole["url"], tree.executable, tree.links), digest=digest)


# Checking

def check(folder, settings):
    """Makes again what the folder states, compares, prints a table; returns the exit status."""
    e = gather(folder, settings.data)
    if not e.stated and "openness.json" not in e.damaged and not (e.folder / "SHA256SUMS").exists():
        raise UserError(f"{folder} states nothing of itself yet: run `{command('openness.py', '--model', folder)}`")
    rows = []
    if "manifest.json" in e.damaged:
        rows.append((FAILS, "", "manifest.json", e.damaged["manifest.json"]))
    elif said := misstated(e):
        rows.append((FAILS, "", "openness.json", said))
    else:
        look_further(e, settings)
        found = judge(e)
        rows += [*check_items(e, found), *check_records(e), *check_pages(e), *check_columns(e, found)]
    rows.append(check_sums(e.folder))
    for status, known, what, why in rows:
        print(printable(f"{status:11} {known:8} {what}: {why}"))
    failed = [what for status, _, what, _ in rows if status == FAILS]
    if failed:
        print(f"{len(failed)} of {len(rows)} rows do not hold: {'; '.join(failed)}")
        return 1
    counts = {known: sum(row[1] == known for row in rows) for known in (CHECKED, RECORDED)}
    print(f"all that is stated is found: {counts[CHECKED]} rows checked now, {counts[RECORDED]} by a record alone")
    return 0


FAILS = "FAILS"


def misstated(e):
    """What keeps openness.json from being a statement on this model at all; or ""."""
    if not e.stated:
        return e.damaged.get("openness.json", "it is missing")
    if [item["number"] for item in e.stated["items"]] != list(ITEMS):
        return f"it does not have the items 1 to {len(ITEMS)}"
    for item in e.stated["items"]:
        text, asked, _, how = ITEMS[item["number"]]
        if (item["item"], item["asked_by"], item["checked_by"]) != (text, asked, how):
            return f"it words item {item['number']} otherwise than this code: state it anew"
    if e.stated["personal_data"].keys() != Count().counts.keys():
        return "its personal_data has other rows than are counted"
    return ""


OF_THE_CODE = (13, 20)  # items that are checked where git or the code itself is at hand
FURTHER = {8: "recital", 16: "built_now"}  # items that a slow look answers anew


def check_items(e, found):
    """Yields (status, how it is known, item, why) of each item: what openness.json states against what is found."""
    for number, said in answers_of(e).items():
        now, what = found[number], f"{number} {ITEMS[number][0]}"
        anew = number in FURTHER and getattr(e, FURTHER[number]) and said.answer != YES
        unseen = (said.answer, now.answer) == (NO, UNKNOWN) and number in OF_ALL_TEXT and e.build.get("init_sha256")
        if not anew and not unseen and said[:2] != now[:2] and not (number == 16 and e.built_now and now.answer == YES):
            differs = said.answer if said.answer != now.answer else repr(said.why)
            yield FAILS, "", what, f"openness.json says {differs}; found: {now.answer}, {now.why}"
        elif said.known != now.known and not anew and not unseen and not looked_otherwise(e, number, said, now):
            yield FAILS, "", what, f"openness.json says {said.known or 'nothing'}; found: {now.known}, {now.why}"
        else:
            yield now.answer, now.known, what, now.why


def looked_otherwise(e, number, said, now):
    """Whether more or less than when it was stated is at hand, so that an item may be known in another way."""
    if (said.known, now.known) == (CHECKED, RECORDED):
        return not e.survey or number in OF_THE_CODE
    further = e.recital or e.built_now or e.fetched
    return (said.known, now.known) == (RECORDED, CHECKED) and bool(further or number in OF_THE_CODE)


def check_records(e):
    """Yields (status, how it is known, name, why) of the files and lists that are made from the statement and the
    manifest."""
    if wrong := differences(e):
        yield FAILS, "", "manifest.json", next(iter(wrong.values()))
    else:
        yield YES, CHECKED if e.made else RECORDED, "manifest.json", "as the tree, the pieces and the settings give it"
    for name, made in made_records(e).items():
        path = e.folder / name
        same = path.is_file() and path.read_bytes() == made
        yield (YES, CHECKED, name, "as the records give it") if same else (
            FAILS, "", name, "it is not what the records give" if path.exists() else "it is missing")
    if e.stated["model_sha256"] != e.weights:
        yield FAILS, "", "openness.json", "it is about other weights"
    listed = len(e.stated["not_learned"])
    if not e.survey and not e.archive:
        yield YES, RECORDED, "not_learned", f"{listed:,} files"
    elif e.stated["not_learned"] != not_learned(e):
        yield FAILS, "", "not_learned", (f"openness.json lists {listed:,} files, and not the {len(not_learned(e)):,} "
                                         f"of the tree")
    else:
        yield YES, CHECKED, "not_learned", f"{listed:,} files"


def check_pages(e):
    """Yields (status, how it is known, name, why) of what extract.py, recite.py and a run's end left in the folder."""
    for name, look, words in [("errors.jsonl", misses, "as many tokens as extraction.json has wrong"),
                              ("report.html", misreports, "as extraction.json and openness.json give it"),
                              ("recite.html", mispages, "as the weights give it")]:
        if (e.folder / name).exists():
            try:
                said = look(e)
            except (OSError, ValueError, TypeError, KeyError, IndexError) as error:
                said = f"it is damaged: {error}"
            known = CHECKED if name == "recite.html" else RECORDED
            yield (FAILS, "", name, said) if said else (YES, known, name, words)


def misses(e):
    """What errors.jsonl lists otherwise than the records have it; or ""."""
    paths = [parse_json(line)["path"] for line in (e.folder / "errors.jsonl").read_bytes().splitlines()]
    learned = e.extraction.get("learned")
    wrong = learned["tokens"] - learned["tokens_right"] if learned else len(paths)
    if wrong <= LISTED and len(paths) != wrong:
        return f"it lists {len(paths):,} tokens, extraction.json has {wrong:,} wrong"
    other = set(paths) - {entry["path"] for entry in e.manifest["files"]}
    return f"it lists {min(other)}, which was not learned" if other else ""


def misreports(e):
    """What report.html shows otherwise than the records; or "". It may be of a part, by --only."""
    data = read_report(e.folder)
    sizes = {entry["path"]: entry["bytes"] for entry in e.manifest["files"]}
    if any(row["bytes"] != sizes.get(row["path"]) for row in data["rows"]) or data["files_exact"] != sum(
            row["exact"] for row in data["rows"]):
        return "it has other files than manifest.json, or other figures"
    if any(row["exact"] and (row.get("right", 1), row.get("before_error", row["bytes"])) != (1, row["bytes"])
           for row in data["rows"]) or data.get("bytes_before_error") not in (
            None, sum(row.get("before_error", 0) for row in data["rows"])):
        return "the figures of its files contradict each other"
    if e.looks and data["log"] != e.looks:
        return "it has other full passes than log.jsonl"
    if data["model"] not in (e.stated["model"], name_of(e.folder.resolve())):
        return f"it is of a model {data['model']}"
    if "learned" in data and len(data["rows"]) == len(sizes):
        figures = {key: value for key, value in e.extraction.items() if key != "model_sha256"}
        if not figures or any(data.get(key) != value for key, value in figures.items()):
            return "it is not what extraction.json gives"
    if data.get("openness") not in (None, {key: e.stated[key] for key in ("items", "meets")}):
        return "it has another statement than openness.json"
    return ""


def mispages(e):
    """Why recite.html is not the page that the weights give; or ""."""
    from recite import FORMATS, describe_page, make_page, pack
    if not e.model or not e.tokenizer:
        return "the weights or the pieces cannot be loaded"
    page = (e.folder / "recite.html").read_bytes()
    said = parse_json(re.search(rb'id="about">(.*)</script>', page)[1])
    if said["model"] not in (e.stated["model"], name_of(e.folder.resolve())):
        return f"it is of a model {said['model']}"
    kind = said["format"] if said["format"] in FORMATS else FORMATS[-1]
    about = describe_page(e.model, e.manifest, said["model"], kind, said["tried"])
    weights = b"".join(pack(tensor, kind)[0] for tensor in e.model.tensors().values())
    return "" if page == make_page(about, e.tokenizer, e.manifest["files"], weights) else (
        "it is not the page that the weights give")


def check_columns(e, found):
    """Yields (status, "", column, words) of each definition: by what is found, which what is stated must agree with."""
    stated, now = columns(answers_of(e)), columns(found)
    for name in sorted(e.stated["meets"].keys() - now.keys()):
        yield FAILS, "", name, "openness.json has a column that nothing here gives"
    for name, column in now.items():
        same = stated[name] == e.stated["meets"].get(name)
        yield (column["answer"] if same else FAILS), "", name, (
            f"{column_words(column)}, by these checks" if same else "openness.json says otherwise")


def check_sums(folder):
    """(status, how it is known, name, why) of SHA256SUMS."""
    try:
        made, said = made_sums(folder), (Path(folder) / "SHA256SUMS").read_bytes()
    except FileNotFoundError:
        return FAILS, "", "SHA256SUMS", "it is missing"
    except OSError as error:
        return FAILS, "", "SHA256SUMS", f"{error.filename} cannot be read: {error.strerror}"
    if made == said:
        count = made.count(b"\n")
        return YES, CHECKED, "SHA256SUMS", f"{count} files"
    lines = [set(text.split(b"\n")) for text in (said, made)]
    names = sorted({line[66:].decode(errors="backslashreplace") for line in lines[0] ^ lines[1]} - {""})
    return FAILS, "", "SHA256SUMS", f"wrong, missing or one too many: {', '.join(names) or 'its line ends'}"


def main(argv=None):
    settings = parse(Settings, __doc__, sys.argv[1:] if argv is None else argv)
    folder = Path(settings.model or newest("model"))
    if settings.check:
        if told := [key for key in ("source_archive", *PUBLISHER) if getattr(settings, key)]:
            raise UserError(f"--check writes nothing: leave --{told[0]} out, or --check")
        return check(folder, settings)
    if settings.recite or settings.rebuild or settings.online:
        raise UserError("--recite, --rebuild and --online look further than --check does: give it too")
    if settings.data:
        find_tree(read_manifest(folder, "train or copy it again"), settings.data)
    record = describe(folder, settings.data, settings)
    if not record:
        return 2
    for item in record["items"]:
        print(f"{item['answer']:11} {item['known']:8} {item['number']} {item['item']}: {item['evidence']}")
    print(f"written: {folder}/README.md and what belongs to it; --check checks it")
    return 0


if __name__ == "__main__":
    run_script(main)
