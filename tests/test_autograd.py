"""The loop as an operation of autograd: one derivative, asked for in every way."""

import weakref

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from bptt import autograd, through_time
from bptt.cells import LSTMCell
from bptt.rows import Rows
from bptt.through_time import Layer
from bptt.truncation import Truncation
from literal import (
    KINDS,
    PARTS,
    assert_same,
    gradients,
    literal_gradients,
    outputs,
    pair,
    problem,
    stack,
    theirs,
)

CUT = Truncation(2, 3)
TRUNCATIONS = pytest.mark.parametrize("truncation", [Truncation.full(), CUT], ids=str)
KIND = pytest.mark.parametrize("kind", KINDS)


def error_of(shape, layout, generator):
    """A random error of this shape, (a, b, c), with the strides of `layout`."""
    a, b, c = shape

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    return {
        "contiguous": lambda: normal(a, b, c),
        "transposed": lambda: normal(b, a, c).transpose(0, 1),
        "sliced": lambda: normal(a, b, 2 * c)[..., ::2],
        "expanded": lambda: normal(c).expand(a, b, c),
    }[layout]()


READS = [{"y"}, {"h_n"}, {"c_n"}, {"y", "h_n"}, {"h_n", "c_n"}, {"y", "h_n", "c_n"}]
shapes = st.fixed_dictionaries(
    {
        "time": st.integers(1, 6),
        "batch": st.integers(1, 3),
        "inputs": st.integers(1, 5),
        "hidden": st.integers(1, 4),
        "layers": st.integers(1, 3),
        "bias": st.booleans(),
        "seed": st.integers(0, 2**32 - 1),
    }
)


@KIND
@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    shape=shapes,
    reads=st.sampled_from(READS),
    layout=st.sampled_from(["contiguous", "transposed", "sliced", "expanded"]),
    with_state=st.booleans(),
)
@example(
    shape={"time": 5, "inputs": 5, "hidden": 3, "layers": 3, "bias": True, "seed": 3},
    reads={"h_n"},
    layout="transposed",
    with_state=True,
)
def test_full_is_torch_nn_whatever_the_loss_reads(
    kind, shape, reads, layout, with_state
):
    p = problem(kind, **shape)
    size = (shape["inputs"], shape["hidden"], shape["layers"])
    module, reference = pair(kind, *size, bias=shape["bias"], seed=shape["seed"])
    reads = reads if kind == "lstm" else (reads - {"c_n"} or {"y"})
    found = []
    for run in (module, reference):
        leaves = {"x": p.x.clone().requires_grad_()}
        if with_state:
            for name, part in zip(PARTS[kind], p.state, strict=True):
                leaves[name] = part.clone().requires_grad_()
        out = outputs(run, *leaves.values())
        generator = torch.Generator().manual_seed(1)
        errors = [error_of(out[n].shape, layout, generator) for n in sorted(reads)]
        wanted = dict(run.named_parameters()) | leaves
        grads = torch.autograd.grad(
            [out[name] for name in sorted(reads)],
            list(wanted.values()),
            errors,
            allow_unused=True,
        )
        for name, given_grad in zip(wanted, grads, strict=True):
            if given_grad is None:  # at the last step only h_n of the top is not read
                given_grad = torch.zeros_like(wanted[name])
            out[f"d{name}"] = given_grad
        found.append(out)
    assert_same(*found)


@KIND
@TRUNCATIONS
def test_each_tensor_alone_gets_its_gradient_and_the_frozen_ones_none(kind, truncation):
    module, _, leaves = stack(kind, truncation)
    hx = [leaves[name] for name in PARTS[kind]]

    def loss():
        return sum((o**2).sum() for o in outputs(module, leaves["x"], *hx).values())

    everything = gradients(loss(), leaves)
    for wanted, leaf in leaves.items():
        for other in leaves.values():
            other.requires_grad_(other is leaf)
            other.grad = None
        loss().backward()
        assert [name for name, t in leaves.items() if t.grad is not None] == [wanted]
        assert_same({wanted: leaf.grad}, {wanted: everything[wanted]})
    for leaf in leaves.values():
        leaf.requires_grad_(False)
    assert not loss().requires_grad


@KIND
@TRUNCATIONS
def test_the_gradient_of_the_module_is_that_of_its_loop(kind, truncation):
    """With a loss that is not linear: its errors are those at the module's outputs."""
    module, p, leaves = stack(kind, truncation, time=7)
    out = outputs(module, leaves["x"], *(leaves[name] for name in PARTS[kind]))
    errors = {"y": out["y"].detach().cos(), "h_n": 2 * out["h_n"].detach()}
    loss = out["y"].sin().sum() + (out["h_n"] ** 2).sum()
    dfinal = [errors["h_n"]]
    if kind == "lstm":
        loss = loss + out["c_n"].exp().sum()
        dfinal.append(out["c_n"].detach().exp())
    literal = problem(kind, time=7, batch=2, hidden=2, layers=2)
    literal = type(literal)(
        kind, module.state_dict(), p.x, p.state, [], errors["y"], tuple(dfinal)
    )
    k1, k2 = (7, 7) if truncation.is_full else (2, 3)
    assert_same(gradients(loss, leaves), literal_gradients(literal, k1, k2))


