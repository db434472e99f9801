"""THE law of the float32 kernels: as exact as torch.nn's own float32, or nearly.

The error of a tensor is its largest absolute error over its largest magnitude, against
what the definition makes of the same numbers in float64. It may be `FLOOR`, or `SLACK`
times the error of torch.nn. Where nearly everything cancels (a weight's gradient in a
network of two units) neither says what float32 can do, and torch.nn may be lucky; there
the error may be `ROUNDINGS` times what keeping exact results as float32 numbers gives.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from bptt.cells import ReLUCell
from kernels import cases
from kernels.cases import CELLS, Case, Data, relative_error, run
from literal import outputs

FLOOR = 2e-6
SLACK = 1.5
ROUNDINGS = 8


def assert_as_exact_as_torch(case: Case) -> None:
    """The law, for every output and every gradient."""
    case = steady(case)
    with cases.native_only():
        found = run(case.modules()[0], case.data())
    assert_lawful(case, found)


def assert_lawful(case: Case, found: dict[str, Tensor]) -> None:
    """The law, for what a run of this case found; it may have left something out."""
    reference, theirs = exact(case), error_of_torch(case)
    assert found.keys() <= reference.keys()
    errors = {name: relative_error(found[name], reference[name]) for name in found}
    limits = {name: max(FLOOR, SLACK * theirs[name]) for name in found}
    if any(not errors[name] <= limits[name] for name in found):
        rounded = error_of_rounding(case)
        limits = {n: max(limits[n], ROUNDINGS * rounded[n]) for n in found}
    wrong = {
        name: f"{error:.2g}, may be {limits[name]:.2g}"
        for name, error in errors.items()
        if not error <= limits[name]
    }
    assert not wrong, f"{case}: {wrong}"


@cache
def exact(case: Case, reads: frozenset[str] | None = None) -> dict[str, Tensor]:
    """What the definition gives in float64, with the loss reading these outputs."""
    return run(case.modules()[0].double(), case.data().double(), reads=reads)


@cache
def error_of_torch(case: Case) -> dict[str, float]:
    """The error of torch.nn's float32 module; ids as one-hot vectors."""
    data = case.data()
    if case.ids:
        one_hot = torch.nn.functional.one_hot(data.x, case.inputs).float()
        data = replace(data, x=one_hot)
    theirs = run(case.modules()[1], data)
    return {name: relative_error(theirs[name], e) for name, e in exact(case).items()}


@cache
def error_of_rounding(case: Case) -> dict[str, float]:
    """The error of exact steps whose results are kept as float32 numbers.

    The largest of a few, each from inputs that were rounded once more.
    """
    generator = torch.Generator().manual_seed(0)

    def jolted(t: Tensor) -> Tensor:
        if not t.is_floating_point():
            return t
        unit = torch.rand(t.shape, generator=generator, dtype=t.dtype) * 2 - 1
        return t * (1 + unit * 2**-24)

    worst = dict.fromkeys(exact(case), 0.0)
    for _ in range(4):
        module, data = case.modules()[0].double(), case.data().double()
        with torch.no_grad():
            for weight in module.parameters():
                weight.copy_(jolted(weight))
        near = Data(
            jolted(data.x),
            tuple(jolted(part) for part in data.state),
            {name: jolted(error) for name, error in data.errors.items()},
        )
        with pytest.MonkeyPatch.context() as patch:
            for cell in CELLS:
                patch.setattr(cell, "step", _rounding(cell.step))
                patch.setattr(cell, "vjp_state", _rounding(cell.vjp_state))
            found = run(module, near)
        for name, value in found.items():
            worst[name] = max(worst[name], relative_error(value, exact(case)[name]))
    return worst


def _rounding(step: Callable[..., Any]) -> Callable[..., Any]:
    """The same step, its results rounded to float32."""

    def rounded(result: Any) -> Any:
        if isinstance(result, tuple):
            return tuple(rounded(part) for part in result)
        return result.float().double()

    return lambda *arguments: rounded(step(*arguments))


@cache
def steady(case: Case) -> Case:
    """The case, for relu with a seed under which no unit comes close to its kink.

    Rounding may put such a unit on the other side, which is no error of a kernel.
    """
    if case.kind != "relu":
        return case
    margins: list[float] = []

    def activation(z: Tensor) -> Tensor:
        margins.append(float(z.abs().min() / z.abs().max()))
        return z.relu()

    units = case.time * (case.batch or 1) * case.hidden * case.layers
    wanted = min(2e-6, 0.2 / units)
    for seed in range(case.seed, case.seed + 100):
        case = replace(case, seed=seed)
        data, margins[:] = case.data().double(), []
        with pytest.MonkeyPatch.context() as patch, torch.no_grad():
            patch.setattr(ReLUCell, "activation", staticmethod(activation))
            outputs(case.modules()[0].double(), data.x, *data.state)
        if min(margins) >= wanted:
            return case
    raise AssertionError(f"{case}: every seed puts a unit at its kink")
