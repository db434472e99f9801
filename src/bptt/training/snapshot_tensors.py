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
    _check_kept(optimizer, states)
    optimizer.load_state_dict({**saved, "state": states})
    device = model.decoder.weight.device
    parts = [
        tensors[name].to(device) for name in sorted(tensors) if "state." in name[:6]
    ]
    shape = (model.config.layers, model.config.hidden)
    for part in parts:
        if part.dim() != 3 or (part.shape[0], part.shape[2]) != shape:
            raise ValueError(f"the carried state has the shape {tuple(part.shape)}")
    if not parts:
        return None
    return parts[0] if len(parts) == 1 else tuple(parts)


def _check_kept(
    optimizer: torch.optim.Optimizer, states: dict[int, dict[str, Tensor]]
) -> None:
    """What torch does not: a number, or one for each of the parameter's."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for index, kept in states.items():
        if not 0 <= index < len(parameters):
            raise ValueError(f"the optimiser has no parameter {index}")
        for name, tensor in kept.items():
            if tensor.dim() and tensor.shape != parameters[index].shape:
                raise ValueError(
                    f"optimizer.{index}.{name} has the shape {tuple(tensor.shape)} "
                    f"and its parameter {tuple(parameters[index].shape)}"
                )


def _parts(state: Any) -> Sequence[Tensor]:
    if state is None:
        return ()
    return (state,) if isinstance(state, Tensor) else state
