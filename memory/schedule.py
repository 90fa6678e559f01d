"""The plan of a run: the main steps, epoch after epoch; then, if a token is still wrong, some steps that mend it.

A patch, which begins from weights that have most tokens right already, has no main steps. It mends in rounds, each
twice as long as the one before. In each the learning rate falls to zero, and a full pass after it may end the run.
"""
import math

MEND_REVIEW = 16  # in mending: a learned window comes in one epoch of so many
MEND_RATE = 0.03  # in mending: the learning rate at its start, as a share of its peak
PATCH_RATE = 0.1  # in a patch: the learning rate at the start of a round, as a share of its peak
PATCH_VISITS = 6  # epochs in the first round of a patch
PATCH_ROUNDS = 6
PATCH_WARMUP = 0
PATCH_REVIEW = 16
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
    """What is due at which step. main_steps: the steps of all epochs; last: these and the steps that mend."""

    def __init__(self, settings, rows):
        """settings: train.Settings. rows: windows that an epoch visits."""
        self.settings, self.rows, self.first_round = settings, rows, 0
        self.main_steps = settings.max_steps or max(1, round(settings.epochs * rows / settings.batch_size))
        self.last = self.main_steps + settings.mend_steps
        self.eval_every = settings.eval_every or max(1, self.main_steps // 20)

    def patch(self, first_round):
        """Makes it the plan of a patch. first_round: steps of its first round."""
        self.first_round, self.main_steps, self.last = first_round, 0, first_round * (2 ** PATCH_ROUNDS - 1)

    def round(self, step):
        """(first step, step after the last) of the patch's round that this step is in."""
        first, length = 0, self.first_round
        while step >= first + length:
            first, length = first + length, 2 * length
        return first, first + length

    def mending(self, step):
        """Whether this step mends."""
        return step >= self.main_steps

    def lr_share(self, step):
        """The learning rate, as a share of its peak."""
        s = self.settings
        if self.first_round:
            first, end = self.round(step)
            return PATCH_RATE * min(1, (step - first + 1) / (PATCH_WARMUP + 1)) * (end - step) / (end - first)
        return lr_share(step, self.main_steps, s.warmup_steps, s.decay, s.mend_steps)

    def focal(self, step):
        """The exponent of the focal loss, which falls with the learning rate: so the end makes sure of all tokens."""
        return 0.0 if self.mending(step) else self.settings.focal * self.lr_share(step)

    def review(self, step):
        """A learned window comes in one epoch of so many (Sampler)."""
        if self.first_round:
            return PATCH_REVIEW
        return MEND_REVIEW if self.mending(step) else 1

    def path_weight(self, step):
        """The weight of the tokens of a path."""
        return MEND_PATHS if self.mending(step) else 1.0

    def epoch(self, step):
        """Epochs made before this step."""
        return step * self.settings.batch_size / self.rows

    def mend_until(self, step):
        """The step up to which is mended, if mending begins or goes on at this step after a look; else 0."""
        if self.first_round:
            return self.round(step)[1]
        return self.last if step == self.main_steps else 0

    def look_due(self, step):
        """Whether a full pass comes before this step."""
        if self.first_round:
            return self.round(step)[0] == step
        return step in (self.main_steps, self.last) or 0 < step < self.main_steps and step % self.eval_every == 0


def first_round(wrong, batch_size):
    """Steps of the first round of a patch, in which a wrong window comes PATCH_VISITS times. wrong: int64 (windows,),
    the wrong tokens in each."""
    rows = (wrong > 0).sum() + (wrong == 0).sum() / PATCH_REVIEW  # of an epoch
    return max(1, math.ceil(PATCH_VISITS * rows / batch_size))
