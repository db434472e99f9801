"""`through_time.forward` and `backward` by the native core, on tensors.

The core reads a tensor's memory, so everything that makes that right is checked here:
exact tensors (no subclass, no wrapper of a transform), float32, CPU, contiguous.

What the core keeps of a layer for the way back is h, the initial state's rows and then
those of all steps, (batch + rows, state), and, for the gated cells, a tape in a layout
of the kernel's own. A `Tape` here has h as its state and that tape as what is kept.
"""

import math
from collections.abc import Iterable, Sequence
from contextlib import suppress
from functools import lru_cache
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from bptt.cells import Cell, GRUCell, LSTMCell, ReLUCell, TanhCell, Tape
from bptt.cells.base import State
from bptt.kernels import choice
from bptt.rows import Rows
from bptt.through_time import Layer, LayerGradients
from bptt.truncation import Truncation

with suppress(ImportError):  # where it is not installed, `applies` never holds
    from bptt.kernels import _native


_CELLS: dict[type[Cell], int] = {TanhCell: 0, ReLUCell: 1, GRUCell: 2, LSTMCell: 3}
_EXACT = (Tensor, torch.nn.Parameter)
_LARGE = 1 << 18  # elements; below, an allocation costs less than the call
_ROWS_OF_STEP = 16  # of a step: then more add nothing to the speed of a product
_ROWS = 128  # of a lag; below, one product of all rows costs less than one a lag
# Of `_native`: where the rows of each step begin and where they are reset; a padding.
_Rows = tuple[Tensor | None, Tensor | None]
_Padded = tuple[Tensor, int, bool, bool] | None
_is_wrapped = torch._C._functorch.is_functorch_wrapped_tensor


def _are_fit(tensors: list[Tensor]) -> bool:
    """Whether these are as the core takes them; the first may be int64 ids."""
    try:
        for at, t in enumerate(tensors):
            if not (
                type(t) in _EXACT
                and (t.dtype is torch.float32 or (t.dtype is torch.int64 and not at))
                and t.is_cpu
                and t.is_contiguous()
                and not t.is_neg()
            ):
                return False
            t.data_ptr()
    except RuntimeError:  # no address, as where a transform has left its wrapper
        return False
    return True


are_fit = _are_fit
with suppress(NameError, AttributeError):  # without a core, or with an older torch
    _exchange = Tensor.__dlpack_c_exchange_api__
    if _native.read_tensors(Tensor, torch.nn.Parameter, _exchange):
        are_fit = _native.are_fit  # the same at a fifth of the cost


def applies(
    layers: Sequence[Layer],
    x: Tensor,
    tensors: Iterable[Tensor | None],
    rows: Rows,
) -> bool:
    """Whether the core can run these layers on these tensors.

    Args:
        layers: whose cells must be the core's.
        x: float32, or int64 ids.
        tensors: all others: float32, or None.
        rows: whose resets must be on the CPU.
    """
    if choice.active() == choice.TORCH or torch._C._len_torch_dispatch_stack():
        return False
    if type(layers[0].cell) not in _CELLS or not x.numel():
        return False
    if rows.resets is not None and not (
        type(rows.resets) in _EXACT and rows.resets.is_cpu
    ):
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
            and not _is_wrapped(t)
        ):
            return False
    return True


def _is_transformed() -> bool:
    """Whether tensors made here may have no memory."""
    return bool(
        torch._C._len_torch_dispatch_stack()
        or torch._C._are_functorch_transforms_active()
    )


