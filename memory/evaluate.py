"""The teacher-forced pass, in which each token is given all that stands before it, and what is counted in it.

Greedy recital of a file equals the file if and only if every token of its windows is the model's first choice in this
pass (by induction over the tokens), so one pass in float32 tells what is exact.
"""
import json

import numpy as np
import torch
from torch.nn import functional as F

from memory import processes
from memory.device import mixed, to_device
from memory.files import write_file
from memory.output import UserError, progress
from memory.tokenizer import BOS, EOS
from memory.windows import IGNORE

LOGITS = {"cpu": 2**25, "cuda": 2**27}  # that a full pass has in memory at once: few enough for a small machine
LISTED = 10_000  # about how many errors a list holds at most
PREFIX = SUFFIX = 50  # tokens, of discoverable extraction (Carlini et al. 2022)
SURE = 0.5  # the lead of the right token over the next, in logits, with which a run ends: int8 weights seldom turn it
SAFE = 3.0  # the lead that mending aims at: what mends one token may take a logit or two from others that are not due
NOISE = 1e-3  # a lead of one logit over the next that rounding could turn; float32 sums differ by about 1e-5


# What is right, and what is written, is decided by these two, everywhere: a token is right only if its logit leads all
# others. So of two that are equal none is right; the lower id is written.

def leads(logits, targets):
    """By how much the logit of each target leads all others, float32 (N,): the token is right if that is more than 0,
    which NaN is not. logits: float32 (N, vocab_size), in which the targets' own become -inf. targets: int64 (N,)."""
    right = logits.gather(-1, targets[:, None])[:, 0]
    return right - logits.scatter_(-1, targets[:, None], -torch.inf).amax(-1)


def first_choice(logits):
    """The index of the largest of logits (..., vocab_size), the lowest of equal ones: int64 (...). Raises UserError if
    that is not finite."""
    largest, index = logits.max(-1)  # torch promises the first of equal ones
    check_finite(largest)
    return index


def check_finite(values):
    """Raises UserError if one of a tensor's values is NaN or infinite."""
    if not values.isfinite().all():
        raise UserError("the model gives numbers that are not finite: its weights are too large to compute with")


@torch.no_grad()
def teacher_forced(model, windows, batch, device, dtype=torch.float32):
    """The pass over one batch, the indices of some windows: (scored, logits, targets).

    scored: bool array (B, T), the positions whose next token is scored. logits: float32 (N, vocab_size), and targets:
    int64 (N,), at these positions, on the device.
    """
    inputs, targets = windows.rows(batch)
    longest = max(windows.length[i] for i in batch) - 1
    inputs, targets = inputs[:, :longest], targets[:, :longest]
    scored = targets != IGNORE
    with mixed(device, dtype):
        hidden = model.model(to_device(inputs, device))
        logits = model.lm_head(hidden[to_device(scored, device)]).float()
    return scored, logits, to_device(targets[scored], device)


