"""A recurrent module as single steps `x_t, s_{t-1} -> y_t, s_t`, outside the engine."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bptt.cells.contract import HasInitialState
from bptt.cells.nest import Leaves, flatten
from bptt.modules import Recurrent

Step = Callable[[Tensor, Leaves], tuple[Tensor, Leaves]]


@dataclass(frozen=True)
class Steps:
    """A module over a sequence, step by step.

    Attributes:
        x: (time, batch, ...).
        step: one step of all rows: `y_t` (batch, ...), and the state's leaves.
        initial: makes the leaves before the first step, each (batch, ...).
        resets: (time, batch) bool, or None.
        dy: (time, batch, ...), errors of the outputs, or None.
    """

    x: Tensor
    step: Step
    initial: Callable[[], Leaves]
    resets: Tensor | None
    dy: Tensor | None


def steps_of_module(
    module: torch.nn.Module, x: Tensor, hx: Any, resets: Tensor | None, dy: Any
) -> Steps:
    """The steps of a module that is called as `module(x, hx, resets=resets)`.

    Raises:
        TypeError: `module` is neither a `bptt.Recurrent` nor a recurrent layer.
        ValueError: an argument does not fit, or the module cannot be run step by step.
    """
    if isinstance(module, torch.nn.RNNBase):
        steps = _of_layers(module, x, hx, resets, dy)
    elif isinstance(module, Recurrent):
        steps = _of_cell(module.cell, x, hx, resets, dy)
    else:
        raise TypeError(
            "module must be an RNN, GRU or LSTM of bptt or torch.nn, or a "
            f"bptt.Recurrent; got {type(module).__name__}: wrap a cell as "
            "bptt.Recurrent(cell)"
        )
    _require(steps)
    return steps


def _require(steps: Steps) -> None:
    """Refuse what does not fit, before the first step."""
    axes = tuple(steps.x.shape[:2])
    if len(axes) < 2 or 0 in axes:
        raise ValueError(
            "x must be (time, batch, ...) with at least one step and one row; got "
            f"shape {tuple(steps.x.shape)}"
        )
    for name, given in (("resets", steps.resets), ("dy", steps.dy)):
        if given is not None and tuple(given.shape[:2]) != axes:
            raise ValueError(
                f"{name} must have the axes of time and batch of x, {axes}; got shape "
                f"{tuple(given.shape)}"
            )
    if steps.resets is not None and steps.resets.dtype != torch.bool:
        raise ValueError(
            f"resets must be bool, True where the state is zeroed before the step; got "
            f"{steps.resets.dtype}"
        )
    leaves = steps.initial()
    for leaf in leaves:
        if leaf.dim() < 1 or leaf.shape[0] != axes[1]:
            raise ValueError(
                f"every tensor of hx must have the batch as its first axis, here "
                f"({axes[1]}, ...); got shape {tuple(leaf.shape)}"
            )
    if any(leaf.is_complex() for leaf in leaves):
        raise ValueError(
            "the state must be real; hold a complex one as its real and imaginary part"
        )
    if not any(leaf.is_floating_point() for leaf in leaves):
        raise ValueError("the state has no floats, so nothing has an influence on it")
    if steps.dy is not None:
        y, _ = steps.step(steps.x[0], leaves)
        if y.shape != steps.dy.shape[1:]:
            raise ValueError(
                "dy must be shaped as the outputs, "
                f"{(axes[0], *y.shape)}; got {tuple(steps.dy.shape)}"
            )


def _of_layers(
    module: torch.nn.RNNBase, x: Tensor, hx: Any, resets: Tensor | None, dy: Any
) -> Steps:
    """Layers one above the other, a step of each by torch.nn's functional cells."""
    name = type(module).__name__
    for is_so, what in (
        (module.bidirectional, "bidirectional: one direction reads time backwards"),
        (module.proj_size > 0, "built with proj_size"),
        (module.training and module.dropout > 0, "in training mode with dropout"),
    ):
        if is_so:
            raise ValueError(
                f"module: {name} is {what}; forward mode takes one direction, no "
                "projection, and dropout = 0 or module.eval()"
            )
    if x.dim() != (3 if x.is_floating_point() else 2):
        raise ValueError(
            "x must be floats (time, batch, input), or (time, batch) int64 ids; got "
            f"{x.dtype} of shape {tuple(x.shape)}"
        )

    def time_major(t: Any) -> Any:
        return t if t is None or not module.batch_first else t.transpose(0, 1)

    x, resets, dy = time_major(x), time_major(resets), time_major(dy)
    if not x.is_floating_point():
        x = F.one_hot(x, module.input_size).to(module.all_weights[0][0])
    return Steps(
        x, _layers_step(module), lambda: _layers_initial(module, x, hx), resets, dy
    )


