"""Ragged rows and resets in float32: the definition's numbers, in float64."""

from dataclasses import replace
from itertools import accumulate
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from bptt import Truncation
from bptt.kernels import choice, native
from kernels import cases
from kernels.cases import (
    KIND,
    NATIVE,
    Case,
    assert_bits,
    assert_near,
    run,
)
from kernels.law import steady

pytestmark = NATIVE

TOLERANCE = 1e-5
CUTS = [
    None,
    Truncation.chunks(5),
    Truncation.per_output(3),
    Truncation(3, 8),
    Truncation(4, 2),
    Truncation(50, 45),
]


def results(
    case: Case, lengths: Tensor | None, resets: Tensor | None, *, double: bool
) -> dict[str, Tensor]:
    """Outputs and gradients of a batch on such rows."""
    module, data = case.modules()[0], case.data()
    if double:
        module, data = module.double(), data.double()
    leaves = dict(module.named_parameters())
    if data.x.is_floating_point():
        leaves["x"] = data.x.requires_grad_()
    names = ("h0", "c0")[: len(data.state)]
    leaves |= {n: s.requires_grad_() for n, s in zip(names, data.state, strict=True)}
    hx = data.state if len(data.state) > 1 else data.state[0]
    y, final = module(data.x, hx, lengths=lengths, resets=resets)
    ends = final if isinstance(final, tuple) else (final,)
    out = {"y": y} | dict(zip(("h_n", "c_n"), ends, strict=False))
    grads = torch.autograd.grad(
        list(out.values()),
        list(leaves.values()),
        [data.errors[name] for name in out],
        allow_unused=True,
    )
    found = {name: value.detach() for name, value in out.items()}
    for (name, leaf), grad in zip(leaves.items(), grads, strict=True):
        found[f"d{name}"] = torch.zeros_like(leaf) if grad is None else grad
    return found


def rows_of(case: Case, *, ragged: bool, resets: bool) -> tuple[Any, Any]:
    """Lengths and resets that fit a case."""
    generator = torch.Generator().manual_seed(case.time)
    lengths = torch.randint(1, case.time + 1, (case.batch,), generator=generator)
    marks = torch.rand(case.time, case.batch, generator=generator) < 0.2
    return (lengths if ragged else None), (marks if resets else None)


def assert_right(case: Case, *, ragged: bool, resets: bool) -> None:
    case = steady(case)
    rows = rows_of(case, ragged=ragged, resets=resets)
    with cases.native_only():
        found = results(case, *rows, double=False)
    assert_near(found, results(case, *rows, double=True), TOLERANCE)


@pytest.mark.parametrize("truncation", CUTS, ids=str)
@pytest.mark.parametrize(
    ("ragged", "resets"), [(True, False), (False, True), (True, True)]
)
@KIND
def test_ragged_rows_and_resets(kind, ragged, resets, truncation):
    for hidden, batch, layers, ids in [(33, 9, 1, False), (5, 21, 3, True)]:
        case = Case(
            kind,
            hidden,
            batch,
            14,
            inputs=6,
            layers=layers,
            ids=ids,
            truncation=truncation,
        )
        assert_right(case, ragged=ragged, resets=resets)


@KIND
def test_both_directions_of_a_stack(kind):
    case = Case(kind, 17, 11, 12, inputs=6, layers=2, bidirectional=True)
    assert_right(case, ragged=True, resets=True)


@KIND
def test_few_enough_steps_to_leave_the_weights_as_they_lie(kind):
    assert_right(Case(kind, 20, 3, 2, inputs=5), ragged=True, resets=True)


@pytest.mark.parametrize("truncation", [None, Truncation(3, 8)], ids=str)
@KIND
def test_the_bits_do_not_depend_on_the_threads(kind, truncation, set_threads):
    case = Case(kind, 150, 37, 23, inputs=40, truncation=truncation)
    rows = rows_of(case, ragged=True, resets=True)
    set_threads(1)
    alone = results(case, *rows, double=False)
    for threads in (2, 3, 5):
        set_threads(threads)
        assert_bits(results(case, *rows, double=False), alone)


