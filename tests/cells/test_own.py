"""The shipped cells: their derivatives, and the special cases known from elsewhere."""

import math

import pytest
import torch

import bptt
from bptt import cells
from bptt.truncation import Truncation
from literal import assert_same
from literal_cells import (
    gradients_of,
    leaves,
    literal_gradients,
    mapped,
    module_gradients,
)

CELLS = (
    "LayerNormLSTM",
    "LeakyIntegrateAndFire",
    "LeakyRate",
    "LinearRecurrence",
    "MinimalGatedUnit",
    "PeepholeLSTM",
)
CELL = pytest.mark.parametrize("name", CELLS)


def normal(*shape, seed=3):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def new_cell(name, inputs=3, hidden=4, **options):
    cell = getattr(cells, name)(inputs, hidden, **options).double()
    for at, parameter in enumerate(cell.parameters()):
        parameter.data += 0.5 * normal(*parameter.shape, seed=at)
    return cell


def a_state(cell, batch, seed=5):
    return mapped(lambda s: normal(*s.shape, seed=seed), cell.initial_state(batch))


@CELL
def test_a_cells_own_derivative_is_autograds_of_its_step(name):
    cell = new_cell(name)
    state = leaves(a_state(cell, 5))
    before = tuple(
        normal(*s.shape, seed=i).requires_grad_() for i, s in enumerate(state)
    )
    gx = cell.project(normal(5, 3)).detach().requires_grad_()
    ds = tuple(normal(*s.shape, seed=9 + i) for i, s in enumerate(state))
    nested = before[0] if len(before) == 1 else before
    y, after = cell.step(gx, nested)
    assert_same({"y": y}, {"y": leaves(after)[0]}, 0.0)
    parameters = dict(cell.named_parameters())
    named = {"gx": gx} | {f"s{i}": s for i, s in enumerate(before)} | parameters
    loss = sum((d * s).sum() for d, s in zip(ds, leaves(after), strict=True))
    expected = gradients_of(loss, named)
    weights = cell.weights()
    after, kept = cell.advance(gx, before, weights)
    tape = cells.StepTape(before, after, kept)
    deltas, dbefore = cell.vjp_state(ds, tape, weights)
    dweights = cell.vjp_weights(deltas, tape, weights)
    # What the weights are made of, autograd knows.
    total = sum((w * d.detach()).sum() for w, d in zip(weights, dweights, strict=True))
    mine = {"gx": deltas[0]} | {f"s{i}": d for i, d in enumerate(dbefore)}
    mine |= gradients_of(total, parameters)
    assert_same(mine, expected)


@CELL
def test_the_derivative_of_several_passes_is_that_of_each(name):
    cell = new_cell(name)
    weights = cell.weights()
    parts = len(leaves(cell.initial_state(1)))
    before = tuple(normal(2, 3, 4, seed=i) for i in range(parts))
    flat = tuple(b.flatten(0, 1) for b in before)
    gx = cell.project(normal(6, 3))
    after, kept = cell.advance(gx, flat, weights)
    ds = tuple(normal(2, 3, 4, seed=7 + i) for i in range(parts))
    flat_ds = tuple(d.flatten(0, 1) for d in ds)

    def folded(tensors):
        return tuple(t.reshape(2, 3, *t.shape[1:]) for t in tensors)

    one = cell.vjp_state(flat_ds, cells.StepTape(flat, after, kept), weights)
    tape = cells.StepTape(before, folded(after), folded(kept))
    many = cell.vjp_state(ds, tape, weights)
    for mine, theirs in zip(many, one, strict=True):
        expected = dict(enumerate(folded(theirs)))
        assert_same(dict(enumerate(mine)), expected)


@CELL
def test_the_second_derivative_of_a_truncated_gradient(name):
    if name == "LeakyIntegrateAndFire":
        pytest.skip("spikes do not vary, so there is nothing to differentiate twice")
    cell = new_cell(name, 2, 2)
    recurrent = bptt.Recurrent(cell, truncation=Truncation(1, 2))
    state = a_state(cell, 2)
    p, dy = next(cell.parameters()), normal(3, 2, 2, seed=6)

    def gradient(x):
        y, _ = recurrent(x, state)
        (g,) = torch.autograd.grad((dy * y).sum(), p, create_graph=True)
        return g

    x = normal(3, 2, 2).requires_grad_()
    assert torch.autograd.gradcheck(gradient, [x])