def _layers_initial(module: torch.nn.RNNBase, x: Tensor, hx: Any) -> Leaves:
    """Layer by layer, h or h and c, each (batch, hidden)."""
    parts = 2 if module.mode == "LSTM" else 1
    shape = (module.num_layers, x.shape[1], module.hidden_size)
    if hx is None:
        given: Sequence[Tensor] = [x.new_zeros(shape)] * parts
    else:
        given = (hx,) if isinstance(hx, Tensor) else tuple(hx)
    if len(given) != parts or any(tuple(part.shape) != shape for part in given):
        raise ValueError(
            f"hx must be {'h_0, c_0' if parts == 2 else 'h_0'} of shape {shape}; got "
            f"{[tuple(part.shape) for part in given]}"
        )
    return tuple(part[layer].detach() for layer in range(shape[0]) for part in given)


def _layers_step(module: torch.nn.RNNBase) -> Step:
    cells = {
        "RNN_TANH": torch.rnn_tanh_cell,
        "RNN_RELU": torch.rnn_relu_cell,
        "GRU": torch.gru_cell,
    }

    def step(x: Tensor, leaves: Leaves) -> tuple[Tensor, Leaves]:
        after: list[Tensor] = []
        for layer in range(module.num_layers):
            w_ih, w_hh = (getattr(module, f"weight_{at}_l{layer}") for at in _ENDS)
            biases = [
                getattr(module, f"bias_{at}_l{layer}") if module.bias else None
                for at in _ENDS
            ]
            if module.mode == "LSTM":
                state = leaves[2 * layer : 2 * layer + 2]
                after += torch.lstm_cell(x, list(state), w_ih, w_hh, *biases)
                x = after[-2]
            else:
                x = cells[module.mode](x, leaves[layer], w_ih, w_hh, *biases)
                after.append(x)
        return x, tuple(after)

    return step


_ENDS = ("ih", "hh")


def _of_cell(cell: Any, x: Tensor, state: Any, resets: Tensor | None, dy: Any) -> Steps:
    batch = x.shape[1] if x.dim() > 1 else 0
    is_torchs = isinstance(cell, torch.nn.RNNCellBase)  # returns its state alone

    def start() -> Any:
        if state is not None:
            leaves, nest = flatten(state, "hx")
            return nest.state(tuple(leaf.detach() for leaf in leaves))
        if isinstance(cell, HasInitialState):
            return cell.initial_state(batch)
        if is_torchs:
            h = cell.weight_hh.new_zeros(batch, cell.hidden_size)
            return (h, h) if isinstance(cell, torch.nn.LSTMCell) else h
        raise ValueError(
            f"hx is None and {type(cell).__name__} has no method initial_state(batch); "
            "give the state before the first step"
        )

    nest = flatten(start(), "hx")[1]

    def step(x_t: Tensor, leaves: Leaves) -> tuple[Tensor, Leaves]:
        found = cell(x_t, nest.state(leaves))
        if is_torchs:
            found = (found[0] if isinstance(found, tuple) else found), found
        y, after = found
        return y, flatten(after, "the state that the cell returns")[0]

    return Steps(x, step, lambda: flatten(start(), "hx")[0], resets, dy)
