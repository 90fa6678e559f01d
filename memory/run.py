"""A run: what its parts share, how it is stopped and measured, and what it keeps in its folder."""
import dataclasses
import math
import os
import signal
import threading
import time
from concurrent.futures import Future
from pathlib import Path

import torch
from tqdm import tqdm

from memory import processes
from memory.checkpoint import NAMES, another_version, append_log, load_state, pack, save_state, trim_log, unpack
from memory.corpus import CORPUS
from memory.evaluate import SURE, count_wrong, list_errors, report_errors
from memory.files import digest_of, read_json, remove, write_json
from memory.output import UserError, output_lost, progress
from memory.sampler import Sampler
from memory.schedule import Schedule, round_rate, round_steps
from memory.settings import command
from memory.windows import Windows

OF_A_RUN = (  # what a folder says of a run, which another one must not keep
    "errors.jsonl", "build.json", "model.safetensors", "extraction.json", "rebuilt.json", "openness.json", "README.md",
    "croissant.json", "mof.yml", "report.html", "recite.html", "SHA256SUMS")
PLACES = {"data", "out", "init_from", "fresh"}  # settings that say nothing of the weights, which no record has
FREE = {*PLACES, "device", "compile", "eval_every", "checkpoint_every", "target_accuracy"}  # on resume
SPENT = "the budget is spent"  # why a run is done that has tokens wrong


def in_background(work, *arguments):
    """A Future of what work(*arguments) returns, from a thread that keeps no process from ending."""
    future = Future()

    def go():
        try:
            future.set_result(work(*arguments))
        except Exception as error:
            future.set_exception(error)

    threading.Thread(target=go, daemon=True).start()
    return future


@dataclasses.dataclass
class State:
    """Where a run stands: what the JSON of a checkpoint holds. The tensors beside it are those of checkpoint.pack."""
    settings: dict
    corpus: dict  # which tree: its name and hashes
    step: int = 0  # steps made
    looked: int = 0  # step of the last full pass; -1 before the one that a run from weights begins with
    seconds: float = 0.0  # of steps, in all turns
    done: str = ""  # why the run is finished; "" if it is not
    init_sha256: str = ""  # of the weights that it began from; "" if from nothing
    rounds: list = dataclasses.field(default_factory=list)  # of mending: the first step, and the end of each (Schedule)
    mend_rate: float = 0.0  # of the last of them (Schedule)
    built_by: list = dataclasses.field(default_factory=list)  # the surroundings of each turn, and its first step


@dataclasses.dataclass
class Run:
    """What the parts of a run share."""
    settings: object  # train.Settings
    out: Path
    device: torch.device
    dtype: torch.dtype
    manifest: dict  # of the model: that of the tree, with the files that the run learns
    windows: Windows
    model: torch.nn.Module
    optimizers: list
    sampler: Sampler
    schedule: Schedule
    state: State
    code: dict  # which code computes (versions.describe_code)
    compressed: object = None  # a Future: what compressed_sizes finds

    @property
    def files(self):
        return self.manifest["files"]

    @property
    def size(self):
        """Bytes of text."""
        return sum(file["bytes"] for file in self.files)

    @property
    def record(self):
        """What to build the weights from, as JSON holds it."""
        record = {"settings": self.state.settings, "corpus": self.state.corpus}
        return record | {"init_sha256": self.state.init_sha256} if self.state.init_sha256 else record


STOPPING = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]  # Windows: two


