"""What RNN, GRU and LSTM share: from torch.nn's call to the loop, and back."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from bptt import autograd
from bptt.cells import Cell
from bptt.cells.base import State
from bptt.kernels import native
from bptt.memory import Budget
from bptt.modules import checks, projected
from bptt.modules.arrangement import Arrangement, arrange, arrange_packed
from bptt.modules.projected import ProjectedLayer
from bptt.recompute import PackedMask
from bptt.rows import Rows
from bptt.through_time import Layer
from bptt.truncation import Truncation

if TYPE_CHECKING:
    _Base = torch.nn.RNNBase
else:  # at run time a mixin, so that torch.nn.LSTM itself is the base class
    _Base = object


class ThroughTime(_Base):
    """What the three modules share: from torch.nn's call to layers, and back."""

    truncation: Truncation | None = None
    memory_budget: int | str | None = None

    def _configure(
        self, truncation: Truncation | None, memory_budget: int | str | None
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
            NotImplementedError: a `memory_budget` with `proj_size`.
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
            return super().forward(self._traceable(input, plain=plain), hx)
        if self.proj_size:
            if self.memory_budget is not None:
                raise NotImplementedError(
                    f"{type(self).__name__}: proj_size keeps all; memory_budget is "
                    f"{self.memory_budget!r}, leave it None"
                )
            is_ids = isinstance(input, Tensor) and not input.is_floating_point()
            if self._policy().is_full and plain and not is_ids:
                return super().forward(input, hx)
        elif plain and not torch.is_grad_enabled() and isinstance(input, Tensor):
            done = self._infer(input, hx)
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

    def _traceable(
        self, input: Tensor | PackedSequence, *, plain: bool
    ) -> Tensor | PackedSequence:
        """What torch.nn's forward takes, for torch.jit.trace to record."""
        if not self._policy().is_full:
            raise NotImplementedError(
                f"{type(self).__name__}: torch.jit.trace records torch.nn's forward, "
                f"which knows full BPTT only, and truncation is {self.truncation}; "
                "set it to None, which changes no output"
            )
        if not plain:
            raise NotImplementedError(
                f"{type(self).__name__}: torch.jit.trace records torch.nn's forward, "
                "which knows no lengths and no resets; trace without them"
            )
        if isinstance(input, Tensor) and not input.is_floating_point():
            return F.one_hot(input, self.input_size).to(self._weight.dtype)
        return input

    def extra_repr(self) -> str:
        """torch.nn's, with the truncation and the budget."""
        text = super().extra_repr()
        if self.truncation is not None:
            text = f"{text}, {self.truncation}"
        if self.memory_budget is not None:
            text = f"{text}, memory_budget={self.memory_budget!r}"
        return text

    @autograd.eager
    def _infer(self, input: Tensor, hx: Any) -> Any:
        """The shortest way to the outputs, or None where the long one must be gone.

        Generating a token is one step of a small network, so what surrounds the step
        counts. Checks nothing that `_run` would refuse: it leaves that to `_run`.
        """
        parameters = self._parameters
        if (
            self.bidirectional
            or (
                self.batch_first
                and input.dim() == (3 if input.is_floating_point() else 2)
            )
            or (self.training and self.dropout)
            or torch.is_autocast_enabled("cpu")
        ):
            return None
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
        done = native.infer(self._cell(), weights, input, hx)
        if done is None:
            return None
        y, state = done
        return y, (state[0] if len(state) == 1 else state)

    @autograd.eager
    def _run(
        self,
        input: Tensor | PackedSequence,
        hx: Any,
        lengths: Tensor | None,
        resets: Tensor | None,
    ) -> Any:
        batch = self._arrange(input, lengths, resets)
        initial = self._initial(batch, hx)
        masks = self._dropout_masks(batch.rows)
        if self.bidirectional:
            y, final = self._run_both_directions(batch, initial, masks)
        else:
            names = [f"l{at}" for at in range(self.num_layers)]
            budget = self._budget(batch)
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
        budget = self._budget(batch)
        final: list[State] = []
        for at in range(self.num_layers):
            halves = []
            for direction in (0, 1):
                row = 2 * at + direction
                y, state = self._run_layers(
                    [f"l{at}_reverse" if direction else f"l{at}"],
                    rows.flip(x) if direction else x,
                    tuple(part[row : row + 1] for part in initial),
                    [],
                    both[direction],
                    budget,
                )
                halves.append(rows.flip(y) if direction else y)
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

    def _policy(self) -> Truncation:
        return Truncation.full() if self.truncation is None else self.truncation

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
        policy = self._policy()
        if self.proj_size:
            plain = [mask for mask in masks if isinstance(mask, Tensor)]
            stack = [
                ProjectedLayer(*self._weights(end), getattr(self, f"weight_hr_{end}"))
                for end in names
            ]
            return projected.run(stack, x, initial, plain, policy, rows)
        cell = self._cell()
        layers = [Layer(cell, *self._weights(end)) for end in names]
        return autograd.run(layers, x, initial, masks, policy, rows, budget)

    def _weights(self, end: str) -> tuple[Any, Any, Any, Any]:
        # By attribute and not from _flat_weights, which functional_call and
        # parametrizations do not replace.
        return (
            getattr(self, f"weight_ih_{end}"),
            getattr(self, f"weight_hh_{end}"),
            getattr(self, f"bias_ih_{end}") if self.bias else None,
            getattr(self, f"bias_hh_{end}") if self.bias else None,
        )

    def _budget(self, batch: Arrangement) -> Budget | None:
        """What may be kept, with what is kept outside of the loops."""
        if self.memory_budget is None:
            return None
        budget = Budget.parse(self.memory_budget)
        width = self._weight.element_size()
        x = batch.x
        steps = x.numel() // (x.shape[-1] if x.is_floating_point() else 1)
        input_bytes = x.numel() * x.element_size()
        output_bytes = 2 * steps * self.hidden_size * width
        held = 0
        if batch.places is not None:  # packed here: input, errors, and where they stand
            held += input_bytes + output_bytes + 16 * batch.places.size
        if not self.bidirectional:
            return budget.shared(1, held, 0)
        # The reversed input; between layers the outputs, as they are and reversed,
        # their masks, and on the way back their errors.
        held += input_bytes + (8 * steps if batch.rows.is_ragged else 0)
        between = 5 + (self.training and self.dropout > 0)
        held += (self.num_layers - 1) * between * output_bytes
        widest = max(self.input_size if x.is_floating_point() else 0, self.hidden_size)
        if self.num_layers > 1:
            widest = max(widest, 2 * self.hidden_size)
        return budget.shared(2 * self.num_layers, held, widest)

    def _dropout_masks(self, rows: Rows) -> Sequence[Tensor | PackedMask]:
        """Drawn as torch.nn draws them, so a seed means the same masks there.

        Within a memory budget they are kept as bits.
        """
        if not (self.training and self.dropout) or self.num_layers == 1:
            return []
        width = self._output_size * (2 if self.bidirectional else 1)
        weight = self._weight
        steps = rows.steps
        masks: list[Tensor | PackedMask] = []
        is_packed = (
            self.memory_budget is not None
            and not self.bidirectional
            and torch.is_grad_enabled()
            and not autograd.inside_transform()
        )
        for _ in range(self.num_layers - 1):
            if is_packed:
                masks.append(
                    PackedMask.drawn((*steps, width), 1 - self.dropout, weight)
                )
                continue
            mask = weight.new_empty(*steps, width)
            if self.dropout == 1:
                masks.append(mask.zero_())
            else:
                keep = 1 - self.dropout
                masks.append(mask.bernoulli_(keep).div_(keep))
        return masks

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
    ) -> Arrangement:
        """The batch in the loop's order; refuses what cannot be run."""
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
                in_place=not (
                    self.bidirectional
                    or self.proj_size
                    or self.memory_budget is not None
                ),
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
        if self.truncation is not None and not isinstance(self.truncation, Truncation):
            raise TypeError(
                f"{name}: truncation must be a bptt.Truncation or None; got "
                f"{self.truncation!r}"
            )
        if self.memory_budget is not None:
            Budget.parse(self.memory_budget)
        cuts = self.truncation is not None and not self.truncation.is_full
        if cuts and self.bidirectional and self.num_layers > 1:
            raise ValueError(
                f"{name}: a bidirectional stack of {self.num_layers} layers cannot be "
                f"truncated ({self.truncation}): a chunk of one direction meets all of "
                "the other in the layer above; use one layer, or truncation=None"
            )
