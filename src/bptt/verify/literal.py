"""The function whose exact gradient a truncated gradient is, by forward runs alone.

A truncated gradient is not the gradient of the loss. By the literal definition it is
that of a sum over passes: for the outputs `[a, a + k1)`, with nominal end
`e = a + k1 - 1`, run the whole stack over the steps `b ... e` within the sequence,
`b = max(0, e - k2 + 1)`, from the state before step `b`, held fixed (at `b = 0` the
initial state, which may move), and score those of the outputs at `b` or later; the
final state counts in the pass of the last step. Nothing here calls a backward pass of
`bptt`, nor the plan of passes that it follows.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bptt.modules.base import ThroughTime
from bptt.truncation import Truncation

Parts = tuple[Tensor, ...]  # h or h, c: (layers x directions, batch, state)


@dataclass(frozen=True)
class Window:
    """The steps `start <= t < stop` of one pass; it scores outputs from `scored` on."""

    start: int
    stop: int
    scored: int


def windows(truncation: Truncation, time: int) -> list[Window]:
    """The passes over `time` steps that visit any."""
    if truncation.k1 is None or truncation.k2 is None:
        return [Window(0, time, 0)]
    found = []
    for a in range(0, time, truncation.k1):
        end = a + truncation.k1 - 1  # nominal: it may lie past the sequence
        start = max(0, end - truncation.k2 + 1)
        if start < time:
            found.append(Window(start, min(end + 1, time), max(a, start)))
    return found


def cuts(truncation: Truncation, time: int) -> bool:
    """Whether any error is kept from going back to the first step."""
    if truncation.k1 is None or truncation.k2 is None:
        return False
    last_end = (time - 1) // truncation.k1 * truncation.k1 + truncation.k1 - 1
    return last_end - truncation.k2 + 1 > 0


def steps_of(module: ThroughTime, x: Tensor) -> int:
    """How many time steps `x` has for this module."""
    return x.shape[1 if module.batch_first and _is_batched(x) else 0]


def _is_batched(x: Tensor) -> bool:
    return x.dim() == (3 if x.is_floating_point() else 2)


@dataclass(frozen=True)
class _Runs:
    """Windows of one length, side by side in the batch."""

    steps: list[slice]  # in the time of the input, whichever the direction
    states: list[Parts | None]  # fixed; None stands for the initial state
    weights_y: Tensor
    weights_final: Parts


@dataclass(frozen=True)
class Call:
    """A module's call with time first, a batch, full BPTT, and scores for its outputs.

    Attributes:
        module: a copy that shares the parameters, which may be moved in place.
        x: (time, batch, ...), a view.
        initial: the state before the first step, views.
        weights_y: of the outputs, for each direction.
        weights_final: of the parts of the final state, for each direction.
    """

    module: ThroughTime
    x: Tensor
    initial: Parts
    weights_y: list[Tensor]
    weights_final: list[Parts]

    @classmethod
    def of(
        cls, module: ThroughTime, x: Tensor, hx: Any, weights: Sequence[Tensor]
    ) -> "Call":
        """From what the module takes, and weights of what it returns."""
        batched = _is_batched(x)
        swap = batched and module.batch_first

        def time_major(t: Tensor) -> Tensor:  # a view, so it follows changes in place
            return t.transpose(0, 1) if swap else t if batched else t.unsqueeze(1)

        def with_batch(parts: Sequence[Tensor]) -> Parts:
            return tuple(part if batched else part.unsqueeze(1) for part in parts)

        twin = copy.copy(module)  # the same parameters, another policy
        twin.truncation = None
        twin.batch_first = False
        weights_y, weights_final = time_major(weights[0]), with_batch(weights[1:])
        if hx is None:
            initial = tuple(torch.zeros_like(part) for part in weights_final)
        else:
            initial = with_batch((hx,) if isinstance(hx, Tensor) else hx)
        scores = [(weights_y, weights_final)]
        if module.bidirectional:
            # A truncation runs along each direction's own time. Both directions run
            # over the window, and the other one's outputs weigh nothing.
            scores = [_of_direction(d, weights_y, weights_final) for d in (0, 1)]
        ys, finals = zip(*scores, strict=True)
        return cls(twin, time_major(x), initial, list(ys), list(finals))

    @property
    def time(self) -> int:
        """Steps of the sequence."""
        return self.x.shape[0]

    def steps(self, start: int, stop: int, direction: int) -> slice:
        """Steps along a direction's own time, in the time of the input."""
        if direction:
            return slice(self.time - stop, self.time - start)
        return slice(start, stop)

    def run(self, x: Tensor, hx: Parts) -> tuple[Tensor, Parts]:
        """Outputs and the final state's parts."""
        y, final = self.module(x, hx if len(hx) > 1 else hx[0])
        return y, ((final,) if isinstance(final, Tensor) else final)


