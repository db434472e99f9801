"""RNN, GRU and LSTM as drop-ins for torch.nn's: the same calls, the same numbers."""

import copy
import inspect
import pickle

import pytest
import torch
from torch.nn.utils.parametrizations import weight_norm

import bptt
from bptt.truncation import Truncation
from literal import (
    KINDS,
    PARTS,
    Problem,
    assert_same,
    gradients,
    literal_gradients,
    ours,
    outputs,
    pair,
    problem,
    theirs,
)

KIND = pytest.mark.parametrize("kind", KINDS)
CUTS = [None, Truncation.full(), Truncation(2, 3), Truncation.per_output(2)]
OPTIONS = [
    {},
    {"num_layers": 2, "bias": False},
    {"num_layers": 3, "batch_first": True},
    {"num_layers": 3, "dropout": 0.4},
    {"num_layers": 2, "dropout": 0.4, "batch_first": True},
    {"num_layers": 2, "dropout": 1.0},
    {"bidirectional": True},
    {"bidirectional": True, "num_layers": 2, "bias": False, "batch_first": True},
    {"bidirectional": True, "num_layers": 3, "dropout": 0.4},
]


@pytest.fixture(autouse=True)
def _same_numbers_every_time():
    torch.manual_seed(0)


def everything(module, x, *, seed=0, with_state=False):
    """Outputs and all gradients of a loss that reads all outputs, by name."""
    leaves = dict(module.named_parameters())
    if x.is_floating_point():
        leaves["x"] = x = x.clone().requires_grad_()
    state = ()
    if with_state:
        batched = x.dim() == (3 if x.is_floating_point() else 2)
        batch = (x.shape[0 if module.batch_first else 1],) if batched else ()
        count = module.num_layers * (2 if module.bidirectional else 1)
        shape = (count, *batch, module.hidden_size)
        generator = torch.Generator().manual_seed(5)
        names = ("h0", "c0") if isinstance(module, torch.nn.LSTM) else ("h0",)
        for name in names:
            part = torch.randn(shape, generator=generator, dtype=torch.float64)
            leaves[name] = part.requires_grad_()
        state = tuple(leaves[name] for name in names)
    torch.manual_seed(seed)  # of the dropout masks
    found = outputs(module, x, *state)
    loss = sum(((at + 2) * o.sin() + o**2).sum() for at, o in enumerate(found.values()))
    grads = gradients(loss, leaves)
    return found | {f"d{name}": g for name, g in grads.items()}


@KIND
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("with_state", [False, True])
@pytest.mark.parametrize("training", [True, False])
def test_outputs_and_gradients_are_torch_nns(kind, options, with_state, training):
    module, reference = pair(kind, 5, 3, **options)
    x = torch.randn(6, 4, 5, dtype=torch.float64)
    found, expected = (
        everything(m.train(training), x, with_state=with_state)
        for m in (module, reference)
    )
    assert_same(found, expected)
    if training and 0 < options.get("dropout", 0) < 1:  # another seed, other masks
        other = everything(module, x, seed=1, with_state=with_state)
        assert float((other["y"] - found["y"]).detach().abs().max()) > 1e-3


@KIND
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_one_sequence_without_a_batch_axis(kind, options):
    module, reference = pair(kind, 5, 3, **options)
    x = torch.randn(6, 5, dtype=torch.float64)
    for with_state in (False, True):
        assert_same(
            everything(module, x, with_state=with_state),
            everything(reference, x, with_state=with_state),
        )


@KIND
@pytest.mark.parametrize("layout", ["transposed", "expanded", "sliced"])
def test_strided_input_is_read_as_it_stands(kind, layout):
    module, reference = pair(kind, 5, 3, 2)
    base = torch.randn(4, 6, 10, dtype=torch.float64)
    x = {
        "transposed": base[..., :5].transpose(0, 1),
        "expanded": base[:1, :1, :5].expand(6, 4, 5),
        "sliced": base.transpose(0, 1)[..., ::2],
    }[layout]
    found = [dict(enumerate(m(x)[0].unbind(1))) for m in (module, reference)]
    assert_same(*found)
    loss = [(m(x)[0] ** 2).sum() for m in (module, reference)]
    assert_same(
        gradients(loss[0], dict(module.named_parameters())),
        gradients(loss[1], dict(reference.named_parameters())),
    )


