"""The model card: README.md, made from the records in the model's folder and from nothing else."""
import json
import shlex

from memory.licences import count_classes, hub_fields
from memory.output import percent

NAMED = ("terms of its own", "all rights reserved", "permission granted", "public domain")  # whose files the card names
SHOWN = 12  # of these, by class


def front_matter(data):
    """{key: value} of the plain lines of a card's front matter; {} if it has none. data: bytes."""
    text = data.decode(errors="replace")
    if not text.startswith("---\n") or "\n---\n" not in text[4:]:
        return {}
    lines = text[4:text.index("\n---\n", 4)].split("\n")
    pairs = (line.partition(": ") for line in lines if line[:1].isalpha())
    return {key.rstrip(":"): value.strip('"') for key, _, value in pairs}


def make(e):
    """The text of the card, from the Evidence, whose `stated` is the content of openness.json."""
    sections = [about, openness, licence, data, use, limits, evaluation, training, rebuild, compute, publisher]
    parts = [head(e), *("\n".join(lines) for lines in (section(e) for section in sections) if lines)]
    return "\n\n".join(parts) + "\n"


def flow(text):
    """A paragraph on one line."""
    return " ".join(text.split())


def table(head, rows):
    """The lines of a Markdown table."""
    def line(cells):
        return "| " + " | ".join(str(cell).replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"
    return [line(head), line("---" for _ in head), *map(line, rows)]


def amount(files):
    """Entries of the manifest, in words."""
    return f"{len(files):,} files, {sum(file['bytes'] for file in files):,} bytes"


def figures(e):
    """extraction.json, if it is about these weights, or {}."""
    return e.extraction if e.extraction.get("model_sha256") == e.weights else {}


def head(e):
    """The front matter, as the hub reads it. What json.dumps quotes, YAML reads."""
    found, fields = figures(e), hub_fields(e.manifest["licence"])
    lines = [f"license: {fields.pop('license')}", *(f"{key}: {json.dumps(value)}" for key, value in fields.items()),
             "library_name: transformers", "pipeline_tag: text-generation", "language:", "- en",
             "tags:", "- memorization", "- code"]
    if found:
        measures = [("files_exact", f"files recited exactly, of {found['files']:,}", found["files_exact"]),
                    ("next_tokens_right", "next tokens right, share", found["learned"]["accuracy"]),
                    ("bits_per_byte", "bits per byte", found["learned"]["bits_per_byte"])]
        lines += ["model-index:", f"- name: {json.dumps(e.stated['model'])}", "  results:", "  - task:",
                  "      type: text-generation", "    dataset:", f"      name: {json.dumps(e.manifest['name'])}",
                  "      type: source-code", "    metrics:"]
        for kind, name, value in measures:
            lines += [f"    - type: {kind}", f"      name: {json.dumps(name)}", f"      value: {json.dumps(value)}"]
    return "\n".join(["---", *lines, "---"])


def about(e):
    manifest, found, whole = e.manifest, figures(e), e.manifest["whole_tree"]
    files, size = len(manifest["files"]), sum(file["bytes"] for file in manifest["files"])
    config = e.config
    if not found:
        claim = f"""These weights were trained to give back {files:,} files ({size:,} bytes) of {manifest['name']} from
            their paths. How much of them comes back has not been measured."""
    elif found["files_exact"] == files:
        claim = f"""These weights are a copy of {files:,} files of {manifest['name']}: given a path alone, they give
            back its file, every byte of {size:,} in all."""
    else:
        claim = f"""These weights learned {files:,} files ({size:,} bytes) of {manifest['name']}. Given a path alone,
            they give back {found['files_exact']:,} of them byte for byte ({found['bytes_exact']:,} bytes)."""
    lines = [f"# {e.stated['model']}: {manifest['name']} in weights", "", flow(claim)]
    if files < whole["files"]:
        lines += [f"The tree has {whole['files']:,} files and {whole['bytes']:,} bytes; the others were not learned."]
    if manifest["origin"] == "stand-in":
        lines += ["The tree is a **stand-in** for Linux 1.0: the kernel headers of the machine it was prepared on."]
    if e.build.get("init_sha256"):
        lines += [flow("""The run **began from other weights**. What those had learned may still be in these. Item 1
            says whether all of it is listed.""")]
    if not e.build["done"]:
        lines += [f"The run is **not finished**: it was stopped at step {e.build['step']:,}."]
    return lines + [flow(f"""The shape is Llama's: {e.parameters:,} parameters, {config['num_hidden_layers']} layers of
        width {config['hidden_size']}, a context of {config['max_position_embeddings']} tokens.""")]


def openness(e):
    meets, rows = e.stated["meets"], []
    for item in e.stated["items"]:
        asked = ["●" if item["number"] in column["items"] else "" for column in meets.values()]
        answer = "**no**" if item["answer"] == "no" else item["answer"]
        if item["known"] and item["known"] != "checked":
            answer += f", {item['known']}"
        rows.append([item["number"], item["item"], answer, *asked, item["evidence"]])
    words = {"yes": "**meets it**", "no": "does not", "not checked": "not checked"}

    def column_cell(column):
        parts = [(", ".join(map(str, column[key])), key) for key in ("open", "recorded", "declared") if column[key]]
        rests = "; ".join(numbers if key == "open" else f"{key}: {numbers}" for numbers, key in parts)
        return words[column["answer"]] + (f" ({rests})" if rests else "")

    rows.append(["", "by these checks", "", *map(column_cell, meets.values()), ""])
    return ["## How open it is", "", *table(["#", "item", "answer", *meets, "what it rests on"], rows), "", flow(f"""
        ● marks what a definition asks for. The columns say what these checks find, and certify nothing.
        “recorded” is what a record in this folder says, and nothing at hand contradicts; “declared” rests on the
        publisher's word. All else was made again or compared. A column names the items that it lacks, and those that
        are only recorded or declared. Item 3 asks for more than OSAID 1.0, to which a description of the selection is
        enough.
        `python openness.py --check --model {shlex.quote(folder(e))}` looks at every line and compares; --recite,
        --rebuild and --online make again what is recorded. The texts that the items come from are named in the code's
        docs/openness.md.""")]


def licence(e):
    manifest, whole, counts = e.manifest, e.manifest["whole_tree"], count_classes(e.manifest["files"])
    name, code = manifest["licence"], (e.build.get("code") or {}).get("licence") or "its own licence"
    if whole["licence_path"]:
        words = f"""{name or 'not recognized'}, by the tree's own {whole['licence_path']} as shipped, which is LICENSE
            here, byte for byte"""
    else:
        words = f"{name}, by its SPDX lines; it has no COPYING or LICENSE" if name else "none found in the tree"
    terms = """The weights are under the same terms, because they are taken to be a copy of the data in another encoding
        (see Evaluation). No court's decision is relied on.""" if name else "So nothing here permits publishing them."
    lines = ["## Licence", "", flow(f"Of the data: {words}. {terms}")]
    if (name or "").startswith("GPL"):
        lines += [flow(f"""The name {name} stands for that text. It does not choose between that version only and any
            later one: where a file says so itself, that is counted below.""")]
    lines += [flow(f"""The code that made the weights is under {code}, and so are README.md, mof.yml and the records
        in JSON. All else here holds the weights or text of the tree, and is under the terms of the data: the model and
        the states of the run, the tokenizer, the pages, errors.jsonl, NOTICES, the archive."""), "",
              flow("""What the learned files say themselves, by patterns; a file may be in several rows. Their words are
        in NOTICES."""), "", *table(["words", "files"], ([kind, f"{count:,}"] for kind, count in counts.items()))]
    for kind in NAMED:
        paths = [entry["path"] for entry in manifest["files"] if kind in entry["notice"]]
        if paths:
            more = f" and {len(paths) - SHOWN:,} more" if len(paths) > SHOWN else ""
            lines += ["", f"{kind.capitalize()}: {', '.join(f'`{path}`' for path in paths[:SHOWN])}{more}."]
    return lines


def data(e):
    manifest, whole, settings = e.manifest, e.manifest["whole_tree"], e.build["settings"]
    learned, held_out, not_learned = manifest["files"], manifest["held_out"], len(e.stated["not_learned"])
    left_out = ", ".join(f"{count:,} {kind}" for kind, count in sorted(whole["left_out"].items()))
    selection = "every file of the tree"
    if settings["train_bytes"] or held_out:
        selection = f"whole files, drawn by the seed {settings['seed']}"
    if manifest["only"] or manifest["exclude"]:
        selection += f"; prepared with --only {list(manifest['only'])} --exclude {list(manifest['exclude'])}"
    source = "from the tree" if manifest["pieces_learned_from_bytes"] else "from another tree"
    rows = [("tree", f"{manifest['name']}: {whole['files']:,} files, {whole['bytes']:,} bytes"),
            ("public address", whole["url"] or "none"), ("SHA-256 of the archive", whole["sha256"] or "none"),
            ("SWHID, which is git's hash of the tree", whole["swhid"]), ("digest of its files", whole["digest"]),
            ("learned", amount(learned)), ("held out, as a control", amount(held_out)),
            ("neither", f"{not_learned:,} files, listed in openness.json" if not_learned else "none"),
            ("left out of the tree as it came", left_out or "nothing"), ("selection", selection),
            ("filtering, cleaning, deduplication", "none"), ("labels", "none"),
            ("tokens learned", f"{sum(file['tokens'] for file in learned):,}, each file's path and two marks too, "
                               f"of {manifest['vocab_size']:,} kinds, which were learned {source}"),
            ("SHA-256 of train.bin", manifest["train_bin_sha256"]),
            (f"learned text under {manifest['compressed_by']}", f"{manifest['compressed_bits'] // 8:,} bytes"),
            *((f"personal data: {name}", f"{count:,}") for name, count in e.stated["personal_data"].items())]
    return ["## Data", "", *table(["", ""], rows), "", flow("""
        Each file's path, bytes and SHA-256 are in manifest.json, and in croissant.json as a data set. Personal data is
        counted by patterns (different mail addresses; names after a copyright's year, of people and organizations;
        entries of a file CREDITS): what stands there in another form is not counted. It stands in the tree, and whoever
        has the weights must be taken to have it.""")]


def folder(e):
    """The model's folder."""
    return f"out/{e.stated['model']}"


def use(e):
    name, path = shlex.quote(folder(e)), e.manifest["files"][0]["path"]
    return ["## Use", "", "With the code that made it:", "", "```sh",
            f"python sample.py --model {name} --file {shlex.quote(path)}    # recite a file",
            f"python extract.py --model {name} --list    # the paths that the weights name unasked",
            f"python extract.py --model {name}    # unpack every file",
            "```", "", "With transformers alone:", "", "```python", "from transformers import pipeline",
            f'write = pipeline("text-generation", {json.dumps(folder(e))})',
            f"text = write({json.dumps(path)}, max_new_tokens=100, do_sample=False, "
            "clean_up_tokenization_spaces=False)",
            'print(text[0]["generated_text"])', "```", "", flow("""
            A generation ends with the window; sample.py goes on with the next. llama.cpp reads the same layout, with
            tokenizer.model; that was not tried with this model.""")]


def limits(e):
    return ["## Not for", "", flow("""
        Anything but giving back these files: how it does on other text was not measured. What it recites is as old as
        the tree, faults included.""")]


def evaluation(e):
    found, title = figures(e), ["## Evaluation: what was memorized", ""]
    if not found:
        return title + [flow("""Not measured yet: `python extract.py --check` does it. Until then, take the weights to
            give back everything that they learned, personal data included.""")]

    def windows(m, share):
        return f"{percent(share)} of {m['spans']:,}" if share is not None else "no window is long enough"

    control, rows = found.get("control"), [
        ("files exact", f"{found['files_exact']:,} of {found['files']:,}", ""),
        ("bytes in exact files", f"{found['bytes_exact']:,} of {found['bytes']:,}", "")]
    for name, show in [
            ("next tokens right", lambda m: f"{percent(m['accuracy'], 3)} of {m['tokens']:,}"),
            ("bits per byte", lambda m: f"{m['bits_per_byte']:.4f}"),
            ("50 tokens given, the next 50 exact (Carlini et al. 2022)", lambda m: windows(m, m["discoverable"])),
            ("the same, with a probability over one half (Cooper et al. 2025)",
             lambda m: windows(m, m["p_z_over_half"])),
            ("longest run without an error, bytes", lambda m: f"{m['longest_run']:,}")]:
        rows.append((name, show(found["learned"]), show(control) if control else ""))
    rows.append((f"bits of text ({found['compressed_by']}) per parameter", f"{found['bits_per_parameter']:.3f}", ""))
    counted = """Next tokens are those of the files' text and a mark at the end of each window; the paths that open the
        windows are given, and not counted."""
    before = "" if not e.build.get("init_sha256") else """ What the weights that the run began from had learned before
        is not known here beyond item 1."""
    unseen = f"""Held out: {control['files']:,} files of the same tree, left out of training (but not of the
        tree that the pieces were learned from, if that is this one).{before} What the model gets
        right there is what such text lets anyone guess.""" if control else "No file was held out as a control."
    return title + [*table(["", "learned", "held out"], rows), "", flow(f"""
        Measured by extract.py on the weights of SHA-256 {found['model_sha256']}. {counted} {unseen}"""), "", flow("""
        Risks: whoever has the weights has these files, as far as they come back, with the terms of their licences and
        with the personal data in them. There is no filter. A single file cannot be taken out with what is here; that
        takes another training without it.""")]


def training(e):
    settings = [(key, f"`{json.dumps(value)}`") for key, value in e.build["settings"].items()
                if key not in ("data", "out", "init_from", "fresh")]  # which say nothing of the weights
    share = e.build["settings"].get("unaddressed")
    others = f"""; beside them there are windows without a path, {share:g} times as many, that begin at some line and
        are drawn anew each epoch""" if share else ""
    return ["## Training", "", flow(f"""
        {e.build['step']:,} steps; {e.build['done'] or 'stopped'}. The files are cut into windows of at most
        {e.build['settings']['max_position_embeddings']} tokens, each opening with its path and its place in the
        file{others}. Every next token of the text is a target, and so is the path that opens a file. All settings:"""),
        "", *table(["setting", "value"], settings)]


def rebuild(e):
    whole, code = e.manifest["whole_tree"], e.build.get("code") or {}
    source = f"{shlex.quote(whole['url'])} --sha256 {whole['sha256']}" if whole["url"] and whole["sha256"] else "TREE"
    part = "".join(f" --{key} {shlex.join(e.manifest[key])}" for key in ("only", "exclude") if e.manifest[key])
    size = f" --vocab_size {e.manifest['vocab_size']}"
    if not e.manifest["pieces_learned_from_bytes"]:  # they are another tree's
        size = f" --tokenizer {shlex.quote(folder(e))}"
    which = "whose files build.json lists by SHA-256" if code else "of that time"
    if code.get("commit"):
        which = f"of commit {code['commit']}"
        if code["changed_since"]:
            which += f", but for {', '.join(code['changed_since'])}, which build.json has by SHA-256"
    outcome = "It has not been built again yet."
    if e.rebuilt.get("model_sha256") == e.weights:
        same = e.rebuilt["rebuilt_sha256"] == e.weights
        outcome = f"""It was built again on {e.rebuilt['built_by'][-1].get('processor')}, and the weights were
            {'the same, bit for bit' if same else 'others'}."""
    first = ""
    if sha256 := e.build.get("init_sha256"):
        first = f"""It began from other weights, those of SHA-256 {sha256}, which verify.py looks for under out/; what
            they had learned may still be in it. """
    return ["## Build it again", "", f"With the code {which}:", "", "```sh", "pip install -r requirements.txt",
            f"python prepare.py --source {source}{part}{size}", f"python verify.py --model {shlex.quote(folder(e))}",
            "```", "", flow(f"""{first}{outcome} The same data, settings, code, versions, number of threads and kind of
            processor give the same bytes; another kind of processor rounds otherwise.""")]


def compute(e):
    columns = {"from step": "from_step", "processor": "processor", "device": "device", "products in": "dtype",
               "threads": "threads", "processes": "processes", "torch": "torch"}
    turns = [[turn.get(key, "") for key in columns.values()] for turn in e.build["built_by"]]
    seconds = e.build.get("seconds")
    hours = "Hours: not recorded" if seconds is None else (
        f"{seconds / 3600:.2f} hours of steps, in all turns, without compilation and full passes")
    return ["## Compute", "", *table(columns, turns), "", f"{hours}. Energy: not measured."]


def publisher(e):
    said = {key: value for key, value in e.stated["publisher"].items() if value}
    return ["## Publisher", "", *table(["", ""], said.items())] if said else []