class LiteralObjective:
    """Sum over passes of the scores of their outputs, at the tensors' present values.

    Args:
        module: one of `bptt`'s, with the truncation; its parameters may be moved in
            place afterwards, and so may `x` and `hx`.
        x: as the module takes it.
        hx: as the module takes it.
        weights: of the module's outputs and of the parts of its final state.
    """

    def __init__(
        self, module: ThroughTime, x: Tensor, hx: Any, weights: Sequence[Tensor]
    ) -> None:
        assert module.truncation is not None
        with torch.no_grad():
            self._call = call = Call.of(module, x, hx, weights)
            passes = windows(module.truncation.mean, call.time)
            self._runs: list[_Runs] = []
            for direction in range(len(call.weights_y)):
                for length in sorted({w.stop - w.start for w in passes}):
                    group = [w for w in passes if w.stop - w.start == length]
                    self._runs.append(self._plan(group, direction))

    def __call__(self) -> Tensor:
        """The sum; only its gradient means anything, not its value."""
        call = self._call
        total = call.initial[0].new_zeros(())
        for runs in self._runs:
            states = [call.initial if s is None else s for s in runs.states]
            hx = tuple(torch.cat(part, dim=1) for part in zip(*states, strict=True))
            y, final = call.run(torch.cat([call.x[s] for s in runs.steps], 1), hx)
            total = total + (runs.weights_y * y).sum()
            for part, weights in zip(final, runs.weights_final, strict=True):
                total = total + (weights * part).sum()
        return total

    def _plan(self, group: list[Window], direction: int) -> _Runs:
        call = self._call
        weights_y = call.weights_y[direction]
        weights_final = call.weights_final[direction]

        def steps(start: int, stop: int) -> slice:
            return call.steps(start, stop, direction)

        states, scores, finals = [], [], []
        for window in group:
            before = steps(0, window.start)
            states.append(
                call.run(call.x[before], call.initial)[1] if window.start else None
            )
            score = torch.zeros_like(weights_y)
            scored = steps(window.scored, window.stop)
            score[scored] = weights_y[scored]
            scores.append(score[steps(window.start, window.stop)])
            at_end = window.stop == call.time
            finals.append(
                tuple(w if at_end else torch.zeros_like(w) for w in weights_final)
            )
        return _Runs(
            steps=[steps(window.start, window.stop) for window in group],
            states=states,
            weights_y=torch.cat(scores, dim=1),
            weights_final=tuple(
                torch.cat(part, dim=1) for part in zip(*finals, strict=True)
            ),
        )


def _of_direction(
    direction: int, weights_y: Tensor, weights_final: Parts
) -> tuple[Tensor, Parts]:
    """The weights with those of the other direction set to zero."""
    half = weights_y.shape[-1] // 2
    own = torch.zeros_like(weights_y)
    columns = slice(direction * half, (direction + 1) * half)
    own[..., columns] = weights_y[..., columns]
    finals = []
    for part in weights_final:
        final = torch.zeros_like(part)
        final[direction] = part[direction]
        finals.append(final)
    return own, tuple(finals)
