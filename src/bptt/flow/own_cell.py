"""A cell of one's own as a problem, differentiated by autograd, all steps at once."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from bptt import own_cells
from bptt.cells.nest import Leaves, Nest
from bptt.flow.problem import Activity, Carried, Problem, Share, flat, squares
from bptt.own_cells.caller import (
    Caller,
    is_differentiable,
    random_state,
    same_random_state,
)
from bptt.own_cells.merged import lengthened, vjp
from bptt.own_cells.scan import Pace, scan, zeroed_rows
from bptt.own_cells.sweep import Place, Visitor, turns
from bptt.truncation import Lag, Truncation


@dataclass(frozen=True)
class CellProblem(Problem):
    """A cell over a batch.

    Attributes:
        cell: a copy of the module's, whose parameters are asked for by `cell.<name>`.
        nest: how it has its state.
        x: (time, batch, ...), packed if rows are ragged.
        initial: the state's leaves, (batch, ...).
        dfinal: the error of the final state's floating leaves, (batch, ...).
    """

    cell: torch.nn.Module
    nest: Nest
    x: Tensor
    initial: Leaves
    dfinal: Leaves

    @property
    def parts(self) -> tuple[str, ...]:
        """Numbered as the leaves are."""
        return tuple(f"s{at}" for at in self._floating)

    @property
    def state_shapes(self) -> tuple[torch.Size, ...]:
        """As the leaves are."""
        return tuple(self.initial[at].shape[1:] for at in self._floating)

    @cached_property
    def parameters(self) -> dict[str, Tensor]:
        """Those that a step reads."""
        known = dict(self.cell.named_parameters())
        names = [n for n, used in zip(known, self._forward.used, strict=True) if used]
        return {f"cell.{name}": known[name].detach() for name in names}

    def shares(self, *, gradients: bool) -> Iterator[Share]:
        """By the loop for cells of one's own."""
        visitor = self._forward.visitor(gradients=gradients)
        lags = Truncation(1, self.time).lags(self.time)
        leaf = self._forward.output_leaf
        for turn in turns(visitor, lags, self.rows, self.dy, self.dfinal):
            errors = list(turn.ds)
            if turn.lag.owns and leaf is not None:  # reading y is reading the state
                place = Place(turn.lag.steps, self.rows)
                own = place.errors_of(place.take(self.dy), len(errors[leaf]))
                errors[leaf] = errors[leaf] + own
            found = flat(visitor.gradient) if gradients else None
            yield Share(turn.lag.lag, list(map(squares, errors)), found)

    def gradient(self, truncation: Truncation) -> list[Tensor]:
        """By whatever runs the cell in training."""
        known = dict(self.cell.named_parameters())
        weights = [known[name.removeprefix("cell.")] for name in self.parameters]
        with torch.enable_grad():
            y, final = own_cells.run(
                self.cell, self.nest, self.x, self.initial, truncation, self.rows
            )
            ends = [final[at] for at in self._floating]
            pairs = [
                (o, d)
                for o, d in zip((y, *ends), (self.dy, *self.dfinal), strict=True)
                if o.requires_grad
            ]
            outputs, errors = zip(*pairs, strict=True)
            found = torch.autograd.grad(outputs, weights, errors, allow_unused=True)
        return [
            torch.zeros_like(w) if d is None else d
            for w, d in zip(weights, found, strict=True)
        ]

    def state_vjp(self, step: int, ds: Leaves) -> Leaves:
        """A vector at a time."""
        return self._forward.state_vjp(step, ds)

    def products(self) -> tuple[float, float]:
        """Not known: as many of the input as of the state."""
        return 1.0, 1.0

    def carried(self) -> Carried | None:
        """Not known."""
        return None

    def activity(self) -> list[Activity]:
        """Not known."""
        return []

    @property
    def _floating(self) -> list[int]:
        return [at for at, s in enumerate(self.initial) if is_differentiable(s)]

    @cached_property
    def _forward(self) -> "_Graph":
        return _Graph(self)


