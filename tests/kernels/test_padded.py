"""Ragged rows in a padded batch: read and written where they lie, with packed bits."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import bptt.modules.base
import bptt.places
from bptt import Truncation
from bptt.modules.arrangement import arrange
from kernels import cases
from kernels.cases import KIND, NATIVE, Case, assert_bits, assert_near
from kernels.law import steady

pytestmark = NATIVE

CUTS = [None, Truncation.chunks(5), Truncation(3, 8), Truncation(4, 2)]
CASES = [
    Case("", 33, 9, 14, inputs=40),
    Case("", 5, 21, 11, inputs=6, layers=3, batch_first=True),
    Case("", 18, 4, 9, inputs=70, layers=2, bias=False),
    Case("", 17, 12, 13, inputs=6, ids=True),
    Case("", 20, 3, 3, inputs=5, batch_first=True),  # weights left as they lie
]
CASE = pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c.hidden}-{c.layers}")


def lengths_of(case: Case) -> Tensor:
    """Of no row all steps, in no order."""
    generator = torch.Generator().manual_seed(case.hidden)
    return torch.randint(1, case.time, (case.batch,), generator=generator)


def derived(case: Case, out: list[Tensor], errors: list[Tensor], leaves: Any) -> Any:
    found = {f"out{at}": value.detach() for at, value in enumerate(out)}
    grads = torch.autograd.grad(out, list(leaves.values()), errors, allow_unused=True)
    return found | {
        f"d{n}": torch.zeros_like(leaf) if g is None else g
        for (n, leaf), g in zip(leaves.items(), grads, strict=True)
    }


def parts(final: Any) -> list[Tensor]:
    return list(final) if isinstance(final, tuple) else [final]


def state_like(ends: list[Tensor]) -> Any:
    state = tuple((end / 2).detach().requires_grad_() for end in ends)
    return state[0] if len(state) == 1 else state


def padded(case: Case, module: Any, x: Tensor, dy: Tensor, ends: Any) -> Any:
    """Outputs and gradients by `lengths`, from a state as wide as the last errors."""
    x = x.detach()
    leaves = dict(module.named_parameters())
    if x.is_floating_point():
        leaves["x"] = x.requires_grad_()
    hx = state_like(ends)
    leaves |= {f"state{at}": part for at, part in enumerate(parts(hx))}
    y, final = module(x, hx, lengths=lengths_of(case))
    return derived(case, [y, *parts(final)], [dy, *ends], leaves)


def checked(case: Case, *problem: Any) -> Any:
    """The same on the longer way, which whatever the core cannot take goes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bptt.modules.base.ThroughTime, "_run_ready", lambda *given: None)
        return padded(case, *problem)


def packed(case: Case, *problem: Any) -> Any:
    """The same, packed before the loop and padded after it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bptt.modules.base.ThroughTime, "_run_ready", lambda *given: None)
        patch.setattr(
            bptt.modules.base,
            "arrange",
            lambda *args, in_place, **options: arrange(*args, **options),
        )
        return padded(case, *problem)


def given(case: Case) -> tuple[Any, Tensor, Tensor, list[Tensor]]:
    module, data = case.modules()[0], case.data()
    names = [name for name in ("h_n", "c_n") if name in data.errors]
    return module, data.x, data.errors["y"], [data.errors[n] for n in names]


def padding(case: Case) -> Tensor:
    """Where no step stands, shaped as the input's axes of time and batch."""
    absent = torch.arange(case.time).unsqueeze(1) >= lengths_of(case)
    return absent.t() if case.batch_first else absent


@pytest.mark.parametrize("truncation", CUTS, ids=str)
@CASE
@KIND
def test_the_bits_of_the_packed_sequence(kind, case, truncation):
    case = replace(case, kind=kind, truncation=truncation)
    module, x, dy, ends = given(case)
    expected = packed(case, module, x, dy, ends)
    with cases.native_only():
        found = padded(case, module, x, dy, ends)
    assert_bits(found, expected)
    assert_bits(checked(case, module, x, dy, ends), expected)
    assert found["out0"][padding(case)].count_nonzero() == 0


@CASE
@KIND
def test_nothing_of_the_padding_is_read(kind, case):
    case = replace(case, kind=kind)
    module, x, dy, ends = given(case)
    clean = padded(case, module, x, dy, ends)
    absent = padding(case)
    x = x.masked_fill(absent, -7) if case.ids else x.clone()
    if not case.ids:
        x[absent] = torch.nan
    dy = dy.clone()
    dy[absent] = torch.nan
    spoilt = padded(case, module, x, dy, ends)
    assert_bits(spoilt, clean)
    if not case.ids:
        assert spoilt["dx"][absent].count_nonzero() == 0


