"""Every lag of one pass an output by the native core, for those who look at each lag.

`through_time.turns` with `Truncation(1, time)`, where the errors themselves are not
wanted but their norms, and each lag's gradient of the weights. What a lag does takes
one call a layer; the weights' gradients another.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bptt.cells.base import State
from bptt.kernels import _native, choice, native
from bptt.rows import Rows
from bptt.through_time import Layer


@dataclass(frozen=True)
class LagShare:
    """One lag.

    Attributes:
        lag: steps back from each output.
        squares: for each layer and part of its state, (passes, batch), the sum of
            squares of the error of the state after the step.
        gradient: for each layer U, W and the biases, as one vector, where gradients are
            wanted; the next lag writes into it.
    """

    lag: int
    squares: list[Tensor]
    gradient: Tensor | None


class LagSweep:
    """All lags, from 0 to the sequence's first step; to be iterated over once.

    Args:
        layers: bottom first; `native.applies` to them and all that follows.
        x: (time, batch, input) floats or (time, batch) ids.
        initial: the state before the first step, parts (layers, batch, state).
        masks: as for `through_time.forward`.
        rows: which are all alike, with resets or without.
        dy: the error of the top layer's outputs, (time, batch, state).
        errors: of each layer's state after each step, as the final states of rows
            have them, parts (time, batch, state).
        gradients: whether the weights' gradients are wanted.
    """

    def __init__(
        self,
        layers: Sequence[Layer],
        x: Tensor,
        initial: State,
        masks: Sequence[Tensor],
        rows: Rows,
        dy: Tensor,
        errors: Sequence[State],
        *,
        gradients: bool,
    ) -> None:
        self._kernel = choice.active()
        self._threads = torch.get_num_threads()
        self._layers, self._masks, self._rows = layers, masks, rows
        self._kind = native._CELLS[type(layers[0].cell)]
        _, _, self._tapes = native.forward(
            self._kernel, layers, x, initial, masks, rows, keep=True
        )
        hidden = layers[0].W.shape[1]
        self._sizes = (rows.time, rows.batch, hidden)
        below = [
            tape.states[0][rows.batch :].view(*self._sizes) for tape in self._tapes[:-1]
        ]
        if masks:
            below = [h * mask for h, mask in zip(below, masks, strict=True)]
        self._inputs = [x, *below]
        self._ds = [[part.clone() for part in state] for state in errors]
        self._ds[-1][0] += dy
        self._before = [[torch.empty_like(p) for p in state] for state in self._ds]
        width = 4 * hidden if self._kind == 2 else layers[0].W.shape[0]
        # Each layer's W in the kernel's own order, from the first lag on.
        self._packed = [
            dy.new_empty(_native.packed_floats(self._kernel, self._kind, hidden))
            for _ in layers
        ]
        self._delta = dy.new_empty(rows.time * rows.batch, width)
        self._squares = [
            dy.new_empty(rows.time, rows.batch) for state in errors for _ in state
        ]
        # Of layers below the top, those of h before what goes down within the step.
        self._arrived: list[Tensor | None] = [None for _ in layers]
        # dx of a layer above the bottom is the error that goes down within the step.
        self._down = [
            dy.new_empty(rows.time * rows.batch, hidden) if at else None
            for at in range(len(layers))
        ]
        weights = [w for layer in layers for w in _weights(layer) if w is not None]
        self._gradient = dy.new_empty(sum(w.numel() for w in weights))
        self._wanted = gradients
        parts = iter(torch.split(self._gradient, [w.numel() for w in weights]))
        self._gradients = [
            [
                None if w is None or not gradients else next(parts)
                for w in _weights(layer)
            ]
            for layer in layers
        ]

    def __iter__(self) -> Iterator[LagShare]:
        time, parts = self._rows.time, len(self._ds[0])
        found = self._gradient if self._wanted else None
        for lag in range(time):
            steps = time - lag
            for at in range(len(self._layers) - 1, -1, -1):
                self._back(at, lag, steps)
                if at or self._wanted:
                    self._products(at, steps)
                if at:
                    self._hand_down(at, lag, steps)
            self._reset(steps)
            # A pass at step i goes to step i - 1, the one at step 0 is done.
            self._ds, self._before = self._before, self._ds
            squares = [s[:steps] for s in self._squares]
            for at, arrived in enumerate(self._arrived):
                if arrived is not None:
                    squares[at * parts] = arrived
            yield LagShare(lag, squares, found)

    def _here(self, parts: list[Tensor], lag: int) -> list[Tensor]:
        """The errors of the running passes: after a lag, one step further in memory."""
        return [part[1 if lag else 0 :] for part in parts]

    def _back(self, at: int, lag: int, steps: int) -> None:
        layer, tape = self._layers[at], self._tapes[at]
        ds = [part[:steps] for part in self._here(self._ds[at], lag)]
        before = [part[:steps] for part in self._before[at]]
        parts = len(ds)
        squares = self._squares[at * parts : (at + 1) * parts]
        is_lstm = parts > 1
        is_read = self._wanted or at > 0  # by products that follow
        _native.back_lag(
            self._kernel,
            self._threads,
            self._kind,
            self._sizes,
            steps,
            None if lag else native.contiguous(layer.W),
            self._packed[at],
            tape.states[0],
            tape.kept[0] if tape.kept else None,
            ds[0],
            ds[1] if is_lstm else None,
            self._delta[: steps * self._rows.batch] if is_read else None,
            before[0],
            before[1] if is_lstm else None,
            squares[0][:steps],
            squares[1][:steps] if is_lstm else None,
        )

    def _products(self, at: int, steps: int) -> None:
        """The lag's gradients, and the error that goes down."""
        layer, batch = self._layers[at], self._rows.batch
        x, rows = self._inputs[at][:steps].contiguous(), steps * batch
        is_float = x.is_floating_point()
        resets = None if self._rows.resets is None else self._rows.resets[:steps]
        down = self._down[at]
        dU, dW, db_ih, db_hh = self._gradients[at]
        _native.gradients(
            self._kernel,
            self._threads,
            self._kind,
            (steps, *self._sizes[1:]),
            (None, native.contiguous(resets)),
            None,
            self._delta[:rows],
            self._tapes[at].states[0][: batch + rows],
            (
                layer.U.shape[1],
                x if is_float else None,
                None if is_float else x,
                native.contiguous(layer.U),
                dU,
                dW,
                db_ih,
                db_hh,
                None if down is None else down[:rows],
            ),
        )

    def _hand_down(self, at: int, lag: int, steps: int) -> None:
        down = self._down[at]
        assert down is not None
        error = down[: steps * self._rows.batch].view(steps, *self._sizes[1:])
        if self._masks:
            error = error * self._masks[at - 1][:steps]
        dh = self._here(self._ds[at - 1], lag)[0][:steps]
        self._arrived[at - 1] = dh.square().sum(-1)
        dh += error

    def _reset(self, steps: int) -> None:
        """No error passes a reset."""
        if self._rows.resets is None:
            return
        cut = self._rows.resets[:steps].unsqueeze(-1)
        for state in self._before:
            for part in state:
                part[:steps].masked_fill_(cut, 0)


def _weights(layer: Layer) -> tuple[Tensor | None, ...]:
    return layer.U, layer.W, layer.b_ih, layer.b_hh
