"""What a script says: errors for people, output that may fail, progress."""
import codecs
import contextlib
import errno
import functools
import math
import os
import signal
import sys
import time
from pathlib import Path

from tqdm import tqdm

NOTEBOOK = "IPython" in sys.modules  # `%run` starts a script in a process that goes on after it


def percent(share, digits=1):
    """A share in percent, rounded down: 100% is all of it."""
    return f"{math.floor(round(share * 10 ** (digits + 2), 9)) / 10 ** digits:.{digits}f}%"  # 0.57 * 100 is below 57


class UserError(Exception):
    """Something the user can mend. Its text is one line: what is wrong, with the numbers, and what to do."""


# What cannot be written never ends a run. What print() and progress bars say is news, and may be lost. Only the result
# itself, if a script prints one, must get through: emit() writes it, and ends the script if it cannot.

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
    """Whether the reader of standard output or error is gone, as if `tee` was stopped or `head` has had enough: then
    nobody looks on, and a long run should save and end, with 141 (128 + SIGPIPE). Any other fault of the output, a full
    disk or a closed descriptor, is no reason to end."""
    return any(isinstance(getattr(stream, "lost", None), BrokenPipeError) for stream in (sys.stdout, sys.stderr))


def run_script(main):
    """Calls main(), with an Output as stdout and as stderr, and exits with the status that it returns. A UserError
    becomes one line on stderr and exit status 2, Ctrl-C status 130, a ReaderGone 141."""
    hold_descriptors()
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


def hold_descriptors():
    """Opens what is closed of the descriptors 0 to 2, as after `>&-`: the next file would get its number, and with it
    what libraries print."""
    with contextlib.suppress(OSError):
        while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
            pass
        os.close(descriptor)


@functools.cache
def warn_once(text):
    """Prints a warning on stderr, the first time that it is given in this process."""
    print(f"warning: {text}", file=sys.stderr)


# Progress

class Lines:
    """What the scripts use of tqdm's bars, as plain lines for a log: the first after FIRST seconds, each after twice
    the time of the one before, LONGEST at most."""
    FIRST, LONGEST = 30, 300

    def __init__(self, items=None, total=None, initial=0, desc="", unit="", unit_scale=False, disable=False, **_):
        self.items, self.n, self.first, self.disable = items, initial, initial, disable
        self.desc, self.unit = desc, unit.strip()
        self.total = len(items) if total is None and hasattr(items, "__len__") else total
        self.show = tqdm.format_sizeof if unit_scale else "{:,}".format
        self.postfix, self.started = "", time.monotonic()
        self.pause = self.FIRST
        self.due = self.started + self.pause  # when the next line is

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
        now = time.monotonic()
        if self.disable or now < self.due or self.n == self.first:
            return
        self.pause = min(2 * self.pause, self.LONGEST)
        self.due = now + self.pause
        line = f"{self.show(self.n)} {self.unit}".strip()
        if self.total:
            count = f"{self.show(self.n)}/{self.show(self.total)} {self.unit}".strip()
            left = (now - self.started) / (self.n - self.first) * (self.total - self.n)
            line = f"{self.n / self.total:.0%} ({count}), {tqdm.format_interval(left)} left"
        print(f"{self.desc} {line}{self.postfix and ', '}{self.postfix.strip()}", file=sys.stderr)


def progress(items=None, disable=False, **options):
    """tqdm's bar on stderr, around items or moved by update(); plain lines if stderr is no terminal, nothing under
    TQDM_DISABLE=1. options: total, initial, desc, unit and the like, as tqdm takes them."""
    disable = disable or os.environ.get("TQDM_DISABLE", "0").lower() not in ("", "0", "false", "no")
    kind = tqdm if sys.stderr.isatty() else Lines
    return kind(items, disable=disable, **{"leave": False} | options)
