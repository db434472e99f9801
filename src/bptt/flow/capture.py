"""One run of the user's loss, caught at the recurrent module: inputs and errors.

Everything that the run may change is put back: buffers, random numbers, hooks. No
`.grad` is touched, since the errors are asked for by `torch.autograd.grad`.
"""

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

RandomState = tuple[Tensor, dict[torch.device, Tensor]]


@dataclass(frozen=True)
class Call:
    """One call of a recurrent module, and the errors that came back to it.

    Attributes:
        arguments: positional, as they were given.
        keywords: likewise.
        random: torch's generators as the call found them, for the same dropout masks.
        dy: the error of the outputs, shaped as they are; of a PackedSequence its data.
        dstate: the error of each tensor of the final state, in order.
        loss: the value of the loss.
    """

    arguments: tuple[Any, ...]
    keywords: dict[str, Any]
    random: RandomState
    dy: Tensor
    dstate: tuple[Tensor, ...]
    loss: float


def capture(
    model: torch.nn.Module,
    module: torch.nn.Module,
    name: str,
    loss: Callable[[], Tensor],
) -> Call:
    """Run `loss` once and catch what a module of the model gets and what it earns.

    Args:
        model: whose buffers are put back afterwards.
        module: the recurrent module.
        name: how to call it in an error.
        loss: runs the model, returns the scalar loss.

    Raises:
        TypeError, ValueError: the loss is no scalar tensor, has no graph, or does not
            run the module exactly once, or does not depend on it.
        FloatingPointError: the loss or an error is not finite.
    """
    catcher = _Catcher()
    before = module.register_forward_pre_hook(catcher.before, with_kwargs=True)
    after = module.register_forward_hook(catcher.after, with_kwargs=True, prepend=True)
    with _as_it_was(model):
        try:
            with torch.enable_grad():
                value = loss()
        finally:
            before.remove()
            after.remove()
        _check_loss(value)
        call = catcher.the_call(name)
        outputs = [call.y, *call.state]
        errors = (
            torch.autograd.grad(value, outputs, allow_unused=True)
            if value.requires_grad
            else [None] * len(outputs)
        )
    if not value.requires_grad or all(e is None for e in errors):
        raise ValueError(_no_graph(value, name))
    found = tuple(
        torch.zeros_like(o) if e is None else e.detach()
        for o, e in zip(outputs, errors, strict=True)
    )
    for error in found:
        if not bool(torch.isfinite(error).all()):
            raise FloatingPointError(
                f"the error that reaches the outputs of {name} is not finite, so no "
                "part of it can be told; look for the operation after the module that "
                "gives inf or NaN, with torch.autograd.set_detect_anomaly(True)"
            )
    return Call(
        call.arguments,
        call.keywords,
        call.random,
        found[0],
        found[1:],
        float(value.detach()),
    )


@dataclass
class _Caught:
    """A call on its way: the tensors that the loss was computed from."""

    arguments: tuple[Any, ...]
    keywords: dict[str, Any]
    random: RandomState
    y: Tensor
    state: list[Tensor]


class _Catcher:
    """The two hooks."""

    def __init__(self) -> None:
        self._given: list[tuple[tuple[Any, ...], dict[str, Any], RandomState]] = []
        self._caught: list[_Caught] = []

    def before(
        self, module: torch.nn.Module, arguments: Any, keywords: dict[str, Any]
    ) -> None:
        """Note what the module is given, as it was before anything changes it."""
        given = (_detached(arguments), _detached(keywords), _random_state(module))
        self._given.append(given)

    def after(
        self, module: torch.nn.Module, arguments: Any, keywords: Any, outputs: Any
    ) -> Any:
        """Hand on copies of new leaves.

        So writing into the outputs leaves these be, and no error of one output comes
        round through another, as the final state's would through `y`.
        """
        tensors: list[Tensor] = []

        def handed_on(t: Tensor) -> Tensor:
            if not t.is_floating_point():
                return t
            tensors.append(t.detach().requires_grad_())
            return tensors[-1].clone()

        found = _mapped(outputs, handed_on)
        self._caught.append(_Caught(*self._given[-1], tensors[0], tensors[1:]))
        return found

    def the_call(self, name: str) -> _Caught:
        """The one call."""
        if not self._caught:
            raise ValueError(
                f"loss: it never called {name}; it must run the model, and call the "
                "module itself, not its forward method"
            )
        if len(self._caught) > 1:
            raise ValueError(
                f"loss: it called {name} {len(self._caught)} times, and what is sought "
                "are the steps inside of one call; give the module the whole sequence "
                "in one call, or a loss over one of them"
            )
        return self._caught[0]


def _check_loss(value: object) -> None:
    if not isinstance(value, Tensor) or value.numel() != 1:
        given = (
            f"a tensor of shape {tuple(value.shape)}"
            if isinstance(value, Tensor)
            else type(value).__name__
        )
        raise TypeError(
            f"loss: it must return the scalar loss, a tensor; it returned {given}"
        )
    if not bool(torch.isfinite(value.detach())):
        raise FloatingPointError(
            f"loss: it returned {float(value.detach())}, and so has no gradient"
        )


def _no_graph(value: Tensor, name: str) -> str:
    if not value.requires_grad:
        return (
            "loss: it returned a tensor without a graph, so no error can be sent back; "
            "leave away torch.no_grad(), .detach() and .item() in it"
        )
    return (
        f"loss: it does not depend on what {name} returned; a detach() or no_grad() "
        "may stand between"
    )


@contextmanager
def _as_it_was(model: torch.nn.Module) -> Iterator[None]:
    """Put back buffers, modes and all random numbers."""
    buffers = [(b, b.detach().clone()) for b in model.buffers()]
    modes = [(m, m.training) for m in model.modules()]
    python, numpy = random.getstate(), np.random.get_state()
    torch_random = _random_state(model)
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, value in buffers:
                buffer.copy_(value)
        for module, training in modes:
            module.training = training
        random.setstate(python)
        np.random.set_state(numpy)
        set_random_state(torch_random)


def _random_state(module: torch.nn.Module) -> RandomState:
    devices = {p.device for p in module.parameters() if p.device.type != "cpu"}
    devices = {d for d in devices if d.type != "meta"}
    others = {d: torch.get_device_module(d).get_rng_state(d) for d in devices}
    return torch.get_rng_state(), others


def set_random_state(state: RandomState) -> None:
    """Let torch's generators go on from `state`."""
    torch.set_rng_state(state[0])
    for device, numbers in state[1].items():
        torch.get_device_module(device).set_rng_state(numbers, device)


@contextmanager
def drawing_from(state: RandomState, module: torch.nn.Module) -> Iterator[None]:
    """Draw the numbers that follow `state`, then go on as if nothing was drawn."""
    now = _random_state(module)
    set_random_state(state)
    try:
        yield
    finally:
        set_random_state(now)


def _detached(tree: Any) -> Any:
    return _mapped(tree, lambda t: t.detach().clone())


def _mapped(tree: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """A nest of tuples, lists, dicts and tensors with the tensors replaced."""
    if isinstance(tree, Tensor):
        return function(tree)
    if isinstance(tree, PackedSequence):
        return tree._replace(data=function(tree.data))
    if isinstance(tree, dict):
        return {key: _mapped(value, function) for key, value in tree.items()}
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return type(tree)(*(_mapped(value, function) for value in tree))
    if isinstance(tree, list | tuple):
        return type(tree)(_mapped(value, function) for value in tree)
    return tree