class _Graph:
    """One graph of all steps as rows of a single call, with leaves for each step."""

    def __init__(self, problem: CellProblem) -> None:
        self._batch = problem.rows.batch
        self._caller = Caller(problem.cell, problem.nest, whole=True)
        pace = Pace.of(problem.rows, problem.x.device)
        self._sizes, self._cuts = pace.sizes, pace.cuts
        self._xs = pace.steps(problem.x)
        self._befores, leaf = self._scan(problem, pace)
        floating = problem._floating
        self.output_leaf = floating.index(leaf) if leaf in floating else None
        leading = 1 if pace.ragged else 2
        before = [
            _merged(pace.sequence(parts), leading)
            for parts in zip(*self._befores, strict=True)
        ]
        self._before = [before[at].requires_grad_() for at in floating]
        self._parameters = list(problem.cell.parameters())
        for parameter in self._parameters:
            parameter.requires_grad_()
        with torch.enable_grad():
            y, after = self._caller(_merged(problem.x, leading), tuple(before))
        self._outputs = [y, *(after[at] for at in floating)]
        zeros = [torch.zeros_like(output) for output in self._outputs]
        found = vjp(self._outputs, zeros, self._parameters)
        self.used = [d is not None for d in found]

    def _scan(
        self, problem: CellProblem, pace: Pace
    ) -> tuple[list[Leaves], int | None]:
        """The state before each step, and which leaf of the state the output is."""
        befores: list[Leaves] = []
        outputs: set[int | None] = set()

        def step(x: Tensor, state: Leaves) -> tuple[Tensor, Leaves]:
            befores.append(state)
            y, after = self._caller(x, state)
            same = [at for at, leaf in enumerate(after) if leaf is y]
            outputs.add(same[0] if same else None)
            return y, after

        drawn = random_state(problem.x.device)
        with torch.no_grad():
            scan(step, self._xs, problem.initial, pace)
        if not same_random_state(drawn, random_state(problem.x.device)):
            raise NotImplementedError(
                f"{type(problem.cell).__name__} draws random numbers, and all steps as "
                "rows of one call would draw others; call model.eval() first if they "
                "are dropout's"
            )
        return befores, outputs.pop() if len(outputs) == 1 else None

    def visitor(self, *, gradients: bool) -> "_Watched":
        """A way back through the graph, once a lag."""
        used = zip(self._parameters, self.used, strict=True)
        wanted: list[Tensor] = [p for p, is_used in used if is_used and gradients]
        return _Watched(self._outputs, self._before, wanted)

    def state_vjp(self, step: int, ds: Leaves) -> Leaves:
        """The step's rows run again, as a graph of their own."""
        x, size = self._xs[step], self._sizes[step]
        state = tuple(
            leaf.detach().clone().requires_grad_(is_differentiable(leaf))
            for leaf in self._befores[step]
        )
        with torch.enable_grad():
            _, after = self._caller(x, state)
        outputs = [leaf for leaf in after if is_differentiable(leaf)]
        before = [leaf for leaf in state if is_differentiable(leaf)]
        cut = self._cuts[step]
        found = []
        for at in range(ds[0].shape[0]):
            errors = vjp(outputs, [d[at][:size] for d in ds], before)
            row = tuple(
                torch.zeros_like(leaf) if d is None else d
                for leaf, d in zip(before, errors, strict=True)
            )
            row = row if cut is None else zeroed_rows(row, cut)
            found.append([lengthened(d, self._batch) for d in row])
        return tuple(torch.stack(parts) for parts in zip(*found, strict=True))


class _Watched(Visitor):
    """Takes errors through the graph, and keeps what the last lag gave parameters."""

    def __init__(
        self, outputs: list[Tensor], before: list[Tensor], wanted: list[Tensor]
    ) -> None:
        self._outputs = outputs
        self._before = before
        self._wanted = wanted
        self.gradient: list[Tensor] = []

    def visit(self, lag: Lag, place: Place, dy: Tensor | None, ds: Leaves) -> Leaves:
        """One lag; the passes stand at the first of all steps."""
        leading = 1 if place.rows.is_ragged else 2
        count = self._outputs[0].shape[0]

        def whole(errors: Tensor) -> Tensor:
            return lengthened(_merged(errors, leading), count)

        errors = [None if dy is None else whole(dy), *map(whole, ds)]
        found = vjp(self._outputs, errors, [*self._before, *self._wanted])
        parts = len(self._before)
        self.gradient = [
            torch.zeros_like(w) if d is None else d
            for w, d in zip(self._wanted, found[parts:], strict=True)
        ]
        return tuple(
            torch.zeros_like(d)
            if g is None
            else g[: d.shape[:leading].numel()].reshape(d.shape)
            for d, g in zip(ds, found[:parts], strict=True)
        )


def _merged(sequence: Tensor, leading: int) -> Tensor:
    merged = sequence if leading == 1 else sequence.flatten(0, 1)
    return merged.detach().clone()