@CELL
@pytest.mark.parametrize("k1", [None, 1, 2, 3, 6])
def test_any_truncation_is_its_literal_definition(name, k1):
    cell = new_cell(name)
    x, state = normal(5, 3, 3), a_state(cell, 3)
    lengths = torch.tensor([3, 5, 1])
    resets = normal(5, 3, seed=8) > 0.7
    dy, dfinal = normal(5, 3, 4), [normal(*s.shape, seed=2) for s in leaves(state)]
    for k2 in (None,) if k1 is None else (1, 2, 4, 7):
        truncation = None if k1 is None else Truncation(k1, k2)
        recurrent = bptt.Recurrent(cell, truncation=truncation)
        for rows in (
            {},
            {"lengths": lengths},
            {"resets": resets},
            {"lengths": lengths, "resets": resets},
        ):
            mine = module_gradients(recurrent, x, state, dy, dfinal, **rows)
            reference = literal_gradients(cell, x, state, dy, dfinal, k1, k2, **rows)
            assert_same(mine, reference)


@CELL
def test_a_cell_begins_with_zeros_and_needs_no_state(name):
    cell = new_cell(name)
    x = normal(4, 2, 3)
    y, final = bptt.Recurrent(cell)(x)
    state = cell.initial_state(2)
    assert all(not s.any() and s.shape == (2, 4) for s in leaves(state))
    ys = []
    for x_t in x:
        y_t, state = cell(x_t, state)
        ys.append(y_t)
    mine = {"y": y} | dict(enumerate(leaves(final)))
    assert_same(mine, {"y": torch.stack(ys)} | dict(enumerate(leaves(state))))


def lstm_of(cell):
    """torch.nn.LSTM with the weights of one of our LSTMs."""
    lstm = torch.nn.LSTM(3, 4, dtype=torch.float64)
    lstm.weight_ih_l0.data = cell.input.weight.data
    lstm.weight_hh_l0.data = cell.recurrent.weight.data
    lstm.bias_ih_l0.data = cell.input.bias.data
    lstm.bias_hh_l0.data.zero_()
    return lstm


def test_an_lstm_without_peepholes_is_torch_nns():
    cell = new_cell("PeepholeLSTM")
    cell.peepholes.data.zero_()
    x, (h, c) = normal(5, 2, 3), a_state(cell, 2)
    y, final = bptt.Recurrent(cell)(x, (h, c))
    expected, (h_n, c_n) = lstm_of(cell)(x, (h[None], c[None]))
    mine = {"y": y, "h": final[0], "c": final[1]}
    assert_same(mine, {"y": expected, "h": h_n[0], "c": c_n[0]})


def test_each_peephole_moves_its_own_gate():
    cell = new_cell("PeepholeLSTM", 1, 1)
    cell.input.weight.data.zero_()
    cell.input.bias.data.zero_()
    cell.recurrent.weight.data.zero_()
    cell.input.bias.data[2] = math.atanh(0.5)  # g = 0.5
    p, q, r = [0.3], [-0.7], [1.1]
    cell.peepholes.data = torch.tensor([p, q, r], dtype=torch.float64)
    c = torch.tensor([[2.0]], dtype=torch.float64)
    sigmoid = lambda z: 1 / (1 + math.exp(-z))  # noqa: E731
    y, (h, new) = cell(torch.zeros(1, 1).double(), (torch.zeros_like(c), c))
    expected = sigmoid(2 * q[0]) * 2 + sigmoid(2 * p[0]) * 0.5
    assert_same({"c": new}, {"c": torch.tensor([[expected]], dtype=torch.float64)})
    out = sigmoid(r[0] * expected) * math.tanh(expected)
    assert_same(
        {"y": y, "h": h},
        dict.fromkeys(("y", "h"), torch.tensor([[out]], dtype=torch.float64)),
    )


def test_a_layer_norm_lstm_normalises_as_torch_nn_does():
    cell = new_cell("LayerNormLSTM")
    x, (h, c) = normal(5, 3), a_state(cell, 5)
    norm = torch.nn.functional.layer_norm
    z = norm(h @ cell.recurrent.weight.t(), (16,), cell.recurrent_gain)
    z = z + cell.input_norm(x @ cell.input.weight.t())
    i, f, g, o = z.chunk(4, -1)
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    expected = o.sigmoid() * cell.cell_norm(c).tanh()
    y, (_, new) = cell(x, a_state(cell, 5))
    assert_same({"y": y, "c": new}, {"y": expected, "c": c})


