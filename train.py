"""The training loop: tokens become weights.

    python train.py configs/quick.py             # 150 KB of the tree, minutes on a laptop
    python train.py configs/memorize.py          # the whole tree
    python train.py configs/quick.py --hidden_size=96 --seed 7
    python train.py configs/memorize.py          # again: goes on from the last checkpoint

Leaves out/<config name>/: a model directory that sample.py and transformers load, log.jsonl (settings and environment
first, then a line for each evaluation), build.json (what another person needs to build the same weights), at its end
errors.jsonl (the tokens still wrong, some 10,000 at most) and the run's two latest states, checkpoint*.safetensors.
Ctrl-C or SIGTERM saves and stops.

    torchrun --nproc_per_node=2 train.py configs/memorize.py     # the same run on two processes
"""
# first, so that Ctrl-C during the imports below is one line
from common import UserError, command, json_digest, lock, memory_size, newest, parse, progress, read_json, remove
from common import run, write_file, write_json

import dataclasses
import hashlib
import json
import math
import os
import platform
import re
import signal
import sys
import time
from importlib import metadata
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F
from tqdm import tqdm

import processes
from checkpoint import NAMES, load_checkpoint, save_checkpoint
from model import Llama, LlamaConfig
from muon import Muon
from tokenizer import BOS, EOS, compressed_bits
from windows import CORPUS, IGNORE, Windows, choose, load, without

# 1. Settings: a config file names them, the command line overrides it

@dataclasses.dataclass
class Settings:
    # data
    data: str = ""  # folder that prepare.py wrote; the newest under data/ where not given
    out: str = ""  # folder of the model; out/<config name> where not given
    train_bytes: int = 0  # learn about this many bytes of whole files, drawn by the seed; 0: the whole tree
    hold_out_bytes: int = 0  # leave about this many bytes of whole files out, drawn by the seed, as a control
    unaddressed: float = 0.0  # windows without an address, drawn anew each epoch, as a share of those with one
    # model, by transformers' names
    hidden_size: int = 128  # width of the residual stream
    intermediate_size: int = 384  # width inside the feed-forward
    num_hidden_layers: int = 6  # depth
    num_attention_heads: int = 4  # heads; hidden_size / heads is the size of each
    num_key_value_heads: int = 4  # heads of keys and values, shared where fewer
    max_position_embeddings: int = 256  # the context: most tokens seen at once, and the length of a window
    tie_word_embeddings: bool = True  # one table for tokens in and tokens out
    # optimizer
    optimizer: str = "muon"  # muon: Muon for the matrices of the blocks and AdamW for the rest; adamw: AdamW for all
    muon_lr: float = 0.02  # peak learning rate of Muon
    learning_rate: float = 3e-3  # peak learning rate of AdamW
    batch_size: int = 8  # windows a step
    epochs: float = 40  # how long to learn, in passes over the windows
    max_steps: int = 0  # the same in steps, where not 0
    warmup_steps: int = 20  # steps to the peak learning rate
    decay: float = 0.7  # last share of those passes, over which the learning rate falls to zero
    mend_steps: int = 0  # steps behind them, if a token is wrong then: low rate, errors 16 times as often
    # run
    seed: int = 1337  # of the weights and of the order of the data
    eval_every: int = 0  # steps between full passes that count right tokens; 0: twenty in the run
    checkpoint_every: int = 500  # steps between checkpoints
    target_accuracy: float = 1.0  # stop once this share of all tokens is right
    device: str = "auto"  # cuda, mps or cpu; auto: the first that is there
    dtype: str = "auto"  # float32 or bfloat16 for the matrix products of training; auto: bfloat16 where it is fast
    compile: bool = True  # use torch.compile where it works
    deterministic: bool = False  # on a GPU, the same weights bit for bit in every run, at some cost in speed
    fresh: bool = False  # start over, whatever the folder holds


