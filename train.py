"""The training loop: tokens become weights.

    python train.py configs/quick.py             # 150 KB of the tree, minutes on a laptop
    python train.py configs/memorize.py          # the whole tree
    python train.py configs/quick.py --hidden_size=128 --seed 7
    python train.py configs/memorize.py          # again: goes on from the last checkpoint
    python train.py configs/memorize.py --data data/patched --init_from out/memorize --out out/patched

Leaves out/<config name>/: a model directory that sample.py and transformers load, log.jsonl (settings and environment
first, then a line for each full pass), build.json (what another person needs to build the same weights), errors.jsonl
(the tokens still wrong at the end, some 10,000 at most) and the run's two latest states, checkpoint*.safetensors;
and the card, the licence and what else openness.py writes.
A run with --init_from looks first: if most tokens are right already, as after a patch of the tree, and its config mends
(mend_steps), it only mends.
Ctrl-C, SIGTERM or SIGHUP saves and stops; a second one leaves at once. Exit status 0: the target is reached, by default
every token right; 1: the budget is spent, and tokens are wrong; 2: an error; 128 and the signal's number: stopped.

    torchrun --nproc_per_node=2 train.py configs/memorize.py     # the same run on two processes
"""
import memory  # noqa: I001  first, for Ctrl-C while the others are loaded
import contextlib
import dataclasses
import math
import sys
import time
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from memory import processes
from memory.corpus import CORPUS, choose_files, compressed_sizes, find_data, fitting, load
from memory.device import check_memory, compiled, find_device, find_dtype, hand_back_memory, make_deterministic, mixed
from memory.device import surroundings, synchronize, tune_cpu, warn_if_emulated, without_small_numbers
from memory.evaluate import count_wrong
from memory.files import json_digest, lock
from memory.optim import make_optimizers, update
from memory.output import UserError, percent, run_script
from memory.run import PLACES, Meter, Run, State, Stop, agree, begin_turn, finish, foreign, in_background
from memory.run import is_model_whole, log, mend, progress_of, resume, save, say, status_of
from memory.sampler import Sampler, make_batch
from memory.schedule import Schedule
from memory.settings import parse
from memory.versions import describe_code
from memory.windows import Windows
from model import Llama, LlamaConfig, load_weights
import openness

# Settings: a config file names them, the command line overrides it

@dataclasses.dataclass
class Settings:
    # data
    data: str = ""  # folder that prepare.py wrote; if left out, the run's own, or for a new run the newest under data/
    out: str = ""  # folder of the model; if left out, out/<config name>
    init_from: str = ""  # folder of a model of the same sizes and pieces, whose weights to begin from
    train_bytes: int = 0  # learn about this many bytes of whole files, drawn by the seed; 0: the whole tree
    hold_out_bytes: int = 0  # leave about this many bytes of whole files out, drawn by the seed, as a control
    skip_long_paths: bool = False  # leave out files whose path leaves no room for text in a window
    unaddressed: float = 0.0  # windows without an address, drawn anew each epoch, as a share of those with one
    # model, by transformers' names
    hidden_size: int = 128  # width of the residual stream
    intermediate_size: int = 384  # width inside the feed-forward
    num_hidden_layers: int = 6  # depth
    num_attention_heads: int = 4  # heads; hidden_size / heads is the size of each
    num_key_value_heads: int = 4  # heads of keys and values, shared if there are fewer
    max_position_embeddings: int = 256  # the context: most tokens seen at once, and the length of a window
    tie_word_embeddings: bool = True  # one table for tokens in and tokens out
    # optimizer
    optimizer: str = "muon"  # muon: Muon for the matrices of the blocks and AdamW for the rest; adamw: AdamW for all
    muon_lr: float = 0.02  # peak learning rate of Muon
    learning_rate: float = 3e-3  # peak learning rate of AdamW
    beta2: float = 0.95  # AdamW's decay of the second moment
    focal: float = 0.0  # peak exponent of the focal loss, which gives tokens that are already sure less weight; 0: none
    negatives: int = 0  # about how many pieces are drawn for a step's softmax; the batch's own always come; 0: all
    batch_size: int = 8  # windows a step
    micro_batch: int = 0  # windows computed at once: fewer need less memory, only rounding differs; 0: the whole batch
    epochs: float = 40.0  # how often to learn every window
    max_steps: int = 0  # the same in steps, if not 0; mend_steps come on top
    warmup_steps: int = 20  # steps to the peak learning rate
    decay: float = 0.7  # last share of the main steps, over which the learning rate falls to zero
    mend_steps: int = 0  # most steps of mending what is wrong or unsure, after the epochs or in a patch; 0: none
    # run
    seed: int = 1337  # of all that is drawn: weights, files, order, classes
    eval_every: int = 0  # steps between full passes that count right tokens; 0: twenty in the main steps
    checkpoint_every: int = 500  # steps between checkpoints
    target_accuracy: float = 1.0  # stop once this share of all tokens is right, by half a logit at least
    device: str = "auto"  # cuda, mps or cpu; auto: the first that is there
    dtype: str = "auto"  # float32 or bfloat16 for the matrix products of training; auto: bfloat16 if the device has it
    compile: bool = True  # use torch.compile if it works
    deterministic: bool = False  # on a GPU, the same weights bit for bit in every run, at some cost in speed
    fresh: bool = False  # start over, whatever the folder holds


