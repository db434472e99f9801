"""The loop through time within a memory budget: blocks of steps are run again.

Forward, the blocks are run without tapes, and of the states between them those that the
plan asks for are kept (see `memory`). Backward, each block is run again from its state,
from the last to the first, with a tape that lives as long as the block is worked on;
the error of the state before it is the error of the final state of the block before.
Under a truncation a block is a number of passes. It begins as far before its outputs
as the first of them reaches, so every pass goes exactly as far as it should.

Each block is run by the native core or by the definition, whichever runs the rest.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from bptt import through_time
from bptt.cells import Tape
from bptt.cells.base import State
from bptt.kernels import choice, native
from bptt.masks import PackedMask
from bptt.memory import Block, Plan
from bptt.rows import Rows
from bptt.through_time import Layer, LayerGradients


@dataclass(frozen=True)
class Recomputation:
    """A stack of layers over a sequence, as a plan divides it.

    Attributes:
        plan: of `plan_for`.
        kernel: that runs the blocks.
        layers: as `through_time.forward` takes them.
        x: likewise.
        masks: likewise, packed.
        rows: likewise.
    """

    plan: Plan
    kernel: str
    layers: Sequence[Layer]
    x: Tensor
    masks: Sequence[PackedMask]
    rows: Rows

    def forward(self, initial: State) -> tuple[Tensor, State, State]:
        """The outputs, the final state, and the states that are kept.

        Args:
            initial: parts (layers, batch, state).

        Returns:
            Outputs (time, batch, state), or packed; the final state, shaped as
            `initial`; and the states before all groups but the first, each part
            (groups - 1, layers, batch, state).
        """
        blocks = self.plan.blocks
        before = [
            blocks[at].start for at in self.plan.groups(0, len(blocks), level=0)[1:]
        ]
        kept = tuple(part.new_empty(len(before), *part.shape) for part in initial)
        y = initial[0].new_empty(*self._steps(), initial[0].shape[-1])
        state = initial
        for at, start in enumerate((0, *before)):
            stop = before[at] if at < len(before) else self.rows.time
            state = self._ahead(state, start, stop, y)
            if at < len(before):
                for part, now in zip(kept, state, strict=True):
                    part[at] = now
        return y, state, kept

    def backward(
        self,
        initial: State,
        kept: State,
        dy: Tensor,
        dfinal: Sequence[Tensor | None],
        *,
        needs_dx: bool,
    ) -> tuple[Tensor | None, list[LayerGradients], State]:
        """Errors of the outputs and of the final state -> gradients.

        Args:
            initial: as given to `forward`.
            kept: as `forward` returned them.
            dy: of the outputs.
            dfinal: of the final state, None for zeros.
            needs_dx: whether to form the input's gradient.

        Returns:
            `dx` (or None), the gradients of each layer, and the error of the initial
            state, parts (layers, batch, state).
        """
        total = _Total(
            dx=dy.new_zeros(self.x.shape) if needs_dx else None,
            dstate=tuple(torch.zeros_like(part) for part in initial),
        )
        states: list[State] = [initial, *by_layer(kept)]  # here, by group
        above: State | None = None
        for block, state in self._backwards(0, len(self.plan.blocks), states, 0):
            above = self._back(block, state, above, dy, dfinal, total)
        assert total.layers is not None
        return total.dx, total.layers, total.dstate

    def _steps(self) -> tuple[int, ...]:
        return tuple(self.x.shape[: 1 if self.rows.is_ragged else 2])

    def _ahead(
        self, state: State, start: int, stop: int, y: Tensor | None = None
    ) -> State:
        """Run from the state before `start` to that before `stop`, writing outputs."""
        for a in range(start, stop, self.plan.longest):
            b = min(a + self.plan.longest, stop)
            part, final, _ = self._run(state, a, b, keep=False)
            if y is not None:
                y[self.rows.span(a, b)] = part
            del part  # of the definition's tape
            running = self.rows.running(a)
            if running == self.rows.batch:
                state = final
            else:  # the other rows have ended
                ended = (s[:, running:] for s in state)
                pairs = zip(final, ended, strict=True)
                state = tuple(torch.cat(pair, dim=1) for pair in pairs)
        return state

    def _run(
        self, state: State, start: int, stop: int, *, keep: bool
    ) -> tuple[Tensor, State, list[Tape]]:
        """The steps [start, stop): outputs, final state, and tapes if to be kept."""
        rows, span = self.rows.part(start, stop), self.rows.span(start, stop)
        state = tuple(part[:, : rows.batch] for part in state)
        masks = [mask.numbers(span) for mask in self.masks]
        x = self.x[span]
        if self.kernel != choice.TORCH:
            return native.forward(
                self.kernel, self.layers, x, state, masks, rows, keep=keep
            )
        tapes = through_time.forward(self.layers, x, by_layer(state), masks, rows)
        y, final = through_time.outputs(tapes, rows)
        return y, stacked(final), tapes if keep else []

    def _backwards(
        self, low: int, high: int, states: list[State], level: int
    ) -> Iterator[tuple[Block, State]]:
        """The blocks [low, high) from the last, each with the state before it.

        `states` are those before the groups of this level; they are consumed.
        """
        groups = self.plan.groups(low, high, level)
        for at in reversed(groups):
            state = states.pop()
            if level + 1 == self.plan.levels:
                yield self.plan.blocks[at], state
                continue
            end = min(at + groups.step, high)
            inner = [state]
            starts = self.plan.groups(at, end, level + 1)
            steps = [self.plan.blocks[start].start for start in starts]
            for a, b in pairwise(steps):
                inner.append(self._ahead(inner[-1], a, b))
            yield from self._backwards(at, end, inner, level + 1)

    def _back(
        self,
        block: Block,
        state: State,
        above: State | None,
        dy: Tensor,
        dfinal: Sequence[Tensor | None],
        total: "_Total",
    ) -> State | None:
        """Run a block again and back; the error that the block before it receives."""
        rows, span = self.rows, self.rows.span(block.start, block.stop)
        part = rows.part(block.start, block.stop)
        errors = dy[span]
        if block.first > block.start:  # those outputs belong to other blocks
            errors = errors.clone()
            errors[: rows.span(block.first, block.stop).start - span.start] = 0
        tapes = self._run(state, block.start, block.stop, keep=True)[2]
        ends = self._arriving(block, above, dfinal, state, part.batch)
        masks = [mask.numbers(span) for mask in self.masks]
        x, needs_dx = self.x[span], total.dx is not None
        if self.kernel != choice.TORCH:
            dx, gradients, dstate = native.backward(
                self.kernel,
                self.layers,
                x,
                masks,
                tapes,
                errors,
                ends,
                self.plan.truncation,
                part,
                needs_dx=needs_dx,
            )
        else:
            dx, gradients = through_time.backward(
                self.layers,
                x,
                masks,
                tapes,
                errors,
                by_layer(ends),
                self.plan.truncation,
                part,
                needs_dx=needs_dx,
            )
            dstate = stacked([g.dstate for g in gradients])
        total.add(span, dx, gradients)
        if block.start == 0:
            for whole, d in zip(total.dstate, dstate, strict=True):
                whole += d
        return dstate if block.hands_on else None

    def _arriving(
        self,
        block: Block,
        above: State | None,
        dfinal: Sequence[Tensor | None],
        state: State,
        batch: int,
    ) -> State:
        """The error of a block's final state, of those rows that it has.

        A row that goes on takes it from the block above, if that hands it on; one that
        ends with a step whose output belongs to this block takes its final state's.
        """
        going = self.rows.running(block.stop)
        ending = slice(going, self.rows.running(block.first))
        arriving = []
        for at, part in enumerate(state):
            error = torch.zeros_like(part[:, :batch])
            if above is not None:
                error[:, :going] = above[at]
            end = dfinal[at]
            if end is not None:
                error[:, ending] = end[:, ending]
            arriving.append(error)
        return tuple(arriving)


@dataclass
class _Total:
    """Gradients, summed over blocks."""

    dx: Tensor | None
    dstate: State
    layers: list[LayerGradients] | None = None

    def add(self, span: slice, dx: Tensor | None, layers: list[LayerGradients]) -> None:
        """Add those of a block."""
        if self.dx is not None and dx is not None:
            self.dx[span] += dx
        if self.layers is None:
            self.layers = layers
            return
        for total, new in zip(self.layers, layers, strict=True):
            total.dU.add_(new.dU)
            total.dW.add_(new.dW)
            if total.db_ih is not None and new.db_ih is not None:
                total.db_ih.add_(new.db_ih)
            if total.db_hh is not None and new.db_hh is not None:
                total.db_hh.add_(new.db_hh)


def by_layer(state: State) -> list[State]:
    """Each layer's state, parts (batch, state), from parts (layers, batch, state)."""
    return list(zip(*(part.unbind(0) for part in state), strict=True))


def stacked(states: Sequence[State]) -> State:
    """The inverse of `by_layer`."""
    return tuple(torch.stack(parts) for parts in zip(*states, strict=True))