@pytest.mark.parametrize("batch_first", [False, True])
@KIND
def test_floats_stay_where_they_are(kind, batch_first, monkeypatch):
    case = Case(kind, 12, 7, 9, inputs=8, layers=2, batch_first=batch_first)

    def refuse(self: object, t: Tensor) -> Tensor:
        raise AssertionError(f"copied {tuple(t.shape)}")

    monkeypatch.setattr(bptt.places.Places, "take", refuse)
    monkeypatch.setattr(bptt.places.Places, "place", refuse)
    module, x, dy, ends = given(case)
    found = padded(case, module, x, dy, ends)
    assert found["out0"].shape == dy.shape
    assert found["dx"][~padding(case)].count_nonzero() > 0


@KIND
def test_inputs_and_errors_of_any_layout(kind):
    case = Case(kind, 12, 7, 9, inputs=8)
    module, x, dy, ends = given(case)
    expected = padded(case, module, x, dy, ends)

    def turned(t: Tensor) -> Tensor:
        return t.permute(2, 1, 0).contiguous().permute(2, 1, 0)

    assert_bits(padded(case, module, turned(x), turned(dy), ends), expected)
    zeros = torch.zeros(()).expand_as(dy)
    found = padded(case, module, x, zeros, ends)
    assert_bits(found, padded(case, module, x, torch.zeros_like(dy), ends))


@KIND
def test_outputs_that_nobody_reads(kind):
    case = Case(kind, 12, 7, 9, inputs=8, truncation=Truncation(3, 8))
    module, x, dy, ends = given(case)
    expected = padded(case, module, x, torch.zeros_like(dy), ends)
    leaf = x.clone().requires_grad_()
    _, final = module(leaf, state_like(ends), lengths=lengths_of(case))
    (dx,) = torch.autograd.grad(parts(final), leaf, ends)
    assert_bits({"dx": dx}, {"dx": expected["dx"]})


@KIND
def test_derivatives_of_the_gradient(kind):
    case = steady(Case(kind, 6, 5, 7, inputs=4, batch_first=True))

    def second(*, double: bool) -> dict[str, Tensor]:
        module, x, dy, _ = given(case)
        if double:
            module, x, dy = module.double(), x.double(), dy.double()
        leaves = [x.requires_grad_(), *module.parameters()]
        y, _ = module(x, lengths=lengths_of(case))
        first = torch.autograd.grad(y, leaves, dy, create_graph=True)
        score = sum((g * g.detach().cos()).sum() for g in first)
        again = torch.autograd.grad(score, leaves, allow_unused=True)
        found = {f"first{at}": g for at, g in enumerate(first)}
        return found | {f"2nd{at}": g for at, g in enumerate(again) if g is not None}

    assert_near(second(double=False), second(double=True), 1e-5)


@KIND
def test_many_errors_at_once(kind):
    case = Case(kind, 6, 5, 7, inputs=4)
    module, x, dy, _ = given(case)
    y, _ = module(x.requires_grad_(), lengths=lengths_of(case))
    errors = torch.stack((dy, 2 * dy))
    (both,) = torch.autograd.grad(
        y, x, errors, is_grads_batched=True, retain_graph=True
    )
    (one,) = torch.autograd.grad(y, x, dy)
    assert_near({"0": both[0], "1": both[1]}, {"0": one, "1": 2 * one}, 1e-5)


@KIND
def test_transforms(kind):
    case = Case(kind, 6, 5, 7, inputs=4)
    module, x, dy, _ = given(case)

    def score(x: Tensor) -> Tensor:
        y, _ = module(x, lengths=lengths_of(case))
        return (y * dy).sum()

    leaf = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(score(leaf), leaf)
    assert_near({"dx": torch.func.grad(score)(x)}, {"dx": expected}, 1e-5)


@KIND
def test_a_memory_budget_and_both_directions(kind):
    case = Case(kind, 8, 6, 12, inputs=5)
    module, x, dy, ends = given(case)
    expected = padded(case, module, x, dy, ends)
    module.memory_budget = 20_000
    assert_near(padded(case, module, x, dy, ends), expected, 1e-5)
    both = replace(case, bidirectional=True, layers=2)
    module, x, dy, ends = given(both)
    found = padded(both, module, x, dy, ends)
    assert_bits(found, packed(both, module, x, dy, ends))
