"""Which loop a user's cell runs in, and what that keeps for the way back.

- A `DifferentiableCell` brings its derivative: `derived`, for any truncation.
- Full BPTT of any other cell: `plain`, a loop under autograd.
- A truncation, or steps that are run again: `cut`, back from kept states.
"""

import torch
from torch import Tensor

from bptt.cells.contract import DifferentiableCell
from bptt.cells.nest import Leaves, Nest
from bptt.outside import eager, inside_transform
from bptt.own_cells import cut, derived, plain
from bptt.own_cells.caller import Autocast, Caller
from bptt.own_cells.scan import Pace
from bptt.rows import Rows
from bptt.truncation import Truncation


@eager
def run(
    cell: torch.nn.Module,
    nest: Nest,
    x: Tensor,
    initial: Leaves,
    truncation: Truncation,
    rows: Rows,
    *,
    segment_steps: int | None = None,
) -> tuple[Tensor, Leaves]:
    """A cell over a sequence, differentiable as the truncation says.

    Args:
        cell: `(x, state) -> (y, state)`, row by row.
        nest: how it has its state.
        x: (time, batch, ...), packed (steps, ...) if `rows` are ragged. time >= 1.
        initial: the state before the first step, leaves (batch, ...).
        truncation: which errors go how far back.
        rows: which steps the rows have, and where they are reset.
        segment_steps: keep the state every so many steps alone, and run the steps
            between again on the way back; None keeps what all steps need.

    Returns:
        Outputs (time, batch, ...), packed if `rows` are ragged, and the final state's
        leaves.

    Raises:
        TypeError, ValueError, RuntimeError: the cell breaks its contract.
        NotImplementedError: a truncation that cuts, inside a `torch.func` transform or
            forward-mode differentiation.
    """
    full = truncation.is_full_over(rows.time)
    transformed = inside_transform()
    if transformed and not full:
        raise NotImplementedError(
            f"{truncation} has no meaning inside torch.func transforms or forward-mode "
            "differentiation, which differentiate the whole sequence; set the module's "
            "truncation to None there"
        )
    if isinstance(cell, DifferentiableCell) and Autocast.now(x.device).enabled:
        # The recurrence stays in the precision of its state.
        with torch.autocast(x.device.type, enabled=False):
            return run(
                cell,
                nest,
                x.to(initial[0].dtype) if x.is_floating_point() else x,
                initial,
                truncation,
                rows,
                segment_steps=segment_steps,
            )
    pace = Pace.of(rows, x.device)
    caller = Caller(cell, nest)
    differentiated = torch.is_grad_enabled() and not transformed
    if isinstance(cell, DifferentiableCell) and segment_steps is None:
        weights = len(cell.weights())
        plan = derived.Plan(cell, truncation, rows, pace, weights)
        gx = plain.projected(cell, x, ragged=pace.ragged)
        way = derived.run if differentiated else derived.without_tape
        return way(plan, gx, initial)
    if not differentiated or (full and segment_steps is None):
        return plain.run(caller, x, initial, pace)
    if segment_steps is None:
        gx = plain.projected(cell, x, ragged=pace.ragged)
    else:  # what all steps are projected to would be kept
        gx, caller = x, Caller(cell, nest, whole=True)
    names = tuple(caller.parameters())
    return cut.run(
        cut.Plan(caller, truncation, rows, pace, names, segment_steps),
        gx,
        initial,
    )
