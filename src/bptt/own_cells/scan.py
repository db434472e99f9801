"""The steps forward, for any cell: `(x_t, s_{t-1}) -> (y_t, s_t)`, step after step.

A sequence is (time, batch, ...), or packed (steps, ...) where rows are ragged: then a
step runs only the rows that have it, so padding never enters a cell.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

import torch
from torch import Tensor

from bptt.cells.nest import Leaves
from bptt.outside import inside_transform
from bptt.rows import Rows

Step = Callable[[Tensor, Leaves], tuple[Tensor, Leaves]]
Keep = Callable[[Leaves, Leaves], object]  # the state as the step read and left it


@dataclass(frozen=True)
class Pace:
    """How many rows each step has, and which of them are reset before it.

    Attributes:
        sizes: rows of each step, not increasing.
        cuts: for each step a mask of its rows whose state is zeroed, or None.
        ragged: whether sequences are packed.
    """

    sizes: list[int]
    cuts: list[Tensor | None]
    ragged: bool

    @classmethod
    def of(cls, rows: Rows, device: torch.device) -> "Pace":
        """The pace of a batch."""
        sizes = [rows.batch] * rows.time
        if rows.batch_sizes is not None:
            sizes = rows.batch_sizes.tolist()
        if rows.resets is None:
            return cls(sizes, [None] * rows.time, rows.is_ragged)
        resets = rows.resets.to(device)
        masks: Sequence[Tensor] = (
            torch.split(resets, sizes) if rows.is_ragged else resets.unbind(0)
        )
        if inside_transform():  # where values cannot be asked for
            return cls(sizes, list(masks), rows.is_ragged)
        used = torch.stack([mask.any() for mask in masks]).tolist()
        cuts = [m if any_ else None for m, any_ in zip(masks, used, strict=True)]
        return cls(sizes, cuts, rows.is_ragged)

    def steps(self, sequence: Tensor) -> Sequence[Tensor]:
        """A sequence, step by step."""
        return torch.split(sequence, self.sizes) if self.ragged else sequence.unbind(0)

    def step(self, sequence: Tensor, t: int) -> Tensor:
        """One step of a sequence."""
        if not self.ragged:
            return sequence[t]
        return sequence[self._offsets[t] : self._offsets[t + 1]]

    def empty(self, like: Tensor) -> Tensor:
        """A sequence of steps like this one, uninitialised."""
        sizes = self.sizes
        leading = (sum(sizes),) if self.ragged else (len(sizes), sizes[0])
        return like.new_empty(*leading, *like.shape[1:])

    @cached_property
    def _offsets(self) -> list[int]:
        return [0, *accumulate(self.sizes)]

    def sequence(self, steps: Sequence[Tensor]) -> Tensor:
        """The inverse of `steps`."""
        return torch.cat(list(steps)) if self.ragged else torch.stack(list(steps))


def scan(
    step: Step,
    xs: Iterable[Tensor],
    state: Leaves,
    pace: Pace,
    keep: Keep | None = None,
) -> tuple[list[Tensor], Leaves]:
    """Run a cell over the steps of a sequence.

    Args:
        step: the cell.
        xs: its input, step by step.
        state: before the first step, leaves (batch, ...).
        pace: the rows of each step.
        keep: is given the state before and after each step.

    Returns:
        The outputs, step by step, and the state of each row after its last step.
    """
    ys: list[Tensor] = []
    ended: list[Leaves] = []
    rows = pace.sizes[0]
    for x, size, cut in zip(xs, pace.sizes, pace.cuts, strict=True):
        if size < rows:
            ended.append(tuple(leaf[size:] for leaf in state))
            state = tuple(leaf[:size] for leaf in state)
            rows = size
        if cut is not None:
            state = zeroed_rows(state, cut)
        before = state
        y, state = step(x, before)
        if keep is not None:
            keep(before, state)
        ys.append(y)
    if ended:
        parts = zip(*reversed([*ended, state]), strict=True)
        state = tuple(torch.cat(part) for part in parts)
    return ys, state


def zeroed_rows(state: Leaves, cut: Tensor) -> Leaves:
    """A state, or its error, with some rows set to zero; `cut` has its leading axes."""
    return tuple(
        leaf.masked_fill(cut.reshape(*cut.shape, *[1] * (leaf.dim() - cut.dim())), 0)
        for leaf in state
    )
