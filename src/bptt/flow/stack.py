"""The engine's layers as a problem: RNN, GRU and LSTM, stacked."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from bptt import autograd, through_time
from bptt.cells import GRUCell, LSTMCell, TanhCell, Tape
from bptt.cells.base import State, StepTape, zeroed
from bptt.cells.nest import Leaves
from bptt.flow.problem import Activity, Carried, Problem, Share, flat, squares
from bptt.kernels import native
from bptt.kernels.lags import LagSweep
from bptt.recompute import by_layer
from bptt.rows import Rows
from bptt.through_time import Layer, Turn
from bptt.truncation import Truncation


@dataclass(frozen=True)
class StackProblem(Problem):
    """Layers over a batch.

    Attributes:
        layers: bottom first.
        names: of each layer's weights in the module.
        x: (time, batch, input) or ids, packed if rows are ragged.
        initial: parts (layers, batch, state).
        masks: of dropout, as `x` packed.
        dfinal: the error of the final state, parts (layers, batch, state).
    """

    layers: list[Layer]
    names: list[tuple[str, str, str, str]]
    x: Tensor
    initial: State
    masks: list[Tensor]
    dfinal: State

    @property
    def parts(self) -> tuple[str, ...]:
        """H and c of each layer."""
        kinds = "hc"[: len(self.initial)]
        return tuple(f"{k}_l{at}" for at in range(len(self.layers)) for k in kinds)

    @property
    def state_shapes(self) -> tuple[torch.Size, ...]:
        """All alike."""
        return (self.initial[0].shape[2:],) * len(self.parts)

    @cached_property
    def parameters(self) -> dict[str, Tensor]:
        """Layer by layer."""
        return {
            name: weight
            for layer, names in zip(self.layers, self.names, strict=True)
            for name, weight in zip(names, _weights(layer), strict=True)
            if weight is not None
        }

    @cached_property
    def _tapes(self) -> list[Tape]:
        initial = by_layer(self.initial)
        with torch.no_grad():
            return through_time.forward(
                self.layers, self.x, initial, self.masks, self.rows
            )

    @cached_property
    def _inputs(self) -> list[Tensor]:
        """What each layer has read, padded."""
        below = [tape.states[0][1:] for tape in self._tapes[:-1]]
        if self.masks:
            below = [
                h * self._padded(m) for h, m in zip(below, self.masks, strict=True)
            ]
        return [self._padded(self.x), *below]

    def shares(self, *, gradients: bool) -> Iterator[Share]:
        """By the native core where it applies, else by the definition."""
        with torch.no_grad():
            x, dy, masks = (
                self._padded(self.x),
                self._padded(self.dy),
                [self._padded(mask) for mask in self.masks],
            )
            # Padding is run like any step: no error comes from there.
            rows = Rows(self.time, self.rows.batch, None, self._resets)
            tensors = (dy, *masks, *self.parameters.values(), *self.initial)
            if not native.applies(self.layers, x, tensors, rows):
                yield from self._defined(gradients=gradients)
                return
            errors = self._ends()
            found = LagSweep(
                self.layers,
                x,
                self.initial,
                masks,
                rows,
                dy,
                errors,
                gradients=gradients,
            )
            for share in found:
                yield Share(share.lag, share.squares, share.gradient)

    def _defined(self, *, gradients: bool) -> Iterator[Share]:
        turns = through_time.turns(
            self.layers,
            [self._padded(mask) for mask in self.masks],
            self._tapes,
            self._padded(self.dy),
            by_layer(self.dfinal),
            Truncation(1, self.time).lags(self.time),
            self.rows,
        )
        for turn in turns:
            found = [squares(part) for state in turn.ds for part in state]
            yield Share(turn.lag.lag, found, self._of_turn(turn) if gradients else None)

    @property
    def _resets(self) -> Tensor | None:
        resets = self.rows.resets
        return None if resets is None else self._padded(resets)

    def _ends(self) -> list[State]:
        """For each layer the final state's error where each row ends, padded."""
        shape = (self.time, self.rows.batch, self.dfinal[0].shape[-1])
        found = [
            tuple(self.dy.new_zeros(shape) for _ in self.dfinal) for _ in self.layers
        ]
        columns = torch.arange(self.rows.batch)
        last = torch.full((self.rows.batch,), self.time - 1)
        if self.rows.is_ragged:
            last = self.rows.lengths - 1
        for state, ends in zip(found, by_layer(self.dfinal), strict=True):
            for part, end in zip(state, ends, strict=True):
                part[last, columns] = end
        return found

    def _of_turn(self, turn: Turn) -> Tensor:
        steps = turn.lag.steps
        return flat(
            [
                d
                for layer, x, tape, delta in zip(
                    self.layers, self._inputs, self._tapes, turn.deltas, strict=True
                )
                for d in through_time.weight_gradients(
                    layer, x[steps], tape.at(turn.lag), delta
                )
                if d is not None
            ]
        )

    def gradient(self, truncation: Truncation) -> list[Tensor]:
        """By whatever runs the layers in training."""
        layers = [
            Layer(layer.cell, *(_trained(w) for w in _weights(layer)))  # type: ignore[arg-type]
            for layer in self.layers
        ]
        weights = [w for layer in layers for w in _weights(layer) if w is not None]
        with torch.enable_grad():
            y, final = autograd.run(
                layers, self.x, self.initial, self.masks, truncation, self.rows
            )
            # A scalar whose errors these are: to be given errors, torch would load
            # packages for seconds.
            E = (y * self.dy).sum()
            for state, d in zip(final, self.dfinal, strict=True):
                E = E + (state * d).sum()
            return list(torch.autograd.grad(E, weights))

    def state_vjp(self, step: int, ds: Leaves) -> Leaves:
        """Down the stack within the step."""
        kinds = len(self.initial)
        states = [ds[at : at + kinds] for at in range(0, len(ds), kinds)]
        with torch.no_grad():
            for index in range(len(self.layers) - 1, -1, -1):
                layer, tape = self.layers[index], self._tapes[index]
                cut = None if tape.cut is None else tape.cut[step]
                at = StepTape(
                    before=zeroed(tuple(s[step] for s in tape.states), cut),
                    after=tuple(s[step + 1] for s in tape.states),
                    kept=tuple(k[step] for k in tape.kept),
                )
                delta, before = layer.cell.vjp_state(states[index], at, layer.W)
                if cut is not None:
                    before = zeroed(before, cut.expand(before[0].shape[:-1]))
                states[index] = before
                if index:
                    below = delta @ layer.U
                    if self.masks:
                        below = below * self._padded(self.masks[index - 1])[step]
                    states[index - 1] = (
                        states[index - 1][0] + below,
                        *states[index - 1][1:],
                    )
        return tuple(part for state in states for part in state)

    def products(self) -> tuple[float, float]:
        """U's and W's, of all layers; ids are looked up."""
        inputs = [layer.U.numel() for layer in self.layers]
        if not self.x.is_floating_point():
            inputs[0] = 0
        return float(sum(inputs)), float(sum(layer.W.numel() for layer in self.layers))

    def carried(self) -> Carried | None:
        """Read off the tapes."""
        shares, norms = [], []
        present = self.rows.present if self.rows.is_ragged else None
        for layer, tape in zip(self.layers, self._tapes, strict=True):
            width = layer.W.shape[1]
            kind = type(layer.cell)
            if kind is LSTMCell:
                name, gate = "LSTM", tape.kept[0][..., width:]
            elif kind is GRUCell:
                name, gate = "GRU", tape.kept[0][..., width:]
            else:
                h = tape.states[0][1:]
                slope = 1 - h * h if kind is TanhCell else (h > 0).to(h)
                name, gate = "RNN", slope
                norms.append(float(torch.linalg.matrix_norm(layer.W, 2)))
            shares.append(float((gate if present is None else gate[present]).mean()))
        return Carried(name, sum(shares) / len(shares), max(norms, default=0.0))

    def activity(self) -> list[Activity]:
        """Read off the tapes."""
        present = self.rows.present if self.rows.is_ragged else None
        found = []
        for index, (layer, tape) in enumerate(
            zip(self.layers, self._tapes, strict=True)
        ):
            h = tape.states[0][1:]
            for name, low, high, values in _gates(layer, tape):
                gate = values if present is None else values[present]
                gate = gate.reshape(-1, h.shape[-1])
                found.append(Activity(index, name, low, high, gate))
        return found

    def _padded(self, sequence: Tensor) -> Tensor:
        return self.rows.pad(sequence) if self.rows.is_ragged else sequence


def _gates(
    layer: Layer, tape: Tape
) -> list[tuple[str, float | None, float | None, Tensor]]:
    """Names, bounds and values, (time, batch, state)."""
    h, kind = tape.states[0][1:], type(layer.cell)
    width = h.shape[-1]
    if kind is LSTMCell:
        i_f, g, o, _ = tape.kept
        return [
            ("input gate i", 0, 1, i_f[..., :width]),
            ("forget gate f", 0, 1, i_f[..., width:]),
            ("candidate g", -1, 1, g),
            ("output gate o", 0, 1, o),
            ("output h", -1, 1, h),
        ]
    if kind is GRUCell:
        r_z, n, _ = tape.kept
        return [
            ("reset gate r", 0, 1, r_z[..., :width]),
            ("update gate z", 0, 1, r_z[..., width:]),
            ("candidate n", -1, 1, n),
            ("output h", -1, 1, h),
        ]
    if kind is TanhCell:
        return [("output h", -1, 1, h)]
    return [("output h", 0, None, h)]


def _weights(layer: Layer) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    return layer.U, layer.W, layer.b_ih, layer.b_hh


def _trained(weight: Tensor | None) -> Tensor | None:
    return None if weight is None else weight.clone().requires_grad_()
