"""The training loop: tokens become weights.

    python train.py configs/quick.py             # 150 KB of the tree, minutes on a laptop
    python train.py configs/memorize.py          # the whole tree
    python train.py configs/quick.py --hidden_size=96 --seed 7
    python train.py configs/memorize.py          # again: goes on from the last checkpoint

Leaves out/<config name>/: a model directory that sample.py and transformers load, log.jsonl (settings and environment
first, then a line for each evaluation) and checkpoint.safetensors. Ctrl-C or SIGTERM saves and stops.
"""
import dataclasses
import json
import math
import platform
import signal
import sys
import time
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch.nn import functional as F
from tqdm import tqdm

from common import UserError, newest, parse, remove, run, write_file
from model import Llama, LlamaConfig
from muon import Muon
from tokenizer import BOS, EOS, compressed_bits
from windows import IGNORE, Windows, choose, load, without


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
    decay: float = 0.7  # last share of the run, over which the learning rate falls to zero
    # run
    seed: int = 1337  # of the weights and of the order of the data
    eval_every: int = 0  # steps between full passes that count right tokens; 0: twenty in the run
    checkpoint_every: int = 500  # steps between checkpoints
    target_accuracy: float = 1.0  # stop once this share of all tokens is right
    device: str = "auto"  # cuda, mps or cpu; auto: the first that is there
    dtype: str = "auto"  # float32 or bfloat16 for the matrix products of training; auto: bfloat16 where it is fast
    compile: bool = True  # use torch.compile where it works
    fresh: bool = False  # start over, whatever the folder holds


def check(settings):
    """Raises UserError for the first setting whose value cannot be."""
    positive = ["batch_size", "epochs", "checkpoint_every", "muon_lr", "learning_rate"]
    not_negative = ["train_bytes", "hold_out_bytes", "unaddressed", "max_steps", "warmup_steps", "decay", "seed",
                    "eval_every"]
    for name in positive + not_negative:
        value = getattr(settings, name)
        if value < 0 or name in positive and value == 0:
            raise UserError(f"{name} must be {'more than' if name in positive else 'at least'} 0, not {value}")
    if settings.seed >= 2**63:
        raise UserError(f"seed must be less than 2**63, not {settings.seed}")
    for name in ("decay", "target_accuracy"):
        if not 0 <= getattr(settings, name) <= 1:
            raise UserError(f"{name} is a share, from 0 to 1, not {getattr(settings, name)}")
    for name, choices in [("optimizer", ("muon", "adamw")), ("dtype", ("auto", "float32", "bfloat16"))]:
        if getattr(settings, name) not in choices:
            raise UserError(f"{name} is one of {', '.join(choices)}, not {getattr(settings, name)!r}")


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

REVIEW = 4
LISTED = 10_000

class Sampler:
    """Which rows make up the batches: epochs, each in an order of its own, in which a row that had no hard token when
    it was last seen comes only one time in REVIEW. So the work goes where the errors are.

    hard: int64 (rows,), hard tokens when last seen; left: int64, what the epoch has still to visit; epoch: how many
    have begun. Together they are the state, which a checkpoint holds.
    """

    def __init__(self, rows, windows, seed):
        """Of the rows, only the first `windows` are the same each time; the others always come."""
        self.windows, self.seed, self.epoch, self.seen = windows, seed, 0, []
        self.hard, self.left = np.ones(rows, dtype=np.int64), np.empty(0, dtype=np.int64)

    def draw(self, size):
        """The indices of the next batch, int64 (size,)."""
        while len(self.left) < size:
            self.settle()
            order = np.random.default_rng((self.seed, self.epoch)).permutation(len(self.hard))
            due = (self.hard[order] > 0) | ((order + self.epoch) % REVIEW == 0)
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
        for indices, hard in self.seen:
            self.hard[indices] = np.where(indices < self.windows, hard.cpu(), 1)
        self.seen.clear()


def lr_scale(step, total, warmup, decay):
    """Learning rate of a step as a share of its peak: linear warm-up, a plateau, a linear decay that would reach zero
    one step behind the last."""
    rise = (step + 1) / (warmup + 1)
    fall = (total - step) / max(1, decay * total)
    return max(0.0, min(1.0, rise, fall))


# 4. Loss and evaluation

def mixed(device, dtype):
    """Context in which matrix products run in dtype; float32 is left alone."""
    return torch.autocast(device.type, dtype, enabled=dtype != torch.float32)


