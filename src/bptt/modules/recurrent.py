"""Recurrent: a cell of one's own, run and trained by the loop through time."""

from functools import partial
from typing import Any, final

import torch
from torch import Tensor

from bptt import autograd, own_cells, pieces
from bptt.cells import Cell, GRUCell, LSTMCell, ReLUCell, TanhCell
from bptt.cells.contract import HasInitialState
from bptt.cells.nest import Leaves, Nest, flatten
from bptt.memory import Budget
from bptt.modules import checks
from bptt.modules.arrangement import Arrangement, arrange
from bptt.pieces import Masks
from bptt.random_truncation import Policy
from bptt.rows import Rows
from bptt.through_time import Layer
from bptt.truncation import Truncation

_NAME = "Recurrent"


@final
class Recurrent(torch.nn.Module):
    """Runs a cell over a sequence, its errors going back as far as `truncation` says.

    The cell is any module `(x, state) -> (y, state)`: `x` (batch, ...), `y`
    (batch, ...), the state a tensor or nested tuples of tensors (batch, ...). It must
    treat the rows of a batch independently, and its result may depend on nothing but
    its arguments, its parameters and the global random numbers. Then everything that
    `bptt.LSTM` does works for it: truncations, ragged rows, resets, a memory budget.

    Under full BPTT (and a truncation that cuts nothing, or at random) the steps run
    under autograd, so anything goes that autograd can do. Under a truncation that cuts,
    and where a memory budget has steps run again, gradients go to the input, the
    initial state and the cell's parameters: a cell that reads other tensors which
    require gradients is refused, and so is one that changes its input or state in
    place. Where such a cell draws random numbers, as for dropout, the way back takes
    its steps one by one and draws them again.

    Faster, from any cell to the fastest: a `bptt.cells.SplitCell` names what needs no
    state, for all steps at once; a `bptt.cells.DifferentiableCell` brings its
    derivative; `torch.nn.RNNCell`, `GRUCell` and `LSTMCell` themselves, taken as cells
    with `y = h`, run as `bptt.RNN`, `GRU` and `LSTM` do (hooks on them do not).

    Args:
        cell: the cell; a submodule named `cell`.
        truncation: which errors go how far back; None is full BPTT over the given
            sequence.
        memory_budget: bytes, or a str as "512MB", for what is kept for the backward
            pass beside inputs, parameters and outputs, as one step of the cell shows
            it; segments of steps are run again, with the same random numbers. None
            keeps all.

    Raises:
        TypeError: `cell` is not a module, or `truncation` not a `bptt.Truncation` or
            `bptt.RandomTruncation`.
        ValueError: `memory_budget` is no size, or stands beside a `RandomTruncation`.

    >>> from bptt import Truncation
    >>> cell = torch.nn.GRUCell(10, 20)
    >>> recurrent = Recurrent(cell, truncation=Truncation.chunks(4))
    >>> y, h = recurrent(torch.randn(7, 3, 10))
    >>> y.shape, h.shape
    (torch.Size([7, 3, 20]), torch.Size([3, 20]))
    """

    def __init__(
        self,
        cell: torch.nn.Module,
        *,
        truncation: Policy | None = None,
        memory_budget: int | str | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(cell, torch.nn.Module):
            raise TypeError(
                f"{_NAME}: cell must be a torch.nn.Module, called as (x, state) and "
                f"returning (y, state); got {cell!r}"
            )
        self.cell = cell
        self.truncation = truncation
        self.memory_budget = memory_budget
        self._check_policies()

    def forward(
        self,
        input: Tensor,
        state: Any = None,
        *,
        lengths: Tensor | None = None,
        resets: Tensor | None = None,
    ) -> tuple[Tensor, Any]:
        """Run the cell over a sequence.

        Args:
            input: (time, batch, ...), of any dtype that the cell takes. time >= 1.
            state: before the first step, nested as the cell has it, leaves
                (batch, ...); None takes what the cell's `initial_state(batch)` returns.
            lengths: (batch,) int64, at least 1: the steps of each row, in any order.
                What lies past a row's length never enters the cell, its outputs there
                are 0 and its final state is that at its length. None: all rows have
                all steps.
            resets: (time, batch) bool: True zeroes all leaves of the row's state before
                that step, and no error passes it.

        Returns:
            Outputs (time, batch, ...), and the final state, nested as the cell's.

        Raises:
            ValueError, TypeError, RuntimeError: an argument does not fit, or the cell
                breaks its contract.
        """
        batch, leaves, nest = self._arranged(input, state, lengths, resets)
        y, end = self._run(batch, leaves, nest)
        if batch.order is not None:
            back = batch.order.argsort()
            end = tuple(leaf.index_select(0, back) for leaf in end)
        return batch.outputs(y), nest.state(end)

    def _arranged(
        self,
        input: Tensor,
        state: Any,
        lengths: Tensor | None,
        resets: Tensor | None,
    ) -> tuple[Arrangement, Leaves, Nest]:
        """The batch in the loop's order and the state before it."""
        self._check_policies()
        if not isinstance(input, Tensor) or input.dim() < 2:
            given = (
                f"shape {tuple(input.shape)}"
                if isinstance(input, Tensor)
                else type(input).__name__
            )
            raise ValueError(
                f"{_NAME}: input must be a tensor (time, batch, ...); got {given}"
            )
        if input.shape[0] == 0:
            raise RuntimeError(
                f"{_NAME}: input has no time steps, shape {tuple(input.shape)}; it "
                "needs at least one"
            )
        batch = arrange(
            input, lengths, resets, batched=True, batch_first=False, name=_NAME
        )
        leaves, nest = self._initial(state, input)
        return batch, tuple(_ordered(batch, leaf) for leaf in leaves), nest

    def extra_repr(self) -> str:
        """The truncation."""
        return "" if self.truncation is None else f"truncation={self.truncation}"

    def _policy(self) -> Policy:
        return Truncation.full() if self.truncation is None else self.truncation

    def _run(
        self, batch: Arrangement, initial: Leaves, nest: Nest
    ) -> tuple[Tensor, Leaves]:
        budget = (
            None if self.memory_budget is None else Budget.parse(self.memory_budget)
        )
        known = engine_cell(self.cell)
        if known is not None:
            return _run_in_engine(
                known, self.cell, batch, initial, nest, self._policy(), budget
            )

        def loop(
            x: Tensor, initial: Leaves, _: Masks, truncation: Truncation, rows: Rows
        ) -> tuple[Tensor, Leaves]:
            steps = None
            if budget is not None and torch.is_grad_enabled():
                steps = own_cells.segment_steps(
                    self.cell, nest, x, initial, truncation, rows, budget
                )
            return own_cells.run(
                self.cell, nest, x, initial, truncation, rows, segment_steps=steps
            )

        return pieces.run(loop, self._policy(), batch.rows, initial, batch.x, axis=0)

    def _initial(self, state: Any, input: Tensor) -> tuple[Leaves, Nest]:
        batch = input.shape[1]
        given = "state"
        if state is None:
            state = self._initial_of_cell(input)
            given = f"{type(self.cell).__name__}.initial_state({batch})"
        leaves, nest = flatten(state, f"{_NAME}: {given}")
        for leaf in leaves:
            if leaf.dim() < 1 or leaf.shape[0] != batch:
                raise ValueError(
                    f"{_NAME}: every tensor of {given} must have the batch as its "
                    f"first axis, here ({batch}, ...); got shape {tuple(leaf.shape)}"
                )
            if leaf.device != input.device:
                raise ValueError(
                    f"{_NAME}: {given} is on {leaf.device} and input on "
                    f"{input.device}; move one of them"
                )
        return leaves, nest

    def _initial_of_cell(self, input: Tensor) -> Any:
        cell, batch = self.cell, input.shape[1]
        if isinstance(cell, HasInitialState):
            return cell.initial_state(batch)
        if isinstance(cell, torch.nn.RNNCellBase) and engine_cell(cell) is not None:
            h = cell.weight_hh.new_zeros(batch, cell.hidden_size)
            return (h, h) if isinstance(cell, torch.nn.LSTMCell) else h
        raise TypeError(
            f"{_NAME}: state is None and {type(cell).__name__} has no method "
            "initial_state(batch); give the state before the first step, as in "
            "recurrent(input, state), or the cell such a method"
        )

    def _check_policies(self) -> None:
        checks.require_policies(self.truncation, self.memory_budget, _NAME)
        is_cell = isinstance(self.cell, torch.nn.RNNCellBase)
        if is_cell and engine_cell(self.cell) is None:
            raise TypeError(
                f"{_NAME}: cell must return (y, state), and a subclass of torch.nn's "
                f"cells, {type(self.cell).__name__}, returns its state alone; give the "
                "torch.nn cell itself, or wrap yours in a module returning (h, state)"
            )


def engine_cell(cell: torch.nn.Module) -> Cell | None:
    """The engine's cell for one of torch.nn's, of exactly that type."""
    if type(cell) is torch.nn.LSTMCell:
        return LSTMCell()
    if type(cell) is torch.nn.GRUCell:
        return GRUCell()
    if type(cell) is torch.nn.RNNCell:
        return TanhCell() if cell.nonlinearity == "tanh" else ReLUCell()
    return None


def _run_in_engine(
    known: Cell,
    cell: Any,
    batch: Arrangement,
    initial: Leaves,
    nest: Nest,
    policy: Policy,
    budget: Budget | None,
) -> tuple[Tensor, Leaves]:
    """One of torch.nn's cells, as a layer of the engine."""
    x, weight = batch.x, cell.weight_hh
    width, parts = cell.hidden_size, known.state_parts
    name = type(cell).__name__
    expected = Nest() if parts == 1 else Nest(tuple, (Nest(), Nest()))
    if nest != expected:
        raise TypeError(
            f"{_NAME}: the state of {name} must be nested as {expected}; got {nest}"
        )
    axes = 2 if batch.rows.is_ragged else 3
    if not x.is_floating_point() or x.dim() != axes or x.shape[-1] != cell.input_size:
        given = f"of shape {(batch.rows.time, batch.rows.batch, *x.shape[axes - 1 :])}"
        raise ValueError(
            f"{_NAME}: input for {name} must be floats (time, batch, "
            f"{cell.input_size}); got {x.dtype} {given}"
        )
    for leaf in initial:
        if leaf.dim() != 2 or leaf.shape[1] != width or not leaf.is_floating_point():
            raise ValueError(
                f"{_NAME}: the state of {name} must be floats (batch, {width}); got "
                f"{leaf.dtype} of shape {tuple(leaf.shape)}"
            )
    layer = Layer(known, cell.weight_ih, weight, cell.bias_ih, cell.bias_hh)
    state = tuple(leaf.to(weight.dtype).unsqueeze(0) for leaf in initial)
    x = x.to(weight.dtype)

    loop = partial(autograd.eager(autograd.run), [layer], budget=budget)
    # Under autocast the recurrence stays in the precision of its weights.
    with torch.autocast(x.device.type, enabled=False):
        y, final = pieces.run(loop, policy, batch.rows, state, x, axis=1)
    return y, tuple(part.squeeze(0) for part in final)


def _ordered(batch: Arrangement, leaf: Tensor) -> Tensor:
    return leaf if batch.order is None else leaf.index_select(0, batch.order)
