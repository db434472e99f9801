"""The loop for a cell that knows its derivative: no graph of steps is ever built.

`project` and `weights` stay with autograd; the steps between are one operation. Its
backward pass is written with differentiable operations, so where a derivative of the
gradient is asked for, the same loop runs again under autograd.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bptt.cells.base import Kept, State, StepTape
from bptt.cells.contract import Deltas, DifferentiableCell
from bptt.cells.nest import Leaves
from bptt.outside import eager
from bptt.own_cells.scan import Pace, scan
from bptt.own_cells.sweep import Place, Visitor, sweep
from bptt.rows import Rows
from bptt.truncation import Lag, Truncation


@dataclass(frozen=True)
class Plan:
    """What the autograd function needs beside tensors."""

    cell: DifferentiableCell
    truncation: Truncation
    rows: Rows
    pace: Pace
    weights: int


@dataclass(frozen=True)
class _Tape:
    """Sequences that the derivative reads, packed or (time, batch, ...)."""

    before: State
    after: State
    kept: Kept

    def at(self, place: Place) -> StepTape:
        return StepTape(
            before=tuple(map(place.take, self.before)),
            after=tuple(map(place.take, self.after)),
            kept=tuple(map(place.take, self.kept)),
        )

    def each(self, pace: Pace) -> list[StepTape]:
        """Every step alone, with a pass as first axis unless rows are ragged."""
        sizes: int | list[int] = pace.sizes if pace.ragged else 1

        def steps(parts: tuple[Tensor, ...]) -> list[tuple[Tensor, ...]]:
            if not parts:
                return [()] * len(pace.sizes)
            return list(zip(*(torch.split(p, sizes) for p in parts), strict=True))

        found = zip(*map(steps, (self.before, self.after, self.kept)), strict=True)
        return [StepTape(*parts) for parts in found]

    def whole(self, ragged: bool) -> StepTape:
        """All rows as one axis."""

        def rows(parts: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            return parts if ragged else tuple(part.flatten(0, 1) for part in parts)

        return StepTape(rows(self.before), rows(self.after), rows(self.kept))


def run(plan: Plan, gx: Tensor, initial: Leaves) -> tuple[Tensor, Leaves]:
    """The steps of a sequence: outputs and final state, differentiable as truncated.

    Args:
        plan: the cell and how to go back.
        gx: what `project` made of the input, (time, batch, ...) or packed.
        initial: the state before the first step, leaves (batch, width).
    """
    tensors = (gx, *plan.cell.weights(), *initial)
    if torch.is_grad_enabled() and any(t.requires_grad for t in tensors):
        y, *final = _Derived.apply(plan, *tensors)  # type: ignore[no-untyped-call]
        return y, tuple(final)
    return without_tape(plan, gx, initial)


def without_tape(plan: Plan, gx: Tensor, initial: Leaves) -> tuple[Tensor, Leaves]:
    """The steps alone; whoever wants a derivative takes it of them."""
    weights = plan.cell.weights()

    def step(gx_t: Tensor, state: Leaves) -> tuple[Tensor, Leaves]:
        state, _ = plan.cell.advance(gx_t, state, weights)
        return state[0], state

    ys, final = scan(step, plan.pace.steps(gx), initial, plan.pace)
    return plan.pace.sequence(ys), final


def _scan(
    plan: Plan, gx: Tensor, initial: Leaves, weights: tuple[Tensor, ...]
) -> tuple[_Tape, Leaves]:
    befores: list[State] = []
    afters: list[State] = []
    kept: list[Kept] = []

    def step(gx_t: Tensor, state: Leaves) -> tuple[Tensor, Leaves]:
        state, of_step = plan.cell.advance(gx_t, state, weights)
        kept.append(of_step)
        return state[0], state

    def keep(before: Leaves, after: Leaves) -> None:
        befores.append(before)
        afters.append(after)

    _, final = scan(step, plan.pace.steps(gx), initial, plan.pace, keep)
    pace = plan.pace

    def sequences(steps: Sequence[tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
        return tuple(pace.sequence(parts) for parts in zip(*steps, strict=True))

    if pace.ragged or plan.rows.resets is not None:
        return _Tape(sequences(befores), sequences(afters), sequences(kept)), final
    # The state before a step is that after the last one, so one array holds both.
    states = sequences([befores[0], *afters])
    before, after = tuple(s[:-1] for s in states), tuple(s[1:] for s in states)
    return _Tape(before, after, sequences(kept)), final


class _Visitor(Visitor):
    """Hands the errors to the cell, and sums its deltas per step.

    One pass visits each step once, from the last to the first: then nothing is summed,
    and the steps' tapes are made views in one go.
    """

    def __init__(
        self, plan: Plan, tape: _Tape, weights: tuple[Tensor, ...], *, single: bool
    ) -> None:
        self._plan = plan
        self._tape = tape
        self._weights = weights
        self._to_come = tape.each(plan.pace) if single else None
        self._visited: list[Deltas] = []
        self._sums: Deltas | None = None

    def visit(self, lag: Lag, place: Place, dy: Tensor | None, ds: Leaves) -> Leaves:
        """One lag."""
        if dy is not None:
            ds = (ds[0] + dy, *ds[1:])
        cell = self._plan.cell
        if self._to_come is not None:
            deltas, before = cell.vjp_state(ds, self._to_come.pop(), self._weights)
            self._visited.append(deltas)
            return before
        deltas, before = cell.vjp_state(ds, self._tape.at(place), self._weights)
        if self._sums is None:
            leading = self._tape.before[0].shape[: 1 if self._plan.pace.ragged else 2]
            axes = ds[0].dim() - 1
            self._sums = tuple(d.new_zeros(*leading, *d.shape[axes:]) for d in deltas)
        for total, delta in zip(self._sums, deltas, strict=True):
            place.add(total, delta)
        return before

    def gradients(self, like: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The errors of `gx` and of the weights."""
        sums = self._sums
        if self._visited:
            sums = tuple(map(torch.cat, zip(*self._visited[::-1], strict=True)))
        if sums is None:  # no pass visits any step
            return torch.zeros_like(like), tuple(map(torch.zeros_like, self._weights))
        if not self._weights:
            return sums[0], ()
        ragged = self._plan.pace.ragged
        rows = sums if ragged else tuple(d.flatten(0, 1) for d in sums)
        whole = self._tape.whole(ragged)
        return sums[0], self._plan.cell.vjp_weights(rows, whole, self._weights)