def sort_rows(lengths: Sequence[int]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Rows sorted by length, the longest first and equal ones as they are.

    Those of the last few calls are remembered, to be read only: several layers, or the
    batches of all epochs, often have the same.

    Returns:
        Whose row each is (batch,), its inverse, how many rows have each step (time,)
        and where those begin when packed (time + 1,); int64.
    """
    key = tuple(lengths)
    return _sorted.__wrapped__(key) if _is_transformed() else _sorted(key)


@lru_cache(maxsize=8)
def _sorted(lengths: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    with torch.inference_mode(mode=False):  # else they could not be kept for a backward
        if not choice.INSTALLED or _is_transformed():
            given = torch.tensor(lengths, device="cpu")
            counts, order = given.sort(descending=True, stable=True)
            ended = torch.bincount(counts)[:-1].cumsum(0)
            sizes = len(lengths) - ended
            offsets = torch.nn.functional.pad(sizes.cumsum(0), (1, 0))
            return order, order.argsort(), sizes, offsets
        # In one call: as many of torch's as this takes are 0.2 ms where the caches hold
        # nothing of them.
        batch, time = len(lengths), max(lengths)
        parts = (batch, batch, time, time + 1)
        memory = torch.empty(sum(parts), dtype=torch.int64, device="cpu")
        _native.sort_rows(list(lengths), memory)
        order, inverse, sizes, offsets = memory.split_with_sizes(parts)
        return order, inverse, sizes, offsets


def lends_to(t: Tensor) -> bool:
    """Whether `select` is for `t`: plain float32 on the CPU, and large."""
    return (
        t.numel() >= _LARGE
        and choice.active() != choice.TORCH
        and not torch._C._len_torch_dispatch_stack()
        and type(t) in _EXACT
        and t.dtype == torch.float32
        and t.is_cpu
        and t.layout == torch.strided
        and not t.is_neg()
        and not t._is_zerotensor()
    )


def select(t: Tensor, index: Tensor) -> Tensor:
    """`t.index_select(0, index)` without a derivative, in memory that is used again.

    Where memory is fresh, its pages cost several times what the copy does.
    """
    out = _empty(t, len(index), *t.shape[1:])
    return torch.index_select(t, 0, index, out=out)


def forward(
    kernel: str,
    layers: Sequence[Layer],
    x: Tensor,
    initial: State,
    masks: Sequence[Tensor],
    rows: Rows,
    *,
    keep: bool,
) -> tuple[Tensor, State, list[Tape]]:
    """`through_time.forward`, by the kernel of this name.

    Args:
        kernel: that also runs `backward`: tapes differ between kernels.
        layers: as there.
        x: as there.
        initial: the state before the first step, parts (layers, batch, state).
        masks: as there.
        rows: as there.
        keep: whether to keep tapes for `backward`.

    Returns:
        The outputs of the top layer, the final state, shaped as `initial`, and the
        tapes. None of them share memory.
    """
    weight = layers[0].W
    inputs, hidden = layers[0].U.size(1), weight.size(1)
    cell = _CELLS[type(layers[0].cell)]
    weights = [
        (
            contiguous(layer.U),
            contiguous(layer.W),
            contiguous(layer.b_ih),
            contiguous(layer.b_hh),
        )
        for layer in layers
    ]
    x = x.contiguous()
    y = _empty(weight, *rows.outer, hidden)
    final = tuple(weight.new_empty(part.size()) for part in initial)
    tapes: list[Tape] = []
    if keep:
        tapes = _new_tapes(
            kernel, cell, len(layers), math.prod(rows.steps), rows.batch, weight
        )
    is_float = x.is_floating_point()
    is_lstm = len(initial) > 1
    _native.forward(
        kernel,
        torch.get_num_threads(),
        cell,
        (rows.time, rows.batch, inputs, hidden),
        _steps(rows),
        _padded(rows),
        x if is_float else None,
        None if is_float else x,
        weights,
        [contiguous(mask) for mask in masks],
        contiguous(initial[0]),
        contiguous(initial[1]) if is_lstm else None,
        y,
        final[0],
        final[1] if is_lstm else None,
        [_of_tape(tape) for tape in tapes],
    )
    return y, final, tapes


def tape_width(kernel: str, cell: Cell, hidden: int) -> int:
    """Floats on the tape for a step and a row, beside h."""
    return int(_native.tape_floats(kernel, _CELLS[type(cell)], 1, hidden))


def _new_tapes(
    kernel: str, kind: int, layers: int, steps: int, batch: int, W: Tensor
) -> list[Tape]:
    """Memory for what the layers keep of so many steps, those of all rows."""
    hidden = W.shape[1]
    size = _native.tape_floats(kernel, kind, steps, hidden)
    return [
        Tape(
            (_empty(W, batch + steps, hidden),),
            (_empty(W, size),) if size else (),
        )
        for _ in range(layers)
    ]


def _of_tape(tape: Tape) -> tuple[Tensor, Tensor | None]:
    # Hooks on saved tensors may give them back otherwise in memory.
    return contiguous(tape.states[0]), contiguous(tape.kept[0]) if tape.kept else None


def backward(
    kernel: str,
    layers: Sequence[Layer],
    x: Tensor,
    masks: Sequence[Tensor],
    tapes: Sequence[Tape],
    dy: Tensor,
    dfinal: Sequence[Tensor | None],
    truncation: Truncation,
    rows: Rows,
    *,
    needs_dx: bool,
    needs_dstate: bool = True,
) -> tuple[Tensor | None, list[LayerGradients], State]:
    """`through_time.backward`.

    Args:
        kernel: that ran `forward`.
        layers: as there.
        x: as there.
        masks: as there.
        tapes: as `forward` returned them.
        dy: as there.
        dfinal: the error of the final state, parts (layers, batch, state); None for
            zeros.
        truncation: as there.
        rows: as there.
        needs_dx: as there.
        needs_dstate: whether to compute the error of the initial state.

    Returns:
        `dx`, the gradients of each layer with views of what follows as `dstate`, and
        the error of the initial state, parts (layers, batch, state), or no parts.
    """
    hidden = dy.shape[-1]
    dstate: State = ()
    if needs_dstate:
        shape = (len(layers), rows.batch, hidden)
        dstate = tuple(dy.new_zeros(shape) for _ in dfinal)
    results = [
        _new_gradients(layer, tuple(d[index] for d in dstate))
        for index, layer in enumerate(layers)
    ]
    back = _Back(
        (
            kernel,
            torch.get_num_threads(),
            _CELLS[type(layers[0].cell)],
            (rows.time, rows.batch, hidden),
            _steps(rows),
        ),
        _padded(rows),
        layers,
        x,
        masks,
        tapes,
        dfinal,
        rows,
        results,
    )
    chunk = chunk_of(truncation, rows)
    if chunk is not None:
        dx = _layer_by_layer(back, dy, None, chunk, needs_dx=needs_dx)
        return dx, results, dstate
    passes = _passes(truncation)
    if len(layers) == 1 and _along_the_way(passes, rows):
        dx = _layer_by_layer(back, dy, passes, 0, needs_dx=needs_dx)
    else:
        dx = _all_together(back, dy, passes, needs_dx=needs_dx)
    return dx, results, dstate


class _Back(NamedTuple):
    """What both ways back through a stack take."""

    call: tuple[str, int, int, tuple[int, int, int], _Rows]  # each call begins with it
    padded: _Padded
    layers: Sequence[Layer]
    x: Tensor
    masks: Sequence[Tensor]
    tapes: Sequence[Tape]
    dfinal: Sequence[Tensor | None]
    rows: Rows
    results: list[LayerGradients]

    def ends(self, index: int) -> list[Tensor | None]:
        """The error of a layer's final state."""
        return [None if d is None else d[index] for d in self.dfinal]

    def inputs(self, index: int) -> Tensor:
        """What a layer has read, shaped as the steps of `x` are."""
        if not index:
            return self.x
        below = self.tapes[index - 1].states[0][self.rows.batch :]
        if not self.rows.is_ragged:
            below = below.view(self.rows.time, self.rows.batch, -1)
        return below * self.masks[index - 1] if self.masks else below


def _layer_by_layer(
    back: _Back,
    dy: Tensor,
    passes: tuple[int, int] | None,
    chunk: int,
    *,
    needs_dx: bool,
) -> Tensor | None:
    """Where no step is visited twice: gradients along the way.

    Passes side by side are for one layer alone; chunks are cut in each on its own.
    """
    dx: Tensor | None = None
    top = len(back.layers) - 1
    for index in range(top, -1, -1):
        inputs = back.inputs(index)
        dx = _empty(dy, *inputs.shape) if needs_dx or index else None
        if dx is not None and passes is not None and passes[1] < passes[0]:
            dx.zero_()  # where no pass comes by
        layer, new = back.layers[index], back.results[index]
        _native.backward(
            *back.call,
            back.padded if index == top else None,
            None if index else back.padded,
            passes,
            chunk,
            contiguous(dy),
            [_given(layer, back.tapes[index], back.ends(index), new)],
            _wanted(layer, inputs, new, dx),
        )
        if index:
            assert dx is not None
            dy = dx.mul_(back.masks[index - 1]) if back.masks else dx
    return dx


def _all_together(
    back: _Back, dy: Tensor, passes: tuple[int, int], *, needs_dx: bool
) -> Tensor | None:
    """All layers, pass by pass; then the gradients from what was summed."""
    gates, hidden = back.layers[0].W.shape
    width = 4 * hidden if gates == 3 * hidden else gates
    # Where every step is visited by one pass alone, all of it is written.
    deltas = [_empty(dy, *back.rows.steps, width) for _ in back.layers]
    if passes[0] != passes[1]:
        for delta in deltas:
            delta.zero_()
    stack = [
        _given(
            layer,
            back.tapes[index],
            back.ends(index),
            back.results[index],
            delta=deltas[index],
            U=layer.U if index else None,
            mask=back.masks[index] if index < len(back.masks) else None,
        )
        for index, layer in enumerate(back.layers)
    ]
    _native.backward(
        *back.call, back.padded, None, passes, 0, contiguous(dy), stack, None
    )
    dx: Tensor | None = None
    for index in range(len(stack) - 1, -1, -1):
        inputs = back.inputs(index)
        dx = _empty(dy, *inputs.shape) if needs_dx and not index else None
        _native.gradients(
            *back.call,
            None if index else back.padded,
            deltas[index],
            contiguous(back.tapes[index].states[0]),
            _wanted(back.layers[index], inputs, back.results[index], dx),
        )
    return dx


def _passes(truncation: Truncation) -> tuple[int, int]:
    """`k1` and `k2`."""
    assert truncation.k1 is not None
    assert truncation.k2 is not None
    return truncation.k1, truncation.k2


def chunk_of(truncation: Truncation, rows: Rows) -> int | None:
    """The steps of a chunk, 0 under full BPTT, where the way back is from step to step.

    Chunks follow each other so where a step has rows enough for a product. Fewer rows
    go back from the ends of all chunks side by side, which makes more of them.

    Returns:
        None where several steps are visited side by side.
    """
    if truncation.is_full_over(rows.time):
        return 0
    is_chunks = truncation.k1 == truncation.k2
    return truncation.k1 if is_chunks and rows.batch >= _ROWS_OF_STEP else None


def _along_the_way(passes: tuple[int, int], rows: Rows) -> bool:
    """Whether one layer's gradients may be formed from the rows of one lag at a time.

    That asks that no step is visited twice and that all rows are alike; and it needs
    rows enough for a product.
    """
    k1, k2 = passes
    if rows.is_ragged or rows.resets is not None:
        return False
    return k2 <= k1 <= rows.time and rows.time // k1 * rows.batch >= _ROWS


def _padded(rows: Rows) -> _Padded:
    padding = rows.padding
    if padding is None:
        return None
    return padding.order, padding.time, padding.batch_first, padding.backwards


_MaybeTensor = TypeVar("_MaybeTensor", Tensor, Tensor | None)


def contiguous(t: _MaybeTensor) -> _MaybeTensor:
    """The tensor as the core takes it, or a copy, which its caller must keep alive."""
    return t if t is None or t.is_contiguous() else t.contiguous()


def _steps(rows: Rows) -> _Rows:
    return rows.offsets if rows.is_ragged else None, contiguous(rows.resets)


def _given(
    layer: Layer,
    tape: Tape,
    ends: Sequence[Tensor | None],
    new: LayerGradients,
    *,
    delta: Tensor | None = None,
    U: Tensor | None = None,
    mask: Tensor | None = None,
) -> Any:
    """A layer as `_native.backward` takes it."""
    is_lstm = len(ends) > 1
    return (
        contiguous(layer.W),
        contiguous(U),
        *_of_tape(tape),
        contiguous(mask),
        contiguous(ends[0]),
        contiguous(ends[1]) if is_lstm else None,
        delta,
        new.dstate[0] if new.dstate else None,
        new.dstate[1] if is_lstm and new.dstate else None,
    )


def _wanted(
    layer: Layer, inputs: Tensor, new: LayerGradients, dx: Tensor | None
) -> Any:
    """A layer's gradients, and what they are made from, as `_native` takes them."""
    inputs_given = contiguous(inputs)
    is_float = inputs.is_floating_point()
    return (
        layer.U.size(1),
        inputs_given if is_float else None,
        None if is_float else inputs_given,
        contiguous(layer.U),
        *new[:4],
        dx,
    )


def _new_gradients(layer: Layer, dstate: State) -> LayerGradients:
    """Memory for a layer's gradients."""
    return LayerGradients(
        dU=_empty_like(layer.U),
        dW=_empty_like(layer.W),
        db_ih=None if layer.b_ih is None else _empty_like(layer.b_ih),
        db_hh=None if layer.b_hh is None else _empty_like(layer.b_hh),
        dstate=dstate,
    )


def _empty_like(t: Tensor) -> Tensor:
    """As `_empty`, of the shape of `t`, contiguous."""
    if t.numel() < _LARGE and t.is_contiguous():  # at two thirds of the cost
        return torch.empty_like(t)
    return _empty(t, *t.size())


def _empty(like: Tensor, *shape: int) -> Tensor:
    """Uninitialised float32 on the CPU, as `like` is; if large, from memory that is
    used again.
    """
    elements = math.prod(shape)
    if elements < _LARGE:
        return like.new_empty(*shape)  # a tuple would cost as much again
    return _native.empty(elements).view(shape)
