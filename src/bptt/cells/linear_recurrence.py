"""An elementwise linear recurrence: the state decays, the input joins."""

import torch
from torch import Tensor

from bptt.cells.base import Kept, State, StepTape
from bptt.cells.contract import Deltas, DifferentiableCell


class LinearRecurrence(DifferentiableCell):
    """`s_t = a * s_{t-1} + U x_t + b`, `a = exp(-exp(nu))` between 0 and 1.

    References: Martin & Cundy, "Parallelizing linear recurrent neural nets over
    sequence length", 2018; the decay as of Orvieto et al., "Resurrecting
    recurrent neural networks for long sequences", 2023, section 3.3, with real `a`.

    Args:
        input_size: width of the input.
        hidden_size: width of the state, which is the output.
        bias: whether there is `b`.
        least: decays are drawn so that `a` is uniform between `least` and `most`.
        most: see `least`.

    Raises:
        ValueError: not `0 < least <= most < 1`.

    >>> cell = LinearRecurrence(3, 4)
    >>> y, s = cell(torch.randn(2, 3), cell.initial_state(2))
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        *,
        least: float = 0.5,
        most: float = 0.99,
    ) -> None:
        super().__init__()
        if not 0 < least <= most < 1:
            raise ValueError(
                "least and most must be decays, 0 < least <= most < 1; got "
                f"{least} and {most}"
            )
        self.input = torch.nn.Linear(input_size, hidden_size, bias)
        a = torch.empty(hidden_size).uniform_(least, most)
        self.nu = torch.nn.Parameter(a.log().neg().log())

    def initial_state(self, batch: int) -> Tensor:
        """Zeros."""
        return self.nu.new_zeros(batch, len(self.nu))

    def project(self, x: Tensor) -> Tensor:
        """`U x_t + b`."""
        gx: Tensor = self.input(x)
        return gx

    def weights(self) -> tuple[Tensor, ...]:
        """`a`."""
        return (torch.exp(-torch.exp(self.nu)),)

    def advance(
        self, gx: Tensor, state: State, weights: tuple[Tensor, ...]
    ) -> tuple[State, Kept]:
        """`s_t = a * s_{t-1} + gx_t`."""
        return (torch.addcmul(gx, weights[0], state[0]),), ()

    def vjp_state(
        self, ds: State, tape: StepTape, weights: tuple[Tensor, ...]
    ) -> tuple[Deltas, State]:
        """`delta_t = ds_t`, `ds_{t-1} = a * ds_t`."""
        return (ds[0],), (ds[0] * weights[0],)

    def vjp_weights(
        self, deltas: Deltas, tape: StepTape, weights: tuple[Tensor, ...]
    ) -> tuple[Tensor, ...]:
        """`da = sum_t delta_t * s_{t-1}`."""
        return ((deltas[0] * tape.before[0]).sum(0),)
