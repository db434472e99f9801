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
from functools import lru_cache
from itertools import pairwise

import torch
from torch import Tensor

from bptt import through_time
from bptt.cells import Tape
from bptt.cells.base import State
from bptt.kernels import choice, native
from bptt.memory import Block, Budget, Costs, Plan, plan
from bptt.rows import Rows
from bptt.through_time import Layer, LayerGradients
from bptt.truncation import Truncation

_plan = lru_cache(maxsize=64)(plan)


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


def plan_for(
    kernel: str,
    layers: Sequence[Layer],
    x: Tensor,
    masks: Sequence[PackedMask],
    truncation: Truncation,
    rows: Rows,
    budget: Budget,
) -> Plan | None:
    """How to keep to the budget, or None where all that there is to keep fits.

    Raises:
        ValueError: the budget is smaller than anything that can be kept.
    """
    inputs = x.shape[-1] if x.is_floating_point() else 0
    inputs = max(inputs, budget.widest_input)
    costs = costs_of(kernel, layers, inputs, len(masks), truncation, rows)
    found = _plan(rows.time, truncation, costs, budget)
    return found if found.levels else None


def costs_of(
    kernel: str,
    layers: Sequence[Layer],
    inputs: int,
    masks: int,
    truncation: Truncation,
    rows: Rows,
) -> Costs:
    """What the kernel keeps, counted for the case that everything is asked for.

    That is beside inputs, weights and outputs, and their gradients; and what has the
    size of a layer's weights, whatever the sequence, is not counted.
    """
    weight = layers[0].W
    hidden, depth = weight.shape[1], len(layers)
    if kernel == choice.TORCH:
        width, lag_width = _defined_widths(
            layers, inputs, bool(masks), truncation, rows
        )
    else:
        width, lag_width = _native_widths(
            kernel, layers, inputs, bool(masks), truncation
        )
    passes = 1 if truncation.k1 is None else truncation.k1
    row = rows.batch * weight.element_size()
    parts = layers[0].cell.state_parts
    state = depth * parts * hidden * row
    return Costs(
        step_bytes=row * (width + -(-lag_width // passes)),
        state_bytes=state,
        # The running state and error, those of a block, and the entry before a tape's.
        fixed_bytes=6 * state
        + masks * -(-hidden // 8) * rows.time * rows.batch
        + (lag_width * row),
    )


def _native_widths(
    kernel: str,
    layers: Sequence[Layer],
    inputs: int,
    masked: bool,
    truncation: Truncation,
) -> tuple[int, int]:
    """Floats for a step and row of a block, and for a pass and row."""
    cell, hidden = layers[0].cell, layers[0].W.shape[1]
    depth = len(layers)
    tape = native.tape_width(kernel, cell, hidden)
    width = depth * (hidden + tape)  # h, and the tape
    width += 2 * hidden  # the outputs; their errors, where they must be copied
    width += inputs  # of x or of dx, likewise
    if depth > 1:
        width += 2 * hidden  # errors between layers
    if masked:
        width += (depth + 1) * hidden  # the masks, and an input that is masked
    if truncation.is_full:
        return width, 0
    blocks = 4 if cell.gates == 3 else cell.gates
    return width + depth * blocks * hidden, depth * (2 * blocks + 1) * (hidden + 16)


def _defined_widths(
    layers: Sequence[Layer],
    inputs: int,
    masked: bool,
    truncation: Truncation,
    rows: Rows,
) -> tuple[int, int]:
    """Numbers for a step and row of a block, and for a pass and row."""
    cell, hidden = layers[0].cell, layers[0].W.shape[1]
    depth = len(layers)
    state = cell.state_parts * hidden
    with torch.no_grad():  # a step of no rows shows what a step keeps
        none = layers[0].W.new_empty(0, cell.gates * hidden)
        before = tuple(none[:, :hidden] for _ in range(cell.state_parts))
        bias = layers[0].b_hh
        _, kept = cell.step(none, before, layers[0].W, bias)
    tape = state + sum(part.shape[1] for part in kept)
    gates = cell.gates * hidden
    width = depth * tape
    if masked:
        width += depth * hidden
    # Forward: the steps of a layer before they are stacked, its pre-activations.
    # Backward: the deltas and their products, what is cut or padded.
    forward = tape + gates + hidden
    padded = 2 * (inputs + hidden) if rows.is_ragged else 0
    back = 2 * gates + 2 * hidden + inputs
    if rows.is_ragged or rows.resets is not None:
        back += 2 * state
    width += max(forward, back + (0 if truncation.is_full else depth * gates)) + padded
    return width, 0 if truncation.is_full else depth * 3 * state + 4 * gates


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