class _Derived(torch.autograd.Function):
    """(plan, gx, weights, initial state) -> (outputs, final state)."""

    @staticmethod
    def forward(ctx: Any, plan: Plan, gx: Tensor, *tensors: Tensor) -> Any:
        """Keep the inputs and the tape."""
        weights, initial = tensors[: plan.weights], tensors[plan.weights :]
        tape, final = _scan(plan, gx, initial, weights)
        ctx.plan = plan
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(gx, *tensors, *tape.before, *tape.after, *tape.kept)
        # Copies: the caller may change what is returned in place.
        return tape.after[0].clone(), *(leaf.clone() for leaf in final)

    @staticmethod
    @eager
    def backward(ctx: Any, dy: Tensor | None, *dfinal: Tensor | None) -> Any:
        """Go back through the kept tape, or through one that can be differentiated."""
        plan: Plan = ctx.plan
        gx, *saved = ctx.saved_tensors
        count = len(ctx.needs_input_grad) - 2
        weights = tuple(saved[: plan.weights])
        initial = tuple(saved[plan.weights : count])
        parts = len(initial)
        if torch.is_grad_enabled():
            tape, _ = _scan(plan, gx, initial, weights)
        else:
            flat = tuple(saved[count:])
            tape = _Tape(flat[:parts], flat[parts : 2 * parts], flat[2 * parts :])
        ends = tuple(
            torch.zeros_like(s) if d is None else d
            for s, d in zip(initial, dfinal, strict=True)
        )
        time = plan.rows.time
        full = plan.truncation.is_full_over(time)
        truncation = Truncation.full() if full else plan.truncation
        visitor = _Visitor(plan, tape, weights, single=full)
        dstart = sweep(visitor, list(truncation.lags(time)), plan.rows, dy, ends)
        dgx, dweights = visitor.gradients(gx)
        return None, dgx, *dweights, *dstart
