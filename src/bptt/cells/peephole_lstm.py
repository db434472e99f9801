"""The LSTM whose gates also see the cell: peephole connections."""

import torch
from torch import Tensor

from bptt.cells.base import Kept, State, StepTape
from bptt.cells.contract import Deltas, DifferentiableCell
from bptt.cells.slopes import before_sigmoid, before_tanh


class PeepholeLSTM(DifferentiableCell):
    """`c_t = f c_{t-1} + i g`, `h_t = o tanh(c_t)`, the gates seeing the cell.

    With `z = U x_t + W h_{t-1} + b` in the order i f g o:
    `i = sigmoid(z_i + p_i c_{t-1})`, `f = sigmoid(z_f + p_f c_{t-1})`,
    `g = tanh(z_g)`, `o = sigmoid(z_o + p_o c_t)`.

    References: Gers & Schmidhuber, "Recurrent nets that time and count", 2000; Gers,
    Schraudolph & Schmidhuber, "Learning precise timing with LSTM recurrent networks",
    2002, with a tanh on the cell's way in and out.

    Args:
        input_size: width of the input.
        hidden_size: width of the state's parts h and c; h is the output.
        bias: whether there is `b`.
    """

    def __init__(self, input_size: int, hidden_size: int, bias: bool = True) -> None:
        super().__init__()
        self.input = torch.nn.Linear(input_size, 4 * hidden_size, bias)
        self.recurrent = torch.nn.Linear(hidden_size, 4 * hidden_size, bias=False)
        width = hidden_size**-0.5
        peepholes = torch.empty(3, hidden_size).uniform_(-width, width)
        self.peepholes = torch.nn.Parameter(peepholes)  # i f o

    def initial_state(self, batch: int) -> tuple[Tensor, Tensor]:
        """`h` and `c`, zeros."""
        h = self.peepholes.new_zeros(batch, self.recurrent.in_features)
        return h, h

    def project(self, x: Tensor) -> Tensor:
        """`U x_t + b` of all gates."""
        gx: Tensor = self.input(x)
        return gx

    def weights(self) -> tuple[Tensor, ...]:
        """`W` and the peepholes."""
        return self.recurrent.weight, self.peepholes

    def advance(
        self, gx: Tensor, state: State, weights: tuple[Tensor, ...]
    ) -> tuple[State, Kept]:
        """`h, c`, keeping `sigmoid i f`, `tanh g`, `sigmoid o` and `tanh c`."""
        (h, c), (W, p) = state, weights
        H = h.shape[-1]
        z = torch.addmm(gx, h, W.t())
        seen = (p[:2] * c.unsqueeze(-2)).flatten(-2)
        i_f = (z[..., : 2 * H] + seen).sigmoid()
        g = z[..., 2 * H : 3 * H].tanh()
        c = torch.addcmul(i_f[..., H:] * c, i_f[..., :H], g)
        o = torch.addcmul(z[..., 3 * H :], p[2], c).sigmoid()
        tanh_c = c.tanh()
        return (o * tanh_c, c), (i_f, g, o, tanh_c)

    def vjp_state(
        self, ds: State, tape: StepTape, weights: tuple[Tensor, ...]
    ) -> tuple[Deltas, State]:
        """The error of `c_t` comes through `h_t`, later steps, and the output gate."""
        (dh, dc), (W, p) = ds, weights
        i_f, g, o, tanh_c = tape.kept
        H = dh.shape[-1]
        i, f = i_f[..., :H], i_f[..., H:]
        d_o = before_sigmoid(dh * tanh_c, o)
        dc = torch.addcmul(dc + before_tanh(dh * o, tanh_c), d_o, p[2])
        d_i, d_f = before_sigmoid(dc * g, i), before_sigmoid(dc * tape.before[1], f)
        delta = torch.cat((d_i, d_f, before_tanh(dc * i, g), d_o), dim=-1)
        dc = torch.addcmul(torch.addcmul(dc * f, d_i, p[0]), d_f, p[1])
        return (delta,), (delta @ W, dc)

    def vjp_weights(
        self, deltas: Deltas, tape: StepTape, weights: tuple[Tensor, ...]
    ) -> tuple[Tensor, ...]:
        """The peepholes of i and f see the cell before the step, that of o after it."""
        (delta,), (h, c) = deltas, tape.before
        H = h.shape[-1]
        of_i, of_f, of_o = delta[:, :H], delta[:, H : 2 * H], delta[:, 3 * H :]
        sums = [(of_i * c).sum(0), (of_f * c).sum(0), (of_o * tape.after[1]).sum(0)]
        return delta.t() @ h, torch.stack(sums)
