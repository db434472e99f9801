"""A batch as the loop takes it, made from what torch.nn's modules take, and back.

The loop runs over (time, batch, ...), or over packed steps where rows end early.
Callers have the batch first or last or not at all, lengths in any order, or a
PackedSequence.
"""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from bptt.kernels import native
from bptt.places import Places
from bptt.rows import Padding, Rows


@dataclass(frozen=True)
class Arrangement:
    """A batch in the loop's order, and the way back to the caller's.

    Attributes:
        x: (time, batch, ...), or packed (steps, ...) if `rows` are ragged; floats as
            the caller has them if those have a padding.
        rows: which steps the rows have, and where they are reset.
        batched: whether the caller's sequences have a batch axis.
        batch_first: whether that comes before time.
        order: (batch,) int64: row `r` here is the caller's row `order[r]`; None for the
            same order.
        places: where packed steps stand in the caller's sequences; None if those are
            packed themselves, or outputs are not.
        time: steps of the caller's sequences.
        packed: the caller's PackedSequence.
    """

    x: Tensor
    rows: Rows
    batched: bool = True
    batch_first: bool = False
    order: Tensor | None = None
    places: Places | None = None
    time: int = 0
    packed: PackedSequence | None = None

    def of_state(self, part: Tensor) -> Tensor:
        """A part of the caller's state, (layers, batch, state), in this order."""
        if not self.batched:
            return part.unsqueeze(1)
        return part if self.order is None else part.index_select(1, self.order)

    def state(self, part: Tensor) -> Tensor:
        """The inverse of `of_state`."""
        if not self.batched:
            return part.squeeze(1)
        return part if self.order is None else part.index_select(1, self._inverse)

    def outputs(self, y: Tensor) -> Any:
        """Outputs as the caller has the input; zeros where a row has ended."""
        if self.packed is not None:
            return PackedSequence(
                y,
                self.packed.batch_sizes,
                self.packed.sorted_indices,
                self.packed.unsorted_indices,
            )
        if self.places is not None:
            y = self.places.place(y)
            axes = (self.time, self.rows.batch)
            return y.reshape(*(axes[::-1] if self.batch_first else axes), *y.shape[1:])
        if not self.batched:
            return y.squeeze(1)
        is_turned = self.batch_first and self.rows.padding is None
        return y.transpose(0, 1) if is_turned else y

    def of_outputs(self, y: Tensor) -> Tensor:
        """The inverse of `outputs`; of a PackedSequence it takes the data."""
        if self.packed is not None:
            return y
        if self.places is not None:
            return self.places.take(y.reshape(self.places.size, *y.shape[2:]))
        if not self.batched:
            return y.unsqueeze(1)
        return y.transpose(0, 1) if self.batch_first else y

    @cached_property
    def _inverse(self) -> Tensor:
        assert self.order is not None
        return self.order.argsort()


def arrange(
    input: Tensor,
    lengths: Tensor | None,
    resets: Tensor | None,
    *,
    batched: bool,
    batch_first: bool,
    name: str,
    in_place: bool = False,
) -> Arrangement:
    """Arrange a tensor whose number of axes has been checked.

    Args:
        input: (time, batch, ...), with `batch_first` (batch, time, ...), or without the
            batch axis (time, ...).
        lengths: (batch,) integers from 1 to the number of steps; None if all rows have
            all steps.
        resets: bool, with the axes of time and batch that `input` has; or None.
        batched: whether `input` has a batch axis.
        batch_first: whether it comes before time.
        name: of the module, for errors.
        in_place: whether floats of ragged rows stay where they are, and outputs come
            likewise, instead of packed.

    Raises:
        ValueError, TypeError: `lengths` or `resets` do not fit.
    """
    x = input if batched else input.unsqueeze(1)
    if batched and batch_first:
        x = x.transpose(0, 1)
    time, batch = x.shape[:2]
    if resets is not None:
        axes = (batch, time) if batch_first else (time, batch)
        _require_resets(resets, axes if batched else (time,), name)
        resets = resets if batched else resets.unsqueeze(1)
        resets = resets.transpose(0, 1) if batched and batch_first else resets
    if lengths is None or not batch:
        rows = Rows(time, batch, None, resets)
        return Arrangement(x, rows, batched, batch_first)
    if not batched:
        raise ValueError(
            f"{name}: lengths are for a batch, and input is one sequence of shape "
            f"{tuple(input.shape)}; leave its end away instead"
        )
    padded = ragged(lengths, time, batch, batch_first, name)
    if padded is None:
        return Arrangement(x, Rows(time, batch, None, resets), True, batch_first)
    assert padded.padding is not None
    rows, padding = padded, padded.padding
    order = padding.order.to(x.device)
    x = input
    is_read = in_place and input.is_floating_point()
    if resets is not None or not is_read:
        places = Places.of(rows, padding, input.device)
        if resets is not None:
            given = resets.transpose(0, 1) if batch_first else resets
            rows = replace(rows, resets=places.take(given.flatten()))
        if not is_read:
            x = places.take(input.flatten(0, 1))
    if in_place:
        return Arrangement(x, rows, True, batch_first, order, time=time)
    return Arrangement(x, rows.packed(), True, batch_first, order, places, time)


