"""`--k2 auto`: the window of a run, chosen again and again from the measured bias.

Reference: Aicher, Foti & Fox, "Adaptively truncating backpropagation through time to
control gradient bias", 2019, algorithm 1. They estimate the bias of longer windows from
how fast the gradient decays; here it is measured against a gradient that goes back over
at least `k2_max` steps.
"""

import math
from dataclasses import dataclass, replace
from typing import final

from bptt.errors import InputError
from bptt.language_model import LanguageModel
from bptt.text import Batch, Stream, StreamBatches
from bptt.training.config import TrainingConfig
from bptt.training.flow import flow_of_rows
from bptt.training.run_folder import Progress
from bptt.training.window_plan import Search
from bptt.truncation import Truncation


@dataclass(frozen=True)
class Choice:
    """What one measurement says.

    Attributes:
        k2: the smallest that keeps to the tolerance; the largest there is, where none
            does; None where the full gradient is zero or not finite, so that there is
            no bias to measure.
        biases: of every k2 that was tried, in order: up to the chosen one.
    """

    k2: int | None
    biases: dict[int, float]

    @property
    def bias(self) -> float | None:
        """That of the chosen k2."""
        return None if self.k2 is None else self.biases[self.k2]


def choose(
    model: LanguageModel, text: Stream, search: Search, seed: int, step: int
) -> Choice:
    """Measure on parts of a text that are a function of seed and step.

    The model runs as in evaluation, without dropout, and is left as it was.
    """
    rows = search.rows(text.tokens, seed, step)
    was_training = model.training
    model.eval()
    try:
        flow = flow_of_rows(model, text.ids, rows, uncounted=search.steps // 2)
    finally:
        model.train(was_training)
    size = flow.gradient_norm
    if not size or not math.isfinite(size):
        return Choice(None, {})
    biases: dict[int, float] = {}
    for k2 in search.candidates:
        biases[k2] = flow.bias(Truncation(search.k1, k2))
        if biases[k2] <= search.tolerance:
            break
    # Candidates ascend: the last one tried is the first that keeps, or the largest.
    return Choice(k2, biases)


@final
class ChosenWindow:
    """The k2 of every update of a run, and the segments that follow from it.

    What was chosen takes effect from the next update on. A shorter window does at once:
    the state handed on is the one before its context. A longer one begins where a state
    was kept, so it grows by one window an update until it is reached; an epoch begins
    in the same way.

    Args:
        config: with `k2="auto"`.
        text: to train on and to measure on.
        batches: of the run.

    Raises:
        InputError: the text is too short for a measurement.
    """

    def __init__(
        self, config: TrainingConfig, text: Stream, batches: StreamBatches
    ) -> None:
        search = config.search
        assert search is not None
        if text.tokens < search.steps:
            raise InputError(
                f"--k2 auto measures over {search.steps} steps, and the text allows "
                f"{max(text.tokens, 0)} predictions; give a smaller --k2-max than "
                f"{search.k2_max}, or more text"
            )
        self.search = search
        self._config, self._text, self._batches = config, text, batches

    def choose(self, model: LanguageModel, progress: Progress) -> Choice:
        """The choice that this update begins with, noted in `progress`."""
        choice = choose(
            model, self._text, self.search, self._config.seed, progress.step
        )
        if choice.k2 is not None:
            progress.chosen_k2 = choice.k2
        return choice

    def batch(self, progress: Progress) -> Batch:
        """That of the update, with the state to hand on for the next one's k2."""
        context = self._config.context(self.k2(progress))
        return replace(self._batches, context=context).batch_at(
            progress.step, self._config.context(self.next_k2(progress))
        )

    def k2(self, progress: Progress) -> int:
        """In effect in this update, whose segment begins where a state was kept."""
        return progress.k2 or self.search.k1

    def next_k2(self, progress: Progress) -> int:
        """In effect in the next update."""
        assert self._config.window is not None
        now = self.k2(progress)
        return min(progress.chosen_k2 or now, now + self._config.window)