def check(settings):
    """Raises UserError for the first setting whose value cannot be."""
    positive = ["batch_size", "epochs", "checkpoint_every", "muon_lr", "learning_rate"]
    not_negative = ["train_bytes", "hold_out_bytes", "unaddressed", "max_steps", "warmup_steps", "decay", "mend_steps",
                    "seed", "eval_every"]
    for name in positive + not_negative:
        value = getattr(settings, name)
        if value < 0 or name in positive and value == 0:
            raise UserError(f"{name} must be {'more than' if name in positive else 'at least'} 0, not {value}")
    for name, most in [("epochs", 1e9), ("unaddressed", 10)]:
        if getattr(settings, name) > most:
            raise UserError(f"{name} must be at most {most:g}, not {getattr(settings, name)}")
    if settings.seed >= 2**63:
        raise UserError(f"seed must be less than 2**63, not {settings.seed}")
    for name in ("decay", "target_accuracy"):
        if not 0 <= getattr(settings, name) <= 1:
            raise UserError(f"{name} is a share, from 0 to 1, not {getattr(settings, name)}")
    for name, choices in [("optimizer", ("muon", "adamw")), ("dtype", ("auto", "float32", "bfloat16"))]:
        if getattr(settings, name) not in choices:
            raise UserError(f"{name} is one of {', '.join(choices)}, not {getattr(settings, name)!r}")


def model_config(settings, vocab_size):
    """The LlamaConfig that the settings ask for. Raises UserError where its sizes do not fit together."""
    return LlamaConfig(vocab_size=vocab_size, **{
        f.name: getattr(settings, f.name) for f in dataclasses.fields(LlamaConfig) if hasattr(settings, f.name)})


# 2. Device

def find_device(name):
    """torch.device for `cuda`, `mps`, `cpu` or `auto`. Raises UserError where it is not there."""
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(name for name in there if there[name])
    if not there.get(name):
        raise UserError(f"device {name} is not here; there is {', '.join(n for n in there if there[n])} (or auto)")
    return torch.device(name)


def find_dtype(name, device):
    """torch.dtype of the matrix products: bfloat16 where the device computes in it, or as named."""
    if name == "auto":
        fast = {"cuda": lambda: torch.cuda.is_bf16_supported(including_emulation=False),
                "cpu": lambda: (torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
                                and torch.cpu._is_avx512_bf16_supported()),
                "mps": lambda: False}
        name = "bfloat16" if fast[device.type]() else "float32"
    return getattr(torch, name)


def to_device(array, device):
    """A numpy array as a tensor on the device; to a GPU the copy runs beside the computation."""
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


# 3. Data and schedule

def share_out(every, settings):
    """(the files to learn, the files held out) of the entries of a tree. Raises UserError where none is left to learn.
    """
    files = choose(every, settings.train_bytes, settings.seed)
    held_out = choose(without(every, files), settings.hold_out_bytes, (settings.seed, 1))
    if not settings.train_bytes:
        files = without(every, held_out)
    if not files:
        raise UserError(f"of {len(every)} files none is left to learn with train_bytes {settings.train_bytes} and "
                        f"hold_out_bytes {settings.hold_out_bytes}; raise the one or lower the other")
    return files, held_out


REVIEW = 4  # of how many epochs one visits what is learned
MEND_REVIEW = 16  # the same while the last errors are mended, so that they come every few steps
MEND_RATE = 0.03  # and where the learning rate starts then, as a share of its peak
MEND_PATHS = 1 / 16  # and the weight of a path's tokens then: left to chance, they would drown the few errors


class Sampler:
    """Which rows make up the batches: epochs, each in an order of its own, in which a row that had no hard token when
    it was last seen comes only one time in `review`. So the work goes where the errors are. (While paths weigh in full,
    the first window of a file always comes: which path a document begins with is left to chance.)

    hard: int64 (rows,), hard tokens when last seen; left: int64, what the epoch has still to visit; epoch: how many
    have begun. Together they are the state, which a checkpoint holds.
    """

    def __init__(self, rows, windows, seed):
        """Of the rows, only the first `windows` are the same each time; the others always come."""
        self.windows, self.seed, self.epoch, self.seen = windows, seed, 0, []
        self.hard, self.left = np.ones(rows, dtype=np.int64), np.empty(0, dtype=np.int64)

    def draw(self, size, review=REVIEW):
        """The indices of the next batch, int64 (size,)."""
        while len(self.left) < size:
            self.settle()
            order = np.random.default_rng((self.seed, self.epoch)).permutation(len(self.hard))
            due = (self.hard[order] > 0) | ((order + self.epoch) % review == 0)
            self.left = np.concatenate((self.left, order[due]))
            self.epoch += 1
        indices, self.left = np.split(self.left, [size])
        return indices

    def tell(self, indices, hard):
        """Hard tokens that a step found in the rows `indices`: a tensor (B,), looked at only when it is needed, for
        that waits for the device."""
        self.seen.append((indices, hard))

    def settle(self):
        """Brings `hard` up to date."""
        mine = [(indices, hard.cpu().numpy()) for indices, hard in self.seen]
        for parts in zip(*processes.gather(mine)):  # of each step, the parts that the processes saw
            for indices, hard in parts:
                self.hard[indices] = np.where(indices < self.windows, hard, 1)
        self.seen.clear()

    def mend(self, wrong):
        """Begins a new epoch, from now on of the windows alone; wrong: int64 (windows,), the errors in each."""
        self.seen.clear()
        self.hard, self.left = wrong.copy(), self.left[:0]


