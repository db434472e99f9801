"""What RNN, GRU and LSTM share: from torch.nn's call to the loop, and back."""

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from bptt import autograd, pieces
from bptt.cells import Cell
from bptt.cells.base import State
from bptt.kernels import ready
from bptt.masks import PackedMask
from bptt.memory import Budget
from bptt.modules import checks, dropout, projected
from bptt.modules.arrangement import Arrangement, arrange, arrange_packed, ragged
from bptt.modules.budget import between_loops
from bptt.modules.projected import ProjectedLayer
from bptt.modules.tracing import traceable
from bptt.random_truncation import Policy
from bptt.rows import Rows
from bptt.through_time import Layer
from bptt.truncation import Truncation

if TYPE_CHECKING:
    _Base = torch.nn.RNNBase
else:  # at run time a mixin, so that torch.nn.LSTM itself is the base class
    _Base = object

_FULL = Truncation.full()


class ThroughTime(_Base):
    """What the three modules share: from torch.nn's call to layers, and back."""

    truncation: Policy | None = None
    memory_budget: int | str | None = None

    def _configure(
        self, truncation: Policy | None, memory_budget: int | str | None
    ) -> None:
        self.truncation = truncation
        self.memory_budget = memory_budget
        self._check_policies()

    def _cell(self) -> Cell:
        raise NotImplementedError

    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: Any = None,
        *,
        lengths: Tensor | None = None,
        resets: Tensor | None = None,
    ) -> Any:
        """Run the layers over a sequence, as torch.nn's module of this name does.

        Args:
            input: (time, batch, input_size) floats; (time, batch) int64 ids, which
                stand for one-hot vectors and are looked up, never materialised; with
                `batch_first` the first two axes swap; without the batch axis, one
                sequence; or a PackedSequence, sorted or not.
            hx: the state before the first step, (layers x directions, batch,
                hidden_size), a pair of them for LSTM; zeros when None.
            lengths: (batch,) int64, at least 1: the steps of each row, in any order.
                What lies past a row's length is not read, its outputs there are 0 and
                its final state is that at its length. None: all rows have all steps.
            resets: bool, (time, batch), or as `input` has those axes: True zeroes the
                row's state before that step, and no error passes it. For a
                PackedSequence (time, batch), rows as before packing.

        Returns:
            Outputs (time, batch, directions x hidden_size), or as the input has these
            axes, packed if it is; and the final state, shaped as `hx`. Differentiable
            in `input`, `hx` and the weights, with the errors going as far back as
            `truncation` says.

        Raises:
            ValueError, TypeError, RuntimeError: an argument of a wrong shape or dtype.
        """
        self._check_policies()
        if not isinstance(input, Tensor | PackedSequence):
            raise TypeError(
                f"{type(self).__name__}: input must be a tensor or a PackedSequence; "
                f"got {type(input).__name__}. If torch.fx is tracing, let its Tracer "
                "take this module as a leaf, in is_leaf_module"
            )
        plain = lengths is None and resets is None
        if torch._C._is_tracing():  # which cannot see what the core computes
            input = traceable(self, self.truncation, input, plain=plain)
            return super().forward(input, hx)
        if self.proj_size:
            is_ids = isinstance(input, Tensor) and not input.is_floating_point()
            keeps_all = self.memory_budget is None or not torch.is_grad_enabled()
            if self._policy().is_full and keeps_all and plain and not is_ids:
                return super().forward(input, hx)
        elif resets is None and isinstance(input, Tensor):
            done = self._run_ready(input, hx, lengths)
            if done is not None:
                return done
        x = input.data if isinstance(input, PackedSequence) else input
        device_type = x.device.type
        if not (
            torch.amp.is_autocast_available(device_type)
            and torch.is_autocast_enabled(device_type)
        ):
            return self._run(input, hx, lengths, resets)
        # Under autocast the recurrence stays in the precision of its weights.
        if x.is_floating_point():
            input = input.to(self._weight.dtype)
        with torch.autocast(device_type, enabled=False):
            return self._run(input, hx, lengths, resets)

    def __prepare_scriptable__(self) -> Any:
        """Called by torch.jit.script, whose own error would name a line in here."""
        name = type(self).__name__
        raise NotImplementedError(
            f"torch.jit.script cannot compile bptt's {name}. Use torch.jit.trace, or "
            f"script the model built with torch.nn.{name} and load this state_dict"
        )

    def extra_repr(self) -> str:
        """torch.nn's, with the truncation and the budget."""
        text = super().extra_repr()
        if self.truncation is not None:
            text = f"{text}, {self.truncation}"
        if self.memory_budget is not None:
            text = f"{text}, memory_budget={self.memory_budget!r}"
        return text

    @autograd.eager
    def _run_ready(self, input: Tensor, hx: Any, lengths: Tensor | None) -> Any:
        """The shortest way to the outputs, or None where the long one must be gone.

        In a step of a small network what surrounds the core counts: generating a token
        may take 10 us.
        Checks nothing that `_run` would refuse, but for the lengths: it leaves that to
        `_run`.
        """
        is_float = input.is_floating_point()
        is_batch = input.dim() == (3 if is_float else 2)
        if (
            self.bidirectional
            or (self.batch_first and is_batch and lengths is None)
            or (lengths is not None and not (is_batch and is_float and input.is_cpu))
            or (self.training and self.dropout)
            or torch.is_autocast_enabled("cpu")
            or (
                torch.is_grad_enabled()
                and not (is_batch and self.memory_budget is None)
            )
        ):
            return None
        parameters = self._parameters
        weights = []
        for names in self._all_weights:
            layer: list[Tensor] = [
                w for w in map(parameters.get, names) if w is not None
            ]
            if len(layer) < len(names):  # parametrized: an attribute, not a parameter
                return None
            weights.append(layer)
        if hx is not None:
            if (self.mode == "LSTM") == isinstance(hx, Tensor):
                return None
            hx = (hx,) if isinstance(hx, Tensor) else hx
            if not isinstance(hx, tuple | list):
                return None
            if not all(isinstance(part, Tensor) for part in hx):
                return None
        rows = inverse = None
        if lengths is not None:
            first, second = input.shape[:2]
            time, batch = (second, first) if self.batch_first else (first, second)
            if not time * batch:
                return None
            rows = ragged(lengths, time, batch, self.batch_first, type(self).__name__)
            if rows is None and self.batch_first:
                return None
        if rows is not None:
            assert rows.padding is not None
            order, inverse = rows.padding.order, rows.padding.inverse
            if hx is not None:
                if any(not p.is_cpu or p.shape[1:-1] != (rows.batch,) for p in hx):
                    return None
                hx = [part.index_select(1, order) for part in hx]
        cell = self._cell()
        time = input.shape[0] if rows is None else rows.time
        truncation = pieces.fixed(self._policy(), time)
        if truncation is None:
            return None
        prepared = ready.prepare(cell, weights, input, hx, rows)
        if prepared is None:
            return None
        try:
            y, state = autograd.run_ready(prepared, cell, weights, input, truncation)
        except (ValueError, IndexError):  # of sizes and ids
            return None
        if inverse is not None:
            state = tuple([part.index_select(1, inverse) for part in state])
        return y, (state[0] if len(state) == 1 else state)

    @autograd.eager
    def _run(
        self,
        input: Tensor | PackedSequence,
        hx: Any,
        lengths: Tensor | None,
        resets: Tensor | None,
    ) -> Any:
        packs = (
            (self.bidirectional and self.training and self.dropout)
            or self.proj_size
            or self.memory_budget is not None
            or not isinstance(self._policy(), Truncation)
        )
        batch = self._arrange(input, lengths, resets, in_place=not packs)
        initial = self._initial(batch, hx)
        masks = dropout.masks(
            self, batch.rows.steps, packed=self.memory_budget is not None
        )
        if self.bidirectional:
            y, final = self._run_both_directions(batch, initial, masks)
        else:
            names = [f"l{at}" for at in range(self.num_layers)]
            budget = between_loops(self, self.memory_budget, batch)
            y, final = self._run_layers(
                names, batch.x, initial, masks, batch.rows, budget
            )
        parts = tuple(batch.state(part) for part in final)
        return batch.outputs(y), (parts[0] if len(parts) == 1 else parts)

    def _run_both_directions(
        self,
        batch: Arrangement,
        initial: State,
        masks: Sequence[Tensor | PackedMask],
    ) -> tuple[Tensor, State]:
        """Layer by layer, each direction along its own time."""
        x, rows = batch.x, batch.rows
        both = (rows, rows.flipped())
        budget = between_loops(self, self.memory_budget, batch)
        final: list[State] = []
        for at in range(self.num_layers):
            halves = []
            for direction in (0, 1):
                row = 2 * at + direction
                y, state = self._run_layers(
                    [f"l{at}_reverse" if direction else f"l{at}"],
                    _flipped(x, rows) if direction else x,
                    tuple(part[row : row + 1] for part in initial),
                    [],
                    both[direction],
                    budget,
                )
                halves.append(_flipped(y, rows) if direction else y)
                final.append(state)
            x = torch.cat(halves, dim=-1)
            if masks and at < len(masks):
                mask = masks[at]
                assert isinstance(mask, Tensor)
                x = x * mask
        return x, tuple(torch.cat(parts) for parts in zip(*final, strict=True))

    @property
    def _weight(self) -> Tensor:
        return cast(Tensor, self.weight_hh_l0)

    @property
    def _output_size(self) -> int:
        """The width of h, in one direction."""
        return self.proj_size or self.hidden_size

    def _policy(self) -> Policy:
        return _FULL if self.truncation is None else self.truncation

    def _run_layers(
        self,
        names: list[str],
        x: Tensor,
        initial: State,
        masks: Sequence[Tensor | PackedMask],
        rows: Rows,
        budget: Budget | None,
    ) -> tuple[Tensor, State]:
        """A stack of layers in one direction, by the ends of their weights' names."""
        engine: Any = projected.run if self.proj_size else autograd.run
        cell = self._cell()
        layers = [
            ProjectedLayer(*self._weights(end), getattr(self, f"weight_hr_{end}"))
            if self.proj_size
            else Layer(cell, *self._weights(end))
            for end in names
        ]

        loop = partial(engine, layers, budget=budget)
        return pieces.run(loop, self._policy(), rows, initial, x, masks, axis=1)

    def _weights(self, end: str) -> tuple[Any, Any, Any, Any]:
        # By attribute and not from _flat_weights, which functional_call and
        # parametrizations do not replace.
        return (
            getattr(self, f"weight_ih_{end}"),
            getattr(self, f"weight_hh_{end}"),
            getattr(self, f"bias_ih_{end}") if self.bias else None,
            getattr(self, f"bias_hh_{end}") if self.bias else None,
        )

    def _initial(self, batch: Arrangement, hx: Any) -> State:
        """The initial state, parts (layers x directions, batch, state)."""
        weight = self._weight
        count = self.num_layers * (2 if self.bidirectional else 1)
        widths = (self._output_size, self.hidden_size)[: self._cell().state_parts]
        if hx is None:
            size = batch.rows.batch
            return tuple(weight.new_zeros(count, size, width) for width in widths)
        given = checks.state_parts(
            hx,
            count=count,
            batch=batch.rows.batch if batch.batched else None,
            widths=widths,
            dtype=weight.dtype,
            name=type(self).__name__,
        )
        return tuple(batch.of_state(part.to(weight.dtype)) for part in given)

    def _arrange(
        self,
        input: Tensor | PackedSequence,
        lengths: Tensor | None,
        resets: Tensor | None,
        *,
        in_place: bool,
    ) -> Arrangement:
        """The batch in the loop's order; refuses what cannot be run.

        With `in_place`, floats of ragged rows may stay where the caller has them.
        """
        name = type(self).__name__
        if isinstance(input, PackedSequence):
            self._check_sequence(input.data, "input.data", ("steps",))
            batch = arrange_packed(
                input, lengths, resets, batch_first=self.batch_first, name=name
            )
        else:
            self._check_sequence(input, "input", ("time", "batch"))
            batched = input.dim() == (3 if input.is_floating_point() else 2)
            if input.shape[1 if batched and self.batch_first else 0] == 0:
                raise RuntimeError(
                    f"{name}: input has no time steps, shape {tuple(input.shape)}; it "
                    "needs at least one"
                )
            batch = arrange(
                input,
                lengths,
                resets,
                batched=batched,
                batch_first=self.batch_first,
                name=name,
                in_place=in_place,
            )
        checks.require_ids(batch.x, self.input_size, name)
        return batch

    def _check_sequence(self, x: Tensor, given: str, axes: tuple[str, ...]) -> None:
        checks.require_sequence(
            x,
            given,
            axes,
            width=self.input_size,
            dtype=self._weight.dtype,
            name=type(self).__name__,
        )

    def _check_policies(self) -> None:
        name = type(self).__name__
        checks.require_policies(self.truncation, self.memory_budget, name)
        cuts = self.truncation is not None and not self.truncation.is_full
        if cuts and self.bidirectional and self.num_layers > 1:
            raise ValueError(
                f"{name}: a bidirectional stack of {self.num_layers} layers cannot be "
                f"truncated ({self.truncation}): a chunk of one direction meets all of "
                "the other in the layer above; use one layer, or truncation=None"
            )


def _flipped(x: Tensor, rows: Rows) -> Tensor:
    """Each row's steps in the opposite order, but for floats with a padding.

    Those stay where they are, and are read and written from each row's end.
    """
    is_padded = rows.padding is not None and x.is_floating_point()
    return x if is_padded else rows.flip(x)
