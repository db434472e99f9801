"""A user's cell as the loops call it, and what must be known of it beforehand."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call

from bptt.cells.contract import SplitCell
from bptt.cells.nest import Leaves, Nest, flatten


class _Step(torch.nn.Module):
    """The step of a cell as a module, so that its parameters can be replaced."""

    def __init__(self, cell: torch.nn.Module, *, whole: bool) -> None:
        super().__init__()
        self.cell = cell
        self.whole = whole

    def forward(self, x: Tensor, state: Any) -> Any:
        """`step` of what was projected already, or the whole cell."""
        if isinstance(self.cell, SplitCell) and not self.whole:
            return self.cell.step(x, state)
        return self.cell(x, state)


@dataclass(frozen=True)
class Caller:
    """Calls a cell with a state's leaves, and holds its answer to the contract.

    Attributes:
        cell: the cell.
        nest: how the cell has its state.
        replaced: tensors for some of the cell's parameters, by name.
        whole: whether to call all of a `SplitCell`, not the part after `project`.
    """

    cell: torch.nn.Module
    nest: Nest
    replaced: Mapping[str, Tensor] | None = None
    whole: bool = False

    def __call__(self, x: Tensor, leaves: Leaves) -> tuple[Tensor, Leaves]:
        """One step of any rows."""
        state = self.nest.state(leaves)
        if self.replaced is not None:
            tensors = {f"cell.{name}": t for name, t in self.replaced.items()}
            step = _Step(self.cell, whole=self.whole)
            found = functional_call(step, tensors, (x, state))
        elif isinstance(self.cell, SplitCell) and not self.whole:
            found = self.cell.step(x, state)
        else:
            found = self.cell(x, state)
        return self._checked(found, x)

    def _checked(self, found: Any, x: Tensor) -> tuple[Tensor, Leaves]:
        name = type(self.cell).__name__
        if not isinstance(found, tuple) or len(found) != 2:
            given = (
                f"a tuple of {len(found)}"
                if isinstance(found, tuple)
                else type(found).__name__
            )
            raise TypeError(
                f"cell: {name} must return a pair (y, state); it returned {given}"
            )
        y, state = found
        leaves, nest = flatten(state, f"the state that {name} returns")
        if nest != self.nest:
            raise ValueError(
                f"cell: {name} must return a state nested as the one it was given, "
                f"{self.nest}; it returned {nest}"
            )
        if not isinstance(y, Tensor) or y.dim() < 1 or y.shape[0] != x.shape[0]:
            given = str(tuple(y.shape)) if isinstance(y, Tensor) else type(y).__name__
            raise ValueError(
                f"cell: the output y of {name} must be a tensor with the batch as its "
                f"first axis, here ({x.shape[0]}, ...); it is {given}"
            )
        return y, leaves

    def parameters(self) -> dict[str, Tensor]:
        """What can be trained in the cell, by name."""
        return {n: p for n, p in self.cell.named_parameters() if p.requires_grad}

    def bound(self, parameters: Mapping[str, Tensor]) -> "Caller":
        """The same with these parameters, where the cell has others by now."""
        now = self.parameters()
        if all(now.get(name) is tensor for name, tensor in parameters.items()):
            return self
        return Caller(self.cell, self.nest, parameters, self.whole)


def is_differentiable(t: Tensor) -> bool:
    """Whether errors can be had of a leaf of the state: not of counters."""
    return t.is_floating_point() or t.is_complex()


def refuse_changed(
    name: str, tensors: Sequence[Tensor], versions: Sequence[int], step: int
) -> None:
    """Raise where a cell has written into what it was given."""
    if [t._version for t in tensors] != versions:
        raise RuntimeError(
            f"cell: {name} changed its input or its state in place at step {step}, or "
            "returned a tensor that it writes again; the state before each step is "
            "needed for going back: compute new tensors, as `s = s + d` for `s += d`"
        )


def refuse_foreign(
    name: str, outputs: Sequence[Tensor], known: Sequence[Tensor]
) -> None:
    """Raise where outputs depend on trained tensors that are not among the known.

    A truncated backward pass hands errors to the input, the state and the cell's own
    parameters; what else the cell reads would silently get none.
    """
    leaves = {id(t) for t in known}
    seen = {t.grad_fn for t in known if t.grad_fn is not None}
    waiting = [t.grad_fn for t in outputs if t.grad_fn is not None]
    while waiting:
        node = waiting.pop()
        if node in seen:
            continue
        seen.add(node)
        variable = _variable_of(node)
        if variable is not None and id(variable) not in leaves:
            raise ValueError(
                f"cell: {name} reads a tensor of shape {tuple(variable.shape)} that "
                "requires a gradient and is neither its parameter nor its input; "
                "under a truncation it would get none: register it as a parameter of "
                "the cell, or hand it in as part of the input or state"
            )
        waiting += [after for after, _ in node.next_functions if after is not None]


def _variable_of(node: Any) -> Tensor | None:
    return node.variable if type(node).__name__ == "AccumulateGrad" else None


RandomState = tuple[Tensor, ...]


def random_state(device: torch.device) -> RandomState:
    """The state of the global generators that a cell may draw from."""
    state = (torch.get_rng_state(),)
    if device.type == "cpu":
        return state
    return (*state, torch.get_device_module(device).get_rng_state(device))


def same_random_state(a: RandomState, b: RandomState) -> bool:
    """Whether nothing was drawn in between."""
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@contextmanager
def drawing_again(device: torch.device, state: RandomState) -> Iterator[None]:
    """Draw the same numbers as from `state`, then go on as if nothing was drawn."""
    now = random_state(device)
    try:
        _set_random_state(device, state)
        yield
    finally:
        _set_random_state(device, now)


def _set_random_state(device: torch.device, state: RandomState) -> None:
    torch.set_rng_state(state[0])
    if len(state) > 1:
        torch.get_device_module(device).set_rng_state(state[1], device)


@dataclass(frozen=True)
class Autocast:
    """The state of autocast for a device, to compute again what was computed in it."""

    device: str
    enabled: bool
    dtype: torch.dtype | None

    @classmethod
    def now(cls, device: torch.device) -> "Autocast":
        """As it is."""
        if not torch.amp.is_autocast_available(device.type):
            return cls("cpu", False, None)
        enabled = torch.is_autocast_enabled(device.type)
        return cls(device.type, enabled, torch.get_autocast_dtype(device.type))

    def again(self) -> torch.autocast:
        """A context in which it is so."""
        return torch.autocast(
            self.device, dtype=self.dtype, enabled=self.enabled, cache_enabled=False
        )
