"""Leaky integrate-and-fire neurons, trained with a surrogate gradient."""

import math
from typing import Any

import torch
from torch import Tensor

from bptt.cells.base import Kept, State, StepTape
from bptt.cells.contract import Deltas, DifferentiableCell


class LeakyIntegrateAndFire(DifferentiableCell):
    """`v_t = a v_{t-1} + U x_t + W s_{t-1} + b - s_{t-1}`, `s_t = [v_t > 1]`.

    `s` are the spikes, the output; `v` is the membrane potential, `a = exp(-dt / tau)`
    its leak; a spike takes the threshold, 1, off it. The derivative of a spike is taken
    to be that of a fast sigmoid, `1 / (slope |v - 1| + 1)^2`.

    References: Neftci, Mostafa & Zenke, "Surrogate gradient learning in spiking neural
    networks", 2019, without a synaptic current; the surrogate from
    Zenke & Ganguli, "SuperSpike", 2018.

    Args:
        input_size: width of the input.
        hidden_size: neurons.
        bias: whether there is `b`.
        dt: length of a step, in the unit of `tau`.
        tau: time constant of the membrane.
        slope: of the surrogate; the larger, the narrower.

    Raises:
        ValueError: `dt`, `tau` or `slope` is not positive.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        *,
        dt: float = 1.0,
        tau: float = 10.0,
        slope: float = 10.0,
    ) -> None:
        super().__init__()
        for name, value in (("dt", dt), ("tau", tau), ("slope", slope)):
            if not value > 0:
                raise ValueError(f"{name} must be above 0; got {value}")
        self.a = math.exp(-dt / tau)
        self.slope = slope
        self.input = torch.nn.Linear(input_size, hidden_size, bias)
        self.recurrent = torch.nn.Linear(hidden_size, hidden_size, bias=False)

    def initial_state(self, batch: int) -> tuple[Tensor, Tensor]:
        """No spikes, and `v` at rest: zeros."""
        v = self.recurrent.weight.new_zeros(batch, self.recurrent.in_features)
        return v, v

    def project(self, x: Tensor) -> Tensor:
        """`U x_t + b`."""
        gx: Tensor = self.input(x)
        return gx

    def step(self, gx: Tensor, state: Any) -> tuple[Tensor, Any]:
        """As `advance`; autograd too differentiates a spike as its surrogate."""
        (s, v), W = state, self.recurrent.weight
        v = torch.add(torch.addmm(gx - s, s, W.t()), v, alpha=self.a)
        s = _Spike.apply(v, self.slope)  # type: ignore[no-untyped-call]
        return s, (s, v)

    def weights(self) -> tuple[Tensor, ...]:
        """`W`."""
        return (self.recurrent.weight,)

    def advance(
        self, gx: Tensor, state: State, weights: tuple[Tensor, ...]
    ) -> tuple[State, Kept]:
        """`s, v`."""
        s, v = state
        v = torch.add(torch.addmm(gx - s, s, weights[0].t()), v, alpha=self.a)
        return ((v > 1).to(v.dtype), v), ()

    def vjp_state(
        self, ds: State, tape: StepTape, weights: tuple[Tensor, ...]
    ) -> tuple[Deltas, State]:
        """The error of `v_t` comes from later steps and through the surrogate."""
        dspike, dv = ds
        delta = torch.addcmul(dv, dspike, _surrogate(tape.after[1], self.slope))
        return (delta,), (delta @ weights[0] - delta, delta * self.a)

    def vjp_weights(
        self, deltas: Deltas, tape: StepTape, weights: tuple[Tensor, ...]
    ) -> tuple[Tensor, ...]:
        """`dW = sum_t delta_t s_{t-1}^T`."""
        return (deltas[0].t() @ tape.before[0],)


def _surrogate(v: Tensor, slope: float) -> Tensor:
    return ((v - 1).abs() * slope + 1).square().reciprocal()


class _Spike(torch.autograd.Function):
    """`[v > 1]`, with the surrogate as its derivative."""

    @staticmethod
    def forward(ctx: Any, v: Tensor, slope: float) -> Tensor:
        """0 or 1."""
        ctx.save_for_backward(v)
        ctx.slope = slope
        return (v > 1).to(v.dtype)

    @staticmethod
    def backward(ctx: Any, d: Tensor) -> Any:
        """The error of `v`."""
        (v,) = ctx.saved_tensors
        return d * _surrogate(v, ctx.slope), None