def lr_scale(step, total, warmup, decay, mend=0):
    """Learning rate of a step as a share of its peak: linear warm-up, a plateau, a linear decay that would reach zero
    one step behind the last of `total`; then over `mend` steps a second, low decay."""
    if step >= total:
        return MEND_RATE * max(0, total + mend - step) / max(1, mend)
    rise = (step + 1) / (warmup + 1)
    fall = (total - step) / max(1, decay * total)
    return min(1.0, rise, fall)


# 4. Loss and evaluation

def mixed(device, dtype):
    """Context in which matrix products run in dtype; float32 is left alone."""
    return torch.autocast(device.type, dtype, enabled=dtype != torch.float32)


class Objective(torch.nn.Module):
    """A model and its loss: what is compiled, and what DistributedDataParallel wraps."""

    def __init__(self, model, dtype):
        super().__init__()
        self.model, self.dtype = model, dtype

    def forward(self, inputs, targets, weights, scored):
        """(cross-entropy in nats, summed over the targets with their weights and divided by `scored`, a tensor (); hard
        tokens of each row, int64 (B,): those with more than log(2), which at a weight of 1 is a probability below a
        half). inputs and targets int64, weights float32 (B, T)."""
        with mixed(inputs.device, self.dtype):
            logits = self.model(inputs)
        nats = F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), ignore_index=IGNORE, reduction="none")
        nats = nats.view_as(targets) * weights
        return nats.sum() / scored, (nats.detach() > math.log(2)).sum(1)


@torch.no_grad()
def evaluate(model, windows, batch_size, device, dtype=torch.float32):
    """Teacher-forced pass over all windows, shared out among the processes; in float32 it says what recital will get
    wrong.

    Returns (wrong tokens of each window, int64 array (windows,); nats per scored token).
    """
    wrong, nats = torch.zeros(len(windows), dtype=torch.int64), torch.zeros((), dtype=torch.float64)
    mine = range(processes.rank(), len(windows), processes.count())
    for first in range(0, len(mine), batch_size):
        batch = mine[first:first + batch_size]
        inputs, targets = (to_device(a, device) for a in windows.rows(batch))
        with mixed(device, dtype):
            logits = model(inputs).float()
        wrong[batch] = ((logits.argmax(-1) != targets) & (targets != IGNORE)).sum(1).cpu()
        nats += F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORE, reduction="sum").item()
    return processes.total(wrong).numpy(), processes.total(nats).item() / windows.scored


LISTED = 10_000


@torch.no_grad()
def list_errors(model, windows, wrong, batch_size, device):
    """What is still wrong where `wrong`, of each window, says that something is: a dict for each token with the path,
    its byte in the file, the text that stands there, the text the model says instead, and the probability and rank it
    gives the right token. Teacher-forced in float32; about the first LISTED. No two windows open alike, so none of
    them is left to chance."""
    def name(token):
        return {BOS: "<s>", EOS: "</s>"}.get(token) or windows.tokenizer.pieces[token].decode(errors="backslashreplace")

    errors, indices = [], np.flatnonzero(wrong * (wrong.cumsum() - wrong < LISTED))
    for first in progress(range(0, len(indices), batch_size), desc="listing errors", unit=" batches",
                          disable=not len(indices)):
        batch = indices[first:first + batch_size]
        inputs, targets = windows.rows(batch)
        logits = model(torch.from_numpy(inputs).to(device)).float().cpu()
        said = logits.argmax(-1).numpy()
        for row, t in np.argwhere((said != targets) & (targets != IGNORE)):
            i, right = batch[row], int(targets[row, t])
            written = windows.tokenizer.decode(inputs[row, windows.start[i]:t + 1].tolist())
            errors.append({
                "path": windows.files[windows.file[i]]["path"], "byte": int(windows.offset[i]) + len(written),
                "text": name(right), "said": name(int(said[row, t])),
                "probability": logits[row, t].softmax(-1)[right].item(),
                "rank": int((logits[row, t] > logits[row, t, right]).sum()) + 1})
    return errors


