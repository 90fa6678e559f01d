"""Makes a model's folder say what it is, and checks every statement in it.

    python openness.py                       # newest model under out/: writes its card, licence, notices and records
    python openness.py --check               # makes all of it again, compares, and prints a table
    python openness.py --check --recite      # also: are the files in the weights? writes all of them from their paths
    python openness.py --check --rebuild     # also: does the same data give the same weights? trains again
    python openness.py --check --online      # also: does the public address serve this tree?
    python openness.py --source_archive      # adds source.tar.xz, the tree itself

If the tree is at hand, train.py, extract.py and verify.py write the same when they end. What an item means, and who
asks for it, is in docs/openness.md. Exit status of --check: 0: every "yes" that could be checked here holds; 1: one
does not, and is named; 2: bad use.
"""
import dataclasses
import os
import re
import sys
from pathlib import Path

from memory import card, croissant, mof, processes
from memory.corpus import find_tree, load, read_manifest, texts
from memory.evidence import ARCHIVE, RECORDS, gather, survey, write_archive
from memory.files import digest_of, name_of, newest, remove, write_file, write_json
from memory.items import ITEMS, NO, RECORDED, UNKNOWN, YES, columns, judge, mof_class
from memory.output import UserError, run_script
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
    the tree is not at hand or was prepared before its manifest held enough. data: folder of the prepared tree."""
    if processes.rank() > 0:
        return None
    settings, e = settings or Settings(), gather(folder, data)
    for key in PUBLISHER:
        try:
            getattr(settings, key).encode()
        except UnicodeEncodeError:
            raise UserError(f"--{key} is not UTF-8: {getattr(settings, key)!r}") from None
    if "manifest.json" in e.damaged:
        raise UserError(e.damaged["manifest.json"])
    if not e.survey or not e.build or not e.config:
        damaged = [e.damaged[name] for name in ("the prepared tree", "build.json", "config.json") if name in e.damaged]
        lacks = damaged[0] if damaged else (
            "build.json is missing" if not e.build else
            f"{e.data} was prepared by an older prepare.py: run it again" if e.data else
            "no tree under data/ is the one that it learned: prepare it")
        print(f"{folder} is left without a card: {lacks}, then `{command('openness.py', '--model', folder)}`",
              file=sys.stderr)
        return None
    if settings.source_archive and e.manifest["whole_tree"]["not_prepared"]:
        raise UserError(f"{e.data} holds a part of the tree: prepare the whole for --source_archive")
    e.writing = True
    remove(e.folder / "SHA256SUMS")  # which is written last: so it is there only if all is
    drop_stale(e)
    write_texts(e, settings.source_archive)
    record = state(e, settings)
    write_json(e.folder / "openness.json", record)
    e.stated = record
    write_file(e.folder / "croissant.json", made_croissant(e))
    write_file(e.folder / "mof.yml", made_mof(e))
    write_file(e.folder / "README.md", card.make(e).encode())
    write_sums(e.folder)
    return record


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
    if e.completed:
        write_json(e.folder / "manifest.json", e.manifest)
    if e.manifest["whole_tree"]["licence_path"]:
        write_file(e.folder / "LICENSE", read_licence(e.data))
    else:
        remove(e.folder / "LICENSE")
    write_file(e.folder / "NOTICES", e.survey.notices)
    if source_archive:
        _, tokenizer, tokens = load(e.data)
        files = dict(texts(e.tree["files"], tokenizer, tokens))
        write_file(e.folder / ARCHIVE, write_archive(files, e.manifest["whole_tree"]["executable"]))
        e.archive = survey(files.items(), e.manifest, ARCHIVE)


def read_licence(data):
    """The bytes of the licence that prepare.py kept in its folder. Raises UserError if it is gone."""
    try:
        return (Path(data) / "LICENSE").read_bytes()
    except OSError as error:
        raise UserError(f"{data}/LICENSE cannot be read ({error.strerror}): run prepare.py again") from None


def state(e, settings):
    """The content of openness.json."""
    found = judge(e)
    answers = {number: answer for number, (answer, _) in found.items()}
    before = e.stated.get("publisher", {})
    return {
        "model": e.stated.get("model", name_of(e.folder.resolve())), "model_sha256": e.weights,
        "items": [{"number": number, "item": text, "asked_by": asked, "answer": found[number][0],
                   "evidence": found[number][1], "checked_by": how}
                  for number, (text, asked, _, how) in ITEMS.items()],
        "meets": columns(answers), "personal_data": e.survey.personal,
        "not_learned": not_learned(e),
        "publisher": {key: getattr(settings, key) or before.get(key, "") for key in PUBLISHER}}


def not_learned(e):
    """The paths of the tree's files that are neither learned nor held out, sorted; e must have the text of the others,
    or of all files."""
    kept = {entry["path"] for entry in e.manifest["files"] + e.manifest["held_out"]}
    return sorted((e.survey or e.archive).hashes.keys() - kept | set(e.manifest["whole_tree"]["not_prepared"]))


def made_croissant(e):
    """The bytes of croissant.json, which names files of the folder by their hashes."""
    hashes = {name: digest_of(e.folder / name) for name in ("manifest.json", ARCHIVE) if (e.folder / name).is_file()}
    return croissant.describe(e.manifest, hashes)


def made_mof(e):
    """The bytes of mof.yml, from what openness.json states."""
    licence = e.build.get("code", {}).get("licence")
    return mof.record(e.stated["model"], e.manifest, licence, answers_of(e), e.stated["publisher"])


def answers_of(e):
    """{item: answer} as openness.json states them."""
    return {item["number"]: item["answer"] for item in e.stated["items"]}


def listed_files(folder):
    """The names in a model's folder that SHA256SUMS must have."""
    return sorted(path.name for path in Path(folder).iterdir()
                  if path.is_file() and not path.name.startswith(".") and path.name != "SHA256SUMS")