class Stop:
    """A signal that asks a run to stop, one of STOPPING. The run saves as soon as it has finished the step or
    the batch it is at; a second signal leaves at once, and so does the first before anything is learned."""
    TWICE = 1.0  # seconds in which a second signal is the first: `timeout` signals a program, then its group

    def __init__(self, out):
        self.out, self.signal, self.since, self.learned, self.before = out, 0, 0.0, False, {}
        for number in STOPPING:
            if signal.getsignal(number) != signal.SIG_IGN:  # as under nohup
                self.before[number] = signal.signal(number, self.note)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        """Gives the signals back their handlers."""
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def note(self, number, frame):
        now = time.monotonic()
        first, self.signal = not self.signal, self.signal or number  # before any call, in which the next may come
        if first:
            self.since = now
        elif now - self.since < self.TWICE:
            return
        saves = first and self.learned
        text = f"\nstopping, saving {self.out} …\n" if saves else "\nstopped at once\n"
        try:
            os.write(2, text.encode(errors="backslashreplace"))  # print might be what was interrupted
        except OSError:
            pass
        if not saves:
            os._exit(128 + number)

    def status(self):
        """The exit status of a run that some process was asked to stop, or 0. The reader of the output may be gone too,
        as after `| head`; then nobody is there to say what to do."""
        return processes.most(128 + self.signal if self.signal else 141 if output_lost() else 0)


class Meter:
    """Losses and seconds of this turn's steps since the last full pass. tokens: positions of a step."""

    def __init__(self, tokens):
        self.tokens, self.losses, self.seconds, self.shown = tokens, [], [], time.perf_counter()

    def reset(self):
        self.losses, self.seconds = [], []

    def note(self, loss):
        """Takes the loss of a step, a tensor on the device."""
        self.losses.append(loss)

    def lap(self, started):
        """Seconds since `started`: those of the step."""
        self.seconds.append(time.perf_counter() - started)
        return self.seconds[-1]

    def due(self):
        """Once a second: what follows waits for the device, which no step should."""
        return time.perf_counter() - self.shown > 1

    def recent(self, step):
        """The mean of the last losses. Raises UserError if it is not finite."""
        self.shown, loss = time.perf_counter(), torch.stack(self.losses[-50:]).mean().item()
        refuse_infinite(loss, step)
        return loss

    def mean(self):
        """The mean over all steps and processes; None if there was no step in this turn."""
        if not self.losses:
            return None
        return processes.total(torch.stack(self.losses).mean().cpu()).item() / processes.count()

    def rate(self):
        """Tokens a second."""
        seconds = self.seconds[-500:]
        return self.tokens * len(seconds) / sum(seconds) if seconds else 0.0


def say(text):
    """Prints a line for people, from one process, and above the bar."""
    if processes.rank() == 0:
        tqdm.write(text)


def mend(run, wrong, unsure, unsafe, rivals):
    """Begins a round of mending; if there were as many steps of it as may be, the run is done instead. wrong, unsure,
    unsafe, rivals: as count_wrong gives them."""
    state, settings = run.state, run.settings
    rounds, small = state.rounds or [state.step], unsure.sum() - wrong.sum()
    left = rounds[0] + settings.mend_steps - state.step
    if not left:
        state.done = SPENT if wrong.any() else (
            f"every token right, {small:,} of them by less than {SURE:g} logits")
        return
    broke = bool(state.rounds) and bool(unsure[~run.sampler.due].any())
    # the openings of files as well: if some came more often, their paths would gain on the rest
    run.sampler.restart((unsafe > 0) | (run.windows.offset == 0), rivals)
    steps = min(round_steps(run.sampler.due, settings.batch_size), left)
    state.rounds = [*rounds, state.step + steps]
    state.mend_rate = round_rate(state.mend_rate, broke, len(unsure) / settings.batch_size, not rounds[0])
    run.schedule.follow(state.rounds, state.mend_rate)
    say(f"{wrong.sum():,} tokens are wrong, {small:,} lead by less than {SURE:g} logits: {steps:,} steps to mend them")


def progress_of(run):
    """The bar of a run's steps."""
    return progress(
        total=run.schedule.last, initial=run.state.step, desc=run.out.name, unit="step", leave=True,
        smoothing=0.05, dynamic_ncols=True, disable=processes.rank() > 0,
        bar_format="{desc} {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]")


def log(run, **line):
    if processes.rank() == 0:
        append_log(run.out / "log.jsonl", {"step": run.state.step} | line)