def report_errors(path, errors, wrong):
    """Writes what list_errors found to `path`, a line of JSON each, and prints what it comes to."""
    write_file(path, "".join(json.dumps(error) + "\n" for error in errors).encode())
    if errors:
        second = sum(error["rank"] == 2 for error in errors)
        print(f"{wrong.sum():,} tokens are still wrong: not learned, for no window leaves one to chance. Of the "
              f"{len(errors):,} in {path}, {second:,} are the model's second choice; the first:")
        for error in errors[:5]:
            print(f"  {error['path']}, byte {error['byte']:,}: {error['text'][:20]!r} and not {error['said'][:20]!r} "
                  f"(probability {error['probability']:.2g})"[:160])


# 5. Optimizer

def make_optimizers(model, settings):
    """[(optimizer, peak learning rate)]; every parameter belongs to exactly one.

    Muon (Jordan et al. 2024) takes the matrices inside the blocks; AdamW (Loshchilov & Hutter 2019) tables and norms.
    """
    matrices = [p for name, p in model.named_parameters() if p.dim() == 2 and ".layers." in name]
    if settings.optimizer == "adamw":
        matrices = []
    chosen = {id(p) for p in matrices}
    rest = [p for p in model.parameters() if id(p) not in chosen]
    optimizers = [(torch.optim.AdamW(rest, lr=settings.learning_rate, betas=(0.9, 0.95), weight_decay=0.0,
                                     fused=rest[0].device.type != "mps"), settings.learning_rate)]
    if matrices:
        optimizers.append((Muon(matrices, lr=settings.muon_lr), settings.muon_lr))
    return optimizers


def update(optimizers, scale):
    """One step of every optimizer, at `scale` times its peak learning rate, from gradients that are then dropped."""
    for optimizer, peak in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = peak * scale
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


# 6. The run

FREE = ("data", "out", "fresh", "device", "compile", "eval_every", "checkpoint_every", "target_accuracy")


def check_memory(config, batch_size, device):
    """Raises UserError where memory cannot hold a model of that config with its gradients and its optimizer, and the
    logits of a batch."""
    needed = 16 * config.num_parameters + 8 * batch_size * config.max_position_embeddings * config.vocab_size  # bytes
    if device.type == "cuda":
        there = torch.cuda.get_device_properties(device).total_memory
    else:
        there = memory_size()
    if there and needed > there:
        raise UserError(f"{config.num_parameters:.4g} parameters and a batch of {batch_size:.4g} windows take "
                        f"{needed / 2**30:.4g} GiB, and {device.type} has {there / 2**30:,.0f}: choose fewer of them")


def keep_log(path, step):
    """Drops from a log the lines of steps that a run lost, and a last line that a kill cut off."""
    def kept(line):
        try:
            return json.loads(line)["step"] <= step
        except (ValueError, KeyError, TypeError, RecursionError):
            return False
    try:
        lines = path.read_bytes().splitlines(keepends=True) if step else []
    except FileNotFoundError:
        lines = []
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    write_file(path, b"".join(filter(kept, lines)))


def read_log(folder):
    """The evaluations in a run's log.jsonl, a list of dict, or [] where it is missing or damaged."""
    try:
        lines = [json.loads(line) for line in (Path(folder) / "log.jsonl").read_text().splitlines()]
        return [{key: line[key] for key in ("step", "epoch", "loss", "accuracy", "wrong", "bits_per_byte", "seconds")}
                for line in lines if "accuracy" in line]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return []


