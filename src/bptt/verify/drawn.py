"""The function whose gradient that of one draw of a random truncation is.

Between two pieces the state is `s_0 + f (s - s_0)`, with `s_0` what it is at first,
held fixed, and `f` the factor that was drawn: so it has its value, and `f` times its
derivative. Forward runs alone; nothing here calls a gate or a backward pass of `bptt`.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from bptt import pieces
from bptt.modules.base import ThroughTime
from bptt.random_truncation import RandomTruncation
from bptt.verify.literal import Call, Parts


class DrawnObjective:
    """The scores of all outputs, at the tensors' present values.

    Draws as the module does in its next call, if the global generator is where it was
    before that.

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
        truncation = module.truncation
        assert isinstance(truncation, RandomTruncation)
        with torch.no_grad():
            self._call = call = Call.of(module, x, hx, weights)
            between = truncation.boundaries(call.time)
            self._pieces = list(zip((0, *between), (*between, call.time), strict=True))
            directions = range(len(call.weights_y))
            batch = call.x.shape[1]
            self._factors = [
                pieces.draw(truncation, len(between), batch).to(call.weights_y[0])
                for _ in directions
            ]
            self._fixed: list[list[Parts]] = [[] for _ in directions]
            self()

    def __call__(self) -> Tensor:
        """The sum; only its gradient at the first values means anything elsewhere."""
        call = self._call
        total = call.initial[0].new_zeros(())
        for direction, weights_y in enumerate(call.weights_y):
            state = call.initial
            for at, (start, stop) in enumerate(self._pieces):
                if at:
                    state = self._let_through(state, direction, at - 1)
                steps = call.steps(start, stop, direction)
                y, state = call.run(call.x[steps], state)
                total = total + (weights_y[steps] * y).sum()
            for part, weights in zip(state, call.weights_final[direction], strict=True):
                total = total + (weights * part).sum()
        return total

    def _let_through(self, state: Parts, direction: int, boundary: int) -> Parts:
        fixed = self._fixed[direction]
        if len(fixed) == boundary:  # the first time
            fixed.append(tuple(part.clone() for part in state))
        factors = self._factors[direction][boundary].unsqueeze(1)
        return tuple(
            base + factors * (part - base)
            for base, part in zip(fixed[boundary], state, strict=True)
        )
