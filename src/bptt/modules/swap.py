"""torch.nn's recurrent modules in a finished model become bptt's, where they stand.

Only the class of a module changes, so whatever refers to it or to its weights goes on
doing so: the optimiser and its state, hooks, tied weights, names in a `state_dict`. The
decisions for all modules are made before the first is changed.
"""

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import parametrize

from bptt.modules.base import ThroughTime
from bptt.modules.layers import GRU, LSTM, RNN

_SWAPS: dict[type, type] = {torch.nn.RNN: RNN, torch.nn.GRU: GRU, torch.nn.LSTM: LSTM}
_NAMES = {"RNN", "GRU", "LSTM"}
_DEVICES = {"cpu", "meta"}
_DTYPES = {torch.float32, torch.float64}


@dataclass(frozen=True)
class Accelerated:
    """What `accelerate` did.

    Attributes:
        replaced: The names of the modules that are bptt's now, as in
            `model.named_modules()`; "" is the model itself.
        left: The name of each recurrent module that stays what it was, and why.
    """

    replaced: tuple[str, ...]
    left: Mapping[str, str]


def accelerate(model: torch.nn.Module) -> Accelerated:
    """Make every torch.nn.RNN, GRU and LSTM in a model bptt's, in place.

    The modules, their weights, hooks and names stay the objects that they are; only
    their class changes. So an optimiser made before goes on, and a training script runs
    as before, with the same dropout masks for the same seed and the same numbers up to
    rounding in float32. float32 on the CPU gets faster; float64 does not.

    Afterwards `isinstance(module, torch.nn.LSTM)` holds, `type(module) is
    torch.nn.LSTM` does not: do before what goes by exact type, as
    `quantize_dynamic` and `torch.fx.symbolic_trace` do. A module's `truncation` can be
    set then, as in `model.encoder.truncation = bptt.Truncation.chunks(32)`.

    Left as they are, with the reason: modules with a `forward` of their own, those that
    TorchScript has compiled, those with weights on a GPU or in 16 bits, and those whose
    parametrization gives another weight at each evaluation, as spectral_norm does,
    since torch.nn evaluates it more often than bptt.
    Modules that are bptt's are neither replaced nor left, so a second call does
    nothing. A module under two names is reported under the first. What is not a
    registered submodule, as one in a plain list, is not found.

    Args:
        model: changed in place; it may be a recurrent module itself.

    Returns:
        Which modules are bptt's now, and which are not, with the reason.

    Raises:
        TypeError: `model` is not a module.

    >>> model = torch.nn.Sequential(torch.nn.LSTM(4, 8, num_layers=2))
    >>> optimizer = torch.optim.Adam(model.parameters())
    >>> accelerate(model).replaced
    ('0',)
    >>> type(model[0]).__module__, isinstance(model[0], torch.nn.LSTM)
    ('bptt.modules.layers', True)
    """
    _require_module(model)
    classes: dict[str, tuple[torch.nn.Module, type]] = {}
    left: dict[str, str] = {}
    for name, module in _recurrent(model):
        reason = reason_to_leave(module)
        if reason is None:
            classes[name] = module, class_for(module)
        else:
            left[name] = reason
    for module, new in classes.values():
        module.__class__ = new
    return Accelerated(tuple(classes), MappingProxyType(left))


def _require_module(model: object) -> None:
    if not isinstance(model, torch.nn.Module):
        given = f"a {type(model).__name__}"
        if isinstance(model, type):
            given = f"the class {model.__name__}"
        raise TypeError(
            f"model must be a torch.nn.Module; got {given}. Pass the model itself, and "
            "call accelerate for each of several"
        )


