"""Every number for gated cells and stacks, against torch.nn's cells and autograd."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from torch.autograd.functional import jacobian

import bptt
from bptt.cells import GRUCell, LSTMCell, ReLUCell, TanhCell
from bptt.errors import GradientError
from bptt.explain import Network, Reading, terms, worked_example
from bptt.through_time import Layer

TIGHT = {"rtol": 0, "atol": 1e-12}
HIDDEN, WORDS, INPUTS, TIME = 4, 6, 3, 5
STEPS = {
    TanhCell: torch.rnn_tanh_cell,
    ReLUCell: torch.rnn_relu_cell,
    GRUCell: torch.gru_cell,
    LSTMCell: torch.lstm_cell,
}
MODULES = {TanhCell: bptt.RNN, GRUCell: bptt.GRU, LSTMCell: bptt.LSTM}
STACKS = [(cell, layers) for cell in STEPS for layers in (1, 2, 3)]
EVERY_LAYER = [(*stack, layer) for stack in STACKS for layer in range(1, stack[1] + 1)]


def reading_of(cell, layers, *, embedding=True, hidden=HIDDEN, seed=1):
    rng = np.random.default_rng(seed)

    def drawn(*shape):
        return torch.tensor(rng.normal(size=shape))

    rows = cell().gates * hidden
    inputs = INPUTS if embedding else WORDS
    network = Network(
        layers=tuple(
            Layer(
                cell(),
                drawn(rows, hidden if at else inputs),
                0.6 * drawn(rows, hidden),
                drawn(rows),
                drawn(rows),
            )
            for at in range(layers)
        ),
        V=drawn(WORDS, hidden),
        c=drawn(WORDS),
        embedding=drawn(WORDS, INPUTS) if embedding else None,
        words=tuple(f"w{i}" for i in range(WORDS)),
    )
    x, y = (tuple(rng.integers(WORDS, size=TIME).tolist()) for _ in range(2))
    return Reading(network, x, y)


@dataclass
class Unrolled:
    """The network step by step by torch.nn's cells, weights of each step its own.

    `weights[k][layer]` are U, W, b_ih and b_hh of step `k`, all leaves.
    """

    reading: Reading

    def __post_init__(self):
        network = self.reading.network
        self.network, self.t = network, len(self.reading.x) - 1
        self.inputs = (
            torch.eye(WORDS).double()
            if network.embedding is None
            else network.embedding
        )[list(self.reading.x)]
        self.weights = [
            [
                [w.clone().requires_grad_() for w in (a.U, a.W, a.b_ih, a.b_hh)]
                for a in network.layers
            ]
            for _ in self.reading.x
        ]
        s, self.read, states = torch.zeros(self.width).double(), [], []
        for k in range(self.t + 1):
            states.append(s)
            s, read = self.step(k, s)
            self.read.append(read)
        self.states = torch.stack([*states, s]).detach()
        self.E = self.error(s)

    @property
    def parts(self):
        return 2 if isinstance(self.network.cell, LSTMCell) else 1

    @property
    def width(self):
        return len(self.network.layers) * self.parts * HIDDEN

    def of(self, s, layer):
        """The parts of the state of a layer, from 1 on."""
        blocks = s.split(HIDDEN, dim=-1)
        return blocks[(layer - 1) * self.parts : layer * self.parts]

    def step(self, k, s):
        """The state after step k, and what each layer reads there."""
        x, after, read = self.inputs[k], [], []
        for at, (U, W, b_ih, b_hh) in enumerate(self.weights[k], 1):
            read.append(x)
            before = [part[None] for part in self.of(s, at)]
            given = before if self.parts == 2 else before[0]
            found = STEPS[type(self.network.cell)](x[None], given, U, W, b_ih, b_hh)
            found = found if self.parts == 2 else (found,)
            after += [part[0] for part in found]
            x = after[-self.parts]
        return torch.cat(after), read

    def error(self, s):
        h = self.of(s, len(self.network.layers))[0]
        logits = self.network.V @ h + self.network.c
        return -torch.log_softmax(logits, 0)[self.reading.y[-1]]

    def on_from(self, k, s):
        """The last state, from that after step k on."""
        for j in range(k + 1, self.t + 1):
            s, _ = self.step(j, s)
        return s

    def gradients(self, layer, name):
        """`dE_t` of a weight of each step, the first step first."""
        at = ("U", "W", "b_ih", "b_hh").index(name)
        leaves = [step[layer - 1][at] for step in self.weights]
        return [
            g.numpy() for g in torch.autograd.grad(self.E, leaves, retain_graph=True)
        ]


def gates_of(unrolled, layer, k):
    """By their definition."""
    network = unrolled.network
    own = network.layers[layer - 1]
    x = unrolled.read[k][layer - 1].detach()
    h = unrolled.of(unrolled.states[k], layer)[0]
    gx, gh = own.U @ x + own.b_ih, own.W @ h + own.b_hh
    blocks = (gx + gh).split(HIDDEN)
    if isinstance(network.cell, LSTMCell):
        i, f, g, o = blocks
        return torch.stack([i.sigmoid(), f.sigmoid(), g.tanh(), o.sigmoid()])
    if isinstance(network.cell, GRUCell):
        r, z = blocks[0].sigmoid(), blocks[1].sigmoid()
        return torch.stack([r, z, (gx[-HIDDEN:] + r * gh[-HIDDEN:]).tanh()])
    return torch.zeros(0, HIDDEN)


@pytest.mark.parametrize(("cell", "layers", "layer"), EVERY_LAYER)
def test_every_vector_is_autograds(cell, layers, layer):
    reading = reading_of(cell, layers)
    unrolled, example = Unrolled(reading), worked_example(reading, layer)
    for step, s in zip(example.steps, unrolled.states[1:], strict=True):
        np.testing.assert_allclose(step.s, s, **TIGHT)
        h = unrolled.of(s, layers)[0]
        np.testing.assert_allclose(step.h, h, **TIGHT)
        o = torch.softmax(reading.network.V @ h + reading.network.c, 0)
        np.testing.assert_allclose(step.o, o, **TIGHT)
        assert abs(step.E + o[step.y].log().item()) < 1e-12
        gates = gates_of(unrolled, layer, step.t)
        np.testing.assert_allclose(step.gates, gates, **TIGHT)
    names = ("U", "W", "b_ih", "b_hh")
    dU, dW, delta, hidden_delta = (unrolled.gradients(layer, name) for name in names)
    assert [term.k for term in example.terms] == list(range(TIME - 1, -1, -1))
    for term in example.terms:
        k = term.k
        np.testing.assert_allclose(term.dW, dW[k], **TIGHT)
        np.testing.assert_allclose(term.dU, dU[k], **TIGHT)
        np.testing.assert_allclose(term.delta, delta[k], **TIGHT)
        np.testing.assert_allclose(term.hidden_delta, hidden_delta[k], **TIGHT)
        x = unrolled.read[k][layer - 1].detach()
        np.testing.assert_allclose(term.x, x, **TIGHT)
        before = unrolled.of(unrolled.states[k], layer)[0]
        np.testing.assert_allclose(term.h_before, before, **TIGHT)
        leaf = unrolled.states[k + 1].clone().requires_grad_()
        E = unrolled.error(unrolled.on_from(k, leaf))
        (ds,) = torch.autograd.grad(E, leaf)
        np.testing.assert_allclose(term.ds, ds, **TIGHT)
    assert np.abs(dW[TIME - 2]).max() > 1e-3
    for name, whole in (("U", dU), ("W", dW)):
        total = np.sum(whole, axis=0)
        np.testing.assert_allclose(getattr(example, f"d{name}"), total, **TIGHT)
        np.testing.assert_allclose(getattr(example.engine, name), total, **TIGHT)
    assert example.differences.largest < 1e-13


@pytest.mark.parametrize(("cell", "layers"), STACKS)
def test_every_jacobian_is_autograds(cell, layers):
    reading = reading_of(cell, layers)
    unrolled, example = Unrolled(reading), worked_example(reading)
    assert example.layer == layers
    assert example.terms[0].jacobian is None
    np.testing.assert_array_equal(example.terms[0].product, np.eye(unrolled.width))
    for term in example.terms[1:]:
        k = term.k
        s = unrolled.states[k + 1]
        one = jacobian(lambda s, k=k: unrolled.step(k + 1, s)[0], s).numpy()
        whole = jacobian(lambda s, k=k: unrolled.on_from(k, s), s).numpy()
        np.testing.assert_allclose(term.jacobian, one, **TIGHT)
        np.testing.assert_allclose(term.product, whole, **TIGHT)
        largest = np.linalg.svd(one)[1][0], np.linalg.svd(whole)[1][0]
        assert abs(term.stretch_of_step - largest[0]) < 1e-12
        assert abs(term.stretch - largest[1]) < 1e-12


@pytest.mark.parametrize("cell", [GRUCell, LSTMCell])
@pytest.mark.parametrize("layer", [1, 2])
def test_what_the_gates_alone_carry(cell, layer):
    reading = reading_of(cell, 2)
    unrolled, example = Unrolled(reading), worked_example(reading, layer)
    at = (layer - 1) * unrolled.parts + unrolled.parts - 1  # c, or h in a GRU
    part = slice(at * HIDDEN, (at + 1) * HIDDEN)
    left = np.ones(HIDDEN)
    for term in example.terms:
        np.testing.assert_allclose(term.carried, left, **TIGHT)
        block = np.linalg.svd(term.product[part, part])[1][0]
        assert abs(example.stretch_of_part(term) - block) < 1e-12
        left = left * gates_of(unrolled, layer, term.k)[1].numpy()  # f, or z


def test_along_c_alone_f_is_all_of_the_derivative():
    reading = reading_of(LSTMCell, 1)
    unrolled, example = Unrolled(reading), worked_example(reading)
    for term in example.terms:

        def alone(c, k=term.k):
            for j in range(k + 1, TIME):
                h = unrolled.states[j][:HIDDEN]  # held, so that c has no other way
                c = unrolled.step(j, torch.cat((h, c)))[0][HIDDEN:]
            return c

        found = jacobian(alone, unrolled.states[term.k + 1][HIDDEN:])
        np.testing.assert_allclose(np.diag(term.carried), found, **TIGHT)


def test_an_elman_cell_has_no_gate_to_carry_anything():
    example = worked_example(reading_of(TanhCell, 2))
    assert example.terms[-1].carried is None
    assert example.stretch_of_part(example.terms[-1]) is None
    assert example.steps[0].gates.shape == (0, HIDDEN)


@pytest.mark.parametrize(("cell", "layers", "layer"), EVERY_LAYER)
def test_separate_weights_get_the_terms_and_sum_to_the_gradient(cell, layers, layer):
    reading = reading_of(cell, layers, embedding=False)
    example = worked_example(reading, layer)
    dW = Unrolled(reading).gradients(layer, "W")
    assert len(example.unshared) == TIME
    for term, mine in zip(example.terms, example.unshared, strict=True):
        np.testing.assert_allclose(mine, dW[term.k], **TIGHT)
        np.testing.assert_allclose(mine, term.dW, **TIGHT)
    np.testing.assert_allclose(example.sum_of_unshared, np.sum(dW, axis=0), **TIGHT)


def module_of(network, truncation=None):
    """The network's layers as a module of bptt."""
    module = MODULES[type(network.cell)](
        INPUTS, HIDDEN, len(network.layers), truncation=truncation
    ).double()
    with torch.no_grad():
        for weights, layer in zip(module.all_weights, network.layers, strict=True):
            given = layer.U, layer.W, layer.b_ih, layer.b_hh
            for weight, value in zip(weights, given, strict=True):
                weight.copy_(value)
    return module


