"""Full BPTT through any cell: a loop that autograd differentiates.

With a length of segments, only the states between segments are kept, and the steps of a
segment run again on the way back, with the same random numbers.
"""

from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from bptt.cells.contract import SplitCell
from bptt.cells.nest import Leaves
from bptt.own_cells.caller import Caller
from bptt.own_cells.scan import Pace, scan


def run(
    caller: Caller, x: Tensor, initial: Leaves, pace: Pace, segment_steps: int | None
) -> tuple[Tensor, Leaves]:
    """Outputs, as `x` packed or (time, batch, ...), and the final state's leaves."""
    time = len(pace.sizes)
    if segment_steps is None or segment_steps >= time or not torch.is_grad_enabled():
        ys, final = _steps(caller, x, initial, pace)
        return pace.sequence(ys), final
    outputs: list[Tensor] = []
    ended: list[Leaves] = []
    state = initial
    for start in range(0, time, segment_steps):
        part = pace.part(start, min(start + segment_steps, time))
        size = part.sizes[0]
        if size < state[0].shape[0]:
            ended.append(tuple(leaf[size:] for leaf in state))
            state = tuple(leaf[:size] for leaf in state)
        ys, state = _again(
            caller, pace.between(x, start, start + len(part.sizes)), state, part
        )
        outputs += ys
    return pace.sequence(outputs), _joined(ended, state)


def _again(
    caller: Caller, x: Tensor, state: Leaves, pace: Pace
) -> tuple[list[Tensor], Leaves]:
    """A segment whose steps run again on the way back."""

    def segment(x: Tensor, *state: Tensor) -> Any:
        ys, final = _steps(caller, x, state, pace)
        return ys, final

    found: tuple[list[Tensor], Leaves] = checkpoint(
        segment, x, *state, use_reentrant=False
    )
    return found


def _steps(
    caller: Caller, x: Tensor, initial: Leaves, pace: Pace
) -> tuple[list[Tensor], Leaves]:
    gx = projected(caller.cell, x, ragged=pace.ragged)
    return scan(caller, pace.steps(gx), initial, pace)


def projected(cell: torch.nn.Module, x: Tensor, *, ragged: bool) -> Tensor:
    """What a split cell makes of the input of all steps at once; else the input."""
    if not isinstance(cell, SplitCell):
        return x
    if ragged:
        return cell.project(x)
    gx = cell.project(x.reshape(x.shape[0] * x.shape[1], *x.shape[2:]))
    return gx.reshape(*x.shape[:2], *gx.shape[1:])


def _joined(ended: list[Leaves], state: Leaves) -> Leaves:
    """The final state of all rows, from the shorter ones' and the longest ones'."""
    if not ended:
        return state
    parts = zip(*reversed([*ended, state]), strict=True)
    return tuple(torch.cat(part) for part in parts)
