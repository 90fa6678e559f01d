"""The items of the openness table: what is asked, by whom, and how it is judged from the evidence. The texts that they
come from are in docs/openness.md."""
from memory import card, mof
from memory.checkpoint import NAMES, read_tensors
from memory.corpus import CORPUS
from memory.evidence import ARCHIVE, read_plain
from memory.files import digest_of
from memory.licences import COPYRIGHT_ONLY, SILENT, UNJUDGED, count_classes, hub_fields, is_free, recognize
from memory.run import OF_A_RUN
from memory.versions import REPORT, at_commit, describe_code, digest_of_code

YES, NO, UNKNOWN = "yes", "no", "not checked"
RECORDED = "recorded: "  # how the evidence of a "yes" begins that only reads a record, and made nothing again


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


OF_THE_TREE = (2, 3, 9, 10, 12)  # items that rest on what manifest.json says of the whole tree


def contradiction(e):
    """What manifest.json says of the whole tree otherwise than the tree at hand; or ""."""
    way, there = e.whole
    ours = e.manifest["whole_tree"] | {"licence": e.manifest["licence"]}
    for key in ("licence", "files", "bytes", "digest", "licence_path", "licence_sha256", "not_prepared"):
        if key in there and ours[key] != there[key]:
            return f"manifest.json says {key} {str(ours[key])[:80]}, {way} {str(there[key])[:80]}"
    return ""


def origin(e):
    whole, text = e.manifest["whole_tree"], e.any_survey
    if e.manifest["origin"] == "stand-in":
        return NO, "a stand-in for Linux 1.0: the kernel headers of the machine it was prepared on"
    if text and len(text.hashes) == whole["files"] and text.swhid != whole["swhid"]:
        return NO, f"manifest.json says {whole['swhid']}, the files make {text.swhid}"
    if e.fetched and (e.fetched.digest, e.fetched.swhid) != (whole["sha256"], whole["swhid"]):
        return NO, f"{whole['url']} serves SHA-256 {e.fetched.digest}, {e.fetched.swhid}"
    if not whole["url"] or not whole["sha256"]:
        return NO, f"no public address: prepared from a local copy that is no release known here; {whole['swhid']}"
    return YES, f"{'' if e.fetched else RECORDED}{whole['url']}, SHA-256 {whole['sha256']}; {whole['swhid']}"


def complete(e):
    whole, learned, held_out = e.manifest["whole_tree"], len(e.manifest["files"]), len(e.manifest["held_out"])
    missing, parts = whole["files"] - learned - held_out, f"{learned:,} learned, {held_out:,} held out"
    if missing:
        return NO, f"{parts}, {missing:,} of the tree's {whole['files']:,} files are neither (openness.json lists them)"
    if whole["left_out"]:
        kinds = ", ".join(f"{count:,} {kind}" for kind, count in sorted(whole["left_out"].items()))
        return NO, f"{parts}; of the tree as it came was left out: {kinds}"
    return YES, f"{parts}: all {whole['files']:,} files of the tree"


def unfiltered(e):
    if "the prepared tree" in e.damaged:
        return NO, e.damaged["the prepared tree"]
    if not e.survey or any(e.tree[key] != e.manifest[key] for key in CORPUS):
        return UNKNOWN, "train.bin is not at hand"
    if wrong := e.survey.wrong(e.manifest["files"] + e.manifest["held_out"]):
        return NO, f"{wrong[0]} does not come back from train.bin"
    return YES, f"train.bin (SHA-256 {e.manifest['train_bin_sha256'][:16]}…) gives every file back, byte for byte"


def unlabelled(e):
    return YES, "declared: the only target is the next token of the text itself"


def shareable(answers):
    """Item 6, from the answers to the others: {number: answer}."""
    if YES in (answers[2], answers[7]):
        return YES, "follows from item 2 or 7"
    return (UNKNOWN if answers[2] == UNKNOWN else NO), "follows from neither item 2 nor 7"


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


