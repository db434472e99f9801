"""The worked example as one result: each number of the way to `dE_t/dW`."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from bptt.explain.engine import Gradients
from bptt.explain.network import Array, Network
from bptt.explain.reading import Reading


@dataclass(frozen=True, eq=False)
class Step:
    """A step forward.

    Attributes:
        t: the step.
        x: id of the word that is read.
        y: id of the word that follows.
        s: (state,), the state after it: of each layer, from the bottom one on, `h`, or
            `h` and `c`.
        h: (hidden,), what the softmax reads: `h` of the last layer.
        gates: (gates, hidden), those of the layer that is explained, in torch's order;
            no rows for an Elman cell.
        o: (vocab,), the probabilities of the next word.
        E: `-log o[y]`, in nats.
    """

    t: int
    x: int
    y: int
    s: Array
    h: Array
    gates: Array
    o: Array
    E: float


@dataclass(frozen=True, eq=False)
class Term:
    """What step `k` adds to the gradient of `E_t`, in the layer that is explained.

    `state` counts the numbers in `s`, of all layers; `rows` those of U and W: the units
    of each gate, or the units.

    Attributes:
        k: the step.
        x: (inputs,), the vector that the layer reads.
        h_before: (hidden,), `h_{k-1}` of the layer.
        jacobian: (state, state), `ds_{k+1}/ds_k`; None at `k = t`.
        product: (state, state), `ds_t/ds_k`, the product of the Jacobians above.
        ds: (state,), `dE_t/ds_k`, passed back. What a layer hands to the one above
            within step `k` is no part of it.
        delta: (rows,), `delta_k^(t)`, the error of what U, x and b_ih add up to.
        hidden_delta: (rows,), that of what W, h and b_hh add up to. The two differ in a
            GRU alone, whose reset gate stands between the latter and `n`.
        carried: (hidden,), the product of `f` over the steps after `k`, or of `z` in a
            GRU: what of `c_k`, or `h_k`, is left where the gates alone act on it; None
            for an Elman cell.
    """

    k: int
    x: Array
    h_before: Array
    jacobian: Array | None
    product: Array
    ds: Array
    delta: Array
    hidden_delta: Array
    carried: Array | None

    @property
    def dW(self) -> Array:
        """(rows, hidden), this step's part of `dE_t/dW`."""
        return np.outer(self.hidden_delta, self.h_before)

    @property
    def dU(self) -> Array:
        """(rows, inputs), this step's part of `dE_t/dU`."""
        return np.outer(self.delta, self.x)

    @cached_property
    def stretch(self) -> float:
        """The 2-norm of `product`: the most that it lengthens a vector."""
        return stretch(self.product)

    @cached_property
    def stretch_of_step(self) -> float | None:
        """The 2-norm of `jacobian`."""
        return None if self.jacobian is None else stretch(self.jacobian)


@dataclass(frozen=True, eq=False)
class Truncated:
    """What `bptt_truncate = n` leaves away of the gradient of `E_t`.

    Attributes:
        n: recurrences that the error crosses at most.
        kept: the steps whose terms stay, `t, ..., t - n`.
        dW: (rows, hidden), the sum of the terms of W that are left away.
        left_W: norm of that.
        left_U: norm of the sum of the terms of U that are left away.
        bias_W: `left_W` over the norm of `dE_t/dW`, 0 if that is 0.
        bias_U: the same for U.
    """

    n: int
    kept: tuple[int, ...]
    dW: Array
    left_W: float
    left_U: float
    bias_W: float
    bias_U: float


@dataclass(frozen=True)
class Differences:
    """Largest differences of an entry: between ways to one gradient, so rounding.

    Attributes:
        dV: the outer product and the engine.
        dW: the sum of the terms and the engine.
        dU: the same for U.
        products: `dE_t/ds_k` passed back, and that by products of Jacobians.
        unshared: the terms and the gradients of separate W_k.
        unshared_sum: the sum of those and the engine.
    """

    dV: float
    dW: float
    dU: float
    products: float
    unshared: float
    unshared_sum: float

    @property
    def largest(self) -> float:
        """The largest of all; nan if one is."""
        return float(np.max(list(vars(self).values())))


@dataclass(frozen=True, eq=False)
class WorkedExample:
    """The gradient of the last error of a sentence, with every number on the way.

    Attributes:
        reading: the network and the sentence.
        layer: whose U and W are explained, from 1, the bottom one, on.
        steps: forward, `0 ... t`.
        dlogits: (vocab,), `o_t - 1(y_t)`.
        terms: back, `k = t ... 0`.
        truncated: `bptt_truncate = 0 ... t`.
        engine: the gradients of `E_t` by `bptt.RNN`, `GRU` or `LSTM`.
        unshared: `dE_t/dW_k` for `k = t ... 0`, if each step had a W of its own, by
            autograd.
        differences: how far the ways are from each other.
    """

    reading: Reading
    layer: int
    steps: tuple[Step, ...]
    dlogits: Array
    terms: tuple[Term, ...]
    truncated: tuple[Truncated, ...]
    engine: Gradients
    unshared: tuple[Array, ...]
    differences: Differences

    @property
    def network(self) -> Network:
        """The network."""
        return self.reading.network

    @property
    def t(self) -> int:
        """The step whose error is explained, the last."""
        return len(self.steps) - 1

    @cached_property
    def dV(self) -> Array:
        """(vocab, hidden), `dE_t/dV`: an outer product of what step t alone knows."""
        return np.outer(self.dlogits, self.steps[-1].h)

    @cached_property
    def dW(self) -> Array:
        """(rows, hidden), `dE_t/dW`: the sum of the terms."""
        return sum_W(self.terms)

    @cached_property
    def dU(self) -> Array:
        """(rows, inputs), `dE_t/dU`: the sum of the terms."""
        return sum_U(self.terms)

    @cached_property
    def sum_of_unshared(self) -> Array:
        """(rows, hidden), what the separate W_k add up to."""
        total: Array = np.sum(self.unshared, axis=0)
        return total

    def stretch_of_part(self, term: Term) -> float | None:
        """The 2-norm of `dc_t/dc_k`, or `dh_t/dh_k` in a GRU, in the layer explained.

        It is the block of `product` that `carried` is the part of through the gates
        alone. None for an Elman cell.
        """
        if self.network.carrier is None:
            return None
        part = self.network.part(self.layer, self.network.carrier[1])
        return stretch(term.product[part, part])


def stretch(matrix: Array) -> float:
    """The 2-norm, from the smaller problem of the matrix times itself.

    Of 2000 rows a third as long as by singular values, and as accurate for the largest.
    """
    largest = float(np.abs(matrix).max())
    if not largest:
        return 0.0
    scaled = matrix / largest  # so that no square is too small to be a number
    squares = np.linalg.eigvalsh(scaled.T @ scaled)
    return largest * float(np.sqrt(squares[-1]))


def sum_W(terms: tuple[Term, ...]) -> Array:
    """What the terms add up to for W: one product."""
    before = np.stack([term.h_before for term in terms])
    total: Array = np.stack([term.hidden_delta for term in terms]).T @ before
    return total


def sum_U(terms: tuple[Term, ...]) -> Array:
    """What the terms add up to for U."""
    x = np.stack([term.x for term in terms])
    total: Array = np.stack([term.delta for term in terms]).T @ x
    return total
