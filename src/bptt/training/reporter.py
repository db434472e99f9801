"""Who is told how a run goes."""

from typing import Protocol, runtime_checkable

from bptt.training.evaluation import Measurement
from bptt.training.window_choice import Choice


@runtime_checkable
class Reporter(Protocol):
    """Who is told how it goes."""

    def on_step(self, share: float, loss: float, tokens_per_s: float) -> None:
        """After an update: the share of the run done, its loss, the recent rate."""

    def on_evaluation(self, step: int, loss: float, measured: Measurement) -> None:
        """After a measurement: the mean training loss since the last, and it."""

    def on_choice(self, step: int, before: int, choice: Choice) -> None:
        """After a choice of k2, with what was chosen before."""
