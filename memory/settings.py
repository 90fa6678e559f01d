"""Settings from config files and the command line: a dataclass whose field comments are its --help."""
import ast
import dataclasses
import difflib
import inspect
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

from memory.output import UserError, emit

ROOT = Path(__file__).resolve().parents[1]  # the folder of the scripts


def nearest(name, names):
    """" (did you mean x?)", or "" if nothing comes close."""
    match = difflib.get_close_matches(name, names, 1, 0.5)
    return f" (did you mean {match[0]}?)" if match else ""


WANTED = {bool: "true or false", int: "a whole number", float: "a number", str: "text", tuple: "one or more texts"}


def _convert(field, text):
    """The value of one setting, from its text on the command line or from a literal in a config file."""
    kind = field.type
    if kind is bool and str(text).lower() in ("true", "false", "1", "0", "yes", "no"):
        return str(text).lower() in ("true", "1", "yes")
    try:
        if kind is str and isinstance(text, str):
            return text
        if kind in (int, float) and not isinstance(text, bool):
            value = float(text)
            if kind is float and abs(value) < float("inf") or value == int(value):
                return kind(text) if isinstance(text, str) and text.strip("+-").isdigit() else kind(value)
    except (ValueError, TypeError, OverflowError):
        pass
    raise UserError(f"{field.name} takes {WANTED[kind]}, not {text!r}")


def _help(cls, doc):
    try:
        source = inspect.getsource(sys.modules[cls.__module__])
    except (OSError, TypeError):  # only compiled files are here
        source = ""
    doc = doc or ast.get_docstring(ast.parse(source)) or ""  # `python -OO` keeps no docstrings
    found = re.search(rf"^class {cls.__name__}:\n((    .*)?\n)+", source, re.M)
    comments = dict(re.findall(r"^    (\w+): .*?#\s*(.*)$", found[0] if found else "", re.M))
    lines = [doc.strip(), "", "settings:"]
    for field in dataclasses.fields(cls):
        default = "" if field.default in ("", (), dataclasses.MISSING) else f" [{field.default}]"
        lines += [f"  --{field.name}{default}", f"      {comments.get(field.name, WANTED[field.type])}"]
    return "\n".join(lines)


def find_configs():
    """The config files of the working folder and those beside the scripts, as they can be named."""
    return sorted({str(path.relative_to(folder)) for folder in (Path(), ROOT) for path in folder.glob("configs/*.py")})


def read_config(path):
    """The assignments of a config file as a dict; if there is none at a relative path, of that beside the scripts.
    The file is parsed, never executed: literals only.

    Raises UserError for a missing file, a syntax error or anything that is not `name = literal`.
    """
    try:
        there = path if os.path.exists(path) else ROOT / path
        tree = ast.parse(Path(there).read_text(encoding="utf-8-sig"), str(path))
    except OSError as error:
        raise UserError(f"cannot read the config {path}: {error.strerror}; there are: "
                        f"{', '.join(find_configs())}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not a config file: its byte {error.start} is not UTF-8; save it as UTF-8") from None
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise UserError(f"{path} is not a config file: {error or 'nested too deep'}") from None
    values = {}
    for node in tree.body:
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            continue  # the docstring
        try:
            (target,) = node.targets
            values[target.id] = ast.literal_eval(node.value)
        except (AttributeError, ValueError, TypeError, RecursionError, MemoryError):
            raise UserError(f"{path}, line {node.lineno}: only `name = literal` may stand in a config file") from None
    return values


def parse(cls, doc, argv, config=False, operand=""):
    """An instance of the dataclass `cls` from the command line; doc is printed above the settings by --help.

    `--key=value` and `--key value` both set a field, a bare `--flag` a bool; a tuple field takes every word up to the
    next option, and more if it is given again; of any other field the last word counts. One bare word sets the field
    `operand`, if that is given. With config=True it names a config file, whose values the options override, and the
    result is (instance, path of the config file).
    Raises UserError for an unknown key, a wrong type or a missing value.
    """
    fields = {field.name: field for field in dataclasses.fields(cls)}
    values, path, words = {}, None, list(argv)

    def known(key):
        if key not in fields:
            raise UserError(f"no setting is called {key}{nearest(key, fields)}; --help lists them")
        return fields[key]

    while words:
        word = words.pop(0)
        if word in ("-h", "--help"):
            emit(_help(cls, doc) + "\n")
            sys.exit(0)
        if operand and operand not in values and (word == "-" or not word.startswith("-")):
            values[operand] = _convert(fields[operand], word)
            continue
        if not word.startswith("--"):
            if not config or path:
                raise UserError(f"unexpected argument {word!r}; --help lists the settings")
            path = word
            continue
        key, equals, value = word[2:].partition("=")
        field = known(key.replace("-", "_"))
        if field.type is tuple:
            texts = [value] if equals else []
            while words and not words[0].startswith("--"):
                texts.append(words.pop(0))
            if not texts:
                raise UserError(f"--{key} needs at least one value")
            values[field.name] = values.get(field.name, ()) + tuple(texts)
            continue
        if not equals:
            if field.type is bool and (not words or words[0].lower() not in ("true", "false", "1", "0", "yes", "no")):
                value = "true"
            elif words:
                value = words.pop(0)
            else:
                raise UserError(f"--{key} needs a value")
        values[field.name] = _convert(field, value)
    if not config:
        return cls(**values)
    if path is None:
        raise UserError(f"name a config file: {' or '.join(find_configs())}")
    defaults = {key: _convert(known(key), value) for key, value in read_config(path).items()}
    return cls(**defaults | values), path


def mistyped(cls, values):
    """The names in `values`, a dict, that are no field of the dataclass `cls` or whose value has another type, sorted.
    A whole number serves as a float."""
    kinds = {field.name: (int, float) if field.type is float else (field.type,) for field in dataclasses.fields(cls)}
    return sorted(name for name, value in values.items() if type(value) not in kinds.get(name, ()))


def command(*words):
    """A command that starts one of the scripts from this folder, to be pasted into a shell."""
    script = words[0] if Path().resolve() == ROOT else str(ROOT / words[0])
    words = ["python", script, *map(str, words[1:])]
    return subprocess.list2cmdline(words) if os.name == "nt" else shlex.join(words)
