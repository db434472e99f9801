"""Every truncation in float32: the definition's gradients, in float64."""

from dataclasses import replace

import pytest
import torch

from bptt import autograd, kernels
from bptt.through_time import Layer
from bptt.truncation import Truncation
from kernels import cases
from kernels.cases import KIND, NATIVE, Case, Data, assert_near, run
from kernels.law import steady
from literal import GATES, PARTS, Problem, literal_gradients, problem

pytestmark = NATIVE

TOLERANCE = 1e-5


def agree(case: Case, truncation: Truncation, **options) -> dict[str, float]:
    """What is wrong with the native gradients of this case; nothing, hopefully."""
    found = []
    for dtype in (torch.float32, torch.float64):
        module, data = case.modules()[0].to(dtype), case.data()
        module.truncation = truncation
        data = data.double() if dtype == torch.float64 else data
        found.append(run(module, data, **options))
    errors = {n: cases.relative_error(found[0][n], e) for n, e in found[1].items()}
    return {name: error for name, error in errors.items() if not error <= TOLERANCE}


@pytest.mark.parametrize("k1", range(1, 10))
@KIND
def test_every_window_of_a_short_sequence(kind, k1):
    """Shorter than the chunk, longer, past both ends of the sequence, all of it."""
    case = steady(Case(kind, 9, batch=3, time=7, inputs=5))
    wrong = {}
    with cases.native_only():
        for k2 in range(1, 11):
            wrong[k2] = agree(case, Truncation(k1, k2))
    assert not any(wrong.values()), wrong


CUTS = [
    Truncation.chunks(1),
    Truncation.chunks(5),
    Truncation.chunks(40),
    Truncation.per_output(0),
    Truncation.per_output(4),
    Truncation.per_output(50),
    Truncation(3, 8),
    Truncation(4, 2),
    Truncation(23, 6),
    Truncation(50, 3),
    Truncation(50, 30),
    Truncation(1, 23),
    Truncation(2, 1000),
]


@pytest.mark.parametrize("truncation", CUTS, ids=str)
@KIND
def test_odd_widths_and_stacks(kind, truncation):
    wrong = {}
    for hidden, batch, layers in [(1, 1, 1), (17, 5, 2), (33, 9, 1), (35, 2, 3)]:
        case = steady(Case(kind, hidden, batch, 23, inputs=6, layers=layers, bias=True))
        with cases.native_only():
            wrong[hidden] = agree(case, truncation)
    assert not any(wrong.values()), wrong


@pytest.mark.parametrize("truncation", [CUTS[1], CUTS[4], CUTS[6], CUTS[7]], ids=str)
@pytest.mark.parametrize(
    "options",
    [
        {"bidirectional": True},
        {"batch_first": True, "bias": False},
        {"batch": None, "layers": 2},
        {"ids": True, "layers": 2},
    ],
    ids=str,
)
@KIND
def test_every_option(kind, options, truncation):
    case = steady(replace(Case(kind, 10, batch=3, time=11, inputs=7), **options))
    with cases.native_only():
        wrong = agree(case, truncation)
    assert not wrong


@pytest.mark.parametrize("reads", [{"y"}, {"h_n"}, {"c_n"}, {"h_n", "c_n"}], ids=str)
@pytest.mark.parametrize("layers", [1, 3])
@KIND
def test_the_final_states_error_belongs_to_the_last_steps_pass(kind, layers, reads):
    if kind != "lstm" and "c_n" in reads:
        pytest.skip("has no c_n")
    case = steady(Case(kind, 12, batch=4, time=8, inputs=5, layers=layers))
    for k in [(3, 3), (3, 5), (5, 2), (1, 4), (20, 15), (20, 2)]:
        assert not agree(case, Truncation(*k), reads=reads), k


@pytest.mark.parametrize("wanted", [{"x"}, {"h0"}, {"weight_hh_l0"}, {"bias_ih_l1"}])
@KIND
def test_one_tensor_alone_gets_its_gradient(kind, wanted):
    case = steady(Case(kind, 12, batch=4, time=8, inputs=5, layers=2))
    for k in [(3, 3), (3, 5), (5, 2), (1, 4)]:
        assert not agree(case, Truncation(*k), wanted=wanted), k