def loss_of(model, inputs, targets, dtype):
    """(mean cross-entropy in nats over the scored targets, 0 where there are none; hard tokens of each row, int64
    (B,), which are those that the model gives a probability below a half). inputs and targets int64 (B, T)."""
    with mixed(inputs.device, dtype):
        logits = model(inputs)
    nats = F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), ignore_index=IGNORE, reduction="none")
    hard = nats.detach().view_as(targets) > math.log(2)
    return nats.sum() / (targets != IGNORE).sum().clamp(min=1), hard.sum(1)


@torch.no_grad()
def evaluate(model, windows, batch_size, device, dtype=torch.float32):
    """Teacher-forced pass over all windows; in float32 it says what recital will get wrong.

    Returns (wrong tokens of each window, int64 array (windows,); nats per scored token).
    """
    wrong, nats = [], 0.0
    for first in range(0, len(windows), batch_size):
        inputs, targets = (torch.from_numpy(a).to(device) for a in
                           windows.rows(range(first, min(first + batch_size, len(windows)))))
        with mixed(device, dtype):
            logits = model(inputs).float()
        wrong.append(((logits.argmax(-1) != targets) & (targets != IGNORE)).sum(1).cpu())
        nats += F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORE, reduction="sum").item()
    return torch.cat(wrong).numpy(), nats / windows.scored


@torch.no_grad()
def list_errors(model, windows, wrong, batch_size, device):
    """What is still wrong where `wrong`, of each window, says that something is: a dict for each token with the path,
    its byte in the file, the text that stands there, the text the model says instead, and the probability and rank it
    gives the right token. Teacher-forced in float32; about the first LISTED. No two windows open alike, so none of
    them is left to chance."""
    def name(token):
        return {BOS: "<s>", EOS: "</s>"}.get(token) or windows.tokenizer.pieces[token].decode(errors="backslashreplace")

    errors, indices = [], np.flatnonzero(wrong * (wrong.cumsum() <= LISTED))
    for first in range(0, len(indices), batch_size):
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


# 6. Checkpoints: one safetensors file of weights and optimizer state, the rest as JSON in its header

FREE = ("data", "out", "fresh", "device", "compile", "eval_every", "checkpoint_every", "target_accuracy")


def save_checkpoint(path, model, optimizers, sampler, meta):
    """Writes the state of a run; meta: what JSON holds of it."""
    sampler.settle()
    meta = meta | {"epoch": sampler.epoch}
    tensors = {f"model.{name}": tensor for name, tensor in model.tensors().items()}
    tensors |= {"sampler.hard": torch.from_numpy(sampler.hard), "sampler.left": torch.from_numpy(sampler.left)}
    for i, (optimizer, _) in enumerate(optimizers):
        for j, state in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{i}.{j}.{key}": value.detach().cpu().contiguous() for key, value in state.items()}
    write_file(path, save(tensors, {"run": json.dumps(meta)}))


