"""LSTMs whose h is projected, under what torch.nn's own do not know.

A stack of them is one cell of the loop for cells of one's own: so truncations, ragged
rows and resets mean what they mean elsewhere.

Reference: Sak, Senior & Beaufays, "Long short-term memory recurrent neural network
architectures for large scale acoustic modeling", 2014, equations 1 to 7, without
peepholes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bptt import own_cells
from bptt.cells.base import State
from bptt.cells.nest import Nest
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
    masks: Sequence[Tensor],
    truncation: Truncation,
    rows: Rows,
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

    Returns:
        Outputs (time, batch, projection), packed if `rows` are ragged, and the final
        state, shaped as `initial`.
    """
    count = len(layers)
    given = torch.cat((layers[0].project(x), *masks), dim=-1)
    leaves = tuple(part for parts in initial for part in parts.unbind(0))
    nest = Nest(tuple, (Nest(),) * (2 * count))
    cell = _Stack(layers, masked=bool(masks))
    y, end = own_cells.run(cell, nest, given, leaves, truncation, rows)
    return y, (torch.stack(end[:count]), torch.stack(end[count:]))


class _Stack(torch.nn.Module):
    """(the bottom layer's `U x + b` and the masks, all h and all c) -> (h, the state).

    Its parameters are the modules' own tensors, parametrized ones as they come.
    """

    def __init__(self, layers: Sequence[ProjectedLayer], *, masked: bool) -> None:
        super().__init__()
        self._masked = masked
        self._count = len(layers)
        for at, layer in enumerate(layers):
            self._hold(f"W_{at}", layer.W)
            self._hold(f"R_{at}", layer.R)
            if at:
                self._hold(f"U_{at}", layer.U)
                self._hold(f"b_ih_{at}", layer.b_ih)
                self._hold(f"b_hh_{at}", layer.b_hh)

    def _hold(self, name: str, tensor: Tensor | None) -> None:
        # `register_parameter` refuses what a parametrization has computed.
        self._parameters[name] = tensor  # type: ignore[assignment]

    def forward(self, given: Tensor, state: tuple[Tensor, ...]) -> Any:
        """One step of all layers."""
        count = self._count
        gates = self._parameters["W_0"].shape[0]  # type: ignore[union-attr]
        gx, masks = given[..., :gates], given[..., gates:]
        hs: list[Tensor] = []
        cs: list[Tensor] = []
        for at in range(count):
            layer = self._layer(at)
            if at:
                below = hs[-1]
                if self._masked:
                    width = below.shape[-1]
                    below = below * masks[..., (at - 1) * width : at * width]
                gx = layer.project(below)
            h, c = _step(gx, state[at], state[count + at], layer)
            hs.append(h)
            cs.append(c)
        return hs[-1], (*hs, *cs)

    def _layer(self, at: int) -> ProjectedLayer:
        found: Any = self._parameters
        unused = found["W_0"]  # the bottom layer's input has been projected
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