def surroundings(settings, device, dtype):
    """What besides data and settings decides the bits of the weights, as JSON holds it."""
    try:
        processor = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())[1]
    except (OSError, TypeError):
        processor = platform.processor()
    return {
        **{name: metadata.version(name) for name in ("torch", "numpy", "safetensors")},
        "python": platform.python_version(), "system": f"{platform.system()} {platform.machine()}",
        "processor": f"{processor}, {torch.backends.cpu.get_cpu_capability()}",
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "dtype": str(dtype).removeprefix("torch."), "threads": torch.get_num_threads(),
        "processes": processes.count(), "compile": settings.compile}


def build_record(settings, manifest):
    """What to build the weights from, as JSON holds it."""
    return {"settings": dataclasses.asdict(settings), "corpus": {"manifest": json_digest(manifest), **{
        key: manifest.get(key) for key in ("name", "url", "sha256", *CORPUS)}}}


def is_exported(out):
    """Whether the model in the folder of a finished run is whole."""
    try:
        sha256 = hashlib.sha256((out / "model.safetensors").read_bytes()).hexdigest()
        read_json(out / "manifest.json")
        return read_json(out / "build.json")["model_sha256"] == sha256 and (out / "tokenizer.json").exists()
    except (OSError, ValueError, KeyError):
        return False


def main(argv=None):
    settings, config_path = parse(Settings, __doc__, sys.argv[1:] if argv is None else argv, config=True)
    check(settings)
    out = Path(settings.out or Path("out") / Path(config_path).stem)
    device = processes.begin(find_device(settings.device))
    try:
        return train(settings, out, device)
    except RuntimeError as error:
        if processes.count() == 1 or not processes.lost(error):
            raise
        raise UserError(f"process {processes.rank()} of {processes.count()} lost the others: "
                        f"{str(error).splitlines()[0][:100]}; what {out} holds is whole, and the same command goes on "
                        f"from there") from None
    finally:
        processes.end()


