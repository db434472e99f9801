"""The tensors of a snapshot: weights, what the optimiser keeps, the carried state."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from bptt.language_model import LanguageModel


def packed(
    model: LanguageModel, optimizer: torch.optim.Optimizer, state: Any
) -> dict[str, Tensor]:
    """All of them by name, on the CPU."""
    tensors = {
        f"model.{name}": tensor
        for name, tensor in model.state_dict().items()
        if not (model.config.tied and name == "decoder.weight")
    }
    for index, kept in optimizer.state_dict()["state"].items():
        for name, value in kept.items():
            tensors[f"optimizer.{index}.{name}"] = value
    for index, part in enumerate(_parts(state)):
        tensors[f"state.{index}"] = part
    return {
        name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()
    }


def restore(
    model: LanguageModel, optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]
) -> Any:
    """Put weights and optimiser back; the carried state.

    Raises:
        RuntimeError, ValueError, KeyError: they are those of another model.
    """
    weights = {
        name.removeprefix("model."): tensor
        for name, tensor in tensors.items()
        if name.startswith("model.")
    }
    model.load_state_dict(weights, strict=not model.config.tied)
    saved = optimizer.state_dict()
    states: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith("optimizer."):
            _, index, key = name.split(".", 2)
            states.setdefault(int(index), {})[key] = tensor
    optimizer.load_state_dict({**saved, "state": states})
    device = model.decoder.weight.device
    parts = [
        tensors[name].to(device) for name in sorted(tensors) if "state." in name[:6]
    ]
    if not parts:
        return None
    return parts[0] if len(parts) == 1 else tuple(parts)


def _parts(state: Any) -> Sequence[Tensor]:
    if state is None:
        return ()
    return (state,) if isinstance(state, Tensor) else state
