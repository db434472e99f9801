"""Gradient flow is what one autograd call an output says, and truncations leave."""

import random

import numpy as np
import pytest
import torch

import bptt
from bptt import Truncation, kernels
from bptt.flow import FlowEstimates, gradient_flow
from bptt.flow.capture import _as_it_was
from flow import literal_flow
from literal import KINDS, ours

TIME, BATCH, INPUTS, STATE = 9, 3, 4, 5


def stack(kind, layers=1, **options):
    torch.manual_seed(layers)
    module = ours(kind, INPUTS, STATE, num_layers=layers, **options)
    with torch.no_grad():
        for weight in module.parameters():
            weight.uniform_(-0.9, 0.9)
    return module


def data(*shape, seed=5, dtype=torch.float64):
    return torch.randn(
        *shape, generator=torch.Generator().manual_seed(seed), dtype=dtype
    )


X, DY = data(TIME, BATCH, INPUTS), data(TIME, BATCH, STATE, seed=6)


def weighted(module, x=X, dy=DY, **options):
    """A loss whose error of the outputs is dy."""

    def loss():
        return (module(x, **options)[0] * dy).sum()

    return loss


def gradients(module, loss, truncation):
    before, module.truncation = module.truncation, truncation
    found = torch.autograd.grad(loss(), list(module.parameters()))
    module.truncation = before
    return dict(zip(dict(module.named_parameters()), found, strict=True))


def vector(gradients):
    return torch.cat([g.flatten() for g in gradients.values()])


@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_norms_are_those_of_one_autograd_call_an_output(kind, layers):
    module = stack(kind, layers)
    flow = gradient_flow(module, weighted(module))
    states = literal_flow.states_of(literal_flow.cells_of(module, kind), X, [])
    expected = literal_flow.norms(states, DY)
    torch.testing.assert_close(flow.norms, expected, rtol=1e-10, atol=1e-12)
    assert not flow.norms.triu(1).any()


@pytest.mark.parametrize("kind", ["tanh", "lstm"])
def test_parts_of_the_state_are_told_apart(kind):
    module = stack(kind, 2)
    flow = gradient_flow(module, weighted(module))
    names = ["h_l0", "c_l0", "h_l1", "c_l1"] if kind == "lstm" else ["h_l0", "h_l1"]
    assert list(flow.norms_by_part) == names
    states = literal_flow.states_of(literal_flow.cells_of(module, kind), X, [])
    E = (states[7][-1][0] * DY[7]).sum()
    parts = [part for layer in states[3] for part in layer]
    for name, d in zip(names, torch.autograd.grad(E, parts), strict=True):
        torch.testing.assert_close(
            flow.norms_by_part[name][7, 3], d.norm(dim=1).mean(), rtol=1e-10, atol=0.0
        )


