"""What gradient flow is asked of: steps, weights, and the errors of the outputs.

A problem yields the turns of the loop with the lag outermost: with `k1 = 1` the error
of pass `t` at lag `j` *is* `dE_t/ds_{t-j}`, where `E_t` is what the loss takes from
output `t`. What the deltas of a lag give the weights is that lag's share of the
gradient.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from bptt.cells.nest import Leaves
from bptt.rows import Rows
from bptt.truncation import Truncation


@dataclass(frozen=True)
class Share:
    """One lag of a truncation.

    Attributes:
        lag: steps back from each output.
        squares: of each part of the state after the step, (passes, batch), the sum of
            squares of its error.
        gradient: of all parameters as one vector, what the steps where the passes
            stand add to it; None if it was not asked for. The next lag may write into
            its memory.
    """

    lag: int
    squares: Sequence[Tensor]
    gradient: Tensor | None


@dataclass(frozen=True)
class Carried:
    """What the bottleneck of a known cell lets through, mean over steps and units.

    Attributes:
        cell: `RNN`, `GRU` or `LSTM`.
        share: RNN: the slope of its nonlinearity; GRU: the update gate `z`; LSTM: the
            forget gate.
        spectral_norm: of RNN's recurrent weights, the largest over layers; else 0.
    """

    cell: str
    share: float
    spectral_norm: float


@dataclass(frozen=True)
class Activity:
    """What one gate, or the output, of a layer was at every step.

    Attributes:
        layer: from 0 on.
        name: such as "forget gate".
        low: the least that it can be; None if there is no such bound.
        high: the most.
        values: (steps, state), the steps of all rows.
    """

    layer: int
    name: str
    low: float | None
    high: float | None
    values: Tensor


@dataclass(frozen=True)
class Problem(ABC):
    """A recurrence over a batch, with the errors of its outputs.

    Attributes:
        rows: which steps the rows have, and where they are reset.
        truncation: that the module trains with.
        dy: the error of the outputs, (time, batch, ...), packed if rows are ragged.
    """

    rows: Rows
    truncation: Truncation
    dy: Tensor

    @property
    @abstractmethod
    def parts(self) -> tuple[str, ...]:
        """The names of the state's parts, as `h_l0` or `c_l1`."""

    @property
    @abstractmethod
    def parameters(self) -> dict[str, Tensor]:
        """The module's parameters by name, as they were."""

    @abstractmethod
    def shares(self, *, gradients: bool) -> Iterator[Share]:
        """Every lag, from 0 on, of one pass an output: pass `t` is that of output `t`.

        Args:
            gradients: whether to form the lags' shares of the gradient.
        """

    @abstractmethod
    def gradient(self, truncation: Truncation) -> list[Tensor]:
        """The truncated gradient of each parameter, in one go."""

    @abstractmethod
    def state_vjp(self, step: int, ds: Leaves) -> Leaves:
        """`dE/ds_t -> dE/ds_{t-1}` through one step alone.

        Args:
            step: `t`.
            ds: of each part, (vectors, batch, ...); rows that lack the step get zeros.
        """

    @abstractmethod
    def products(self) -> tuple[float, float]:
        """Multiplications a step and row: those of the input, those of the state.

        Only their ratio matters.
        """

    @abstractmethod
    def carried(self) -> "Carried | None":
        """How much of the state a step lets through, if the cell is known."""

    @abstractmethod
    def activity(self) -> list["Activity"]:
        """The values of gates and outputs on the way forward, if the cell is known."""

    @property
    @abstractmethod
    def state_shapes(self) -> tuple[torch.Size, ...]:
        """Of each part, without the batch."""

    @property
    def time(self) -> int:
        """Steps of the longest row."""
        return self.rows.time

    @cached_property
    def row_counts(self) -> Tensor:
        """(time,) how many rows have each step."""
        sizes = self.rows.batch_sizes
        if sizes is not None:
            return sizes
        return torch.full((self.time,), self.rows.batch, dtype=torch.int64)


def squares(error: Tensor) -> Tensor:
    """(passes, batch) sums of squares of an error (passes, batch, ...)."""
    return error.flatten(2).square().sum(-1)


def flat(tensors: Sequence[Tensor]) -> Tensor:
    """All of them as one vector."""
    return torch.cat([t.reshape(-1) for t in tensors])
