import math

import pytest
import torch

from bptt.language_model import LanguageModel
from bptt.training import Options, resolve
from bptt.training.optimizer import (
    gradient_norm,
    learning_rate,
    make_optimizer,
    set_learning_rate,
)


def config(**options):
    return resolve(Options(**options), 20)[1]


def test_adamw_warms_up_linearly():
    peak = config(lr=0.5)
    for progress in (0.0, 0.001, 0.01, 0.02, 0.03):
        cosine = 0.5 * (1 + math.cos(math.pi * progress))
        assert learning_rate(peak, progress, 1.0) == pytest.approx(
            0.5 * progress / 0.03 * (0.02 + 0.98 * cosine), rel=1e-12
        )
    assert learning_rate(peak, 0.0, 1.0) == 0
    assert learning_rate(peak, 0.03, 1.0) == pytest.approx(0.5, rel=0.005)


def test_adamw_falls_by_a_cosine_to_a_fiftieth():
    peak = config(lr=0.5)
    points = {1 / 3: 0.755, 0.5: 0.51, 2 / 3: 0.265, 1.0: 0.02}
    for progress, share in points.items():
        assert learning_rate(peak, progress, 1.0) == pytest.approx(
            0.5 * share, rel=1e-12
        )
    rates = [learning_rate(peak, 0.03 + 0.0097 * i, 1.0) for i in range(101)]
    assert rates == sorted(rates, reverse=True)
    assert learning_rate(peak, 1.5, 1.0) == learning_rate(peak, 1.0, 1.0)


def test_adamw_knows_no_halving():
    assert learning_rate(config(), 0.5, 0.25) == learning_rate(config(), 0.5, 1.0)


def test_sgd_keeps_its_rate_times_the_scale():
    sgd = config(optimizer="sgd", lr=0.5)
    for progress in (0.0, 0.01, 0.5, 1.0):
        assert learning_rate(sgd, progress, 1.0) == 0.5
        assert learning_rate(sgd, progress, 0.25) == 0.125


def model_with_gradients(**options):
    model_config, training = resolve(Options(hidden=4, layers=2, **options), 6)
    torch.manual_seed(0)
    model = LanguageModel(model_config).double()
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    return model, training


def test_adamw_is_that_of_its_paper_with_decay_on_matrices_alone():
    """Loshchilov & Hutter, 2019, algorithm 2, two steps."""
    model, training = model_with_gradients(weight_decay=0.1)
    optimizer = make_optimizer(model, training)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    gradients = {name: p.grad.clone() for name, p in model.named_parameters()}
    for rate in (0.3, 0.2):
        set_learning_rate(optimizer, rate)
        optimizer.step()
    for name, p in model.named_parameters():
        expected, g = before[name], gradients[name]
        m, v = torch.zeros_like(g), torch.zeros_like(g)
        for t, rate in ((1, 0.3), (2, 0.2)):
            m, v = 0.9 * m + 0.1 * g, 0.99 * v + 0.01 * g**2
            decay = 0.1 if p.dim() == 2 else 0.0
            step = (m / (1 - 0.9**t)) / ((v / (1 - 0.99**t)).sqrt() + 1e-8)
            expected = expected - rate * decay * expected - rate * step
        torch.testing.assert_close(p.detach(), expected, msg=name)


def test_sgd_is_plain():
    model, training = model_with_gradients(optimizer="sgd", bias=True)
    optimizer = make_optimizer(model, training)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    set_learning_rate(optimizer, 0.3)
    optimizer.step()
    optimizer.step()
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.detach(), before[name] - 2 * 0.3 * p.grad)


def test_tied_weights_are_stepped_once():
    model, training = model_with_gradients(embedding=4, tied=True)
    groups = make_optimizer(model, training).param_groups
    stepped = [id(p) for group in groups for p in group["params"]]
    assert len(stepped) == len(set(stepped)) == len(list(model.parameters()))


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_gradients_are_clipped_to_the_norm_and_it_is_told_from_before(scale):
    model, _ = model_with_gradients()
    for p in model.parameters():
        p.grad *= scale
    before = torch.cat([p.grad.flatten() for p in model.parameters()])
    norm = gradient_norm(model.parameters(), 2.0)
    after = torch.cat([p.grad.flatten() for p in model.parameters()])
    assert norm == pytest.approx(before.norm().item(), rel=1e-12)
    clipped = min(1.0, 2.0 / norm)
    torch.testing.assert_close(after, before * clipped, rtol=1e-5, atol=0)


def test_clip_0_is_none():
    model, _ = model_with_gradients()
    before = [p.grad.clone() for p in model.parameters()]
    norm = gradient_norm(model.parameters(), 0.0)
    assert norm == pytest.approx(
        math.sqrt(sum(float(g.square().sum()) for g in before))
    )
    for p, g in zip(model.parameters(), before, strict=True):
        assert torch.equal(p.grad, g)


def test_a_gradient_that_is_not_finite_has_no_finite_norm():
    model, _ = model_with_gradients()
    model.decoder.bias.grad[0] = math.nan
    assert math.isnan(gradient_norm(model.parameters(), 1.0))
