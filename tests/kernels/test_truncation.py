"""Every truncation in float32: the definition's gradients, in float64."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from bptt import autograd, kernels
from bptt.rows import Rows
from bptt.through_time import Layer
from bptt.truncation import Truncation
from kernels import cases
from kernels.cases import KIND, KIND_AND_READS, NATIVE, Case, Data, assert_near, run
from kernels.law import exact, steady
from literal import GATES, PARTS, Problem, literal_gradients, problem

pytestmark = NATIVE

TOLERANCE = 1e-5


def assert_cut(case: Case, truncation: Truncation, **options: Any) -> None:
    """The native gradients are the exact ones, and by the work of the kernel alone."""
    case = replace(steady(case), truncation=truncation)
    with cases.native_only():
        found = run(case.modules()[0], case.data(), **options)
    reads = options.get("reads")
    expected = exact(case, reads and frozenset(reads))
    assert_near(found, {name: expected[name] for name in found}, TOLERANCE)


@pytest.mark.parametrize("k1", [1, 2, 3, 7, 9])
@KIND
def test_every_window_of_a_short_sequence(kind, k1):
    """Shorter than the chunk, longer, past both ends of the sequence, all of it."""
    for k2 in (1, 2, 3, 5, 7, 8, 10):
        assert_cut(Case(kind, 9, batch=3, time=7, inputs=5), Truncation(k1, k2))


CUTS = [
    Truncation.chunks(1),
    Truncation.chunks(5),
    Truncation.per_output(0),
    Truncation.per_output(4),
    Truncation(3, 8),
    Truncation(4, 2),
    Truncation(13, 6),
    Truncation(50, 3),
    Truncation(50, 41),
    Truncation(1, 13),
    Truncation(2, 1000),
]


@pytest.mark.parametrize("truncation", CUTS, ids=str)
@KIND
def test_odd_widths_and_stacks(kind, truncation):
    for hidden, batch, layers in [(33, 9, 1), (19, 1, 3)]:
        assert_cut(Case(kind, hidden, batch, 13, inputs=6, layers=layers), truncation)


@pytest.mark.parametrize("options", [{}, {"ids": True}, {"bias": False}], ids=str)
@KIND
def test_one_layer_whose_lags_have_rows_for_a_product(kind, options):
    """Then the gradients are formed along the way, if no step is visited twice."""
    for batch, time in [(130, 7), (15, 61)]:  # chunks one after another, side by side
        for k1, k2 in [(1, 1), (3, 3), (4, 2), (5, 5), (7, 3), (3, 4)]:
            case = Case(kind, 21, batch, time, inputs=6, **options)
            assert_cut(case, Truncation(k1, k2))


OPTIONS = [
    {"bidirectional": True},
    {"batch_first": True, "bias": False},
    {"batch": None, "layers": 2},
    {"ids": True, "layers": 2},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@KIND
def test_every_option(kind, options):
    for batch in (3, 17):
        case = replace(Case(kind, 10, batch, time=8, inputs=7), **options)
        for k in [(3, 3), (1, 4), (2, 5), (4, 2)]:
            assert_cut(case, Truncation(*k))


SOME = [(3, 3), (3, 5), (1, 4), (20, 15)]


@KIND_AND_READS
def test_the_final_states_error_belongs_to_the_last_steps_pass(kind, reads):
    for batch in (4, 18):
        case = Case(kind, 12, batch, time=7, inputs=5, layers=2)
        for k in SOME:
            assert_cut(case, Truncation(*k), reads=reads)


@KIND
def test_one_tensor_alone_gets_its_gradient(kind):
    case = Case(kind, 12, batch=4, time=7, inputs=5, layers=2)
    for k in SOME:
        for wanted in ["x", "h0", "weight_hh_l0", "bias_ih_l1"]:
            assert_cut(case, Truncation(*k), wanted=[wanted])


@pytest.mark.parametrize(("layers", "batch"), [(2, 5), (3, 5), (3, 16)])
@KIND
def test_dropout_masks_stand_between_the_layers_of_every_pass(kind, layers, batch):
    """Below the module, where masks are arguments: full, and cut anyhow."""
    p = problem(
        kind,
        time=9,
        batch=batch,
        inputs=6,
        hidden=11,
        layers=layers,
        dropout=0.4,
        largest_weight=0.4,
        seed=2,
    ).to(torch.float32)
    assert len(p.masks) == layers - 1
    cuts = [Truncation(*k) for k in [(1, 3), (4, 4), (2, 5), (20, 14)]]
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
    initial = tuple(leaves[name] for name in PARTS[p.kind])
    y, final = autograd.run(
        layers, leaves["x"], initial, p.masks, truncation, Rows(*p.x.shape[:2])
    )
    errors = [p.dy, *p.dfinal]
    grads = torch.autograd.grad([y, *final], list(leaves.values()), errors)
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


@KIND
def test_chunks_are_what_detaching_gives(kind):
    case = steady(Case(kind, 18, batch=3, time=14, inputs=7, layers=2))
    data = case.data()
    for k in (1, 5):
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
