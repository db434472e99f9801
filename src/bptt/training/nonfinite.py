"""A loss or gradient that is no finite number: it never reaches the weights.

What is done about it is a policy of the run:

- "raise": the run ends; its snapshots and its best model stay.
- "skip": the update is left out, up to `MOST_SKIPS` in a row.
- "rollback": the run goes back to its newest snapshot and on with half the learning
  rate, up to `MOST_ROLLBACKS` times without reaching another snapshot.

Each is a function of data, seed and step, so a resumed run takes the same course.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

if TYPE_CHECKING:
    from bptt.training.config import TrainingConfig

OnNonfinite = Literal["raise", "skip", "rollback"]
MOST_SKIPS = 10
MOST_ROLLBACKS = 5
BACKOFF = 0.5  # of the learning rate, at every rollback


class Diverged(FloatingPointError):  # noqa: N818 - what happened, in the error's words
    """A loss, gradient, weight or measurement is not finite."""


def all_finite(tensors: Iterable[Tensor]) -> bool:
    """Whether they hold no NaN and no infinity."""
    return all(bool(torch.isfinite(t).all()) for t in tensors)


def diverged(what: str, step: int, config: "TrainingConfig") -> Diverged:
    """The error, with what may help."""
    return Diverged(
        f"step {step}: {what}: the run diverged; try a smaller --lr than {config.lr:g}"
        + ("" if config.clip else " or --clip 1")
    )