def mismeasured(e):
    """What extraction.json says that the manifest, the weights or its own figures rule out; or ""."""
    found, entries = e.extraction, e.manifest["files"]
    learned, control, size = found["learned"], found.get("control"), sum(entry["bytes"] for entry in entries)
    bits = max(0, e.manifest["compressed_bits"] - (e.manifest.get("piece_bits") or 0))
    for what, said, true in [
            ("model_sha256", found["model_sha256"], e.weights), ("name", found["name"], e.manifest["name"]),
            ("licence", found["licence"], e.manifest["licence"]), ("tree", found["tree"], e.manifest["tree"]),
            ("files", found["files"], len(entries)), ("bytes", found["bytes"], size),
            ("parameters", found["parameters"], e.parameters),
            ("compressed_by", found["compressed_by"], e.manifest["compressed_by"]),
            ("bits_per_parameter", found["bits_per_parameter"], bits / max(1, e.parameters)),
            ("the files held out", control["files"] if control else 0, len(e.manifest["held_out"]))]:
        if said != true:
            return f"extraction.json says {what} {str(said)[:70]}, it is {str(true)[:70]}"
    if found["files_exact"] > found["files"] or found["bytes_exact"] > size or (
            found["files_exact"] == found["files"] and found["bytes_exact"] < size):
        return f"extraction.json has {found['bytes_exact']:,} bytes exact in {found['files_exact']:,} files"
    if learned["tokens_right"] == learned["tokens"] and found["files_exact"] < found["files"]:
        return "extraction.json has every next token right, and not every file"
    for part in filter(None, (learned, control)):
        share = part["tokens_right"] / max(1, part["tokens"])
        if share > 1 or abs(part["accuracy"] - share) > 1e-9:
            return f"extraction.json has {part['tokens_right']:,} of {part['tokens']:,} tokens right, and another share"
    return ""


def recited(e):
    files = len(e.manifest["files"])
    if e.recital:
        exact = files - len(e.recital.wrong(e.manifest["files"]))
    elif not e.extraction:
        return UNKNOWN, e.damaged.get("extraction.json", "no extraction from these weights; --recite makes one")
    elif said := mismeasured(e):
        return NO, said
    else:
        exact = e.extraction["files_exact"]
    if exact < files:
        return NO, f"{exact:,} of {files:,} files come out of the weights with their SHA-256"
    how = "" if e.recital else RECORDED
    return YES, f"{how}{exact:,} of {files:,} files come out of the weights with their SHA-256"


def free(e):
    name, counts = e.manifest["licence"], count_classes(e.manifest["files"])
    for entry in e.manifest["files"] if e.any_survey else ():
        if entry["notice"] != e.any_survey.classes.get(entry["path"]):
            return NO, f"manifest.json has {entry['path']} under {entry['notice']}, its text says otherwise"
    words = "; ".join(f"{kind}: {count:,}" for kind, count in counts.items())
    if not is_free(name):
        return NO, f"the tree's licence: {name or 'none found'}; of the files learned: {words}"
    own = [entry["path"] for entry in e.manifest["files"] if set(entry["notice"]) & set(UNJUDGED)]
    path, silent = e.manifest["whole_tree"]["licence_path"], counts.get(SILENT, 0) + counts.get(COPYRIGHT_ONLY, 0)
    by = f"{name}, by {path or 'SPDX lines'}"
    if silent and not path:
        return UNKNOWN, f"{by}; {silent:,} of the files learned name no licence, and the tree has none: {words}"
    if own:
        return UNKNOWN, f"{by}; of the files learned, a person must read the words of {len(own):,}: {words}"
    return YES, f"{by}; of the files learned: {words}"


def has_text(e):
    sha256, path = e.manifest["whole_tree"]["licence_sha256"], e.manifest["whole_tree"]["licence_path"]
    if not sha256:
        return NO, "the tree has no COPYING or LICENSE"
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
    speaking = found.count(b"\n==> ")
    return YES, f"NOTICES has the words of {speaking:,} of {len(files):,} files"


def not_relicensed(e):
    name = e.manifest["licence"]
    wanted = hub_fields(name)["license"]
    said = wanted if e.writing else card.front_matter(e.card).get("license")
    if said != wanted:
        return NO, f"README.md says license: {said}, the data's licence is {name} ({wanted})"
    try:
        text = recognize((e.folder / "LICENSE").read_bytes())
    except OSError:  # item 10 says so
        return YES, f"license: {wanted}, that of the data"
    if e.manifest["whole_tree"]["licence_sha256"] and text != name:
        found = f"a text of {text}" if text else "no licence text that is known"
        return NO, f"LICENSE is {found}, the data's licence is {name}"
    return YES, f"license: {wanted}, that of the data"


