"""A recurrent module that reads a long sequence window by window.

The state is carried from each window to the next, cut from its graph. Where the
module's truncation reaches across windows, the last steps before a window run again
with it, so that its errors can go back into them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, cast, final, runtime_checkable

import torch
from jaxtyping import Bool
from torch import Tensor

from bptt.random_truncation import Policy, RandomTruncation
from bptt.truncation import Truncation


@runtime_checkable
class _Truncated(Protocol):
    truncation: Policy | None


@dataclass(frozen=True)
class _Context:
    """The newest steps before a window, detached; they run again with it."""

    input: Tensor  # in the module's own layout, as is `resets`
    resets: Tensor | None
    before: Any  # the state before the first of them
    truncation: Policy  # under which they were kept


@final
class Stateful(torch.nn.Module):
    """Carries a module's state from one window of a sequence to the next.

    Every call reads the next window and returns the outputs of its steps. Their errors
    go back as the module's `truncation` says, across windows: where `k2 > k1`, the
    newest `k2 - k1` steps before the window, in whole chunks of `k1`, run again from
    the detached state that was kept before them, under the weights as they are now.
    With `None` or `Truncation.full()` errors go back to the beginning of the window,
    and so they do on average with a `RandomTruncation`.
    Nothing is kept of a graph, so each window's loss can be differentiated by itself,
    and the weights may change in between. The states before those steps are as the
    weights of their time made them.

    Without gradients (`torch.no_grad`) the state alone is carried: nothing runs again,
    and errors of later windows stop at the first window after those.

    Steps that run again have the inputs that they were given, detached: layers below
    this one, as an embedding, learn from the steps of the window alone. Dropout is
    drawn anew. Where steps run again, a call costs them and one more forward pass.

    Args:
        module: bptt.RNN, GRU or LSTM, not bidirectional; or a module with a
            `truncation`, called as `module(input, state)` and, where rows are reset,
            with `resets=`, that returns outputs and the state, a tensor or nested
            tuples of tensors (batch, ...), and has inputs (time, batch, ...).

    Raises:
        TypeError: `module` has no truncation.
        ValueError: it is bidirectional.

    >>> import bptt
    >>> stateful = Stateful(bptt.GRU(3, 5, truncation=Truncation(k1=4, k2=16)))
    >>> optimizer = torch.optim.SGD(stateful.parameters(), lr=0.1)
    >>> stream = torch.randn(64, 2, 3)  # (time, batch, input)
    >>> for window in stream.split(8):
    ...     optimizer.zero_grad()
    ...     stateful(window).square().mean().backward()
    ...     optimizer.step()
    >>> stateful.state.shape
    torch.Size([1, 2, 5])
    >>> stateful.reset()  # another stream begins
    """

    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__()
        if not _has_truncation(module):
            raise TypeError(
                "module must have a truncation, as bptt.RNN, GRU and LSTM have; got a "
                f"{type(module).__name__}. bptt.accelerate makes bptt's of torch.nn's"
            )
        if isinstance(module, torch.nn.RNNBase) and module.bidirectional:
            raise ValueError(
                "module must not be bidirectional: its second direction begins at the "
                "end of the sequence, so that it has no state to carry to a window; "
                "give it whole sequences"
            )
        self.module = module
        self._state: Any = None
        self._context: _Context | None = None
        self._zeroed: Tensor | None = None  # rows to reset between context and window

    @property
    def state(self) -> Any:
        """The state after the last step, as the module gives it; None for zeros.

        Set it to go on from a state that was read before, which is copied; None is
        `reset()`. Errors of the next window go back no further than its beginning.
        """
        return self._state

    @state.setter
    def state(self, state: Any) -> None:
        self.reset()
        if state is not None:
            self._state = _map(_kept, state)

    def reset(self, rows: Bool[Tensor, " batch"] | None = None) -> None:
        """Begin anew from zeros, with the next window.

        Args:
            rows: (batch,) bool, the rows that begin anew, while the others go on; None
                for all of them, after which the batch may have another size. Errors
                do not go back over a reset.

        Raises:
            ValueError: `rows` has another shape or dtype.
        """
        if rows is not None and self._state is not None:
            self._check_rows("rows", rows, (self._batch(),))
            rows = rows.to(_first(self._state).device)
            self._state = _map(lambda part: self._zero(part, rows), self._state)
            if self._context is not None:
                before = self._zeroed
                self._zeroed = rows.clone() if before is None else before | rows
        elif rows is None:
            self._state = self._context = self._zeroed = None

    def forward(self, window: Tensor, resets: Tensor | None = None) -> Tensor:
        """Read the next window.

        Args:
            window: the module's input: (time, batch, ...), or (batch, time, ...) where
                the module is `batch_first`. Where the truncation reaches across
                windows (k2 > k1), time must be a multiple of k1, so that chunks of
                outputs do not straddle windows.
            resets: (time, batch) bool, or (batch, time); True where a row's state is
                zeroed before that step.

        Returns:
            The module's outputs for the window.

        Raises:
            ValueError: the window or `resets` has a wrong shape, or another batch size
                than the state that is carried.
        """
        given: Any = self.module.truncation
        truncation = Truncation.full() if given is None else given
        reach = _reach(truncation) if torch.is_grad_enabled() else 0
        self._check_window(window, resets, truncation if reach else None)
        context = self._context
        if context is not None and (not reach or context.truncation != truncation):
            context = None
        before, input = self._state, window
        if context is not None:
            before = context.before
            resets = self._joined_resets(context, window, resets)
            input = torch.cat((context.input, window), self._time)
        y, after = self._run(input, before, resets)
        if context is not None:
            steps = window.shape[self._time]
            y = y.narrow(self._time, y.shape[self._time] - steps, steps)
        after = _map(_kept, after)
        self._context = self._next_context(input, resets, before, truncation, reach)
        self._state, self._zeroed = after, None
        return cast(Tensor, y)

    def _next_context(
        self,
        input: Tensor,
        resets: Tensor | None,
        before: Any,
        truncation: Policy,
        reach: int,
    ) -> _Context | None:
        """The newest `reach` steps and the state before them."""
        if not reach:
            return None
        gone = max(0, input.shape[self._time] - reach)
        if gone:
            passed = None if resets is None else resets.narrow(self._time, 0, gone)
            with torch.no_grad():
                _, before = self._run(input.narrow(self._time, 0, gone), before, passed)
            before = _map(_kept, before)
        kept = input.shape[self._time] - gone

        def newest(t: Tensor) -> Tensor:
            return _kept(t.narrow(self._time, gone, kept))

        return _Context(
            newest(input),
            None if resets is None else newest(resets),
            before,
            truncation,
        )

    def _joined_resets(
        self, context: _Context, window: Tensor, resets: Tensor | None
    ) -> Tensor | None:
        """Those of the context and the window, with the rows zeroed between them."""
        if context.resets is None and resets is None and self._zeroed is None:
            return None

        def or_none(resets: Tensor | None, like: Tensor) -> Tensor:
            if resets is not None:
                return resets
            return torch.zeros(like.shape[:2], dtype=torch.bool, device=like.device)

        inside = or_none(resets, window)
        if self._zeroed is not None:
            inside = inside.clone()
            inside.select(self._time, 0).logical_or_(self._zeroed)
        return torch.cat((or_none(context.resets, context.input), inside), self._time)

    def _run(self, input: Tensor, state: Any, resets: Tensor | None) -> Any:
        if resets is None:  # so that a module without resets may be wrapped
            return self.module(input, state)
        return self.module(input, state, resets=resets)

    @property
    def _layered(self) -> bool:
        """Whether the state's parts are (layers, batch, ...), not (batch, ...)."""
        return isinstance(self.module, torch.nn.RNNBase)

    @property
    def _time(self) -> int:
        """The axis of time."""
        module = self.module
        return int(isinstance(module, torch.nn.RNNBase) and module.batch_first)

    def _batch(self) -> int:
        return int(_first(self._state).shape[1 if self._layered else 0])

    def _zero(self, part: Tensor, rows: Tensor) -> Tensor:
        shape = [1] * part.dim()
        shape[1 if self._layered else 0] = -1
        return part.masked_fill(rows.view(shape), 0)

    def _check_window(
        self, window: Tensor, resets: Tensor | None, aligned: Policy | None
    ) -> None:
        shape = tuple(window.shape)
        least = 3 if self._layered and window.is_floating_point() else 2
        if window.dim() < least:
            raise ValueError(
                f"window must have an axis of time and one of batch; got shape "
                f"{shape}; one sequence is a batch of one"
            )
        time, batch = shape[self._time], shape[1 - self._time]
        if self._state is not None and batch != self._batch():
            raise ValueError(
                f"window has {batch} rows, shape {shape}, and the state carried here "
                f"has {self._batch()}; call reset() before other sequences begin, or "
                "leave out a last batch that is smaller"
            )
        if isinstance(aligned, Truncation) and aligned.k1 and time % aligned.k1:
            raise ValueError(
                f"window has {time} steps, which must be a multiple of k1 = "
                f"{aligned.k1}, since {aligned} reaches across windows; try "
                f"{max(1, time // aligned.k1) * aligned.k1} steps"
            )
        if resets is not None:
            self._check_rows("resets", resets, shape[:2])

    def _check_rows(self, name: str, rows: Tensor, shape: tuple[int, ...]) -> None:
        if rows.dtype != torch.bool or tuple(rows.shape) != shape:
            raise ValueError(
                f"{name} must be bool of shape {shape}; got {rows.dtype} of shape "
                f"{tuple(rows.shape)}"
            )


def _has_truncation(module: object) -> bool:
    return isinstance(module, _Truncated)


def _reach(truncation: Policy) -> int:
    """How many steps errors go back before a window's first chunk, in whole chunks."""
    if isinstance(truncation, RandomTruncation):
        return 0
    if truncation.k1 is None or truncation.k2 is None:
        return 0
    return -(-max(0, truncation.k2 - truncation.k1) // truncation.k1) * truncation.k1


def _kept(t: Tensor) -> Tensor:
    """A copy that keeps alive neither a graph nor a larger storage."""
    return t.detach().clone()


def _map(function: Callable[[Tensor], Tensor], state: Any) -> Any:
    """A state of the same structure."""
    if isinstance(state, Tensor):
        return function(state)
    return tuple(_map(function, part) for part in state)


def _first(state: Any) -> Tensor:
    while not isinstance(state, Tensor):
        state = state[0]
    return state
