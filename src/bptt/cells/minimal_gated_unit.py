"""The minimal gated unit: a GRU with one gate."""

import torch
from torch import Tensor

from bptt.cells.base import Kept, State, StepTape
from bptt.cells.contract import Deltas, DifferentiableCell
from bptt.cells.slopes import before_sigmoid, before_tanh


class MinimalGatedUnit(DifferentiableCell):
    """`h_t = (1 - f) h_{t-1} + f n`.

    `f = sigmoid(U_f x_t + W_f h_{t-1} + b_f)` forgets and updates,
    `n = tanh(U_n x_t + W_n (f * h_{t-1}) + b_n)`.

    Reference: Zhou, Wu, Zhang & Zhou, "Minimal gated unit for recurrent neural
    networks", 2016. The rows of the input's weights are in the order f n.

    Args:
        input_size: width of the input.
        hidden_size: width of the state, which is the output.
        bias: whether there are biases.
    """

    def __init__(self, input_size: int, hidden_size: int, bias: bool = True) -> None:
        super().__init__()
        self.input = torch.nn.Linear(input_size, 2 * hidden_size, bias)
        self.forget = torch.nn.Linear(hidden_size, hidden_size, bias=False)
        self.recurrent = torch.nn.Linear(hidden_size, hidden_size, bias=False)

    def initial_state(self, batch: int) -> Tensor:
        """Zeros."""
        return self.recurrent.weight.new_zeros(batch, self.recurrent.in_features)

    def project(self, x: Tensor) -> Tensor:
        """`U x_t + b` of both."""
        gx: Tensor = self.input(x)
        return gx

    def weights(self) -> tuple[Tensor, ...]:
        """`W_f` and `W_n`."""
        return self.forget.weight, self.recurrent.weight

    def advance(
        self, gx: Tensor, state: State, weights: tuple[Tensor, ...]
    ) -> tuple[State, Kept]:
        """`h_t`, keeping `f` and `n`."""
        (h,), (W_f, W_n) = state, weights
        H = h.shape[-1]
        f = torch.addmm(gx[..., :H], h, W_f.t()).sigmoid()
        n = torch.addmm(gx[..., H:], f * h, W_n.t()).tanh()
        return (torch.addcmul(h, f, n - h),), (f, n)

    def vjp_state(
        self, ds: State, tape: StepTape, weights: tuple[Tensor, ...]
    ) -> tuple[Deltas, State]:
        """The state before is reached past the gate, through it, and through `n`."""
        (dh,), (h,), (f, n) = ds, tape.before, tape.kept
        W_f, W_n = weights
        df_n = dh * f
        delta_n = before_tanh(df_n, n)
        through_n = delta_n @ W_n  # the error of f * h
        delta_f = before_sigmoid(torch.addcmul(through_n * h, dh, n - h), f)
        before = torch.addcmul(dh - df_n, through_n, f) + delta_f @ W_f
        return (torch.cat((delta_f, delta_n), dim=-1),), (before,)

    def vjp_weights(
        self, deltas: Deltas, tape: StepTape, weights: tuple[Tensor, ...]
    ) -> tuple[Tensor, ...]:
        """`W_f` reads the state, `W_n` what the gate left of it."""
        (delta,), (h,), (f, _) = deltas, tape.before, tape.kept
        H = h.shape[-1]
        return delta[:, :H].t() @ h, delta[:, H:].t() @ (f * h)