@pytest.mark.parametrize("layers", [2, 3])
@KIND
def test_dropout_masks_stand_between_the_layers_of_every_pass(kind, layers):
    """Below the module, where masks are arguments: full, and cut anyhow."""
    p = problem(
        kind,
        time=9,
        batch=5,
        inputs=6,
        hidden=11,
        layers=layers,
        dropout=0.4,
        largest_weight=0.4,
        seed=2,
    ).to(torch.float32)
    assert len(p.masks) == layers - 1
    cuts = [Truncation(*k) for k in [(1, 3), (4, 4), (2, 5), (5, 3), (9, 4), (20, 14)]]
    for truncation in [Truncation.full(), *cuts]:
        with cases.native_only():
            found = _below_the_module(p, truncation)
        assert_near(found, _below_the_module(p.to(torch.float64), truncation), 1e-5)


def _below_the_module(p: Problem, truncation: Truncation) -> dict[str, torch.Tensor]:
    """What `autograd.run` gives for a problem with its masks."""
    leaves = dict(p.weights) | {"x": p.x}
    leaves |= dict(zip(PARTS[p.kind], p.state, strict=True))
    leaves = {name: t.clone().requires_grad_() for name, t in leaves.items()}
    names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    cell = Case(p.kind, 1, 1, 1, 1).modules()[0]._cell()
    layers = [
        Layer(cell, *(leaves[f"{name}_l{at}"] for name in names))
        for at in range(p.layers)
    ]
    initial = [tuple(leaves[n][at] for n in PARTS[p.kind]) for at in range(p.layers)]
    y, final = autograd.run(layers, leaves["x"], initial, p.masks, truncation)
    ends = [part for state in final for part in state]
    errors = [d[at] for at in range(p.layers) for d in p.dfinal]
    grads = torch.autograd.grad([y, *ends], list(leaves.values()), [p.dy, *errors])
    return {"y": y} | dict(zip(leaves, grads, strict=True))


@KIND
def test_the_literal_definition_with_no_engine_between(kind):
    """Unrolled and cut in torch.nn, so that no error of the definition is shared."""
    p = problem(kind, time=8, batch=3, inputs=4, hidden=10, layers=2, dropout=0.3)
    p = p.to(torch.float32)
    for k in [(1, 3), (3, 3), (2, 5), (5, 3), (8, 3), (11, 13)]:
        found = _below_the_module(p, Truncation(*k))
        del found["y"]
        assert_near(found, literal_gradients(p.to(torch.float64), *k), TOLERANCE)


@pytest.mark.parametrize("layers", [1, 2])
@KIND
def test_chunks_are_what_detaching_gives(kind, layers):
    case = steady(Case(kind, 18, batch=3, time=23, inputs=7, layers=layers))
    data = case.data()
    for k in (1, 4, 5, 22):
        module = case.modules()[0]
        module.truncation = Truncation.chunks(k)
        chunked = run(module, data, reads={"y"})
        module.truncation = None
        total: dict[str, torch.Tensor] = {}
        dx, state = [], data.state
        for x, dy in zip(data.x.split(k), data.errors["y"].split(k), strict=True):
            part = run(module, Data(x, state, {"y": dy}), reads={"y"})
            state = tuple(part[n] for n in ("h_n", "c_n") if n in part)
            dx.append(part["dx"])
            for name in (n for n in part if n.startswith(("dweight", "dbias"))):
                total[name] = total.get(name, 0) + part[name]
        found = {name: chunked[name] for name in [*total, "dx", "h_n"]}
        assert_near(found, total | {"dx": torch.cat(dx), "h_n": state[0]}, TOLERANCE)


@KIND
def test_a_window_over_everything_is_full_to_the_last_bit(kind):
    case = Case(kind, 20, batch=4, time=9, inputs=5, layers=2)
    module, data = case.modules()[0], case.data()
    full = run(module, data)
    for truncation in [Truncation(1, 9), Truncation(9, 9), Truncation(4, 12)]:
        module.truncation = truncation
        cases.assert_bits(run(module, data), full)


@KIND
def test_the_truncation_of_the_call_counts_not_that_of_the_backward_pass(kind):
    case = Case(kind, 6, batch=2, time=7, inputs=3)
    module, data = case.modules()[0], case.data()
    module.truncation = Truncation(2, 3)
    expected = run(module, data)["dweight_hh_l0"]
    y, final = module(data.x, data.state if kind == "lstm" else data.state[0])
    ends = final if kind == "lstm" else (final,)
    module.truncation = None
    with kernels.use("torch"):  # nor does the kernel's change turn anything wrong
        torch.autograd.backward([y, *ends], list(data.errors.values()))
    assert_near({"dW": module.weight_hh_l0.grad}, {"dW": expected}, TOLERANCE)
    assert expected.shape == (GATES[kind] * 6, 6)
