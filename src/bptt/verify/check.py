"""Hold a module's gradients to differences of its outputs, and float32 to float64."""

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from bptt import kernels as kernels_here
from bptt.errors import GradientError
from bptt.modules.base import ThroughTime
from bptt.random_truncation import Policy, RandomTruncation
from bptt.verify.difference import slope_along
from bptt.verify.drawn import DrawnObjective
from bptt.verify.literal import LiteralObjective, cuts, steps_of
from bptt.verify.report import GradientReport, TensorCheck
from bptt.verify.subject import (
    Derivatives,
    Subject,
    differentiate,
    undisturbed,
    weighted_sum,
)

Loss = Callable[[Any], Tensor]

_STREAM = 0x6270_7474  # else weights are x itself where x was drawn from seed 0
_REDRAWS = 3  # further directions to try, for each that crosses a kink
_ROUNDING_ONLY = 1e-12  # of the module's largest gradient: no more than rounding


def check_gradients(
    module: torch.nn.Module,
    x: Tensor,
    hx: Any = None,
    *,
    loss: Loss | None = None,
    directions: int = 4,
    seed: int = 0,
    tolerance: float = 1e-6,
    float32_tolerance: float = 5e-6,
) -> GradientReport:
    """Check a module's gradients: float64 against differences, float32 against float64.

    Works on any `torch.nn.Module` that `module(x)` or `module(x, hx)` runs and that
    gives the same outputs each time; on `bptt.RNN`, `GRU` and `LSTM` under any
    truncation. Everything runs on copies in evaluation mode, so without dropout: the
    module, its gradients, its mode and the global random state stay as they are.

    In float64, the gradient's product with a random direction is compared with the
    slope of the objective along it, found from values alone. The relative error's
    denominator is the slope or the gradient's norm, whichever is larger; what lies
    below the rounding of the difference cannot be judged and passes. Under a truncation
    that cuts, the objective is the one whose gradient the truncated gradient is by
    definition (see `bptt.verify.literal`), with a custom loss replaced by its tangent
    at the outputs: its own derivative is then taken from autograd. Under a
    `RandomTruncation` it is that of one draw, which `seed` fixes. In float32 the error
    of a tensor is the largest of its entries' errors over its largest entry; parameters
    and inputs are rounded to float32 first, so that both start from the same numbers.

    Costs, for each tensor and direction, 6 forward passes or a few times that, and
    under a truncation that cuts forward passes over all of its windows.

    Args:
        module: checked for each parameter that requires a gradient.
        x: its input; checked too if it is floating.
        hx: its second argument, a tensor or a tuple of tensors; left out when None.
            Named `h_0`, or `h_0` and `c_0` in a pair.
        loss: from the module's outputs, float64 or float32, to a scalar; by default
            the sum of all outputs and final states times fixed random weights.
        directions: random directions for each tensor, at least 1.
        seed: of the weights and the directions.
        tolerance: largest relative error of the float64 gradient.
        float32_tolerance: largest relative error of the float32 gradient.

    Returns:
        The errors of every tensor; `str(report)` is a table.

    Raises:
        GradientError: a check failed; names the worst tensor, both values and its
            error, with the table as a note. Gradients that are not finite fail, and so
            does a tensor along which the objective is not smooth (a rectifier at
            exactly 0).
        TypeError, ValueError: an argument cannot be used; or the module contains
            a truncated module, gives other outputs at each call, or returns no tensor.

    >>> from bptt import GRU, Truncation
    >>> gru = GRU(3, 4, truncation=Truncation.chunks(5))
    >>> check_gradients(gru, torch.randn(12, 2, 3)).passed
    True
    """
    _require_module_and_inputs(module, x, hx)
    _require_numbers(directions, seed, tolerance, float32_tolerance)
    report = measure(
        module,
        x,
        hx,
        loss=loss,
        directions=directions,
        seed=seed,
        tolerance=tolerance,
        float32_tolerance=float32_tolerance,
    )
    if not report.passed:
        error = GradientError(f"{type(module).__name__}: {describe_failure(report)}")
        error.add_note(str(report))
        raise error
    return report


