"""How k2 is chosen during a run: which are tried, on how much text, how often.

Integers only: what is measured is in `window_choice`.
"""

import math
from dataclasses import dataclass

import numpy as np

from bptt.text.batches import Rows

TOLERANCE = 0.05
WINDOWS = 4  # of the training, that the largest k2 spans by default
SHARE = 0.03  # of the products of training that choosing takes at most, by default
ROWS = 4
BURN_IN = 256  # tokens that a row reads before its own, so that its state is not cold


@dataclass(frozen=True)
class Search:
    """The smallest k2 that keeps the gradient's bias to a tolerance.

    A choice looks at a few rows of `steps` steps. The loss counts their second half,
    so that every output has at least `k2_max` steps before it, and the gradient that
    the truncated ones are compared with goes back over all of them.

    Attributes:
        k1: outputs of a pass.
        k2_max: the largest k2, a multiple of `k1`.
        tolerance: of the bias.
        every: updates from one choice to the next.
    """

    k1: int
    k2_max: int
    tolerance: float
    every: int

    @property
    def candidates(self) -> tuple[int, ...]:
        """k1, twice that, four times that and so on, and the largest."""
        return candidates(self.k1, self.k2_max)

    @property
    def steps(self) -> int:
        """Of a row."""
        return 2 * self.k2_max

    def is_due(self, step: int) -> bool:
        """Whether update `step`, counted from 0, begins with a choice.

        Not the first one: weights that were never trained say nothing.
        """
        return (step + 1) % self.every == 0

    def rows(self, predictions: int, seed: int, step: int) -> Rows:
        """Parts of a text that allows so many predictions.

        A pure function: the places are drawn from the seed and the step. `begin` is
        where the burn-in begins.
        """
        random = np.random.default_rng([seed, step, self.steps])
        first = random.integers(0, predictions - self.steps + 1, ROWS)
        return Rows(np.maximum(first - BURN_IN, 0), first, first + self.steps)


def candidates(k1: int, k2_max: int) -> tuple[int, ...]:
    """The k2 that are tried, the smallest first."""
    doublings = math.ceil(math.log2(k2_max / k1)) if k2_max > k1 else 0
    return (*(k1 << i for i in range(doublings)), k2_max)


def updates_between(k1: int, k2_max: int, tokens: int) -> int:
    """Updates from one choice to the next, so that choosing takes its small share.

    A function of the options alone, and never of a clock: products with the recurrent
    weights are counted. An update with `k2 = k1` takes three a token: forward, back,
    and the weights' gradients. A choice takes the burn-in, a run to find the errors,
    and for the full gradient and each candidate a run forward, the visits of its
    passes, and the weights' gradients; if `k1` is 1, a sweep over all lags instead,
    with the weights' gradients of each.

    Args:
        k1: outputs of a pass.
        k2_max: the largest candidate.
        tokens: of an update.
    """
    steps = 2 * k2_max
    if k1 == 1:
        each = 1 + 3 + steps
    else:
        tried = candidates(k1, k2_max)
        each = 1 + 3 + sum(2 + math.ceil(k2 / k1) for k2 in tried)
    choice = ROWS * (BURN_IN + steps * each)
    return max(1, math.ceil(choice / (SHARE * 3 * tokens)))