def read_sums(folder):
    """{name: SHA-256 (hex)} of SHA256SUMS; {} if it is missing."""
    try:
        text = (Path(folder) / "SHA256SUMS").read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:
        return {}
    return {name: sha256 for sha256, name in re.findall(r"^(\w{64})  (.+)$", text, re.M)}


def write_sums(folder, only=None):
    """Writes SHA256SUMS, for `sha256sum -c`; with a list `only`, no more than the lines of these are made anew."""
    sums = read_sums(folder) if only else {}
    sums |= {name: digest_of(Path(folder) / name) for name in only or listed_files(folder)}
    lines = "".join(f"{sums[name]}  {name}\n" for name in sorted(sums))
    write_file(Path(folder) / "SHA256SUMS", lines.encode("utf-8", "surrogateescape"))


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
    if settings.rebuild:
        if not e.build:
            raise UserError(e.damaged.get("build.json", "build.json is missing: --rebuild cannot tell what to build"))
        from verify import Stopped, rebuild
        try:
            e.built_now, _ = rebuild(e.folder, settings.data)
        except Stopped:
            raise UserError("the build was stopped; the same command goes on with it") from None
    whole = e.manifest["whole_tree"]
    if settings.online and whole["url"]:
        from prepare import fetch, rooted, sha256_of
        from prepare import read_archive as members
        file = fetch(whole["url"], 2**32)
        root = e.manifest["files"][0]["path"].split("/")[0]
        digest, tree = sha256_of(file), rooted(members(file, 2**32, whole["url"]), os.fsdecode(unquote(root)))
        e.fetched = dataclasses.replace(survey(tree.files.items(), e.manifest, whole["url"], tree.executable),
                                        digest=digest)


# Checking

RESTS_ON = {8: "extraction", 16: "rebuilt", 17: "extraction"}  # the records without which a plain "yes" has no ground


def check(folder, settings):
    """Makes again what the folder states, compares, prints a table; returns the exit status."""
    e = gather(folder, settings.data)
    if not e.stated and "openness.json" not in e.damaged and not (e.folder / "SHA256SUMS").exists():
        raise UserError(f"{folder} states nothing of itself yet: run `{command('openness.py', '--model', folder)}`")
    rows = []
    if "manifest.json" in e.damaged or "whole_tree" not in e.manifest:
        rows.append(("FAILS", "1 every training file listed", e.damaged.get(
            "manifest.json", "manifest.json is older than what is stated: prepare the tree, and state it anew")))
    elif said := misstated(e):
        rows.append(("FAILS", "openness.json", said))
    else:
        look_further(e, settings)
        rows += [*check_items(e), *check_records(e)]
    rows.append(check_sums(e.folder))
    for status, what, why in rows:
        print(f"{status:12} {what}: {why}")
    failed = [what for status, what, _ in rows if status == "FAILS"]
    unknown = sum(status == UNKNOWN for status, _, _ in rows)
    print(f"{len(failed)} statements do not hold: {'; '.join(failed)}" if failed else
          "every yes that was checked holds" + (f"; {unknown} rows were not checked here" if unknown else ""))
    return 1 if failed else 0


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
        if item["answer"] not in (YES, NO, UNKNOWN):
            return f"its item {item['number']} is answered {item['answer'][:40]!r}"
    if e.stated["personal_data"].keys() != Count().counts.keys():
        return "its personal_data has other rows than are counted"
    return ""


