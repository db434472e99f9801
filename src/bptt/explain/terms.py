"""`dE_t/dV`, `dE_t/dW` and `dE_t/dU` of a sentence's last output, term by term.

`1(y)` is one-hot, `s` the state of all layers, `z_k = U x_k + W h_{k-1} + b` what goes
into the nonlinearities of the layer that is explained, and `t` the last step::

    dE_t/dV     = (o_t - 1(y_t)) outer h_t                              (1)
    dE_t/ds_t   = V^T (o_t - 1(y_t)) in h of the last layer             (2)
    dE_t/ds_k   = dE_t/ds_{k+1} ds_{k+1}/ds_k                           (3)
    dE_t/dW     = sum_{k <= t} dE_t/ds_t ds_t/ds_k (d s_k/dW)           (4)
    delta_k^(t) = dE_t/ds_k ds_k/dz_k                                   (5)
    term k      = delta_k^(t) outer h_{k-1}, or outer x_k for U         (6)

In (4) the last factor is step k's own use of W, with `s_{k-1}` held fixed. (4) and (6)
are the same sum, once by products of Jacobians and once by vectors passed back. In a
layer below others `s_k` depends on `z_k` also through the layers above, within step k.

In the tutorial's network `ds_k/ds_{k-1} = diag(1 - s_k^2) W` and
`delta_k^(t) = W^T delta_{k+1}^(t) * (1 - s_k^2)`, with `*` elementwise. In a GRU the
reset gate stands between W and the rest of `n`, so that (5) and the first form of (6)
have their own `delta` where `z_k` is `W h_{k-1} + b_hh` alone.

Here (3) and (5) come from autograd, which sees one step at a time.

References: Werbos, "Backpropagation through time: what it does and how to do it", 1990;
Britz, "Recurrent Neural Networks Tutorial", part 3, 2015, the example of E_3.
"""

import numpy as np
import torch
from torch import Tensor

from bptt.cells import Tape
from bptt.errors import GradientError
from bptt.explain import engine
from bptt.explain.engine import Gradients
from bptt.explain.example import (
    Differences,
    Step,
    Term,
    Truncated,
    WorkedExample,
    sum_U,
    sum_W,
)
from bptt.explain.network import Array, Network
from bptt.explain.reading import Reading
from bptt.explain.step import all_steps, one_step, states

_ROUNDING = 1e-10  # relative to the terms, or absolute where they are below 1
_MOST_NUMBERS = 2**26  # in the matrices of a kind, one a step


def worked_example(reading: Reading, layer: int | None = None) -> WorkedExample:
    """The worked example of a sentence; costs O(time state^3), for the Jacobians.

    Args:
        reading: the network and the sentence, of at least one word.
        layer: whose U and W are explained, from 1, the bottom one, on; None for the
            last.

    Raises:
        ValueError: there is no word or no such layer, or the network is too large for
            so many steps.
        GradientError: the gradient here and that of the engine differ by more than
            rounding.

    >>> from bptt.explain import read_by_small_network
    >>> example = worked_example(read_by_small_network())
    >>> example.t, [term.k for term in example.terms]
    (3, [3, 2, 1, 0])
    >>> example.differences.largest < 1e-14
    True
    """
    network, time = reading.network, len(reading.x)
    if not time or len(reading.y) != time:
        raise ValueError(
            f"x and y must have equally many words, at least 1; got {time} and "
            f"{len(reading.y)}"
        )
    last = len(network.layers)
    layer = last if layer is None else layer
    if not 1 <= layer <= last:
        raise ValueError(f"layer must be from 1 to {last}; got {layer}")
    if time * network.state**2 > _MOST_NUMBERS:
        raise ValueError(
            f"{time} steps of a state of {network.state} numbers are too many for one "
            f"example: its matrices would hold {time * network.state**2:,} numbers, "
            f"the most is {_MOST_NUMBERS:,}; take fewer words or a smaller network"
        )
    inputs = network.inputs(reading.x)
    tapes = all_steps(network, inputs)
    steps = _forward(reading, layer, tapes)
    dlogits = steps[-1].o.copy()
    dlogits[reading.y[-1]] -= 1
    terms = _terms(network, layer, inputs, tapes, steps, dlogits)
    found = engine.engine_gradients(network, layer, reading.x, reading.y[-1])
    unshared = engine.unshared_gradients(network, layer, reading.x, reading.y[-1])
    example = WorkedExample(
        reading=reading,
        layer=layer,
        steps=steps,
        dlogits=dlogits,
        terms=terms,
        truncated=_truncations(terms),
        engine=found,
        unshared=unshared,
        differences=_differences(terms, steps, dlogits, found, unshared),
    )
    _require_rounding(example)
    return example


def _forward(reading: Reading, layer: int, tapes: list[Tape]) -> tuple[Step, ...]:
    network, kept = reading.network, tapes[layer - 1].kept
    s = states(tapes)[1:, 0]
    h = s[:, network.part(len(network.layers), "h")]
    log_o = torch.log_softmax(h @ network.V.t() + network.c, dim=-1)
    # Gated cells keep their gates first, in torch's order.
    gates = torch.cat(kept, dim=-1)[:, 0] if kept else s[:, :0]
    rows = len(network.gates) * network.hidden
    return tuple(
        Step(
            t=t,
            x=x,
            y=y,
            s=s[t].numpy(),
            h=h[t].numpy(),
            gates=gates[t, :rows].reshape(-1, network.hidden).numpy(),
            o=log_o[t].exp().numpy(),
            E=-log_o[t, y].item(),
        )
        for t, (x, y) in enumerate(zip(reading.x, reading.y, strict=True))
    )