def at_once(windows, device):
    """How many windows a full pass takes at once."""
    logits = LOGITS.get(device.type, LOGITS["cpu"])
    return max(1, logits // (windows.context * windows.tokenizer.vocab_size))


def count_wrong(model, windows, device, dtype=torch.float32, stopped=lambda: False):
    """A full pass over the windows, shared out among the processes: (wrong tokens of each window; those that do not
    lead by SURE; those that do not lead by SAFE, all int64 arrays (windows,); the rivals of the last, the pieces that
    lead or come next there, int64 (rivals,), token ids; nats per scored token). None if stopped() says so on the way,
    to every process alike."""
    found, nats = torch.zeros((3, len(windows)), dtype=torch.int64), torch.zeros((), dtype=torch.float64)
    rivals = torch.zeros(windows.tokenizer.vocab_size, dtype=torch.int64)
    mine = np.argsort(-windows.length, kind="stable")[processes.rank()::processes.count()]
    share, size = -(-len(windows) // processes.count()), at_once(windows, device)
    for first in progress(range(0, share, size), desc="full pass", unit=" batches", disable=processes.rank() > 0):
        if stopped():
            return None
        batch = mine[first:first + size]
        if len(batch):  # a process may have one window less than another
            scored, logits, targets = teacher_forced(model, windows, batch, device, dtype)
            nats += F.cross_entropy(logits, targets, reduction="sum").item()
            lead = leads(logits, targets)
            rows = torch.from_numpy(scored.nonzero()[0])
            unsafe = ~(lead >= SAFE)
            for counts, missed in zip(found, (~(lead > 0), ~(lead >= SURE), unsafe)):
                counts[batch] = torch.bincount(rows[missed.cpu()], minlength=len(batch))
            rivals[logits[unsafe].argmax(-1).cpu()] = 1  # which is a first choice too, but may be NaN in training
    wrong, unsure, unsafe = processes.total(found).numpy()
    return (wrong, unsure, unsafe, np.flatnonzero(processes.total(rivals)),
            processes.total(nats).item() / windows.scored)


def list_errors(model, windows, wrong, device):
    """The tokens that are wrong in the windows in which `wrong`, int64 (windows,), counts some: a dict for each with
    its path, its byte in the file, the text there, the text that the model writes instead, and the probability and
    rank of the right token. About the first LISTED."""
    def name(token):
        return {BOS: "<s>", EOS: "</s>"}.get(token) or windows.tokenizer.pieces[token].decode(errors="backslashreplace")

    errors, indices, size = [], np.flatnonzero(wrong * (wrong.cumsum() - wrong < LISTED)), at_once(windows, device)
    for first in progress(range(0, len(indices), size), desc="listing errors", unit=" batches"):
        batch = indices[first:first + size]
        scored, logits, targets = teacher_forced(model, windows, batch, device)
        right = logits.gather(-1, targets[:, None])[:, 0]
        shares = (right - logits.logsumexp(-1)).exp()
        lead = leads(logits, targets)  # and what is left are the rivals
        rows, columns = scored.nonzero()
        for n in (~(lead > 0)).nonzero()[:, 0].tolist():
            i, t = batch[rows[n]], columns[n]
            before = windows.tokenizer.decode(windows.text(i)[:t + 1 - windows.start[i]])
            errors.append({
                "path": windows.files[windows.file[i]]["path"], "byte": int(windows.offset[i]) + len(before),
                "text": name(int(targets[n])), "said": name(int(first_choice(logits[n]))),
                "probability": shares[n].item(),
                "rank": int((logits[n] >= right[n]).sum()) + 1})
    return errors


def report_errors(path, errors, wrong):
    """Writes what list_errors found to `path`, a line of JSON each, and prints a summary."""
    write_file(path, "".join(json.dumps(error) + "\n" for error in errors).encode())
    if errors:
        second = sum(error["rank"] == 2 for error in errors)
        print(f"{wrong.sum():,} tokens are still wrong. No window leaves one to chance: they are not learned yet. Of "
              f"the {len(errors):,} in {path}, {second:,} are the model's second choice. The first:")
        for error in errors[:5]:
            print(f"  {error['path']}, byte {error['byte']:,}: {error['text'][:20]!r} and not {error['said'][:20]!r} "
                  f"(probability {error['probability']:.2g})"[:160])


def examine(model, windows, device):
    """A full pass in float32, in full. Returns, for each window, three arrays over its scored tokens: right (bool),
    log-probability (float32, nats), and by how much the right token leads the others (float32, logits). Raises
    UserError if these are not finite."""
    result, size = [None] * len(windows), at_once(windows, device)
    order = np.argsort(-windows.length, kind="stable")
    for first in progress(range(0, len(windows), size), desc="verifying", unit=" batches"):
        batch = order[first:first + size]
        scored, logits, targets = teacher_forced(model, windows, batch, device)
        logp = logits.gather(-1, targets[:, None])[:, 0] - logits.logsumexp(-1)
        lead = leads(logits, targets)
        check_finite(logp + lead)
        ends = scored.sum(1).cumsum()[:-1]
        for i, *parts in zip(batch, *(np.split(array.cpu().numpy(), ends) for array in (lead > 0, logp, lead))):
            result[i] = tuple(parts)
    return result


def figures(windows, passed, tokenizer, size):
    """The measures of memorization (README) over some windows and what `examine` found in them; size: bytes of text."""
    right = np.concatenate([r for r, _, _ in passed])
    logp = np.concatenate([p for _, p, _ in passed])
    closest = np.abs(np.concatenate([lead for _, _, lead in passed]))
    spans = [(r[PREFIX:PREFIX + SUFFIX], p[PREFIX:PREFIX + SUFFIX]) for r, p, _ in passed if len(r) > PREFIX + SUFFIX]
    p_z = np.exp([p.sum(dtype=np.float64) for _, p in spans])
    tries = np.maximum(1, np.log(0.5) / np.log1p(-np.clip(p_z, 1e-300, 1 - 1e-12)))  # n for p = 0.5
    streak = longest = 0
    for i, (r, _, _) in enumerate(passed):
        if i == 0 or windows.file[i] != windows.file[i - 1]:
            streak = 0
        ids = windows.text(i)
        for ok, token in zip(r, ids):
            streak = streak + len(tokenizer.pieces[token]) if ok else 0
            longest = max(longest, streak)
        if not r[-1]:
            streak = 0  # it does not know that it ends, or goes on
    return {
        "tokens": len(right), "tokens_right": int(right.sum()), "accuracy": float(right.mean()),
        "bits_per_byte": float(-logp.sum(dtype=np.float64) / np.log(2) / max(1, size)),
        "spans": len(spans), "discoverable": float(np.mean([r.all() for r, _ in spans])) if spans else None,
        "p_z_over_half": float((p_z > 0.5).mean()) if spans else None,
        "median_tries_for_half": float(np.median(tries)) if spans else None,
        "longest_run": longest, "smallest_lead": float(closest.min()),
        "leads_in_noise": int((closest < NOISE).sum())}