@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_lags_sum_to_every_per_output_window(kind, layers):
    module = stack(kind, layers)
    loss = weighted(module)
    flow = gradient_flow(module, loss)
    by_lag = {name: flow.gradient_by_lag(name) for name in flow.parameters}
    assert list(by_lag) == list(dict(module.named_parameters()))
    for window in (1, 2, 5, TIME):
        expected = gradients(module, loss, Truncation(1, window))
        for name, shares in by_lag.items():
            torch.testing.assert_close(
                shares[:window].sum(0), expected[name], rtol=1e-10, atol=1e-11
            )
    whole = torch.cat([shares.flatten(1) for shares in by_lag.values()], dim=1)
    torch.testing.assert_close(flow.by_lag, whole.norm(dim=1), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_bias_and_cosine_are_those_of_explicitly_truncated_gradients(kind):
    module = stack(kind, 2)
    loss = weighted(module)
    flow = gradient_flow(module, loss)
    full = vector(gradients(module, loss, None))
    for truncation in (
        Truncation(1, 1),
        Truncation(1, 4),
        Truncation(3, 3),
        Truncation(2, 5),
        Truncation(6, 2),
    ):
        cut = vector(gradients(module, loss, truncation))
        bias = float((cut - full).norm() / full.norm())
        assert flow.bias(truncation) == pytest.approx(bias, rel=1e-9)
        cosine = float(torch.dot(cut, full) / (cut.norm() * full.norm()))
        assert flow.cosine(truncation) == pytest.approx(cosine, rel=1e-9)
    assert flow.bias(Truncation.full()) == 0.0
    assert flow.bias(Truncation(1, TIME)) == 0.0
    assert flow.gradient_norm == pytest.approx(float(full.norm()), rel=1e-10)


def test_window_and_horizon_are_the_smallest_that_hold():
    module = stack("gru")
    flow = gradient_flow(module, weighted(module))
    for tolerance in (0.5, 0.2, 0.05, 1e-3):
        window = flow.window(tolerance)
        assert flow.bias(Truncation(1, window)) <= tolerance
        assert all(flow.bias(Truncation(1, k2)) > tolerance for k2 in range(1, window))
    assert flow.window(0.0) == TIME
    for share in (0.0, 0.3, 0.95, 1.0):
        lag = flow.horizon(share)
        sums = flow.by_lag.cumsum(0)
        assert sums[lag] >= share * sums[-1]
        assert lag == 0 or sums[lag - 1] < share * sums[-1]


@pytest.mark.parametrize("kind", ["tanh", "gru", "lstm"])
def test_ragged_rows_are_as_if_each_were_alone(kind):
    module = stack(kind, 2)
    lengths = torch.tensor([4, TIME, 2])
    flow = gradient_flow(module, weighted(module, lengths=lengths))
    states = literal_flow.states_of(literal_flow.cells_of(module, kind), X, [])
    expected = literal_flow.norms(states, DY, lengths)
    torch.testing.assert_close(flow.norms, expected, rtol=1e-10, atol=1e-12)

    packed = torch.nn.utils.rnn.pack_padded_sequence(X, lengths, enforce_sorted=False)
    errors = torch.nn.utils.rnn.pack_padded_sequence(DY, lengths, enforce_sorted=False)
    again = gradient_flow(module, lambda: (module(packed)[0].data * errors.data).sum())
    torch.testing.assert_close(again.norms, expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(again.by_lag, flow.by_lag, rtol=1e-10, atol=1e-12)
    first = module(packed)[0].data.detach()
    assert not torch.equal(first, module(X)[0].flatten(0, 1)[: len(first)])


@pytest.mark.parametrize("kind", ["relu", "gru", "lstm"])
def test_no_error_passes_a_reset(kind):
    module = stack(kind, 2)
    resets = torch.zeros(TIME, BATCH, dtype=torch.bool)
    resets[4, 1] = resets[2, 0] = resets[7] = True
    flow = gradient_flow(module, weighted(module, resets=resets))
    states = literal_flow.states_of(literal_flow.cells_of(module, kind), X, [], resets)
    expected = literal_flow.norms(states, DY)
    torch.testing.assert_close(flow.norms, expected, rtol=1e-10, atol=1e-12)
    assert not flow.norms[7:, :7].any()


def test_dropout_masks_are_those_of_the_run():
    module = stack("lstm", 3, dropout=0.5).train()
    torch.manual_seed(3)
    flow = gradient_flow(module, weighted(module))
    torch.manual_seed(3)
    loss = weighted(module)
    full = dict(
        zip(
            dict(module.named_parameters()),
            torch.autograd.grad(loss(), list(module.parameters())),
            strict=True,
        )
    )
    for name in ("weight_ih_l0", "weight_hh_l2"):
        torch.testing.assert_close(
            flow.gradient_by_lag(name).sum(0), full[name], rtol=1e-9, atol=1e-11
        )
    assert gradient_flow(module.eval(), loss).bias(Truncation(1, 2)) > 0


@pytest.mark.parametrize("make", [torch.nn.RNN, torch.nn.GRU, torch.nn.LSTM])
def test_modules_of_torch_inside_a_model(make):
    torch.manual_seed(0)

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = torch.nn.BatchNorm1d(INPUTS, dtype=torch.float64)
            self.rnn = make(
                INPUTS, STATE, num_layers=2, dropout=0.4, batch_first=True
            ).double()
            self.head = torch.nn.Linear(STATE, 1, dtype=torch.float64)

        def forward(self, x):
            y, final = self.rnn(self.norm(x.flatten(0, 1)).view_as(x))
            y.mul_(0.5)  # what is written into the outputs is no part of the module
            final = final[0] if isinstance(final, tuple) else final
            return self.head(y).square().sum() + final.pow(3).sum()

    model = Model()
    x = data(BATCH, TIME, INPUTS)
    torch.manual_seed(1)
    flow = gradient_flow(model, lambda: model(x))
    torch.manual_seed(1)
    model(x).backward()
    assert flow.module == "rnn"
    for name, parameter in model.rnn.named_parameters():
        torch.testing.assert_close(
            flow.gradient_by_lag(f"rnn.{name}").sum(0),
            parameter.grad,
            rtol=1e-9,
            atol=1e-11,
        )


def test_everything_is_left_as_it_was():
    model = torch.nn.ModuleDict(
        {
            "norm": torch.nn.BatchNorm1d(INPUTS),
            "rnn": torch.nn.LSTM(INPUTS, STATE, num_layers=2, dropout=0.5),
        }
    )
    x = data(TIME, BATCH, INPUTS, dtype=torch.float32)

    def loss():
        np.random.rand()
        model.eval()
        model.train()
        model["rnn"].eval()
        y = model["rnn"](model["norm"](x.flatten(0, 1)).view_as(x))[0]
        return torch.nn.functional.dropout(y).sum()

    model["rnn"].weight_hh_l0.grad = torch.ones(4 * STATE, STATE)
    torch.manual_seed(7)
    np.random.seed(7)
    before = (
        torch.get_rng_state(),
        np.random.get_state()[1].copy(),
        {name: b.clone() for name, b in model.state_dict().items()},
    )
    flow = gradient_flow(model, loss)
    assert flow.verdict
    assert torch.equal(before[0], torch.get_rng_state())
    assert np.array_equal(before[1], np.random.get_state()[1])
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[2][name]), name
    assert model["rnn"].training
    assert torch.equal(model["rnn"].weight_hh_l0.grad, torch.ones(4 * STATE, STATE))
    assert model["rnn"].weight_ih_l0.grad is None
    assert type(model["rnn"]) is torch.nn.LSTM
    assert not model["rnn"]._forward_hooks
    assert not model["rnn"]._forward_pre_hooks
    # Nor does what becomes of the model matter to the flow.
    norms = flow.norms.clone()
    with torch.no_grad():
        model["rnn"].weight_hh_l0.zero_()
        x.zero_()
    assert torch.equal(gradient_flow(model, loss).norms, norms) is False
    assert flow.bias(Truncation(2, 3)) > 0
    assert torch.equal(flow.norms, norms)


def test_what_python_draws_is_put_back():
    # Not through gradient_flow: what checks the types in these tests draws, too.
    random.seed(7)
    with _as_it_was(torch.nn.Linear(1, 1)):
        random.random()
        np.random.rand()
    expected = random.Random(7).random()
    assert random.random() == expected


def test_a_frozen_module_has_a_flow_too():
    module = stack("gru")
    expected = gradient_flow(module, weighted(module)).by_lag
    for parameter in module.parameters():
        parameter.requires_grad_(False)
    head = torch.nn.Linear(STATE, STATE, bias=False, dtype=torch.float64)
    with torch.no_grad():
        head.weight.copy_(torch.eye(STATE))
    model = torch.nn.ModuleList([module, head])
    flow = gradient_flow(model, lambda: (head(module(X)[0]) * DY).sum())
    torch.testing.assert_close(flow.by_lag, expected)


def test_one_sequence_without_a_batch_axis():
    module = stack("lstm", batch_first=True)
    flow = gradient_flow(module, weighted(module, X[:, 0], DY[:, 0]))
    expected = gradient_flow(module, weighted(module, X[None, :, 0], DY[None, :, 0]))
    torch.testing.assert_close(flow.norms, expected.norms, rtol=0.0, atol=0.0)
    assert flow.norms.shape == (TIME, TIME)
    one = gradient_flow(module, weighted(module, X[:1, 0], DY[:1, 0]))
    assert one.verdict == "The sequence has one step, so nothing goes back."


def test_parametrized_weights_count_as_they_are_used():
    module = torch.nn.GRU(INPUTS, STATE, dtype=torch.float64)
    torch.nn.utils.parametrizations.weight_norm(module, "weight_hh_l0")
    flow = gradient_flow(torch.nn.DataParallel(module), weighted(module))
    assert flow.module == "module"
    plain = bptt.GRU(INPUTS, STATE, dtype=torch.float64)
    with torch.no_grad():
        for name in flow.parameters:
            getattr(plain, name).copy_(getattr(module, name))
    expected = gradient_flow(plain, weighted(plain))
    torch.testing.assert_close(flow.norms, expected.norms)
    torch.testing.assert_close(flow.by_lag, expected.by_lag)


def test_ids_are_one_hot_vectors():
    module = stack("lstm")
    ids = torch.randint(INPUTS, (TIME, BATCH), generator=torch.Generator())
    hot = torch.nn.functional.one_hot(ids, INPUTS).double()
    flow = gradient_flow(module, weighted(module, ids))
    again = gradient_flow(module, weighted(module, hot))
    torch.testing.assert_close(flow.norms, again.norms)
    torch.testing.assert_close(
        flow.gradient_by_lag("weight_ih_l0"), again.gradient_by_lag("weight_ih_l0")
    )


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("kernel", kernels.available())
def test_float32_of_every_kernel_is_that_of_float64(kernel, kind, layers):
    module = stack(kind, layers, dropout=0.3 if layers > 1 else 0.0)
    lengths = torch.tensor([6, TIME, 3])
    resets = torch.zeros(TIME, BATCH, dtype=torch.bool)
    resets[5, 1] = True

    def loss(x, dy):
        def value():
            torch.manual_seed(1)
            y, final = module(x, lengths=lengths, resets=resets)
            final = final if isinstance(final, tuple) else (final,)
            return (y * dy).sum() + sum(part.pow(2).sum() for part in final)

        return value

    exact = gradient_flow(module, loss(X, DY))
    expected = (exact.norms, exact.by_lag, exact.gradient_by_lag("weight_hh_l0"))
    parts = exact.norms_by_part
    biases = exact.biases
    module.float()
    with kernels.use(kernel):
        flow = gradient_flow(module, loss(X.float(), DY.float()))
        found = (flow.norms, flow.by_lag, flow.gradient_by_lag("weight_hh_l0"))
        for one, other in zip(found, expected, strict=True):
            assert one.dtype == torch.float32
            assert (one - other).abs().max() <= 2e-6 * other.abs().max()
        for name, part in flow.norms_by_part.items():
            assert (part - parts[name]).abs().max() <= 2e-6 * parts[name].abs().max()
        assert (flow.biases - biases).abs().max() <= 2e-6


def test_growth_beyond_all_numbers_is_said():
    module = bptt.RNN(2, 3, bias=False)
    with torch.no_grad():
        module.weight_hh_l0.copy_(1e9 * torch.eye(3))
    x = torch.zeros(12, 1, 2)
    flow = gradient_flow(module, lambda: module(x)[0].sum())
    with pytest.raises(FloatingPointError, match="explodes: dE_"):
        assert flow.norms


def test_several_batches_have_confidence_intervals():
    module = stack("gru")
    flows = tuple(
        gradient_flow(module, weighted(module, data(TIME, BATCH, INPUTS, seed=seed)))
        for seed in range(4)
    )
    together = FlowEstimates(flows)
    biases = [flow.bias(Truncation(1, 2)) for flow in flows]
    found = together.bias(Truncation(1, 2))
    assert found.mean == pytest.approx(np.mean(biases))
    # Student's t for three degrees of freedom is 3.182.
    margin = 3.182 * np.std(biases, ddof=1) / 2
    assert found.interval == pytest.approx(
        (np.mean(biases) - margin, np.mean(biases) + margin)
    )
    mean = torch.stack([flow.by_lag for flow in flows]).mean(0)
    torch.testing.assert_close(together.by_lag, mean)
    assert [e.mean for e in together.by_lag_estimates] == pytest.approx(mean.tolist())
    window = together.window(0.1)
    means = torch.stack([flow.biases for flow in flows]).mean(0)
    assert means[window - 1] <= 0.1 < means[window - 2]
    with pytest.raises(ValueError, match="as many steps"):
        FlowEstimates(())


def test_progress_is_told():
    module = stack("tanh")
    seen = []
    flow = gradient_flow(
        module, weighted(module), progress=lambda *done: seen.append(done)
    )
    assert flow.horizon() < TIME
    assert seen == [(lag, TIME) for lag in range(1, TIME + 1)]