def _recurrent(model: torch.nn.Module) -> Iterator[tuple[str, torch.nn.Module]]:
    """The recurrent modules in a model that are not bptt's."""
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            found = module.original_name in _NAMES
        elif isinstance(module, torch.nn.RNNBase | torch.nn.RNNCellBase):
            found = not isinstance(module, ThroughTime)
        else:  # torch's quantized modules are not derived from those
            cls = type(module)
            found = cls.__name__ in _NAMES and cls.__module__.startswith("torch.ao.nn")
        if found:
            yield name, module


def reason_to_leave(module: torch.nn.Module, *, any_device: bool = False) -> str | None:
    """Why a recurrent module must stay what it is, or None.

    Args:
        module: recurrent, not bptt's.
        any_device: whether weights may lie on any device and be of any dtype.
    """
    cls = type(module)
    if isinstance(module, torch.jit.ScriptModule):
        return (
            "TorchScript has compiled it; accelerate the model before torch.jit.script "
            "or torch.jit.trace"
        )
    if isinstance(module, torch.nn.RNNCellBase):
        return (
            f"it is a {cls.__name__}, which does one step a call, so that the loop is "
            "outside of it; a bptt module takes the whole sequence"
        )
    base = _swapped_base(module)
    if base is None:
        own = "has its own forward" if "forward" in vars(cls) else "may compute another"
        return (
            f"its class {cls.__module__}.{cls.__qualname__} is not torch.nn's own and "
            f"{own}; derive it from bptt's class instead, if that fits"
        )
    if "forward" in vars(module):
        return "its forward was replaced on the module itself; put the method back"
    for name, weight in module.named_parameters():
        if type(weight) not in (Tensor, torch.nn.Parameter):
            return f"{name} is a {type(weight).__name__}, not a plain parameter"
        if any_device:
            continue
        if weight.device.type not in _DEVICES:
            return (
                f"{name} is on {weight.device}, where torch.nn's kernels run faster "
                "and draw dropout in a way of their own; bptt's core runs on the CPU"
            )
        if weight.dtype not in _DTYPES:
            return (
                f"{name} is {weight.dtype}, in which torch.nn rounds at other places, "
                "so that results would change; bptt's core runs in float32"
            )
    if parametrize.is_parametrized(module) and not _is_pure(module.parametrizations):
        return (
            "a parametrization gives another weight at each evaluation, as "
            "spectral_norm does, or cannot be copied to find out; and torch.nn "
            "evaluates it a number of times of its own"
        )
    return None


def _swapped_base(module: torch.nn.Module) -> type | None:
    """torch.nn's class that this is exactly, but for parametrizations."""
    cls = type(module)
    if cls in _SWAPS:
        return cls
    if parametrize.is_parametrized(module):
        # torch puts its properties into a class of their own, above the module's.
        bases = cls.__bases__
        if cls.__name__ == f"Parametrized{bases[0].__name__}" and bases[0] in _SWAPS:
            return bases[0]
    return None


def class_for(module: torch.nn.Module) -> type:
    """The class of bptt for a module; below the parametrizations, if there are some."""
    cls, base = type(module), _swapped_base(module)
    assert base is not None
    swapped = _SWAPS[base]
    if cls is base:
        return swapped
    return type(cls.__name__, (swapped,), dict(vars(cls)))


def _is_pure(parametrizations: Any) -> bool:
    """Whether an evaluation, tried on a copy, changes nothing, nor the next one."""
    try:
        tried = copy.deepcopy(parametrizations).train()
    except (RuntimeError, TypeError):  # as for a generator, which has no copy
        return False
    before = _tensors(tried)
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        drawn = torch.get_rng_state()
        for parametrization in tried.values():
            first, second = parametrization(), parametrization()
            if not (first.is_meta or torch.equal(first, second)):
                return False
        return _tensors(tried) == before and torch.equal(drawn, torch.get_rng_state())


def _tensors(module: torch.nn.Module) -> dict[str, tuple[int, int]]:
    """Which tensors a module holds, and how often each was changed in place."""
    held = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    return {name: (id(tensor), tensor._version) for name, tensor in held.items()}
