"""What every script shares: settings from the command line, errors for people, files written whole."""
import ast
import codecs
import contextlib
import ctypes
import dataclasses
import difflib
import errno
import functools
import hashlib
import inspect
import json
import os
import re
import secrets
import shlex
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path


HERE = Path(__file__).resolve().parent
NOTEBOOK = "IPython" in sys.modules  # where `%run` starts a script in a process that goes on after it


class UserError(Exception):
    """Something the user can mend. Its text is one line: what is wrong, with the numbers, and what to do."""


# Output: what cannot be written never ends a run. What print() and progress bars say is news, and may be lost. Only the
# result itself, if a script prints one, must get through: emit() writes it, and ends the script if it cannot.

class ReaderGone(Exception):
    """Nobody reads a script's result any more, as in `sample.py | head`: the script ends quietly, with 141."""


class Output:
    """Standard output or error, for news: what cannot be written is lost, and the program goes on.

    stream: the stream itself, or None if the descriptor was closed before the start, as by `>&-`.
    lost: the first OSError or ValueError that kept something from being written, or None.
    """

    def __init__(self, stream):
        self.lost = None if stream else OSError(errno.EBADF, os.strerror(errno.EBADF))
        self.stream = stream or open(os.devnull, "w")
        self.decoder = codecs.getincrementaldecoder("utf-8")("backslashreplace")
        if hasattr(self.stream, "reconfigure"):  # a notebook's has none
            self.stream.reconfigure(line_buffering=True, errors="backslashreplace")  # for `| tee`, and for any name

    def __getattr__(self, name):
        return getattr(self.stream, name)

    def isatty(self):
        return self.lost is None and hasattr(self.stream, "isatty") and self.stream.isatty()

    def attempt(self, work, *arguments):
        """Calls a method of the stream; what it raises is kept in `lost`."""
        try:
            work(*arguments)
        except (OSError, ValueError) as error:
            self.lost = self.lost or error
            if isinstance(error, BrokenPipeError):
                self.close_off()

    def put(self, text):
        """Writes text. Raises OSError or ValueError."""
        if not hasattr(self.stream, "reconfigure"):  # it may know no way to write half a character
            text = text.encode(errors="backslashreplace").decode()
        self.stream.write(text)

    def write(self, text):
        self.attempt(self.put, text)
        return len(text)

    def flush(self):
        self.attempt(self.stream.flush)

    def emit(self, data):
        """Writes text or bytes, at once. Raises OSError or ValueError, and writes no more then."""
        if self.lost:
            raise self.lost
        try:
            if isinstance(data, bytes) and hasattr(self.stream, "buffer"):
                self.stream.flush()
                self.stream.buffer.write(data)
            else:
                self.put(data if isinstance(data, str) else self.decoder.decode(data))
            self.stream.flush()
        except (OSError, ValueError):
            self.close_off()
            raise

    def close_off(self):
        """Sends what the stream still holds, and all that follows, nowhere: or Python itself fails on it at its end."""
        with contextlib.suppress(OSError, ValueError, AttributeError):
            with open(os.devnull, "wb") as nowhere:
                os.dup2(nowhere.fileno(), self.stream.fileno())

    def end(self):
        """Writes what is still held back, or lets it go."""
        self.flush()
        if self.lost:
            self.close_off()
            self.attempt(self.stream.flush)


def emit(data):
    """Writes a script's result, text or bytes, to standard output at once. Raises ReaderGone if nobody reads it any
    more, UserError if it cannot be written otherwise."""
    out = sys.stdout if isinstance(sys.stdout, Output) else Output(sys.stdout)
    try:
        out.emit(data)
    except BrokenPipeError:
        raise ReaderGone from None
    except (OSError, ValueError) as error:
        raise UserError(f"cannot write standard output: {getattr(error, 'strerror', None) or error}") from None


def output_lost():
    """Whether the reader of standard output or error is gone, as where `tee` was stopped or `head` has had enough: then
    nobody looks on, and a long run should save and end, with 141 (128 + SIGPIPE). Any other fault of the output, a full
    disk or a closed descriptor, is no reason to end."""
    return any(isinstance(getattr(stream, "lost", None), BrokenPipeError) for stream in (sys.stdout, sys.stderr))


def run(main):
    """Calls main(), with an Output as stdout and as stderr, and exits with the status that it returns. A UserError
    becomes one line on stderr and exit status 2, Ctrl-C status 130, a ReaderGone 141."""
    if signal.getsignal(signal.SIGINT) is _quit:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    streams, status, name = (sys.stdout, sys.stderr), None, Path(sys.argv[0]).name
    sys.stdout, sys.stderr = map(Output, streams)
    handlers = {number: signal.getsignal(number) for number in signal.valid_signals()} if NOTEBOOK else {}
    try:
        status = main()
    except UserError as error:
        print(f"{name}: {error}", file=sys.stderr)
        status = 2
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        status = 130
    except ReaderGone:
        status = 141
    finally:
        sys.stdout.end()
        lost = sys.stdout.lost
        if streams[0] and status != 2 and lost and not isinstance(lost, BrokenPipeError):
            print(f"{name}: some output is lost: {getattr(lost, 'strerror', None) or lost}", file=sys.stderr)
        sys.stderr.end()
        sys.stdout, sys.stderr = streams
        for number, handler in handlers.items():
            if signal.getsignal(number) != handler:
                signal.signal(number, handler)
    sys.exit(status)


