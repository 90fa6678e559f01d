"""Which windows make up the batches: epochs in an order of their own, less often what is learned."""
import math

import numpy as np
import torch

from memory import processes
from memory.device import to_device
from memory.windows import IGNORE


class Sampler:
    """Draws the rows of the batches, epoch after epoch, each in an order of its own. A row that had no hard token when
    it was last seen is learned, and comes in one epoch of `review` only: so the work goes to the errors.

    Rows are the windows of a run and, after them, the windows without an address, which are drawn anew each time and
    are never learned.
    """

    def __init__(self, rows, windows, seed):
        """rows: how many in all. windows: how many of them, the first, are the same each time."""
        self.windows, self.seed, self.epoch, self.seen = windows, seed, 0, []
        self.hard = np.ones(rows, dtype=np.int64)  # hard tokens of each row when it was last seen
        self.left = np.empty(0, dtype=np.int64)  # the rows that the epoch has still to visit

    def draw(self, size, review):
        """The indices of the next batch, int64 (size,)."""
        while len(self.left) < size:
            self.update()
            order = np.random.default_rng((self.seed, self.epoch)).permutation(len(self.hard))
            due = (self.hard[order] > 0) | ((order + self.epoch) % review == 0)
            self.left = np.concatenate((self.left, order[due]))
            self.epoch += 1
        indices, self.left = np.split(self.left, [size])
        return indices

    def note(self, indices, hard):
        """Keeps what a step found: hard tokens in each of the rows `indices`, a tensor (B,). It is read once an epoch,
        because reading it waits for the device."""
        self.seen.append((indices, hard))

    def update(self):
        """Brings `hard` up to date with what was noted, by all processes."""
        mine = [(indices, hard.cpu().numpy()) for indices, hard in self.seen]
        for parts in zip(*processes.gather(mine)):  # of each step, the parts that the processes saw
            for indices, hard in parts:
                self.hard[indices] = np.where(indices < self.windows, hard, 1)
        self.seen.clear()

    def restart(self, wrong):
        """Begins a new epoch, from now on only of the windows. wrong: int64 (windows,), the wrong tokens in each."""
        self.seen.clear()
        self.hard, self.left = wrong.copy(), self.left[:0]

    def state(self):
        """What a checkpoint holds of it: name -> tensor."""
        self.update()
        return {"hard": torch.from_numpy(self.hard), "left": torch.from_numpy(self.left),
                "epoch": torch.tensor(self.epoch)}

    def load_state(self, state):
        """Goes on from what state() gave."""
        self.hard, self.left, self.epoch = state["hard"].numpy(), state["left"].numpy(), int(state["epoch"])


def draw_classes(targets, count, vocab_size, random):
    """The classes of a sampled softmax (Jean et al. 2015): the targets that a batch has and, drawn evenly from all
    others, as many as make `count`; the whole vocabulary if count is 0 or not less.

    targets: int64 (N,), token ids. Returns (targets as indices into the classes, int64 (N,); classes, int64 (count,);
    what to add to their logits so that the drawn ones stand for those that were not, float32 (count,)).
    """
    if not 0 < count < vocab_size:
        return targets, np.arange(vocab_size), np.zeros(vocab_size, dtype=np.float32)
    own, targets = np.unique(targets, return_inverse=True)
    others = np.setdiff1d(np.arange(vocab_size), own, assume_unique=True)
    drawn = random.choice(others, count - len(own), replace=False, shuffle=False)
    offsets = np.zeros(count, dtype=np.float32)
    offsets[len(own):] = math.log(len(others) / max(1, len(drawn)))
    return targets, np.concatenate((own, drawn)), offsets


def make_batch(windows, indices, seed, softmax_classes, path_weight, focal, device):
    """This process's share of a batch, on the device, as Objective takes it. seed: a tuple, of what is drawn: windows
    without an address, and the classes of the softmax. path_weight: what the tokens of a path count."""
    inputs, targets = windows.batch(indices, seed)
    scored, weights = targets != IGNORE, windows.weights(indices, path_weight)
    indexed, classes, offsets = draw_classes(targets[scored], softmax_classes, windows.tokenizer.vocab_size,
                                             np.random.default_rng((*seed, 1)))
    targets[scored] = indexed
    # DistributedDataParallel averages the processes' gradients: each divides by its share of the batch's count
    count = max(1, scored.sum()) / processes.count()
    inputs, targets, weights, scored = (array[processes.mine()] for array in (inputs, targets, weights, scored))
    some = [to_device(array, device) for array in (np.flatnonzero(scored), targets[scored], weights[scored])]
    for tensor in some:
        torch._dynamo.mark_dynamic(tensor, 0)  # else torch.compile would compile for each number of scored tokens
    return [to_device(np.ascontiguousarray(inputs), device), *some, to_device(classes, device),
            to_device(offsets, device),
            *(torch.tensor(number, dtype=torch.float32, device=device) for number in (count, focal))]
