"""What else is at work around a call: torch.compile, torch.func, forward mode."""

import sys
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

import torch

_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")


def eager(function: Callable[_Arguments, _Result]) -> Callable[_Arguments, _Result]:
    """`function`, kept from torch.compile, which would unroll the loop for minutes.

    Loading Dynamo takes seconds, so that waits until something else has loaded it.
    """
    disabled: Callable[_Arguments, _Result] | None = None

    @wraps(function)
    def run_eagerly(*args: _Arguments.args, **kwargs: _Arguments.kwargs) -> _Result:
        nonlocal disabled
        if disabled is None:
            if "torch._dynamo" not in sys.modules:
                return function(*args, **kwargs)
            disabled = torch.compiler.disable(function)  # type: ignore[no-untyped-call]
        return disabled(*args, **kwargs)

    return run_eagerly


def inside_transform() -> bool:
    """Whether torch.func or forward-mode differentiation is looking on."""
    return (
        torch._C._are_functorch_transforms_active()
        or torch.autograd.forward_ad._current_level >= 0
    )
