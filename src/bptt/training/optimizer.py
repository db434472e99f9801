"""The optimisers and their learning rates; the rates are functions of the progress."""

import math
from collections.abc import Iterable
from typing import Any

import torch

from bptt.training.config import TrainingConfig

WARM_UP = 0.03  # share of the run
FINAL = 0.02  # of the largest rate, at the end of the cosine


def make_optimizer(
    model: torch.nn.Module, config: TrainingConfig
) -> torch.optim.Optimizer:
    """AdamW (Loshchilov & Hutter, 2019), weights decayed and biases not; or SGD."""
    parameters = list(model.parameters())
    if config.optimizer == "sgd":
        return torch.optim.SGD(parameters, lr=config.lr)
    groups: list[dict[str, Any]] = [
        {"params": [p for p in parameters if p.dim() > 1]},
        {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        groups,
        lr=config.lr,
        betas=(0.9, 0.99),
        weight_decay=config.weight_decay,
        fused=True,
    )


def learning_rate(config: TrainingConfig, progress: float, scale: float) -> float:
    """The rate at `progress`, from 0 at the start of the run to 1 at its end.

    AdamW warms up linearly and falls by a cosine (Loshchilov & Hutter, "SGDR", 2017,
    equation 5, one period); SGD keeps its rate times `scale`, which halves when the
    validation loss rises, as in the tutorial.
    """
    if config.optimizer == "sgd":
        return config.lr * scale
    warm = min(1.0, progress / WARM_UP)
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    return config.lr * warm * (FINAL + (1 - FINAL) * cosine)


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Let the next step use `rate`."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def gradient_norm(parameters: Iterable[torch.nn.Parameter], clip: float) -> float:
    """Clip the gradients to the norm `clip`, unless it is 0; their norm before that.

    Reference: Pascanu, Mikolov & Bengio, "On the difficulty of training recurrent
    neural networks", 2013, section 3.2.
    """
    parameters = list(parameters)
    gradients = [p.grad for p in parameters if p.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients)
    total = norm.item()
    # Most gradients are within the limit: those need no pass that multiplies by 1.
    if 0 < clip < total:
        torch.nn.utils.clip_grads_with_norm_(parameters, clip, norm)
    return total