def describe_failure(report: GradientReport) -> str:
    """What is wrong in a report that did not pass, in one line."""
    failed = report.failed
    others = sorted({row.tensor for row in failed} - {failed[0].tensor})
    message = (
        f"wrong gradient of {failed[0]}; {len(failed)} of {len(report.rows)} checks "
        "failed" + (f", also of {', '.join(others)}" if others else "")
    )
    if all(row.check == "float32" for row in failed):
        message += (
            "; in float64 the gradients are right, so float32 lost precision: if units "
            "saturate or sums cancel, that is in the values, so try others or a larger "
            "float32_tolerance"
        )
    return message


def measure(
    module: torch.nn.Module,
    x: Tensor,
    hx: Any,
    *,
    loss: Loss | None,
    directions: int,
    seed: int,
    tolerance: float,
    float32_tolerance: float,
    kernels: Sequence[str] = (),
) -> GradientReport:
    """`check_gradients` of sound arguments, for a caller that wants failures too.

    With `kernels` float32 is checked by each of them, else by the one that is active.
    """
    generator = torch.Generator().manual_seed(_STREAM + seed)
    with undisturbed(x.device):
        exact = Subject.copied(module, x, hx, double=True)
        if not exact.tensors:
            raise ValueError(
                "nothing to check: no parameter of the module requires a gradient and "
                f"x is {x.dtype}; call requires_grad_() on the module or give a float x"
            )
        score = loss or weighted_sum(exact.outputs(), generator)
        torch.manual_seed(seed)  # so that the cuts of a random truncation are the same
        double = differentiate(exact, score)
        singles = {}
        for kernel in kernels or ("",):
            with kernels_here.use(kernel) if kernel else nullcontext():
                torch.manual_seed(seed)
                subject = Subject.copied(module, x, hx, double=False)
                singles[kernel] = differentiate(subject, score).gradients
        torch.manual_seed(seed)
        objective = _objective(exact, score, double)
        rows = [
            _against_differences(
                name, exact, double, objective, generator, directions, tolerance
            )
            for name in exact.tensors
        ]
        for kernel, single in singles.items():
            rows += [
                replace(row, kernel=kernel)
                for row in _against_float64(single, double.gradients, float32_tolerance)
            ]
    return GradientReport(tuple(rows))


def _objective(exact: Subject, score: Loss, found: Derivatives) -> Callable[[], float]:
    """The function of the subject's tensors whose gradient the module's should be."""
    module = exact.module
    if isinstance(module, ThroughTime) and module.truncation is not None:
        policy, given = module.truncation, (exact.x, exact.hx, found.doutputs)
        if isinstance(policy, RandomTruncation) and policy.is_random:
            drawn = DrawnObjective(module, *given)
            return lambda: float(drawn())
        if cuts(policy.mean, steps_of(module, exact.x)):
            literal = LiteralObjective(module, *given)
            return lambda: float(literal())

    def value() -> float:
        return float(score(exact.outputs()))

    again = value()
    if abs(again - found.value) > 1e-9 * found.magnitude:
        raise ValueError(
            "module must give the same outputs whenever it is called with the same "
            f"arguments, with and without gradients; the loss was {found.value!r} and "
            f"then {again!r}: make it deterministic in evaluation mode, without state "
            "carried from call to call"
        )
    return value


def _against_differences(
    name: str,
    exact: Subject,
    found: Derivatives,
    objective: Callable[[], float],
    generator: torch.Generator,
    directions: int,
    tolerance: float,
) -> TensorCheck:
    """One tensor's float64 gradient along random directions."""
    tensor, gradient = exact.tensors[name], found.gradients[name]
    magnitude, norm = found.magnitude, float(gradient.norm())
    unusable = TensorCheck(
        name, "finite difference", math.inf, tolerance, math.nan, math.nan
    )
    if not math.isfinite(norm) or not math.isfinite(magnitude):
        what = "gradient" if math.isfinite(magnitude) else "loss"
        return replace(unusable, note=f"the {what} is not finite")
    worst, judged, skipped = unusable, 0, 0
    while judged < directions and skipped < _REDRAWS * directions:
        direction = torch.randn(
            tensor.shape, generator=generator, dtype=torch.float64, device="cpu"
        ).to(tensor.device)
        slope = slope_along(
            objective,
            tensor,
            direction,
            magnitude=magnitude,
            expected=norm,
            tolerance=tolerance,
        )
        if slope is None:
            skipped += 1
            continue
        judged += 1
        product = float((gradient * direction).sum())
        scale = max(norm, abs(slope.value), slope.rounding / tolerance)
        error = _relative(abs(product - slope.value), scale)
        if judged == 1 or error > worst.error:
            worst = TensorCheck(
                name, "finite difference", error, tolerance, product, slope.value
            )
    if judged == 0:
        note = (
            f"no difference could be formed along any of {skipped} directions: the "
            "objective has a kink there, as of a rectifier at exactly 0, or changes "
            "too wildly; try other values of x, or fewer steps"
        )
        worst = replace(unusable, note=note)
    return replace(worst, skipped=skipped)


