"""The sweeps over all lags, and what is read off them on the way.

Lag by lag, nothing larger than one gradient is kept: the bias of every per-output
window follows from what of the full gradient is still missing after each lag.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from bptt.flow.problem import Problem, Share, flat
from bptt.truncation import Truncation

Progress = Callable[[int, int], object]  # lags done, of so many


@dataclass(frozen=True)
class Norms:
    """`|dE_t/ds_k|`, the mean over the rows that have step `t`.

    Attributes:
        whole: (time, time), at [t, k], of the whole state.
        by_part: the same for each part of the state alone.
    """

    whole: Tensor
    by_part: dict[str, Tensor]


@dataclass(frozen=True)
class Lags:
    """The gradient by lag.

    Attributes:
        norms: (time,) of each lag's share.
        missing: (time,) norm of the full gradient less the shares of lags 0 to L.
        along: (time,) that difference times the full gradient.
        full: the full gradient, a vector.
    """

    norms: Tensor
    missing: Tensor
    along: Tensor
    full: Tensor


def sweep(
    problem: Problem, *, gradients: bool, progress: Progress | None = None
) -> tuple[Norms, Lags | None]:
    """Every pair (t, k), and with `gradients` every lag's share, in one go.

    Args:
        problem: what is asked.
        gradients: whether to form the lags' shares; about three times the work.
        progress: is told the lags done and their number.

    Raises:
        FloatingPointError: an error grows beyond all numbers on its way back.
    """
    time = problem.time
    norms = _NormTable(problem)
    lags = _LagTable(problem) if gradients else None
    for share in problem.shares(gradients=gradients):
        norms.take(share)
        if lags is not None:
            lags.take(share)
        if progress is not None:
            progress(share.lag + 1, time)
    return norms.done(), None if lags is None else lags.done()


def by_lag(problem: Problem, name: str, *, progress: Progress | None = None) -> Tensor:
    """One parameter's gradient by lag, (time, *shape)."""
    sizes = [p.numel() for p in problem.parameters.values()]
    at = list(problem.parameters).index(name)
    start, stop = sum(sizes[:at]), sum(sizes[: at + 1])
    parameter = problem.parameters[name]
    found = parameter.new_zeros(problem.time, *parameter.shape)
    for share in problem.shares(gradients=True):
        assert share.gradient is not None
        found[share.lag] = share.gradient[start:stop].view(parameter.shape)
        if progress is not None:
            progress(share.lag + 1, problem.time)
    return found


class _NormTable:
    """Collects the norms of each lag, a diagonal of the table."""

    def __init__(self, problem: Problem) -> None:
        time, dtype = problem.time, problem.dy.dtype
        # What a row lacks has no error, so a sum over rows is one over those that have
        # the step.
        self._counts = problem.row_counts.clamp(min=1)
        self._parts = {
            name: torch.zeros(time, time, dtype=dtype) for name in problem.parts
        }
        # Of a state of one part its table is all.
        self._whole = torch.zeros(time, time, dtype=dtype)
        if len(self._parts) == 1:
            self._whole = next(iter(self._parts.values()))

    def take(self, share: Share) -> None:
        lag = share.lag
        counts = self._counts[lag:]

        def mean(squares: Tensor) -> Tensor:
            return squares.sqrt().sum(1).cpu() / counts

        for name, squares in zip(self._parts, share.squares, strict=True):
            torch.diagonal(self._parts[name], -lag).copy_(mean(squares))
        if len(share.squares) > 1:
            whole = mean(torch.stack(list(share.squares)).sum(0))
            torch.diagonal(self._whole, -lag).copy_(whole)

    def done(self) -> Norms:
        if not bool(torch.isfinite(self._whole).all()):
            t, k = (~torch.isfinite(self._whole)).nonzero()[0].tolist()
            raise FloatingPointError(
                f"the gradient explodes: dE_{t}/ds_{k} is not finite; look at a "
                "shorter sequence, or shrink the recurrent weights"
            )
        return Norms(self._whole, self._parts)


class _LagTable:
    """Collects each lag's share, and what is missing after it."""

    def __init__(self, problem: Problem) -> None:
        self._full = flat(problem.gradient(Truncation.full())).detach()
        self._rest = self._full.clone()
        self._found: list[tuple[Tensor, Tensor, Tensor]] = []

    def take(self, share: Share) -> None:
        gradient = share.gradient
        assert gradient is not None
        self._rest -= gradient
        self._found.append(
            (
                torch.linalg.vector_norm(gradient),
                torch.linalg.vector_norm(self._rest),
                torch.dot(self._rest, self._full),
            )
        )

    def done(self) -> Lags:
        norms, missing, along = (
            torch.stack(values).cpu().double()
            for values in zip(*self._found, strict=True)
        )
        return Lags(norms, missing, along, self._full)