def test_a_minimal_gated_unit_keeps_or_replaces_its_state():
    cell = new_cell("MinimalGatedUnit")
    x, h = normal(5, 3), a_state(cell, 5)
    H = 4
    z = x @ cell.input.weight.t() + cell.input.bias
    f = (z[:, :H] + h @ cell.forget.weight.t()).sigmoid()
    n = (z[:, H:] + (f * h) @ cell.recurrent.weight.t()).tanh()
    y, _ = cell(x, h)
    assert_same({"y": y}, {"y": (1 - f) * h + f * n})
    cell.input.bias.data[:H] = -800.0  # never updates
    assert_same({"kept": cell(x, h)[0]}, {"kept": h})


def test_a_linear_recurrence_is_a_sum_of_powers():
    cell = new_cell("LinearRecurrence")
    x, s = normal(6, 2, 3), a_state(cell, 2)
    y, _ = bptt.Recurrent(cell)(x, s)
    (a,) = cell.weights()
    gx = x @ cell.input.weight.t() + cell.input.bias
    powers = sum(a ** (5 - t) * gx[t] for t in range(6)) + a**6 * s
    assert_same({"y": y[5]}, {"y": powers})


def test_a_linear_recurrence_draws_its_decays_where_it_is_told():
    cell = cells.LinearRecurrence(2, 50, least=0.7, most=0.8)
    a = cell.weights()[0].detach()
    assert 0.699 < float(a.min()) < 0.72 < 0.78 < float(a.max()) < 0.801


def test_leaky_rates_without_leak_are_an_elman_network():
    cell = new_cell("LeakyRate", dt=5.0, tau=5.0)
    rnn = torch.nn.RNN(3, 4, dtype=torch.float64)
    rnn.weight_ih_l0.data = cell.input.weight.data
    rnn.weight_hh_l0.data = cell.recurrent.weight.data
    rnn.bias_ih_l0.data = cell.input.bias.data
    rnn.bias_hh_l0.data.zero_()
    x, h = normal(5, 2, 3), a_state(cell, 2)
    assert_same({"y": bptt.Recurrent(cell)(x, h)[0]}, {"y": rnn(x, h[None])[0]})


def test_leaky_rates_decay_without_drive():
    cell = cells.LeakyRate(1, 1, dt=1.0, tau=4.0).double()
    for parameter in cell.parameters():
        parameter.data.zero_()
    y, _ = bptt.Recurrent(cell)(
        torch.zeros(3, 1, 1).double(), torch.ones(1, 1).double()
    )
    assert_same({"y": y.flatten()}, {"y": 0.75 ** torch.arange(1.0, 4.0)})


def test_a_neuron_integrates_leaks_fires_and_resets():
    cell = cells.LeakyIntegrateAndFire(1, 1, bias=False, dt=1.0, tau=2.0).double()
    cell.input.weight.data.fill_(1.0)
    cell.recurrent.weight.data.zero_()
    a = math.exp(-0.5)
    drive = torch.tensor([0.8, 0.8, 0.0, 0.0], dtype=torch.float64).reshape(4, 1, 1)
    y, (s, v) = bptt.Recurrent(cell)(drive)
    assert y.flatten().tolist() == [0.0, 1.0, 0.0, 0.0]
    expected = ((0.8 * a + 0.8) * a - 1) * a
    assert_same(
        {"v": v.flatten()}, {"v": torch.tensor([expected], dtype=torch.float64)}
    )
    assert s.item() == 0.0


def test_a_spikes_derivative_is_the_fast_sigmoids():
    cell = cells.LeakyIntegrateAndFire(1, 1, bias=False, slope=4.0).double()
    cell.input.weight.data.fill_(1.0)
    for drive, distance in ((0.5, 0.5), (1.25, 0.25)):
        x = torch.tensor([[[drive]]], dtype=torch.float64).requires_grad_()
        (dx,) = torch.autograd.grad(bptt.Recurrent(cell)(x)[0].sum(), x)
        assert_same(
            {"dx": dx.flatten()},
            {"dx": torch.tensor([(1 + 4 * distance) ** -2], dtype=torch.float64)},
        )


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("LeakyRate", {"dt": 6.0}, "dt must be above 0 and at most tau = 5.0.*got 6.0"),
        ("LeakyRate", {"dt": 0.0}, "dt must be above 0"),
        ("LeakyIntegrateAndFire", {"tau": -1.0}, "tau must be above 0; got -1.0"),
        ("LeakyIntegrateAndFire", {"slope": 0.0}, "slope must be above 0; got 0.0"),
        ("LinearRecurrence", {"least": 0.0}, "least and most.*got 0.0 and 0.99"),
        ("LinearRecurrence", {"most": 1.0}, "least and most.*got 0.5 and 1.0"),
    ],
)
def test_a_constant_that_makes_no_sense_is_refused(name, options, message):
    with pytest.raises(ValueError, match=message):
        getattr(cells, name)(2, 3, **options)
