"""The items of the openness table: what is asked, by whom, and how it is judged from the evidence. The texts that they
come from are in docs/openness.md."""
import json

from memory import card, mof
from memory.checkpoint import NAMES, read_metas, read_tensors
from memory.evidence import ARCHIVE
from memory.files import digest_of, files_digest
from memory.licences import count_classes, hub_fields, is_free, recognize
from memory.versions import at_commit, describe_code

YES, NO, UNKNOWN = "yes", "no", "not checked"


# Each is a function of the Evidence that returns (answer, what it rests on)

def listed(e):
    files, text = e.manifest["files"], e.any_survey
    if "the prepared tree" in e.damaged:
        return NO, e.damaged["the prepared tree"]
    if not text:
        return UNKNOWN, "the text is not at hand: prepare the tree, or --recite"
    if wrong := text.wrong(files):
        return NO, f"{len(wrong):,} of {len(files):,} files are not as manifest.json has them in {text.way}: {wrong[0]}"
    return YES, f"{len(files):,} files, {sum(file['bytes'] for file in files):,} bytes"


OF_THE_TREE = ("files", "bytes", "digest", "licence_path", "licence_sha256", "not_prepared")


def contradiction(e):
    """What the model's manifest says otherwise than that of the prepared tree, whose tokens were checked; or ""."""
    if not e.survey or "whole_tree" not in e.tree:
        return ""
    for key, ours, theirs in [("licence", e.manifest["licence"], e.tree["licence"]), *(
            (key, e.manifest["whole_tree"][key], e.tree["whole_tree"][key]) for key in OF_THE_TREE)]:
        if ours != theirs:
            return f"manifest.json says {key} {str(ours)[:80]}, the prepared tree {str(theirs)[:80]}"
    return ""


def origin(e):
    if said := contradiction(e):
        return NO, said
    whole, text = e.manifest["whole_tree"], e.any_survey
    if e.manifest["origin"] == "stand-in":
        return NO, "a stand-in for Linux 1.0: the kernel headers of the machine it was prepared on"
    if text and len(text.hashes) == whole["files"]:
        if (text.swhid, files_digest(text.hashes)) != (whole["swhid"], whole["digest"]):
            return NO, f"manifest.json says {whole['swhid']}, the files make {text.swhid}"
    if e.fetched and (e.fetched.digest, e.fetched.swhid) != (whole["sha256"], whole["swhid"]):
        return NO, f"{whole['url']} serves SHA-256 {e.fetched.digest}, {e.fetched.swhid}"
    if not whole["url"] or not whole["sha256"]:
        return NO, f"prepared from a local copy that is no release known here; {whole['swhid']}"
    return YES, f"{whole['url']}, SHA-256 {whole['sha256']}; {whole['swhid']}"


def complete(e):
    if said := contradiction(e):
        return NO, said
    whole, learned, held_out = e.manifest["whole_tree"], len(e.manifest["files"]), len(e.manifest["held_out"])
    missing, parts = whole["files"] - learned - held_out, f"{learned:,} learned, {held_out:,} held out"
    if missing:
        if not e.writing and len(e.stated["not_learned"]) != missing:
            return NO, f"{missing:,} files are missing, openness.json lists {len(e.stated['not_learned']):,}"
        return NO, f"{parts}, {missing:,} of the tree's {whole['files']:,} files are neither (openness.json lists them)"
    if whole["left_out"]:
        kinds = ", ".join(f"{count:,} {kind}" for kind, count in sorted(whole["left_out"].items()))
        return NO, f"{parts}; of the tree as it came was left out: {kinds}"
    return YES, f"{parts}: all {whole['files']:,} files of the tree"


def unfiltered(e):
    if "the prepared tree" in e.damaged:
        return NO, e.damaged["the prepared tree"]
    if not e.survey:
        return UNKNOWN, "train.bin is not at hand"
    if wrong := e.survey.wrong(e.manifest["files"] + e.manifest["held_out"]):
        return NO, f"{wrong[0]} does not come back from train.bin"
    return YES, f"train.bin (SHA-256 {e.manifest['train_bin_sha256'][:16]}…) gives every file back, byte for byte"


def unlabelled(e):
    return YES, "declared: the only target is the next token of the text itself"


def shareable(e):
    if YES in (origin(e)[0], archived(e)[0]):
        return YES, "follows from item 2 or 7"
    return NO, "follows from neither item 2 nor 7"


