"""`through_time.forward` and `backward` by the native core, on tensors.

The core takes addresses, so everything that makes an address right is checked here:
exact tensors (no subclass, no wrapper of a transform), float32, CPU, contiguous.

What the core keeps of a layer for the way back is h (time + 1, batch, state) and, for
the gated cells, a tape in a layout of the kernel's own. A `Tape` here has h as its
state and that tape as what is kept.
"""

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from bptt.cells import Cell, GRUCell, LSTMCell, ReLUCell, Tape, TanhCell
from bptt.cells.base import State
from bptt.kernels import choice
from bptt.kernels.choice import _native
from bptt.through_time import Layer, LayerGradients
from bptt.truncation import Truncation

_CELLS: dict[type[Cell], int] = {TanhCell: 0, ReLUCell: 1, GRUCell: 2, LSTMCell: 3}
_EXACT = (Tensor, torch.nn.Parameter)
_LARGE = 1 << 18  # elements; below, an allocation costs less than the call
_Array = tuple[int, int]


def applies(
    layers: Sequence[Layer], x: Tensor, tensors: Iterable[Tensor | None]
) -> bool:
    """Whether the core can run these layers on these tensors.

    Args:
        layers: whose cells must be the core's.
        x: float32, or int64 ids.
        tensors: all others: float32, or None.
    """
    if choice.active() == choice.TORCH or torch._C._len_torch_dispatch_stack():
        return False
    if type(layers[0].cell) not in _CELLS or not x.numel():
        return False
    if x.dtype != torch.int64:
        tensors = (x, *tensors)
    elif type(x) not in _EXACT or not x.is_cpu:
        return False
    for t in tensors:
        if t is not None and not (
            type(t) in _EXACT
            and t.dtype == torch.float32
            and t.is_cpu
            and t.layout == torch.strided
            and not t.is_neg()
            and not t._is_zerotensor()
        ):
            return False
    return True


def forward(
    kernel: str,
    layers: Sequence[Layer],
    x: Tensor,
    initial: Sequence[State],
    masks: Sequence[Tensor],
    *,
    keep: bool,
) -> tuple[Tensor, list[State], list[Tape]]:
    """`through_time.forward`, by the kernel of this name.

    Args:
        kernel: that also runs `backward`: tapes differ between kernels.
        layers: as there.
        x: as there.
        initial: as there.
        masks: as there.
        keep: whether to keep tapes for `backward`.

    Returns:
        The outputs of the top layer, each layer's final state, and the tapes, which
        share no memory with the others if they are kept.
    """
    tapes: list[Tape] = []
    final: list[State] = []
    y: Tensor | None = None
    top = len(layers) - 1
    for index, (layer, state) in enumerate(zip(layers, initial, strict=True)):
        if index:
            x = _input_above(tapes[index - 1], index - 1, masks)
        if keep and index == top:
            y = _empty(*x.shape[:2], layer.W.shape[1])
        tape, end = _scan(kernel, layer, x.contiguous(), state, y, keep=keep)
        tapes.append(tape)
        final.append(end)
    return (tapes[-1].states[0][1:] if y is None else y), final, tapes


