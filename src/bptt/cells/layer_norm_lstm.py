"""The LSTM with layer normalisation of its pre-activations and of its cell."""

from collections.abc import Sequence

import torch
from torch import Tensor, ops

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
        """`h, c`, keeping the gates, `W h` and the statistics of both norms."""
        (h, c), (W, gain, cell_gain, cell_bias) = state, weights
        H = h.shape[-1]
        product = h @ W.t()
        normal, *of_product = torch.native_layer_norm(
            product, [4 * H], gain, None, self.eps
        )
        z = gx + normal
        i_f = z[..., : 2 * H].sigmoid()
        g = z[..., 2 * H : 3 * H].tanh()
        o = z[..., 3 * H :].sigmoid()
        c = torch.addcmul(i_f[..., H:] * c, i_f[..., :H], g)
        cell, *of_cell = torch.native_layer_norm(c, [H], cell_gain, cell_bias, self.eps)
        tanh_c = cell.tanh()
        return (o * tanh_c, c), (i_f, g, o, tanh_c, product, *of_product, *of_cell)

    def vjp_state(
        self, ds: State, tape: StepTape, weights: tuple[Tensor, ...]
    ) -> tuple[Deltas, State]:
        """As that of the LSTM, with the two normalisations on the way."""
        (dh, dc), (W, gain, cell_gain, _) = ds, weights
        i_f, g, o, tanh_c, product, *statistics = tape.kept
        H = dh.shape[-1]
        i, f = i_f[..., :H], i_f[..., H:]
        dcell = before_tanh(dh * o, tanh_c)
        dc = dc + _before_norm(dcell, tape.after[1], statistics[2:], cell_gain)[0]
        delta = torch.cat(
            (
                before_sigmoid(dc * g, i),
                before_sigmoid(dc * tape.before[1], f),
                before_tanh(dc * i, g),
                before_sigmoid(dh * tanh_c, o),
            ),
            dim=-1,
        )
        dproduct, _ = _before_norm(delta, product, statistics[:2], gain)
        return (delta, dcell), (dproduct @ W, dc * f)

    def vjp_weights(
        self, deltas: Deltas, tape: StepTape, weights: tuple[Tensor, ...]
    ) -> tuple[Tensor, ...]:
        """The cell's gain and bias act behind the gates, so they have a delta."""
        (delta, dcell), (_, gain, cell_gain, _) = deltas, weights
        _, _, _, _, product, *statistics = tape.kept
        dproduct, dgain = _before_norm(delta, product, statistics[:2], gain)
        _, dcell_gain = _before_norm(dcell, tape.after[1], statistics[2:], cell_gain)
        return dproduct.t() @ tape.before[0], dgain, dcell_gain, dcell.sum(0)


def _before_norm(
    d: Tensor, z: Tensor, statistics: Sequence[Tensor], gain: Tensor
) -> tuple[Tensor, Tensor]:
    """The errors of `z` and of the gain from that of `LN(z)`.

    As PyTorch computes them; it takes the statistics for functions of `z`, so this can
    be differentiated again.
    """
    mean, scale = (t.contiguous() for t in statistics)  # their strides are not read
    dz, dgain, _ = ops.aten.native_layer_norm_backward.default(
        d, z, gain.shape, mean, scale, gain, None, [True, True, False]
    )
    return dz, dgain
