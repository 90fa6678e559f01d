"""What every script shares: settings from the command line, errors for people, files written whole."""
import ast
import dataclasses
import difflib
import fcntl
import hashlib
import inspect
import json
import os
import re
import signal
import sys
import tempfile
from pathlib import Path


class UserError(Exception):
    """Something the user can mend. Its text is one line: what is wrong, with the numbers, and what to do."""


def run(main):
    """Calls main() and turns a UserError into one line on stderr and exit status 2, Ctrl-C into status 130."""
    if signal.getsignal(signal.SIGINT) is _quit:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.stdout.reconfigure(line_buffering=True, errors="backslashreplace")  # for `| tee` and for names of any bytes
    try:
        sys.exit(main())
    except UserError as error:
        print(f"{Path(sys.argv[0]).name}: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:  # `sample.py | head`: the reader has what it wanted
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)


def _quit(number, frame):
    """Ctrl-C while a script still imports its libraries, which takes seconds, is one line too. An exception would have
    to pass through their C++, and ends in an abort there."""
    print("interrupted", file=sys.stderr, flush=True)
    os._exit(130)


_script = getattr(sys.modules["__main__"], "__file__", None)
if (_script and Path(_script).resolve().parent == Path(__file__).resolve().parent
        and signal.getsignal(signal.SIGINT) is signal.default_int_handler):  # nohup and the like ignore it
    signal.signal(signal.SIGINT, _quit)


def nearest(name, names):
    """" (did you mean x?)", or "" where nothing comes close."""
    match = difflib.get_close_matches(name, names, 1, 0.5)
    return f" (did you mean {match[0]}?)" if match else ""


# Settings: a dataclass whose field comments are its --help.

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
    wanted = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}[kind]
    raise UserError(f"{field.name} takes {wanted}, not {text!r}")


def _help(cls, doc):
    comments = dict(re.findall(r"^    (\w+): .*?#\s*(.*)$", inspect.getsource(cls), re.M))
    lines = [doc.strip(), "", "settings:"]
    for field in dataclasses.fields(cls):
        default = "" if field.default in ("", dataclasses.MISSING) else f" [{field.default}]"
        lines += [f"  --{field.name}{default}", f"      {comments[field.name]}"]
    return "\n".join(lines)


def read_config(path):
    """The assignments of a config file as a dict. The file is parsed, never executed: literals only.

    Raises UserError for a missing file, a syntax error or anything that is not `name = literal`.
    """
    try:
        tree = ast.parse(Path(path).read_text(encoding="utf-8"), str(path))
    except OSError as error:
        found = ", ".join(sorted(map(str, Path("configs").glob("*.py"))))
        raise UserError(f"cannot read the config {path}: {error.strerror}; there are: {found}") from None
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


def parse(cls, doc, argv, config=False):
    """An instance of the dataclass `cls` from the command line; doc is printed above the settings by --help.

    `--key=value` and `--key value` both set a field, `--flag` alone a bool; a tuple field takes every word up to the
    next option. With config=True one bare word names a config file, whose values the options override, and the
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
            print(_help(cls, doc))
            sys.exit(0)
        if not word.startswith("--"):
            if not config or path:
                raise UserError(f"unexpected argument {word!r}; --help lists the settings")
            path = word
            continue
        key, equals, value = word[2:].partition("=")
        field = known(key.replace("-", "_"))
        if field.type is tuple:
            values[field.name] = (value,) if equals else ()
            while words and not words[0].startswith("--"):
                values[field.name] += (words.pop(0),)
            if not values[field.name]:
                raise UserError(f"--{key} needs at least one value")
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
        found = " or ".join(sorted(map(str, Path("configs").glob("*.py"))))
        raise UserError(f"name a config file: {found}")
    defaults = {key: _convert(known(key), value) for key, value in read_config(path).items()}
    return cls(**defaults | values), path


# Files: written under a temporary name, synced, renamed; so a reader sees the old file or the new, never half of one.

def write_file(path, data):
    """Writes `data`, bytes or an iterable of them, to `path` whole or not at all. Raises UserError where the disk
    refuses."""
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".part.", delete=False) as file:
            try:
                for part in [data] if isinstance(data, bytes) else data:
                    file.write(part)
                file.flush()
                os.fsync(file.fileno())
                os.chmod(file.name, 0o644)
                os.replace(file.name, path)
            except BaseException:
                os.unlink(file.name)
                raise
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        size = f" ({len(data):,} bytes)" if isinstance(data, bytes) else ""
        raise UserError(f"cannot write {path}{size}: {error.strerror}") from None


def remove(path):
    """Deletes a file if it is there. Raises UserError where that cannot be."""
    try:
        Path(path).unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"cannot replace {path}: {error.strerror}") from None


MADE = {"prepared tree": ("data/*/manifest.json", "python prepare.py"),
        "model": ("out/*/model.safetensors", "python train.py configs/quick.py")}


def newest(what):
    """The folder of the newest "prepared tree" or "model". Raises UserError, naming how to make one, if there is none.
    """
    pattern, command = MADE[what]
    found = sorted(Path().glob(pattern), key=lambda path: path.stat().st_mtime)
    if not found:
        raise UserError(f"there is no {what} here yet: run `{command}` first")
    return found[-1].parent


def json_digest(value):
    """SHA-256 (hex) of what a dict holds, in whatever order it is written."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def write_json(path, value):
    """Writes a dict as JSON with its digest. Raises UserError where the disk refuses."""
    write_file(path, json.dumps(value | {"digest": json_digest(value)}, indent=1).encode())


def read_json(path):
    """The dict that write_json wrote. Raises OSError where there is none, ValueError where it is damaged."""
    try:
        value = json.loads(Path(path).read_bytes())
    except RecursionError:
        raise ValueError("it is nested too deep") from None
    if not isinstance(value, dict) or "digest" not in value:
        raise ValueError("it has no digest")
    if value.pop("digest") != json_digest(value):
        raise ValueError("its digest does not fit its content")
    return value


def lock(folder):
    """Makes `folder`, keeps every other process out for as long as the file returned is open, or this process lives,
    and clears away what a killed one left half-written. Raises UserError where another has it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = open(folder / ".lock", "w")
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        for left in folder.glob(".part.*"):  # by a process that was killed while it wrote
            left.unlink()
    except BlockingIOError:
        raise UserError(f"another run is writing {folder}; wait for it, or name another --out") from None
    except OSError as error:
        raise UserError(f"cannot write in {folder}: {error.strerror}") from None
    return file
