"""What RNN, GRU and LSTM share: from torch.nn's call to the loop, and back."""

from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from bptt import autograd
from bptt.cells import Cell
from bptt.cells.base import State
from bptt.kernels import native
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
                sequence; or a PackedSequence of floats.
            hx: the state before the first step, (layers x directions, batch,
                hidden_size), a pair of them for LSTM; zeros when None.
            lengths: not supported yet.
            resets: not supported yet.

        Returns:
            Outputs (time, batch, directions x hidden_size) and the final state, shaped
            as `hx`. Differentiable in `input`, `hx` and the weights, with the errors
            going as far back as `truncation` says.

        Raises:
            ValueError, TypeError, RuntimeError: an argument of a wrong shape or dtype.
            NotImplementedError: what is not supported under this truncation.
        """
        self._check_policies()
        if lengths is not None or resets is not None:
            given = "lengths" if lengths is not None else "resets"
            raise NotImplementedError(
                f"{type(self).__name__}: `{given}` is not supported yet; pad the batch "
                "and leave the padded outputs out of the loss, or run rows one by one"
            )
        if not isinstance(input, Tensor | PackedSequence):
            raise TypeError(
                f"{type(self).__name__}: input must be a tensor or a PackedSequence; "
                f"got {type(input).__name__}. If torch.fx is tracing, let its Tracer "
                "take this module as a leaf, in is_leaf_module"
            )
        if torch._C._is_tracing():  # which cannot see what the core computes
            return super().forward(self._traceable(input), hx)
        if isinstance(input, PackedSequence) or self.proj_size:
            what = "proj_size" if self.proj_size else "a PackedSequence"
            if not self._policy().is_full:
                raise NotImplementedError(
                    f"{type(self).__name__}: {what} runs in torch.nn, which knows full "
                    f"BPTT only, and truncation is {self.truncation}; set it to None"
                )
            return super().forward(input, hx)
        if not torch.is_grad_enabled() and isinstance(input, Tensor):
            done = self._infer(input, hx)
            if done is not None:
                return done
        device_type = input.device.type
        if not (
            torch.amp.is_autocast_available(device_type)
            and torch.is_autocast_enabled(device_type)
        ):
            return self._run(input, hx)
        # Under autocast the recurrence stays in the precision of its weights.
        if input.is_floating_point():
            input = input.to(self._weight.dtype)
        with torch.autocast(device_type, enabled=False):
            return self._run(input, hx)

    def __prepare_scriptable__(self) -> Any:
        """Called by torch.jit.script, whose own error would name a line in here."""
        name = type(self).__name__
        raise NotImplementedError(
            f"torch.jit.script cannot compile bptt's {name}. Use torch.jit.trace, or "
            f"script the model built with torch.nn.{name} and load this state_dict"
        )

    def _traceable(self, input: Tensor | PackedSequence) -> Tensor | PackedSequence:
        """What torch.nn's forward takes, for torch.jit.trace to record."""
        if not self._policy().is_full:
            raise NotImplementedError(
                f"{type(self).__name__}: torch.jit.trace records torch.nn's forward, "
                f"which knows full BPTT only, and truncation is {self.truncation}; "
                "set it to None, which changes no output"
            )
        if isinstance(input, Tensor) and not input.is_floating_point():
            return F.one_hot(input, self.input_size).to(self._weight.dtype)
        return input

    def extra_repr(self) -> str:
        """torch.nn's, with the truncation."""
        text = super().extra_repr()
        return text if self.truncation is None else f"{text}, {self.truncation}"

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
    def _run(self, input: Tensor, hx: Any) -> Any:
        batched = self._check_input(input)
        x = input if batched else input.unsqueeze(1)
        if batched and self.batch_first:
            x = x.transpose(0, 1)
        initial = self._initial(x, hx, batched=batched)
        masks = self._dropout_masks(x)
        if self.bidirectional:
            y, final = self._run_both_directions(x, initial, masks)
        else:
            layers = [self._layer(at) for at in range(self.num_layers)]
            y, final = autograd.run(layers, x, initial, masks, self._policy())
        parts = list(final)
        if not batched:
            y, parts = y.squeeze(1), [part.squeeze(1) for part in parts]
        elif self.batch_first:
            y = y.transpose(0, 1)
        return y, (parts[0] if len(parts) == 1 else tuple(parts))

    def _run_both_directions(
        self, x: Tensor, initial: State, masks: list[Tensor]
    ) -> tuple[Tensor, State]:
        """Layer by layer, each direction along its own time."""
        final: list[State] = []
        for at in range(self.num_layers):
            halves = []
            for direction in (0, 1):
                row = 2 * at + direction
                y, state = autograd.run(
                    [self._layer(at, "_reverse" if direction else "")],
                    x.flip(0) if direction else x,
                    tuple(part[row : row + 1] for part in initial),
                    [],
                    self._policy(),
                )
                halves.append(y.flip(0) if direction else y)
                final.append(state)
            x = torch.cat(halves, dim=-1)
            if masks and at < len(masks):
                x = x * masks[at]
        return x, tuple(torch.cat(parts) for parts in zip(*final, strict=True))

    @property
    def _weight(self) -> Tensor:
        return cast(Tensor, self.weight_hh_l0)

    def _policy(self) -> Truncation:
        return Truncation.full() if self.truncation is None else self.truncation

    def _layer(self, at: int, suffix: str = "") -> Layer:
        # By attribute and not from _flat_weights, which functional_call and
        # parametrizations do not replace.
        def weight(kind: str) -> Any:
            return getattr(self, f"{kind}_l{at}{suffix}")

        return Layer(
            cell=self._cell(),
            U=weight("weight_ih"),
            W=weight("weight_hh"),
            b_ih=weight("bias_ih") if self.bias else None,
            b_hh=weight("bias_hh") if self.bias else None,
        )

    def _dropout_masks(self, x: Tensor) -> list[Tensor]:
        """Drawn as torch.nn draws them, so a seed means the same masks there."""
        if not (self.training and self.dropout) or self.num_layers == 1:
            return []
        width = self.hidden_size * (2 if self.bidirectional else 1)
        weight = self._weight
        masks = []
        for _ in range(self.num_layers - 1):
            mask = weight.new_empty(*x.shape[:2], width)
            if self.dropout == 1:
                masks.append(mask.zero_())
            else:
                keep = 1 - self.dropout
                masks.append(mask.bernoulli_(keep).div_(keep))
        return masks

    def _initial(self, x: Tensor, hx: Any, *, batched: bool) -> State:
        """The initial state, parts (layers x directions, batch, state)."""
        weight = self._weight
        parts = self._cell().state_parts
        count = self.num_layers * (2 if self.bidirectional else 1)
        shape = (count, x.shape[1], self.hidden_size)
        if hx is None:
            return tuple(weight.new_zeros(shape) for _ in range(parts))
        given = list(self._split_state(hx, parts))
        names = ("h_0", "c_0") if parts == 2 else ("hx",)
        for name, part in zip(names, given, strict=True):
            expected = shape if batched else (shape[0], shape[2])
            if tuple(part.shape) != expected:
                raise RuntimeError(
                    f"{type(self).__name__}: {name} must have shape {expected} "
                    f"(layers x directions{', batch' if batched else ''}, "
                    f"hidden_size); got {tuple(part.shape)}"
                )
            if not part.is_floating_point():
                raise TypeError(
                    f"{type(self).__name__}: {name} must hold floats, as the "
                    f"weights do ({weight.dtype}); got {part.dtype}"
                )
        if not batched:
            given = [part.unsqueeze(1) for part in given]
        return tuple(part.to(weight.dtype) for part in given)

    def _split_state(self, hx: Any, parts: int) -> tuple[Tensor, ...]:
        if parts == 1 and isinstance(hx, Tensor):
            return (hx,)
        if (
            parts == 2
            and isinstance(hx, tuple | list)
            and len(hx) == 2
            and all(isinstance(part, Tensor) for part in hx)
        ):
            return tuple(hx)
        wanted = "a tuple (h_0, c_0) of tensors" if parts == 2 else "a tensor h_0"
        raise TypeError(
            f"{type(self).__name__}: hx must be {wanted}; got {type(hx).__name__}"
        )

    def _check_input(self, input: Tensor) -> bool:
        """Refuse what cannot be run; whether the input has a batch axis."""
        name = type(self).__name__
        shape = tuple(input.shape)
        if input.is_floating_point():
            if input.dim() not in (2, 3):
                raise ValueError(
                    f"{name}: input must be (time, batch, input_size), or "
                    f"(time, input_size) for one sequence; got shape {shape}"
                )
            batched = input.dim() == 3
            if input.dtype != self._weight.dtype:
                raise ValueError(
                    f"{name}: input has dtype {input.dtype} and the weights "
                    f"{self._weight.dtype}; convert one of them, as with "
                    f"input.to({self._weight.dtype})"
                )
            if shape[-1] != self.input_size:
                raise RuntimeError(
                    f"{name}: input.size(-1) must be input_size = {self.input_size}; "
                    f"got shape {shape}"
                )
        elif input.dtype == torch.int64:
            if input.dim() not in (1, 2):
                raise ValueError(
                    f"{name}: integer input is ids (time, batch), or (time,) for one "
                    f"sequence; got shape {shape}"
                )
            batched = input.dim() == 2
            # Inside torch.func's transforms values cannot be asked for.
            seen = input.numel() > 0 and not autograd.inside_transform()
            if seen and not 0 <= input.min() <= input.max() < self.input_size:
                raise ValueError(
                    f"{name}: ids in input must be at least 0 and below input_size = "
                    f"{self.input_size}; got {int(input.min())} to {int(input.max())}"
                )
        else:
            raise TypeError(
                f"{name}: input must be floats (time, batch, input_size) or int64 ids "
                f"(time, batch); got dtype {input.dtype}"
            )
        if shape[1 if batched and self.batch_first else 0] == 0:
            raise RuntimeError(
                f"{name}: input has no time steps, shape {shape}; it needs at least one"
            )
        return batched

    def _check_policies(self) -> None:
        name = type(self).__name__
        if self.truncation is not None and not isinstance(self.truncation, Truncation):
            raise TypeError(
                f"{name}: truncation must be a bptt.Truncation or None; got "
                f"{self.truncation!r}"
            )
        if self.memory_budget is not None:
            raise NotImplementedError(
                f"{name}: memory_budget is not supported yet; got "
                f"{self.memory_budget!r}, leave it None"
            )
        cuts = self.truncation is not None and not self.truncation.is_full
        if cuts and self.bidirectional and self.num_layers > 1:
            raise ValueError(
                f"{name}: a bidirectional stack of {self.num_layers} layers cannot be "
                f"truncated ({self.truncation}): a chunk of one direction meets all of "
                "the other in the layer above; use one layer, or truncation=None"
            )
