"""Backpropagation through time, with the lag outermost: THE algorithm.

Forward: sequence -> states and tape. Backward: tape and output errors -> gradients,
under any truncation. The tutorial loops over outputs, and for each output back over
steps. Here all passes of a truncation go back together, one lag at a time, so a lag is
one product over (passes x batch) rows. The gradient of the parameters is linear in the
error that arrives at a step, so those errors are summed per step on the way, and each
of dU, dW and db is formed once.

A stack of layers is cut as one cell with a larger state: a pass carries the errors of
all layers, and its error moves down the stack within a step. Under full BPTT nothing is
cut, so the layers can go one after another, which leaves the products between layers to
one large product each.

Where a row is reset, its state is zeroed before the step and no error passes. A ragged
batch is padded here with steps that are cut off likewise.

Written out of place on any device and dtype: this is the definition that faster code is
held to, and differentiable itself, for derivatives of the gradient.

References: Werbos, "Backpropagation through time: what it does and how to do it", 1990;
Williams & Peng, 1990 (see `truncation`).
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from bptt.cells import Cell, Tape
from bptt.cells.base import State, StepTape, zeroed
from bptt.rows import Rows
from bptt.truncation import Lag, Truncation


class Layer(NamedTuple):
    """A cell and its weights, in PyTorch's shapes; biases both or none."""

    cell: Cell
    U: Float[Tensor, "gates input"]
    W: Float[Tensor, "gates state"]
    b_ih: Float[Tensor, " gates"] | None
    b_hh: Float[Tensor, " gates"] | None


class LayerGradients(NamedTuple):
    """`dE` of one layer's weights and of its state before the first step."""

    dU: Tensor
    dW: Tensor
    db_ih: Tensor | None
    db_hh: Tensor | None
    dstate: State


def forward(
    layers: Sequence[Layer],
    x: Tensor,
    initial: Sequence[State],
    masks: Sequence[Tensor],
    rows: Rows,
) -> list[Tape]:
    """Run a stack of layers over a sequence.

    Args:
        layers: bottom first.
        x: (time, batch, input) floats, or (time, batch) int64 as one-hot ids, which
            are looked up, never materialised. time >= 1. Packed if `rows` are ragged.
        initial: the state of each layer before the first step, parts (batch, state).
        masks: for each layer but the last, what its outputs are multiplied by on their
            way up, (time, batch, state), packed as `x`; empty for no dropout.
        rows: which steps the rows have, and where they are reset.

    Returns:
        A tape a layer, padded; `outputs` reads them.
    """
    tapes: list[Tape] = []
    x, masks = _padded(x, rows), [_padded(mask, rows) for mask in masks]
    cut = rows.cut(x.device)
    for index, (layer, state) in enumerate(zip(layers, initial, strict=True)):
        if index:
            x = _input_above(tapes[index - 1], index - 1, masks)
        tapes.append(_scan(layer, x, state, cut))
    return tapes


def outputs(tapes: Sequence[Tape], rows: Rows) -> tuple[Tensor, list[State]]:
    """The top layer's outputs, packed if `rows` are ragged, and the final states."""
    y = tapes[-1].states[0][1:]
    if not rows.is_ragged:
        return y, [tuple(part[-1] for part in tape.states) for tape in tapes]
    last = (rows.lengths, torch.arange(rows.batch))
    return rows.pack(y), [tuple(part[last] for part in tape.states) for tape in tapes]


