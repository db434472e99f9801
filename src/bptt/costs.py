"""What the kernels keep of a step, so that a budget can be planned with.

Counted, not measured, in numbers for a step and a row.
"""

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from bptt.kernels import choice, native
from bptt.masks import PackedMask
from bptt.memory import Budget, Costs, Plan, plan
from bptt.rows import Rows
from bptt.through_time import Layer
from bptt.truncation import Truncation

_plan = lru_cache(maxsize=64)(plan)


def plan_for(
    kernel: str,
    layers: Sequence[Layer],
    x: Tensor,
    masks: Sequence[PackedMask],
    truncation: Truncation,
    rows: Rows,
    budget: Budget,
) -> Plan | None:
    """How to keep to the budget, or None where all that there is to keep fits.

    Raises:
        ValueError: the budget is smaller than anything that can be kept.
    """
    inputs = x.shape[-1] if x.is_floating_point() else 0
    inputs = max(inputs, budget.widest_input)
    costs = costs_of(kernel, layers, inputs, len(masks), truncation, rows)
    found = _plan(rows.time, truncation, costs, budget)
    return found if found.levels else None


def costs_of(
    kernel: str,
    layers: Sequence[Layer],
    inputs: int,
    masks: int,
    truncation: Truncation,
    rows: Rows,
) -> Costs:
    """What the kernel keeps, counted for the case that everything is asked for.

    That is beside inputs, weights and outputs, and their gradients; and what has the
    size of a layer's weights, whatever the sequence, is not counted.
    """
    weight = layers[0].W
    hidden, depth = weight.shape[1], len(layers)
    if kernel == choice.TORCH:
        width, lag_width = _defined_widths(
            layers, inputs, bool(masks), truncation, rows
        )
    else:
        width, lag_width = _native_widths(
            kernel, layers, inputs, bool(masks), truncation, rows
        )
    passes = 1 if truncation.k1 is None else truncation.k1
    row = rows.batch * weight.element_size()
    parts = layers[0].cell.state_parts
    state = depth * parts * hidden * row
    return Costs(
        step_bytes=row * (width + -(-lag_width // passes)),
        state_bytes=state,
        # The running state and error, those of a block, and the entry before a tape's.
        fixed_bytes=6 * state
        + masks * -(-hidden // 8) * rows.time * rows.batch
        + (lag_width * row),
    )


def _native_widths(
    kernel: str,
    layers: Sequence[Layer],
    inputs: int,
    masked: bool,
    truncation: Truncation,
    rows: Rows,
) -> tuple[int, int]:
    """Floats for a step and row of a block, and for a pass and row."""
    cell, hidden = layers[0].cell, layers[0].W.shape[1]
    depth = len(layers)
    tape = native.tape_width(kernel, cell, hidden)
    width = depth * (hidden + tape)  # h, and the tape
    width += 2 * hidden  # the outputs; their errors, where they must be copied
    width += inputs  # of x or of dx, likewise
    if depth > 1:
        width += 2 * hidden  # errors between layers
    if masked:
        width += (depth + 1) * hidden  # the masks, and an input that is masked
    # Later blocks of ragged rows may have too few of them to go back step by step.
    is_stepwise = not rows.is_ragged and native.chunk_of(truncation, rows) is not None
    if truncation.is_full or is_stepwise:  # then no layer's deltas are kept
        return width, 0
    blocks = 4 if cell.gates == 3 else cell.gates
    return width + depth * blocks * hidden, depth * (2 * blocks + 1) * (hidden + 16)


def _defined_widths(
    layers: Sequence[Layer],
    inputs: int,
    masked: bool,
    truncation: Truncation,
    rows: Rows,
) -> tuple[int, int]:
    """Numbers for a step and row of a block, and for a pass and row."""
    cell, hidden = layers[0].cell, layers[0].W.shape[1]
    depth = len(layers)
    state = cell.state_parts * hidden
    with torch.no_grad():  # a step of no rows shows what a step keeps
        none = layers[0].W.new_empty(0, cell.gates * hidden)
        before = tuple(none[:, :hidden] for _ in range(cell.state_parts))
        bias = layers[0].b_hh
        _, kept = cell.step(none, before, layers[0].W, bias)
    tape = state + sum(part.shape[1] for part in kept)
    gates = cell.gates * hidden
    width = depth * tape
    if masked:
        width += depth * hidden
    # Forward: the steps of a layer before they are stacked, its pre-activations.
    # Backward: the deltas and their products, what is cut or padded.
    forward = tape + gates + hidden
    padded = 2 * (inputs + hidden) if rows.is_ragged else 0
    back = 2 * gates + 2 * hidden + inputs
    if rows.is_ragged or rows.resets is not None:
        back += 2 * state
    width += max(forward, back + (0 if truncation.is_full else depth * gates)) + padded
    return width, 0 if truncation.is_full else depth * 3 * state + 4 * gates
