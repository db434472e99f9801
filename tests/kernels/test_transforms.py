"""What PyTorch does to a module besides calling it: the numbers stay right.

Where the native kernels do not apply, the definition runs, in float32.
"""

import copy
import pickle

import pytest
import torch
from torch.autograd import forward_ad
from torch.autograd.graph import saved_tensors_hooks
from torch.func import functional_call, grad, jacrev, jvp, vmap
from torch.utils.checkpoint import checkpoint

from bptt import kernels
from bptt.truncation import Truncation
from kernels import cases
from kernels.cases import (
    BEST,
    FORWARD_MODE,
    KIND,
    NATIVE,
    Case,
    assert_bits,
    assert_near,
    run,
)
from kernels.law import exact, steady
from kernels.layouts import laid_out
from literal import gradients, outputs

pytestmark = [NATIVE, BEST]

TOLERANCE = 2e-5
TRUNCATIONS = pytest.mark.parametrize(
    "truncation", [None, Truncation(2, 3)], ids=["full", "cut"]
)


def small(kind, truncation=None):
    """A case, and its module and data in float32 and in float64."""
    case = Case(kind, 7, batch=3, time=5, inputs=4, layers=2, truncation=truncation)
    case = steady(case)
    single = case.modules()[0], case.data()
    return case, single, (copy.deepcopy(single[0]).double(), single[1].double())


def penalty(module, data):
    """A loss that reads a gradient, its own gradients, and those of the plain loss."""
    leaves = dict(module.named_parameters()) | {"x": data.x.requires_grad_()}
    loss = sum((t**3).sum() for t in outputs(module, data.x, *data.state).values())
    first = gradients(loss, leaves, create_graph=True)
    second = gradients(sum((g**2).sum() for g in first.values()), leaves)
    return {f"1 {n}": g.detach() for n, g in first.items()} | {
        f"2 {n}": g for n, g in second.items()
    }


@TRUNCATIONS
@KIND
def test_double_backward(kind, truncation):
    _, single, double = small(kind, truncation)
    assert_near(penalty(*single), penalty(*double), 1e-4)


@KIND
def test_a_graph_of_the_gradient_leaves_the_next_plain_backward_right(kind):
    _, (module, data), _ = small(kind)
    loss = (outputs(module, data.x, *data.state)["y"] ** 2).sum()
    weights = dict(module.named_parameters())
    plain = gradients(loss, weights, retain_graph=True)
    graphed = gradients(loss, weights, create_graph=True)
    assert_near(graphed, plain, TOLERANCE)
    assert_bits(gradients(loss, weights), plain)


@TRUNCATIONS
@KIND
def test_a_retained_graph_gives_the_same_bits_again(kind, truncation):
    """Whole, and an output at a time: the way back may not use up the tape."""
    case, (module, data), _ = small(kind, truncation)
    weights = dict(module.named_parameters())
    out = outputs(module, data.x, *data.state)
    names = list(out)
    loss = {n: (out[n] * data.errors[n]).sum() for n in names}
    whole = gradients(sum(loss.values()), weights, retain_graph=True)
    parts = [gradients(loss[n], weights, retain_graph=True) for n in names]
    assert_near({n: sum(p[n] for p in parts) for n in weights}, whole, TOLERANCE)
    assert_bits(gradients(sum(loss.values()), weights), whole)
    assert_near(whole, {n: exact(case)[f"d{n}"] for n in weights}, TOLERANCE)
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        loss["y"].backward()


@FORWARD_MODE
@KIND
def test_forward_mode(kind):
    _, (module, data), (double, exactly) = small(kind)
    tangent = torch.randn_like(data.x)
    found = jvp(lambda x: outputs(module, x, *data.state), (data.x,), (tangent,))[1]
    with forward_ad.dual_level():
        dual = outputs(module, forward_ad.make_dual(data.x, tangent), *data.state)
        also = {n: forward_ad.unpack_dual(t).tangent for n, t in dual.items()}
    names = list(found)
    _, expected = torch.autograd.functional.jvp(
        lambda x: tuple(outputs(double, x, *exactly.state).values()),
        exactly.x,
        tangent.double(),
    )
    assert_near(found, dict(zip(names, expected, strict=True)), TOLERANCE)
    assert_near(also, dict(zip(names, expected, strict=True)), TOLERANCE)


