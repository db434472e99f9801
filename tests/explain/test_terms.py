"""Every number of the worked example, against the tutorial's code and autograd."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from bptt import tutorial
from bptt.cells import GRUCell, TanhCell
from bptt.errors import GradientError
from bptt.explain import (
    Network,
    Reading,
    read_by_small_network,
    terms,
    worked_example,
)
from bptt.explain.network import tutorial_network
from bptt.through_time import Layer

TIGHT = {"rtol": 0, "atol": 1e-13}


def tutorial_reading(time, *, hidden=3, words=5, seed=1):
    """The tutorial's network and a sentence, and the same for `worked_example`."""
    rnn = tutorial.RNN(words, hidden, bptt_truncate=None, seed=seed)
    rnn.W *= 1.5  # so that what is far away counts
    rng = np.random.default_rng(seed)
    x, y = (tuple(rng.integers(words, size=time).tolist()) for _ in range(2))
    network = tutorial_network(rnn, tuple(f"w{i}" for i in range(words)))
    return rnn, Reading(network, x, y)


def full_reading(time=5, *, hidden=4, words=6, inputs=3, seed=2):
    """A network with biases and an embedding."""
    rng = np.random.default_rng(seed)

    def drawn(*shape):
        return torch.tensor(rng.normal(size=shape))

    network = Network(
        layers=(
            Layer(
                TanhCell(),
                drawn(hidden, inputs),
                0.8 * drawn(hidden, hidden),
                drawn(hidden),
                drawn(hidden),
            ),
        ),
        V=drawn(words, hidden),
        c=drawn(words),
        embedding=drawn(words, inputs),
        words=tuple(f"w{i}" for i in range(words)),
    )
    x, y = (tuple(rng.integers(words, size=time).tolist()) for _ in range(2))
    return Reading(network, x, y)


def of_the_last_error(rnn, x, y):
    """The tutorial's `bptt` gives the sum over outputs: take away all but the last."""
    whole = rnn.bptt(x, y)
    if len(x) == 1:
        return whole
    before = rnn.bptt(x[:-1], y[:-1])
    return [a - b for a, b in zip(whole, before, strict=True)]


@pytest.mark.parametrize("time", [1, 2, 4, 7])
def test_it_is_the_tutorials_bptt(time):
    rnn, reading = tutorial_reading(time)
    example = worked_example(reading)
    dU, dV, dW = of_the_last_error(rnn, reading.x, reading.y)
    np.testing.assert_allclose(example.dU, dU, **TIGHT)
    np.testing.assert_allclose(example.dV, dV, **TIGHT)
    np.testing.assert_allclose(example.dW, dW, **TIGHT)
    o, s = rnn.forward_propagation(reading.x)
    for t, step in enumerate(example.steps):
        np.testing.assert_allclose(step.o, o[t], **TIGHT)
        np.testing.assert_allclose(step.s, s[t], **TIGHT)
        assert abs(step.E + np.log(o[t][reading.y[t]])) < 1e-13


@pytest.mark.parametrize("n", range(5))
def test_what_a_truncation_leaves_away_is_the_tutorials(n):
    rnn, reading = tutorial_reading(5)
    dU, _, dW = of_the_last_error(rnn, reading.x, reading.y)
    rnn.bptt_truncate = n
    cut_U, _, cut_W = of_the_last_error(rnn, reading.x, reading.y)
    example = worked_example(reading)
    cut = example.truncated[n]
    assert cut.n == n
    assert cut.kept == tuple(range(4, 3 - n, -1))
    np.testing.assert_allclose(cut.dW, dW - cut_W, **TIGHT)
    left = [np.linalg.norm(whole - part) for whole, part in ((dW, cut_W), (dU, cut_U))]
    assert (cut.left_W, cut.left_U) == pytest.approx(left, abs=1e-13)
    norms = np.linalg.norm(dW), np.linalg.norm(dU)
    share = left[0] / norms[0], left[1] / norms[1]
    assert (cut.bias_W, cut.bias_U) == pytest.approx(share, abs=1e-12)
    assert (cut.left_U > 0.01) == (n < 4)


