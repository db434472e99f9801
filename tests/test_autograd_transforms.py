"""Derivatives of the gradient, torch.func's transforms and forward mode."""

import pytest
import torch
from torch.autograd import forward_ad, gradcheck, gradgradcheck
from torch.func import functional_call, grad, hessian, jvp, vmap

from bptt.truncation import Truncation
from literal import KINDS, assert_same, gradients, ours, outputs, pair, stack, unroll

CUT = Truncation(2, 3)
TRUNCATIONS = pytest.mark.parametrize("truncation", [Truncation.full(), CUT], ids=str)
KIND = pytest.mark.parametrize("kind", KINDS)
# Forward-mode differentiation in torch compiles some of its own formulas.
FORWARD_MODE = pytest.mark.filterwarnings("ignore:.torch.jit.script")


@pytest.fixture(autouse=True)
def _same_numbers_every_time():
    torch.manual_seed(0)


def call(module, names):
    """The module as a function of the tensors of these names, as gradcheck asks."""

    def function(*tensors):
        given = dict(zip(names, tensors, strict=True))
        state = [given.pop(name) for name in ("h0", "c0") if name in given]
        hx = () if not state else (tuple(state) if len(state) == 2 else state[0],)
        y, final = functional_call(module, given, (given.pop("x"), *hx))
        return (y, *(final if isinstance(final, tuple) else (final,)))

    return function


@KIND
def test_derivatives_of_every_order_are_the_finite_differences(kind):
    module, _, leaves = stack(kind, seed=2)
    function, tensors = call(module, leaves), tuple(leaves.values())
    assert gradcheck(function, tensors, check_batched_grad=True, fast_mode=True)
    assert gradgradcheck(function, tensors, check_batched_grad=True, fast_mode=True)


@KIND
@pytest.mark.parametrize("truncation", [CUT, Truncation.per_output(1)], ids=str)
def test_the_gradient_of_a_truncated_gradient_is_its_finite_difference(
    kind, truncation
):
    module, _, leaves = stack(kind, truncation, seed=2)
    assert gradgradcheck(call(module, leaves), tuple(leaves.values()), fast_mode=True)


@KIND
@TRUNCATIONS
def test_double_backward_sees_the_same_dropout(kind, truncation):
    module, _, leaves = stack(kind, truncation, dropout=0.5)
    names = list(leaves)

    def function(*tensors):
        torch.manual_seed(7)
        return call(module, names)(*tensors)

    assert gradgradcheck(function, tuple(leaves.values()), fast_mode=True)


@KIND
@TRUNCATIONS
def test_the_gradient_is_the_same_with_and_without_a_graph_of_it(kind, truncation):
    module, _, leaves = stack(kind, truncation, time=7, dropout=0.5)
    y, _ = module(leaves["x"])
    loss = (y**3).sum()
    plain = gradients(loss, leaves, retain_graph=True)
    again = gradients(loss, leaves, create_graph=True)
    assert_same(again, plain)
    assert again["x"].requires_grad
    assert not plain["x"].requires_grad


@KIND
@TRUNCATIONS
@pytest.mark.parametrize("read", ["y", "h_n"])
def test_many_errors_at_once_are_the_errors_one_by_one(kind, truncation, read):
    module, _, leaves = stack(kind, truncation)
    out = outputs(module, leaves["x"])[read]
    errors = torch.randn(3, *out.shape, dtype=out.dtype)
    inputs = [leaves["x"], *module.parameters()]
    together = torch.autograd.grad(
        out, inputs, errors, is_grads_batched=True, retain_graph=True
    )
    for i, error in enumerate(errors):
        alone = torch.autograd.grad(out, inputs, error, retain_graph=True)
        assert_same(
            dict(enumerate(g[i] for g in together)), dict(enumerate(alone)), 1e-12
        )