@KIND
def test_vmap_over_inputs_and_over_weights(kind):
    _, (module, data), (double, exactly) = small(kind)
    rows = data.x.transpose(0, 1)  # each one sequence
    found = vmap(lambda row: module(row)[0])(rows)
    assert_near({"y": found}, {"y": double(exactly.x)[0].transpose(0, 1)}, TOLERANCE)
    weights = {n: torch.stack([w, -w, 0.3 * w]) for n, w in module.named_parameters()}
    found = vmap(lambda w: functional_call(module, w, (data.x,))[0])(weights)
    for at, y in enumerate(found):
        own = {name: w[at].double() for name, w in weights.items()}
        assert_near(
            {"y": y}, {"y": functional_call(double, own, (exactly.x,))[0]}, 1e-5
        )


@KIND
def test_torch_func_grad_jacrev_and_vmap_of_grad(kind):
    _, (module, data), (double, exactly) = small(kind)

    def of(module, x):
        weights = dict(module.named_parameters())
        loss = lambda w, x: (functional_call(module, w, (x,))[0] ** 2).sum()  # noqa: E731
        rows = vmap(grad(loss), in_dims=(None, 0))(weights, x.transpose(0, 1))
        jacobian = jacrev(lambda x: module(x)[0][-1].sum(0))(x)
        plain = gradients(loss(weights, x), weights)
        return plain, grad(loss)(weights, x), rows, {"jacobian": jacobian}

    plain, *found = of(module, data.x)
    expected, *others = of(double, exactly.x)
    for mine, other in zip((plain, *found), (expected, *others), strict=True):
        assert_near(mine, other, TOLERANCE)
    assert_near(found[0], plain, TOLERANCE)
    assert_near({n: rows.sum(0) for n, rows in found[1].items()}, plain, TOLERANCE)


@TRUNCATIONS
@KIND
def test_many_errors_at_once(kind, truncation):
    _, (module, data), _ = small(kind, truncation)
    leaves = [data.x.requires_grad_(), *module.parameters()]
    for y in outputs(module, data.x, *data.state).values():
        errors = torch.randn(3, *y.shape)
        together = torch.autograd.grad(
            y, leaves, errors, is_grads_batched=True, retain_graph=True
        )
        for at, error in enumerate(errors):
            alone = torch.autograd.grad(y, leaves, error, retain_graph=True)
            assert_near(
                dict(enumerate(g[at] for g in together)), dict(enumerate(alone)), 1e-5
            )


@KIND
def test_functional_call_uses_the_weights_it_is_given(kind):
    case, (module, data), _ = small(kind)
    other = Case(kind, 7, batch=3, time=5, inputs=4, layers=2, seed=90).modules()[0]
    weights = dict(other.named_parameters())
    with cases.native_only():
        found = functional_call(module, weights, (data.x,))[0]
        assert_bits({"y": found}, {"y": other(data.x)[0]})
        grads = gradients((found**2).sum(), weights)
        assert_bits(grads, gradients((other(data.x)[0] ** 2).sum(), weights))
    assert_near(run(module, data), exact(case), TOLERANCE)


@KIND
def test_copies_compute_the_same_bits(kind):
    _, (module, data), _ = small(kind, Truncation(2, 3))
    expected = run(module, data)
    for again in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert_bits(run(again, data), expected)


