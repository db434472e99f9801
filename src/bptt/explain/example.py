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
        s: (hidden,), the state after it.
        o: (vocab,), the probabilities of the next word.
        E: `-log o[y]`, in nats.
    """

    t: int
    x: int
    y: int
    s: Array
    o: Array
    E: float


@dataclass(frozen=True, eq=False)
class Term:
    """What step `k` adds to the gradient of `E_t`.

    Attributes:
        k: the step.
        x: (inputs,), the vector that it reads.
        s_before: (hidden,), `s_{k-1}`.
        jacobian: (hidden, hidden), `ds_{k+1}/ds_k`; None at `k = t`.
        product: (hidden, hidden), `ds_t/ds_k`, the product of the Jacobians above.
        ds: (hidden,), `dE_t/ds_k`.
        delta: (hidden,), `delta_k^(t) = dE_t/dz_k`, passed back.
    """

    k: int
    x: Array
    s_before: Array
    jacobian: Array | None
    product: Array
    ds: Array
    delta: Array

    @property
    def dW(self) -> Array:
        """(hidden, hidden), this step's part of `dE_t/dW`."""
        return np.outer(self.delta, self.s_before)

    @property
    def dU(self) -> Array:
        """(hidden, inputs), this step's part of `dE_t/dU`."""
        return np.outer(self.delta, self.x)

    @property
    def stretch(self) -> float:
        """The 2-norm of `product`: the most that it lengthens a vector."""
        return float(np.linalg.norm(self.product, 2))

    @property
    def stretch_of_step(self) -> float | None:
        """The 2-norm of `jacobian`."""
        return (
            None if self.jacobian is None else float(np.linalg.norm(self.jacobian, 2))
        )


@dataclass(frozen=True, eq=False)
class Truncated:
    """What `bptt_truncate = n` leaves away of the gradient of `E_t`.

    Attributes:
        n: recurrences that the error crosses at most.
        kept: the steps whose terms stay, `t, ..., t - n`.
        dW: (hidden, hidden), the sum of the terms of W that are left away.
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
        products: the deltas passed back, and those by products of Jacobians.
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
        steps: forward, `0 ... t`.
        dlogits: (vocab,), `o_t - 1(y_t)`.
        terms: back, `k = t ... 0`.
        truncated: `bptt_truncate = 0 ... t`.
        engine: the gradients of `E_t` by `bptt.RNN`.
        unshared: `dE_t/dW_k` for `k = t ... 0`, if each step had a W of its own, by
            autograd.
        differences: how far the ways are from each other.
    """

    reading: Reading
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
        return np.outer(self.dlogits, self.steps[-1].s)

    @cached_property
    def dW(self) -> Array:
        """(hidden, hidden), `dE_t/dW`: the sum of the terms."""
        return sum_W(self.terms)

    @cached_property
    def dU(self) -> Array:
        """(hidden, inputs), `dE_t/dU`: the sum of the terms."""
        return sum_U(self.terms)

    @cached_property
    def sum_of_unshared(self) -> Array:
        """(hidden, hidden), what the separate W_k add up to."""
        total: Array = np.sum(self.unshared, axis=0)
        return total


def sum_W(terms: tuple[Term, ...]) -> Array:
    """What the terms add up to for W: one product."""
    total: Array = _deltas(terms).T @ np.stack([term.s_before for term in terms])
    return total


def sum_U(terms: tuple[Term, ...]) -> Array:
    """What the terms add up to for U."""
    total: Array = _deltas(terms).T @ np.stack([term.x for term in terms])
    return total


def _deltas(terms: tuple[Term, ...]) -> Array:
    return np.stack([term.delta for term in terms])
