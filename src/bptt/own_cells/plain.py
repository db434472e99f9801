"""Full BPTT through any cell: a loop that autograd differentiates."""

import torch
from torch import Tensor

from bptt.cells.contract import SplitCell
from bptt.cells.nest import Leaves
from bptt.own_cells.caller import Caller
from bptt.own_cells.scan import Pace, scan


def run(
    caller: Caller, x: Tensor, initial: Leaves, pace: Pace
) -> tuple[Tensor, Leaves]:
    """Outputs, as `x` packed or (time, batch, ...), and the final state's leaves."""
    gx = projected(caller.cell, x, ragged=pace.ragged)
    ys, final = scan(caller, pace.steps(gx), initial, pace)
    return pace.sequence(ys), final


def projected(cell: torch.nn.Module, x: Tensor, *, ragged: bool) -> Tensor:
    """What a split cell makes of the input of all steps at once; else the input."""
    if not isinstance(cell, SplitCell):
        return x
    if ragged:
        return cell.project(x)
    gx = cell.project(x.reshape(x.shape[0] * x.shape[1], *x.shape[2:]))
    return gx.reshape(*x.shape[:2], *gx.shape[1:])
