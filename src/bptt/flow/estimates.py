"""Several batches of one model together: means with confidence intervals."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bptt.flow import verdict
from bptt.flow.problem import Problem
from bptt.flow.spectrum import Growth
from bptt.flow.statistics import Estimate, estimate
from bptt.truncation import Truncation

if TYPE_CHECKING:
    from bptt.flow.result import GradientFlow


@dataclass(frozen=True)
class FlowEstimates:
    """What gradient flows of several batches say together.

    Each batch is a sample: its numbers are averaged, and the 95 % confidence intervals
    are those of their means, by Student's t.

    Attributes:
        flows: one a batch, of the same module and as many steps.

    Raises:
        ValueError: there is no flow, or they differ in their steps.
    """

    flows: "tuple[GradientFlow, ...]"

    def __post_init__(self) -> None:
        times = {flow.time for flow in self.flows}
        if len(times) != 1:
            raise ValueError(
                "flows must be of at least one batch, all with as many steps; got "
                f"{len(self.flows)} with {sorted(times)} steps"
            )

    @property
    def time(self) -> int:
        """Steps of the sequences."""
        return self.flows[0].time

    @property
    def truncation(self) -> Truncation:
        """That the module trains with."""
        return self.flows[0].truncation

    @property
    def problem(self) -> Problem:
        """The first batch's."""
        return self.flows[0].problem

    @property
    def norms(self) -> Tensor:
        """(time, time), the mean of the batches'."""
        return torch.stack([flow.norms for flow in self.flows]).mean(0)

    @property
    def by_lag(self) -> Tensor:
        """(time,) float64, the mean of the batches'."""
        return self._by_lag.mean(0)

    @property
    def by_lag_estimates(self) -> list[Estimate]:
        """The same with confidence intervals."""
        return [estimate(samples) for samples in self._by_lag.t().tolist()]

    @property
    def biases(self) -> Tensor:
        """(time,) float64: at `k2 - 1` the mean bias of `Truncation(1, k2)`."""
        return torch.stack([flow.biases for flow in self.flows]).mean(0)

    def bias(self, truncation: Truncation) -> Estimate:
        """The bias of a truncation."""
        return self._of_each(lambda flow: flow.bias(truncation))

    def cosine(self, truncation: Truncation) -> Estimate:
        """The cosine of a truncation."""
        return self._of_each(lambda flow: flow.cosine(truncation))

    def window(self, tolerance: float = 0.05) -> int:
        """The smallest `k2` for which the mean bias keeps to the tolerance, in steps.

        Raises:
            ValueError: `tolerance` is negative.
        """
        if not tolerance >= 0:
            raise ValueError(f"tolerance must be at least 0; got {tolerance!r}")
        within = (self.biases <= tolerance).nonzero()
        return int(within[0]) + 1 if len(within) else self.time

    def chunk(self, tolerance: float = 0.05) -> int | None:
        """The smallest power of two below the time that chunks may have likewise."""
        size = 1
        while size < self.time:
            if self.bias(Truncation.chunks(size)).mean <= tolerance:
                return size
            size *= 2
        return None

    def horizon(self, share: float = 0.95) -> int:
        """The smallest lag up to which the mean `by_lag` holds this share.

        Raises:
            ValueError: `share` is not between 0 and 1.
        """
        if not 0 <= share <= 1:
            raise ValueError(f"share must be between 0 and 1; got {share!r}")
        sums = self.by_lag.cumsum(0)
        return int((sums >= share * sums[-1]).nonzero()[0])

    @cached_property
    def growth(self) -> Growth:
        """As of one flow; of several batches with the interval of their means."""
        growths = [flow.growth for flow in self.flows]
        if len(growths) == 1:
            return growths[0]
        return Growth(estimate([g.rate.mean for g in growths]), self.time)

    @property
    def verdict(self) -> str:
        """The answer in plain words, with its numbers, a line each."""
        return self.verdict_at()

    def verdict_at(self, tolerance: float = 0.05) -> str:
        """The verdict, with the window that keeps to this tolerance."""
        return verdict.of(self, tolerance)

    def plot(self, axes: Any = None) -> Any:
        """As `GradientFlow.plot`, of the means, with the intervals of the lags."""
        from bptt.flow.plot import plot

        return plot(self, axes)

    def to_html(self, path: str | Path) -> None:
        """As `GradientFlow.to_html`, of the means, with the intervals of the lags."""
        from bptt.flow.shown import write_page

        write_page(self, path)

    def _repr_html_(self) -> str:
        """For a notebook: the verdict, and a figure of the gradient by lag."""
        from bptt.flow.shown import notebook

        return notebook(self)

    @cached_property
    def _by_lag(self) -> Tensor:
        return torch.stack([flow.by_lag.double() for flow in self.flows])

    def _of_each(self, number: "Callable[[GradientFlow], float]") -> Estimate:
        return estimate([number(flow) for flow in self.flows])
