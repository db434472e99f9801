"""RandomTruncation: errors cut at random, right on average, as a value; no tensors.

At a boundary between steps an error is cut with probability c, and where it is not cut
it is multiplied by 1 / (1 - c). On average it passes as it is, so the mean gradient is
that of full BPTT, while most passes are short.

Reference: Tallec & Ollivier, "Unbiasing truncated backpropagation through time", 2017
(ARTBP), who allow any c < 1 at each step, and any that depends on earlier cuts.
"""

import math
from dataclasses import dataclass

from bptt.truncation import Truncation, require_steps


@dataclass(frozen=True, init=False, repr=False)
class RandomTruncation:
    """Cut the errors every `every` steps at random, so that their mean is full BPTT's.

    The steps are divided as `Truncation.chunks(every)` divides them. Between two pieces
    the error of the state, of all layers together, is set to zero with probability c,
    and multiplied by 1 / (1 - c) where it is not, for each row of the batch by itself.
    Outputs are not changed, but for the rounding of products over fewer rows. The mean
    of the gradient over the draws is the full gradient of all weights, of the input and
    of the initial state.

    The factors multiply, so the variance may be large: an error that passes `n`
    boundaries arrives with probability `(1 - c)**n`, `(1 - c)**-n` times too large,
    which is also the mean square of its factor (`factor`). Choose a mean length in the
    order of the lags that matter, or `alpha`: then c falls with the steps since the
    last cut, and the factor grows as a power of the length, no longer exponentially.

    Every step of every sequence is still visited once, so this costs the time and the
    memory of full BPTT over the sequence, and a little for each piece.

    The cuts are drawn at the end of each call of a module that wants gradients, from
    torch's global generator on the CPU: `torch.manual_seed` fixes them, and masks of
    dropout are those of the seed without cuts. Without gradients nothing is drawn.

    Args:
        every: steps of a piece, at least 1; 1 is the paper's. The steps inside a piece
            run at full speed, so larger ones are faster.
        probability: the share of boundaries that cut in the long run, from 0 to 1;
            `every / probability` is the mean length between two cuts. 0 is full BPTT
            and 1 `Truncation.chunks(every)`: nothing is drawn then, and of 1 alone the
            mean is not the full gradient.
        alpha: how c depends on the boundaries `j = 1, 2, ...` since the last cut (or
            the first step): `c_j = (alpha - 1) / ((alpha - 2) / probability + j)`, so
            that the share is the one given. inf for `c = probability` throughout;
            above 3 the lengths have a finite variance. Above 2.

    Raises:
        TypeError: `every` is not an int, `probability` or `alpha` not a number.
        ValueError: one of them is out of its range.

    >>> RandomTruncation(32, 0.25).mean_length
    128.0
    >>> RandomTruncation.of_mean_length(128, every=32)
    RandomTruncation(every=32, probability=0.25)
    """

    every: int
    probability: float
    alpha: float

    def __init__(
        self, every: int, probability: float, *, alpha: float = math.inf
    ) -> None:
        require_steps("every", every, smallest=1)
        _require_number("probability", probability)
        if not 0 <= probability <= 1:
            raise ValueError(
                f"probability must be from 0 to 1, the share of boundaries that cut; "
                f"got {probability}"
            )
        _require_number("alpha", alpha)
        if not alpha > 2:
            raise ValueError(
                "alpha must be above 2, and above 3 for lengths of a finite variance; "
                f"got {alpha}; inf for the same probability at all boundaries"
            )
        object.__setattr__(self, "every", int(every))
        object.__setattr__(self, "probability", float(probability))
        object.__setattr__(self, "alpha", float(alpha))

    @classmethod
    def of_mean_length(
        cls, steps: float, *, every: int = 1, alpha: float = math.inf
    ) -> "RandomTruncation":
        """With so many steps between two cuts on average.

        Args:
            steps: of a long sequence; at least `every`, inf for full BPTT.
            every: steps of a piece.
            alpha: see the class.

        Raises:
            TypeError: as the class.
            ValueError: as the class; or `steps` is smaller than `every`.
        """
        require_steps("every", every, smallest=1)
        _require_number("steps", steps)
        if not steps >= every:
            raise ValueError(
                f"steps must be at least every = {every}, the shortest length between "
                f"two cuts; got {steps}"
            )
        return cls(every, every / steps, alpha=alpha)

    @property
    def mean_length(self) -> float:
        """Mean steps between two cuts of a long sequence, inf if nothing is cut."""
        return self.every / self.probability if self.probability else math.inf

    @property
    def mean(self) -> Truncation:
        """The truncation whose gradient is this one's on average."""
        return Truncation.full() if self.probability < 1 else self.certain

    @property
    def certain(self) -> Truncation:
        """What cuts at every boundary, as probability 1 does."""
        return Truncation.chunks(self.every)

    @property
    def is_random(self) -> bool:
        """Whether anything is left to chance."""
        return 0 < self.probability < 1

    @property
    def is_full(self) -> bool:
        """Whether nothing is ever cut."""
        return self.probability == 0

    def is_full_over(self, time: int) -> bool:
        """Whether nothing can be cut in a sequence of `time` steps."""
        return self.is_full or time <= self.every

    def boundaries(self, time: int) -> range:
        """The steps before which errors may be cut, in a sequence of `time` steps."""
        return range(self.every, time, self.every)

    def probability_after(self, boundaries: int) -> float:
        """The probability to cut at the given boundary since the last cut.

        Args:
            boundaries: 1 for the first one after a cut or after the first step.
        """
        if self.is_full or math.isinf(self.alpha):
            return self.probability
        scale = (self.alpha - 2) / self.probability
        return (self.alpha - 1) / (scale + boundaries)

    def factor(self, steps: int) -> float:
        """What multiplies an error that passes all boundaries within so many steps.

        It passes them with one over this as its probability, so this is the mean square
        of the factor too, and this less 1 its variance. Counted from a cut or the first
        step; elsewhere, with a finite `alpha`, factors are smaller.

        Args:
            steps: of which every `every`-th has a boundary before it.
        """
        product = 1.0
        for at in range(1, steps // self.every + 1):
            kept = 1 - self.probability_after(at)
            product = product / kept if kept > 0 else math.inf
        return product

    def __repr__(self) -> str:
        text = f"every={self.every}, probability={self.probability:g}"
        if not math.isinf(self.alpha):
            text += f", alpha={self.alpha:g}"
        return f"RandomTruncation({text})"


Policy = Truncation | RandomTruncation


def _require_number(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(
            f"{name} must be a number; got {value!r} ({type(value).__name__})"
        )
