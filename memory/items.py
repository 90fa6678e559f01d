"""The items of the openness table: what is asked, by whom, and how it is judged from the evidence. The texts that they
come from are in docs/openness.md.

An answer says how it is known. What was made again or compared just now is checked. What a record in the folder says,
and nothing at hand contradicts, is recorded. What rests on the word of whoever publishes the model is declared.
"""
import collections
import dataclasses
import math
import re

from memory import card, mof, source
from memory.checkpoint import NAMES
from memory.corpus import CORPUS
from memory.evaluate import PREFIX, SUFFIX
from memory.evidence import ARCHIVE, differences
from memory.files import digest_of, json_digest, name_of
from memory.licences import COPYRIGHT_ONLY, SILENT, UNJUDGED, count_classes, hub_fields, is_free, recognize
from memory.output import UserError
from memory.run import OF_A_RUN, PLACES
from memory.settings import mistyped
from memory.tokenizer import choose_packer, compressed_bits
from memory.versions import REPORT, at_commit, describe_code, digest_of_code, files_here

YES, NO, UNKNOWN = "yes", "no", "not checked"
CHECKED, RECORDED, DECLARED = "checked", "recorded", "declared"
Answer = collections.namedtuple("Answer", ("answer", "why", "known"))  # known: "" of what is not


def yes(why, known=CHECKED):
    return Answer(YES, why, known)


def no(why, known=CHECKED):
    return Answer(NO, why, known)


def unknown(why):
    return Answer(UNKNOWN, why, "")


def known_if(thing):
    return CHECKED if thing else RECORDED


# Each is a function of the Evidence that returns an Answer

def listed(e):
    files = e.manifest["files"]
    if "the prepared tree" in e.damaged:
        return no(e.damaged["the prepared tree"])
    if e.any_survey and (wrong := e.any_survey.wrong(files)):
        return no(f"{len(wrong):,} of {len(files):,} files are not as manifest.json has them in {e.any_survey.way}: "
                  f"{wrong[0]}")
    return yes(f"{len(files):,} files, {sum(file['bytes'] for file in files):,} bytes", known_if(e.made))


RELEASE = f"{source.MIRRORS[0]}/v{source.VERSION}/linux-{source.VERSION}.tar.gz", source.SHA256


def origin(e):
    whole = e.manifest["whole_tree"]
    if e.manifest["origin"] == "stand-in":
        return no("a stand-in for Linux 1.0: the kernel headers of the machine it was prepared on")
    if e.fetched and e.fetched.digest != whole["sha256"]:
        return no(f"{whole['url']} serves SHA-256 {e.fetched.digest}")
    released = whole["digest"] == source.FILES_DIGEST
    if not released and (whole["sha256"] == RELEASE[1] or whole["url"] == RELEASE[0]):
        return no(f"manifest.json has the address of Linux 1.0, and these files are not its: {whole['digest']}")
    if not whole["url"] or not whole["sha256"]:
        return no(f"no public address: prepared from a local copy that is no release known here; {whole['swhid']}")
    return yes(f"{whole['url']}, SHA-256 {whole['sha256']}; {whole['swhid']}",
               known_if(e.fetched or e.made and released and (whole["url"], whole["sha256"]) == RELEASE))


def complete(e):
    whole, learned, held_out = e.manifest["whole_tree"], len(e.manifest["files"]), len(e.manifest["held_out"])
    missing, parts = whole["files"] - learned - held_out, f"{learned:,} learned, {held_out:,} held out"
    left_out = {kind: count for kind, count in whole["left_out"].items() if kind not in source.NOT_OF_THE_TREE}
    if missing:
        return no(f"{parts}, {missing:,} of the tree's {whole['files']:,} files are neither (openness.json lists them)",
                  known_if(e.survey))
    if left_out:
        kinds = ", ".join(f"{count:,} {kind}" for kind, count in sorted(left_out.items()))
        return no(f"{parts}; of the tree as it came was left out: {kinds}", known_if(e.survey))
    return yes(f"{parts}: all {whole['files']:,} files of the tree", known_if(e.survey))


