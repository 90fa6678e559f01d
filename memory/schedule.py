"""The plan of a run: the main steps, epoch after epoch; then rounds of steps that mend what is still wrong or unsure.

In each round the learning rate falls to zero; then a full pass ends the run or begins another round, with twice as many
visits to what is still wrong. A patch, a run that begins from weights which have most tokens right already, has no main
steps.
"""
import math

MEND_REVIEW = 16  # in mending: a learned window comes in one epoch of so many
MEND_RATE = 0.03  # in mending: the learning rate at the start of a round, as a share of its peak
PATCH_RATE = 0.2  # the same in a patch, which has new text to learn
MEND_VISITS = 6  # epochs of the first round
MEND_PATHS = 1 / 16  # in mending: the weight of a path's tokens, whose loss never falls: which path comes is chance


def lr_share(step, main_steps, warmup, decay):
    """Learning rate of a main step as a share of its peak: linear warm-up, a plateau, a linear decay that would reach
    zero one step after the last."""
    rise = (step + 1) / (warmup + 1)
    fall = max(0, main_steps - step) / max(1, decay * main_steps)
    return min(1.0, rise, fall)


def round_steps(hard, number, batch_size):
    """Steps of a round of mending, numbered from 0, in which each window to mend comes MEND_VISITS times if it
    stays hard, and twice as often as in the round before. hard: int64 (windows,), the tokens to mend in each."""
    rows = (hard > 0).sum() + (hard == 0).sum() / MEND_REVIEW  # of an epoch
    return math.ceil(MEND_VISITS * 2 ** number * rows / batch_size)


class Schedule:
    """What is due at which step. main_steps: the steps of all epochs; first and last: those of the round of mending, or
    before it of the main steps."""

    def __init__(self, settings, rows):
        """settings: train.Settings. rows: windows that an epoch visits."""
        self.settings, self.rows = settings, rows
        self.main_steps = settings.max_steps or max(1, round(settings.epochs * rows / settings.batch_size))
        self.first, self.last = 0, self.main_steps
        self.eval_every = settings.eval_every or max(1, self.main_steps // 20)

    def follow(self, rounds):
        """Goes on with the last of the rounds of mending. rounds: the step that the first begins with, and the steps
        that follow the last one of each."""
        self.main_steps, self.first, self.last = rounds[0], *rounds[-2:]

    def mending(self, step):
        """Whether this step mends."""
        return step >= self.main_steps

    def lr_share(self, step):
        """The learning rate, as a share of its peak."""
        if self.mending(step):
            rate = MEND_RATE if self.main_steps else PATCH_RATE
            return rate * max(0, self.last - step) / max(1, self.last - self.first)
        return lr_share(step, self.main_steps, self.settings.warmup_steps, self.settings.decay)

    def focal(self, step):
        """The exponent of the focal loss, which falls with the learning rate: so the end makes sure of all tokens."""
        return 0.0 if self.mending(step) else self.settings.focal * self.lr_share(step)

    def review(self, step):
        """A learned window comes in one epoch of so many (Sampler)."""
        return MEND_REVIEW if self.mending(step) else 1

    def path_weight(self, step):
        """The weight of the tokens of a path."""
        return MEND_PATHS if self.mending(step) else 1.0

    def epoch(self, step):
        """Epochs made before this step."""
        return step * self.settings.batch_size / self.rows

    def look_due(self, step):
        """Whether a full pass comes before this step: before the first only if the run begins from weights."""
        return step in (0, self.last) or 0 < step < self.main_steps and step % self.eval_every == 0