def archived(e):
    if ARCHIVE in e.damaged:
        return NO, e.damaged[ARCHIVE]
    if not e.archive:
        return NO, f"{ARCHIVE} is not in the folder; --source_archive adds it"
    if wrong := e.archive.wrong(e.manifest["files"] + e.manifest["held_out"]):
        return NO, f"{wrong[0]} in {ARCHIVE} is not as manifest.json lists it"
    if e.archive.swhid != e.manifest["whole_tree"]["swhid"]:
        return NO, f"{ARCHIVE} holds {e.archive.swhid}, not the tree of manifest.json"
    return YES, f"{ARCHIVE} holds the whole tree, {e.archive.swhid}"


def recited(e):
    files = len(e.manifest["files"])
    if e.recital:
        exact = files - len(e.recital.wrong(e.manifest["files"]))
    elif e.extraction and e.extraction["model_sha256"] == e.weights and e.extraction["files"] == files:
        exact = e.extraction["files_exact"]
    else:
        return UNKNOWN, "no extraction from these weights; --recite makes one"
    return YES if exact == files else NO, f"{exact:,} of {files:,} files come out of the weights with their SHA-256"


def free(e):
    if said := contradiction(e):
        return NO, said
    name, counts = e.manifest["licence"], count_classes(e.manifest["files"])
    for entry in e.manifest["files"] if e.any_survey else ():
        if entry["notice"] != e.any_survey.classes.get(entry["path"]):
            return NO, f"manifest.json has {entry['path']} under {entry['notice']}, its text says otherwise"
    words = "; ".join(f"{kind}: {count:,}" for kind, count in counts.items())
    if not is_free(name):
        return NO, f"the tree's licence: {name or 'none found'}; of the files learned: {words}"
    return YES, f"{name}, by {e.manifest['whole_tree']['licence_path'] or 'SPDX lines'}; of the files learned: {words}"


def has_text(e):
    if said := contradiction(e):
        return NO, said
    sha256, path = e.manifest["whole_tree"]["licence_sha256"], e.manifest["whole_tree"]["licence_path"]
    if not sha256:
        return NO, "the tree has no COPYING or LICENSE"
    if e.any_survey and e.any_survey.hashes.get(path, sha256) != sha256:
        return NO, f"manifest.json does not have {path} as it is in {e.any_survey.way}"
    try:
        found = digest_of(e.folder / "LICENSE")
    except OSError:
        return NO, "LICENSE is missing"
    if found != sha256:
        return NO, f"LICENSE is not the tree's {path}"
    return YES, f"LICENSE is the tree's {path}, SHA-256 {sha256}"


def keeps_notices(e):
    try:
        found = (e.folder / "NOTICES").read_bytes()
    except OSError:
        return NO, "NOTICES is missing"
    files = [entry["path"] for entry in e.manifest["files"]]
    if not e.any_survey:
        return UNKNOWN, "the text is not at hand"
    if found != e.any_survey.notices:
        return NO, "NOTICES is not what the files learned say"
    return YES, f"NOTICES has the words of {found.count(b'==> ')} of {len(files):,} files"


def not_relicensed(e):
    name = e.manifest["licence"]
    wanted, text = hub_fields(name)["license"], e.folder / "LICENSE"
    said = wanted if e.writing else card.front_matter(e.card).get("license")
    if said != wanted:
        return NO, f"README.md says license: {said}, the data's licence is {name} ({wanted})"
    if text.exists() and e.manifest["whole_tree"]["licence_sha256"] and recognize(text.read_bytes()) != name:
        return NO, f"LICENSE is a text of {recognize(text.read_bytes())}, the data's licence is {name}"
    return YES, f"license: {wanted}, that of the data"


def code_known(e):
    code = e.build.get("code")
    if not code:
        return NO, "build.json names no code: it is older than that"
    if code["licence"] != "MIT":
        return NO, f"the code's licence: {code['licence']}"
    if e.writing:  # then the record is what counts
        return YES, code_words(code)
    here = describe_code()["files"]
    differ = [path for path, sha256 in code["files"].items()
              if here.get(path) != sha256 != at_commit(code["commit"], path)]
    if differ:
        return UNKNOWN, f"the code here is another ({differ[0]}): check out what built the model"
    return YES, code_words(code)


