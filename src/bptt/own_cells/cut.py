"""Truncated BPTT through any cell: forward without a graph, back from kept states.

The forward pass keeps the state before each step. Going back, the steps where the
passes of a lag stand are rows of one call of the cell, which autograd differentiates.

Where the cell draws random numbers, rows of another call would see others; and where
memory is short, not all states can be kept. Then the way back is that of `stepwise`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bptt.cells.nest import Leaves
from bptt.outside import eager
from bptt.own_cells import stepwise
from bptt.own_cells.caller import (
    Autocast,
    Caller,
    RandomState,
    is_differentiable,
    random_state,
    refuse_changed,
    refuse_foreign,
    same_random_state,
)
from bptt.own_cells.merged import Merged
from bptt.own_cells.scan import Pace, scan
from bptt.own_cells.sweep import sweep
from bptt.rows import Rows
from bptt.truncation import Truncation


@dataclass(frozen=True)
class Plan:
    """What the autograd function needs beside tensors."""

    caller: Caller
    truncation: Truncation
    rows: Rows
    pace: Pace
    names: tuple[str, ...]  # of the parameters
    segment_steps: int | None = None


def run(plan: Plan, x: Tensor, initial: Leaves) -> tuple[Tensor, Leaves]:
    """Outputs and final state of a sequence, differentiable as truncated.

    Args:
        plan: the cell and how to go back.
        x: (time, batch, ...) or packed.
        initial: the state before the first step, leaves (batch, ...).
    """
    parameters = plan.caller.parameters()
    y, *final = _Cut.apply(  # type: ignore[no-untyped-call]
        plan, x, *(parameters[name] for name in plan.names), *initial
    )
    return y, tuple(final)


class _Forward:
    """The steps of a sequence, keeping what the way back wants of the states."""

    def __init__(self, plan: Plan, known: Sequence[Tensor], device: torch.device):
        self.plan = plan
        self.device = device
        self.befores: list[Leaves] = []
        self.randoms: list[RandomState] = []  # before each segment
        self._known = known
        self._last: tuple[Tensor, ...] = ()
        self._count = 0
        self._whole: Tensor | None = None
        self._nothing = torch.empty(0)

    def run(self, x: Tensor, initial: Leaves) -> tuple[Tensor, Leaves]:
        """All steps: the outputs and the final state."""
        pace = self.plan.pace
        xs = (pace.step(x, t) for t in range(self.plan.rows.time))
        ys, final = scan(self.step, xs, initial, pace)
        return pace.sequence(ys) if self._whole is None else self._whole, final

    def step(self, x: Tensor, state: Leaves) -> tuple[Tensor, Leaves]:
        """One step; the first one under autograd, to see what the cell reads."""
        at, segment = self._count, self.plan.segment_steps
        self._count += 1
        starts = at == 0 if segment is None else at % segment == 0
        if starts:
            now = random_state(self.device)
            if self.randoms and same_random_state(now, self.randoms[-1]):
                now = self.randoms[-1]  # 5 kB each
            self.randoms.append(now)
        if starts or segment is None:
            self.befores.append(state)
        name = type(self.plan.caller.cell).__name__
        watched = (x, *state, *self._last)
        versions = [t._version for t in watched]
        if at:
            y, state = self.plan.caller(x, state)
        else:
            leaves = tuple(leaf.detach() for leaf in state)
            with torch.enable_grad():
                y, state = self.plan.caller(x.detach(), leaves)
            refuse_foreign(name, [y, *state], self._known)
            y, state = y.detach(), tuple(leaf.detach() for leaf in state)
        refuse_changed(name, watched, versions, at)
        self._last = (y,)
        return y if segment is None else self._written(y, at), state

    def _written(self, y: Tensor, at: int) -> Tensor:
        """Put an output where it belongs, lest all be there twice; nothing is left."""
        pace = self.plan.pace
        if self._whole is None:
            self._whole = pace.empty(y)
        place = pace.step(self._whole, at)
        if y.shape != place.shape or y.dtype != place.dtype:
            name = type(self.plan.caller.cell).__name__
            raise ValueError(
                f"cell: the output y of {name} must have the same shape and dtype at "
                f"all steps; it was {place.dtype} of shape {tuple(place.shape)} and is "
                f"{y.dtype} of shape {tuple(y.shape)} at step {at}"
            )
        place.copy_(y)
        return self._nothing


class _Cut(torch.autograd.Function):
    """(plan, x, parameters, initial state) -> (outputs, final state)."""

    @staticmethod
    def forward(ctx: Any, plan: Plan, x: Tensor, *tensors: Tensor) -> Any:
        """Keep the inputs, and states before steps."""
        initial = tensors[len(plan.names) :]
        started = _Forward(plan, tensors[: len(plan.names)], x.device)
        y, final = started.run(x, initial)
        drawn = not same_random_state(started.randoms[0], random_state(x.device))
        ctx.stepwise = drawn or plan.segment_steps is not None
        befores = started.befores
        if ctx.stepwise:
            ctx.randoms = started.randoms
            every = plan.segment_steps or plan.rows.time
            befores = befores if plan.segment_steps else befores[:1]
            ctx.every = every
            kept = [leaf for state in befores for leaf in state]
        else:
            parts = zip(*befores, strict=True)
            kept = [plan.pace.sequence(part) for part in parts]
        ctx.plan = plan
        ctx.autocast = Autocast.now(x.device)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, *tensors, *kept)
        final = tuple(leaf.clone() for leaf in final)
        ctx.mark_non_differentiable(*(f for f in final if not is_differentiable(f)))
        return y, *final

    @staticmethod
    @eager
    def backward(ctx: Any, dy: Tensor | None, *dfinal: Tensor | None) -> Any:
        """Go back through the kept states."""
        plan: Plan = ctx.plan
        name = type(plan.caller.cell).__name__
        if torch.is_grad_enabled():
            raise NotImplementedError(
                f"{name} under {plan.truncation} has no derivative of its gradient: "
                "going back, the states before its steps are numbers. Make it a "
                "bptt.cells.DifferentiableCell, or set truncation to None"
            )
        x, *saved = ctx.saved_tensors
        count = len(ctx.needs_input_grad) - 2
        initial = tuple(saved[len(plan.names) : count])
        parameters = dict(zip(plan.names, saved[: len(plan.names)], strict=True))
        caller = plan.caller.bound(parameters)
        kept = saved[count:]
        ends = tuple(
            torch.zeros_like(s) if d is None else d
            for s, d in zip(initial, dfinal, strict=True)
            if is_differentiable(s)
        )
        needs_dx = ctx.needs_input_grad[1]
        lags = list(plan.truncation.lags(plan.rows.time))
        if ctx.stepwise:
            parts = len(initial)
            befores = [
                tuple(kept[at : at + parts]) for at in range(0, len(kept), parts or 1)
            ]
            back = stepwise.Stepwise(
                caller,
                x,
                list(parameters.values()),
                plan.pace,
                plan.truncation,
                needs_dx,
            )
            dx, dparameters, dstart = back.run(
                befores, ctx.randoms, ctx.every, ctx.autocast, dy, ends
            )
        else:
            visitor = Merged(
                caller,
                x,
                tuple(kept),
                list(parameters.values()),
                lags,
                ctx.autocast,
                needs_dx=needs_dx,
            )
            dstart = sweep(visitor, lags, plan.rows, dy, ends)
            dx, dparameters = visitor.gradients()
        floating = iter(dstart)
        dinitial = [next(floating) if is_differentiable(s) else None for s in initial]
        return None, dx, *dparameters, *dinitial