def backward(
    layers: Sequence[Layer],
    x: Tensor,
    masks: Sequence[Tensor],
    tapes: Sequence[Tape],
    dy: Tensor,
    dfinal: Sequence[State],
    truncation: Truncation,
    rows: Rows,
    *,
    needs_dx: bool,
) -> tuple[Tensor | None, list[LayerGradients]]:
    """Errors of the outputs and of the final state -> gradients, as truncated.

    Costs, beside one product over the whole sequence for each of dU, dW and dx, as many
    products as the truncation has lags, each over (running passes x batch) rows.

    Args:
        layers: bottom first.
        x: as given to `forward`.
        masks: as given to `forward`.
        tapes: as `forward` returned them.
        dy: the error of the top layer's outputs, (time, batch, state), packed if
            `rows` are ragged.
        dfinal: the error of each layer's final state, parts (batch, state).
        truncation: which errors go how far back. The final state's error belongs to
            a row's last step, so to that step's pass.
        rows: as given to `forward`.
        needs_dx: whether to form the input's gradient; never for ids.

    Returns:
        `dx` (or None), packed if `rows` are ragged, and the gradients of each layer,
        bottom first.
    """
    x, dy = _padded(x, rows), _padded(dy, rows)
    masks = [_padded(mask, rows) for mask in masks]
    time = dy.shape[0]
    gradients: list[LayerGradients] = []
    if truncation.is_full_over(time):
        truncation = Truncation.full()  # the same in one pass
        groups = [[index] for index in range(len(layers))]
    else:
        groups = [list(range(len(layers)))]
    lags = list(truncation.lags(time))
    dx: Tensor | None = None
    for group in reversed(groups):
        bottom, top = group[0], group[-1] + 1
        deltas, dstates = _sweep(
            layers[bottom:top],
            masks[bottom : top - 1],
            tapes[bottom:top],
            dy,
            dfinal[bottom:top],
            lags,
            rows,
        )
        for index in reversed(group):
            inputs = _input_above(tapes[index - 1], index - 1, masks) if index else x
            at = index - bottom
            found = weight_gradients(
                layers[index], inputs, tapes[index].whole(), deltas[at]
            )
            gradients.append(LayerGradients(*found, dstate=dstates[at]))
        if bottom or needs_dx:
            dx = deltas[0] @ layers[bottom].U
            dy = dx * masks[bottom - 1] if bottom and masks else dx
    if not needs_dx or dx is None:
        return None, gradients[::-1]
    return (rows.pack(dx) if rows.is_ragged else dx), gradients[::-1]


def _padded(sequence: Tensor, rows: Rows) -> Tensor:
    return rows.pad(sequence) if rows.is_ragged else sequence


def _scan(layer: Layer, x: Tensor, state: State, cut: Tensor | None) -> Tape:
    """One layer forward: the input's product for all steps at once, then the steps."""
    gx = _project(layer, x)
    states = [state]
    kept = []
    for t, gx_t in enumerate(gx.unbind(0)):
        before = zeroed(state, None if cut is None else cut[t])
        state, kept_t = layer.cell.step(gx_t, before, layer.W, layer.b_hh)
        states.append(state)
        kept.append(kept_t)
    return Tape(
        states=tuple(torch.stack(parts) for parts in zip(*states, strict=True)),
        kept=tuple(torch.stack(parts) for parts in zip(*kept, strict=True)),
        cut=cut,
    )


def _project(layer: Layer, x: Tensor) -> Tensor:
    """`U x_t + b` for every step: a product, or a look-up for ids."""
    bias = layer.cell.input_bias(layer.b_ih, layer.b_hh)
    if x.is_floating_point():
        return F.linear(x, layer.U, bias)
    gx = F.embedding(x, layer.U.t())
    return gx if bias is None else gx + bias


def _input_above(tape: Tape, index: int, masks: Sequence[Tensor]) -> Tensor:
    """What the layer above layer `index` reads."""
    y = tape.states[0][1:]
    return y * masks[index] if masks else y


@dataclass(frozen=True)
class Turn:
    """One lag: what arrives at the steps where the passes stand, and what goes on.

    Attributes:
        lag: where they stand.
        ds: for each layer, the error of the state after the step, from later steps and
            the step's own output alone, parts (passes, batch, state).
        deltas: for each layer, the error of `gx`, (passes, batch, gates).
        before: for each layer, the error of the state before the step.
    """

    lag: Lag
    ds: list[State]
    deltas: list[Tensor]
    before: list[State]


def turns(
    layers: Sequence[Layer],
    masks: Sequence[Tensor],
    tapes: Sequence[Tape],
    dy: Tensor,
    dfinal: Sequence[State],
    lags: Iterable[Lag],
    rows: Rows,
) -> Iterator[Turn]:
    """THE loop: all passes back through a stack, one lag at a time.

    Args:
        layers: bottom first.
        masks: as for `forward`, padded.
        tapes: as `forward` returned them.
        dy: the error of the top layer's outputs, (time, batch, state), padded.
        dfinal: the error of each layer's final state, parts (batch, state).
        lags: of the truncation.
        rows: as given to `forward`.

    Yields:
        Each lag's errors, before the next is computed.
    """
    top = len(layers) - 1
    parts = range(layers[0].cell.state_parts)
    # ds[layer][part] is (running passes, batch, state), the error of the state after
    # the step at which each pass stands.
    ds = [tuple(s[:0] for s in tape.states) for tape in tapes]
    previous_first = 0
    for lag in lags:
        ds = _enter_and_leave(ds, lag, previous_first)
        previous_first = lag.first
        if lag.owns:
            ds[top] = (ds[top][0] + dy[lag.steps], *ds[top][1:])
        if rows.is_ragged and lag.owns:
            ending = _ending(lag, rows, dy)
            ds = [
                tuple(d[part] + ending * end[part] for part in parts)
                for d, end in zip(ds, dfinal, strict=True)
            ]
        elif lag.at_end and not rows.is_ragged:
            ds = [
                tuple(_add_to_last(d[part], end[part]) for part in parts)
                for d, end in zip(ds, dfinal, strict=True)
            ]
        arrived = list(ds)
        deltas = []
        for index in range(top, -1, -1):
            layer, tape = layers[index], tapes[index].at(lag)
            delta, before = layer.cell.vjp_state(ds[index], tape, layer.W)
            ds[index] = zeroed(before, tapes[index].cut_at(lag))
            deltas.append(delta)
            if index:  # the error goes down within the step, to the layer below
                below = delta @ layer.U
                if masks:
                    below = below * masks[index - 1][lag.steps]
                ds[index - 1] = (ds[index - 1][0] + below, *ds[index - 1][1:])
        yield Turn(lag, arrived, deltas[::-1], list(ds))


