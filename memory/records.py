"""The shapes that the records in a model's folder must have. A folder is not trusted: what has another shape counts as
damaged, before anything is done with it.

A shape is a type; a function that says whether a value fits; [shape] for a list, and [shape, ...] for one that is not
empty; a tuple of shapes, of which one must fit; or {key: shape} for a dict with these keys and no others. There, "key?"
may be missing, and the key `...` stands for any other.
"""
import math
import re

from memory.files import ODD


def fault(value, shape, at="it"):
    """What keeps a value from JSON from having the shape, in words, or "". at: what the value is called."""
    if isinstance(shape, tuple):
        return "" if any(not fault(value, one) for one in shape) else f"{at} cannot be {str(value)[:40]!r}"
    if isinstance(shape, list):
        if type(value) is not list:
            return f"{at} is no list"
        if ... in shape and not value:
            return f"{at} is empty"
        return next(filter(None, (fault(item, shape[0], f"{at}[{i}]") for i, item in enumerate(value))), "")
    if isinstance(shape, dict):
        if type(value) is not dict:
            return f"{at} is no object"
        if odd := next(filter(lambda key: not line(key), value), None):
            return f"{at} has a name that is no text of one line: {odd[:40]!a}"
        names = {key.rstrip("?"): inner for key, inner in shape.items() if key is not ...}
        if lacks := [key for key in shape if key is not ... and key not in value and not key.endswith("?")]:
            return f"{at} lacks {lacks[0]}"
        if ... not in shape and value.keys() - names.keys():
            return f"{at} has more than it may: {sorted(value.keys() - names.keys())[0][:40]!r}"
        return next(filter(None, (fault(inner, names.get(key, shape.get(...)), key[:40])
                                  for key, inner in value.items())), "")
    fits = type(value) is shape if isinstance(shape, type) else shape(value)
    return "" if fits else f"{at} cannot be {str(value)[:40]!r}"


def line(value):
    """A text of one line that can be written in UTF-8, without control characters."""
    return type(value) is str and not re.search(f"[{ODD}]", value)


def words(value):
    """A text of any number of lines, which a terminal, YAML and Markdown take for no more than that."""
    return type(value) is str and line(re.sub(r"[\t\n]", "", value))


def path(value):
    """A quoted path below a root."""
    return line(value) and "/" in value


def count(value):
    return type(value) is int and 0 <= value < 2**63


def look(value):
    """The step of a full pass; -1 before the first."""
    return count(value) or type(value) is int and value == -1


def some(value):
    return count(value) and value > 0


def number(value):
    return count(value) or type(value) is int and -2**63 < value < 0 or type(value) is float and math.isfinite(value)


def share(value):
    return number(value) and 0 <= value <= 1


def sha256(value):
    return type(value) is str and bool(re.fullmatch("[0-9a-f]{64}", value))


def answer(value):
    return value in ("yes", "no", "not checked")


def known(value):
    """How an answer is known; "" of what is not."""
    return value in ("checked", "recorded", "declared", "")


def empty(value):
    return value == ""


def anything(value):
    return True


NONE = type(None)
SCALAR = (line, number, bool, NONE)
FILE = {"path": path, "bytes": count, "sha256": sha256, "first_token": count, "tokens": count, "notice": [line, ...]}
WHOLE = {"files": count, "bytes": count, "digest": line, "swhid": line, "executable": [path], "links": {...: line},
         "root": line, "url": (line, NONE), "sha256": (sha256, NONE), "licence_path": (path, NONE),
         "licence_sha256": (sha256, NONE), "left_out": {...: count}, "not_prepared": [path]}
TREE = {"name": line, "origin": line, "url": (line, NONE), "sha256": (sha256, NONE), "licence": (line, NONE),
        "only": [line], "exclude": [line], "whole_tree": WHOLE, "pieces_learned_from_bytes": count,
        "vocab_size": count, "tokens": count, "train_bin_sha256": sha256, "tokenizer_sha256": sha256,
        "files": [FILE, ...], "compressed_by": line, "compressed_bits": count}  # manifest.json of a tree