def check(settings):
    """Raises UserError for the first setting whose value cannot be."""
    positive = ("batch_size", "checkpoint_every", "muon_lr", "learning_rate", "epochs")
    most = {"epochs": 1e9, "unaddressed": 10, "focal": 100, "seed": 2**63 - 1, "beta2": 0.9999, "decay": 1,
            "target_accuracy": 1}
    others = ("train_bytes", "hold_out_bytes", "negatives", "micro_batch", "max_steps", "warmup_steps", "mend_steps",
              "eval_every")
    for name in (*positive, *others, *most):
        value = getattr(settings, name)
        if value < 0 or name in positive and value == 0:
            raise UserError(f"{name} must be {'more than' if name in positive else 'at least'} 0, not {value}")
        if value > most.get(name, math.inf):
            raise UserError(f"{name} must be at most {most[name]:g}, not {value}")
    for name, choices in [("optimizer", ("muon", "adamw")), ("dtype", ("auto", "float32", "bfloat16"))]:
        if getattr(settings, name) not in choices:
            raise UserError(f"{name} is one of {', '.join(choices)}, not {getattr(settings, name)!r}")


# Model and loss

class Objective(torch.nn.Module):
    """A model and its loss: what is compiled, and what DistributedDataParallel wraps."""

    def __init__(self, model, dtype):
        super().__init__()
        self.model, self.dtype = model, dtype

    def forward(self, inputs, places, targets, paths, shares, classes, offsets, count, focal):
        """The loss of a part as make_batch gives it: inputs int64 (B, T); of the N tokens of text, their places in the
        flattened inputs and their targets (or IGNORE), both int64 (N,); of the P tokens of paths, their places, int64
        (P,), and what share each class has of the target, float32 (P, C); the softmax's classes (int64) and what is
        added to their logits (float32), both (C,); count and focal, tensors ().

        It is the cross-entropy in nats, of the text each target's times (1 + focal) * (1 - p) ** focal, p its
        probability (Lin et al. 2017, but without gradient through p), summed and divided by `count`.
        """
        with mixed(inputs.device, self.dtype):
            hidden, table = self.model.model(inputs).flatten(0, 1), self.model.lm_head.weight[classes]
            of_text, of_paths = (F.linear(hidden[at], table) for at in (places, paths))
        nats = F.cross_entropy(of_text.float() + offsets, targets, reduction="none")
        missing = (1 - torch.exp(-nats.detach())).clamp(min=0)  # of a negative, which rounding could make, nan
        lost = F.cross_entropy(of_paths.float() + offsets, shares, reduction="sum")
        return ((nats * (1 + focal) * missing ** focal).sum() + lost) / count


def backward(forward, parts):
    """Adds up the gradients of a batch, a part at a time. forward: an Objective, or several processes' wrapper of it;
    parts: as make_batch gives them. Returns the loss of the whole batch."""
    losses = []
    for i, part in enumerate(parts, 1):
        more = processes.count() > 1 and i < len(parts)  # the processes share their gradients once, in the last part
        with forward.no_sync() if more else contextlib.nullcontext():
            loss = forward(*part)
            loss.backward()
        losses.append(loss.detach())
    return torch.stack(losses).sum()


# The run