def unfiltered(e):
    if "the prepared tree" in e.damaged:
        return no(e.damaged["the prepared tree"])
    if e.survey and (wrong := e.survey.wrong(e.manifest["files"] + e.manifest["held_out"])):
        return no(f"{wrong[0]} does not come back from train.bin")
    return yes(f"train.bin (SHA-256 {e.manifest['train_bin_sha256'][:16]}…) gives every file back, byte for byte",
               known_if(e.made))


def unlabelled(e):
    return yes("the only target is the next token of the text itself", DECLARED)


def shareable(found):
    """Item 6, from the answers to the others: {number: Answer}."""
    if by := [found[number] for number in (7, 2) if found[number].answer == YES]:
        return yes("follows from item 2 or 7", CHECKED if CHECKED in [answer.known for answer in by] else RECORDED)
    unsaid = UNKNOWN in (found[2].answer, found[7].answer)
    return (unknown if unsaid else no)("follows from neither item 2 nor 7")


def built_alike(e):
    """Whether the weights were built from this tree just now."""
    return (e.built_now or {}).get("rebuilt_sha256") == e.weights


def archived(e):
    if ARCHIVE in e.damaged:
        return no(e.damaged[ARCHIVE])
    if not e.archive:
        return no(f"{ARCHIVE} is not in the folder; --source_archive adds it")
    if wrong := e.archive.wrong(e.manifest["files"] + e.manifest["held_out"]):
        return no(f"{wrong[0]} in {ARCHIVE} is not as manifest.json lists it")
    if e.archive.whole["swhid"] != e.manifest["whole_tree"]["swhid"]:
        return no(f"{ARCHIVE} holds {e.archive.whole['swhid']}, not the tree of manifest.json")
    seen = e.recital and not e.recital.wrong(e.manifest["files"]) or built_alike(e)  # that the weights learned it
    return yes(f"{ARCHIVE} holds the whole tree that the weights learned, {e.archive.whole['swhid']}", known_if(seen))