def unrolled(reading):
    """The same with autograd, every intermediate with its gradient."""
    network = reading.network
    (layer,) = network.layers
    weights = {"U": layer.U, "W": layer.W, "b": layer.b_ih + layer.b_hh}
    weights |= {"V": network.V, "c": network.c}
    named = {name: w.clone().requires_grad_() for name, w in weights.items()}
    s, states, z = torch.zeros(network.hidden, dtype=torch.float64), [], []
    s.requires_grad_()
    states.append(s)
    for x in network.inputs(reading.x):
        z.append(named["U"] @ x + named["W"] @ s + named["b"])
        s = torch.tanh(z[-1])
        states.append(s)
    logits = named["V"] @ s + named["c"]
    E = -torch.log_softmax(logits, 0)[reading.y[-1]]
    wanted = [*named.values(), *z, *states[1:], logits]
    found = torch.autograd.grad(E, wanted, retain_graph=True)
    return named, states, z, dict(zip(map(id, wanted), found, strict=True))


@pytest.mark.parametrize("reading", [tutorial_reading(4)[1], full_reading()])
def test_every_vector_is_autograds(reading):
    named, states, z, found = unrolled(reading)
    example = worked_example(reading)
    for name in ("U", "W", "V"):
        expected = found[id(named[name])].numpy()
        np.testing.assert_allclose(getattr(example, f"d{name}"), expected, **TIGHT)
        np.testing.assert_allclose(getattr(example.engine, name), expected, **TIGHT)
    logits = found[id(named["c"])].numpy()
    np.testing.assert_allclose(example.dlogits, logits, **TIGHT)
    for term in example.terms:
        k = term.k
        dz, ds = found[id(z[k])].numpy(), found[id(states[k + 1])].numpy()
        before = states[k].detach().numpy()
        np.testing.assert_allclose(term.delta, dz, **TIGHT)
        np.testing.assert_array_equal(term.hidden_delta, term.delta)
        np.testing.assert_allclose(term.ds, ds, **TIGHT)
        np.testing.assert_allclose(term.h_before, before, **TIGHT)
        np.testing.assert_allclose(term.dW, np.outer(dz, before), **TIGHT)
        x = reading.network.inputs(reading.x)[k]
        np.testing.assert_allclose(term.dU, np.outer(dz, x), **TIGHT)


def jacobian(after, before):
    rows = [torch.autograd.grad(a, before, retain_graph=True)[0] for a in after]
    return torch.stack(rows).numpy()


@pytest.mark.parametrize("reading", [tutorial_reading(4)[1], full_reading()])
def test_every_jacobian_is_autograds(reading):
    _, states, _, _ = unrolled(reading)
    example = worked_example(reading)
    assert example.terms[0].jacobian is None
    np.testing.assert_array_equal(
        example.terms[0].product, np.eye(reading.network.hidden)
    )
    for term in example.terms[1:]:
        state = states[term.k + 1]
        one, whole = jacobian(states[term.k + 2], state), jacobian(states[-1], state)
        np.testing.assert_allclose(term.jacobian, one, **TIGHT)
        np.testing.assert_allclose(term.product, whole, **TIGHT)
        largest = np.linalg.svd(one)[1][0], np.linalg.svd(whole)[1][0]
        assert abs(term.stretch_of_step - largest[0]) < 1e-13
        assert abs(term.stretch - largest[1]) < 1e-13


@pytest.mark.parametrize("reading", [read_by_small_network(), full_reading(8)])
def test_separate_weights_get_the_terms_and_sum_to_the_gradient(reading):
    example = worked_example(reading)
    assert len(example.unshared) == len(example.terms)
    for term, dW in zip(example.terms, example.unshared, strict=True):
        np.testing.assert_allclose(dW, term.dW, **TIGHT)
    np.testing.assert_allclose(example.sum_of_unshared, example.dW, **TIGHT)
    assert min(np.abs(dW).max() for dW in example.unshared[:-1]) > 1e-3
    assert example.differences.largest < 1e-13


