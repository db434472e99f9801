"""How many steps of a user's cell a memory budget lets run again at a time.

One step, run on copies, shows what a step keeps: the numbers of its tensors, and what
the graph itself takes, which for small states is several times as much.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bptt.cells.contract import SplitCell
from bptt.cells.nest import Leaves, Nest
from bptt.memory import Budget, Costs
from bptt.memory import segment_steps as longest_segment
from bptt.own_cells import plain
from bptt.own_cells.caller import Caller, RandomState, random_state, same_random_state
from bptt.rows import Rows
from bptt.truncation import Truncation

# Resident bytes, beside a tensor's numbers: chains of 30,000 operations on one float
# grew by 500 to 560 a node that saves nothing (neg, add), by 380 to 390 more for each
# tensor saved (exp, mul), and a list of tensors by 540 each (torch 2.6 to 2.10, glibc).
_NODE_BYTES = 560
_SAVED_BYTES = 400
_TENSOR_BYTES = 550


@dataclass(frozen=True)
class KeptBytes:
    """What a step keeps for the way back.

    Attributes:
        state: bytes of the state's leaves: what keeping a state costs.
        graph: bytes of numbers that the graph of one step keeps, beside parameters.
        projected: bytes of what a split cell makes of the step's input.
        output: bytes of the step's output.
        nodes: of the graph, beside those that stand for parameters.
        saved: tensors that the graph keeps, one as often as it is kept.
        random: bytes of the generators' state, if the step draws from them.
    """

    state: int
    graph: int
    projected: int
    output: int
    nodes: int
    saved: int
    random: int


def segment_steps(
    cell: torch.nn.Module,
    nest: Nest,
    x: Tensor,
    initial: Leaves,
    truncation: Truncation,
    rows: Rows,
    budget: Budget,
    *,
    wider: int = 0,
) -> int | None:
    """Steps of a segment, for `run`; None if all that steps keep fits.

    Args:
        cell: as for `run`.
        nest: as for `run`.
        x: as for `run`.
        initial: as for `run`.
        truncation: as for `run`.
        rows: as for `run`.
        budget: what may be kept.
        wider: bytes to be added for each step.

    Raises:
        ValueError: the budget is too small; the text names the least that is enough.
    """
    if not rows.batch:
        return None
    time = rows.time
    kept = kept_bytes(cell, nest, x[: rows.batch] if rows.is_ragged else x[0], initial)
    state = kept.state + len(initial) * _TENSOR_BYTES
    graph = kept.graph + kept.nodes * _NODE_BYTES + kept.saved * _SAVED_BYTES
    step = graph + kept.output + 2 * (state + kept.projected + _TENSOR_BYTES) + wider
    passes = 1
    if not truncation.is_full_over(time):  # their errors
        assert truncation.k1 is not None
        assert truncation.k2 is not None
        passes += min(truncation.k2, time) // truncation.k1 + 1
    costs = Costs(
        step_bytes=step,
        state_bytes=state + kept.random,
        fixed_bytes=2 * passes * state + kept.random,
    )
    steps = longest_segment(time, costs, budget)
    return None if steps >= time else steps


def kept_bytes(
    cell: torch.nn.Module, nest: Nest, x: Tensor, initial: Leaves
) -> KeptBytes:
    """Measure one step, run on copies with the random numbers put back.

    Args:
        cell: as for `run`.
        nest: as for `run`.
        x: the input of the first step, (batch, ...).
        initial: the state before it.
    """
    found: dict[int, int] = {}
    saved = 0

    def note(t: Tensor) -> Tensor:
        nonlocal saved
        saved += 1
        storage = t.untyped_storage()
        found[storage.data_ptr()] = storage.nbytes()
        return t

    caller = Caller(cell, nest)
    leaves = tuple(
        leaf.detach().clone().requires_grad_(leaf.is_floating_point())
        for leaf in initial
    )
    devices = [x.device] if x.device.type != "cpu" else []
    kind = x.device.type if devices else "cuda"
    with (
        torch.random.fork_rng(devices, device_type=kind),
        torch.enable_grad(),
        torch.autograd.graph.saved_tensors_hooks(note, lambda t: t),
    ):
        before = random_state(x.device)
        one = x.detach().clone().unsqueeze(0)
        gx = plain.projected(cell, one, ragged=False)[0]
        y, after = caller(gx, leaves)
        drawn = not same_random_state(before, random_state(x.device))
    parameters = list(cell.parameters())
    for parameter in parameters:
        found.pop(parameter.untyped_storage().data_ptr(), None)
    return KeptBytes(
        state=sum(leaf.nbytes for leaf in initial),
        graph=sum(found.values()),
        projected=gx.nbytes if isinstance(cell, SplitCell) else 0,
        output=y.nbytes,
        nodes=sum(1 for _ in _nodes((y, *after), parameters)),
        saved=saved,
        random=_bytes_of(before) if drawn else 0,
    )


def _nodes(outputs: Leaves, parameters: list[torch.nn.Parameter]) -> Iterator[Any]:
    """The nodes of a graph, but for those that came before it."""
    known = {id(p) for p in parameters}
    seen = {p.grad_fn for p in parameters if p.grad_fn is not None}
    waiting: list[Any] = [t.grad_fn for t in outputs if t.grad_fn is not None]
    while waiting:
        node = waiting.pop()
        if node in seen:
            continue
        seen.add(node)
        if id(getattr(node, "variable", None)) in known:
            continue
        yield node
        waiting += [after for after, _ in node.next_functions if after is not None]


def _bytes_of(state: RandomState) -> int:
    return sum(part.nbytes for part in state)
