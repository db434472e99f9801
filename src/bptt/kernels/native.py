"""`through_time.forward` and `backward` by the native core, on tensors.

The core takes addresses, so everything that makes an address right is checked here:
exact tensors (no subclass, no wrapper of a transform), float32, CPU, contiguous.
"""

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
    layers: Sequence[Layer],
    x: Tensor,
    initial: Sequence[State],
    masks: Sequence[Tensor],
    *,
    keep: bool = True,
) -> list[Tape]:
    """`through_time.forward`; the tapes are for this module's `backward` alone.

    Args:
        layers: as there.
        x: as there.
        initial: as there.
        masks: as there.
        keep: whether to keep what `backward` needs. Without, a state's parts other
            than h have only their last entry.
    """
    tapes: list[Tape] = []
    for index, (layer, state) in enumerate(zip(layers, initial, strict=True)):
        if index:
            x = _input_above(tapes[index - 1], index - 1, masks)
        tapes.append(_scan(layer, x.contiguous(), state, keep=keep))
    return tapes


def backward(
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
    time = dy.shape[0]
    gradients: list[LayerGradients] = []
    if truncation.is_full_over(time):
        truncation = Truncation.full()  # the same in one pass
        groups = [[index] for index in range(len(layers))]
    else:
        groups = [list(range(len(layers)))]
    dx: Tensor | None = None
    for group in reversed(groups):
        bottom, top = group[0], group[-1] + 1
        deltas, dstates = _sweep(
            layers[bottom:top],
            masks[bottom : top - 1],
            tapes[bottom:top],
            dy.contiguous(),
            dfinal[bottom:top],
            truncation,
        )
        for index in reversed(group):
            inputs = _input_above(tapes[index - 1], index - 1, masks) if index else x
            at = index - bottom
            dx, gradient = _gradients(
                layers[index],
                inputs.contiguous(),
                tapes[index],
                deltas[at],
                dstates[at],
                needs_dx=needs_dx if index == 0 else index == bottom,
            )
            gradients.append(gradient)
        if bottom:
            assert dx is not None
            dy = dx.mul_(masks[bottom - 1]) if masks else dx
    return dx, gradients[::-1]


def _array(t: Tensor) -> _Array:
    return t.data_ptr(), t.numel()


def _maybe(t: Tensor | None) -> _Array | None:
    return None if t is None else (t.data_ptr(), t.numel())


def _input_above(tape: Tape, index: int, masks: Sequence[Tensor]) -> Tensor:
    y = tape.states[0][1:]
    return y * masks[index] if masks else y


def _contiguous(t: Tensor | None) -> Tensor | None:
    return None if t is None else t.contiguous()


def _scan(layer: Layer, x: Tensor, state: State, *, keep: bool) -> Tape:
    time, batch = x.shape[:2]
    gates, hidden = layer.W.shape
    U, W = layer.U.contiguous(), layer.W.contiguous()
    b_ih, b_hh = _contiguous(layer.b_ih), _contiguous(layer.b_hh)
    h = W.new_empty(time + 1, batch, hidden)
    h[0] = state[0]
    c: Tensor | None = None
    if len(state) > 1:
        if keep:
            c = torch.empty_like(h)
            c[0] = state[1]
        else:
            c = state[1].clone(memory_format=torch.contiguous_format)
    kept: tuple[Tensor, ...] = ()
    if keep and gates > hidden:
        kept = W.new_empty(time, batch, gates), W.new_empty(time, batch, hidden)
    is_float = x.is_floating_point()
    _native.forward(
        choice.active(),
        torch.get_num_threads(),
        _CELLS[type(layer.cell)],
        (time, batch, U.shape[1], hidden),
        _array(x) if is_float else None,
        None if is_float else _array(x),
        _array(U),
        _array(W),
        _maybe(b_ih),
        _maybe(b_hh),
        _array(h),
        _maybe(c),
        _array(kept[0]) if kept else None,
        _array(kept[1]) if kept else None,
        keep,
    )
    return Tape((h,) if c is None else (h, c if keep else c.unsqueeze(0)), kept)


def _sweep(
    layers: Sequence[Layer],
    masks: Sequence[Tensor],
    tapes: Sequence[Tape],
    dy: Tensor,
    dfinal: Sequence[Sequence[Tensor | None]],
    truncation: Truncation,
) -> tuple[list[Tensor], list[State]]:
    """All passes back through a stack; the layout of delta is the core's."""
    time, batch, hidden = dy.shape
    k1 = time if truncation.k1 is None else truncation.k1
    k2 = time if truncation.k2 is None else truncation.k2
    gates = layers[0].W.shape[0]
    width = 4 * hidden if gates == 3 * hidden else gates
    # Where every step is visited by one pass alone, all of it is written.
    fresh = dy.new_empty if k1 == k2 else dy.new_zeros
    deltas = [fresh(time, batch, width) for _ in layers]
    dstates = [tuple(dy.new_zeros(batch, hidden) for _ in t.states) for t in tapes]
    given = []
    alive: list[Tensor] = []  # until the call returns

    def array(t: Tensor | None) -> _Array | None:
        if t is None:
            return None
        t = t.contiguous()
        alive.append(t)
        return _array(t)

    def second(parts: Sequence[Tensor | None]) -> Tensor | None:
        return parts[1] if len(parts) > 1 else None

    for index, (layer, tape) in enumerate(zip(layers, tapes, strict=True)):
        W = array(layer.W)
        assert W is not None
        given.append(
            (
                W,
                array(layer.U) if index else None,
                _array(tape.states[0]),
                _maybe(second(tape.states)),
                _array(tape.kept[0]) if tape.kept else None,
                _array(tape.kept[1]) if tape.kept else None,
                array(masks[index]) if index < len(masks) else None,
                array(dfinal[index][0]),
                array(second(dfinal[index])),
                _array(deltas[index]),
                _array(dstates[index][0]),
                _maybe(second(dstates[index])),
            )
        )
    _native.backward(
        choice.active(),
        torch.get_num_threads(),
        _CELLS[type(layers[0].cell)],
        (time, batch, hidden),
        (k1, k2),
        _array(dy),
        given,
    )
    return deltas, dstates


def _gradients(
    layer: Layer, x: Tensor, tape: Tape, delta: Tensor, dstate: State, *, needs_dx: bool
) -> tuple[Tensor | None, LayerGradients]:
    time, batch = x.shape[:2]
    gates, hidden = layer.W.shape
    U = layer.U.contiguous()
    dU = delta.new_empty(U.shape)
    dW = delta.new_empty(gates, hidden)
    db_ih = db_hh = None
    if layer.b_ih is not None:
        db_ih, db_hh = delta.new_empty(gates), delta.new_empty(gates)
    is_float = x.is_floating_point()
    dx = torch.empty_like(x) if needs_dx else None
    _native.gradients(
        choice.active(),
        torch.get_num_threads(),
        _CELLS[type(layer.cell)],
        (time, batch, U.shape[1], hidden),
        _array(delta),
        _array(x) if is_float else None,
        None if is_float else _array(x),
        _array(U),
        _array(tape.states[0]),
        _array(dU),
        _array(dW),
        _maybe(db_ih),
        _maybe(db_hh),
        _maybe(dx),
    )
    return dx, LayerGradients(dU, dW, db_ih, db_hh, dstate)