def code_words(code):
    commit = f", commit {code['commit']}" if code["commit"] else ""
    changed = f" but for {len(code['changed_since'])} of them" if code["changed_since"] else ""
    return f"{len(code['files'])} files by SHA-256 in build.json{commit}{changed}; {code['licence']}"


def settings_known(e):
    if "build.json" in e.damaged or not e.build:
        return NO, f"build.json: {e.damaged.get('build.json', 'missing')}"
    missing = [key for key in ("settings", "corpus", "built_by", "step", "seconds", "code", "model_sha256")
               if not e.build.get(key) and e.build.get(key) != 0]  # a patch may need no step
    turn = e.build["built_by"][-1] if e.build.get("built_by") else {}
    missing += [key for key in ("torch", "numpy", "python", "processor", "dtype", "threads") if key not in turn]
    if missing:
        return NO, f"build.json lacks {', '.join(missing)}"
    if not e.build["done"]:
        return NO, f"the run is not finished: stopped at step {e.build['step']:,}"
    config = json.loads((e.folder / "config.json").read_bytes())
    other = [key for key in config.keys() & e.build["settings"].keys() if config[key] != e.build["settings"][key]]
    if other:
        return NO, f"build.json and config.json differ in {sorted(other)[0]}"
    return YES, f"{len(e.build['settings'])} settings, {len(e.build['code']['packages'])} packages, the processor"


def weights_whole(e):
    try:
        tensors, _ = read_tensors(e.folder / "model.safetensors", ours=True)
    except ValueError as error:
        return NO, f"model.safetensors: {error}"
    if e.build.get("model_sha256") != e.weights:
        return NO, f"model.safetensors has SHA-256 {e.weights}, build.json says {e.build.get('model_sha256')}"
    foreign = sorted(path.name for path in e.folder.iterdir()
                     if path.suffix in (".py", ".pkl", ".pickle", ".pt", ".pth", ".bin", ".ckpt", ".so"))
    if foreign:
        return NO, f"the folder holds what can run code: {foreign[0]}"
    return YES, f"safetensors, {len(tensors)} tensors, SHA-256 {e.weights}; no pickle, no script"


def built_again(e):
    found = e.built_now or e.rebuilt
    if "rebuilt.json" in e.damaged:
        return NO, f"rebuilt.json: {e.damaged['rebuilt.json']}"
    if not found:
        return UNKNOWN, "verify.py has not built it again"
    if found["model_sha256"] != e.weights:
        return NO, "rebuilt.json is about other weights"
    if found["rebuilt_sha256"] != e.weights:
        return NO, f"another build gave SHA-256 {found['rebuilt_sha256']} on {found['built_by']['processor']}"
    return YES, f"the same SHA-256 on {found['built_by']['processor']}, torch {found['built_by']['torch']}"


def measured(e):
    if "extraction.json" in e.damaged:
        return NO, f"extraction.json: {e.damaged['extraction.json']}"
    if not e.extraction:
        return UNKNOWN, "extract.py has not measured it"
    if e.extraction["model_sha256"] != e.weights:
        return NO, "extraction.json is about other weights"
    learned = e.extraction["learned"]
    return YES, (f"{e.extraction['files_exact']:,} of {e.extraction['files']:,} files exact, "
                 f"{learned['tokens_right']:,} of {learned['tokens']:,} next tokens right")


def personal_counted(e):
    if not e.any_survey:
        return UNKNOWN, "the text is not at hand"
    if not e.writing and e.stated["personal_data"] != e.any_survey.personal:
        return NO, "openness.json has other counts than the files learned"
    return YES, "counted by patterns in the files learned: " + "; ".join(
        f"{name}: {count:,}" for name, count in e.any_survey.personal.items())


def state_kept(e):
    steps = {name: meta["step"] for name, meta in zip(NAMES, read_metas(e.folder))}
    path = e.folder / NAMES[1]
    if NAMES[1] not in steps or steps[NAMES[1]] >= e.build.get("step", 0):
        return NO, "the run kept no state from before its end"
    return YES, f"{path.name}, of step {steps[path.name]:,}, SHA-256 {digest_of(path)}"


