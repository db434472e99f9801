"""Which steps the rows of a batch have, and before which their state is zeroed.

A ragged batch is held *packed*, as in torch's PackedSequence: rows sorted by length,
the longest first, and of each step only the rows that have it, step after step. So no
work is done on padding, and a step's rows are the first of those of the step before.
The native core can read its input where it lies in the owner's padded batch, and write
its outputs to one.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

import torch
from jaxtyping import Bool, Int, Shaped
from torch import Tensor


@dataclass(frozen=True)
class Padding:
    """How the owner of a ragged batch holds it: every row with as many steps.

    Attributes:
        order: (batch,) int64 on the CPU: row `r`, sorted, is the owner's `order[r]`.
        inverse: (batch,) int64: the owner's row `r` is row `inverse[r]`, sorted.
        time: steps of each row, no fewer than the longest row has.
        batch_first: (batch, time, ...), else (time, batch, ...).
        backwards: whether a row's steps are counted from its last one on.
    """

    order: Int[Tensor, " batch"]
    inverse: Int[Tensor, " batch"]
    time: int
    batch_first: bool
    backwards: bool = False


@dataclass(frozen=True)
class Rows:
    """The rows of a batch: all alike, or ragged, with resets or without.

    Attributes:
        time: steps of the longest row.
        batch: rows.
        batch_sizes: (time,) int64 on the CPU, how many rows have each step, not
            increasing; None if all rows have all steps.
        resets: bool, shaped as the steps of the input are: (time, batch), or (steps,)
            where packed. True zeroes the row's state before that step.
        padding: for ragged rows whose float inputs and outputs, and the errors of
            both, are padded; ids, masks and resets are packed even then.
    """

    time: int
    batch: int
    batch_sizes: Int[Tensor, " time"] | None = None
    resets: Bool[Tensor, "..."] | None = None
    padding: Padding | None = None

    @staticmethod
    @lru_cache(maxsize=64)
    def alike(time: int, batch: int) -> "Rows":
        """Rows that all have all steps, which need not be made anew for each call."""
        return Rows(time, batch)

    @classmethod
    def padded(
        cls,
        lengths: Sequence[int],
        batch_sizes: Tensor,
        offsets: Tensor,
        padding: Padding,
    ) -> "Rows":
        """Ragged rows of which lengths, in any order, and `offsets` are known, too."""
        rows = cls(max(lengths), len(lengths), batch_sizes, None, padding)
        rows.__dict__["offsets"] = offsets  # where the properties would keep them
        rows.__dict__["steps"] = (sum(lengths),)
        return rows

    def packed(self) -> "Rows":
        """The same rows for sequences that are packed."""
        return replace(self, padding=None)

    @cached_property
    def steps(self) -> tuple[int, ...]:
        """The leading axes of what comes along with the steps, as masks do."""
        return (int(self.offsets[-1]),) if self.is_ragged else (self.time, self.batch)

    @property
    def outer(self) -> tuple[int, ...]:
        """The leading axes of outputs."""
        if self.padding is None:
            return self.steps
        axes = (self.padding.time, self.batch)
        return axes[::-1] if self.padding.batch_first else axes

    @property
    def is_ragged(self) -> bool:
        """Whether sequences of these rows are packed."""
        return self.batch_sizes is not None

    @cached_property
    def lengths(self) -> Int[Tensor, " batch"]:
        """The steps of each row, the longest first."""
        assert self.batch_sizes is not None
        steps = torch.bincount(self.batch_sizes, minlength=self.batch + 1)
        return steps.flip(0).cumsum(0)[:-1].flip(0)

    @cached_property
    def offsets(self) -> Int[Tensor, " time_and_1"]:
        """Where the rows of each step begin in a packed sequence, and its end."""
        assert self.batch_sizes is not None
        return torch.nn.functional.pad(self.batch_sizes.cumsum(0), (1, 0))

    @cached_property
    def index(self) -> Int[Tensor, " steps"]:
        """Where the steps of a packed sequence stand in (time x batch)."""
        return self.present.flatten().nonzero().squeeze(1)

    @cached_property
    def present(self) -> Bool[Tensor, "time batch"]:
        """Which rows have which steps."""
        assert self.batch_sizes is not None
        return torch.arange(self.batch) < self.batch_sizes.unsqueeze(1)

    @cached_property
    def reversal(self) -> Int[Tensor, " steps"]:
        """The packed index of the step that mirrors each within its row."""
        step, row = self.index // self.batch, self.index % self.batch
        return self.offsets[self.lengths[row] - 1 - step] + row

    @cached_property
    def last(self) -> Int[Tensor, " batch"]:
        """The packed index of each row's last step."""
        return self.offsets[self.lengths - 1] + torch.arange(self.batch)

    def span(self, start: int, stop: int) -> slice:
        """Where the steps [start, stop) stand in a sequence of these rows."""
        if self.batch_sizes is None:
            return slice(start, stop)
        return slice(int(self.offsets[start]), int(self.offsets[stop]))

    def running(self, step: int) -> int:
        """How many rows have this step, 0 for the one after the last."""
        if step == self.time:
            return 0
        return self.batch if self.batch_sizes is None else int(self.batch_sizes[step])

    def part(self, start: int, stop: int) -> "Rows":
        """The steps [start, stop) of those rows that have the first of them."""
        resets = self.resets
        if resets is not None:
            resets = resets[self.span(start, stop)]
        if self.batch_sizes is None:
            return Rows(stop - start, self.batch, None, resets)
        sizes = self.batch_sizes[start:stop]
        return Rows(stop - start, self.running(start), sizes, resets)

    def cut(self, device: torch.device) -> Bool[Tensor, "time batch"] | None:
        """Steps before which a padded sequence's state is zeroed; None for none.

        Those are the resets, and all steps of the padding: what is computed there then
        depends on no row, so nothing can overflow and no NaN can leak.
        """
        if self.batch_sizes is None:
            return self.resets
        absent = ~self.present.to(device)
        return absent if self.resets is None else self.pad(self.resets) | absent

    def pad(self, packed: Tensor) -> Tensor:
        """(time, batch, ...) with zeros where a row has ended, from (steps, ...)."""
        shape = packed.shape[1:]
        zeros = packed.new_zeros(self.time * self.batch, *shape)
        index = self.index.to(packed.device)
        return zeros.index_copy(0, index, packed).reshape(self.time, self.batch, *shape)

    def pack(self, padded: Shaped[Tensor, "time batch *rest"]) -> Tensor:
        """The inverse of `pad`."""
        flat = padded.reshape(self.time * self.batch, *padded.shape[2:])
        return flat.index_select(0, self.index.to(padded.device))

    def flip(self, x: Tensor) -> Tensor:
        """Each row's steps in the opposite order; its own inverse."""
        if self.batch_sizes is None:
            return x.flip(0)
        return x.index_select(0, self.reversal.to(x.device))

    def flipped(self) -> "Rows":
        """The same rows run from their ends: a reset parts the same steps."""
        padding = self.padding
        if padding is not None:
            padding = replace(padding, backwards=not padding.backwards)
        if self.resets is None:
            return replace(self, padding=padding)
        if self.batch_sizes is None:
            first = torch.zeros_like(self.resets[:1])
            resets = torch.cat((first, self.resets[1:].flip(0)))
            return Rows(self.time, self.batch, None, resets)
        # Where a reset stood before step t, the step before which it stands now is that
        # which comes after t; the first step of a row is nobody's.
        padded = self.pad(self.resets)
        after = torch.cat((padded[1:], torch.zeros_like(padded[:1])))
        resets = self.flip(self.pack(after))
        return Rows(self.time, self.batch, self.batch_sizes, resets, padding)