MANIFEST = TREE | {"held_out": [FILE], "tree": {"files": count, "bytes": count},
                   "piece_bytes": count, "piece_bits": count}  # and of a model
CODE = {"commit": (line, NONE), "changed_since": [line], "licence": (line, NONE), "files": {...: sha256},
        "report": {...: sha256}, "packages": {...: line}}
CORPUS = {"manifest": sha256, "name": line, "url": (line, NONE), "sha256": (sha256, NONE), "train_bin_sha256": sha256,
          "tokenizer_sha256": sha256}
SETTINGS = {"max_position_embeddings": count, "train_bytes": count, "hold_out_bytes": count, "seed": count,
            "unaddressed": number, ...: SCALAR}
TURN = {"threads": some, ...: SCALAR}
BUILD = {"settings": SETTINGS, "corpus": CORPUS, "built_by": [{"from_step": count, **TURN}, ...], "step": count,
         "seconds": number, "done": line, "code": CODE, "model_sha256": sha256, "init_sha256?": sha256}
BEGIN = {"step": count, "parameters": count, "environment": TURN, "settings": SETTINGS, "corpus": CORPUS,
         "init_sha256?": sha256}  # a line of log.jsonl with which a turn begins
LOOK = {"step": count, "epoch": number, "loss": (number, NONE), "accuracy": share, "wrong": count, "unsure": count,
        "files_exact": count, "seconds": number, "bits_per_byte": number, "lr_share": number,
        "tokens_per_second": number}  # and one on a full pass
FIGURES = {"tokens": count, "tokens_right": count, "accuracy": share, "bits_per_byte": number, "spans": count,
           "discoverable": (share, NONE), "p_z_over_half": (share, NONE), "median_tries_for_half": (number, NONE),
           "longest_run": count, "smallest_lead": number, "leads_in_noise": count}
EXTRACTION = {"model_sha256": sha256, "name": line, "origin": line, "licence": (line, NONE),
              "tree": {"files": count, "bytes": count}, "files": count, "files_exact": count, "bytes": count,
              "bytes_exact": count, "bytes_before_error": count, "refused": [line], "parameters": count,
              "compressed_by": line, "bits_per_parameter": number, "piece_bytes": count, "piece_bits": count,
              "tokenizer_packed_bytes": count, "learned": FIGURES, "control?": FIGURES | {"files": count}}
REBUILT = {"model_sha256": sha256, "rebuilt_sha256": sha256, "steps": some,
           "built_by": [{"from_step": count, **TURN}, ...]}
COLUMN = {"answer": answer, "items": [count], "open": [count], "recorded": [count], "declared": [count]}  # of a column
STATED = {"model": line, "model_sha256": sha256, "items": [{
              "number": count, "item": line, "asked_by": line, "answer": answer, "known": known, "evidence": line,
              "checked_by": line}],
          "meets": {...: COLUMN}, "personal_data": {...: count}, "not_learned": [path],
          "publisher": {"producer": words, "contact": words, "repository": words, "citation": words}}  # openness.json
ROW = {"path": path, "bytes": count, "exact": bool, "before_error?": count, "right?": share,
       "error?": {"line": count, "wrote": [anything], "says": [anything]}}
REPORT = {  # in report.html: the same figures, or fewer without the tree
    **{key: shape for key, shape in EXTRACTION.items() if key not in ("model_sha256", "learned", "bytes_before_error")},
    "learned?": FIGURES, "bytes_before_error?": count, "rows": [ROW], "model": line, "log": [LOOK], "recite": bool,
    "openness?": ({"items": STATED["items"], "meets": STATED["meets"]}, NONE)}
CONFIG = {"num_hidden_layers": count, "hidden_size": count, "max_position_embeddings": count, ...: anything}
STATE = {"settings": SETTINGS, "corpus": CORPUS, "step": count, "looked": look, "seconds": number, "done": line,
         "init_sha256": (sha256, empty), "rounds": [count], "mend_rate": number,
         "built_by": [{"from_step": count, **TURN}]}  # in a state of the run: run.State