def backward(
    kernel: str,
    layers: Sequence[Layer],
    x: Tensor,
    masks: Sequence[Tensor],
    tapes: Sequence[Tape],
    dy: Tensor,
    dfinal: Sequence[Sequence[Tensor | None]],
    truncation: Truncation,
    *,
    needs_dx: bool,
) -> tuple[Tensor | None, list[LayerGradients]]:
    """`through_time.backward`; parts of `dfinal` may be None, for zeros."""
    time, batch, hidden = dy.shape
    full = truncation.is_full_over(time)
    sizes = (time, batch, hidden)
    threads = torch.get_num_threads()
    cell = _CELLS[type(layers[0].cell)]
    alive: list[Tensor] = []  # what addresses point to, until the calls return

    def array(t: Tensor) -> _Array:
        t = t.contiguous()
        alive.append(t)
        return t.data_ptr(), t.numel()

    def maybe(t: Tensor | None) -> _Array | None:
        return None if t is None else array(t)

    results: list[LayerGradients] = []

    def outputs(index: int, needs: bool) -> tuple[Tensor | None, tuple]:  # type: ignore[type-arg]
        """New tensors for a layer's gradients, and what the core makes them from."""
        layer = layers[index]
        above = _input_above(tapes[index - 1], index - 1, masks) if index else x
        dx = _empty(*above.shape) if needs else None
        has_bias = layer.b_ih is not None
        gates = layer.W.shape[0]
        results.append(
            LayerGradients(
                dU=_empty(*layer.U.shape),
                dW=_empty(*layer.W.shape),
                db_ih=_empty(gates) if has_bias else None,
                db_hh=_empty(gates) if has_bias else None,
                dstate=dstates[index],
            )
        )
        new = results[-1]
        is_float = above.is_floating_point()
        return dx, (
            layer.U.shape[1],
            array(above) if is_float else None,
            None if is_float else array(above),
            array(layer.U),
            array(new.dU),
            array(new.dW),
            maybe(new.db_ih),
            maybe(new.db_hh),
            maybe(dx),
        )

    def given(index: int, delta: Tensor | None, *, in_stack: bool) -> tuple:  # type: ignore[type-arg]
        layer, tape, ends = layers[index], tapes[index], dfinal[index]
        return (
            array(layer.W),
            array(layer.U) if in_stack and index else None,
            array(tape.states[0]),
            array(tape.kept[0]) if tape.kept else None,
            array(masks[index]) if in_stack and index < len(masks) else None,
            maybe(ends[0]),
            maybe(ends[1]) if len(ends) > 1 else None,
            maybe(delta),
            array(dstates[index][0]),
            array(dstates[index][1]) if len(ends) > 1 else None,
        )

    dstates = [tuple(dy.new_zeros(batch, hidden) for _ in ends) for ends in dfinal]
    dx: Tensor | None = None
    if full:  # layer by layer, from the top
        for index in range(len(layers) - 1, -1, -1):
            dx, gradients = outputs(index, needs_dx or index > 0)
            layer = given(index, None, in_stack=False)
            _native.backward(
                kernel, threads, cell, sizes, None, array(dy), [layer], gradients
            )
            if index:
                assert dx is not None
                dy = dx.mul_(masks[index - 1]) if masks else dx
    else:  # all layers together, pass by pass
        assert truncation.k1 is not None
        assert truncation.k2 is not None
        gates = layers[0].W.shape[0]
        width = 4 * hidden if gates == 3 * hidden else gates
        # Where every step is visited by one pass alone, all of it is written.
        fresh = _empty if truncation.k1 == truncation.k2 else dy.new_zeros
        deltas = [fresh(time, batch, width) for _ in layers]
        stack = [given(i, delta, in_stack=True) for i, delta in enumerate(deltas)]
        passes = (truncation.k1, truncation.k2)
        _native.backward(kernel, threads, cell, sizes, passes, array(dy), stack, None)
        for index in range(len(layers) - 1, -1, -1):
            dx, gradients = outputs(index, needs_dx and index == 0)
            h = array(tapes[index].states[0])
            delta = array(deltas[index])
            _native.gradients(kernel, threads, cell, sizes, delta, h, gradients)
    return dx, results[::-1]


def _empty(*shape: int) -> Tensor:
    """Uninitialised float32 on the CPU; large tensors from memory that is used again."""
    elements = math.prod(shape)
    if elements < _LARGE:
        return torch.empty(shape, dtype=torch.float32, device="cpu")
    return _native.empty(elements).view(shape)


def _input_above(tape: Tape, index: int, masks: Sequence[Tensor]) -> Tensor:
    y = tape.states[0][1:]
    return y * masks[index] if masks else y


def _scan(
    kernel: str, layer: Layer, x: Tensor, state: State, y: Tensor | None, *, keep: bool
) -> tuple[Tape, State]:
    """One layer forward; its outputs also to `y`, if given."""
    time, batch = x.shape[:2]
    hidden = layer.W.shape[1]
    cell = _CELLS[type(layer.cell)]
    U, W = layer.U.contiguous(), layer.W.contiguous()
    b_ih, b_hh = layer.b_ih, layer.b_hh
    if b_ih is not None and b_hh is not None:
        b_ih, b_hh = b_ih.contiguous(), b_hh.contiguous()
    h = _empty(time + 1, batch, hidden)
    h[0] = state[0]
    c = state[1].clone(memory_format=torch.contiguous_format) if state[1:] else None
    tape: Tensor | None = None
    if keep and cell > 1:
        tape = _empty(_native.tape_floats(kernel, cell, (time, batch, hidden)))
    is_float = x.is_floating_point()
    _native.forward(
        kernel,
        torch.get_num_threads(),
        cell,
        (time, batch, U.shape[1], hidden),
        (x.data_ptr(), x.numel()) if is_float else None,
        None if is_float else (x.data_ptr(), x.numel()),
        (U.data_ptr(), U.numel()),
        (W.data_ptr(), W.numel()),
        None if b_ih is None else (b_ih.data_ptr(), b_ih.numel()),
        None if b_hh is None else (b_hh.data_ptr(), b_hh.numel()),
        (h.data_ptr(), h.numel()),
        None if y is None else (y.data_ptr(), y.numel()),
        None if c is None else (c.data_ptr(), c.numel()),
        None if tape is None else (tape.data_ptr(), tape.numel()),
    )
    end = h[time].clone() if keep else h[time]
    return Tape((h,), () if tape is None else (tape,)), (
        (end,) if c is None else (end, c)
    )
