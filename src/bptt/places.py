"""Where the steps of a packed batch stand in the padded one, and the way to and fro.

Taking steps out of a padded array and placing them in one are each other's derivative.
Much float32 on the CPU goes to memory that the native core uses again.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from bptt.kernels import native
from bptt.rows import Padding, Rows


@dataclass(frozen=True)
class Places:
    """Where packed steps stand in a padded batch, (time x batch) or (batch x time).

    Attributes:
        where: (steps,) int64, no place twice.
        size: time x batch.
    """

    where: Tensor
    size: int

    @classmethod
    def of(cls, rows: Rows, padding: Padding, device: torch.device) -> "Places":
        """Where the steps of ragged rows stand in a batch that is padded so."""
        step = torch.arange(rows.time).unsqueeze(1)
        if padding.backwards:
            step = rows.lengths - 1 - step
        if padding.batch_first:
            where = padding.order * padding.time + step
        else:
            where = step * rows.batch + padding.order
        where = where.masked_select(rows.present)
        return cls(where.to(device), padding.time * rows.batch)

    def take(self, flat: Tensor) -> Tensor:
        """Packed steps (steps, ...) of a padded batch (size, ...)."""
        if _is_lent_to(flat):
            taken: Tensor = _Take.apply(flat, self)  # type: ignore[no-untyped-call]
            return taken
        return flat.index_select(0, self.where.to(flat.device))

    def place(self, packed: Tensor) -> Tensor:
        """The inverse of `take`, with zeros in the padding."""
        if _is_lent_to(packed):
            placed: Tensor = _Place.apply(packed, self)  # type: ignore[no-untyped-call]
            return placed
        zeros = packed.new_zeros(self.size, *packed.shape[1:])
        return zeros.index_copy(0, self.where.to(packed.device), packed)

    @cached_property
    def source(self) -> Tensor:
        """(size,) int64, which packed step stands there; any in the padding."""
        source = torch.zeros(self.size, dtype=torch.int64)
        return source.scatter_(0, self.where, torch.arange(len(self.where)))

    @cached_property
    def padding(self) -> Tensor:
        """(padding,) int64, where no step stands."""
        absent = torch.ones(self.size, dtype=torch.bool)
        return absent.index_fill_(0, self.where, False).nonzero().squeeze(1)


class _Take(torch.autograd.Function):
    """`Places.take`, whose derivative places."""

    @staticmethod
    def forward(ctx: Any, flat: Tensor, places: Places) -> Tensor:
        """Without a graph."""
        ctx.places = places
        return native.select(flat, places.where)

    @staticmethod
    def backward(ctx: Any, d: Tensor) -> Any:
        """Itself differentiable."""
        return ctx.places.place(d), None


class _Place(torch.autograd.Function):
    """`Places.place`, whose derivative takes."""

    @staticmethod
    def forward(ctx: Any, packed: Tensor, places: Places) -> Tensor:
        """Without a graph."""
        ctx.places = places
        placed = native.select(packed, places.source)
        return placed.index_fill_(0, places.padding, 0)

    @staticmethod
    def backward(ctx: Any, d: Tensor) -> Any:
        """Itself differentiable."""
        return ctx.places.take(d), None


def _is_lent_to(t: Tensor) -> bool:
    return (
        native.lends_to(t)
        and not torch._C._are_functorch_transforms_active()
        and torch.autograd.forward_ad._current_level < 0
        and not torch._C._functorch.is_legacy_batchedtensor(t)
    )