def main(argv=None):
    settings, config_path = parse(Settings, __doc__, sys.argv[1:] if argv is None else argv, config=True)
    check(settings)
    out = Path(settings.out or Path("out") / Path(config_path).stem)
    with processes.group(find_device(settings.device), out) as device, without_small_numbers():
        return train(settings, out, device)


def train(settings, out, device):
    """The run that the settings ask for, on this process's device; returns the exit status."""
    if settings.batch_size < processes.count():
        raise UserError(f"a batch_size of {settings.batch_size} has no row for some of {processes.count()} processes")
    if (out / "train.bin").exists():
        raise UserError(f"{out} holds a prepared tree, which a model would overwrite: name another --out")
    if settings.init_from and out.resolve() == Path(settings.init_from).resolve():
        raise UserError(f"{out} is the model that the run is to begin from: name another --out")
    if not settings.fresh and (found := foreign(out)):
        raise UserError(f"{out} holds {found}, and no state of a run to go on with: name another --out, or write over "
                        f"it with --fresh")
    dtype = find_dtype(settings.dtype, device)
    warn_if_emulated(dtype, device)
    if device.type == "cpu":
        tune_cpu()
    if settings.deterministic or device.type == "cpu":  # on the CPU it costs next to nothing
        make_deterministic()
    data = find_data(settings, out)
    run = new_run(settings, out, device, dtype, *load(data))

    # resume; all processes must have the same settings and tree, only the paths may differ
    agree(run, "settings, number format, tree or first weights", (
        run.state.corpus, run.state.settings, run.state.init_sha256, str(dtype), device.type))
    with lock(out) if processes.rank() == 0 else contextlib.nullcontext():
        resume(run)
        whole = run.state.done and is_model_whole(run)
        if whole and processes.rank() == 0:
            print(f"{out} is done: {run.state.done} at step {run.state.step:,}. --fresh starts over")
        status = status_of(run) if whole else learn(run)
        if not whole or openness.check_sums(out)[0] != "yes":  # written last, and a kill may have come before
            try:
                openness.describe(out, data)
            except UserError as error:
                print(f"warning: the model is whole, but its folder has no card: {error}", file=sys.stderr)
    return status


