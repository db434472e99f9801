"""The passes of a lag as rows of one call of the cell, differentiated by autograd."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bptt.cells.nest import Leaves
from bptt.own_cells.caller import Autocast, Caller, is_differentiable
from bptt.own_cells.sweep import Place, Visitor
from bptt.truncation import Lag


@dataclass
class _Steps:
    """A graph of all steps that lie k1 apart, as rows, and the errors that came.

    Attributes:
        place: where its rows stand in sequences.
        x: its input, as a leaf of the graph.
        before: the leaves of the state that have errors.
        outputs: y and those leaves after the step; of each, whether it depends on
            anything.
        visits: how many are still to come.
        sums: the errors of `outputs`, summed over the visits.
    """

    place: Place
    x: Tensor
    before: Leaves
    outputs: Leaves
    visits: int
    sums: list[Tensor | None]


class Merged(Visitor):
    """A visitor that runs the cell again where the passes stand.

    At lags `k1` apart the passes stand at the same steps, but for those that have gone,
    so a graph is kept until its last visit. Parameters and input get the summed errors
    then: they are linear in them.
    """

    def __init__(
        self,
        caller: Caller,
        x: Tensor,
        before: Leaves,
        parameters: Sequence[Tensor],
        lags: Sequence[Lag],
        autocast: Autocast,
        *,
        needs_dx: bool,
    ) -> None:
        self._caller = caller
        self._x = x
        self._before = before
        self._parameters = parameters
        self._autocast = autocast
        self._needs_dx = needs_dx
        self._k1 = lags[0].steps.step if lags else 1
        self._visits = Counter(lag.lag % self._k1 for lag in lags)
        self._steps: dict[int, _Steps] = {}
        self._dx = torch.zeros_like(x) if needs_dx else None
        self._dparameters: list[Tensor | None] = [None] * len(parameters)

    def visit(self, lag: Lag, place: Place, dy: Tensor | None, ds: Leaves) -> Leaves:
        """One lag."""
        of = lag.lag % self._k1
        steps = self._steps.get(of)
        if steps is None:
            steps = self._steps[of] = self._run(place, self._visits[of])
        leading = 1 if place.rows.is_ragged else 2
        flat = [_merged(d, leading) for d in ds]
        # The passes that have gone stood at the last of these steps.
        rows = steps.x.shape[0]
        errors = [None if dy is None else lengthened(_merged(dy, leading), rows)]
        errors += [lengthened(d, rows) for d in flat]
        steps.visits -= 1
        last = steps.visits == 0
        single = last and self._visits[of] == 1
        if not single:
            steps.sums = [
                a if b is None else b if a is None else a + b
                for a, b in zip(steps.sums, errors, strict=True)
            ]
        wanted = [*steps.before, *self._wanted(steps)] if single else steps.before
        found = vjp(steps.outputs, errors, wanted)
        count = len(steps.before)
        if single:
            self._take(steps, found[count:])
        elif last:
            self._take(steps, vjp(steps.outputs, steps.sums, self._wanted(steps)))
        if last:
            del self._steps[of]
        return tuple(
            torch.zeros_like(d) if g is None else g[: len(e)].reshape(d.shape)
            for d, e, g in zip(ds, flat, found, strict=False)
        )

    def gradients(self) -> tuple[Tensor | None, list[Tensor | None]]:
        """The errors of the input and of the parameters."""
        return self._dx, self._dparameters

    def _run(self, place: Place, visits: int) -> _Steps:
        leading = 1 if place.rows.is_ragged else 2

        def rows(sequence: Tensor) -> Tensor:
            return _merged(place.take(sequence), leading).detach()

        x = rows(self._x).requires_grad_(self._needs_dx)
        state = tuple(
            rows(leaf).requires_grad_(is_differentiable(leaf)) for leaf in self._before
        )
        with torch.enable_grad(), self._autocast.again():
            y, after = self._caller(x, state)
        outputs = (y, *(leaf for leaf in after if is_differentiable(leaf)))
        before = tuple(leaf for leaf in state if is_differentiable(leaf))
        return _Steps(place, x, before, outputs, visits, [None] * len(outputs))

    def _wanted(self, steps: _Steps) -> list[Tensor]:
        return [*([steps.x] if self._needs_dx else []), *self._parameters]

    def _take(self, steps: _Steps, found: Sequence[Tensor | None]) -> None:
        """Add the errors of input and parameters."""
        if self._dx is not None:
            dx, found = found[0], found[1:]
            if dx is not None:
                shape = steps.place.take(self._dx).shape
                steps.place.add(self._dx, dx.reshape(shape))
        self._dparameters = [
            a if b is None else b if a is None else a + b
            for a, b in zip(self._dparameters, found, strict=True)
        ]


def vjp(
    outputs: Sequence[Tensor],
    errors: Sequence[Tensor | None],
    wanted: Sequence[Tensor],
) -> Sequence[Tensor | None]:
    """What `errors` of the outputs mean for `wanted`; None: nothing."""
    pairs = [
        (o, e.to(o.dtype))
        for o, e in zip(outputs, errors, strict=True)
        if e is not None and o.requires_grad
    ]
    if not pairs or not wanted:
        return [None] * len(wanted)
    # The graph is kept: it may share a part with others, as a weight made once.
    return torch.autograd.grad(
        [o for o, _ in pairs],
        wanted,
        [e for _, e in pairs],
        retain_graph=True,
        allow_unused=True,
    )


def _merged(t: Tensor, leading: int) -> Tensor:
    return t if leading == 1 else t.flatten(0, 1)


def lengthened(errors: Tensor, rows: int) -> Tensor:
    """With zeros for the rows that are missing at the end."""
    missing = rows - errors.shape[0]
    if not missing:
        return errors
    return torch.cat((errors, errors.new_zeros(missing, *errors.shape[1:])))
