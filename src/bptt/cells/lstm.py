"""The LSTM cell with a forget gate, gates in torch's order i f g o."""

import torch
from jaxtyping import Float
from torch import Tensor

from bptt.cells.base import Cell, Kept, State, StepTape


class LSTMCell(Cell):
    """`c_t = f c_{t-1} + i g`, `h_t = o tanh(c_t)`.

    `i, f, o = sigmoid(.)` and `g = tanh(.)` of `U x_t + W h_{t-1} + b`.

    Reference: Hochreiter & Schmidhuber, "Long short-term memory", 1997; the forget gate
    from Gers, Schmidhuber & Cummins, "Learning to forget", 2000, equations 3 to 8.
    """

    gates = 4
    state_parts = 2

    def step(
        self,
        gx: Float[Tensor, "batch gates"],
        state: State,
        W: Float[Tensor, "gates state"],
        b_hh: Float[Tensor, " gates"] | None,
    ) -> tuple[State, Kept]:
        """`h, c`, keeping `sigmoid i f`, `tanh g`, `sigmoid o` and `tanh c`."""
        h, c = state
        H = h.shape[-1]
        z = torch.addmm(gx, h, W.t())
        i_f = z[..., : 2 * H].sigmoid()
        g = z[..., 2 * H : 3 * H].tanh()
        o = z[..., 3 * H :].sigmoid()
        i, f = i_f[..., :H], i_f[..., H:]
        c = torch.addcmul(f * c, i, g)
        tanh_c = c.tanh()
        return (o * tanh_c, c), (i_f, g, o, tanh_c)

    def vjp_state(
        self, ds: State, tape: StepTape, W: Float[Tensor, "gates state"]
    ) -> tuple[Float[Tensor, "passes batch gates"], State]:
        """The error of `c_t` comes through `h_t` and from later steps together."""
        dh, dc = ds
        i_f, g, o, tanh_c = tape.kept
        H = dh.shape[-1]
        i, f = i_f[..., :H], i_f[..., H:]
        dc = torch.addcmul(dc, dh * o, 1 - tanh_c * tanh_c)
        delta = torch.cat(
            (
                dc * g * (i * (1 - i)),
                dc * tape.before[1] * (f * (1 - f)),
                dc * i * (1 - g * g),
                dh * tanh_c * (o * (1 - o)),
            ),
            dim=-1,
        )
        return delta, (delta @ W, dc * f)