def _terms(
    network: Network,
    layer: int,
    inputs: Tensor,
    tapes: list[Tape],
    steps: tuple[Step, ...],
    dlogits: Array,
) -> tuple[Term, ...]:
    t, s = len(steps) - 1, states(tapes)[:, 0]
    x = inputs if layer == 1 else tapes[layer - 2].states[0][1:, 0]
    h = tapes[layer - 1].states[0][:, 0]
    ds = s.new_zeros(network.state)
    ds[network.part(len(network.layers), "h")] = torch.from_numpy(dlogits) @ network.V
    jacobian, product = None, torch.eye(network.state, dtype=torch.float64)
    carrier = network.carrier
    gate = network.gates.index(carrier[0]) if carrier else None
    carried = None if gate is None else np.ones(network.hidden)
    terms = []
    for k in range(t, -1, -1):
        if k < t:
            jacobian = _jacobian(network, inputs[k + 1], s[k + 1])
            product = product @ jacobian
            if carried is not None:
                carried = carried * steps[k + 1].gates[gate]
        delta, hidden_delta, ds_before = _back(network, layer, inputs[k], s[k], ds)
        terms.append(
            Term(
                k=k,
                x=x[k].numpy(),
                h_before=h[k].numpy(),
                jacobian=None if jacobian is None else jacobian.numpy(),
                product=product.numpy(),
                ds=ds.numpy(),
                delta=delta.numpy(),
                hidden_delta=hidden_delta.numpy(),
                carried=carried,
            )
        )
        ds = ds_before
    return tuple(terms)


def _jacobian(network: Network, x: Tensor, before: Tensor) -> Tensor:
    """`ds_k/ds_{k-1}`: row `i` is the gradient of number `i`, on a copy."""
    copies = before.expand(network.state, -1).clone().requires_grad_()
    with torch.enable_grad():
        after = one_step(network, network.layers, x, copies)
        (found,) = torch.autograd.grad(after.diagonal().sum(), copies)
    return found


def _back(
    network: Network, layer: int, x: Tensor, before: Tensor, ds: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """`dE_t/ds_k -> delta_k`, the hidden one, and `dE_t/ds_{k-1}`, through one step.

    A bias of the step's own stands where `delta` arrives, so its gradient is `delta`.
    """
    own = network.layers[layer - 1]
    assert own.b_ih is not None
    assert own.b_hh is not None
    leaves = [v.clone().requires_grad_() for v in (own.b_ih, own.b_hh, before[None])]
    layers = list(network.layers)
    layers[layer - 1] = own._replace(b_ih=leaves[0], b_hh=leaves[1])
    with torch.enable_grad():
        after = one_step(network, layers, x, leaves[2])
        found = torch.autograd.grad((after @ ds).sum(), leaves)
    return found[0], found[1], found[2][0]


def _truncations(terms: tuple[Term, ...]) -> tuple[Truncated, ...]:
    norm_W, norm_U = (float(np.linalg.norm(of(terms))) for of in (sum_W, sum_U))
    found = []
    for n in range(len(terms)):
        kept, left = terms[: n + 1], terms[n + 1 :]
        dW = sum_W(left) if left else np.zeros_like(terms[0].dW)
        left_W = float(np.linalg.norm(dW))
        left_U = float(np.linalg.norm(sum_U(left))) if left else 0.0
        found.append(
            Truncated(
                n=n,
                kept=tuple(term.k for term in kept),
                dW=dW,
                left_W=left_W,
                left_U=left_U,
                bias_W=left_W / norm_W if norm_W else 0.0,
                bias_U=left_U / norm_U if norm_U else 0.0,
            )
        )
    return tuple(found)


def _differences(
    terms: tuple[Term, ...],
    steps: tuple[Step, ...],
    dlogits: Array,
    found: Gradients,
    unshared: tuple[Array, ...],
) -> Differences:
    ds = terms[0].ds
    by_products = [ds @ term.product - term.ds for term in terms]
    pairs = zip(terms, unshared, strict=True)
    return Differences(
        dV=_largest(np.outer(dlogits, steps[-1].h) - found.V),
        dW=_largest(sum_W(terms) - found.W),
        dU=_largest(sum_U(terms) - found.U),
        products=max(map(_largest, by_products)),
        unshared=max(_largest(term.dW - dW) for term, dW in pairs),
        unshared_sum=_largest(np.sum(unshared, axis=0) - found.W),
    )


def _largest(difference: Array) -> float:
    return float(np.abs(difference).max())


def _require_rounding(example: WorkedExample) -> None:
    magnitude = sum(float(np.abs(term.delta).max()) for term in example.terms)
    # What one way rounds differently in a state, the steps after it lengthen.
    growth = max(float(np.linalg.norm(term.product)) for term in example.terms)
    allowed = _ROUNDING * max(1.0, magnitude) * max(1.0, growth)
    if not example.differences.largest <= allowed:  # so that nan fails
        raise GradientError(
            f"the terms and the engine differ by more than {allowed:.1e}, which is no "
            f"rounding: {example.differences}"
        )