def new_run(settings, out, device, dtype, tree, tokenizer, tokens):
    """The Run at its first step. tree, tokenizer, tokens: the prepared tree, as load() gives it."""
    config = LlamaConfig.of(settings, tokenizer.vocab_size)
    share, context = -(-settings.batch_size // processes.count()), config.max_position_embeddings
    at_once = min(share, settings.micro_batch or share) * context  # in tokens
    check_memory(config, at_once, device, settings.negatives and settings.batch_size * context + settings.negatives)
    if settings.init_from:
        model, init_sha256, known = load_weights(settings.init_from, config, tree, device)
    else:
        model, init_sha256, known = Llama(config, torch.Generator().manual_seed(settings.seed)).to(device), "", []
    files, held_out = choose_files(fitting(tree["files"], tokenizer, settings), settings, known)
    windows = Windows(tokens, files, tokenizer, context)
    rows = len(windows) + round(settings.unaddressed * len(windows))
    return Run(
        settings, out, device, dtype, windows=windows, model=model, optimizers=make_optimizers(model, settings, dtype),
        manifest=tree | {"files": files, "held_out": held_out, "tree": {
            "files": len(tree["files"]), "bytes": sum(file["bytes"] for file in tree["files"])}},
        sampler=Sampler(rows, settings.seed), schedule=Schedule(settings, rows), code=describe_code(),
        state=State({key: value for key, value in dataclasses.asdict(settings).items() if key not in PLACES}, {
            "manifest": json_digest(tree), **{key: tree.get(key) for key in ("name", "url", "sha256", *CORPUS)}},
            init_sha256=init_sha256, looked=-1 if init_sha256 else 0))


def learn(run):
    """Goes on with the run to its end, or until it is stopped, and saves; returns the exit status."""
    settings, windows = run.settings, run.windows
    if processes.rank() == 0:
        run.compressed = in_background(compressed_sizes, windows)
    objective, works = Objective(run.model, run.dtype), False
    with Stop(run.out) as stop:
        if settings.compile and not run.state.done:
            some = np.arange(settings.batch_size) % len(windows)
            parts = make_batch(windows, some, (0, 0), settings.negatives, run.sampler.rivals, 0.0, run.device,
                               settings.micro_batch)
            formats = (run.dtype, torch.float32) if settings.mend_steps else (run.dtype,)
            objective, works = compiled(objective, {len(part[0]): part for part in parts}.values(), formats)
        begin_turn(run, surroundings(run.device, run.dtype, works))
        return finish(run, loop(run, objective, stop), stop)


def loop(run, objective, stop):
    """Learns until every token is right, the budget is spent or a signal came. Returns the wrong tokens of each window
    in the last full pass, int64 (windows,), or None if there was none in this turn."""
    settings, state, schedule, sampler = run.settings, run.state, run.schedule, run.sampler
    forward = objective if processes.count() == 1 else torch.nn.parallel.DistributedDataParallel(
        objective, forward_sync_buffers=False)
    meter, wrong, saved = Meter(settings.batch_size * run.windows.context), None, state.step
    with progress_of(run) as bar:
        while True:
            # once in a while: a full pass over all windows, which counts what is wrong and may end the run
            if schedule.look_due(state.step) and state.looked != state.step and not stop.status():
                wrong = look(run, meter, stop, wrong)
                bar.total = schedule.last
                meter.reset()

            # once in a while: save
            if state.step % settings.checkpoint_every == 0 and state.step > saved and not state.done:
                save(run)
                saved = state.step
                hand_back_memory()
            if state.done or stop.status():
                return wrong

            # one step on the next batch
            started = time.perf_counter()
            objective.dtype = torch.float32 if schedule.in_float32(state.step) else run.dtype
            loss = backward(forward, make_batch(
                run.windows, sampler.draw(settings.batch_size), (settings.seed, state.step), settings.negatives,
                sampler.rivals, schedule.focal(state.step), run.device, settings.micro_batch))
            update(run.optimizers, schedule.lr_share(state.step))
            state.step += 1
            stop.learned = True  # from now on there is something to save

            meter.note(loss)
            if schedule.look_due(state.step):
                synchronize(run.device)  # what the steps have still to do is theirs, not the look's
            if meter.due() or schedule.look_due(state.step):
                bar.set_postfix_str(f" loss {meter.recent(state.step):.4f} {meter.rate():,.0f} tok/s epoch "
                                    f"{schedule.epoch(state.step):.1f}", refresh=False)
                bar.update(state.step - bar.n)
            state.seconds += meter.lap(started)


def look(run, meter, stop, before):
    """A full pass, logged; it says whether the run is done or mending begins. Returns the wrong tokens of each
    window, int64 (windows,); `before` if the run was asked to stop on the way."""
    state, schedule = run.state, run.schedule
    precisions = (run.dtype, torch.float32) if 0 < state.step < schedule.main_steps else (torch.float32,)
    for precision in dict.fromkeys(precisions):  # the slow float32 only if it decides
        counted = count_wrong(run.model, run.windows, run.device, precision, stop.status)
        if counted is None:
            return before
        wrong, unsure, unsafe, rivals, nats = counted
        accuracy = 1 - wrong.sum() / run.windows.scored
        if accuracy < run.settings.target_accuracy:
            break
    exact = len(run.files) - len(np.unique(run.windows.file[wrong > 0]))
    state.looked, loss = state.step, meter.mean()
    log(run, epoch=schedule.epoch(state.step), loss=loss, accuracy=accuracy, wrong=int(wrong.sum()),
        unsure=int(unsure.sum()), files_exact=exact, seconds=state.seconds,
        bits_per_byte=nats * run.windows.scored / np.log(2) / max(1, run.size),
        lr_share=schedule.lr_share(state.step - 1), tokens_per_second=meter.rate())
    shown = "" if loss is None else f"  loss {loss:.4f}"
    say(f"step {state.step:>6,}  {state.seconds / 60:6.1f} min{shown}  right {percent(accuracy, 3):>8}  files "
        f"{exact}/{len(run.files)}")
    if 1 - unsure.sum() / run.windows.scored >= run.settings.target_accuracy:
        state.done = "every token right" if not wrong.any() else f"{percent(accuracy, 3)} of tokens right"
    elif state.step == schedule.last or state.step == 0 and accuracy > 0.5 and run.settings.mend_steps:
        mend(run, wrong, unsure, unsafe, rivals)
    return wrong


if __name__ == "__main__":
    run_script(main)