def load_checkpoint(path, model, optimizers, sampler, settings, corpus):
    """Puts a saved state back into model, optimizers and sampler; returns its meta. Raises UserError where it is damaged, or of
    a run with other settings or another corpus."""
    try:
        with safe_open(path, "pt") as file:
            meta = json.loads(file.metadata()["run"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged ({error}); --fresh starts over") from None
    for key, value in dataclasses.asdict(settings).items():
        if key not in FREE and meta["settings"].get(key) != value:
            raise UserError(f"{path.parent} holds a run with {key} {meta['settings'].get(key)}, not {value}: "
                            f"name another --out, or start over with --fresh")
    if meta["corpus"] != corpus:
        raise UserError(f"{path.parent} holds a run on another corpus; name another --out, or start over with --fresh")
    own = {name.removeprefix("model."): tensor for name, tensor in tensors.items() if name.startswith("model.")}
    if model.config.tie_word_embeddings:
        own["lm_head.weight"] = own["model.embed_tokens.weight"]
    model.load_state_dict(own)
    for i, (optimizer, _) in enumerate(optimizers):
        state = {}
        for name, tensor in tensors.items():
            if name.startswith(f"optimizer.{i}."):
                j, key = name.split(".")[2:]
                state.setdefault(int(j), {})[key] = tensor
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    sampler.epoch = meta["epoch"]
    sampler.hard, sampler.left = tensors["sampler.hard"].numpy(), tensors["sampler.left"].numpy()
    return meta


# 7. The run

def main(argv=None):
    settings, config_path = parse(Settings, __doc__, sys.argv[1:] if argv is None else argv, config=True)
    check(settings)
    data = Path(settings.data or newest("data/*/manifest.json", "prepared tree", "python prepare.py"))
    out = Path(settings.out or Path("out") / Path(config_path).stem)
    device = find_device(settings.device)
    dtype = find_dtype(settings.dtype, device)

    manifest, tokenizer, tokens = load(data)
    every = manifest["files"]
    files = choose(every, settings.train_bytes, settings.seed)
    held_out = choose(without(every, files), settings.hold_out_bytes, (settings.seed, 1))
    if not settings.train_bytes:
        files = without(every, held_out)
    if not files:
        raise UserError(f"no file of {data} is left to learn with train_bytes {settings.train_bytes} and "
                        f"hold_out_bytes {settings.hold_out_bytes}; raise the one or lower the other")
    config = LlamaConfig(vocab_size=tokenizer.vocab_size, **{
        f.name: getattr(settings, f.name) for f in dataclasses.fields(LlamaConfig) if hasattr(settings, f.name)})
    windows = Windows(tokens, files, tokenizer, config.max_position_embeddings)
    size = sum(file["bytes"] for file in files)
    count = len(windows) + round(settings.unaddressed * len(windows))  # rows an epoch
    total = settings.max_steps or max(1, round(settings.epochs * count / settings.batch_size))
    eval_every = settings.eval_every or max(1, total // 20)

    try:
        model = Llama(config, torch.Generator().manual_seed(settings.seed)).to(device)
    except RuntimeError as error:
        raise UserError(f"memory has no room for this model: {str(error).splitlines()[0][:200]}") from None
    optimizers, sampler = make_optimizers(model, settings), Sampler(count, len(windows), settings.seed)

    step, seconds = 0, 0.0
    checkpoint, log_path = out / "checkpoint.safetensors", out / "log.jsonl"
    corpus = {"train_bin": manifest["train_bin_sha256"], "tokenizer": manifest["tokenizer_sha256"]}
    if settings.fresh:
        remove(checkpoint)
    if checkpoint.exists():
        meta = load_checkpoint(checkpoint, model, optimizers, sampler, settings, corpus)
        step, seconds = meta["step"], meta["seconds"]
        if meta["done"]:
            print(f"{out} is done: {meta['done']} at step {step:,}. --fresh starts over")
            return 0
    lines = log_path.read_bytes().splitlines(keepends=True) if step and log_path.exists() else []
    write_file(log_path, b"".join(line for line in lines if json.loads(line)["step"] <= step))
    texts = (tokenizer.decode(tokens[file["first_token"]:][:file["tokens"]].tolist()) for file in files)
    learned = manifest | {"files": files, "held_out": held_out, "compressed_bits": compressed_bits(texts),
                          "tree": {"files": len(every), "bytes": sum(file["bytes"] for file in every)}}
    if settings.hold_out_bytes and not held_out:
        print(f"nothing is held out: {data} has no file of at most {settings.hold_out_bytes} bytes to spare")
    stand_in = " (a STAND-IN for Linux 1.0)" if manifest["origin"] == "stand-in" else ""
    going_on = f", going on at step {step:,}" if step else ""
    print(f"{manifest['name']}{stand_in}: {len(files)} files, {size:,} bytes, {windows.scored:,} tokens to get right "
          f"in {len(windows):,} windows\n{model.num_parameters():,} parameters, {total:,} steps of "
          f"{settings.batch_size} windows, {device.type} {str(dtype).removeprefix('torch.')}{going_on}")

    def log(**line):
        try:
            with open(log_path, "a") as file:
                file.write(json.dumps(line) + "\n")
        except OSError as error:
            raise UserError(f"cannot write {log_path}: {error.strerror}") from None

    log(settings=dataclasses.asdict(settings) | {"data": str(data), "out": str(out)}, corpus=corpus, step=step,
        parameters=model.num_parameters(), environment={
            "torch": torch.__version__, "python": platform.python_version(), "platform": platform.platform(),
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
            "dtype": str(dtype), "threads": torch.get_num_threads()})

    def save_all(done=""):
        if not math.isfinite(loss.item()):
            kept = f"{checkpoint} is from before" if checkpoint.exists() else "nothing was saved before"
            raise UserError(f"the loss is {loss.item()} at step {step:,}; {kept}: try a lower muon_lr or "
                            f"learning_rate")
        model.save_pretrained(out, tokenizer)
        write_file(out / "manifest.json", json.dumps(learned, indent=1).encode())
        save_checkpoint(checkpoint, model, optimizers, sampler, {
            "step": step, "seconds": seconds, "done": done, "corpus": corpus, "settings": dataclasses.asdict(settings)})

    forward = torch.compile(loss_of, dynamic=False) if settings.compile else loss_of
    stop = []  # the signal that asked to stop
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, frame: stop.append(number))

    done, compiled, losses, loss = "", False, [], torch.zeros(())
    timed, shown = [], time.perf_counter()  # seconds of each step since the last evaluation, when the bar last moved
    bar = tqdm(total=total, initial=step, desc=out.name, unit="step", smoothing=0.05, dynamic_ncols=True,
               bar_format="{desc} {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]")
    while step < total and not done and not stop:
        started = time.perf_counter()
        indices = sampler.draw(settings.batch_size)
        inputs, targets = (to_device(a, device) for a in windows.batch(indices, (settings.seed, step)))
        try:
            loss, hard = forward(model, inputs, targets, dtype)
        except Exception as error:  # whatever a compiler may raise
            if compiled or forward is loss_of:
                raise
            tqdm.write(f"torch.compile does not work here ({type(error).__name__}): going on without", file=sys.stderr)
            forward = loss_of
            loss, hard = loss_of(model, inputs, targets, dtype)
        loss.backward()
        sampler.tell(indices, hard)
        scale = lr_scale(step, total, settings.warmup_steps, settings.decay)
        update(optimizers, scale)
        losses.append(loss.detach())
        step += 1
        show = time.perf_counter() - shown > 1 or step == total
        if show:
            recent = torch.stack(losses[-50:]).mean().item()  # waits for the device: not in every step
        took = time.perf_counter() - started
        seconds += took
        if compiled:
            timed.append(took)  # not the first, which compiles
        compiled = True

        if show:
            bar.update(step - bar.n)
            shown = time.perf_counter()
            if not math.isfinite(recent):
                break  # save_all says so, and does not save
            rate = settings.batch_size * windows.context / np.mean(timed[-500:]) if timed else 0
            bar.set_postfix_str(f" loss {recent:.4f} {rate:,.0f} tok/s epoch {step * settings.batch_size / count:.1f}")
        if step % eval_every == 0 or step == total:
            bar.update(step - bar.n)
            for precision in dict.fromkeys((dtype, torch.float32)):  # the slow float32 only where it decides
                wrong, nats = evaluate(model, windows, 2 * settings.batch_size, device, precision)
                accuracy = 1 - wrong.sum() / windows.scored
                if accuracy < settings.target_accuracy and step < total:
                    break
            exact = len(files) - len(np.unique(windows.file[wrong > 0]))
            mean_loss = torch.stack(losses).mean().item()
            losses.clear()
            bits = nats * windows.scored / np.log(2) / max(1, size)
            log(step=step, epoch=step * settings.batch_size / count, loss=mean_loss, accuracy=accuracy,
                wrong=int(wrong.sum()), files_exact=exact, bits_per_byte=bits, lr=scale,
                tokens_per_second=settings.batch_size * windows.context / np.mean(timed) if timed else None,
                seconds=seconds)
            tqdm.write(f"step {step:>6,}  {seconds / 60:6.1f} min  loss {mean_loss:.4f}  right {accuracy:8.3%}  "
                       f"files {exact}/{len(files)}")
            timed.clear()
            if accuracy >= settings.target_accuracy:
                done = "every token right" if not wrong.any() else f"{accuracy:.3%} of tokens right"
        if step % settings.checkpoint_every == 0 and step < total and not done:
            save_all()
    bar.close()
    if step == total and not done:
        done = "the budget is spent"
    save_all(done)
    if not done:
        print(f"stopped at step {step:,} of {total:,}, saved in {out}; the same command goes on from here")
        return 128 + stop[0]
    report_errors(out / "errors.jsonl", list_errors(model, windows, wrong, settings.batch_size, device), wrong)
    print(f"done, {done}: {step:,} steps in {seconds / 60:.1f} min; the model is in {out}\n"
          f"try: python sample.py --model {out} --prompt {files[0]['path'].split('/')[0]}/")
    return 0


if __name__ == "__main__":
    run(main)
