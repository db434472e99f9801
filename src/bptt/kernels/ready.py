"""The shortest way to the native core, for what needs no more than a look to be fit.

In a step of a small network what surrounds the core counts: generating a token may take
10 us. What is refused here goes the long way, through `native`.
"""

from collections.abc import Sequence
from contextlib import suppress
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from bptt.cells import Cell, Tape
from bptt.cells.base import State
from bptt.kernels import choice, native
from bptt.rows import Rows

with suppress(ImportError):  # where it is not installed, nothing is found fit
    from bptt.kernels import _native


class Ready(NamedTuple):
    """A batch that has been found fit for the core, as the core takes it."""

    kernel: str
    kind: int
    sizes: tuple[int, int, int, int]  # time, batch, inputs, hidden
    rows: Rows | None  # if ragged
    y_shape: tuple[int, ...]
    initial: State
    from_zeros: bool  # whether nobody gave it
    W: Tensor
    tensors: list[Tensor]  # x, the initial state and each layer's weights
    biased: bool
    is_float: bool


def prepare(
    cell: Cell,
    weights: Sequence[Sequence[Tensor]],
    x: Tensor,
    initial: Sequence[Tensor] | None,
    rows: Rows | None = None,
) -> Ready | None:
    """What `run` needs, at the least cost a call: a step may take 10 us.

    Args:
        cell: of every layer.
        weights: of each layer, U, W and, if there are biases, b_ih, b_hh.
        x: (time, batch, input) floats or (time, batch) ids, for one sequence without
            the batch axis.
        initial: the state before the first step, parts (layers[, batch], state); None
            for zeros.
        rows: of a batch of floats that is ragged and padded, as `x` has its axes; the
            state is in their order.

    Returns:
        None where the core does not apply or something is wrong with an argument.
    """
    kind = native._CELLS.get(type(cell))
    is_float = x.dtype is torch.float32
    axes = x.dim() - is_float
    U, W = weights[0][:2]
    parts = 2 if kind == 3 else 1
    kernel = choice.active()
    if (
        kind is None
        or kernel == choice.TORCH
        or not 1 <= axes <= 2
        or not (is_float or x.dtype is torch.int64)
        or native._is_transformed()
        or torch.autograd.forward_ad._current_level >= 0
        or (initial is not None and len(initial) != parts)
    ):
        return None
    shape = tuple(x.shape)
    time, batch = shape[0], shape[1] if axes == 2 else 1
    if rows is not None:
        time, batch = rows.time, rows.batch
    inputs, hidden = U.shape[1], W.shape[1]
    state_shape = (len(weights), batch, hidden) if axes == 2 else (len(weights), hidden)
    if time * batch == 0 or (is_float and shape[-1] != inputs):
        return None
    from_zeros = initial is None
    if initial is None:
        initial = (_zeros(state_shape),) * parts
    for part in initial:
        if part.shape != state_shape:
            return None
    tensors = [x, *initial]
    for layer in weights:
        tensors += layer
    if not native.are_fit(tensors):
        return None
    return Ready(
        kernel,
        kind,
        (time, batch, inputs, hidden),
        rows,
        (*shape[:axes], hidden),
        tuple(initial),
        from_zeros,
        W,
        tensors,
        len(weights[0]) > 2,
        is_float,
    )


def run(prepared: Ready, *, keep: bool) -> tuple[Tensor, State, list[Tape]]:
    """`native.forward` of it; without a batch axis if x has none.

    Raises:
        ValueError, IndexError: of sizes and ids.
    """
    kernel, kind, sizes, rows, y_shape, initial, _, W, given, biased, is_float = (
        prepared
    )
    parts = len(initial)
    first, each = 1 + parts, 4 if biased else 2
    no_bias = () if biased else (None, None)
    y = native._empty(W, *y_shape)
    final = tuple([torch.empty_like(part) for part in initial])
    tapes: list[Tape] = []
    if keep:
        time, batch, _, _ = sizes
        steps = time * batch if rows is None else rows.steps[0]
        layers = (len(given) - first) // each
        tapes = native._new_tapes(kernel, kind, layers, steps, batch, W)
    _native.forward(
        kernel,
        torch.get_num_threads(),
        kind,
        sizes,
        (None, None) if rows is None else (rows.offsets, None),
        None if rows is None else native._padded(rows),
        given[0] if is_float else None,
        None if is_float else given[0],
        [(*given[at : at + each], *no_bias) for at in range(first, len(given), each)],
        [],
        given[1],
        given[2] if parts == 2 else None,
        y,
        final[0],
        final[1] if parts == 2 else None,
        [native._of_tape(tape) for tape in tapes],
    )
    return y, final, tapes


def run_back(
    kernel: str,
    cell: Cell,
    rows: Rows,
    chunk: int,
    saved: Sequence[Tensor | None],
    dy: Tensor,
    dfinal: Sequence[Tensor | None],
    *,
    needs_dx: bool,
) -> tuple[Tensor | None, ...] | None:
    """`native.backward` of one layer, step by step and without the state's error.

    Args:
        kernel: that ran forward.
        cell: the layer's.
        rows: as there.
        chunk: `native.chunk_of` them.
        saved: x, U, W, b_ih, b_hh, whatever follows those, and last what was kept: h
            and, for a gated cell, the tape.
        dy: as there.
        dfinal: as there.
        needs_dx: as there.

    Returns:
        dx, dU, dW, db_ih, db_hh; None where it takes the long way.
    """
    kind = native._CELLS[type(cell)]
    x, U, W, b_ih, b_hh = saved[:5]
    h, tape = saved[-2:] if kind > 1 else (saved[-1], None)
    assert x is not None
    assert U is not None
    assert W is not None
    assert h is not None
    given = [t for t in (x, *saved[1:5], h, tape, dy, *dfinal) if t is not None]
    if not native.are_fit(given):
        return None
    is_float = x.dtype is torch.float32
    dU, dW = torch.empty_like(U), torch.empty_like(W)
    db_ih = None if b_ih is None else torch.empty_like(b_ih)
    db_hh = None if b_hh is None else torch.empty_like(b_hh)
    dx = native._empty(dy, *x.shape) if needs_dx else None
    padded = None if rows.padding is None else native._padded(rows)
    # As `native` gives a layer and what is wanted, which asks again at 5 us what
    # `are_fit` has answered.
    dh_end, dc_end = dfinal if kind == 3 else (dfinal[0], None)
    layer = (W, None, h, tape, None, dh_end, dc_end, None, None, None)
    _native.backward(
        kernel,
        torch.get_num_threads(),
        kind,
        (rows.time, rows.batch, W.shape[1]),
        (rows.offsets if rows.is_ragged else None, None),
        padded,
        padded,
        None,
        chunk,
        dy,
        [layer],
        (
            U.shape[1],
            x if is_float else None,
            None if is_float else x,
            U,
            dU,
            dW,
            db_ih,
            db_hh,
            dx,
        ),
    )
    return dx, dU, dW, db_ih, db_hh


@lru_cache(maxsize=8)
def _zeros(shape: tuple[int, ...]) -> Tensor:
    """An initial state, which nobody writes to."""
    with torch.inference_mode(mode=False):  # else it could not be kept for a backward
        return torch.zeros(shape, dtype=torch.float32, device="cpu")
