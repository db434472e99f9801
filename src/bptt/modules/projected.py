"""LSTMs whose h is projected, under what torch.nn's own do not know.

A stack of them is one cell of the loop for cells of one's own: so truncations, ragged
rows and resets mean what they mean elsewhere.

Reference: Sak, Senior & Beaufays, "Long short-term memory recurrent neural network
architectures for large scale acoustic modeling", 2014, equations 1 to 7, without
peepholes.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bptt import own_cells
from bptt.cells.base import State
from bptt.cells.nest import Nest
from bptt.masks import PackedMask, numbers
from bptt.memory import Budget
from bptt.outside import inside_transform
from bptt.rows import Rows
from bptt.truncation import Truncation


@dataclass(frozen=True)
class ProjectedLayer:
    """A layer's weights, in PyTorch's shapes; biases both or none."""

    U: Tensor  # (4 hidden, input)
    W: Tensor  # (4 hidden, projection)
    b_ih: Tensor | None  # (4 hidden)
    b_hh: Tensor | None
    R: Tensor  # (projection, hidden)

    def project(self, x: Tensor) -> Tensor:
        """`U x + b`: a product, or a look-up for ids."""
        bias = None
        if self.b_ih is not None and self.b_hh is not None:
            bias = self.b_ih + self.b_hh
        if x.is_floating_point():
            return F.linear(x, self.U, bias)
        gx = F.embedding(x, self.U.t())
        return gx if bias is None else gx + bias


def run(
    layers: Sequence[ProjectedLayer],
    x: Tensor,
    initial: State,
    masks: Sequence[Tensor | PackedMask],
    truncation: Truncation,
    rows: Rows,
    budget: Budget | None = None,
) -> tuple[Tensor, State]:
    """A stack of layers over a sequence, differentiable as the truncation says.

    Args:
        layers: bottom first.
        x: (time, batch, input) floats or (time, batch) int64 ids; packed if `rows` are
            ragged.
        initial: h (layers, batch, projection) and c (layers, batch, hidden).
        masks: for each layer but the last, what its outputs are multiplied by on their
            way up; empty for no dropout.
        truncation: which errors go how far back.
        rows: which steps the rows have, and where they are reset.
        budget: what may be kept for the backward pass; None for all.

    Returns:
        Outputs (time, batch, projection), packed if `rows` are ragged, and the final
        state, shaped as `initial`.

    Raises:
        ValueError: nothing keeps to the budget.
    """
    count = len(layers)
    leaves = tuple(part for parts in initial for part in parts.unbind(0))
    nest = Nest(tuple, (Nest(),) * (2 * count))
    segment_steps = None
    if budget is not None and torch.is_grad_enabled() and not inside_transform():
        cell = _Stack(layers, masks, whole=True)
        given = cell.given(x)
        if given is not x:
            held = given.nbytes + budget.held_bytes
            budget = replace(budget, held_bytes=held)
        wider = _wider(layers[0], given, rows, budget)
        segment_steps = own_cells.segment_steps(
            cell, nest, given, leaves, truncation, rows, budget, wider=wider
        )
    if segment_steps is None:
        cell = _Stack(layers, numbers(masks), whole=False)
        given = cell.given(layers[0].project(x))
    y, end = own_cells.run(
        cell, nest, given, leaves, truncation, rows, segment_steps=segment_steps
    )
    return y, (torch.stack(end[:count]), torch.stack(end[count:]))


def _wider(bottom: ProjectedLayer, given: Tensor, rows: Rows, budget: Budget) -> int:
    """Bytes of a step that a measured one does not show.

    What the bottom layer's input is projected to, where all is kept; and the input of
    the widest of the loops that share the budget, so that all come to the same plan.
    """
    gates, inputs = bottom.U.shape
    wider = max(0, budget.widest_input - inputs)
    return 2 * rows.batch * (gates + wider) * bottom.U.element_size()


class _Stack(torch.nn.Module):
    """(the bottom layer's input and the masks, all h and all c) -> (h, the state).

    Its parameters are the modules' own tensors, parametrized ones as they come.

    Args:
        layers: bottom first.
        masks: of all steps.
        whole: whether the bottom layer's input is x, to be projected here, and not
            `U x + b`.
    """

    def __init__(
        self,
        layers: Sequence[ProjectedLayer],
        masks: Sequence[Tensor | PackedMask],
        *,
        whole: bool,
    ) -> None:
        super().__init__()
        self._masks = masks
        self._count = len(layers)
        self._whole = whole
        for at, layer in enumerate(layers):
            self._hold(f"W_{at}", layer.W)
            self._hold(f"R_{at}", layer.R)
            if at or whole:
                self._hold(f"U_{at}", layer.U)
                self._hold(f"b_ih_{at}", layer.b_ih)
                self._hold(f"b_hh_{at}", layer.b_hh)

    def given(self, x: Tensor) -> Tensor:
        """The sequence that this cell reads: x, with the masks beside it."""
        if not self._masks:
            return x
        columns = [
            mask.bits if isinstance(mask, PackedMask) else mask for mask in self._masks
        ]
        x = x if x.is_floating_point() else x.unsqueeze(-1)
        return torch.cat((x, *(column.to(x.dtype) for column in columns)), dim=-1)

    def _hold(self, name: str, tensor: Tensor | None) -> None:
        # `register_parameter` refuses what a parametrization has computed.
        self._parameters[name] = tensor  # type: ignore[assignment]

    def forward(self, given: Tensor, state: tuple[Tensor, ...]) -> Any:
        """One step of all layers."""
        count = self._count
        x, masks = self._parted(given)
        hs: list[Tensor] = []
        cs: list[Tensor] = []
        for at in range(count):
            layer = self._layer(at)
            if at:
                below = hs[-1] * masks[at - 1] if masks else hs[-1]
                gx = layer.project(below)
            else:
                gx = layer.project(x) if self._whole else x
            h, c = _step(gx, state[at], state[count + at], layer)
            hs.append(h)
            cs.append(c)
        return hs[-1], (*hs, *cs)

    def _parted(self, given: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The inverse of `given`, the masks as numbers."""
        if not self._masks:
            return given, []
        widths = [
            (m.bits if isinstance(m, PackedMask) else m).shape[-1] for m in self._masks
        ]
        first = given.shape[-1] - sum(widths)
        x, *columns = torch.split(given, [first, *widths], dim=-1)
        if not x.is_floating_point():  # ids
            x = x.squeeze(-1)
        found = [
            replace(mask, bits=column.to(torch.uint8)).numbers()
            if isinstance(mask, PackedMask)
            else column
            for mask, column in zip(self._masks, columns, strict=True)
        ]
        return x, found

    def _layer(self, at: int) -> ProjectedLayer:
        found: Any = self._parameters
        unused = found["W_0"]  # where the bottom layer's input has been projected
        return ProjectedLayer(
            U=found.get(f"U_{at}", unused),
            W=found[f"W_{at}"],
            b_ih=found.get(f"b_ih_{at}"),
            b_hh=found.get(f"b_hh_{at}"),
            R=found[f"R_{at}"],
        )


def _step(
    gx: Tensor, h: Tensor, c: Tensor, layer: ProjectedLayer
) -> tuple[Tensor, Tensor]:
    """`c = f c + i g`, `h = R (o tanh c)`, gates in torch's order i f g o."""
    i, f, g, o = (gx + F.linear(h, layer.W)).chunk(4, dim=-1)
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    return F.linear(o.sigmoid() * c.tanh(), layer.R), c