def _quit(number, frame):
    """Ctrl-C while a script still imports its libraries, which takes seconds, is one line too. An exception would have
    to pass through their C++, and ends in an abort there."""
    with contextlib.suppress(OSError):
        os.write(2, b"interrupted\n")
    os._exit(130)


_script = getattr(sys.modules["__main__"], "__file__", None)
if _script and Path(_script).resolve().parent == HERE and not NOTEBOOK:
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # nohup and the like ignore it
        signal.signal(signal.SIGINT, _quit)
    with contextlib.suppress(OSError):  # a closed descriptor of 0 to 2 would be the next file's, and get its output
        while (_descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
            pass
        os.close(_descriptor)


from tqdm import tqdm  # noqa: E402  takes a while, in which Ctrl-C is one line by now


def nearest(name, names):
    """" (did you mean x?)", or "" where nothing comes close."""
    match = difflib.get_close_matches(name, names, 1, 0.5)
    return f" (did you mean {match[0]}?)" if match else ""


# Progress

class Lines:
    """What the scripts use of tqdm's bars, as plain lines for a log: one each time that both a tenth of the work and
    EVERY seconds have passed."""
    EVERY = 30

    def __init__(self, items=None, total=None, initial=0, desc="", unit="", unit_scale=False, disable=False, **_):
        self.items, self.n, self.first, self.disable = items, initial, initial, disable
        self.desc, self.unit = desc, unit.strip()
        self.total = len(items) if total is None and hasattr(items, "__len__") else total
        self.show = tqdm.format_sizeof if unit_scale else "{:,}".format
        self.postfix, self.started = "", time.monotonic()
        self.told = self.started, initial  # time and n of the last line

    def __iter__(self):
        for item in self.items:
            yield item
            self.update()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def set_description(self, desc):
        self.desc = desc

    def set_postfix_str(self, postfix, refresh=False):
        self.postfix = postfix

    def update(self, n=1):
        self.n += n
        now, (then, before) = time.monotonic(), self.told
        if self.disable or now - then < self.EVERY or self.total and self.n - before < self.total / 10:
            return
        self.told = now, self.n
        line = f"{self.show(self.n)} {self.unit}".strip()
        if self.total:
            count = f"{self.show(self.n)}/{self.show(self.total)} {self.unit}".strip()
            left = (now - self.started) / (self.n - self.first) * (self.total - self.n)
            line = f"{self.n / self.total:.0%} ({count}), {tqdm.format_interval(left)} left"
        print(f"{self.desc} {line}{self.postfix and ', '}{self.postfix.strip()}", file=sys.stderr)


def progress(items=None, disable=False, **options):
    """tqdm's bar on stderr, around items or moved by update(); plain lines where stderr is no terminal, nothing under
    TQDM_DISABLE=1. options: total, initial, desc, unit and the like, as tqdm takes them."""
    disable = disable or os.environ.get("TQDM_DISABLE", "0").lower() not in ("", "0", "false", "no")
    kind = tqdm if sys.stderr.isatty() else Lines
    return kind(items, disable=disable, **{"leave": False} | options)


# Settings: a dataclass whose field comments are its --help.

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
    return sorted({str(path.relative_to(folder)) for folder in (Path(), HERE) for path in folder.glob("configs/*.py")})


def read_config(path):
    """The assignments of a config file as a dict; where there is none at a relative path, of that beside the scripts.
    The file is parsed, never executed: literals only.

    Raises UserError for a missing file, a syntax error or anything that is not `name = literal`.
    """
    try:
        there = path if os.path.exists(path) else HERE / path
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
            emit(_help(cls, doc) + "\n")
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
        raise UserError(f"name a config file: {' or '.join(find_configs())}")
    defaults = {key: _convert(known(key), value) for key, value in read_config(path).items()}
    return cls(**defaults | values), path


# Files: written under a temporary name, synced, renamed; so a reader sees the old file or the new, never half of one.

REFUSED = {errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOLCK, errno.ENOTTY, errno.EACCES,
           errno.EPERM, errno.EBADF}  # how file systems say that they cannot lock or sync


@functools.cache
def warn_once(text):
    """Prints a warning on stderr, the first time that it is given in this process."""
    print(f"warning: {text}", file=sys.stderr)


def sync(file):
    """Waits until what an open file or folder (a descriptor) holds is on the disk; one warning where the file system
    knows no such thing. Raises OSError if the disk fails."""
    try:
        os.fsync(file)
    except OSError as error:
        if error.errno not in REFUSED:
            raise
        warn_once(f"this file system cannot sync ({error.strerror}): a power cut may lose what was just written")


def sync_folder(folder):
    """The same for the names in a folder. Windows keeps them by itself, and opens no folders."""
    if os.name == "nt":
        return
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError as error:
        warn_once(f"this file system opens no folder to sync it ({error.strerror}): a power cut may lose what was "
                  f"just written")
        return
    try:
        sync(descriptor)
    finally:
        os.close(descriptor)


def write_through(path, parts):
    """Writes an iterable of bytes into what stands at `path`, if that is no regular file: a device, a pipe, or whatever
    standard output and error go to. Returns whether it did. Raises OSError."""
    try:
        there = os.stat(path)
    except FileNotFoundError:
        return False
    for number in (1, 2):  # a regular file may be one of these too: it goes on where the output stands
        try:
            same = os.path.samestat(there, os.fstat(number))
        except OSError:
            continue
        if same:
            sys.stdout.flush()
            sys.stderr.flush()
            with open(os.dup(number), "wb") as file:
                file.writelines(parts)
            return True
    if stat.S_ISREG(there.st_mode):
        return False
    with open(path, "wb") as file:  # which says so if it is a folder
        file.writelines(parts)
    return True


def write_file(path, data):
    """Writes `data`, bytes or an iterable of them, to `path`, whole or not at all. A link stays, and the file that it
    names is written; what is no regular file is written through. Raises UserError if the disk refuses."""
    parts = [data] if isinstance(data, bytes) else data
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        if write_through(path, parts):
            return
        target = Path(os.path.realpath(path))
        part = target.with_name(f".part.{secrets.token_hex(8)}")
        try:
            with open(part, "xb") as file:  # made with the mode that the umask leaves
                file.writelines(parts)
                file.flush()
                sync(file.fileno())
            os.replace(part, target)
        except BaseException:
            part.unlink(missing_ok=True)
            raise
        sync_folder(target.parent)
    except BrokenPipeError:
        raise ReaderGone from None
    except OSError as error:
        size = f" ({len(data):,} bytes)" if isinstance(data, bytes) else ""
        raise UserError(f"cannot write {path}{size}: {error.strerror}") from None


STDOUT = ("-", "/dev/stdout")


def write_result(path, data):
    """The same, but "-" and its other name are standard output."""
    if path in STDOUT:
        emit(data + b"\n")
    else:
        write_file(path, data)


def remove(path):
    """Deletes a file if it is there. Raises UserError where that cannot be."""
    try:
        Path(path).unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"cannot replace {path}: {error.strerror}") from None


