"""A copy of the module under check, with its input, in one precision.

Everything runs on copies in evaluation mode, so that the module, its gradients and its
mode stay as they are.
"""

import copy
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Score = Callable[[Any], Tensor]  # a module's outputs -> the scalar that is checked


@dataclass(frozen=True)
class Subject:
    """A module's copy and what it is called with.

    Attributes:
        module: the copy, with parameters rounded to float32 first.
        x: the input.
        hx: None, a tensor, or a tuple of tensors.
        tensors: what is differentiated: parameters that require gradients, "input" if
            it is floating, and the parts of hx.
    """

    module: torch.nn.Module
    x: Tensor
    hx: Any
    tensors: dict[str, Tensor]

    @classmethod
    def copied(
        cls, module: torch.nn.Module, x: Tensor, hx: Any, *, double: bool
    ) -> "Subject":
        """Copies that start from the same numbers in float64 and in float32."""
        twin = copy.deepcopy(module).float()
        if double:
            twin.double()
        twin.eval()
        for part in twin.modules():
            if isinstance(part, torch.nn.RNNBase):
                part.dropout = 0.0
                part.train()  # cuDNN goes back in training mode only

        def copied(tensor: Tensor) -> Tensor:
            tensor = tensor.detach().clone()
            if not tensor.is_floating_point():
                return tensor
            tensor = tensor.float().double() if double else tensor.float()
            return tensor.requires_grad_()

        x = copied(x)
        if hx is not None:
            hx = copied(hx) if isinstance(hx, Tensor) else tuple(map(copied, hx))
        tensors = dict(twin.named_parameters()) | {"input": x} | state_names(hx)
        tensors = {name: t for name, t in tensors.items() if t.requires_grad}
        return cls(twin, x, hx, tensors)

    def outputs(self) -> Any:
        """The module's outputs at the present values of the tensors."""
        x = self.x.clone()  # a module may work in place
        if self.hx is None:
            return self.module(x)
        if isinstance(self.hx, Tensor):
            return self.module(x, self.hx.clone())
        return self.module(x, tuple(part.clone() for part in self.hx))


@dataclass(frozen=True)
class Derivatives:
    """An objective's value and gradients, by the module's own backward pass.

    Attributes:
        value: the objective.
        gradients: for each of the subject's tensors, zeros where autograd has none.
        outputs: the floating tensors among the outputs, detached.
        doutputs: the objective's gradient at each of them.
    """

    value: float
    gradients: dict[str, Tensor]
    outputs: list[Tensor]
    doutputs: list[Tensor]

    @property
    def magnitude(self) -> float:
        """What the objective's rounding is relative to.

        Its terms' roundings are independent, so they add up as a random walk does.
        """
        terms = zip(self.outputs, self.doutputs, strict=True)
        squares = sum(float((y * dy).square().sum()) for y, dy in terms)
        return abs(self.value) + math.sqrt(squares)


def differentiate(subject: Subject, score: Score) -> Derivatives:
    """Run the module forward and back; its gradients go nowhere else."""
    with torch.enable_grad():
        result = subject.outputs()
        outputs = floating(result)
        value = score(result)
        if not isinstance(value, Tensor) or value.numel() != 1:
            raise TypeError(
                "loss must return a tensor with one element; got "
                + (
                    f"shape {tuple(value.shape)}, sum or average it"
                    if isinstance(value, Tensor)
                    else type(value).__name__
                )
            )
        wanted = [*subject.tensors.values(), *outputs]
        reached = [t for t in wanted if t.requires_grad]
        found: Mapping[int, Tensor | None] = {}
        if value.requires_grad:
            grads = torch.autograd.grad(value.sum(), reached, allow_unused=True)
            found = {id(t): g for t, g in zip(reached, grads, strict=True)}

    def gradient(tensor: Tensor) -> Tensor:
        grad = found.get(id(tensor))
        return torch.zeros_like(tensor) if grad is None else grad.detach().to_dense()

    return Derivatives(
        value=float(value.detach()),
        gradients={name: gradient(t) for name, t in subject.tensors.items()},
        outputs=[y.detach() for y in outputs],
        doutputs=[gradient(y) for y in outputs],
    )


def floating(outputs: Any) -> list[Tensor]:
    """The floating tensors in nested tuples, lists and dicts, in order."""
    if isinstance(outputs, Tensor):
        return [outputs] if outputs.is_floating_point() else []
    if isinstance(outputs, Mapping):
        outputs = tuple(outputs.values())
    if isinstance(outputs, tuple | list):
        return [tensor for part in outputs for tensor in floating(part)]
    if outputs is None:
        return []
    raise TypeError(
        "module must return tensors, in tuples, lists or dicts if several; among its "
        f"outputs is a {type(outputs).__name__}: wrap the module in one that returns "
        "the tensors alone"
    )


def weighted_sum(outputs: Any, generator: torch.Generator) -> Score:
    """The sum of all outputs, each times a random weight that float32 holds exactly."""
    weights = [
        torch.randn(y.shape, generator=generator, device="cpu")
        for y in floating(outputs)
    ]
    if not any(w.numel() for w in weights):
        raise ValueError(
            "module returned no floating-point numbers for this x, so there is nothing "
            "to differentiate; give x at least one sequence and one step"
        )

    def score(outputs: Any) -> Tensor:
        terms = zip(floating(outputs), weights, strict=True)
        sums = [(y * w.to(y)).sum() for y, w in terms]
        return torch.stack([s.to(sums[0]) for s in sums]).sum()

    return score


def state_names(hx: Any) -> dict[str, Tensor]:
    """The parts of hx by their names."""
    if hx is None:
        return {}
    if isinstance(hx, Tensor):
        return {"h_0": hx}
    names = ["h_0", "c_0"] if len(hx) == 2 else [f"hx[{i}]" for i in range(len(hx))]
    return dict(zip(names, hx, strict=True))


@contextmanager
def undisturbed(device: torch.device) -> Iterator[None]:
    """Give back the random state of the caller; run outside inference and autocast."""
    devices = [device] if device.type == "cuda" else []
    with (
        torch.random.fork_rng(devices=devices),
        torch.inference_mode(False),
        torch.no_grad(),
        torch.autocast(device.type, enabled=False),
    ):
        yield