def agree(run, what, view):
    """Raises UserError if the processes do not all give the same."""
    if any(other != view for other in processes.gather(view)):
        raise UserError(f"the processes differ in their {what}: give all the same command, the same tree and an --out "
                        f"that they share, not {run.out}")


def refuse_infinite(loss, step):
    if not math.isfinite(loss):
        raise UserError(f"the loss or a weight is not finite at step {step:,} (loss {loss}); what was saved before is "
                        f"whole: try a lower muon_lr or learning_rate")


def foreign(folder):
    """What a folder without a state holds that no run leaves before its first state, in words; "" if there is nothing.
    Raises UserError if it cannot be read."""
    try:
        names = sorted(os.listdir(folder))
    except FileNotFoundError:
        return ""
    except OSError as error:
        raise UserError(f"cannot read {folder}: {error.strerror}") from None
    if set(NAMES) & set(names):
        return ""
    if "model.safetensors" in names:
        return "a model"
    return next((name for name in names if not name.startswith(".") and name != "log.jsonl"), "")


def resume(run):
    """Goes on with the state that the run's folder holds, if there is one. Raises UserError if it is another run's."""
    out, state = run.out, run.state
    if run.settings.fresh and processes.rank() == 0:
        for name in (*NAMES, *OF_A_RUN):
            remove(out / name)
    agree(run, "start", "ready")  # nobody looks before that
    saved = load_state(out)
    if saved:
        tensors, meta, path = saved
        for name in sorted(state.settings.keys() - FREE):
            began, now = meta["settings"].get(name), state.settings[name]
            if began != now:
                raise UserError(f"{out} holds a run with {name} {began}, not {now}: name another --out, or start over "
                                f"with --fresh, which loses that run")
        if any(meta["corpus"][key] != state.corpus[key] for key in CORPUS):
            raise UserError(f"{out} holds a run on another tree, {meta['corpus']['name']}: leave --data out to go on "
                            f"with it, or name another --out")
        if meta["init_sha256"] != state.init_sha256:
            begun, now = (f"the weights of SHA-256 {sha256[:16]}…" if sha256 else "nothing"
                          for sha256 in (meta["init_sha256"], state.init_sha256))
            raise UserError(f"{out} holds a run that began from {begun}, and --init_from names {now}: name the same "
                            f"again or another --out, or start over with --fresh, which loses that run")
        try:
            unpack(tensors, run.model, run.optimizers, run.sampler)
            run.state = State(**meta | {"settings": state.settings, "corpus": state.corpus})
            if run.state.rounds:
                run.schedule.follow(run.state.rounds, run.state.mend_rate)
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise another_version(path, " ".join(str(error).split())[:200]) from None
    agree(run, "step", run.state.step)
    if saved and path == out / NAMES[1] and processes.rank() == 0:
        path.replace(out / NAMES[0])  # the damaged state must not become the previous one


def begin_turn(run, here):
    """Notes what this turn computes with, and says what it learns."""
    state, settings, windows = run.state, run.settings, run.windows
    if not state.done:
        state.built_by = [turn for turn in state.built_by if turn["from_step"] < state.step]
    if not state.done and (not state.built_by or state.built_by[-1] | here != state.built_by[-1]):
        state.built_by.append({"from_step": state.step} | here)
    if processes.rank() == 0:
        if settings.hold_out_bytes and not run.manifest["held_out"]:
            new = ", new to the first weights," if state.init_sha256 else ""
            print(f"nothing is held out: {run.manifest['name']} has no file{new} of at most {settings.hold_out_bytes} "
                  f"bytes to spare")
        stand_in = " (a STAND-IN for Linux 1.0)" if run.manifest["origin"] == "stand-in" else ""
        several = f", {processes.count()} processes" if processes.count() > 1 else ""
        going_on = f", going on at step {state.step:,}" if state.step else ""
        print(f"{run.manifest['name']}{stand_in}: {len(run.files)} files, {run.size:,} bytes, {windows.scored:,} "
              f"tokens to get right in {len(windows):,} windows\n{run.model.config.num_parameters:,} parameters, "
              f"{run.schedule.last:,} steps of {settings.batch_size} windows, {run.device.type} "
              f"{here['dtype']}{several}{going_on}")
        if state.step or state.done:  # a run from weights may be done before its first step
            trim_log(run.out / "log.jsonl", state.step, state.looked)
        else:
            remove(run.out / "log.jsonl")
    log(run, parameters=run.model.config.num_parameters, environment=here, **run.record)


