"""Dropout between layers, drawn as torch.nn draws it."""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor

from bptt.masks import PackedMask
from bptt.outside import inside_transform


def masks(
    module: torch.nn.RNNBase, steps: tuple[int, ...], *, packed: bool
) -> Sequence[Tensor | PackedMask]:
    """For each layer but the last, what its outputs are multiplied by on their way up.

    A seed means the same masks as in torch.nn.

    Args:
        module: whose dropout it is; none in evaluation.
        steps: the shape of the sequence's steps: (time, batch), or of packed ones.
        packed: whether to keep bits, where a gradient is wanted and a loop reads them.
    """
    if not (module.training and module.dropout) or module.num_layers == 1:
        return []
    weight = cast(Tensor, module.weight_hh_l0)
    width = module.proj_size or module.hidden_size
    width *= 2 if module.bidirectional else 1
    keep = 1 - module.dropout
    packed = (
        packed
        and not module.bidirectional
        and torch.is_grad_enabled()
        and not inside_transform()
    )
    drawn: list[Tensor | PackedMask] = []
    for _ in range(module.num_layers - 1):
        if packed:
            drawn.append(PackedMask.drawn((*steps, width), keep, weight))
            continue
        mask = weight.new_empty(*steps, width)
        drawn.append(mask.bernoulli_(keep).div_(keep) if keep else mask.zero_())
    return drawn
