"""What torch.jit.trace is given, which cannot see what the core computes."""

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from bptt.random_truncation import Policy


def traceable(
    module: torch.nn.RNNBase,
    truncation: Policy | None,
    input: Tensor | PackedSequence,
    *,
    plain: bool,
) -> Tensor | PackedSequence:
    """What torch.nn's forward takes, for torch.jit.trace to record.

    Args:
        module: that is traced.
        truncation: its own.
        input: what it is called with.
        plain: whether there are neither lengths nor resets.

    Raises:
        NotImplementedError: what torch.nn's forward does not know.
    """
    name = type(module).__name__
    if not (truncation is None or truncation.is_full):
        raise NotImplementedError(
            f"{name}: torch.jit.trace records torch.nn's forward, "
            f"which knows full BPTT only, and truncation is {truncation}; "
            "set it to None, which changes no output"
        )
    if not plain:
        raise NotImplementedError(
            f"{name}: torch.jit.trace records torch.nn's forward, "
            "which knows no lengths and no resets; trace without them"
        )
    if isinstance(input, Tensor) and not input.is_floating_point():
        weight = cast(Tensor, module.weight_hh_l0)
        return F.one_hot(input, module.input_size).to(weight.dtype)
    return input
