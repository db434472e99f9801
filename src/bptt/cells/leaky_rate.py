"""Leaky rate units: a continuous-time RNN, integrated by Euler's method."""

import torch
from torch import Tensor

from bptt.cells.base import Kept, State, StepTape
from bptt.cells.contract import Deltas, DifferentiableCell
from bptt.cells.slopes import before_tanh


class LeakyRate(DifferentiableCell):
    """`h_t = (1 - a) h_{t-1} + a tanh(U x_t + W h_{t-1} + b)`, `a = dt / tau`.

    One Euler step of `tau dh/dt = -h + tanh(U x + W h + b)`.

    References: Dayan & Abbott, "Theoretical neuroscience", 2001, section 7.2 (the rate
    equation); Song, Yang & Wang, "Training excitatory-inhibitory recurrent neural
    networks for cognitive tasks", 2016 (trained in this discretisation).

    Args:
        input_size: width of the input.
        hidden_size: width of the state, which is the output.
        bias: whether there is `b`.
        dt: length of a step, in the unit of `tau`; at most `tau`.
        tau: time constant of the units.

    Raises:
        ValueError: `dt` is not above 0 and at most `tau`.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        *,
        dt: float = 1.0,
        tau: float = 5.0,
    ) -> None:
        super().__init__()
        if not 0 < dt <= tau:
            raise ValueError(
                f"dt must be above 0 and at most tau = {tau}, or the Euler step "
                f"overshoots; got {dt}: take a smaller one"
            )
        self.a = dt / tau
        self.input = torch.nn.Linear(input_size, hidden_size, bias)
        self.recurrent = torch.nn.Linear(hidden_size, hidden_size, bias=False)

    def initial_state(self, batch: int) -> Tensor:
        """Zeros."""
        return self.recurrent.weight.new_zeros(batch, self.recurrent.in_features)

    def project(self, x: Tensor) -> Tensor:
        """`U x_t + b`."""
        gx: Tensor = self.input(x)
        return gx

    def weights(self) -> tuple[Tensor, ...]:
        """`W`."""
        return (self.recurrent.weight,)

    def advance(
        self, gx: Tensor, state: State, weights: tuple[Tensor, ...]
    ) -> tuple[State, Kept]:
        """`h_t`, keeping the rates `r = tanh(gx_t + W h_{t-1})`."""
        (h,) = state
        r = torch.addmm(gx, h, weights[0].t()).tanh()
        return (torch.add(h, r - h, alpha=self.a),), (r,)

    def vjp_state(
        self, ds: State, tape: StepTape, weights: tuple[Tensor, ...]
    ) -> tuple[Deltas, State]:
        """`delta_t = a (1 - r^2) dh_t`, `dh_{t-1} = (1 - a) dh_t + W^T delta_t`."""
        (dh,), (r,) = ds, tape.kept
        delta = before_tanh(dh, r) * self.a
        return (delta,), (torch.add(delta @ weights[0], dh, alpha=1 - self.a),)

    def vjp_weights(
        self, deltas: Deltas, tape: StepTape, weights: tuple[Tensor, ...]
    ) -> tuple[Tensor, ...]:
        """`dW = sum_t delta_t h_{t-1}^T`."""
        return (deltas[0].t() @ tape.before[0],)
