"""Dropout masks: as numbers, or as bits where memory is short."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class PackedMask:
    """A dropout mask as bits, made into numbers where it is needed.

    Attributes:
        bits: (*steps, ceil(width / 8)) uint8.
        width: of the sequence that is masked.
        keep: probability of keeping an entry, which is then divided by it.
        dtype: of the sequence that is masked.
    """

    bits: Tensor
    width: int
    keep: float
    dtype: torch.dtype

    @classmethod
    def drawn(cls, shape: tuple[int, ...], keep: float, like: Tensor) -> "PackedMask":
        """As `like.new_empty(shape).bernoulli_(keep).div_(keep)` draws it."""
        # The CPU draws the same numbers for any dtype.
        dtype = torch.bool if like.is_cpu else like.dtype
        kept = torch.empty(shape, dtype=dtype, device=like.device)
        kept = kept.bernoulli_(keep) if keep else kept.zero_()
        return cls.of(kept.bool(), keep, like.dtype)

    @classmethod
    def of(cls, kept: Tensor, keep: float, dtype: torch.dtype) -> "PackedMask":
        """From a bool mask (*steps, width) of what is kept."""
        width = kept.shape[-1]
        flat = kept.reshape(-1, width)
        bits = torch.zeros(
            len(flat), -(-width // 8), dtype=torch.uint8, device=kept.device
        )
        for bit in range(8):
            column = flat[:, bit::8]
            bits[:, : column.shape[1]] |= column.to(torch.uint8) << bit
        return cls(bits.reshape(*kept.shape[:-1], -1), width, keep, dtype)

    def numbers(self, span: slice = slice(None)) -> Tensor:
        """The mask of these steps, (steps, ..., width)."""
        bits = self.bits[span]
        mask = torch.empty(
            *bits.shape[:-1], self.width, dtype=self.dtype, device=bits.device
        )
        for bit in range(8):
            column = mask[..., bit::8]
            column.copy_((bits[..., : column.shape[-1]] >> bit) & 1)
        return mask.div_(self.keep) if self.keep else mask


def numbers(masks: Sequence[Tensor | PackedMask]) -> list[Tensor]:
    """Masks as `through_time` takes them."""
    return [m.numbers() if isinstance(m, PackedMask) else m for m in masks]