def code_known(e):
    code = e.build.get("code")
    if not code:
        return NO, e.damaged.get("build.json", "build.json names no code: it is older than that")
    if code["licence"] != "MIT":
        return NO, f"the code's licence: {code['licence']}"
    digest = digest_of_code(code["files"])[:16]
    for turn in e.build["built_by"]:
        if turn.get("code") != digest:
            return NO, (f"build.json lists the files of code {digest}…, and of the turn from step "
                        f"{turn.get('from_step')} the code was {turn.get('code')}…")
    commit = f", commit {code['commit']}" if code["commit"] else ""
    changed = f" but for {len(code['changed_since'])} of them" if code["changed_since"] else ""
    words = f"{len(code['files'])} files by SHA-256 in build.json{commit}{changed}; {code['licence']}"
    if e.writing:  # then the record is what counts
        return YES, words
    here, there = describe_code()["files"], at_commit(code["commit"])
    if code["commit"] and not there:
        return UNKNOWN, f"commit {code['commit'][:40]} is not known here: fetch it with git"
    for path, sha256 in code["files"].items():
        if there and path not in code["changed_since"]:
            if there.get(path) != sha256:
                return NO, f"build.json has another {path} than commit {code['commit']}"
        elif here.get(path) != sha256:
            return UNKNOWN, f"the code here is another ({path}): check out what built the model"
    return YES, words


def settings_known(e):
    for name, record in [("build.json", e.build), ("config.json", e.config)]:
        if not record:
            return NO, e.damaged.get(name, f"{name} is missing")
    missing = [key for key in ("settings", "corpus", "built_by", "step", "seconds", "code", "model_sha256")
               if not e.build.get(key) and e.build.get(key) != 0]  # a patch may need no step
    turn = e.build["built_by"][-1] if e.build.get("built_by") else {}
    missing += [key for key in ("torch", "numpy", "python", "processor", "dtype", "threads") if key not in turn]
    if missing:
        return NO, f"build.json lacks {', '.join(missing)}"
    if not e.build["done"]:
        return NO, f"the run is not finished: stopped at step {e.build['step']:,}"
    other = [key for key in e.config.keys() & e.build["settings"].keys() if e.config[key] != e.build["settings"][key]]
    if other:
        return NO, f"build.json and config.json differ in {sorted(other)[0]}"
    return YES, f"{len(e.build['settings'])} settings, {len(e.build['code']['packages'])} packages, the processor"


WRITTEN = {  # all that the scripts write into a model's folder
    *OF_A_RUN, *NAMES, "LICENSE", "NOTICES", ARCHIVE, "manifest.json", "config.json", "generation_config.json",
    "tokenizer.model", "tokenizer.json", "tokenizer_config.json", "log.jsonl", "trace.html"}
HIDDEN = {".lock", ".git", ".gitattributes", ".cache"}  # a run's, and those of git and the hub, which nothing loads
LOADED = ("config.json", "generation_config.json", "tokenizer_config.json", "tokenizer.json")  # by transformers
CODE = {"auto_map", "chat_template", "custom_pipelines"}  # keys that are, or name, what runs


def weights_whole(e):
    try:
        tensors, _ = read_tensors(e.folder / "model.safetensors", ours=True)
    except (OSError, ValueError) as error:
        return NO, f"model.safetensors: {error}"
    if e.build.get("model_sha256") != e.weights:
        return NO, f"model.safetensors has SHA-256 {e.weights}, build.json says {e.build.get('model_sha256')}"
    if foreign := sorted(path.name for path in e.folder.iterdir()
                         if path.name not in HIDDEN and (path.name not in WRITTEN or path.is_dir())):
        return NO, f"the folder holds what this project does not write there: {foreign[0]}"
    for name in LOADED:
        try:
            if found := sorted(CODE & set(read_plain(e.folder / name))):
                return NO, f"{name} has {found[0]}, which is code"
        except FileNotFoundError:
            continue
        except (OSError, ValueError, TypeError) as error:
            return NO, f"{name} is damaged: {error}"
    return YES, f"safetensors, {len(tensors)} tensors, SHA-256 {e.weights}; no code that loads with the weights"


SURROUNDINGS = ("processor", "system", "device", "dtype", "threads", "processes", "torch", "numpy", "safetensors",
                "python", "code")  # which decide the bits of the weights


def built_again(e):
    found = e.built_now or e.rebuilt
    if not found:
        return (NO, e.damaged["rebuilt.json"]) if "rebuilt.json" in e.damaged else (
            UNKNOWN, "verify.py has not built it again")
    if found["model_sha256"] != e.weights:
        return NO, "rebuilt.json is about other weights"
    how, here, there = "" if e.built_now else RECORDED, found["built_by"][-1], (e.build.get("built_by") or [{}])[-1]
    if found["rebuilt_sha256"] == e.weights:
        return YES, f"{how}the same SHA-256 on {here['processor']}, torch {here['torch']}"
    if differ := [key for key in SURROUNDINGS if here.get(key) != there.get(key)]:
        return UNKNOWN, f"built again with another {differ[0]}, which may well give SHA-256 {found['rebuilt_sha256']}"
    return NO, f"another build gave SHA-256 {found['rebuilt_sha256']} on {here['processor']}"