@KIND
def test_autocast_leaves_the_recurrence_in_float32(kind):
    _, (module, data), _ = small(kind)
    x = data.x.bfloat16().float()
    expected = outputs(module, x, *data.state)
    with torch.autocast("cpu", torch.bfloat16):
        found = outputs(module, x, *data.state)
        half = outputs(module, x.bfloat16(), *(part for part in data.state))
    assert_bits(found, expected)
    assert_bits(half, expected)
    weights = dict(module.named_parameters())
    grads = gradients(sum(t.sum() for t in found.values()), weights)
    assert_bits(grads, gradients(sum(t.sum() for t in expected.values()), weights))


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")
def test_compiling_a_model_that_holds_ours():
    _, (module, data), _ = small("lstm")
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Tanh(), module)

    def step(x):
        model.zero_grad()
        y, (h, c) = model(x)
        ((y**2).sum() + h.sum() * c.sum()).backward()
        return {name: weight.grad for name, weight in model.named_parameters()}

    expected = step(data.x)
    torch.compiler.reset()
    found = torch.compile(step, backend="eager")(data.x)
    torch.compiler.reset()
    assert_near(found, expected, TOLERANCE)


@pytest.mark.parametrize("reentrant", [False, True])
@KIND
def test_recomputing_by_checkpoint(kind, reentrant):
    _, (module, data), _ = small(kind, Truncation(2, 3))
    leaves = dict(module.named_parameters()) | {"x": data.x.requires_grad_()}
    found = []
    for again in (False, True):
        loss = lambda x: (module(x)[0] ** 2).sum()  # noqa: E731
        value = (
            checkpoint(loss, data.x, use_reentrant=reentrant) if again else loss(data.x)
        )
        value.backward()
        found.append({name: leaf.grad for name, leaf in leaves.items()})
        for leaf in leaves.values():
            leaf.grad = None
    assert_bits(*found)


@pytest.mark.parametrize("layout", ["transposed", "sliced", "offset", "negative"])
@KIND
def test_saved_tensors_may_come_back_otherwise_in_memory(kind, layout):
    """As hooks that compress, or keep them elsewhere, may give them back."""
    for truncation in (None, Truncation(2, 3)):
        case, (module, data), _ = small(kind, truncation)
        with saved_tensors_hooks(
            torch.Tensor.clone,
            lambda t: laid_out(t, layout) if t.is_floating_point() and t.dim() else t,
        ):
            found = run(module, data)
        assert_near(found, exact(case), TOLERANCE)


@TRUNCATIONS
@KIND
def test_outputs_changed_in_place_give_the_right_gradient_or_none(kind, truncation):
    _, (module, data), (double, exactly) = small(kind, truncation)

    def changed(module, data):
        leaves = dict(module.named_parameters()) | {"x": data.x.requires_grad_()}
        out = outputs(module, data.x, *data.state)
        out["y"].mul_(out["y"].detach().cos())
        out["y"][1] = 3
        out["h_n"] += 1
        return gradients(sum((t**2).sum() for t in out.values()), leaves)

    found = {}
    if not refused(lambda: found.update(changed(module, data))):
        assert_near(found, changed(double, exactly), TOLERANCE)


def refused(call):
    """Whether autograd noticed that a tensor which it needs was changed."""
    try:
        call()
    except RuntimeError as error:
        if "modified by an inplace operation" in str(error):
            return True
        raise
    return False


@TRUNCATIONS
@pytest.mark.parametrize("name", ["weight_ih_l0", "weight_hh_l1", "x", "h0"])
@KIND
def test_what_is_changed_before_the_backward_pass_is_noticed(kind, truncation, name):
    _, (module, data), _ = small(kind, truncation)
    given = dict(module.named_parameters()) | {"x": data.x, "h0": data.state[0]}
    y, _ = module(data.x, data.state if kind == "lstm" else data.state[0])
    with torch.no_grad():
        given[name] += 1
    assert refused(y.sum().backward)


@KIND
def test_the_way_back_may_run_under_another_kernel(kind):
    """A tape is read by whatever kernel runs then, or made anew."""
    for truncation in (None, Truncation(2, 3)):
        case, (module, data), _ = small(kind, truncation)
        weights = dict(module.named_parameters())
        for forward in kernels.available():
            for backward in kernels.available():
                with kernels.use(forward):
                    out = outputs(module, data.x, *data.state)
                with kernels.use(backward):
                    loss = sum((out[n] * data.errors[n]).sum() for n in out)
                    found = gradients(loss, weights)
                expected = {name: exact(case)[f"d{name}"] for name in weights}
                assert_near(found, expected, TOLERANCE)
