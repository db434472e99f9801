"""The slope of a scalar along a direction, by differences that judge themselves.

Central differences at three steps, extrapolated twice (Richardson, 1911): the two
extrapolations agree where the function is smooth over the step, and part where a kink,
of a rectifier say, lies within it. Whether the slopes from the left and from the right
agree tells of a kink at the very point. Where they do not, the step shrinks.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

_FIRST_STEP = 4e-3  # relative to the root mean square of the tensor
_SHRINK = 8.0
_STEP_SIZES = 8  # while rounding leaves room
_AGREEMENT = 0.1  # of the tolerance
_ROUNDINGS = 8.0  # units in the last place: some 7 standard deviations
_JUMP_ROUNDINGS = 4.0  # the jump is as much noisier than the slope


@dataclass(frozen=True)
class Slope:
    """A slope and how far rounding may have moved it."""

    value: float
    rounding: float


def slope_along(
    objective: Callable[[], float],
    tensor: Tensor,
    direction: Tensor,
    *,
    magnitude: float,
    expected: float,
    tolerance: float,
) -> Slope | None:
    """`d/ds objective(tensor + s direction)` at 0, from values of the objective alone.

    Args:
        objective: reads `tensor`, which is moved in place and put back.
        tensor: float64.
        direction: shaped as `tensor`, entries of the order of 1.
        magnitude: what the objective's rounding is relative to.
        expected: the size of slope against which `tolerance` is meant; a larger slope
            that is found counts instead.
        tolerance: relative; the slope is good to a tenth of it, or to rounding.

    Returns:
        The slope, or None where no step size gives one to be trusted: the objective
        has a kink there, or is not finite.
    """
    base = tensor.detach().clone()
    scale = max(float(base.square().mean().sqrt()), 1e-2) if base.any() else 1.0

    def at(step: float) -> float:
        tensor.copy_(base + step * direction)
        return objective()

    with torch.no_grad():
        try:
            centre = objective()
            for shrinks in range(_STEP_SIZES):
                step = _FIRST_STEP * scale / _SHRINK**shrinks
                steps = (step, step / 2, step / 4)
                ups, downs = [at(s) for s in steps], [at(-s) for s in steps]
                slopes = [
                    (up - down) / (2 * s)
                    for up, down, s in zip(ups, downs, steps, strict=True)
                ]
                coarse = (4 * slopes[1] - slopes[0]) / 3
                fine = (4 * slopes[2] - slopes[1]) / 3
                # Slope from the right less slope from the left, extrapolated to 0.
                jumps = [
                    (up - 2 * centre + down) / s
                    for up, down, s in zip(ups, downs, steps, strict=True)
                ]
                jump = 2 * jumps[2] - jumps[1]
                rounding = (
                    _ROUNDINGS * torch.finfo(base.dtype).eps * magnitude / steps[2]
                )
                wanted = tolerance * max(expected, abs(fine))
                if shrinks and rounding > wanted:
                    return None  # smaller steps would agree on anything
                allowed = _AGREEMENT * wanted + rounding
                smooth = abs(jump) <= allowed + _JUMP_ROUNDINGS * rounding
                if smooth and abs(coarse - fine) <= allowed:
                    return Slope(fine, rounding)
            return None
        finally:
            tensor.copy_(base)
