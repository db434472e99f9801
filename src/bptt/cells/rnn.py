"""The Elman cell, with tanh or with a rectifier."""

from abc import abstractmethod

import torch
from jaxtyping import Float
from torch import Tensor

from bptt.cells.base import Cell, Kept, State, StepTape


class _ElmanCell(Cell):
    """`h_t = f(U x_t + W h_{t-1} + b)`.

    Reference: Elman, "Finding structure in time", 1990.
    """

    gates = 1
    state_parts = 1

    @staticmethod
    @abstractmethod
    def activation(z: Tensor) -> Tensor:
        """`f(z)`."""

    @staticmethod
    @abstractmethod
    def slope(h: Tensor) -> Tensor:
        """`f'(z)`, written in `h = f(z)`."""

    def step(
        self,
        gx: Float[Tensor, "batch gates"],
        state: State,
        W: Float[Tensor, "gates state"],
        b_hh: Float[Tensor, " gates"] | None,
    ) -> tuple[State, Kept]:
        """`h_t = f(gx_t + W h_{t-1})`."""
        return (self.activation(torch.addmm(gx, state[0], W.t())),), ()

    def vjp_state(
        self, ds: State, tape: StepTape, W: Float[Tensor, "gates state"]
    ) -> tuple[Float[Tensor, "passes batch gates"], State]:
        """`delta_t = f'(z_t) dh_t`, `dh_{t-1} = W^T delta_t`."""
        delta = ds[0] * self.slope(tape.after[0])
        return delta, (delta @ W,)


class TanhCell(_ElmanCell):
    """`h_t = tanh(U x_t + W h_{t-1} + b)`, the tutorial's."""

    @staticmethod
    def activation(z: Tensor) -> Tensor:
        """`tanh(z)`."""
        return z.tanh()

    @staticmethod
    def slope(h: Tensor) -> Tensor:
        """`1 - tanh(z)^2`."""
        return 1 - h * h


class ReLUCell(_ElmanCell):
    """`h_t = max(0, U x_t + W h_{t-1} + b)`.

    Reference: Le, Jaitly & Hinton, "A simple way to initialize recurrent networks of
    rectified linear units", 2015.
    """

    @staticmethod
    def activation(z: Tensor) -> Tensor:
        """`max(0, z)`."""
        return z.relu()

    @staticmethod
    def slope(h: Tensor) -> Tensor:
        """1 where the unit is on, else 0; 0 at the kink, as in PyTorch."""
        return (h > 0).to(h.dtype)
