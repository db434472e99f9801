"""The same gradients by other means: the engine, and autograd on an unrolled network.

Nothing here knows a term, a delta or a Jacobian.
"""

from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from bptt.explain.network import Array, Ids, Network
from bptt.modules import RNN


@dataclass(frozen=True, eq=False)
class Gradients:
    """`dE_t` of U (hidden, inputs), W (hidden, hidden) and V (vocab, hidden)."""

    U: Array
    W: Array
    V: Array


def engine_gradients(network: Network, x: Ids, y: int) -> Gradients:
    """The gradients of the last error by `bptt.RNN` in float64.

    Args:
        network: the network.
        x: ids that it reads.
        y: id of the word that follows.
    """
    rnn = RNN(network.U.shape[1], network.hidden, dtype=torch.float64, device="meta")
    weights = {
        "weight_ih_l0": _tensor(network.U),
        "weight_hh_l0": _tensor(network.W),
        "bias_ih_l0": _tensor(network.b),
        "bias_hh_l0": torch.zeros(network.hidden, dtype=torch.float64),
    }
    rnn.load_state_dict(weights, assign=True)
    parameters = dict(rnn.named_parameters())
    wanted = [parameters["weight_ih_l0"], parameters["weight_hh_l0"]]
    V = _tensor(network.V).requires_grad_()
    given = (
        torch.tensor(x)
        if network.embedding is None
        else _tensor(network.embedding[list(x)])
    )
    with torch.enable_grad():
        h, _ = rnn(given.unsqueeze(1))
        E = _error(V, network, h[-1, 0], y)
        found = torch.autograd.grad(E, [*wanted, V])
    return Gradients(*map(_array, found))


def unshared_gradients(network: Network, x: Ids, y: int) -> tuple[Array, ...]:
    """`dE_t/dW_k`, last step first, where step `k` uses a `W_k` of its own.

    The network is unrolled into a deep one whose layers share no W; autograd
    differentiates it as any other.

    Args:
        network: its W is the value of every `W_k`.
        x: ids that it reads.
        y: id of the word that follows.
    """
    copies = [_tensor(network.W).requires_grad_() for _ in x]
    inputs, U, b = (_tensor(a) for a in (network.inputs(x), network.U, network.b))
    with torch.enable_grad():
        s = torch.zeros(network.hidden, dtype=torch.float64)
        for W, x_t in zip(copies, inputs, strict=True):
            s = torch.tanh(U @ x_t + W @ s + b)
        found = torch.autograd.grad(_error(_tensor(network.V), network, s, y), copies)
    return tuple(_array(dW) for dW in reversed(found))


def _error(V: Tensor, network: Network, s: Tensor, y: int) -> Tensor:
    return F.cross_entropy(V @ s + _tensor(network.c), torch.tensor(y))


def _tensor(array: Array) -> Tensor:
    return torch.from_numpy(np.array(array))


def _array(tensor: Tensor) -> Array:
    return cast(Array, tensor.detach().numpy())