def command(*words):
    """A command that starts one of the scripts from this folder, to be pasted into a shell."""
    script = words[0] if Path().resolve() == HERE else str(HERE / words[0])
    words = ["python", script, *map(str, words[1:])]
    return subprocess.list2cmdline(words) if os.name == "nt" else shlex.join(words)


MADE = {"prepared tree": ("data/*/manifest.json", ["prepare.py"]),
        "model": ("out/*/model.safetensors", ["train.py", "configs/quick.py"])}


def newest(what):
    """The folder of the newest "prepared tree" or "model", by the time of its file. A copy may have a new time: so the
    folder is named on stderr. Raises UserError, naming how to make one, if there is none."""
    pattern, script = MADE[what]
    found = sorted(Path().glob(pattern), key=lambda path: path.stat().st_mtime)
    if not found:
        raise UserError(f"there is no {what} here yet: run `{command(*script)}` first")
    folder = found[-1].parent
    if os.environ.get("RANK", "0") == "0":  # of several processes, the first talks
        took = f"the newest of {len(found)}" if len(found) > 1 else "the only one"
        print(f"{what.split()[-1]}: {folder}, {took}", file=sys.stderr)
    return folder


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
    from filelock import lock_descriptor  # here, because only training needs it
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = open(folder / ".lock", "w")
        try:
            if not lock_descriptor(file.fileno(), blocking=False):
                raise UserError(f"another run is writing {folder}; wait for it, or name another --out")
        except OSError as error:
            if error.errno not in REFUSED:
                raise
            warn_once(f"this file system cannot lock ({error.strerror}): start no second run in {folder} meanwhile")
        for left in folder.glob(".part.*"):  # by a process that was killed while it wrote
            left.unlink()
    except OSError as error:
        raise UserError(f"cannot write in {folder}: {error.strerror}") from None
    return file


def memory_size():
    """Bytes of memory that the machine has, or None where the system does not say."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # Windows has no sysconf
        pass
    status = (ctypes.c_uint64 * 8)(64)  # Windows' MEMORYSTATUSEX: its size in bytes, the memory there is, and more
    try:
        return status[1] if ctypes.windll.kernel32.GlobalMemoryStatusEx(status) else None
    except AttributeError:
        return None
