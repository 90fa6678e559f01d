"""The plan of a run: the main steps, epoch after epoch; then rounds of steps that mend what is still wrong or unsure.

In each round the learning rate falls to zero; then a full pass ends the run or begins another round. What mends one
token may break another, the more so the higher the rate and the more steps lie between two visits of a window. So the
rate is lower the more windows there are. It is halved from round to round at first, to a quarter of that of the first
round; from then on it is halved after a round that broke a window which did not have to come, and doubled after any
other, up to that quarter. Those later rounds are computed in float32, in which the full passes decide what is right. A
patch, a run that begins from weights that have most tokens right already, has no main steps. It has new text to learn,
so its first rate is higher, and is not halved before a round breaks something; it may rise to it again.
"""
import math

MEND_REVIEW = 0.3  # in mending: learned windows that come with each that is to be mended
MEND_RATE = 8  # the learning rate at the start of the first round, as a share of its peak, times the steps of an epoch
PATCH_RATE = 0.2  # the same share in a patch; no round has more
MEND_COARSE = 2  # rounds, the first ones, after each of which a whole run's rate is halved; it never rises to it again
MEND_VISITS = 6  # epochs of a round, at least
MEND_LEAST = 0.5  # the shortest round, as a share of an epoch over all windows: the full pass after it takes longer


def lr_share(step, main_steps, warmup, decay):
    """Learning rate of a main step as a share of its peak: linear warm-up, a plateau, a linear decay that would reach
    zero one step after the last."""
    rise = (step + 1) / (warmup + 1)
    fall = max(0, main_steps - step) / max(1, decay * main_steps)
    return min(1.0, rise, fall)


def reviewed(rows, batch_size):
    """How many learned windows come in an epoch of mending, beside the `rows` windows that have to."""
    return max(math.ceil(MEND_REVIEW * rows), batch_size)


def round_steps(due, batch_size):
    """Steps of a round of mending, in which each window that has to comes MEND_VISITS times at least. due: bool
    (windows,), those that have to."""
    visits = MEND_VISITS * (due.sum() + reviewed(due.sum(), batch_size))
    return math.ceil(max(visits, MEND_LEAST * len(due)) / batch_size)


def round_rate(before, broke, steps, patch):
    """The learning rate at the start of a round of mending, as a share of its peak. before: that of the round before, 0
    if there was none. broke: whether a window that did not have to come in it has an unsure token now. steps: those of
    an epoch over all windows. patch: whether the run is one."""
    first = PATCH_RATE if patch else min(PATCH_RATE, MEND_RATE / steps)
    if not before:
        return first
    highest = first if patch else first / 2 ** MEND_COARSE
    return before / 2 if broke or before > highest else min(2 * before, highest)


class Schedule:
    """What is due at which step. main_steps: the steps of all epochs; first and last: those of the round of mending, or
    before it of the main steps."""

    def __init__(self, settings, rows):
        """settings: train.Settings. rows: windows that an epoch visits."""
        self.settings, self.rows = settings, rows
        self.main_steps = settings.max_steps or max(1, round(settings.epochs * rows / settings.batch_size))
        self.first, self.last = 0, self.main_steps
        self.eval_every = settings.eval_every or max(1, self.main_steps // 20)

    def follow(self, rounds, rate):
        """Goes on with the last of the rounds of mending. rounds: the step that the first begins with, and the steps
        that follow the last one of each. rate: the last one's, as round_rate gives it."""
        self.main_steps, self.first, self.last = rounds[0], *rounds[-2:]
        self.coarse, self.mend_rate = len(rounds) <= MEND_COARSE + 1, rate

    def mending(self, step):
        """Whether this step mends."""
        return step >= self.main_steps

    def in_float32(self, step):
        """Whether the network's products have to be in float32: some of the last tokens that are wrong are right in
        bfloat16, and nothing would move them."""
        return self.mending(step) and not self.coarse

    def lr_share(self, step):
        """The learning rate, as a share of its peak."""
        if self.mending(step):
            return self.mend_rate * max(0, self.last - step) / max(1, self.last - self.first)
        return lr_share(step, self.main_steps, self.settings.warmup_steps, self.settings.decay)

    def focal(self, step):
        """The exponent of the focal loss, which falls with the learning rate: so the end makes sure of all tokens."""
        return 0.0 if self.mending(step) else self.settings.focal * self.lr_share(step)

    def epoch(self, step):
        """Epochs made before this step; in mending, steps count as if each drew from all rows."""
        return step * self.settings.batch_size / self.rows

    def look_due(self, step):
        """Whether a full pass comes before this step: before the first only if the run begins from weights."""
        return step in (0, self.last) or 0 < step < self.main_steps and step % self.eval_every == 0