@KIND
def test_torch_func_grad_and_functional_call_are_the_modules_gradient(kind):
    module, p, _ = stack(kind)
    other, reference = pair(kind, 3, 2, 2, seed=9)
    weights = dict(reference.named_parameters())
    expected = gradients((reference(p.x)[0] ** 2).sum(), weights)

    def loss(weights):
        return (functional_call(module, weights, (p.x,))[0] ** 2).sum()

    assert_same(grad(loss)(weights), expected)
    leaves = {name: w.detach().clone().requires_grad_() for name, w in weights.items()}
    assert_same(gradients(loss(leaves), leaves), expected)
    own = dict(other.named_parameters())
    assert_same(gradients((other(p.x)[0] ** 2).sum(), own), expected)


@KIND
def test_functional_call_may_change_the_precision(kind):
    module = ours(kind, 3, 2, dtype=torch.float32)
    double, reference = pair(kind, 3, 2)
    x = torch.randn(4, 2, 3, dtype=torch.float64)
    y, _ = functional_call(module, dict(double.named_parameters()), (x,))
    assert_same({"y": y}, {"y": reference(x)[0]})


@KIND
@pytest.mark.parametrize("as_ids", [False, True])
def test_vmap_of_grad_is_the_gradient_row_by_row(kind, as_ids):
    module, p, _ = stack(kind, batch=3)
    rows = torch.randint(0, 3, (3, 4)) if as_ids else p.x.transpose(0, 1)
    weights = dict(module.named_parameters())

    def loss(weights, row):
        return (functional_call(module, weights, (row,))[0] ** 2).sum()

    together = vmap(grad(loss), in_dims=(None, 0))(weights, rows)
    for i, row in enumerate(rows):
        alone = gradients(loss(weights, row), weights)
        assert_same({name: g[i] for name, g in together.items()}, alone)


@KIND
@FORWARD_MODE
def test_jvp_and_dual_numbers_are_those_of_torch_nn(kind):
    module, p, _ = stack(kind)
    tangent = torch.randn_like(p.x)

    def reference(x):
        return unroll(kind, module.state_dict(), x, p.state)[0]

    def function(x):
        return module(x, p.state if kind == "lstm" else p.state[0])[0]

    _, expected = torch.autograd.functional.jvp(reference, p.x, tangent)
    _, found = jvp(function, (p.x,), (tangent,))
    with forward_ad.dual_level():
        dual = function(forward_ad.make_dual(p.x, tangent))
        also = forward_ad.unpack_dual(dual).tangent
    assert_same({"jvp": found, "dual": also}, {"jvp": expected, "dual": expected})


@FORWARD_MODE
def test_hessian_is_that_of_double_backward():
    module, p, _ = stack("gru", time=2, batch=1)

    def loss(x):
        return (module(x)[0] ** 2).sum()

    expected = torch.autograd.functional.hessian(loss, p.x)
    assert_same({"hessian": hessian(loss)(p.x)}, {"hessian": expected})


@KIND
@FORWARD_MODE
def test_a_truncation_that_cuts_is_refused_inside_transforms(kind):
    module, p, _ = stack(kind, CUT)

    def loss(x):
        return module(x)[0].sum()

    with pytest.raises(NotImplementedError, match=r"Truncation\(k1=2, k2=3\).*None"):
        grad(loss)(p.x)
    with pytest.raises(NotImplementedError, match=r"torch\.func"):
        vmap(loss)(p.x.transpose(0, 1))
    with pytest.raises(NotImplementedError, match=r"torch\.func"):
        jvp(loss, (p.x,), (p.x,))
    with (
        forward_ad.dual_level(),
        pytest.raises(NotImplementedError, match="forward-mode"),
    ):
        loss(forward_ad.make_dual(p.x, p.x))
    module.truncation = Truncation(1, 4)  # which cuts nothing of 4 steps
    expected = gradients(loss(x := p.x.clone().requires_grad_()), {"x": x})
    assert_same({"x": grad(loss)(p.x)}, expected)
