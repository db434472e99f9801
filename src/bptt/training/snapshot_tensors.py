"""The tensors of a snapshot: weights, what the optimiser keeps, the carried state."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from bptt.language_model import LanguageModel
from bptt.tensor_header import Kind

# What each optimiser keeps for a parameter: like it, but for the one number `step`.
_KEPT: dict[type[torch.optim.Optimizer], tuple[str, ...]] = {
    torch.optim.SGD: (),
    torch.optim.AdamW: ("step", "exp_avg", "exp_avg_sq"),
}
_ONE_NUMBER = Kind(torch.float32, ())


def packed(
    model: LanguageModel, optimizer: torch.optim.Optimizer, state: Any
) -> dict[str, Tensor]:
    """All of them by name, on the CPU."""
    tensors = {f"model.{name}": tensor for name, tensor in _weights(model).items()}
    for index, kept in optimizer.state_dict()["state"].items():
        for name, value in kept.items():
            tensors[f"optimizer.{index}.{name}"] = value
    for index, part in enumerate(_parts(state)):
        tensors[f"state.{index}"] = part
    return {
        name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()
    }


def check(
    model: LanguageModel,
    optimizer: torch.optim.Optimizer,
    streams: int | None,
    kinds: Mapping[str, Kind],
) -> None:
    """Refuse the tensors of another run than this one.

    Args:
        model: that they are for.
        optimizer: of the model.
        streams: rows of the carried state; None if no batch goes on with it.
        kinds: of the tensors, by name.

    Raises:
        ValueError: which tensor is missing, too many, or of another kind.
    """
    expected = {
        f"model.{name}": Kind(tensor.dtype, tuple(tensor.shape))
        for name, tensor in _weights(model).items()
    }
    if any(name.startswith("optimizer.") for name in kinds):
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        for index, parameter in enumerate(parameters):
            for name in _KEPT[type(optimizer)]:
                like_it = Kind(parameter.dtype, tuple(parameter.shape))
                kind = _ONE_NUMBER if name == "step" else like_it
                expected[f"optimizer.{index}.{name}"] = kind
    if (state := kinds.get("state.0")) is not None:
        rows = streams if streams is not None else (*state.shape, 0, 0)[1]
        shape = (model.config.layers, rows, model.config.hidden)
        for index in range(2 if model.config.cell == "lstm" else 1):
            expected[f"state.{index}"] = Kind(model.decoder.weight.dtype, shape)
    for name in sorted(kinds.keys() | expected.keys()):
        found = kinds.get(name)
        if found != expected.get(name):
            what = f"{found.dtype} {found.shape}"[:80] if found else "missing"
            raise ValueError(
                f"the snapshot does not fit this model: {name[:60]!a} is {what}"
            )


def restore(
    model: LanguageModel, optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]
) -> Any:
    """Put weights and optimiser back from tensors that `check` lets pass.

    Returns:
        The carried state.
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
        tensors[name].to(device) for name in ("state.0", "state.1") if name in tensors
    ]
    if not parts:
        return None
    return parts[0] if len(parts) == 1 else tuple(parts)


def _weights(model: LanguageModel) -> dict[str, Tensor]:
    return {
        name: tensor
        for name, tensor in model.state_dict().items()
        if not (model.config.tied and name == "decoder.weight")
    }


def _parts(state: Any) -> Sequence[Tensor]:
    if state is None:
        return ()
    return (state,) if isinstance(state, Tensor) else state