def arrange_packed(
    packed: PackedSequence,
    lengths: Tensor | None,
    resets: Tensor | None,
    *,
    batch_first: bool,
    name: str,
) -> Arrangement:
    """Arrange a PackedSequence, whose steps are in the loop's order already.

    Args:
        packed: sequences of floats (steps, input) or ids (steps,).
        lengths: must be None.
        resets: (time, batch) bool, or with `batch_first` (batch, time), rows in the
            order that the sequences had before they were packed; or None.
        batch_first: see `resets`.
        name: of the module, for errors.

    Raises:
        ValueError, TypeError: `lengths` or `resets` do not fit.
    """
    if lengths is not None:
        raise ValueError(
            f"{name}: a PackedSequence has its own lengths; leave `lengths` None"
        )
    time, batch = len(packed.batch_sizes), int(packed.batch_sizes[0])
    rows = Rows(time, batch, packed.batch_sizes)
    order = packed.sorted_indices
    if resets is not None:
        axes = (batch, time) if batch_first else (time, batch)
        _require_resets(resets, axes, name)
        resets = resets.transpose(0, 1) if batch_first else resets
        resets = resets if order is None else resets[:, order.to(resets.device)]
        rows = Rows(time, batch, packed.batch_sizes, rows.pack(resets))
    return Arrangement(packed.data, rows, order=order, packed=packed)


def ragged(
    lengths: Tensor, time: int, batch: int, batch_first: bool, name: str
) -> Rows | None:
    """Rows of these lengths, padded to `time` steps; None if all have all of them.

    Args:
        lengths: (batch,) integers from 1 to `time`.
        time: steps that the caller has of each row.
        batch: rows.
        batch_first: as `Padding` has it.
        name: of the module, for errors.

    Raises:
        ValueError, TypeError: `lengths` do not fit.
    """
    steps = _checked(lengths, time, batch, name)
    if min(steps) == time:
        return None
    order, inverse, sizes, offsets = native.sort_rows(steps)
    padding = Padding(order, inverse, time, batch_first)
    return Rows.padded(steps, sizes, offsets, padding)


def _checked(lengths: Tensor, time: int, batch: int, name: str) -> list[int]:
    """The lengths, which must fit."""
    if not isinstance(lengths, Tensor) or lengths.dtype not in _INTEGERS:
        given = (
            f"dtype {lengths.dtype}"
            if isinstance(lengths, Tensor)
            else type(lengths).__name__
        )
        raise TypeError(
            f"{name}: lengths must be an int64 tensor (batch,); got {given}, convert "
            "it with torch.as_tensor(lengths, dtype=torch.int64)"
        )
    if tuple(lengths.shape) != (batch,):
        raise ValueError(
            f"{name}: lengths must have shape ({batch},), one for each row of the "
            f"batch; got {tuple(lengths.shape)}"
        )
    steps = lengths.tolist()  # cheaper than asking torch for each number
    shortest, longest = min(steps), max(steps)
    if shortest < 1 or longest > time:
        wrong = shortest if shortest < 1 else longest
        row = steps.index(wrong)
        raise ValueError(
            f"{name}: lengths must be from 1 to {time}, the steps of input; row {row} "
            f"has {wrong}" + (": leave empty rows away" if wrong < 1 else "")
        )
    return steps


def _require_resets(resets: Tensor, axes: tuple[int, ...], name: str) -> None:
    if not isinstance(resets, Tensor) or resets.dtype != torch.bool:
        given = (
            f"dtype {resets.dtype}"
            if isinstance(resets, Tensor)
            else type(resets).__name__
        )
        raise TypeError(
            f"{name}: resets must be a bool tensor, True where the state is zeroed "
            f"before the step; got {given}, convert it with resets.bool()"
        )
    if tuple(resets.shape) != axes:
        raise ValueError(
            f"{name}: resets must have shape {axes}, the axes of time and batch of "
            f"input; got {tuple(resets.shape)}"
        )


_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