def measured(e):
    if not e.extraction:
        return (NO, e.damaged["extraction.json"]) if "extraction.json" in e.damaged else (
            UNKNOWN, "extract.py has not measured it")
    if said := mismeasured(e):
        return NO, said
    learned = e.extraction["learned"]
    return YES, (f"{RECORDED}{e.extraction['files_exact']:,} of {e.extraction['files']:,} files exact, "
                 f"{learned['tokens_right']:,} of {learned['tokens']:,} next tokens right")


def personal_counted(e):
    if not e.any_survey:
        return UNKNOWN, "the text is not at hand"
    if not e.writing and e.stated["personal_data"] != e.any_survey.personal:
        return NO, "openness.json has other counts than the files learned"
    return YES, "counted by patterns in the files learned: " + "; ".join(
        f"{name}: {count:,}" for name, count in e.any_survey.personal.items())


def state_kept(e):
    if NAMES[1] in e.damaged:
        return NO, e.damaged[NAMES[1]]
    if not e.state or e.state["step"] >= e.build.get("step", 0):
        return NO, "the run kept no state from before its end"
    if any(e.state["corpus"].get(key) != e.manifest[key] for key in CORPUS):
        return NO, f"{NAMES[1]} is of a run on another tree"
    return YES, f"{RECORDED}{NAMES[1]}, of step {e.state['step']:,}, SHA-256 {digest_of(e.folder / NAMES[1])}"


def reported(e):
    code = e.build.get("code", {})
    sha256 = code.get("report", {}).get(REPORT)
    if not sha256:
        return NO, f"build.json does not have {REPORT}"
    if not e.writing and sha256 not in (describe_code()["report"].get(REPORT), at_commit(code["commit"]).get(REPORT)):
        return UNKNOWN, f"{REPORT} here is another"
    return YES, f"{REPORT} beside the code, SHA-256 {sha256}"


def card_whole(e):
    if e.writing:
        return YES, "made from the records in this folder; no line by hand"
    if not e.card:
        return NO, "README.md is missing"
    if not e.build or not e.config:
        return NO, "what it is made from is missing: build.json or config.json"
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
    3: ("the selection is complete", "OSAID 1.0; draft 0.0.8", complete, "--check"),
    4: ("nothing filtered, nothing lost in tokens", "OSAID 1.0; draft 0.0.8", unfiltered, "--check"),
    5: ("no labels", "OSAID 1.0; draft 0.0.8", unlabelled, "declared"),
    6: ("no data that cannot be shared, none for a fee", "OSAID 1.0", None, "--check --online"),
    7: ("the data comes with the model", "FSF; SFC; Debian", archived, "--check"),
    8: ("the data can be had from the weights alone", "this project", recited, "--check --recite"),
    9: ("the data is under a free licence", "OSAID 1.0; FSF; SFC; Debian's ML policy", free, "--check"),
    10: ("the licence text is in the folder", "the licence", has_text, "--check"),
    11: ("all notices are kept", "Debian (Glaser)", keeps_notices, "--check"),
    12: ("the weights are not relicensed", "OSAID 1.0; Debian (Glaser)", not_relicensed, "--check"),
    13: ("the exact code is identified, under an open licence", "OSAID 1.0; draft 0.0.8; FSF; Debian", code_known,
         "--check"),
    14: ("all settings and versions", "OSAID 1.0; draft 0.0.8", settings_known, "--check"),
    15: ("the weights are whole, and hold no code", "OSAID 1.0; draft 0.0.8; FSF; Debian", weights_whole, "--check"),
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
    found, said, (_, tree) = {}, contradiction(e), e.whole
    for number, (_, _, look, _) in ITEMS.items():
        found[number] = look(e) if look else (UNKNOWN, "")
        if number in OF_THE_TREE and said:
            found[number] = NO, said
        elif number in OF_THE_TREE and not tree and found[number][0] == YES:
            found[number] = UNKNOWN, "the tree is not at hand: prepare it"
    for number, follows in [(6, shareable), (21, mof_class)]:
        found[number] = follows({other: answer for other, (answer, _) in found.items()})
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
