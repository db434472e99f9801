"""A module's call opened up: the batch, weights and state that the loop would run on.

For those who look into the loop instead of running it. Weights and batch are copies
without a graph, so what becomes of the module later does not matter.
"""

import copy
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from bptt.cells import Cell
from bptt.cells.base import State
from bptt.cells.nest import Leaves, Nest
from bptt.modules import dropout
from bptt.modules.arrangement import Arrangement
from bptt.modules.base import ThroughTime
from bptt.modules.recurrent import Recurrent, engine_cell
from bptt.modules.swap import class_for, reason_to_leave
from bptt.through_time import Layer
from bptt.truncation import Truncation


@dataclass(frozen=True)
class OpenedStack:
    """Layers of the engine over a batch.

    Attributes:
        batch: in the loop's order.
        layers: bottom first.
        names: of each layer's weights in the module: U, W and the biases.
        initial: parts (layers, batch, state).
        masks: of dropout, as `through_time.forward` takes them.
        truncation: the module's; of a random one that of its mean gradient.
    """

    batch: Arrangement
    layers: list[Layer]
    names: list[tuple[str, str, str, str]]
    initial: State
    masks: list[Tensor]
    truncation: Truncation


@dataclass(frozen=True)
class OpenedCell:
    """A cell of one's own over a batch.

    Attributes:
        batch: in the loop's order.
        cell: a copy.
        nest: how it has its state.
        initial: the state's leaves, (batch, ...).
        truncation: the module's; of a random one that of its mean gradient.
    """

    batch: Arrangement
    cell: torch.nn.Module
    nest: Nest
    initial: Leaves
    truncation: Truncation


def opened(
    module: torch.nn.Module,
    arguments: tuple[Any, ...],
    keywords: dict[str, Any],
) -> OpenedStack | OpenedCell:
    """What a call of the module runs on; draws dropout masks as the call does.

    Args:
        module: a recurrent module of torch.nn or bptt, or `bptt.Recurrent`.
        arguments: of its call.
        keywords: likewise.

    Raises:
        NotImplementedError: the module cannot be opened, with the reason.
    """
    with torch.no_grad():
        if isinstance(module, Recurrent):
            return _cell(module, *arguments, **keywords)
        return _stack(_as_bptt(module), *arguments, **keywords)


def _as_bptt(module: torch.nn.Module) -> ThroughTime:
    """The module, or a copy of one of torch.nn's that shares its weights."""
    name = type(module).__name__
    if not isinstance(module, ThroughTime):
        reason = reason_to_leave(module, any_device=True)
        if reason is not None:
            raise NotImplementedError(f"{name} cannot be looked into: {reason}")
        # `copy.copy` refuses parametrized modules.
        looked_into: torch.nn.Module = object.__new__(class_for(module))
        looked_into.__dict__.update(module.__dict__)
        module = looked_into
    assert isinstance(module, ThroughTime)
    if module.bidirectional:
        raise NotImplementedError(
            f"{name}: its outputs read steps before and after them (bidirectional), so "
            "no single lag stands between an output and a step; take one direction"
        )
    if module.proj_size:
        raise NotImplementedError(
            f"{name}: its state is projected (proj_size={module.proj_size}), which the "
            "loop with all lags does not know; build it with proj_size=0"
        )
    drops = module.training and module.dropout and module.num_layers > 1
    weight = module.weight_hh_l0
    if drops and isinstance(weight, Tensor) and weight.device.type != "cpu":
        raise NotImplementedError(
            f"{name}: on {weight.device} its dropout masks are drawn inside of the "
            "device's library; call model.eval() first, or move it to the CPU"
        )
    return module


def _stack(
    module: ThroughTime,
    input: Any,
    hx: Any = None,
    *,
    lengths: Tensor | None = None,
    resets: Tensor | None = None,
) -> OpenedStack:
    batch = module._arrange(input, lengths, resets, in_place=False)
    initial = module._initial(batch, hx)
    drawn = dropout.masks(module, batch.rows.steps, packed=False)
    masks = [mask for mask in drawn if isinstance(mask, Tensor)]
    ends = [f"l{at}" for at in range(module.num_layers)]
    return OpenedStack(
        _copied(batch),
        [_layer(module._cell(), module._weights(end)) for end in ends],
        [_names("", f"_{end}") for end in ends],
        initial,
        masks,
        module._policy().mean,
    )


def _cell(
    module: Recurrent,
    input: Any,
    state: Any = None,
    *,
    lengths: Tensor | None = None,
    resets: Tensor | None = None,
) -> OpenedStack | OpenedCell:
    batch, initial, nest = module._arranged(input, state, lengths, resets)
    batch = _copied(batch)
    truncation = module._policy().mean
    cell: Any = module.cell
    known = engine_cell(cell)
    if known is None:
        try:
            cell = copy.deepcopy(cell)
        except (RuntimeError, TypeError) as error:
            raise NotImplementedError(
                f"{type(cell).__name__} cannot be looked into: it has no copy ({error})"
            ) from None
        return OpenedCell(batch, cell, nest, initial, truncation)
    weights = (cell.weight_ih, cell.weight_hh, cell.bias_ih, cell.bias_hh)
    dtype = cell.weight_hh.dtype
    return OpenedStack(
        replace(batch, x=batch.x.to(dtype)),
        [_layer(known, weights)],
        [_names("cell.", "")],
        tuple(leaf.to(dtype).unsqueeze(0) for leaf in initial),
        [],
        truncation,
    )


def _names(before: str, end: str) -> tuple[str, str, str, str]:
    kinds = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    a, b, c, d = (f"{before}{kind}{end}" for kind in kinds)
    return a, b, c, d


def _layer(cell: Cell, weights: Iterable[Tensor | None]) -> Layer:
    copies = [None if w is None else w.detach().clone() for w in weights]
    return Layer(cell, *copies)  # type: ignore[arg-type]


def _copied(batch: Arrangement) -> Arrangement:
    return replace(batch, x=batch.x.detach().clone())
