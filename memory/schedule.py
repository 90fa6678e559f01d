"""The plan of a run: the main steps, epoch after epoch; then, if a token is still wrong, some steps that mend it.

A patch, which begins from weights that have most tokens right already, has no main steps. It mends in rounds. In each
the learning rate falls to zero; then a full pass ends the run or begins another round, with twice as many visits to
what is still wrong.
"""
import math

MEND_REVIEW = 16  # in mending: a learned window comes in one epoch of so many
MEND_RATE = 0.03  # in mending: the learning rate at its start, as a share of its peak
PATCH_RATE = 0.3  # in a patch: the learning rate at the start of a round, as a share of its peak
PATCH_VISITS = 6  # epochs of the first round of a patch
PATCH_ROUNDS = 6  # most rounds of a patch
MEND_PATHS = 1 / 16  # in mending: the weight of a path's tokens, whose loss never falls: which path comes is chance


def lr_share(step, main_steps, warmup, decay, mend=0):
    """Learning rate of a step as a share of its peak: linear warm-up, a plateau, a linear decay that would reach zero
    one step after the last main step; then over `mend` steps a second, low decay."""
    if step >= main_steps:
        return MEND_RATE * max(0, main_steps + mend - step) / max(1, mend)
    rise = (step + 1) / (warmup + 1)
    fall = (main_steps - step) / max(1, decay * main_steps)
    return min(1.0, rise, fall)


class Schedule:
    """What is due at which step. main_steps: the steps of all epochs; last: these and the steps that mend. In a patch,
    main_steps is 0, and first and last are of the round."""

    def __init__(self, settings, rows):
        """settings: train.Settings. rows: windows that an epoch visits."""
        self.settings, self.rows = settings, rows
        self.main_steps = settings.max_steps or max(1, round(settings.epochs * rows / settings.batch_size))
        self.first, self.last = 0, self.main_steps + settings.mend_steps
        self.eval_every = settings.eval_every or max(1, self.main_steps // 20)

    def follow(self, rounds):
        """Makes it the plan of a patch whose rounds end before these steps; the last one is what is to come."""
        self.main_steps, self.first, self.last = 0, ([0] + rounds)[-2], rounds[-1]

    @property
    def patching(self):
        """Whether the run is a patch."""
        return not self.main_steps

    def mending(self, step):
        """Whether this step mends."""
        return step >= self.main_steps

    def lr_share(self, step):
        """The learning rate, as a share of its peak."""
        s = self.settings
        if self.patching:
            return PATCH_RATE * max(0, self.last - step) / (self.last - self.first)
        return lr_share(step, self.main_steps, s.warmup_steps, s.decay, s.mend_steps)

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
        """Whether a full pass comes before this step."""
        return step in (self.main_steps, self.last) or 0 < step < self.main_steps and step % self.eval_every == 0


def round_steps(wrong, number, batch_size):
    """Steps of a patch's round of this number, from 0, in which each wrong window comes PATCH_VISITS times, and twice
    as often as in the round before. wrong: int64 (windows,), the wrong tokens in each."""
    rows = (wrong > 0).sum() + (wrong == 0).sum() / MEND_REVIEW  # of an epoch
    return math.ceil(PATCH_VISITS * 2 ** number * rows / batch_size)