@TRUNCATIONS
def test_a_second_backward_asks_for_retain_graph_as_everywhere(truncation):
    module, _, leaves = stack("lstm", truncation)
    loss = module(leaves["x"])[0].sum()
    first = gradients(loss, leaves, retain_graph=True)
    assert_same(gradients(loss, leaves), first, 0.0)
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        loss.backward()


@KIND
def test_weights_changed_before_the_backward_pass_are_noticed(kind):
    module, p, _ = stack(kind)
    loss = module(p.x)[0].sum()
    with torch.no_grad():
        module.weight_hh_l0 += 1
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@KIND
@TRUNCATIONS
def test_a_windows_tape_dies_with_it_where_the_carried_state_is_detached(
    kind, truncation, monkeypatch
):
    module, p, _ = stack(kind, truncation)
    tapes = []

    def forward(*arguments):
        made = true_forward(*arguments)
        tapes.append([weakref.ref(t) for tape in made for t in tape.states + tape.kept])
        return made

    true_forward = through_time.forward
    monkeypatch.setattr(through_time, "forward", forward)
    hx, alive = None, []
    for _ in range(3):
        y, hx = module(p.x, hx)
        hx = tuple(s.detach() for s in hx) if kind == "lstm" else hx.detach()
        alive.append([sum(t() is not None for t in tape) for tape in tapes])
        y.sum().backward()
    every = len(tapes[0])
    assert alive == [[every], [0, every], [0, 0, every]]
    del y
    assert [t() for tape in tapes for t in tape] == [None] * 3 * every


@KIND
def test_without_gradients_the_outputs_are_the_same(kind):
    module, p, _ = stack(kind, CUT)
    expected = outputs(module, p.x)
    with torch.no_grad():
        found = outputs(module, p.x)
    assert_same(found, expected, 0.0)
    assert not any(t.requires_grad for t in found.values())
    with torch.inference_mode():
        assert_same(outputs(module, p.x), expected, 0.0)


@KIND
def test_recomputing_by_checkpoint_gives_the_same_gradient(kind):
    module, _, leaves = stack(kind, CUT)

    def loss(x):
        return (module(x)[0] ** 2).sum()

    kept = gradients(loss(leaves["x"]), leaves)
    recomputed = torch.utils.checkpoint.checkpoint(
        loss, leaves["x"], use_reentrant=False
    )
    assert_same(gradients(recomputed, leaves), kept, 0.0)


@KIND
def test_changing_the_outputs_in_place_is_allowed_as_in_torch_nn(kind):
    module, reference = pair(kind, 3, 4, 2, batch_first=True)
    x = torch.randn(2, 5, 3, dtype=torch.float64)
    found = []
    for run in (module, reference):
        leaves = dict(run.named_parameters()) | {"x": x.clone().requires_grad_()}
        y, final = run(leaves["x"])
        y.mul_(y.detach().cos())
        y[:, 0] = 3
        h_n = final[0] if kind == "lstm" else final
        h_n += 1
        found.append(gradients((y**2).sum() + (h_n**3).sum(), leaves))
    assert_same(*found)


@TRUNCATIONS
def test_the_operations_outputs_share_nothing_with_its_tape(truncation):
    p = problem("lstm", time=5)
    leaves = {name: w.clone().requires_grad_() for name, w in p.weights.items()}
    layer = Layer(LSTMCell(), *leaves.values())
    initial = tuple(p.state)

    def run(*, in_place):
        y, (h, c) = autograd.run(
            [layer], p.x, initial, [], truncation, Rows(*p.x.shape[:2])
        )
        for out in (y, h, c):
            if in_place:
                out.detach().zero_()
        return y, h, c

    errors = [p.dy, *p.dfinal]
    kept, spoiled = (
        torch.autograd.grad(run(in_place=in_place), list(leaves.values()), errors)
        for in_place in (False, True)
    )
    names = list(leaves)
    assert_same(
        dict(zip(names, spoiled, strict=True)), dict(zip(names, kept, strict=True)), 0.0
    )


def test_theirs_is_torch_nn_itself():
    """The oracle is not the module under test."""
    assert type(theirs("lstm", 1, 1)) is torch.nn.LSTM
    assert type(theirs("gru", 1, 1)) is torch.nn.GRU
    assert type(theirs("relu", 1, 1)) is torch.nn.RNN
    assert theirs("relu", 1, 1).mode == "RNN_RELU"