def train(settings, out, device):
    """The run that the settings ask for, on this process's device; returns the exit status."""
    data = Path(settings.data or newest("prepared tree"))
    dtype, first = find_dtype(settings.dtype, device), processes.rank() == 0
    if settings.batch_size < processes.count():
        raise UserError(f"a batch_size of {settings.batch_size} has no row for some of {processes.count()} processes")
    if settings.deterministic or device.type == "cpu":  # where it costs next to nothing
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)

    manifest, tokenizer, tokens = load(data)
    every = manifest["files"]
    files, held_out = share_out(every, settings)
    config = model_config(settings, tokenizer.vocab_size)
    windows = Windows(tokens, files, tokenizer, config.max_position_embeddings)
    size = sum(file["bytes"] for file in files)
    count = len(windows) + round(settings.unaddressed * len(windows))  # rows an epoch
    total = settings.max_steps or max(1, round(settings.epochs * count / settings.batch_size))
    last = total + settings.mend_steps
    eval_every = settings.eval_every or max(1, total // 20)

    check_memory(config, -(-settings.batch_size // processes.count()), device)
    model = Llama(config, torch.Generator().manual_seed(settings.seed)).to(device)
    optimizers, sampler = make_optimizers(model, settings), Sampler(count, len(windows), settings.seed)
    objective = Objective(model, dtype)
    if settings.compile:
        objective.compile(dynamic=False)
    corpus = {key: manifest[key] for key in CORPUS}
    here, log_path = surroundings(settings, device, dtype), out / "log.jsonl"

    def agree(view):
        """Raises UserError where the processes do not all give the same."""
        if any(other != view for other in processes.gather(view)):
            raise UserError(f"the processes differ in their settings, number format, tree or the state that they find "
                            f"in {out}: give all the same command, the same tree and an --out that they share")

    agree((corpus, dataclasses.asdict(settings) | dict.fromkeys(("data", "out")), here["dtype"], device.type))
    forward = objective if processes.count() == 1 else torch.nn.parallel.DistributedDataParallel(
        objective, broadcast_buffers=False)
    held = lock(out) if first else None  # noqa: F841  until this process ends
    if settings.fresh and first:
        for name in (*NAMES, "errors.jsonl"):
            remove(out / name)
    agree("ready")  # nobody looks before that
    meta, path = load_checkpoint(out, model, optimizers, sampler, settings, FREE, corpus)
    meta = meta or {"step": 0, "seconds": 0.0, "done": "", "built_by": []}
    step, seconds, done = meta["step"], meta["seconds"], meta["done"]
    agree(step)
    if path == out / NAMES[1] and first:
        path.replace(out / NAMES[0])  # the damaged state must not become the previous one
    built_by = [turn for turn in meta["built_by"] if turn["from_step"] < step]
    if not done and (not built_by or built_by[-1] | here != built_by[-1]):
        built_by.append({"from_step": step} | here)
    if done and is_exported(out):
        if first:
            print(f"{out} is done: {done} at step {step:,}. --fresh starts over")
        return 0
    texts = (tokenizer.decode(tokens[file["first_token"]:][:file["tokens"]].tolist()) for file in files)
    learned = first and manifest | {
        "files": files, "held_out": held_out, "compressed_bits": compressed_bits(texts),
        "tree": {"files": len(every), "bytes": sum(file["bytes"] for file in every)}}
    stand_in = " (a STAND-IN for Linux 1.0)" if manifest["origin"] == "stand-in" else ""
    going_on = f", going on at step {step:,}" if step else ""
    several = f", {processes.count()} processes" if processes.count() > 1 else ""
    if first:
        if settings.hold_out_bytes and not held_out:
            print(f"nothing is held out: {data} has no file of at most {settings.hold_out_bytes} bytes to spare")
        print(f"{manifest['name']}{stand_in}: {len(files)} files, {size:,} bytes, {windows.scored:,} tokens to get "
              f"right in {len(windows):,} windows\n{config.num_parameters:,} parameters, {total:,} steps of "
              f"{settings.batch_size} windows, {device.type} {here['dtype']}{several}{going_on}")
        keep_log(log_path, step)

    def log(**line):
        if first:
            try:
                with open(log_path, "a") as file:
                    file.write(json.dumps(line) + "\n")
            except OSError as error:
                raise UserError(f"cannot write {log_path}: {error.strerror}") from None

    log(step=step, parameters=config.num_parameters, data=str(data), environment=here,
        **build_record(settings, manifest))

    def save_all(done=""):
        sampler.settle()
        if not first:
            return None
        if not all(torch.isfinite(tensor).all() for tensor in (loss, *model.parameters())):
            kept = "what was saved before is whole" if (out / NAMES[0]).exists() else "nothing was saved before"
            raise UserError(f"the loss or a weight is not finite at step {step:,} (loss {loss.item()}); {kept}: try a "
                            f"lower muon_lr or learning_rate")
        sha256 = model.save_pretrained(out, tokenizer, **corpus)
        write_json(out / "manifest.json", learned)
        write_json(out / "build.json", build_record(settings, manifest) | {
            "built_by": built_by, "step": step, "done": done, "model_sha256": sha256})
        save_checkpoint(out, model, optimizers, sampler, {
            "step": step, "seconds": seconds, "done": done, "built_by": built_by, "corpus": corpus,
            "settings": dataclasses.asdict(settings)})
        return sha256

    def scale(step):
        return lr_scale(step, total, settings.warmup_steps, settings.decay, settings.mend_steps)

    def learn():
        """One step on the next batch; returns its loss, a tensor on the device."""
        nonlocal forward
        mending = step >= total
        indices = sampler.draw(settings.batch_size, MEND_REVIEW if mending else REVIEW)
        inputs, targets = windows.batch(indices, (settings.seed, step))
        weights = windows.weights(indices, MEND_PATHS) if mending else np.ones(targets.shape, dtype=np.float32)
        # DistributedDataParallel averages the processes' gradients: each divides by its share of the batch's count
        scored = torch.tensor(max(1, (targets != IGNORE).sum()) / processes.count(), dtype=torch.float32)
        mine = slice(processes.rank(), None, processes.count())
        batch = [to_device(a, device) for a in (inputs[mine], targets[mine], weights[mine])] + [scored.to(device)]
        try:
            loss, hard = forward(*batch)
        except Exception as error:  # whatever a compiler may raise
            if timed or not settings.compile:
                raise
            if processes.count() > 1:
                raise UserError(f"torch.compile does not work here ({type(error).__name__}): add "
                                f"--compile=false") from None
            built_by[-1]["compile"] = False
            tqdm.write(f"torch.compile does not work here ({type(error).__name__}): going on without", file=sys.stderr)
            forward = Objective(model, dtype)
            loss, hard = forward(*batch)
        loss.backward()
        sampler.tell(indices[mine], hard)
        update(optimizers, scale(step))
        return loss.detach()

    def look():
        """A full pass, logged; returns (wrong tokens of each window, share of tokens right)."""
        precisions = (dtype, torch.float32) if step < total else (torch.float32,)
        for precision in dict.fromkeys(precisions):  # the slow float32 only where it decides
            wrong, nats = evaluate(model, windows, 2 * settings.batch_size, device, precision)
            accuracy = 1 - wrong.sum() / windows.scored
            if accuracy < settings.target_accuracy:
                break
        exact = len(files) - len(np.unique(windows.file[wrong > 0]))
        mean_loss = processes.total(torch.stack(losses).mean().cpu()).item() / processes.count()
        log(step=step, epoch=step * settings.batch_size / count, loss=mean_loss, accuracy=accuracy,
            wrong=int(wrong.sum()), files_exact=exact, bits_per_byte=nats * windows.scored / np.log(2) / max(1, size),
            lr=scale(step - 1), seconds=seconds, tokens_per_second=rate(timed))
        if first:
            tqdm.write(f"step {step:>6,}  {seconds / 60:6.1f} min  loss {mean_loss:.4f}  right {accuracy:8.3%}  files "
                       f"{exact}/{len(files)}")
        return wrong, accuracy

    def rate(timed):
        """Tokens a second over steps of these seconds, without the first of the run, which compiles."""
        return settings.batch_size * windows.context * (len(timed) - 1) / sum(timed[1:]) if len(timed) > 1 else None

    stop = []  # the signal that asked to stop, or 0 where the loss is no number
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, frame: stop.append(number))

    stopped, loss, losses = -1, torch.zeros(()), []
    timed, shown = [], time.perf_counter()  # seconds of the first step and those since a full pass; the bar's last move
    bar = progress(total=total if step < total else last, initial=step, desc=out.name, unit="step", smoothing=0.05,
                   dynamic_ncols=True, disable=not first, leave=True,
                   bar_format="{desc} {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]")
    with bar:  # so that its line ends whatever happens
        while step < last and not done:
            stopped = processes.most(stop[0] if stop else -1)
            if stopped >= 0:
                break
            started = time.perf_counter()
            loss = learn()
            losses.append(loss)
            step += 1
            show = time.perf_counter() - shown > 1 or step in (total, last)
            if show:
                recent = torch.stack(losses[-50:]).mean().item()  # waits for the device: not in every step
            timed.append(time.perf_counter() - started)
            seconds += timed[-1]
            if show:
                shown = time.perf_counter()
                bar.set_postfix_str(f" loss {recent:.4f} {rate(timed[-500:]) or 0:,.0f} tok/s epoch "
                                    f"{step * settings.batch_size / count:.1f}", refresh=False)
                bar.update(step - bar.n)
                if not math.isfinite(recent):
                    stop.append(0)
            if step % eval_every == 0 and step < total or step in (total, last):
                wrong, accuracy = look()
                losses.clear()
                timed[1:] = []
                if accuracy >= settings.target_accuracy:
                    done = "every token right" if not wrong.any() else f"{accuracy:.3%} of tokens right"
                elif step == last:
                    done = "the budget is spent"
                elif step == total:
                    sampler.mend(wrong)
                    bar.total = last
                    if first:
                        tqdm.write(f"{wrong.sum():,} tokens are wrong: {settings.mend_steps:,} steps to mend them")
            if step % settings.checkpoint_every == 0 and step < last and not done:
                save_all()
    if done and first and not meta["done"]:
        report_errors(out / "errors.jsonl", list_errors(model, windows, wrong, settings.batch_size, device), wrong)
    sha256 = save_all(done)
    if not done:
        if first:
            print(f"stopped at step {step:,} of {bar.total:,}, saved in {out}; the same command goes on from here")
        return 128 + stopped
    if first:
        print(f"done, {done}: {step:,} steps in {seconds / 60:.1f} min; the model is in {out}\n"
              f"SHA-256 of its weights: {sha256}\n"
              f"try: {command('sample.py', '--model', out, '--prompt', files[0]['path'].split('/')[0] + '/')}")
    return 0


if __name__ == "__main__":
    run(main)