def save(run):
    """Saves the state of the run. Raises UserError if a weight is not finite."""
    if processes.rank() == 0:
        tensors = pack(run.model, run.optimizers, run.sampler)
        finite = all(torch.isfinite(p).all() for p in run.model.parameters())
        refuse_infinite(0.0 if finite else math.nan, run.state.step)
        save_state(run.out, tensors, dataclasses.asdict(run.state))


def is_model_whole(run):
    """Whether the run's folder holds all that finish() writes there, undamaged. Raises UserError if a file cannot be
    read."""
    try:
        saved = run.model.saved(run.windows.tokenizer, **{key: run.state.corpus[key] for key in CORPUS})
        same = all((run.out / name).read_bytes() == data for name, data in saved.items())
        read_json(run.out / "manifest.json")
        digest_of(run.out / "errors.jsonl")
        return same and read_json(run.out / "build.json")["model_sha256"] == digest_of(run.out / "model.safetensors")
    except (FileNotFoundError, ValueError, KeyError):
        return False
    except OSError as error:
        raise UserError(f"cannot read {error.filename}: {error.strerror}") from None


def status_of(run):
    """The exit status of a finished run. Only the first process says that tokens are wrong: torchrun stops the others,
    this one too while it writes, as soon as one fails."""
    return int(run.state.done == SPENT and processes.rank() == 0)


def save_model(run):
    """Writes the model's folder; returns the SHA-256 (hex) of the weights."""
    corpus = {key: run.state.corpus[key] for key in CORPUS}
    sha256 = run.model.save_pretrained(run.out, run.windows.tokenizer, **corpus)
    write_json(run.out / "manifest.json", run.manifest | run.compressed.result())
    write_json(run.out / "build.json", run.record | {
        "built_by": run.state.built_by, "step": run.state.step, "seconds": round(run.state.seconds, 1),
        "done": run.state.done, "code": run.code, "model_sha256": sha256})
    return sha256


def finish(run, wrong, stop):
    """Saves, and says how the run ended; returns the exit status. build.json, without which a model is not whole, is
    written last: so what a kill here leaves undone is done by the next start."""
    out, state, status = run.out, run.state, stop.status()
    if state.done and wrong is None:  # a finished run, whose model is written again
        wrong, *_ = count_wrong(run.model, run.windows, run.device)
    if processes.rank() == 0:
        for name in ("build.json", "SHA256SUMS"):  # of an earlier stop
            remove(out / name)
        for name in ("report.html", "recite.html") if stop.learned else ():  # of its weights
            remove(out / name)
    save(run)
    if processes.rank() > 0:
        return status_of(run) if state.done else status
    if state.done:
        errors = list_errors(run.model, run.windows, wrong, run.device)
        report_errors(out / "errors.jsonl", errors, wrong)
    sha256 = save_model(run)
    if not state.done:
        print(f"stopped at step {state.step:,} of {run.schedule.last:,}, saved in {out}; the same command goes on from "
              f"here")
        return status
    print(f"done, {state.done}: {state.step:,} steps in {state.seconds / 60:.1f} min; the model is in {out}\n"
          f"SHA-256 of its weights: {sha256}\n"
          f"try: {command('sample.py', '--model', out, '--prompt', run.files[0]['path'].split('/')[0] + '/')}")
    return status_of(run)