def last_error(module, reading):
    """`E_t` of the last output alone."""
    network = reading.network
    h, _ = module(network.embedding[list(reading.x)].unsqueeze(1))
    logits = h[-1, 0] @ network.V.t() + network.c
    return torch.nn.functional.cross_entropy(logits, torch.tensor(reading.y[-1]))


@pytest.mark.parametrize("cell", MODULES)
@pytest.mark.parametrize(("layers", "layer"), [(1, 1), (2, 1), (2, 2)])
def test_terms_are_lags_and_truncations_leave_them_away(cell, layers, layer):
    reading = reading_of(cell, layers)
    network, example = reading.network, worked_example(reading, layer)
    module = module_of(network)
    flow = bptt.gradient_flow(module, lambda: last_error(module, reading))
    U, W = (f"weight_{name}_l{layer - 1}" for name in ("ih", "hh"))
    for term in example.terms:
        lag = example.t - term.k
        by_lag = [flow.gradient_by_lag(name)[lag] for name in (U, W)]
        np.testing.assert_allclose(term.dU, by_lag[0], **TIGHT)
        np.testing.assert_allclose(term.dW, by_lag[1], **TIGHT)
    weights = module.all_weights[layer - 1][:2]
    dU, dW = torch.autograd.grad(last_error(module, reading), weights)
    for cut in example.truncated:
        module.truncation = bptt.Truncation.per_output(cut.n)
        cut_U, cut_W = torch.autograd.grad(last_error(module, reading), weights)
        np.testing.assert_allclose(cut.dW, dW - cut_W, **TIGHT)
        left_U, left_W = (dU - cut_U).norm().item(), (dW - cut_W).norm().item()
        assert (cut.left_U, cut.left_W) == pytest.approx((left_U, left_W), abs=1e-12)
        share = left_U / dU.norm().item(), left_W / dW.norm().item()
        assert (cut.bias_U, cut.bias_W) == pytest.approx(share, abs=1e-12)
    assert example.truncated[1].left_W > 1e-3


