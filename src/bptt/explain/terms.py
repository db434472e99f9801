"""`dE_t/dV`, `dE_t/dW` and `dE_t/dU` of a sentence's last output, term by term.

Written out in NumPy, without autograd, in the tutorial's notation. `1(y)` is one-hot,
`*` elementwise, `z_k = U x_k + W s_{k-1} + b`, and `t` the last step::

    dE_t/dV     = (o_t - 1(y_t)) outer s_t                              (1)
    ds_k/ds_{k-1} = diag(1 - s_k^2) W                                   (2)
    dE_t/dW     = sum_{k <= t} dE_t/ds_t ds_t/ds_k (d s_k/dW)           (3)
    delta_t^(t) = V^T (o_t - 1(y_t)) * (1 - s_t^2)                      (4)
    delta_k^(t) = W^T delta_{k+1}^(t) * (1 - s_k^2)                     (5)
    term k      = delta_k^(t) outer s_{k-1}, or outer x_k for U         (6)

In (3) the last factor is step k's own use of W, with `s_{k-1}` held fixed. (3) and (6)
are the same sum, once by products of Jacobians and once by vectors passed back.

References: Werbos, "Backpropagation through time: what it does and how to do it", 1990;
Britz, "Recurrent Neural Networks Tutorial", part 3, 2015, the example of E_3.
"""

import numpy as np

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
from bptt.explain.network import Array
from bptt.explain.reading import Reading

_ROUNDING = 1e-10  # relative to the terms, or absolute where they are below 1
_MOST_NUMBERS = 2**25  # in the matrices of a kind, one a step


def worked_example(reading: Reading) -> WorkedExample:
    """The worked example of a sentence; costs O(time hidden^3), for the Jacobians.

    Args:
        reading: the network and the sentence, of at least one word.

    Raises:
        ValueError: there is no word, or the network is too large for so many steps.
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
    if time * network.hidden**2 > _MOST_NUMBERS:
        raise ValueError(
            f"{time} steps of {network.hidden} units are too many for one example: "
            f"its matrices would hold {time * network.hidden**2:,} numbers each, the "
            f"most is {_MOST_NUMBERS:,}; take fewer words or a smaller network"
        )
    steps = _forward(reading)
    dlogits = steps[-1].o.copy()
    dlogits[reading.y[-1]] -= 1
    terms = _terms(reading, steps, dlogits)
    found = engine.engine_gradients(network, reading.x, reading.y[-1])
    unshared = engine.unshared_gradients(network, reading.x, reading.y[-1])
    example = WorkedExample(
        reading=reading,
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


def _forward(reading: Reading) -> tuple[Step, ...]:
    network, s = reading.network, np.zeros(reading.network.hidden)
    steps = []
    inputs = network.inputs(reading.x)
    for t, (x, y) in enumerate(zip(reading.x, reading.y, strict=True)):
        s = np.tanh(network.U @ inputs[t] + network.W @ s + network.b)
        logits = network.V @ s + network.c
        logits = logits - logits.max()
        log_o = logits - np.log(np.exp(logits).sum())
        steps.append(Step(t, x, y, s, np.exp(log_o), float(-log_o[y])))
    return tuple(steps)


def _terms(
    reading: Reading, steps: tuple[Step, ...], dlogits: Array
) -> tuple[Term, ...]:
    network, t = reading.network, len(steps) - 1
    inputs, start = network.inputs(reading.x), np.zeros(network.hidden)
    jacobian: Array | None = None
    product, ds = np.eye(network.hidden), network.V.T @ dlogits
    terms = []
    for k in range(t, -1, -1):
        slope = 1 - steps[k].s ** 2
        delta = ds * slope  # (4) at k = t, (5) further back
        s_before = steps[k - 1].s if k else start
        terms.append(Term(k, inputs[k], s_before, jacobian, product, ds, delta))
        jacobian = slope[:, None] * network.W  # (2), ds_k/ds_{k-1}
        product = product @ jacobian
        ds = network.W.T @ delta
    return tuple(terms)


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
    by_products = [
        (ds @ term.product) * (1 - steps[term.k].s ** 2) - term.delta for term in terms
    ]
    pairs = zip(terms, unshared, strict=True)
    return Differences(
        dV=_largest(np.outer(dlogits, steps[-1].s) - found.V),
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
    allowed = _ROUNDING * max(1.0, magnitude)
    if not example.differences.largest <= allowed:  # so that nan fails
        raise GradientError(
            f"the terms and the engine differ by more than {allowed:.1e}, which is no "
            f"rounding: {example.differences}"
        )