def reported(e):
    report = e.build.get("code", {}).get("report", {})
    if not report:
        return NO, "build.json names none"
    (path, sha256), *_ = report.items()
    if not e.writing and describe_code()["report"].get(path) != sha256 != at_commit(e.build["code"]["commit"], path):
        return UNKNOWN, f"{path} here is another"
    return YES, f"{path} beside the code, SHA-256 {sha256}"


def card_whole(e):
    if e.writing:
        return YES, "made from the records in this folder; no line by hand"
    if not e.card:
        return NO, "README.md is missing"
    if not card.front_matter(e.card):
        return NO, "README.md has no front matter that can be read"
    made = card.make(e).splitlines()
    for number, (here, there) in enumerate(zip([*e.card.splitlines(), None], [*made, None]), 1):
        if here != there:
            return NO, f"README.md, line {number}, is not what the records give: {str(here)[:60]!r}"
    return YES, "made from the records in this folder; no line by hand"


ITEMS = {
    1: ("every training file listed: path, bytes, SHA-256", "OSAID 1.0; Software Heritage", listed, "--check"),
    2: ("a public origin, pinned by hash", "OSAID 1.0", origin, "--check --online"),
    3: ("the selection is complete", "OSAID 1.0", complete, "--check"),
    4: ("nothing filtered, nothing lost in tokens", "OSAID 1.0; draft 0.0.8", unfiltered, "--check"),
    5: ("no labels", "OSAID 1.0; draft 0.0.8", unlabelled, "declared"),
    6: ("no data that cannot be shared, none for a fee", "OSAID 1.0", shareable, "--check --online"),
    7: ("the data comes with the model", "FSF; SFC; Debian", archived, "--check"),
    8: ("the data can be had from the weights alone", "this project", recited, "--check --recite"),
    9: ("the data is under a free licence", "FSF; SFC; Debian", free, "--check"),
    10: ("the licence text is in the folder", "the licence", has_text, "--check"),
    11: ("all notices are kept", "Debian (Glaser)", keeps_notices, "--check"),
    12: ("the weights are not relicensed", "Debian (Glaser)", not_relicensed, "--check"),
    13: ("the exact code is identified, under an open licence", "OSAID 1.0", code_known, "--check"),
    14: ("all settings and versions", "OSAID 1.0", settings_known, "--check"),
    15: ("the weights are whole, and hold no code", "OSAID 1.0", weights_whole, "--check"),
    16: ("built again, bit for bit", "SFC", built_again, "--check --rebuild"),
    17: ("memorization measured on these very weights", "this project", measured, "--check"),
    18: ("personal data stated", "this project", personal_counted, "--check"),
    19: ("an intermediate state kept", "MOF, class I", state_kept, "--check"),
    20: ("a technical report", "MOF", reported, "--check"),
    21: ("a class of the MOF", "MOF", None, "--check"),
    22: ("the card is whole", "this project", card_whole, "--check")}
COLUMNS = {"OSAID draft 0.0.8": (3, 4, 5, 13, 14, 15), "OSAID 1.0": (1, 2, 3, 4, 5, 6, 9, 12, 13, 14, 15),
           "FSF": (7, 9, 13, 15), "Debian, Zhou": (7, 13, 15), "Debian, Glaser": (7, 11, 12, 13, 15)}


def mof_class(answers):
    """Item 21, from the answers to the others: {number: answer}."""
    reached, lacking = mof.classify(answers)
    what = f"; the next one asks for: {', '.join(lacking)}" if lacking else ""
    return YES if reached else NO, f"{mof.CLASSES[reached]}{what}"


def judge(e):
    """{item: (answer, what it rests on)} of the Evidence."""
    found = {}
    for number, (_, _, look, _) in ITEMS.items():
        try:
            found[number] = look(e) if look else (UNKNOWN, "")
        except (KeyError, TypeError, ValueError, AttributeError, LookupError, OSError) as error:
            found[number] = NO, f"a record is damaged: {type(error).__name__} {error}"
    found[21] = mof_class({number: answer for number, (answer, _) in found.items()})
    return found


def columns(answers):
    """{column: {"answer", "items", "open"}}: what the answers to the items, {number: answer}, make of each definition;
    open: the items that are not yes."""
    found = {}
    for name, numbers in COLUMNS.items():
        left = [number for number in numbers if answers[number] != YES]
        answer = NO if any(answers[number] == NO for number in left) else UNKNOWN if left else YES
        found[name] = {"answer": answer, "items": list(numbers), "open": left}
    return found
