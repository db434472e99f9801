"""What a cell of one's own may offer `bptt.Recurrent` beside its call.

Nothing of this is needed. A cell with a method `initial_state(batch)` can be run
without a state. A `SplitCell` names the part of its work that needs no state, which is
then done for all steps at once. A `DifferentiableCell` also knows its derivative, so
that no graph of steps is built: the fastest way in Python.
"""

from abc import ABC, abstractmethod
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from bptt.cells.base import Kept, State, StepTape
from bptt.cells.nest import flatten

Deltas = tuple[Tensor, ...]


@runtime_checkable
class HasInitialState(Protocol):
    """A cell that knows its state before the first step."""

    def initial_state(self, batch: int) -> Any:
        """The state before the first step of so many rows."""


class SplitCell(torch.nn.Module, ABC):
    """A cell whose work on the input needs no state: `step(project(x), state)`.

    `bptt.Recurrent` calls `project` once for all steps as rows of one batch, and `step`
    for each step; hooks on the cell itself do not run then.
    """

    @abstractmethod
    def project(self, x: Tensor) -> Tensor:
        """What needs no state: (rows, ...) -> `gx` (rows, ...)."""

    @abstractmethod
    def step(self, gx: Tensor, state: Any) -> tuple[Tensor, Any]:
        """The rest of a step: `gx` (rows, ...) and the state -> y and the state."""

    def forward(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        """One step: x (batch, ...) and the state -> y (batch, ...) and the state."""
        return self.step(self.project(x), state)


class DifferentiableCell(SplitCell):
    """A split cell that knows its derivative; its output is its state's first part.

    All parts of its state are floats (batch, width). `advance` reads `weights` alone,
    never a parameter; it draws no random numbers. `vjp_state` and `vjp_weights` work on
    any leading axes of rows, and are linear in `ds` and in the deltas: so the errors of
    all passes can be summed per step before the weights' gradients are formed.
    Everything is written out of place: then a derivative of the gradient exists too.

    The methods of `bptt.cells.LinearRecurrence` are the shortest example.
    """

    @abstractmethod
    def weights(self) -> tuple[Tensor, ...]:
        """What a step reads beside `gx` and the state; parameters or made of them."""

    @abstractmethod
    def advance(
        self, gx: Tensor, state: State, weights: tuple[Tensor, ...]
    ) -> tuple[State, Kept]:
        """`gx_t, s_{t-1} -> s_t`, and what the derivative needs of this step."""

    @abstractmethod
    def vjp_state(
        self, ds: State, tape: StepTape, weights: tuple[Tensor, ...]
    ) -> tuple[Deltas, State]:
        """`dE/ds_t -> deltas_t, dE/ds_{t-1}`, where the first delta is `dE/dgx_t`.

        Most cells need no other; those whose weights do not act through `gx` alone
        return what else `vjp_weights` wants summed.
        """

    @abstractmethod
    def vjp_weights(
        self, deltas: Deltas, tape: StepTape, weights: tuple[Tensor, ...]
    ) -> tuple[Tensor, ...]:
        """The summed deltas of all rows -> the gradient of each of `weights`.

        The rows are one axis here, in the deltas and in the tape.
        """

    def step(self, gx: Tensor, state: Any) -> tuple[Tensor, Any]:
        """The rest of a step: `gx` (rows, ...) and the state -> y and the state."""
        leaves, nest = flatten(state, "state")
        leaves, _ = self.advance(gx, leaves, self.weights())
        return leaves[0], nest.state(leaves)