def test_the_differences_are_those_of_the_numbers():
    example = worked_example(full_reading())
    mine, engine = example.differences, example.engine
    assert mine.dV == np.abs(example.dV - engine.V).max()
    assert mine.dW == np.abs(example.dW - engine.W).max()
    assert mine.dU == np.abs(example.dU - engine.U).max()
    assert mine.unshared_sum == np.abs(example.sum_of_unshared - engine.W).max()
    assert mine.largest == max(vars(mine).values())


def test_the_small_example_tells_something():
    example = worked_example(read_by_small_network())
    assert (example.t, example.network.hidden, example.network.vocab) == (3, 2, 6)
    norms = [np.linalg.norm(term.dW) for term in example.terms]
    assert norms[0] > norms[1] > norms[2] > 0.1
    assert norms[3] == 0  # the state before the first word is 0
    assert [round(cut.bias_U, 2) for cut in example.truncated] == [0.7, 0.45, 0.27, 0]


# each way is held to another: disturb one and the example is refused


def test_a_wrong_derivative_of_the_engine_is_refused(monkeypatch):
    monkeypatch.setattr(TanhCell, "slope", staticmethod(lambda h: 1 - 0.999 * h * h))
    with pytest.raises(GradientError, match="no rounding: Differences"):
        worked_example(read_by_small_network())


@pytest.mark.parametrize(
    "wrong", ["delta", "hidden_delta", "product", "h_before", "x", "ds"]
)
def test_a_wrong_term_is_refused(monkeypatch, wrong):
    right = terms.Term

    def disturbed(**given):
        if given["k"] == 1:
            given[wrong] = given[wrong] * 1.001
        return right(**given)

    monkeypatch.setattr(terms, "Term", disturbed)
    with pytest.raises(GradientError, match="no rounding"):
        worked_example(read_by_small_network())


# what cannot be explained


def test_networks_and_sentences_that_do_not_fit():
    _, reading = tutorial_reading(3)
    network = reading.network
    with pytest.raises(ValueError, match="equally many words, at least 1; got 0 and 0"):
        worked_example(Reading(network, (), ()))
    with pytest.raises(ValueError, match="got 2 and 1"):
        worked_example(Reading(network, (0, 1), (0,)))
    with pytest.raises(ValueError, match="layer must be from 1 to 1; got 2"):
        worked_example(reading, 2)
    with pytest.raises(ValueError, match=r"V must have shape \(5, 3\)"):
        replace(network, V=network.V.t())
    with pytest.raises(ValueError, match=r"c must be float64; got torch\.float32"):
        replace(network, c=network.c.float())
    (layer,) = network.layers
    wrong = layer._replace(W=layer.W * torch.nan)
    with pytest.raises(ValueError, match="W has numbers that are not finite"):
        replace(network, layers=(wrong,))
    above = layer._replace(b_hh=None)
    message = r"U of layer 2 must have shape \(3, 3\), .* got \(3, 5\)"
    with pytest.raises(ValueError, match=message):
        replace(network, layers=(layer, above))
    above = above._replace(U=layer.W)
    message = r"b_hh of layer 2 must have shape \(3,\), .* got None"
    with pytest.raises(ValueError, match=message):
        replace(network, layers=(layer, above))


def test_cells_that_it_does_not_know():
    network = read_by_small_network().network
    (layer,) = network.layers
    for cells, given in (
        ((), "none"),
        ((TanhCell(), GRUCell()), "GRUCell, TanhCell"),
        ((OwnCell(),), "OwnCell"),
    ):
        layers = tuple(layer._replace(cell=cell) for cell in cells)
        with pytest.raises(ValueError, match=f"all of one of .* got {given}"):
            replace(network, layers=layers)


class OwnCell(TanhCell):
    """A cell of one's own."""


def test_a_network_that_is_too_large():
    huge = torch.zeros(1, dtype=torch.float64).expand(5000, 5000)
    network = Network(
        layers=(Layer(TanhCell(), huge[:, :2], huge, huge[0], huge[0]),),
        V=huge[:2],
        c=huge[0, :2],
        embedding=None,
        words=("a", "b"),
    )
    with pytest.raises(ValueError, match="4 steps of a state of 5000 numbers are too"):
        worked_example(Reading(network, (0,) * 4, (1,) * 4))
