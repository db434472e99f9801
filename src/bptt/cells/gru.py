"""The GRU cell, gates in torch's order r z n, the reset gate after the product."""

import torch
from jaxtyping import Float
from torch import Tensor

from bptt.cells.base import Cell, Kept, State, StepTape


class GRUCell(Cell):
    """`h_t = (1 - z) n + z h_{t-1}`, `n = tanh(U_n x_t + b + r (W_n h_{t-1} + b_hn))`.

    `r, z = sigmoid(.)` of their own rows of `U x_t + W h_{t-1} + b`.

    Reference: Cho et al., "Learning phrase representations using RNN encoder-decoder
    for statistical machine translation", 2014, equations 5 to 8; the reset gate after
    the product, as PyTorch and cuDNN have it.
    """

    gates = 3
    state_parts = 1

    def input_bias(self, b_ih: Tensor | None, b_hh: Tensor | None) -> Tensor | None:
        """Only `b_ih`: the reset gate scales `b_hn`, so it stays with `W h`."""
        return b_ih

    def step(
        self,
        gx: Float[Tensor, "batch gates"],
        state: State,
        W: Float[Tensor, "gates state"],
        b_hh: Float[Tensor, " gates"] | None,
    ) -> tuple[State, Kept]:
        """`h`, keeping `sigmoid r z`, `tanh n` and `W_n h_{t-1} + b_hn`."""
        (h,) = state
        H = h.shape[-1]
        gh = torch.mm(h, W.t()) if b_hh is None else torch.addmm(b_hh, h, W.t())
        r_z = (gx[..., : 2 * H] + gh[..., : 2 * H]).sigmoid()
        r, z = r_z[..., :H], r_z[..., H:]
        gh_n = gh[..., 2 * H :]
        n = torch.addcmul(gx[..., 2 * H :], r, gh_n).tanh()
        return (torch.addcmul(n, z, h - n),), (r_z, n, gh_n)

    def vjp_state(
        self, ds: State, tape: StepTape, W: Float[Tensor, "gates state"]
    ) -> tuple[Float[Tensor, "passes batch gates"], State]:
        """The state before a step is reached past the gates, by `z`, and by `W`."""
        (dh,) = ds
        (h_prev,) = tape.before
        r_z, n, gh_n = tape.kept
        H = dh.shape[-1]
        r, z = r_z[..., :H], r_z[..., H:]
        delta_n = dh * (1 - z) * (1 - n * n)
        delta = torch.cat(
            (
                delta_n * gh_n * (r * (1 - r)),
                dh * (h_prev - n) * (z * (1 - z)),
                delta_n,
            ),
            dim=-1,
        )
        return delta, (torch.addcmul(self.hidden_delta(delta, tape) @ W, dh, z),)

    def hidden_delta(
        self, delta: Float[Tensor, "time batch gates"], tape: StepTape
    ) -> Float[Tensor, "time batch gates"]:
        """The reset gate stands between `n` and `W_n h_{t-1}`."""
        H = delta.shape[-1] // 3
        r = tape.kept[0][..., :H]
        return torch.cat((delta[..., : 2 * H], delta[..., 2 * H :] * r), dim=-1)
