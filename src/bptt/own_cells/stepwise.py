"""Truncated BPTT with time outermost: each step's graph once, for all its passes.

Takes as many turns as there are steps. Of the states only those between segments are
kept: a segment's steps run again in order, with the random numbers that they drew.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from bptt.cells.nest import Leaves
from bptt.own_cells.caller import (
    Autocast,
    Caller,
    RandomState,
    drawing_again,
    is_differentiable,
)
from bptt.own_cells.merged import lengthened, vjp
from bptt.own_cells.scan import Pace, zeroed_rows
from bptt.truncation import Truncation

Found = tuple[Tensor | None, list[Tensor | None], Leaves]
_Graph = tuple[Tensor, Leaves, Leaves]  # x, the state before, y and the state after


class Stepwise:
    """The way back through a sequence, step by step.

    Args:
        caller: the cell.
        x: its input, (time, batch, ...) or packed.
        parameters: of the cell, those that are trained.
        pace: the rows of each step.
        truncation: which errors go how far back.
        needs_dx: whether the input's error is wanted.
    """

    def __init__(
        self,
        caller: Caller,
        x: Tensor,
        parameters: Sequence[Tensor],
        pace: Pace,
        truncation: Truncation,
        needs_dx: bool,
    ) -> None:
        self._caller = caller
        self._x = x.detach()
        self._parameters = parameters
        self._pace = pace
        time = len(pace.sizes)
        self._k1 = truncation.k1 or time
        self._k2 = truncation.k2 or time
        self._needs_dx = needs_dx
        self._dparameters: list[Tensor | None] = [None] * len(parameters)

    def run(
        self,
        befores: Sequence[Leaves],
        randoms: Sequence[RandomState],
        every: int,
        autocast: Autocast,
        dy: Tensor | None,
        dfinal: Leaves,
    ) -> Found:
        """Errors -> those of the input, the parameters and the initial state.

        Args:
            befores: the state before each segment.
            randoms: the generators' state there.
            every: steps of a segment.
            autocast: as it was on the way forward.
            dy: the error of the outputs, as `x`; None for none.
            dfinal: the error of those leaves of the final state that have one.
        """
        time = len(self._pace.sizes)
        dx = torch.empty_like(self._x) if self._needs_dx else None
        passes: dict[int, Leaves] = {}  # the errors of the state after the step
        for segment in range(len(befores) - 1, -1, -1):
            start, stop = segment * every, min((segment + 1) * every, time)
            with drawing_again(self._x.device, randoms[segment]), autocast.again():
                graphs = list(self._graphs(befores[segment], start, stop))
            for t in range(stop - 1, start - 1, -1):
                passes = self._entered(passes, t, dfinal)
                error = None if dy is None else self._pace.step(dy, t)
                passes, dx_t = self._back(graphs.pop(), passes, t, error)
                if dx is not None:  # one array: a tensor a step would take as much
                    self._pace.step(dx, t).copy_(dx_t)
        dstart = self._summed([*passes.values()], dfinal)
        return dx, self._dparameters, dstart

    def _graphs(self, state: Leaves, start: int, stop: int) -> Iterator[_Graph]:
        """Each step of a segment, as a graph of its own."""
        for t in range(start, stop):
            size, cut = self._pace.sizes[t], self._pace.cuts[t]
            state = tuple(leaf.detach()[:size] for leaf in state)
            if cut is not None and t > start:  # a segment begins with zeroed rows
                state = zeroed_rows(state, cut)
            before = tuple(
                leaf.detach().requires_grad_(is_differentiable(leaf)) for leaf in state
            )
            x = self._pace.step(self._x, t).detach().requires_grad_(self._needs_dx)
            with torch.enable_grad():
                y, state = self._caller(x, before)
            yield x, _floating(before), (y, *_floating(state))

    def _entered(
        self, passes: dict[int, Leaves], t: int, dfinal: Leaves
    ) -> dict[int, Leaves]:
        """The passes that visit step `t`, with errors of the rows that have it."""
        size = self._pace.sizes[t]
        own = t // self._k1
        later = self._pace.sizes[t + 1] if t + 1 < len(self._pace.sizes) else 0
        found: dict[int, Leaves] = {}
        for p in range(own, (t + self._k2 - self._k1) // self._k1 + 1):
            if p in passes:
                before = passes[p]
            elif p == own:
                before = tuple(d.new_zeros(0, *d.shape[1:]) for d in dfinal)
            else:  # it begins past the end of the sequence
                continue
            found[p] = tuple(lengthened(d, size) for d in before)
            if p == own and later < size:  # rows that end here
                found[p] = tuple(
                    torch.cat((d[:later], d[later:] + end[later:size]))
                    for d, end in zip(found[p], dfinal, strict=True)
                )
        return found

    def _back(
        self, graph: _Graph, passes: dict[int, Leaves], t: int, dy: Tensor | None
    ) -> tuple[dict[int, Leaves], Tensor]:
        """All passes back through one step."""
        x, before, outputs = graph
        own = t // self._k1
        cut = self._pace.cuts[t]
        found: dict[int, Leaves] = {}
        for p, ds in passes.items():
            errors = [dy if p == own else None, *ds]
            grads = vjp(outputs, errors, before)
            found[p] = tuple(
                torch.zeros_like(s) if d is None else d
                for s, d in zip(before, grads, strict=True)
            )
            if cut is not None:
                found[p] = zeroed_rows(found[p], cut)
        dx = torch.zeros_like(x)
        if passes:
            sums = self._summed([*passes.values()], ())
            wanted = [*([x] if self._needs_dx else []), *self._parameters]
            errors = [dy if own in passes else None, *sums]
            grads = vjp(outputs, errors, wanted)
            if self._needs_dx:
                dx = dx if grads[0] is None else grads[0]
                grads = grads[1:]
            self._dparameters = [
                a if b is None else b if a is None else a + b
                for a, b in zip(self._dparameters, grads, strict=True)
            ]
        return found, dx.detach()

    @staticmethod
    def _summed(each: list[Leaves], like: Leaves) -> Leaves:
        if not each:
            return tuple(torch.zeros_like(d) for d in like)
        parts = zip(*each, strict=True)
        return tuple(torch.stack(part).sum(0) for part in parts)


def _floating(state: Leaves) -> Leaves:
    return tuple(leaf for leaf in state if is_differentiable(leaf))
