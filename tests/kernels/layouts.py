"""Tensors of the same numbers that stand otherwise in memory, amid nan."""

import torch
from torch import Tensor

LAYOUTS = ("transposed", "sliced", "offset", "negative")


def laid_out(t: Tensor, layout: str) -> Tensor:
    """The same numbers: `transposed`, every second one of a row, `offset` by one float
    from where the allocator aligns, or stored with the other sign, as the imaginary
    part of a conjugate is."""
    t = t.detach()
    if layout == "transposed":
        return t.movedim(0, -1).contiguous().movedim(-1, 0)
    if layout == "sliced":
        wide = t.new_full((*t.shape[:-1], 2 * t.shape[-1]), torch.nan)
        wide[..., 1::2] = t
        return wide[..., 1::2]
    if layout == "offset":
        room = t.new_full((t.numel() + 40,), torch.nan)
        room[17 : 17 + t.numel()] = t.flatten()
        return room[17 : 17 + t.numel()].view(t.shape)
    assert layout == "negative"
    return torch._neg_view(-t)
