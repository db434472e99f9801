"""The same gradients by other means: the engine, and autograd on an unrolled network.

Nothing here knows a term, a delta or a Jacobian.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from bptt.cells import Cell, GRUCell, LSTMCell, ReLUCell, TanhCell
from bptt.explain.network import Array, Ids, Network
from bptt.explain.step import one_step
from bptt.modules import GRU, LSTM, RNN

_MODULES: dict[type[Cell], Callable[..., torch.nn.RNNBase]] = {
    TanhCell: RNN,
    ReLUCell: partial(RNN, nonlinearity="relu"),
    GRUCell: GRU,
    LSTMCell: LSTM,
}


@dataclass(frozen=True, eq=False)
class Gradients:
    """`dE_t` of a layer's U (gates, inputs) and W (gates, hidden), and of V."""

    U: Array
    W: Array
    V: Array


def engine_gradients(network: Network, layer: int, x: Ids, y: int) -> Gradients:
    """The gradients of the last error by `bptt.RNN`, `GRU` or `LSTM` in float64.

    Args:
        network: the network.
        layer: whose U and W, from 1 on.
        x: ids that it reads.
        y: id of the word that follows.
    """
    module = _MODULES[type(network.cell)](
        network.layers[0].U.shape[1],
        network.hidden,
        len(network.layers),
        dtype=torch.float64,
        device="meta",
    )
    weights = {
        f"{name}_l{at}": weight.clone()
        for at, given in enumerate(network.layers)
        for name, weight in (
            ("weight_ih", given.U),
            ("weight_hh", given.W),
            ("bias_ih", given.b_ih),
            ("bias_hh", given.b_hh),
        )
        if weight is not None
    }
    module.load_state_dict(weights, assign=True)
    parameters = dict(module.named_parameters())
    wanted = [parameters[f"weight_{name}_l{layer - 1}"] for name in ("ih", "hh")]
    V = network.V.clone().requires_grad_()
    given = network.inputs(x) if network.embedding is not None else torch.tensor(x)
    with torch.enable_grad():
        h, _ = module(given.unsqueeze(1))
        E = _error(V, network, h[-1, 0], y)
        found = torch.autograd.grad(E, [*wanted, V])
    return Gradients(*map(_array, found))


def unshared_gradients(
    network: Network, layer: int, x: Ids, y: int
) -> tuple[Array, ...]:
    """`dE_t/dW_k`, last step first, where step `k` uses a `W_k` of its own.

    The network is unrolled into a deep one whose steps share no W in this layer;
    autograd differentiates it as any other.

    Args:
        network: its W is the value of every `W_k`.
        layer: whose W, from 1 on.
        x: ids that it reads.
        y: id of the word that follows.
    """
    shared = network.layers[layer - 1]
    copies = [shared.W.clone().requires_grad_() for _ in x]
    with torch.enable_grad():
        s = shared.W.new_zeros(1, network.state)
        for W, x_k in zip(copies, network.inputs(x), strict=True):
            layers = list(network.layers)
            layers[layer - 1] = shared._replace(W=W)
            s = one_step(network, layers, x_k, s)
        h = s[0, network.part(len(network.layers), "h")]
        found = torch.autograd.grad(_error(network.V, network, h, y), copies)
    return tuple(_array(dW) for dW in reversed(found))


def _error(V: Tensor, network: Network, h: Tensor, y: int) -> Tensor:
    return F.cross_entropy(V @ h + network.c, torch.tensor(y))


def _array(tensor: Tensor) -> Array:
    return cast(Array, tensor.detach().numpy())
