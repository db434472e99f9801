"""Gradient flow by its definition: one autograd call for each output.

The state after a step is copied part by part, and the next step reads the copies: so
the parts are independent variables, and what passes within a step counts for none.
"""

from typing import Any

import torch
from torch import Tensor

CELLS = {"tanh": torch.nn.RNNCell, "relu": torch.nn.RNNCell, "gru": torch.nn.GRUCell}


def cells_of(module: Any, kind: str) -> list[Any]:
    """torch.nn's one-step cells with the weights of a stack's layers."""
    cells = []
    for at in range(module.num_layers):
        weights = [
            getattr(module, f"{name}_l{at}").detach()
            for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        ]
        options = {"nonlinearity": kind} if kind in ("tanh", "relu") else {}
        cell = CELLS.get(kind, torch.nn.LSTMCell)(
            weights[0].shape[1], weights[1].shape[1], dtype=weights[0].dtype, **options
        )
        with torch.no_grad():
            for parameter, weight in zip(cell.parameters(), weights, strict=True):
                parameter.copy_(weight)
        cells.append(cell)
    return cells


def states_of(
    cells: list[Any], x: Tensor, masks: list[Tensor], resets: Tensor | None = None
) -> list[list[list[Tensor]]]:
    """At [step][layer][part] the state after the step, part by part a node of a graph.

    x is (time, batch, input); masks (time, batch, state), one between two layers.
    """
    parts = 2 if isinstance(cells[0], torch.nn.LSTMCell) else 1
    zeros = x.new_zeros(x.shape[1], cells[0].hidden_size)
    state = [[zeros.clone().requires_grad_() for _ in range(parts)] for _ in cells]
    found = []
    for t, x_t in enumerate(x):
        if resets is not None:
            keep = (~resets[t]).to(x).unsqueeze(1)
            state = [[part * keep for part in layer] for layer in state]
        after = []
        inputs = x_t
        for at, cell in enumerate(cells):
            given = state[at][0] if parts == 1 else tuple(state[at])
            new = cell(inputs, given)
            new = [new] if parts == 1 else list(new)
            after.append([part * 1.0 for part in new])
            inputs = new[0] * (masks[at][t] if at < len(masks) else 1.0)
        state = after
        found.append(after)
    return found


def norms(
    states: list[list[list[Tensor]]], dy: Tensor, lengths: Tensor | None = None
) -> Tensor:
    """(time, time) by one autograd call an output; dy (time, batch, state)."""
    time, batch = dy.shape[:2]
    lengths = torch.full((batch,), time) if lengths is None else lengths
    table = torch.zeros(time, time, dtype=dy.dtype)
    for t in range(time):
        E = (states[t][-1][0] * dy[t]).sum()
        flat = [part for k in range(t + 1) for layer in states[k] for part in layer]
        found = torch.autograd.grad(E, flat, retain_graph=True, allow_unused=True)
        each = len(flat) // (t + 1)
        for k in range(t + 1):
            parts = [d for d in found[k * each : (k + 1) * each] if d is not None]
            squares = sum(d.square().sum(1) for d in parts)
            longer = lengths > t
            table[t, k] = squares[longer].sqrt().mean()
    return table
