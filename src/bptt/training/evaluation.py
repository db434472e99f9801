"""The loss of a language model on batches, each token counted once."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from bptt.language_model import LanguageModel
from bptt.text import IGNORE, Batch


@dataclass(frozen=True)
class Measurement:
    """A loss in nats per token, over `tokens` predictions."""

    loss: float
    tokens: int

    @property
    def perplexity(self) -> float:
        """`exp(loss)`; infinite where that overflows."""
        return math.exp(self.loss) if self.loss < 700 else math.inf

    @property
    def bits_per_token(self) -> float:
        """The loss in bits."""
        return self.loss / math.log(2)


@torch.no_grad()
def evaluate(model: LanguageModel, batches: Iterable[Batch]) -> Measurement:
    """The mean cross-entropy a token, in evaluation mode, state carried as batches say.

    Args:
        model: left in the mode it was in.
        batches: of ids and targets; `IGNORE` targets do not count.

    Raises:
        ValueError: there is no token to predict.
    """
    device = model.decoder.weight.device
    was_training = model.training
    model.eval()
    total, tokens, state = 0.0, 0, None
    try:
        for batch in batches:
            logits, state = model(
                torch.from_numpy(batch.inputs).to(device),
                None if batch.starts else state,
            )
            targets = torch.from_numpy(batch.targets).to(device)
            total += summed_loss(logits, targets).item()
            tokens += batch.tokens
    finally:
        model.train(was_training)
    if not tokens:
        raise ValueError("there is no token to predict; give a longer text")
    return Measurement(loss=total / tokens, tokens=tokens)


def summed_loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Cross-entropy in nats, summed over the targets that are not `IGNORE`."""
    return F.cross_entropy(
        logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORE, reduction="sum"
    )
