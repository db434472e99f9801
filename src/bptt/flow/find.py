"""Which module of a model is looked into, and what its call makes a problem of."""

from collections.abc import Callable

import torch
from torch import Tensor

from bptt.cells.base import State
from bptt.flow.capture import Call, capture, drawing_from
from bptt.flow.own_cell import CellProblem
from bptt.flow.problem import Problem
from bptt.flow.stack import StackProblem
from bptt.modules import Recurrent
from bptt.modules.arrangement import Arrangement
from bptt.modules.opened import OpenedStack, opened
from bptt.own_cells.caller import is_differentiable


def problem_of(
    model: torch.nn.Module, loss: Callable[[], Tensor], module: str | None
) -> tuple[Problem, str]:
    """Run the loss once; what is to be analysed, and the module's name.

    Args:
        model: holds the recurrent module, or is it.
        loss: runs the model, returns the scalar loss.
        module: the recurrent module's name; None where there is one.

    Raises:
        TypeError, ValueError, NotImplementedError, FloatingPointError: see
            `gradient_flow`.
    """
    name, found = _chosen(model, module)
    shown = f"module {name!r}" if name else f"the {type(found).__name__}"
    call = capture(model, found, shown, loss)
    return _problem(found, call), name


def _chosen(model: object, name: str | None) -> tuple[str, torch.nn.Module]:
    if not isinstance(model, torch.nn.Module):
        raise TypeError(f"model must be a torch.nn.Module; got {type(model).__name__}")
    candidates = dict(_candidates(model))
    if name is not None:
        modules = dict(model.named_modules())
        if name not in modules:
            listed = ", ".join(map(repr, candidates)) or "none"
            raise ValueError(
                f"module: the model has no module {name!r}; its recurrent ones: "
                f"{listed}"
            )
        if name not in candidates:
            raise ValueError(
                f"module: {name!r} is a {type(modules[name]).__name__}, and what can "
                "be looked into are torch.nn's and bptt's RNN, GRU and LSTM, and "
                "bptt.Recurrent"
            )
        return name, candidates[name]
    if len(candidates) > 1:
        raise ValueError(
            f"model: it has {len(candidates)} recurrent modules; choose one, as with "
            f"module={next(iter(candidates))!r}, of: "
            f"{', '.join(map(repr, candidates))}"
        )
    if not candidates:
        cells = [
            f"{at!r} ({type(m).__name__})"
            for at, m in model.named_modules()
            if isinstance(m, torch.nn.RNNCellBase)
        ]
        remedy = (
            f"; it has {', '.join(cells)}, whose loop is the model's own: wrap the "
            "cell in bptt.Recurrent, which runs it over a sequence"
            if cells
            else ""
        )
        raise ValueError(
            "model: it has no recurrent module, which is torch.nn's or bptt's RNN, "
            f"GRU or LSTM, or bptt.Recurrent{remedy}"
        )
    return next(iter(candidates.items()))


def _candidates(model: torch.nn.Module) -> list[tuple[str, torch.nn.Module]]:
    found: list[tuple[str, torch.nn.Module]] = []
    inside: set[int] = set()  # of cells
    for name, module in model.named_modules():
        if id(module) in inside:
            continue
        if isinstance(module, Recurrent):
            inside |= {id(part) for part in module.cell.modules()}
        is_script = isinstance(module, torch.jit.ScriptModule)
        is_scripted = is_script and module.original_name in {"RNN", "GRU", "LSTM"}
        if isinstance(module, Recurrent | torch.nn.RNNBase) or is_scripted:
            found.append((name, module))
    return found


def _problem(module: torch.nn.Module, call: Call) -> Problem:
    with drawing_from(call.random, module):
        found = opened(module, call.arguments, call.keywords)
    batch = found.batch
    dy = batch.of_outputs(call.dy).contiguous()
    if isinstance(found, OpenedStack):
        dtype = found.layers[0].W.dtype
        return StackProblem(
            rows=batch.rows,
            truncation=found.truncation,
            dy=dy.to(dtype),
            layers=found.layers,
            names=found.names,
            x=batch.x.to(dtype) if batch.x.is_floating_point() else batch.x,
            initial=found.initial,
            masks=found.masks,
            dfinal=_stack_ends(module, batch, call, dtype),
        )
    floating = [leaf for leaf in found.initial if is_differentiable(leaf)]
    ends = tuple(
        d if batch.order is None else d.index_select(0, batch.order)
        for d in call.dstate
    )
    if len(ends) != len(floating):
        raise ValueError(
            f"cell: its state has {len(floating)} tensors of floats and its final "
            f"state {len(ends)}; they must be alike"
        )
    return CellProblem(
        rows=batch.rows,
        truncation=found.truncation,
        dy=dy,
        cell=found.cell,
        nest=found.nest,
        x=batch.x,
        initial=found.initial,
        dfinal=ends,
    )


def _stack_ends(
    module: torch.nn.Module, batch: Arrangement, call: Call, dtype: torch.dtype
) -> State:
    """The error of the final state, parts (layers, batch, state)."""
    if isinstance(module, Recurrent):
        parts = tuple(d.unsqueeze(0) for d in call.dstate)
        if batch.order is not None:
            parts = tuple(d.index_select(1, batch.order) for d in parts)
    else:
        parts = tuple(map(batch.of_state, call.dstate))
    return tuple(d.to(dtype).contiguous() for d in parts)
