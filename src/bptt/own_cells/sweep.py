"""All passes back together, one lag at a time, through steps that someone linearised.

This is the loop of `through_time`, for states of any shape. What one lag does to the
errors is left to a *visitor*: the derivative that a cell brings, or autograd.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from bptt.cells.nest import Leaves
from bptt.own_cells.scan import zeroed_rows
from bptt.rows import Rows
from bptt.truncation import Lag


@dataclass(frozen=True)
class Place:
    """Where the running passes stand: which rows of sequences and of errors.

    A sequence is (time, batch, ...), or packed where rows are ragged. Errors of the
    passes are (passes, batch, ...); where rows are ragged, those of rows that lack the
    step are zero and are left away from what a visitor sees, (rows, ...).
    """

    steps: slice
    rows: Rows

    def take(self, sequence: Tensor) -> Tensor:
        """The passes' rows of a sequence: (passes, batch, ...), or (rows, ...)."""
        if not self.rows.is_ragged:
            return sequence[self.steps]
        return sequence.index_select(0, self._packed.to(sequence.device))

    def add(self, sequence: Tensor, values: Tensor) -> None:
        """Add to these rows of a sequence, in place."""
        if not self.rows.is_ragged:
            sequence[self.steps] += values
        else:
            sequence.index_add_(0, self._packed.to(sequence.device), values)

    def rows_of(self, errors: Tensor) -> Tensor:
        """The errors of rows that have the step."""
        if not self.rows.is_ragged:
            return errors
        return errors.flatten(0, 1).index_select(0, self._padded.to(errors.device))

    def errors_of(self, rows: Tensor, passes: int) -> Tensor:
        """The inverse of `rows_of`."""
        if not self.rows.is_ragged:
            return rows
        batch = self.rows.batch
        zeros = rows.new_zeros(passes * batch, *rows.shape[1:])
        errors = zeros.index_copy(0, self._padded.to(rows.device), rows)
        return errors.reshape(passes, batch, *rows.shape[1:])

    def ending(self, device: torch.device) -> Tensor:
        """(passes, batch): whether the pass stands at the row's last step."""
        steps = torch.arange(self.rows.time)[self.steps].unsqueeze(1)
        return (self.rows.lengths - 1 == steps).to(device)

    @cached_property
    def _padded(self) -> Tensor:
        return self.rows.present[self.steps].flatten().nonzero().squeeze(1)

    @cached_property
    def _packed(self) -> Tensor:
        starts = self.rows.offsets[:-1][self.steps]
        batch = self.rows.batch
        return starts[self._padded // batch] + self._padded % batch


class Visitor(ABC):
    """Takes the errors of all running passes through the steps where they stand."""

    @abstractmethod
    def visit(self, lag: Lag, place: Place, dy: Tensor | None, ds: Leaves) -> Leaves:
        """Errors of the outputs (None: none) and of the state after the step, of rows
        that have it -> those of the state before it, as the cell read it.
        """


@dataclass(frozen=True)
class Turn:
    """One lag, and the errors where the passes stand, leaves (passes, batch, ...).

    Attributes:
        lag: of all passes.
        ds: the error of the state after the step, before the step's visit.
        before: the error of the state before it.
    """

    lag: Lag
    ds: Leaves
    before: Leaves


def turns(
    visitor: Visitor,
    lags: Iterable[Lag],
    rows: Rows,
    dy: Tensor | None,
    dfinal: Leaves,
) -> Iterator[Turn]:
    """All passes back through a sequence, one lag at a time.

    Args:
        visitor: is called once a lag.
        lags: of the truncation.
        rows: which steps the rows have, and where they are reset.
        dy: the error of the outputs, (time, batch, ...) or packed; None for none.
        dfinal: the error of the final state's leaves, (batch, ...).

    Yields:
        Each lag's errors, before the next is computed.
    """
    ds = tuple(d.new_zeros(0, *d.shape) for d in dfinal)
    first = running = 0
    for lag in lags:
        place = Place(lag.steps, rows)
        left, passes = lag.first - first, lag.last - lag.first
        if left or passes != running:
            ds = _enter_and_leave(ds, left, passes - running + left)
        first, running = lag.first, passes
        if rows.is_ragged and lag.owns:
            ds = _add_where(ds, dfinal, place)
        elif lag.at_end and not rows.is_ragged:
            ds = tuple(
                torch.cat((d[:-1], (d[-1] + end).unsqueeze(0)))
                for d, end in zip(ds, dfinal, strict=True)
            )
        arrived = ds
        own = place.take(dy) if lag.owns and dy is not None else None
        here = tuple(place.rows_of(d) for d in ds)
        before = visitor.visit(lag, place, own, here)
        if rows.resets is not None and before:
            before = zeroed_rows(before, place.take(rows.resets).to(before[0].device))
        ds = tuple(place.errors_of(d, passes) for d in before)
        yield Turn(lag, arrived, ds)


def sweep(
    visitor: Visitor,
    lags: Iterable[Lag],
    rows: Rows,
    dy: Tensor | None,
    dfinal: Leaves,
) -> Leaves:
    """The error of the initial state's leaves, (batch, ...); arguments as for `turns`.

    The visitor has the other gradients then.
    """
    dstart = tuple(torch.zeros_like(d) for d in dfinal)
    for turn in turns(visitor, lags, rows, dy, dfinal):
        if turn.lag.at_start:
            dstart = tuple(a + d[0] for a, d in zip(dstart, turn.before, strict=True))
    return dstart


def _enter_and_leave(ds: Leaves, left: int, entering: int) -> Leaves:
    """Drop the passes that left the sequence and admit those that enter it."""
    if not entering:
        return tuple(d[left:] for d in ds)
    return tuple(torch.cat((d[left:], d.new_zeros(entering, *d.shape[1:]))) for d in ds)


def _add_where(ds: Leaves, dfinal: Leaves, place: Place) -> Leaves:
    """Add the final state's error to the passes that stand at a row's last step."""
    if not dfinal:
        return ds
    ending = place.ending(dfinal[0].device)
    found = []
    for d, end in zip(ds, dfinal, strict=True):
        where = ending.reshape(*ending.shape, *[1] * (d.dim() - 2))
        found.append(d + torch.where(where, end, torch.zeros_like(end)))
    return tuple(found)
