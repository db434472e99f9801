"""The contract between a cell and the loop through time.

A layer's input enters every gate linearly, so the loop forms `gx = U x + b` for all
steps in one product; the cell turns `gx_t` and the state before the step into the state
after it, and keeps what its derivative needs. Going back, the cell turns the error of
the state after a step into `delta`, the error of `gx_t`, and the error of the state
before. Everything is written out of place, so autograd can differentiate it again.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor

from bptt.truncation import Lag

State = tuple[Tensor, ...]  # (h,) or (h, c), each (batch, state)
Kept = tuple[Tensor, ...]


@dataclass(frozen=True)
class StepTape:
    """A tape at some steps: every tensor is (steps, batch, ...)."""

    before: State
    after: State
    kept: Kept


class Tape(NamedTuple):
    """What a layer remembers of its way forward.

    Attributes:
        states: each (time + 1, batch, state); entry 0 is the initial state, entry
            `t + 1` the state after step `t`.
        kept: each (time, batch, ...), what the cell's derivative needs besides.
        cut: (time, batch) bool, where the state was zeroed before the step; or None.
    """

    states: State
    kept: Kept
    cut: Tensor | None = None

    def at(self, lag: Lag) -> StepTape:
        """The steps at which the passes stand, as views where nothing was zeroed."""
        return StepTape(
            before=zeroed(tuple(s[lag.steps] for s in self.states), self.cut_at(lag)),
            after=tuple(s[lag.after] for s in self.states),
            kept=tuple(k[lag.steps] for k in self.kept),
        )

    def cut_at(self, lag: Lag) -> Tensor | None:
        """`cut` of the steps at which the passes stand."""
        return None if self.cut is None else self.cut[lag.steps]

    def whole(self) -> StepTape:
        """All steps at once, as views where nothing was zeroed."""
        return StepTape(
            before=zeroed(tuple(s[:-1] for s in self.states), self.cut),
            after=tuple(s[1:] for s in self.states),
            kept=self.kept,
        )


def zeroed(state: State, cut: Tensor | None) -> State:
    """The state, or its error, with the rows that are cut off set to zero."""
    if cut is None:
        return state
    return tuple(part.masked_fill(cut.unsqueeze(-1), 0) for part in state)


class Cell(ABC):
    """One step of a layer and its derivative; weights are arguments, not members."""

    gates: int  # rows of U and W, in units of the state's width
    state_parts: int  # 1 for h, 2 for (h, c)

    def input_bias(self, b_ih: Tensor | None, b_hh: Tensor | None) -> Tensor | None:
        """The bias that joins `U x`: both, unless the cell adds `b_hh` itself."""
        return None if b_ih is None or b_hh is None else b_ih + b_hh

    @abstractmethod
    def step(
        self,
        gx: Float[Tensor, "batch gates"],
        state: State,
        W: Float[Tensor, "gates state"],
        b_hh: Float[Tensor, " gates"] | None,
    ) -> tuple[State, Kept]:
        """`gx_t, s_{t-1} -> s_t`, and what the derivative needs of this step."""

    @abstractmethod
    def vjp_state(
        self, ds: State, tape: StepTape, W: Float[Tensor, "gates state"]
    ) -> tuple[Float[Tensor, "passes batch gates"], State]:
        """`dE/ds_t -> delta_t = dE/dgx_t, dE/ds_{t-1}`, for any number of passes.

        Linear in `ds`: so the parameter gradients of all passes follow from the sum of
        their deltas.
        """

    def hidden_delta(
        self, delta: Float[Tensor, "time batch gates"], tape: StepTape
    ) -> Float[Tensor, "time batch gates"]:
        """`delta` as it reaches `W s_{t-1} + b_hh`; most cells add that to `gx`."""
        return delta