# each way is held to another: disturb one and the example is refused


def swapped_gates(right):
    def vjp_state(self, ds, tape, W):
        delta, _ = right(self, ds, tape, W)
        i, f, g, o = delta.chunk(4, dim=-1)
        delta = torch.cat((f, i, g, o), dim=-1)
        return delta, (delta @ W, ds[1] * tape.kept[0][..., HIDDEN:])

    return vjp_state


def test_gates_that_the_engine_swaps_are_noticed(monkeypatch):
    monkeypatch.setattr(LSTMCell, "vjp_state", swapped_gates(LSTMCell.vjp_state))
    with pytest.raises(GradientError, match="no rounding"):
        worked_example(reading_of(LSTMCell, 1))


def test_a_reset_gate_that_the_engine_drops_is_noticed(monkeypatch):
    monkeypatch.setattr(GRUCell, "hidden_delta", lambda self, delta, tape: delta)
    with pytest.raises(GradientError, match="no rounding"):
        worked_example(reading_of(GRUCell, 1))


def test_a_reset_gate_that_a_term_drops_is_noticed(monkeypatch):
    right = terms.Term

    def disturbed(**given):
        return right(**(given | {"hidden_delta": given["delta"]}))

    monkeypatch.setattr(terms, "Term", disturbed)
    with pytest.raises(GradientError, match="no rounding"):
        worked_example(reading_of(GRUCell, 2))
    worked_example(reading_of(LSTMCell, 2))  # where the two are one


def test_rounding_that_steps_lengthen_is_no_wrong_gradient():
    reading = reading_of(TanhCell, 2, hidden=16, seed=29)
    network = reading.network
    layers = tuple(layer._replace(W=5 * layer.W) for layer in network.layers)
    network = replace(network, layers=layers)
    example = worked_example(Reading(network, 4 * reading.x, 4 * reading.y))
    assert example.terms[-1].stretch > 1e4


def test_layers_without_rows_for_every_gate():
    network = reading_of(GRUCell, 1).network
    layers = tuple(layer._replace(cell=LSTMCell()) for layer in network.layers)
    with pytest.raises(ValueError, match=r"U must have shape \(16, 3\)"):
        replace(network, layers=layers)
