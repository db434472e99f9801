"""Means with confidence intervals, from few samples.

Reference: Student, "The probable error of a mean", 1908.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

# 97.5 % quantiles of Student's t, by degrees of freedom from 1 on.
_QUANTILES = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228,
    2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086,
    2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip
_NORMAL = 1.960


@dataclass(frozen=True)
class Estimate:
    """A mean over samples.

    Attributes:
        mean: of the samples.
        margin: half the width of its 95 % confidence interval; inf for one sample.
        samples: how many.
    """

    mean: float
    margin: float
    samples: int

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % confidence interval."""
        return self.mean - self.margin, self.mean + self.margin


def estimate(samples: Sequence[float]) -> Estimate:
    """The mean of independent samples.

    Raises:
        ValueError: there is none.
    """
    count = len(samples)
    if not count:
        raise ValueError("samples: there is none, and a mean needs at least one")
    mean = statistics.fmean(samples)
    if count == 1:
        return Estimate(mean, math.inf, 1)
    quantile = _QUANTILES[count - 2] if count - 2 < len(_QUANTILES) else _NORMAL
    return Estimate(
        mean, quantile * statistics.stdev(samples) / math.sqrt(count), count
    )