def mismeasured(e):
    """What extraction.json says that the manifest, the weights, the text or its own figures rule out; or ""."""
    found, entries = e.extraction, e.manifest["files"]
    learned, control, size = found["learned"], found.get("control"), sum(entry["bytes"] for entry in entries)
    bits = max(0, e.manifest["compressed_bits"] - e.manifest["piece_bits"])
    _, preset = choose_packer(size)
    facts = [
        ("model_sha256", found["model_sha256"], e.weights), ("parameters", found["parameters"], e.parameters),
        *((key, found[key], e.manifest[key])
          for key in ("name", "origin", "licence", "tree", "compressed_by", "piece_bytes", "piece_bits")),
        ("files", found["files"], len(entries)), ("bytes", found["bytes"], size), ("refused", found["refused"], []),
        ("bits_per_parameter", found["bits_per_parameter"], bits / max(1, e.parameters)),
        ("the files held out", control["files"] if control else 0, len(e.manifest["held_out"]))]
    if e.tokenizer:
        facts.append(("tokenizer_packed_bytes", found["tokenizer_packed_bytes"],
                      compressed_bits([e.tokenizer.proto], preset) // 8))
    for part, windows in ((learned, e.windows), (control, e.control)):
        if part and windows:
            spans = int((windows.length - windows.start > PREFIX + SUFFIX).sum())
            facts += [("tokens", part["tokens"], windows.scored), ("spans", part["spans"], spans)]
    for what, said, true in facts:
        if said != true:
            return f"extraction.json says {what} {str(said)[:70]}, it is {str(true)[:70]}"
    exact, whole = found["files_exact"] == found["files"], learned["tokens_right"] == learned["tokens"]
    if found["files_exact"] > found["files"] or not (
            found["bytes_exact"] <= found["bytes_before_error"] <= size) or exact != (found["bytes_exact"] == size):
        return (f"extraction.json has {found['bytes_exact']:,} bytes exact in {found['files_exact']:,} files, "
                f"{found['bytes_before_error']:,} before errors")
    if whole and not exact:
        return "extraction.json has every next token right, and not every file"
    for part in filter(None, (learned, control)):
        share = part["tokens_right"] / max(1, part["tokens"])
        if share > 1 or abs(part["accuracy"] - share) > 1e-9:
            return f"extraction.json has {part['tokens_right']:,} of {part['tokens']:,} tokens right, and another share"
        if part["longest_run"] > size and part is learned:
            return f"extraction.json has a run of {part['longest_run']:,} bytes in {size:,}"
    return otherwise_now(e)


def otherwise_now(e):
    """What extraction.json says otherwise than what was measured now; or "". Another machine rounds otherwise."""
    for name in ("learned", "control") if e.measured_now else ():
        for key, true in e.measured_now.get(name, {}).items():
            said = e.extraction[name][key]
            if said != true if isinstance(true, int) else not math.isclose(said or 0, true or 0, rel_tol=0.05,
                                                                           abs_tol=1e-3):
                return f"extraction.json says {name} {key} {said}, it is {true}"
    return ""


def recited(e):
    files = len(e.manifest["files"])
    if e.recital:
        exact = files - len(e.recital.wrong(e.manifest["files"]))
    elif not e.extraction:
        return no(e.damaged["extraction.json"]) if "extraction.json" in e.damaged else unknown(
            "no extraction from these weights; --recite makes one")
    elif said := mismeasured(e):
        return no(said)
    else:
        exact = e.extraction["files_exact"]
    words = f"{exact:,} of {files:,} files come out of the weights with their SHA-256"
    return (no if exact < files else yes)(words, known_if(e.recital))


def free(e):
    name, counts = e.manifest["licence"], count_classes(e.manifest["files"])
    words = "; ".join(f"{kind}: {count:,}" for kind, count in counts.items())
    known = known_if(e.any_survey and e.made)
    if not is_free(name):
        there = name or e.manifest["whole_tree"]["licence_path"]
        why = f"the tree's licence: {there or 'none found'}; of the files learned: {words}"
        return unknown(why) if there else no(why, known)
    own = [entry["path"] for entry in e.manifest["files"] if set(entry["notice"]) & set(UNJUDGED)]
    path, silent = e.manifest["whole_tree"]["licence_path"], counts.get(SILENT, 0) + counts.get(COPYRIGHT_ONLY, 0)
    by = f"{name}, by {path or 'SPDX lines'}"
    if silent and not path:
        return unknown(f"{by}; {silent:,} of the files learned name no licence, and the tree has none: {words}")
    if own:
        return unknown(f"{by}; of the files learned, a person must read the words of {len(own):,}: {words}")
    return yes(f"{by}; of the files learned: {words}", known)


def has_text(e):
    sha256, path = e.manifest["whole_tree"]["licence_sha256"], e.manifest["whole_tree"]["licence_path"]
    if not sha256:
        return no("the tree has no COPYING or LICENSE", known_if(e.made))
    try:
        found = digest_of(e.folder / "LICENSE")
    except OSError:
        return no("LICENSE is missing")
    if found != sha256:
        return no(f"LICENSE is not the tree's {path}")
    return yes(f"LICENSE is the tree's {path}, SHA-256 {sha256}", known_if(e.made))


def keeps_notices(e):
    try:
        found = (e.folder / "NOTICES").read_bytes()
    except OSError:
        return no("NOTICES is missing")
    if e.any_survey and found != e.any_survey.notices:
        return no("NOTICES is not what the files learned say")
    speaking, files = found.count(b"\n==> "), len(e.manifest["files"])
    return yes(f"NOTICES has the words of {speaking:,} of {files:,} files", known_if(e.any_survey))


def not_relicensed(e):
    name = e.manifest["licence"]
    wanted = hub_fields(name)["license"]
    said = wanted if e.writing else card.front_matter(e.card).get("license")
    if said != wanted:
        return no(f"README.md says license: {said}, the data's licence is {name} ({wanted})")
    try:
        text = recognize((e.folder / "LICENSE").read_bytes())
    except OSError:  # item 10 says so
        text = name
    else:
        if not e.manifest["whole_tree"]["licence_sha256"]:
            return no("LICENSE is there, and the tree has no COPYING or LICENSE")
    if e.manifest["whole_tree"]["licence_sha256"] and is_free(name) and text != name:
        found = f"a text of {text}" if text else "no licence text that is known"
        return no(f"LICENSE is {found}, the data's licence is {name}")
    return yes(f"license: {wanted}, that of the data", known_if(e.made))


def code_known(e):
    code = e.build.get("code")
    if not code:
        return no(e.damaged.get("build.json", "build.json is missing"))
    if code["licence"] != "MIT":
        return no(f"the code's licence: {code['licence']}")
    digest = digest_of_code(code["files"])[:16]
    for turn in e.build["built_by"]:
        if turn.get("code") != digest:
            return no(f"build.json lists the files of code {digest}…, and of the turn from step "
                      f"{turn['from_step']} the code was {turn.get('code')}…")
    commit = f", commit {code['commit']}" if code["commit"] else ""
    changed = f" but for {len(code['changed_since'])} of them" if code["changed_since"] else ""
    words = f"{len(code['files'])} files by SHA-256 in build.json{commit}{changed}; {code['licence']}"
    ours, there, changed = describe_code(), at_commit(code["commit"]), set(code["changed_since"])
    here = ours["files"]
    if code["files"].get("LICENSE") == here.get("LICENSE") and ours["licence"] != "MIT":
        return no("build.json says that the code is under MIT, and its LICENSE is no text of MIT")
    if there and changed - {path for path, _ in there.items() ^ code["files"].items()}:
        return no(f"build.json says that files are not as in commit {code['commit']}, and they are")
    if code["commit"] and not there:
        return yes(words, RECORDED)
    for path in sorted((there or here).keys() | code["files"].keys()):
        if path not in changed and (there or here).get(path) != code["files"].get(path):
            return no(f"build.json has another {path} than commit {code['commit']}") if there else yes(words, RECORDED)
    return yes(words, known_if(all(here.get(path) == code["files"].get(path) for path in changed)))


def settings_known(e):
    from train import Settings, check
    for name, record in [("build.json", e.build), ("config.json", e.config)]:
        if not record:
            return no(e.damaged.get(name, f"{name} is missing"))
    settings, turns = e.build["settings"], e.build["built_by"]
    recorded = {field.name for field in dataclasses.fields(Settings)} - PLACES
    wrong = {*mistyped(Settings, settings), *(recorded ^ settings.keys())}
    if wrong:
        return no(f"build.json has no setting {min(wrong)} that can be")
    try:
        check(Settings(**settings))
    except UserError as error:
        return no(f"build.json has a setting that cannot be: {error}")
    if missing := [key for key in SURROUNDINGS if key not in turns[-1]]:
        return no(f"build.json lacks {', '.join(missing)}")
    if not e.build["done"]:
        return no(f"the run is not finished: stopped at step {e.build['step']:,}")
    packages = e.build["code"]["packages"]
    if other := [name for name in ("torch", "numpy", "safetensors") if packages.get(name) != turns[-1][name]]:
        return no(f"build.json has {other[0]} {packages.get(other[0])} in its packages, and {turns[-1][other[0]]} in "
                  f"its last turn")
    if other := [key for key in e.config.keys() & settings.keys() if e.config[key] != settings[key]]:
        return no(f"build.json and config.json differ in {min(other)}")
    if said := contradicted_build(e):
        return no(said)
    return yes(f"{len(settings)} settings, {len(packages)} packages, the processor", known_if(built_alike(e)))


def contradicted_build(e):
    """What build.json says otherwise than the manifest, the states and the log of the run; or ""."""
    build = e.build
    corpus = {key: (e.tree or e.manifest).get(key) for key in ("name", "url", "sha256", *CORPUS)}
    if e.tree:
        corpus["manifest"] = json_digest(e.tree)
    for key, value in corpus.items():
        if build["corpus"][key] != value:
            return f"build.json says corpus {key} {build['corpus'][key]}, the tree {value}"
    steps = [turn["from_step"] for turn in build["built_by"]]
    if steps[0] != 0 or steps != sorted(set(steps)) or steps[-1] > build["step"]:
        return f"build.json has turns from steps {steps}, and ends at {build['step']:,}"
    for name in NAMES:
        if name in e.damaged:
            return e.damaged[name]
    last, previous = (e.states.get(name) for name in NAMES)
    said = build | {"init_sha256": build.get("init_sha256", "")}
    if last:
        for key in ("settings", "corpus", "step", "done", "init_sha256", "built_by"):
            if last[key] != said[key]:
                return f"build.json says {key} {str(said[key])[:60]}, {NAMES[0]} {str(last[key])[:60]}"
        if round(last["seconds"], 1) != build["seconds"]:
            return f"build.json says {build['seconds']} seconds, {NAMES[0]} {last['seconds']:.1f}"
    if previous and any(previous["corpus"][key] != build["corpus"][key] for key in CORPUS):
        return f"{NAMES[1]} is of a run on another tree"
    if "log.jsonl" in e.damaged:
        return e.damaged["log.jsonl"]
    return contradicted_log(e) if e.begins else ""


def contradicted_log(e):
    """What log.jsonl says otherwise than build.json; or ""."""
    build, last = e.build, (e.looks or [{}])[-1]
    for turn in build["built_by"]:
        here = {key: value for key, value in turn.items() if key != "from_step"}
        if not any(line["environment"] == here and line["step"] == turn["from_step"] for line in e.begins):
            return f"log.jsonl has no turn of the kind that build.json has from step {turn['from_step']:,}"
    for line in e.begins:
        for key in ("corpus", "init_sha256"):
            if line.get(key) != build.get(key):
                return f"log.jsonl says {key} {str(line.get(key))[:60]}, build.json {str(build.get(key))[:60]}"
        if line["settings"] != build["settings"] and line is e.begins[-1]:
            return "log.jsonl has other settings than build.json"
        if e.model and line["parameters"] != e.parameters:
            return f"log.jsonl says {line['parameters']:,} parameters, there are {e.parameters:,}"
    steps = [line["step"] for line in e.looks]
    if steps != sorted(steps):
        return "the full passes in log.jsonl are in no order"
    if last.get("step") != build["step"]:
        return f"log.jsonl ends at step {last.get('step')}, build.json at {build['step']}"
    if build["done"].startswith("every token right") and last["wrong"]:
        return f"log.jsonl has {last['wrong']:,} tokens wrong at the end, build.json none"
    if last["step"] and round(last["seconds"], 1) != build["seconds"]:
        return f"log.jsonl says {last['seconds']:.1f} seconds, build.json {build['seconds']}"
    for line in e.looks if e.windows else ():
        rows = len(e.windows) + round(build["settings"]["unaddressed"] * len(e.windows))
        if not math.isclose(line["epoch"], line["step"] * build["settings"]["batch_size"] / rows):
            return f"log.jsonl has epoch {line['epoch']} at step {line['step']:,}"
        if not math.isclose(line["accuracy"], 1 - line["wrong"] / e.windows.scored, abs_tol=1e-12):
            return f"log.jsonl has {line['wrong']:,} tokens wrong at step {line['step']:,}, and another share"
    return ""


LOADED = ("config.json", "generation_config.json", "tokenizer.model", "tokenizer.json", "tokenizer_config.json")
WRITTEN = {*OF_A_RUN, *NAMES, *LOADED, "LICENSE", "NOTICES", ARCHIVE, "manifest.json", "log.jsonl"}  # by the scripts
SIGNED = re.compile(r"SHA256SUMS\.(asc|sig|minisig|sigstore(\.json)?)|model\.sig")  # by whoever publishes
OF_THE_SYSTEM = {"Thumbs.db", "desktop.ini"}  # which file managers leave; others begin with a dot
HIDDEN = {".lock", ".git", ".gitattributes", ".cache", ".DS_Store"}  # a run's, git's, the hub's, the Mac's


def foreign(folder):
    """The names in a model's folder that neither this project writes there, nor who signs it or stores it."""
    return sorted(path.name for path in folder.iterdir()
                  if path.name not in HIDDEN and (path.is_dir() or path.name not in WRITTEN | OF_THE_SYSTEM
                                                  and not SIGNED.fullmatch(path.name)))


def weights_whole(e):
    for name in ("model.safetensors", "tokenizer.model"):
        if name in e.damaged:
            return no(e.damaged[name])
    if e.build.get("model_sha256") != e.weights:
        return no(f"model.safetensors has SHA-256 {e.weights}, build.json says {e.build.get('model_sha256')}")
    if e.tokenizer.vocab_size != e.model.config.vocab_size:
        return no(f"the model has {e.model.config.vocab_size:,} pieces, tokenizer.model {e.tokenizer.vocab_size:,}")
    corpus = {key: e.manifest[key] for key in CORPUS}
    for name, made in e.model.saved(e.tokenizer, **corpus).items():
        try:
            if (e.folder / name).read_bytes() != made:
                return no(f"{name} is not what these weights and pieces are saved with")
        except OSError as error:
            return no(f"{name} cannot be read: {error.strerror}")
    if names := foreign(e.folder):
        return no(f"the folder holds what this project does not write there: {name_of(names[0])}")
    return yes(f"safetensors, {len(e.model.tensors())} tensors, SHA-256 {e.weights}; no code that loads with the "
               f"weights")


SURROUNDINGS = ("processor", "system", "device", "dtype", "threads", "processes", "torch", "numpy", "safetensors",
                "python", "compile", "code")  # which decide the bits of the weights


def built_again(e):
    found = e.built_now or e.rebuilt
    if e.build.get("init_sha256") == e.weights:
        return no("it began from these very weights: no step made them")
    if not found:
        return no(e.damaged["rebuilt.json"]) if "rebuilt.json" in e.damaged else unknown(
            "verify.py has not built it again")
    if found["model_sha256"] != e.weights:
        return no("rebuilt.json is about other weights")
    here, there = found["built_by"], e.build.get("built_by", [])
    if found["rebuilt_sha256"] == e.weights:
        return yes(f"the same SHA-256 after {found['steps']:,} steps on {here[-1].get('processor')}, torch "
                   f"{here[-1].get('torch')}", known_if(e.built_now))
    for key in SURROUNDINGS:
        if len({str(turn.get(key)) for turn in here + there}) > 1:
            return unknown(f"the turns of the two builds had another {key}, which may well give SHA-256 "
                           f"{found['rebuilt_sha256']}")
    return no(f"another build gave SHA-256 {found['rebuilt_sha256']} on {here[-1].get('processor')}")


def measured(e):
    if not e.extraction:
        return no(e.damaged["extraction.json"]) if "extraction.json" in e.damaged else unknown(
            "extract.py has not measured it")
    if said := mismeasured(e):
        return no(said)
    learned = e.extraction["learned"]
    return yes(f"{e.extraction['files_exact']:,} of {e.extraction['files']:,} files exact, "
               f"{learned['tokens_right']:,} of {learned['tokens']:,} next tokens right", known_if(e.measured_now))


def personal_counted(e):
    if e.any_survey and not e.writing and e.stated["personal_data"] != e.any_survey.personal:
        return no("openness.json has other counts than the files learned")
    counts = e.any_survey.personal if e.any_survey else e.stated["personal_data"]
    return yes("counted by patterns in the files learned: " + "; ".join(
        f"{name}: {count:,}" for name, count in counts.items()), known_if(e.any_survey))


def state_kept(e):
    name = NAMES[1]
    if name in e.damaged:
        return no(e.damaged[name])
    state = e.states.get(name)
    if not state or state["step"] >= e.build.get("step", 0):
        return no("the run kept no state from before its end")
    if any(state["corpus"][key] != e.manifest[key] for key in CORPUS):
        return no(f"{name} is of a run on another tree")
    return yes(f"{name}, of step {state['step']:,}, SHA-256 {digest_of(e.folder / name)}", RECORDED)


def reported(e):
    code = e.build.get("code", {})
    if list(code.get("report", ())) != [REPORT]:
        return no(f"build.json does not have {REPORT}, and no other report")
    sha256 = code["report"][REPORT]
    seen = files_here((REPORT,)).get(REPORT), at_commit(code["commit"], (REPORT,)).get(REPORT)
    return yes(f"{REPORT} beside the code, SHA-256 {sha256}", known_if(sha256 in seen))


def card_whole(e):
    if e.writing:
        return yes("made from the records in this folder; no line by hand")
    if not e.card:
        return no("README.md is missing")
    if not e.build or not e.config:
        return no("what it is made from is missing: build.json or config.json")
    made = card.make(e).encode()
    for number, (here, there) in enumerate(zip([*e.card.split(b"\n"), None], [*made.split(b"\n"), None]), 1):
        if here != there:
            return no(f"README.md, line {number}, is not what the records give: {str(here)[:60]!r}")
    return yes("made from the records in this folder; no line by hand")


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


# What of the manifest each item rests on, made again: the names of its keys begin with one of these
RESTS_ON = {
    1: ("files", "held_out"),
    2: ("name", "origin", "url", "sha256", "whole_tree.url", "whole_tree.sha256", "whole_tree.swhid",
        "whole_tree.digest", "whole_tree.executable", "whole_tree.links", "whole_tree.root"),
    3: ("files", "held_out", "tree", "only", "exclude", "whole_tree.files", "whole_tree.bytes", "whole_tree.left_out",
        "whole_tree.not_prepared"),
    4: ("files", "held_out", "tokens", "vocab_size", "train_bin_sha256", "tokenizer_sha256"),
    9: ("files", "licence", "whole_tree.licence"), 10: ("licence", "whole_tree.licence"),
    12: ("licence", "whole_tree.licence"), 14: ("pieces_learned_from_bytes",),
    17: ("compressed", "piece_bytes", "piece_bits")}
OF_ALL_TEXT = (1, 3, 4, 7, 9, 11, 12)  # items on all that the weights learned, also before the run


def begun_from(e, found):
    """The Answer `found`, a yes on all that the weights learned, or what is left of it if they began from others."""
    sha256 = e.build.get("init_sha256")
    if not sha256:
        return found
    if not e.base:
        return unknown(f"the run began from the weights of SHA-256 {sha256}, and what these had learned is not at hand")
    ours = {(entry["path"], entry["sha256"]) for entry in e.manifest["files"]}
    others = [entry["path"] for entry in e.base["files"] if (entry["path"], entry["sha256"]) not in ours]
    return no(f"the run began from weights that had learned {len(others):,} files which manifest.json does not list: "
              f"{others[0]}") if others else found._replace(known=RECORDED)  # their own manifest says so


def mof_class(found):
    """Item 21, from the answers to the others: {number: Answer}."""
    reached, lacking = mof.classify({number: answer.answer for number, answer in found.items()})
    what = f"; the next one asks for: {', '.join(lacking)}" if lacking else ""
    used = {number for _, _, wanted in mof.COMPONENTS.values() for item in wanted or ()
            for number in (item if isinstance(item, tuple) else (item,))}
    recorded = any(found[number].answer == YES and found[number].known == RECORDED for number in used)
    return (yes if reached else no)(f"{mof.CLASSES[reached]}{what}", known_if(not recorded))


def judge(e):
    """{item: Answer} of the Evidence."""
    found, wrong = {}, differences(e)
    for number, (_, _, look, _) in ITEMS.items():
        found[number] = look(e) if look else unknown("")
        said = [why for key, why in wrong.items() if key.startswith(RESTS_ON.get(number, ()))]
        if said and found[number].answer != NO:
            found[number] = no(said[0])
        if number in OF_ALL_TEXT and found[number].answer == YES:
            found[number] = begun_from(e, found[number])
    found[6] = shareable(found)
    found[21] = mof_class(found)
    return found


def columns(found):
    """{column: {"answer", "items", "open", "recorded", "declared"}}: what the answers, {number: Answer}, make of each
    definition. open: the items that are not yes; recorded, declared: those that are, and only known so."""
    made = {}
    for name, numbers in COLUMNS.items():
        left = [number for number in numbers if found[number].answer != YES]
        answer = NO if any(found[number].answer == NO for number in left) else UNKNOWN if left else YES
        made[name] = {"answer": answer, "items": list(numbers), "open": left} | {
            known: [number for number in numbers if number not in left and found[number].known == known]
            for known in (RECORDED, DECLARED)}
    return made


def column_words(column):
    """What a column says, in words."""
    said = {YES: "meets it", NO: "does not meet it", UNKNOWN: "not checked"}[column["answer"]]
    rests = [f"{what} {', '.join(map(str, column[key]))}" for what, key in
             (("open:", "open"), ("recorded:", RECORDED), ("declared:", DECLARED)) if column[key]]
    return said + (f" ({'; '.join(rests)})" if rests else "")