def check_items(e):
    """Yields (status, item, why) of each item: what openness.json states against what is found now."""
    found, answers = judge(e), answers_of(e)
    found[21] = mof_class(answers)  # follows from the other answers as they are stated
    for item in e.stated["items"]:
        number, said, what = item["number"], item["answer"], f"{item['number']} {item['item']}"
        answer, why = found[number]
        lost = answer == UNKNOWN and said == YES and number in RESTS_ON and not getattr(e, RESTS_ON[number])
        other = answer not in (said, UNKNOWN) and (answer, said) != (YES, UNKNOWN)
        if lost or other:
            yield "FAILS", what, f"openness.json says {said}; {why}"
        elif answer == said and item["evidence"] not in (why, RECORDED + why) and not (number == 16 and e.built_now):
            yield "FAILS", what, f"openness.json says {item['evidence']!r}, found: {why!r}"
        else:
            yield answer, what, why


def check_records(e):
    """Yields (status, name, why) of the files and lists that are made from openness.json and the manifest."""
    for name, made in [("croissant.json", made_croissant(e)), ("mof.yml", made_mof(e))]:
        path = e.folder / name
        same = path.is_file() and path.read_bytes() == made
        yield "yes" if same else "FAILS", name, "as the records give it" if same else (
            "it is not what the records give" if path.exists() else "it is missing")
    if e.stated["model_sha256"] != e.weights:
        yield "FAILS", "openness.json", "it is about other weights"
    if not e.survey and not e.archive:
        yield UNKNOWN, "not_learned", "the tree is not at hand: prepare it"
    else:
        same, listed = sorted(e.stated["not_learned"]) == not_learned(e), len(e.stated["not_learned"])
        yield ("yes", "not_learned", f"{listed:,} files") if same else (
            "FAILS", "not_learned", f"openness.json lists {listed:,} files, and not the {len(not_learned(e)):,} of it")
    made = columns(answers_of(e))
    for name in sorted(e.stated["meets"].keys() - made.keys()):
        yield "FAILS", name, "openness.json has a column that nothing here gives"
    for name, column in made.items():
        same, left = column == e.stated["meets"].get(name), ", ".join(map(str, column["open"]))
        words = {YES: "meets it, by these checks", NO: f"does not meet it, by these checks: items {left}",
                 UNKNOWN: f"not checked: items {left}"}[column["answer"]]
        yield column["answer"] if same else "FAILS", name, words if same else "openness.json says otherwise"


def check_sums(folder):
    """(status, name, why) of SHA256SUMS."""
    sums, there = read_sums(folder), listed_files(folder)
    missing, new = sorted(sums.keys() - set(there)), [name for name in there if name not in sums]
    other, unread = [], []
    for name in sums.keys() & set(there):
        try:
            if digest_of(Path(folder) / name) != sums[name]:
                other.append(name)
        except OSError:
            unread.append(name)
    faults = [(missing, "is missing"), (sorted(other), "has other bytes"), (sorted(unread), "cannot be read"),
              (new, "is not listed")]
    wrong = [f"{name} {how}" for names, how in faults for name in names] if sums else ["it is missing"]
    return ("FAILS", "SHA256SUMS", ", ".join(wrong)) if wrong else ("yes", "SHA256SUMS", f"{len(sums)} files")


def main(argv=None):
    settings = parse(Settings, __doc__, sys.argv[1:] if argv is None else argv)
    folder = Path(settings.model or newest("model"))
    if settings.check:
        return check(folder, settings)
    if settings.recite or settings.rebuild or settings.online:
        raise UserError("--recite, --rebuild and --online look further than --check does: give it too")
    if settings.data:
        find_tree(read_manifest(folder, "train or copy it again"), settings.data)
    record = describe(folder, settings.data, settings)
    if not record:
        return 2
    for item in record["items"]:
        print(f"{item['answer']:12} {item['number']} {item['item']}: {item['evidence']}")
    print(f"written: {folder}/README.md and what belongs to it; --check checks it")
    return 0


if __name__ == "__main__":
    run_script(main)
