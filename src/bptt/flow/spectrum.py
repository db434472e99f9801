"""How much one step, and many, stretch or shrink an error on its way back.

The largest Lyapunov exponent of the products of step Jacobians is the mean logarithm by
which a vector grows a step, whatever the vector (Benettin et al., "Lyapunov
characteristic exponents for smooth dynamical systems", 1980; for recurrent networks
Engelken, Wolf & Abbott, "Lyapunov spectra of chaotic recurrent neural networks", 2020).
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from bptt.cells.nest import Leaves
from bptt.flow.problem import Problem
from bptt.flow.statistics import Estimate, estimate

_MOST_ELEMENTS = 1 << 27  # of a Jacobian with its batch
_BURN_IN = 0.1  # share of the steps in which a random vector turns to the fastest


@dataclass(frozen=True)
class Growth:
    """What becomes of an error over many steps back.

    Attributes:
        rate: the largest Lyapunov exponent, in nats a step, mean over rows with its
            95 % confidence interval.
        time: steps of the sequence, for which the words are meant.
    """

    rate: Estimate
    time: int

    @property
    def kind(self) -> str:
        """`vanishing`, `stable` or `exploding`.

        Stable is what changes by less than a factor of two over the whole sequence.
        """
        if abs(self.rate.mean) * self.time < math.log(2):
            return "stable"
        return "vanishing" if self.rate.mean < 0 else "exploding"

    @property
    def half_life(self) -> float:
        """Steps in which an error halves, or doubles if it grows; inf for neither."""
        return math.log(2) / abs(self.rate.mean) if self.rate.mean else math.inf


def growth(problem: Problem) -> Growth:
    """Follow one random error a row from its last step back to the first.

    The numbers are the same every time. Steps before which a row is reset do not count.

    Raises:
        ValueError: there are too few steps.
    """
    lengths = _lengths(problem)
    generator = torch.Generator().manual_seed(0)
    burn_in = int(_BURN_IN * problem.time)
    ds: Leaves | None = None
    sums = torch.zeros(problem.rows.batch, dtype=torch.float64)
    counts = torch.zeros_like(sums)
    for t in range(problem.time - 1, 0, -1):
        fresh = _random(problem, generator)
        if ds is None:
            ds = fresh
        alive = _size(ds) > 0
        has_step = lengths > t
        # Rows that begin here, and those whose error met a reset.
        ds = _where(has_step & ~alive, fresh, ds)
        ds = _scaled(ds)
        ds = tuple(d[0] for d in problem.state_vjp(t, tuple(d[None] for d in ds)))
        grown = _size(ds)
        counted = has_step & (grown > 0) & (t <= lengths - 1 - burn_in)
        logs = grown.log()
        sums += torch.where(counted, logs, 0.0)
        counts += counted
        if not bool(torch.isfinite(grown).all()):
            raise FloatingPointError(
                f"the Jacobian of step {t} is not finite; look at its input"
            )
    rates = sums[counts > 0] / counts[counts > 0]
    if not len(rates):
        raise ValueError(
            "no row has two steps, or nothing passes from step to step, so there is "
            "no growth to measure; give a longer sequence"
        )
    return Growth(estimate(rates.tolist()), problem.time)


def jacobian(problem: Problem, step: int) -> Tensor:
    """`ds_t/ds_{t-1}` of every row, (batch, state, state).

    Args:
        problem: what is asked.
        step: `t`, 1 or more.

    Raises:
        ValueError: there is no such step, or the Jacobians are too large.
    """
    if not 0 < step < problem.time:
        raise ValueError(
            f"step must be from 1 to {problem.time - 1}, since ds_t/ds_(t-1) needs a "
            f"step before it; got {step}"
        )
    widths = [math.prod(shape) for shape in problem.state_shapes]
    size, batch = sum(widths), problem.rows.batch
    if size * size * batch > _MOST_ELEMENTS:
        raise ValueError(
            f"the Jacobians of {batch} rows with {size} numbers of state would have "
            f"{size * size * batch} elements, over {_MOST_ELEMENTS}; give fewer rows"
        )
    identity = torch.eye(size, dtype=problem.dy.dtype, device=problem.dy.device)
    ds = tuple(
        part.reshape(size, 1, *shape).expand(size, batch, *shape).contiguous()
        for part, shape in zip(
            torch.split(identity, widths, dim=1), problem.state_shapes, strict=True
        )
    )
    found = problem.state_vjp(step, ds)
    return torch.cat([d.flatten(2) for d in found], dim=2).transpose(0, 1)


def _lengths(problem: Problem) -> Tensor:
    rows = problem.rows
    return rows.lengths if rows.is_ragged else torch.full((rows.batch,), rows.time)


def _random(problem: Problem, generator: torch.Generator) -> Leaves:
    return tuple(
        torch.randn(problem.rows.batch, *shape, generator=generator).to(problem.dy)
        for shape in problem.state_shapes
    )


def _size(ds: Leaves) -> Tensor:
    """(batch,) float64 on the CPU."""
    squares = [d.double().flatten(1).square().sum(1) for d in ds]
    return torch.stack(squares).sum(0).sqrt().cpu()


def _where(rows: Tensor, a: Leaves, b: Leaves) -> Leaves:
    def chosen(x: Tensor, y: Tensor) -> Tensor:
        mask = rows.to(x.device).reshape(-1, *[1] * (x.dim() - 1))
        return torch.where(mask, x, y)

    return tuple(map(chosen, a, b))


def _scaled(ds: Leaves) -> Leaves:
    sizes = _size(ds)
    factors = torch.where(sizes > 0, 1 / sizes, 0.0)
    return tuple(d * factors.to(d).reshape(-1, *[1] * (d.dim() - 1)) for d in ds)
