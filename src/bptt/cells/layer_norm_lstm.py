"""The LSTM with layer normalisation of its pre-activations and of its cell."""

import torch
from torch import Tensor

from bptt.cells.base import Kept, State, StepTape
from bptt.cells.contract import Deltas, DifferentiableCell
from bptt.cells.slopes import before_sigmoid, before_tanh


class LayerNormLSTM(DifferentiableCell):
    """`c_t = f c_{t-1} + i g`, `h_t = o tanh(LN(c_t))`.

    `i, f, o = sigmoid(.)` and `g = tanh(.)` of `LN(W h_{t-1}) + LN(U x_t) + b`, in the
    order i f g o. Each `LN(z) = gain * (z - mean) / sqrt(variance + eps)`, over the
    units, has gains of its own; that of the cell also a bias.

    Reference: Ba, Kiros & Hinton, "Layer normalization", 2016, supplementary material.

    Args:
        input_size: width of the input.
        hidden_size: width of the state's parts h and c; h is the output.
        eps: is added to a variance.
    """

    def __init__(self, input_size: int, hidden_size: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.input = torch.nn.Linear(input_size, 4 * hidden_size, bias=False)
        self.input_norm = torch.nn.LayerNorm(4 * hidden_size, eps)  # its bias is b
        self.recurrent = torch.nn.Linear(hidden_size, 4 * hidden_size, bias=False)
        self.recurrent_gain = torch.nn.Parameter(torch.ones(4 * hidden_size))
        self.cell_norm = torch.nn.LayerNorm(hidden_size, eps)

    def initial_state(self, batch: int) -> tuple[Tensor, Tensor]:
        """`h` and `c`, zeros."""
        h = self.recurrent_gain.new_zeros(batch, self.recurrent.in_features)
        return h, h

    def project(self, x: Tensor) -> Tensor:
        """`LN(U x_t) + b` of all gates."""
        gx: Tensor = self.input_norm(self.input(x))
        return gx

    def weights(self) -> tuple[Tensor, ...]:
        """`W`, the gain of its products, and the gain and bias of the cell."""
        norm = self.cell_norm
        return self.recurrent.weight, self.recurrent_gain, norm.weight, norm.bias

    def advance(
        self, gx: Tensor, state: State, weights: tuple[Tensor, ...]
    ) -> tuple[State, Kept]:
        """`h, c`, keeping the gates and both normalised vectors with their scales."""
        (h, c), (W, gain, cell_gain, cell_bias) = state, weights
        H = h.shape[-1]
        normal, scale = self._normalised(h @ W.t())
        z = torch.addcmul(gx, gain, normal)
        i_f = z[..., : 2 * H].sigmoid()
        g = z[..., 2 * H : 3 * H].tanh()
        o = z[..., 3 * H :].sigmoid()
        c = torch.addcmul(i_f[..., H:] * c, i_f[..., :H], g)
        cell, cell_scale = self._normalised(c)
        tanh_c = torch.addcmul(cell_bias, cell_gain, cell).tanh()
        kept = (i_f, g, o, tanh_c, normal, scale, cell, cell_scale)
        return (o * tanh_c, c), kept

    def vjp_state(
        self, ds: State, tape: StepTape, weights: tuple[Tensor, ...]
    ) -> tuple[Deltas, State]:
        """As that of the LSTM, with the two normalisations on the way."""
        (dh, dc), (W, gain, cell_gain, _) = ds, weights
        i_f, g, o, tanh_c, normal, scale, cell, cell_scale = tape.kept
        H = dh.shape[-1]
        i, f = i_f[..., :H], i_f[..., H:]
        dcell = before_tanh(dh * o, tanh_c)
        dc = dc + _before_norm(dcell * cell_gain, cell, cell_scale)
        delta = torch.cat(
            (
                before_sigmoid(dc * g, i),
                before_sigmoid(dc * tape.before[1], f),
                before_tanh(dc * i, g),
                before_sigmoid(dh * tanh_c, o),
            ),
            dim=-1,
        )
        return (delta, dcell), (_before_norm(delta * gain, normal, scale) @ W, dc * f)

    def vjp_weights(
        self, deltas: Deltas, tape: StepTape, weights: tuple[Tensor, ...]
    ) -> tuple[Tensor, ...]:
        """The cell's gain and bias act behind the gates, so they have a delta."""
        delta, dcell = deltas
        _, _, _, _, normal, scale, cell, _ = tape.kept
        product = _before_norm(delta * weights[1], normal, scale)
        return (
            product.t() @ tape.before[0],
            (delta * normal).sum(0),
            (dcell * cell).sum(0),
            dcell.sum(0),
        )

    def _normalised(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """`(z - mean) / sqrt(variance + eps)`, and one over that root."""
        # Not torch.native_layer_norm: autograd does not follow the scale it returns.
        variance, mean = torch.var_mean(z, -1, correction=0, keepdim=True)
        scale = torch.rsqrt(variance + self.eps)
        return (z - mean) * scale, scale


def _before_norm(d: Tensor, normal: Tensor, scale: Tensor) -> Tensor:
    """The error before a normalisation from that behind it."""
    along = (d * normal).mean(-1, keepdim=True)
    return (d - d.mean(-1, keepdim=True) - normal * along) * scale
