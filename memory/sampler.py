"""Which windows make up the batches: epochs in an order of their own, less often what is learned."""
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


def make_batch(windows, indices, seed, path_weight, focal, device):
    """This process's share of a batch, on the device, as Objective takes it: inputs, targets (int64) and weights
    (float32), all (B, T), the number of scored tokens and `focal`, tensors (). seed: of the windows without an address.
    path_weight: what the tokens of a path count."""
    inputs, targets = windows.batch(indices, seed)
    weights = windows.weights(indices, path_weight)
    # DistributedDataParallel averages the processes' gradients: each divides by its share of the batch's count
    scored = max(1, (targets != IGNORE).sum()) / processes.count()
    return [*(to_device(array[processes.mine()], device) for array in (inputs, targets, weights)),
            *(torch.tensor(number, dtype=torch.float32, device=device) for number in (scored, focal))]
