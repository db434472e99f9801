"""The state that one update hands on to the next."""

from typing import Any

import torch

from bptt.language_model import LanguageModel
from bptt.training.nonfinite import all_finite


def carried(
    model: LanguageModel,
    inputs: torch.Tensor,
    before: Any,
    after: Any,
    next_start: int,
) -> Any:
    """The state before the next batch's first step, detached.

    Where passes reach across windows the next batch begins inside this one, so those
    steps run again.
    """
    if next_start == 0:
        return before
    if next_start < inputs.shape[0]:
        with torch.no_grad():
            _, after = model(inputs[:next_start], before)
    if isinstance(after, tuple):
        return tuple(part.detach() for part in after)
    return after.detach()


def first_finite(*states: Any) -> Any:
    """The first of them whose numbers are finite; None, for zeros, if none is."""
    for state in states:
        parts = state if isinstance(state, tuple) else (state,)
        if state is not None and all_finite(parts):
            return state
    return None
