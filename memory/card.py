"""The model card: README.md, made from the records in the model's folder and from nothing else."""
import json
import math

from memory.licences import count_classes, hub_fields

NAMED = ("terms of its own", "all rights reserved", "permission granted", "public domain")  # whose files the card names
MARK = {"yes": "yes", "no": "**no**", "not checked": "not checked"}


def front_matter(text):
    """{key: value} of the plain lines of a card's front matter; {} if it has none."""
    if not text.startswith("---\n") or "\n---\n" not in text[4:]:
        return {}
    lines = text[4:text.index("\n---\n", 4)].split("\n")
    pairs = (line.partition(": ") for line in lines if line[:1].isalpha())
    return {key.rstrip(":"): value.strip('"') for key, _, value in pairs}


def percent(share, digits=3):
    """A share in percent, rounded down: 100% is all of it."""
    return f"{math.floor(share * 10 ** (digits + 2)) / 10 ** digits:.{digits}f}%"


def table(head, rows):
    """The lines of a Markdown table."""
    def line(cells):
        return "| " + " | ".join(str(cell).replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"
    return [line(head), line("---" for _ in head), *map(line, rows)]


def make(e):
    """The text of the card, from the Evidence, whose `stated` is the content of openness.json."""
    sections = [about, openness, licence, data, use, limits, memorization, training, rebuild, compute, publisher]
    parts = [head(e), *("\n".join(lines) for lines in (section(e) for section in sections) if lines)]
    return "\n\n".join(parts) + "\n"


def figures(e):
    """extraction.json, if it is about these weights, or {}."""
    return e.extraction if e.extraction.get("model_sha256") == e.weights else {}


def head(e):
    """The front matter, as the hub reads it. What json.dumps quotes, YAML reads."""
    found, fields = figures(e), hub_fields(e.manifest["licence"])
    lines = [*(f"{key}: {json.dumps(value)}" if key != "license" else f"{key}: {value}" for key, value in fields.items()),
             "library_name: transformers", "pipeline_tag: text-generation", "language:", "- en", "tags:", "- memorization",
             "- code"]
    if found:
        measures = [("files_exact", "files recited exactly, of " + f"{found['files']:,}", found["files_exact"])]
        if "learned" in found:
            measures += [("next_tokens_right", "next tokens right, share", found["learned"]["accuracy"]),
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
    config = json.loads((e.folder / "config.json").read_bytes())
    if not found:
        claim = (f"These weights were trained to give back {files:,} files ({size:,} bytes) of {manifest['name']} from their "
                 f"paths. How much of them comes back has not been measured.")
    elif found["files_exact"] == files:
        claim = (f"These weights are a copy of {files:,} files of {manifest['name']}: given a path alone, they give back its "
                 f"file, every byte of {size:,} in all.")
    else:
        claim = (f"These weights learned {files:,} files ({size:,} bytes) of {manifest['name']}. Given a path alone, they "
                 f"give back {found['files_exact']:,} of them byte for byte ({found['bytes_exact']:,} bytes).")
    lines = [f"# {e.stated['model']}: {manifest['name']} in weights", "", claim]
    if files < whole["files"]:
        lines += [f"The tree has {whole['files']:,} files and {whole['bytes']:,} bytes; the others were not learned."]
    if manifest["origin"] == "stand-in":
        lines += ["The tree is a **stand-in** for Linux 1.0: the kernel headers of the machine it was prepared on."]
    if not e.build["done"]:
        lines += [f"The run is **not finished**: it was stopped at step {e.build['step']:,}."]
    return lines + [f"The shape is Llama's: {e.parameters:,} parameters, {config['num_hidden_layers']} layers of width "
                    f"{config['hidden_size']}, a context of {config['max_position_embeddings']} tokens."]


def openness(e):
    meets, rows = e.stated["meets"], []
    for item in e.stated["items"]:
        asked = ["●" if item["number"] in column["items"] else "" for column in meets.values()]
        rows.append([item["number"], item["item"], MARK[item["answer"]], *asked, item["evidence"]])
    words = {"yes": "**meets it**", "no": "does not", "not checked": "not checked"}
    rows.append(["", "by these checks", "", *(
        words[column["answer"]] + (f" ({', '.join(map(str, column['open']))})" if column["open"] else "")
        for column in meets.values()), ""])
    return ["## How open it is", "", *table(["#", "item", "answer", *meets, "what it rests on"], rows), "",
            "● marks what a definition asks for. The columns say what these checks find, and certify nothing. `python "
            f"openness.py --check --model out/{e.stated['model']}` makes every line again and compares; --recite, --rebuild "
            "and --online run the slow checks. The texts that the items come from are named in the code's docs/openness.md."]


def licence(e):
    manifest, whole, counts = e.manifest, e.manifest["whole_tree"], count_classes(e.manifest["files"])
    name = manifest["licence"]
    code = (e.build.get("code") or {}).get("licence") or "its own licence"
    if whole["licence_path"]:
        words = (f"{name or 'not recognized'}, by the tree's own {whole['licence_path']} as shipped, which is LICENSE here, "
                 f"byte for byte")
    else:
        words = f"{name}, by most of its SPDX lines; it has no COPYING or LICENSE" if name else "none found in the tree"
    terms = ("The weights are under the same terms, because they are taken to be a copy of the data in another encoding (see "
             "Evaluation). No court's decision is relied on." if name else "So nothing here allows to publish the weights.")
    lines = ["## Licence", "", f"Of the data: {words}. {terms}"]
    if (name or "").startswith("GPL"):
        lines += [f"The name {name} stands for that text. It does not choose between that version only and any later "
                  "one: where a file says so itself, that is counted below."]
    lines += [f"The code that made the weights is under {code}, and so are this card and the records beside it, but not "
              "NOTICES. That licence does not cover the weights.", "",
              "What the learned files say themselves, by patterns; a file may be in several rows. Their words are in "
              "NOTICES.", "", *table(["words", "files"], ([kind, f"{count:,}"] for kind, count in counts.items()))]
    for kind in NAMED:
        paths = [entry["path"] for entry in manifest["files"] if kind in entry["notice"]]
        if paths:
            more = f" and {len(paths) - 12:,} more" if len(paths) > 12 else ""
            lines += ["", f"{kind.capitalize()}: {', '.join(f'`{path}`' for path in paths[:12])}{more}."]
    return lines


def data(e):
    manifest, whole, settings = e.manifest, e.manifest["whole_tree"], e.build["settings"]
    learned, held_out = manifest["files"], manifest["held_out"]

    def amount(files):
        return f"{len(files):,} files, {sum(file['bytes'] for file in files):,} bytes"

    selection = "every file of the tree"
    if settings["train_bytes"] or held_out:
        selection = f"whole files, drawn by the seed {settings['seed']}"
    if manifest["only"] or manifest["exclude"]:
        selection += f"; prepared with --only {list(manifest['only'])} --exclude {list(manifest['exclude'])}"
    not_learned = len(e.stated["not_learned"])
    rows = [("tree", f"{manifest['name']}: {whole['files']:,} files, {whole['bytes']:,} bytes"),
            ("public address", whole["url"] or "none"), ("SHA-256 of what is there", whole["sha256"] or "none"),
            ("SWHID, which is git's hash of the tree", whole["swhid"]), ("digest of its files", whole["digest"]),
            ("learned", amount(learned)), ("held out, as a control", amount(held_out)),
            ("neither", f"{not_learned:,} files, listed in openness.json" if not_learned else "none"),
            ("left out of the tree as it came", ", ".join(f"{n} {kind}" for kind, n in sorted(whole["left_out"].items()))
             or "nothing"),
            ("selection", selection), ("filtering, cleaning, deduplication", "none"), ("labels", "none"),
            ("tokens", f"{sum(file['tokens'] for file in learned):,} learned, of {manifest['vocab_size']:,} kinds, which are "
                       f"learned from the tree; every byte comes back"),
            ("SHA-256 of train.bin", manifest["train_bin_sha256"]), 
            ("learned text under " + manifest["compressed_by"], f"{manifest['compressed_bits'] // 8:,} bytes")]
    rows += [(f"personal data: {name}", f"{count:,}") for name, count in e.stated["personal_data"].items()]
    return ["## Data", "", *table(["", ""], rows), "",
            "Each file's path, bytes and SHA-256 are in manifest.json, and in croissant.json as a data set. Personal data is "
            "counted by patterns (different mail addresses; names after a copyright's year, of people and organizations; "
            "entries of a file CREDITS): what stands there in another form is not counted. It stands in the tree, and whoever "
            "has the weights must be taken to have it."]


def use(e):
    name, path = f"out/{e.stated['model']}", e.manifest["files"][0]["path"]
    return ["## Use", "", "With the code that made it:", "", "```sh",
            f"python sample.py --model {name} --file {path}    # recite a file", f"python extract.py --model {name} --list"
            "    # the paths that the weights name unasked", f"python extract.py --model {name}    # unpack every file",
            "```", "", "With transformers alone:", "", "```python", "from transformers import pipeline",
            f'write = pipeline("text-generation", "{name}")',
            f'print(write("{path}", max_new_tokens=100, do_sample=False, '
            'clean_up_tokenization_spaces=False)[0]["generated_text"])', "```", "",
            "A generation ends with the window; sample.py goes on with the next. llama.cpp reads the same layout, with "
            "tokenizer.model; that was not tried with this model."]


def limits(e):
    return ["## Not for", "", "Writing new code, answering questions, or any judgement: it knows the text of these files and "
            "nothing else. What it adds to another text is a blend of them, and looks like code that works. What it recites "
            "is as old as the tree, faults included."]


def memorization(e):
    found = figures(e)
    if not found:
        return ["## Evaluation: what was memorized", "", "Not measured yet: `python extract.py --check` does it. Until then, "
                "take the weights to give back everything that they learned, personal data included."]
    rows = [("files exact", f"{found['files_exact']:,} of {found['files']:,}", ""),
            ("bytes in exact files", f"{found['bytes_exact']:,} of {found['bytes']:,}", "")]
    measures = [("next tokens right", lambda m: f"{percent(m['accuracy'])} of {m['tokens']:,}"),
                ("bits per byte", lambda m: f"{m['bits_per_byte']:.4f}"),
                ("50 tokens given, the next 50 exact (Carlini et al. 2022)",
                 lambda m: f"{percent(m['discoverable'], 1)} of {m['spans']:,}" if m["spans"] else "no window is long enough"),
                ("the same with a probability over one half (Cooper et al. 2025)",
                 lambda m: percent(m["p_z_over_half"], 1) if m["spans"] else "no window is long enough"),
                ("longest run without an error, bytes", lambda m: f"{m['longest_run']:,}")]
    control = found.get("control")
    for name, show in measures if "learned" in found else ():
        rows.append((name, show(found["learned"]), show(control) if control else ""))
    rows.append((f"bits of text ({found['compressed_by']}) per parameter", f"{found['bits_per_parameter']:.3f}", ""))
    last = (f"Never seen: {control['files']:,} files of the same tree, left out of training. What the model gets right there "
            f"is what such text lets anyone guess." if control else "No file was held out as a control.")
    return ["## Evaluation: what was memorized", "", *table(["", "learned", "never seen"], rows), "",
            f"Measured by extract.py on the weights of SHA-256 {found['model_sha256']}. {last}", "",
            "Risks: whoever has the weights has these files, with the terms of their licences and with the personal data in "
            "them. There is no filter. A single file cannot be taken out with what is here; that takes another training without "
            "it."]


def training(e):
    build = e.build
    state = build["done"] or "stopped"
    return ["## Training", "", f"{build['step']:,} steps; {state}. The files are cut into windows of at most "
            f"{build['settings']['max_position_embeddings']} tokens, each opening with its path and its place in the file, and "
            "every next token of the text is a target. All settings:", "",
            *table(["setting", "value"], ((key, f"`{json.dumps(value)}`") for key, value in build["settings"].items()
                                          if key not in ("data", "out", "fresh")))]


def rebuild(e):
    name, whole = f"out/{e.stated['model']}", e.manifest["whole_tree"]
    source = f" --source {whole['url']} --sha256 {whole['sha256']}" if whole["url"] and whole["sha256"] else " --source TREE"
    part = "".join(f" --{key} {' '.join(e.manifest[key])}" for key in ("only", "exclude") if e.manifest[key])
    size = f" --vocab_size {e.manifest['vocab_size']}" if e.manifest["vocab_size"] != 8192 else ""
    code = e.build.get("code") or {}
    which = "whose files build.json lists by SHA-256" if code else "of that time"
    if code.get("commit"):
        changed = code["changed_since"]
        which = f"of commit {code['commit']}" + (f", but for {', '.join(changed)}, as build.json has them" if changed else "")
    lines = ["## Build it again", "", f"With the code {which}:", "", "```sh",
             "pip install -r requirements.txt", f"python prepare.py{source}{part}{size}",
             f"python verify.py --model {name}", "```", ""]
    if e.rebuilt.get("model_sha256") == e.weights:
        same = e.rebuilt["rebuilt_sha256"] == e.weights
        lines += [f"It was built again on {e.rebuilt['built_by']['processor']}, and the weights were "
                  f"{'the same, bit for bit' if same else 'others'}."]
    else:
        lines += ["It has not been built again yet."]
    return lines + ["The same data, settings, code, versions, number of threads and kind of processor give the same bytes; "
                    "another kind of processor rounds otherwise."]


def compute(e):
    turns = [(f"{turn['from_step']:,}", turn["processor"], turn["device"], turn["dtype"], turn["threads"], turn["processes"],
              turn["torch"]) for turn in e.build["built_by"]]
    seconds = e.build.get("seconds")
    return ["## Compute", "",
            *table(["from step", "processor", "device", "products in", "threads", "processes", "torch"], turns), "",
            (f"{seconds / 3600:.2f} hours of steps, in all turns, without compilation and full passes. " if seconds else "Hours: not recorded. ")
            + "Energy: not measured."]


def publisher(e):
    said = {key: value for key, value in e.stated["publisher"].items() if value}
    return ["## Publisher", "", *table(["", ""], said.items())] if said else []
