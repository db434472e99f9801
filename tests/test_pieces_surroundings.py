"""Random truncations beside everything else that may be at work around a call."""

import pytest
import torch

import bptt
from bptt import RandomTruncation, Truncation, pieces
from literal import PARTS, assert_same, gradients, pair
from literal_pieces import BATCH, CUTS, TIME, drawn, gate, normal


@pytest.mark.parametrize("kind", ["tanh", "lstm"])
def test_a_gradient_of_the_gradient(kind):
    cut = RandomTruncation(2, 0.5)
    module, reference = pair(kind, 3, 2, 2, truncation=cut)
    x = normal(TIME, BATCH, 3).requires_grad_()
    torch.manual_seed(0)
    y, _ = module(x)
    factors = drawn(cut, 0)
    s = [x.new_zeros(2, BATCH, 2)] * len(PARTS[kind])
    ys = []
    for t in range(TIME):
        if t and t % 2 == 0:
            s = [gate(part, factors[t // 2 - 1].unsqueeze(1)) for part in s]
        y_t, s = reference(x[t : t + 1], tuple(s) if len(s) > 1 else s[0])
        s = s if isinstance(s, tuple) else (s,)
        ys.append(y_t)
    found = []
    for m, out in ((module, y), (reference, torch.cat(ys))):
        leaves = {"x": x} | dict(m.named_parameters())
        first = torch.autograd.grad(
            out.square().sum(), list(leaves.values()), create_graph=True
        )
        found.append(gradients(sum(g.square().sum() for g in first), leaves))
    assert_same(*found, tolerance=1e-10)


def test_a_check_of_gradients_checks_one_draw(monkeypatch):
    module, _ = pair("lstm", 3, 4, 2, truncation=CUTS[1])
    x = normal(TIME, 2, 3)
    assert bptt.check_gradients(module, x, directions=1).passed
    right = pieces._multiplied
    for wrong in (lambda d, each: d, lambda d, each: 1.01 * right(d, each)):
        monkeypatch.setattr(pieces, "_multiplied", wrong)
        with pytest.raises(bptt.GradientError, match="finite difference"):
            bptt.check_gradients(module, x, directions=1)


def test_what_is_cut_is_cut_even_where_it_is_infinite():
    cut = RandomTruncation(3, 0.5)
    factors = drawn(cut, 1)
    last = factors[-1] == 0
    assert last.any()
    assert not last.all()
    module, _ = pair("gru", 3, 4, truncation=cut)
    x = normal(TIME, BATCH, 3).requires_grad_()
    torch.manual_seed(1)
    y, _ = module(x)
    y[-1].backward(torch.full((BATCH, 4), torch.inf, dtype=torch.float64))
    assert torch.equal(x.grad[:6, last], torch.zeros_like(x.grad[:6, last]))
    assert not x.grad[5, ~last].isfinite().any()


def test_a_forward_pass_run_again_is_cut_as_before():
    module, _ = pair("gru", 3, 4, truncation=CUTS[0])
    x = normal(TIME, BATCH, 3).requires_grad_()

    def gradient(call):
        torch.manual_seed(0)
        return torch.autograd.grad(call(x).square().sum(), x)[0]

    def checkpointed(x):
        return torch.utils.checkpoint.checkpoint(
            lambda x: module(x)[0], x, use_reentrant=False
        )

    assert torch.equal(gradient(lambda x: module(x)[0]), gradient(checkpointed))


def test_several_errors_at_once():
    module, _ = pair("gru", 3, 4, truncation=CUTS[0])
    x = normal(TIME, BATCH, 3).requires_grad_()
    y, _ = module(x)
    errors = normal(3, TIME, BATCH, 4)
    (together,) = torch.autograd.grad(
        y, x, errors, is_grads_batched=True, retain_graph=True
    )
    for at, dy in enumerate(errors):
        (alone,) = torch.autograd.grad(y, x, dy, retain_graph=True)
        torch.testing.assert_close(together[at], alone, rtol=1e-12, atol=1e-14)


def test_a_window_is_cut_at_random_within():
    module, _ = pair("gru", 3, 4, truncation=CUTS[0])
    stateful = bptt.Stateful(module)
    x, leaves = normal(TIME, BATCH, 3), dict(module.named_parameters())
    stateful(x)
    state = stateful.state
    torch.manual_seed(0)
    mine = gradients(stateful(x).square().sum(), leaves)
    torch.manual_seed(0)
    assert_same(mine, gradients(module(x, state)[0].square().sum(), leaves))


def test_gradient_flow_is_that_of_the_mean():
    module, _ = pair("gru", 3, 4, truncation=CUTS[0])
    x, dy = normal(TIME, BATCH, 3), normal(TIME, BATCH, 4, seed=2)
    flow = bptt.gradient_flow(module, lambda: (module(x)[0] * dy).sum())
    assert flow.truncation == Truncation.full()
    total = sum(flow.gradient_by_lag("weight_hh_l0"))
    expected, _ = pair("gru", 3, 4)
    full = gradients((expected(x)[0] * dy).sum(), dict(expected.named_parameters()))
    torch.testing.assert_close(total, full["weight_hh_l0"], rtol=1e-10, atol=1e-12)


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_what_is_refused_says_why():
    cut = RandomTruncation(2, 0.5)
    with pytest.raises(ValueError, match=r"memory_budget='1MB'.*set memory_budget to"):
        bptt.GRU(3, 4, truncation=cut, memory_budget="1MB")
    with pytest.raises(ValueError, match=r"memory_budget=9.*take a bptt.Truncation"):
        bptt.Recurrent(torch.nn.GRUCell(3, 4), truncation=cut, memory_budget=9)
    with pytest.raises(ValueError, match=r"bidirectional stack.*RandomTruncation\(ev"):
        bptt.GRU(3, 4, 2, bidirectional=True, truncation=cut)
    module = bptt.GRU(3, 4)
    module.truncation = 0.5
    x = torch.randn(5, 2, 3)
    with pytest.raises(TypeError, match=r"bptt.RandomTruncation or None; got 0\.5"):
        module(x)
    module.truncation = cut
    recurrent = bptt.Recurrent(torch.nn.GRUCell(3, 4), truncation=cut)
    for call in (
        lambda: torch.func.grad(lambda x: module(x)[0].sum())(x),
        lambda: torch.func.grad(lambda x: recurrent(x)[0].sum())(x),
        lambda: torch.func.vmap(lambda x: module(x)[0])(x.unsqueeze(0)),
        lambda: torch.func.jvp(lambda x: module(x)[0], (x,), (x,)),
    ):
        with pytest.raises(NotImplementedError, match=r"no meaning inside torch\.func"):
            call()
    with pytest.raises(NotImplementedError, match=r"torch\.jit\.trace.*RandomTrunc"):
        torch.jit.trace(module, x)
    with pytest.raises(ValueError, match=r"contains a truncated module.*RandomTrunc"):
        bptt.check_gradients(torch.nn.Sequential(module), x)


def test_the_text_of_a_module_names_it():
    cut = RandomTruncation(2, 0.5)
    text = "RandomTruncation(every=2, probability=0.5)"
    assert str(bptt.GRU(3, 4, truncation=cut)) == f"GRU(3, 4, {text})"
    assert f"truncation={text}" in str(
        bptt.Recurrent(torch.nn.GRUCell(3, 4), truncation=cut)
    )