def _sweep(
    layers: Sequence[Layer],
    masks: Sequence[Tensor],
    tapes: Sequence[Tape],
    dy: Tensor,
    dfinal: Sequence[State],
    lags: Sequence[Lag],
    rows: Rows,
) -> tuple[list[Tensor], list[State]]:
    """The errors of all turns per step, summed over the passes.

    Returns:
        For each layer, delta (time, batch, gates), the error of `gx`, and the error of
        the initial state.
    """
    sums = [
        dy.new_zeros(*dy.shape[:2], layer.W.shape[0]).to(layer.W.dtype)
        for layer in layers
    ]
    dstart = [tuple(torch.zeros_like(s[0]) for s in tape.states) for tape in tapes]
    for turn in turns(layers, masks, tapes, dy, dfinal, lags, rows):
        for total, delta in zip(sums, turn.deltas, strict=True):
            total[turn.lag.steps] += delta
        if turn.lag.at_start:
            dstart = [
                tuple(total + d[0] for total, d in zip(state, before, strict=True))
                for state, before in zip(dstart, turn.before, strict=True)
            ]
    return sums, dstart


def _enter_and_leave(ds: list[State], lag: Lag, previous_first: int) -> list[State]:
    """Drop the passes that left the sequence and admit those that enter it."""
    left = lag.first - previous_first
    entering = lag.last - lag.first - (ds[0][0].shape[0] - left)
    if not left and not entering:
        return ds

    def updated(d: Tensor) -> Tensor:
        d = d[left:]
        if not entering:
            return d
        return torch.cat((d, d.new_zeros(entering, *d.shape[1:])))

    return [tuple(updated(part) for part in state) for state in ds]


def _ending(lag: Lag, rows: Rows, like: Tensor) -> Tensor:
    """1 for a pass and a row that stand at the row's last step, else 0."""
    steps = torch.arange(rows.time)[lag.steps].unsqueeze(1)
    return (rows.lengths - 1 == steps).unsqueeze(-1).to(like)


def _add_to_last(ds: Tensor, d: Tensor) -> Tensor:
    """Add `d` to the error of the last pass alone."""
    return torch.cat((ds[:-1], (ds[-1] + d).unsqueeze(0)))


def weight_gradients(
    layer: Layer, x: Tensor, tape: StepTape, delta: Tensor
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """`dU, dW, db_ih, db_hh` from the errors of some steps: one product each.

    Args:
        layer: whose weights.
        x: what it read at these steps, (steps, batch, input) or ids (steps, batch).
        tape: of these steps.
        delta: the error of their `gx`, (steps, batch, gates).
    """
    hidden = layer.cell.hidden_delta(delta, tape)
    rows = _rows(delta)
    hidden_rows = _rows(hidden)
    if x.is_floating_point():
        dU = rows.t() @ _rows(x)
    else:
        dU = rows.new_zeros(layer.U.shape[1], rows.shape[1])
        dU = dU.index_add(0, x.reshape(-1), rows).t()
    has_bias = layer.b_ih is not None
    return (
        dU,
        hidden_rows.t() @ _rows(tape.before[0]),
        rows.sum(0) if has_bias else None,
        hidden_rows.sum(0) if has_bias else None,
    )


def _rows(t: Tensor) -> Tensor:
    """Time and batch as one axis; `flatten` knows no vmap over the backward pass."""
    return t.reshape(t.shape[0] * t.shape[1], *t.shape[2:])
