"""What is seen while a command runs: a bar in a terminal, plain lines elsewhere."""

import math
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, final

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)

from bptt.training import Choice, Measurement
from bptt.training.run_folder import Progress as RunProgress
from bptt.training.window_plan import Search

_BAR_EVERY_S = 0.1


def console() -> Console:
    """Where messages go."""
    return Console(stderr=True, highlight=False, soft_wrap=True)


def bar(to: Console, *columns: Any) -> Progress:
    """A bar that is there only where a terminal is."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        TaskProgressColumn(),
        *columns,
        TimeRemainingColumn(compact=True),
        console=to,
        transient=True,
        disable=not to.is_terminal,
    )


@final
class TrainingProgress:
    """Reports a training run: a bar, and a line for each measurement."""

    def __init__(self, to: Console) -> None:
        self._console = to
        self._bar = bar(
            to,
            TextColumn("loss {task.fields[loss]}"),
            TextColumn("{task.fields[rate]} tokens/s"),
        )
        self._task = self._bar.add_task("training", total=1.0, loss="-", rate="-")
        self._shown_s = 0.0
        self._share = 0.0

    def __enter__(self) -> "TrainingProgress":
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        where: TracebackType | None,
    ) -> None:
        self._bar.stop()

    def on_step(self, share: float, loss: float, tokens_per_s: float) -> None:
        """Move the bar."""
        self._share = share
        now_s = time.monotonic()
        if now_s - self._shown_s >= _BAR_EVERY_S:
            self._shown_s = now_s
            self._bar.update(
                self._task,
                completed=share,
                loss=f"{loss:.3f}",
                rate=f"{tokens_per_s:,.0f}",
            )

    def on_evaluation(self, step: int, loss: float, measured: Measurement) -> None:
        """Print a line."""
        trained = "" if math.isnan(loss) else f"   train loss {loss:.3f}"
        self._console.print(
            f"{self._share:4.0%}   step {step:>6}   validation loss "
            f"{measured.loss:.3f}   perplexity {measured.perplexity:.2f}{trained}"
        )

    def on_choice(self, step: int, before: int, choice: Choice) -> None:
        """Print a line, where it is another one."""
        if choice.k2 is not None and choice.k2 != before:
            self._console.print(
                f"{self._share:4.0%}   step {step:>6}   k2 {before} -> {choice.k2}, "
                f"at a bias of {100 * choice.biases[choice.k2]:.2g} %"
            )


def choices(progress: RunProgress, search: Search, elapsed_s: float) -> str:
    """At the end of a run with --k2 auto: the last choice and what choosing took."""
    if progress.step < search.every:
        return (
            f"k2 stayed at {search.k1}: it is first chosen in update {search.every}, "
            f"and the run had {progress.step}; try a smaller --choose-every."
        )
    last = progress.chosen_k2 or search.k1
    share = progress.choosing_s / max(1e-9, elapsed_s)
    return f"Choosing k2, {last} in the end, took {100 * share:.1f} % of the time."


def tracked(
    to: Console, description: str, total: int
) -> tuple[Progress, Callable[[], None]]:
    """A bar over `total` parts, and what to call after each."""
    progress = bar(to)
    task = progress.add_task(description, total=total)
    return progress, lambda: progress.advance(task)