@KIND
def test_a_nan_in_one_row_stays_in_it(kind):
    case = Case(kind, 33, 9, 7, inputs=5)
    lengths, _ = rows_of(case, ragged=True, resets=False)
    module, data = case.modules()[0], case.data()
    clean, _ = module(data.x, lengths=lengths)
    spoilt = data.x.clone()
    spoilt[0, 4] = float("nan")
    y, _ = module(spoilt, lengths=lengths)
    others = [row for row in range(case.batch) if row != 4]
    assert y[0, 4].isnan().all()
    assert_bits({"y": y[:, others]}, {"y": clean[:, others]})


@KIND
def test_lengths_that_are_all_the_same_are_no_lengths(kind):
    case = replace(steady(Case(kind, 18, 10, 9, inputs=6)), truncation=Truncation(2, 5))
    found = results(case, torch.full((10,), 9), None, double=False)
    plain = run(case.modules()[0], case.data())
    assert_near(found, {name: plain[name].double() for name in found}, 1e-6)


@pytest.mark.parametrize("batch", [1, 2, 7, 40])
def test_rows_are_sorted_as_by_torch(batch, monkeypatch):
    """The longest first, equal ones as they are: with the core and without it."""
    generator = torch.Generator().manual_seed(batch)
    for longest in (1, 3, 30):
        lengths = torch.randint(1, longest + 1, (batch,), generator=generator).tolist()
        found = native.sort_rows(lengths)
        with monkeypatch.context() as patch:
            patch.setattr(choice, "INSTALLED", False)
            native._sorted.cache_clear()
            for one, other in zip(found, native.sort_rows(lengths), strict=True):
                assert torch.equal(one, other)
        order, inverse, sizes, offsets = (part.tolist() for part in found)
        assert order == sorted(range(batch), key=lambda b: (-lengths[b], b))
        assert [order[at] for at in inverse] == list(range(batch))
        assert sizes == [sum(n > t for n in lengths) for t in range(max(lengths))]
        assert offsets == [0, *accumulate(sizes)]


@KIND
def test_lengths_that_were_seen_in_inference_train(kind):
    """What is remembered of them must do for a backward pass, too."""
    case = Case(kind, 7, 5, 6, inputs=4)
    module, data = case.modules()[0], case.data()
    lengths = torch.tensor([6, 2, 5, 5, 1])
    native._sorted.cache_clear()
    with torch.inference_mode():
        before, _ = module(data.x, lengths=lengths)
    y, end = module(data.x, lengths=lengths)
    last = y[lengths - 1, torch.arange(5)]
    loss = (end if kind != "lstm" else end[0])[0] - 2 * last
    found = torch.autograd.grad(loss.sum(), module.weight_ih_l0)[0]
    expected = torch.autograd.grad(
        -module(data.x, lengths=lengths)[0][lengths - 1, torch.arange(5)].sum(),
        module.weight_ih_l0,
    )[0]
    assert torch.equal(y, before)
    assert_near({"dU": found}, {"dU": expected}, 2e-6)


def test_what_a_mode_has_looked_on_at_is_not_remembered():
    """It may have put tensors of its own in their place."""

    class Marked(Tensor):
        pass

    class Marking(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            found = function(*args, **(kwargs or {}))
            is_tensor = isinstance(found, Tensor)
            return found.as_subclass(Marked) if is_tensor else found

    native._sorted.cache_clear()
    with Marking():
        assert isinstance(native.sort_rows([3, 1, 2])[1], Marked)
    order, inverse, sizes, offsets = native.sort_rows([3, 1, 2])
    assert type(inverse) is Tensor
    assert (order.tolist(), inverse.tolist()) == ([0, 2, 1], [0, 2, 1])
    assert (sizes.tolist(), offsets.tolist()) == ([3, 2, 1], [0, 3, 5, 6])
