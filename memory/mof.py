"""The Model Openness Framework's record (White et al. 2024): which components are released, and the class they make.

Names, classes and keys are those of the framework's own tool, lfai/model_openness_tool.
"""
import json

FRAMEWORK = {"name": "Model Openness Framework", "version": "1.0", "date": "2024-12-15"}
CLASSES = {3: "class III, Open Model", 2: "class II, Open Tooling Model", 1: "class I, Open Science Model",
           0: "no class"}
# component: (class that needs it, kind, the items that must be yes; of a tuple of items, one); None: not released
COMPONENTS = {
    "Model architecture": (3, "code", [13]),
    "Model parameters (Final)": (3, "data", [9, 12, 14, 15]),
    "Evaluation results": (3, "document", [17]),
    "Model card": (3, "document", []),
    "Data card": (3, "document", [1]),
    "Technical report": (3, "document", [20]),
    "Training code": (2, "code", [13]),
    "Inference code": (2, "code", [13]),
    "Evaluation code": (2, "code", [13]),
    "Evaluation data": (2, "data", [(2, 7), 9]),
    "Datasets": (1, "data", [(2, 7), 9]),
    "Data preprocessing code": (1, "code", [13]),
    "Model parameters (Intermediate)": (1, "data", [9, 12, 19]),
    "Research paper": (1, "document", None)}


def released(answers):
    """The names of the components that are; answers: {item number: "yes", "no" or "not checked"}."""
    def holds(item):
        return any(map(holds, item)) if isinstance(item, tuple) else answers[item] == "yes"
    return [name for name, (_, _, items) in COMPONENTS.items() if items is not None and all(map(holds, items))]


def classify(answers):
    """(the class, 0 to 3, and what the next better one lacks)."""
    there = released(answers)
    missing = {c: [name for name, (needs, *_) in COMPONENTS.items() if needs >= c and name not in there]
               for c in (3, 2, 1)}
    reached = min((c for c in missing if not missing[c]), default=0)
    return reached, missing.get(reached - 1 if reached else 3, [])


def record(name, manifest, code_licence, answers, publisher):
    """The bytes of mof.yml. name: of the model; publisher: {"producer", "contact", "repository"}."""
    def text(value):
        return json.dumps(value or "", ensure_ascii=False)  # what JSON quotes, YAML reads

    data = manifest["licence"] or "unlicensed"
    kinds = {"distribution": (data, "LICENSE"), "code": (code_licence or "unlicensed", ""),
             "document": (code_licence or "unlicensed", ""), "data": (data, "LICENSE")}
    lines = ["framework:", *(f"  {key}: {text(value)}" for key, value in FRAMEWORK.items()), "release:",
             f"  name: {text(name)}", '  type: "code"', '  architecture: "transformer decoder"',
             '  treatment: "pre-trained"',
             f"  origin: {text(manifest['whole_tree']['url'])}",
             *(f"  {key}: {text(publisher.get(key))}" for key in ("producer", "contact", "repository")), "  license:"]
    for kind, (licence, path) in kinds.items():
        lines += [f"    {kind}:", f"      name: {text(licence)}", f"      path: {text(path)}"]
    lines += ["  components:"]
    for component in released(answers):
        lines += [f"    - name: {text(component)}", f"      license: {text(kinds[COMPONENTS[component][1]][0])}"]
    return ("\n".join(lines) + "\n").encode()
