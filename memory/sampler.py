"""What makes up a batch: windows, epoch after epoch, and the classes that a softmax is taken over."""
import numpy as np
import torch

from memory import processes
from memory.device import to_device
from memory.schedule import reviewed
from memory.windows import IGNORE

ABSENT = 0.01  # in a sampled softmax, the count of a piece that is not in the text
ALIGNED = 64  # numbers of tokens and of classes are multiples of it: such products are faster, and their sizes recur
NEVER = -1e9  # what is added to the logit of a class that only fills up that number: its probability is 0


class Sampler:
    """Draws the rows of the batches, epoch after epoch, each in an order of its own: first all rows, in mending the
    windows that are to be mended and some others.

    Rows are the windows of a run and, after them, the windows without an address, which are drawn anew each time.
    """

    def __init__(self, rows, seed):
        """rows: how many in all."""
        self.seed, self.epoch = seed, 0
        self.due = np.ones(rows, dtype=bool)  # the rows that come in every epoch
        self.left = np.empty(0, dtype=np.int64)  # the rows that the epoch has still to visit
        self.rivals = np.empty(0, dtype=np.int64)  # in mending: the pieces that are always among the classes

    def draw(self, size):
        """The indices of the next batch, int64 (size,). An epoch has all rows that are due, and some of the others
        (schedule.reviewed)."""
        while len(self.left) < size:
            random = np.random.default_rng((self.seed, self.epoch))
            order, chosen = random.permutation(len(self.due)), self.due.copy()
            others = random.permutation(np.flatnonzero(~chosen))
            chosen[others[:reviewed(chosen.sum(), size)]] = True
            self.left = np.concatenate((self.left, order[chosen[order]]))
            self.epoch += 1
        indices, self.left = np.split(self.left, [size])
        return indices

    def restart(self, due, rivals):
        """Begins a round of mending, from now on only of the windows. due: bool (windows,), those that have to come.
        rivals: token ids, int64 (rivals,), of the pieces that stand in the way of their tokens."""
        self.due, self.rivals, self.left = due, rivals, self.left[:0]

    def state(self):
        """What a checkpoint holds of it: name -> tensor."""
        return {"due": torch.from_numpy(self.due), "left": torch.from_numpy(self.left),
                "epoch": torch.tensor(self.epoch), "rivals": torch.from_numpy(self.rivals)}

    def load_state(self, state):
        """Goes on from what state() gave."""
        self.due = state["due"].numpy().astype(bool)  # earlier versions saved counts
        self.left, self.rivals, self.epoch = state["left"].numpy(), state["rivals"].numpy(), int(state["epoch"])


def draw_classes(targets, negatives, rivals, counts, random):
    """The classes of a sampled softmax (Jean et al. 2015): the targets of a batch, the rivals, and pieces that are
    drawn, each by itself, with a chance that grows with the root of how often it stands in the text. The chances add up
    to `negatives` before those of targets and rivals become 1; if that is 0, all pieces are classes. A piece drawn with
    the chance q counts 1 / q times, by an offset of -log(q): so the sum of exponentials is right on average.

    targets, int64 (N,), and rivals, int64 (R,): token ids. counts: (vocab_size,). Returns (the targets' indices among
    the classes, int64 (N,); the classes, token ids, int64 (C,); what to add to their logits, float32 (C,)).
    """
    chance = np.ones(len(counts))
    if negatives:
        roots = np.sqrt(np.maximum(counts, ABSENT))
        chance = np.minimum(1, roots * (negatives / roots.sum()))
        chance[targets] = chance[rivals] = 1
    classes = np.flatnonzero(random.random(len(chance)) < chance)
    return np.searchsorted(classes, targets), classes, -np.log(chance[classes]).astype(np.float32)


def aligned(array, fill):
    """The array (N,) with `fill` added up to a multiple of ALIGNED, one at least."""
    return np.pad(array, (0, max(1, -(-len(array) // ALIGNED)) * ALIGNED - len(array)), constant_values=fill)


def make_batch(windows, indices, seed, negatives, rivals, focal, device, micro_batch=0):
    """This process's share of a batch, on the device, in parts of `micro_batch` windows (0: in one), each as Objective
    takes it; their losses add up to that of the whole. seed: a tuple, of what is drawn: windows without an address, and
    the classes of the softmax, which all parts share. rivals: token ids, int64, that are always among them. What
    fills up the numbers of tokens and classes counts for nothing: it has no target (IGNORE), no shares, or an offset of
    NEVER."""
    inputs, targets = windows.batch(indices, seed)
    scored, (rows, columns, about, following, share) = targets != IGNORE, windows.paths(indices)
    indexed, classes, offsets = draw_classes(np.concatenate((targets[scored], following)), negatives, rivals,
                                             windows.counts, np.random.default_rng((*seed, 1)))
    targets[scored], following = np.split(indexed, [scored.sum()])
    classes, offsets = aligned(classes, 0), aligned(offsets, NEVER)
    # what is asked of a path: a row of `shares` for each of its tokens; `ahead` says at which place which row is due
    shares, ahead = np.zeros((len(rows) + 1, len(classes)), dtype=np.float32), np.full(targets.shape, -1)
    shares[about, following], ahead[rows, columns] = share, np.arange(len(rows))
    # DistributedDataParallel averages the processes' gradients: each divides by its share of the batch's count
    count = max(1, scored.sum() + len(rows)) / processes.count()
    inputs, targets, scored, ahead = (array[processes.mine()] for array in (inputs, targets, scored, ahead))
    numbers = [torch.tensor(number, dtype=torch.float32, device=device) for number in (count, focal)]
    softmax = [to_device(array, device) for array in (classes, offsets)]
    parts, size = [], micro_batch or len(inputs)
    for first in range(0, len(inputs), size):
        part = slice(first, first + size)
        paths = np.flatnonzero(ahead[part] >= 0)
        tokens = [to_device(array, device) for array in (
            aligned(np.flatnonzero(scored[part]), 0), aligned(targets[part][scored[part]], IGNORE),
            aligned(paths, 0), shares[aligned(ahead[part].flat[paths], -1)])]  # the last row has no shares
        for tensor in (*tokens, *softmax):  # their lengths differ from part to part: one compilation for all
            torch._dynamo.mark_dynamic(tensor, 0)
        torch._dynamo.mark_dynamic(tokens[-1], 1)
        parts.append([to_device(np.ascontiguousarray(inputs[part]), device), *tokens, *softmax, *numbers])
        torch._dynamo.mark_static(parts[-1][0], 0)  # a compilation for each number of windows, whichever comes first
    return parts