def _against_float64(
    single: dict[str, Tensor], double: dict[str, Tensor], tolerance: float
) -> list[TensorCheck]:
    """Each tensor's worst float32 entry, relative to its largest in float64."""
    largest = {name: _largest(g) for name, g in double.items()}
    overall = max((size for size in largest.values() if math.isfinite(size)), default=0)
    rows = []
    for name, exact in double.items():
        rounded, exact = single[name].double().flatten(), exact.flatten()
        if not exact.numel():
            continue
        # NaN counts as the largest, so a gradient that is not finite is found.
        at = int((rounded - exact).abs().argmax())
        found, expected = float(rounded[at]), float(exact[at])
        # A gradient that is 0 but for rounding is measured against the others.
        zero = largest[name] <= _ROUNDING_ONLY * overall
        scale = overall if zero else largest[name]
        error, note = _relative(abs(found - expected), scale), ""
        if not math.isfinite(error):
            error, note = math.inf, "the gradient is not finite"
        rows.append(
            TensorCheck(name, "float32", error, tolerance, found, expected, note=note)
        )
    return rows


def _largest(gradient: Tensor) -> float:
    return float(gradient.abs().max()) if gradient.numel() else 0.0


def _relative(difference: float, scale: float) -> float:
    if scale == 0:
        return 0.0 if difference == 0 else math.inf
    return difference / scale


def _require_module_and_inputs(module: object, x: object, hx: object) -> None:
    if not isinstance(module, torch.nn.Module):
        raise TypeError(
            f"module must be a torch.nn.Module; got {type(module).__name__}: wrap a "
            "function in a module whose forward calls it"
        )
    for name, part in module.named_modules():
        truncation = getattr(part, "truncation", None)
        checkable = part is module and isinstance(module, ThroughTime)
        if isinstance(truncation, Policy) and not truncation.is_full and not checkable:
            raise ValueError(
                f"module contains a truncated module ({name or type(part).__name__}: "
                f"{truncation}), so its gradient is not that of its loss, by intent; "
                "check that module by itself, or the whole with its truncation None"
            )
    if not isinstance(x, Tensor):
        raise TypeError(f"x must be a torch.Tensor; got {type(x).__name__}")
    if x.numel() == 0:
        raise ValueError(
            f"x must have at least one element; got shape {tuple(x.shape)}, which "
            "leaves nothing to check"
        )
    parts = hx if isinstance(hx, tuple | list) else () if hx is None else (hx,)
    for part in parts:
        if not isinstance(part, Tensor):
            raise TypeError(
                "hx must be None, a tensor, or a tuple of tensors such as (h_0, c_0); "
                f"got {type(hx).__name__}"
                + (f" with a {type(part).__name__}" if part is not hx else "")
            )


def _require_numbers(
    directions: object, seed: object, tolerance: object, float32_tolerance: object
) -> None:
    for name, number, smallest in (("directions", directions, 1), ("seed", seed, 0)):
        if isinstance(number, bool) or not isinstance(number, int):
            raise TypeError(
                f"{name} must be an int; got {number!r} ({type(number).__name__})"
            )
        if number < smallest:
            raise ValueError(f"{name} must be at least {smallest}; got {number}")
    for name, value in (
        ("tolerance", tolerance),
        ("float32_tolerance", float32_tolerance),
    ):
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise TypeError(
                f"{name} must be a float; got {value!r} ({type(value).__name__})"
            )
        if not 0 < value < math.inf:
            raise ValueError(
                f"{name} must be positive and finite, a relative error such as 1e-6; "
                f"got {value!r}"
            )