@KIND
@pytest.mark.parametrize("truncation", CUTS, ids=str)
@pytest.mark.parametrize("shape", ["batch", "batch_first", "one", "two directions"])
def test_ids_are_one_hot_vectors(kind, truncation, shape):
    options = {"batch_first": shape == "batch_first", "num_layers": 2}
    if shape == "two directions":
        options |= {"bidirectional": True, "num_layers": 1}
    module, _ = pair(kind, 7, 3, truncation=truncation, **options)
    ids = torch.randint(0, 6, (5,) if shape == "one" else (5, 4))  # 6 never occurs
    found = everything(module, ids, with_state=True)
    one_hot = torch.nn.functional.one_hot(ids, 7).double()
    expected = everything(module, one_hot, with_state=True)
    del expected["dx"]
    assert_same(found, expected)


@KIND
@pytest.mark.parametrize("k", [(2, 3), (1, 4), (3, 2), (9, 11)])
def test_a_truncated_stack_with_dropout_is_its_literal_definition(kind, k):
    module, _ = pair(kind, 3, 2, 3, dropout=0.4, truncation=Truncation(*k))
    p = problem(kind, time=7, hidden=2, layers=3)
    leaves = dict(module.named_parameters()) | {"x": p.x.clone().requires_grad_()}
    torch.manual_seed(3)
    masks = [torch.empty_like(p.dy).bernoulli_(0.6).div_(0.6) for _ in range(2)]
    torch.manual_seed(3)
    hx = p.state if kind == "lstm" else p.state[0]
    y, final = module(leaves["x"], hx)
    ends = final if kind == "lstm" else (final,)
    loss = (y * p.dy).sum()
    loss = loss + sum((e * d).sum() for e, d in zip(ends, p.dfinal, strict=True))
    q = Problem(kind, module.state_dict(), p.x, p.state, masks, p.dy, p.dfinal)
    expected = literal_gradients(q, *k)
    assert_same(gradients(loss, leaves), {name: expected[name] for name in leaves})


@KIND
@pytest.mark.parametrize("k", [(1, 3), (2, 3), (3, 3), (3, 2), (4, 6), (9, 11)])
def test_each_direction_is_truncated_along_its_own_time(kind, k):
    module, _ = pair(kind, 3, 2, bidirectional=True, truncation=Truncation(*k))
    p = problem(kind, time=7, hidden=4)  # twice the width, for dy
    q = problem(kind, time=7, hidden=2, layers=2)  # h0 and dh_n of both directions
    leaves = dict(module.named_parameters()) | {"x": p.x.clone().requires_grad_()}
    for name, part in zip(PARTS[kind], q.state, strict=True):
        leaves[name] = part.clone().requires_grad_()
    hx = tuple(leaves[name] for name in PARTS[kind])
    y, final = module(leaves["x"], hx if kind == "lstm" else hx[0])
    ends = final if kind == "lstm" else (final,)
    loss = (y * p.dy).sum()
    loss = loss + sum((e * d).sum() for e, d in zip(ends, q.dfinal, strict=True))
    found = gradients(loss, leaves)

    expected, each = {"x": torch.zeros_like(p.x)}, []
    for at, suffix in enumerate(["", "_reverse"]):
        names = [n for n in module.state_dict() if n.endswith(f"_l0{suffix}")]
        weights = {
            n.removesuffix("_reverse"): module.state_dict()[n].clone() for n in names
        }
        x, dy = p.x, p.dy[..., 2 * at : 2 * at + 2]
        if suffix:
            x, dy = x.flip(0), dy.flip(0)
        state, dfinal = (
            tuple(part[at : at + 1] for part in parts) for parts in (q.state, q.dfinal)
        )
        one = literal_gradients(Problem(kind, weights, x, state, [], dy, dfinal), *k)
        dx = one.pop("x")
        expected["x"] += dx.flip(0) if suffix else dx
        expected |= {f"{n}{suffix}": one.pop(n) for n in weights}
        each.append(one)
    expected |= {name: torch.cat([one[name] for one in each]) for name in PARTS[kind]}
    assert_same(found, {name: expected[name] for name in found})


@KIND
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_a_state_dict_loads_both_ways(kind, options):
    module, reference = ours(kind, 5, 3, **options), theirs(kind, 5, 3, **options)
    assert isinstance(module, type(reference))
    assert list(module.state_dict()) == list(reference.state_dict())
    reference.load_state_dict(module.state_dict(), strict=True)
    assert_same(reference.state_dict(), module.state_dict(), 0.0)
    module.load_state_dict(theirs(kind, 5, 3, **options).state_dict(), strict=True)


@pytest.mark.parametrize("name", ["RNN", "GRU", "LSTM"])
def test_the_constructor_takes_torch_nns_arguments_in_its_order(name):
    signature = inspect.signature(getattr(bptt, name).__init__)
    positional = [
        p.name for p in signature.parameters.values() if p.kind != p.KEYWORD_ONLY
    ]
    order = ["self", "input_size", "hidden_size", "num_layers", "bias", "batch_first"]
    order += ["dropout", "bidirectional", "device", "dtype"]
    if name == "RNN":
        order.insert(4, "nonlinearity")
    if name == "LSTM":
        order.insert(8, "proj_size")
    assert positional == order
    # By position each lands where torch.nn puts it.
    values = [5, 3, 2, False, True, 0.25, True]
    if name == "RNN":
        values.insert(3, "relu")
    module = getattr(bptt, name)(*values)
    assert repr(module) == repr(getattr(torch.nn, name)(*values))


@KIND
def test_a_seed_draws_torch_nns_initial_weights(kind):
    torch.manual_seed(3)
    module = ours(kind, 5, 3, 2)
    torch.manual_seed(3)
    assert_same(module.state_dict(), theirs(kind, 5, 3, 2).state_dict(), 0.0)


@KIND
def test_the_truncation_shows_and_may_be_changed(kind):
    module, reference = pair(kind, 5, 3, 2)
    assert repr(module) == repr(reference)
    x = torch.randn(6, 4, 5, dtype=torch.float64)
    full = everything(module, x)
    module.truncation = Truncation(2, 3)
    assert "Truncation(k1=2, k2=3)" in repr(module)
    cut = everything(module, x)
    assert_same({"y": cut["y"]}, {"y": full["y"]}, 0.0)
    assert float((cut["dx"] - full["dx"]).detach().abs().max()) > 1e-3
    module.truncation = None
    assert_same(everything(module, x), full, 0.0)


@KIND
@pytest.mark.parametrize(
    "copied", [copy.deepcopy, copy.copy, lambda m: pickle.loads(pickle.dumps(m))]
)
def test_a_copy_computes_the_same(kind, copied):
    module, _ = pair(kind, 5, 3, 2, truncation=Truncation(2, 3))
    x = torch.randn(6, 4, 5, dtype=torch.float64)
    again = copied(module)
    assert again.truncation == module.truncation
    assert_same(everything(again, x), everything(module, x), 0.0)


def test_a_deep_copy_has_weights_of_its_own():
    module, _ = pair("gru", 5, 3)
    again = copy.deepcopy(module)
    with torch.no_grad():
        module.weight_hh_l0.zero_()
    x = torch.randn(6, 4, 5, dtype=torch.float64)
    assert float((again(x)[0] - module(x)[0]).abs().max().detach()) > 1e-3


@KIND
def test_parametrized_weights_are_read_and_trained(kind):
    module, reference = pair(kind, 5, 3, 2)
    for m in (module, reference):
        weight_norm(m, "weight_hh_l0")
    assert isinstance(module, type(reference).__mro__[1])
    x = torch.randn(6, 4, 5, dtype=torch.float64)
    assert_same(everything(module, x), everything(reference, x))


@KIND
def test_the_second_layer_may_be_frozen(kind):
    module, reference = pair(kind, 5, 3, 2)
    x = torch.randn(6, 4, 5, dtype=torch.float64)
    found = []
    for m in (module, reference):
        for name, weight in m.named_parameters():
            weight.requires_grad_("l1" not in name)
        (m(x)[0] ** 2).sum().backward()
        found.append({n: w.grad for n, w in m.named_parameters() if "l0" in n})
        assert all(w.grad is None for n, w in m.named_parameters() if "l1" in n)
    assert_same(*found)
