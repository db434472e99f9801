"""Truncated BPTT by its definition, and problems to try it on.

`literal_gradients` knows no derivative and no pass: for each chunk of outputs it runs
torch.nn's layers from the detached state before the chunk's window and lets autograd
differentiate. Everything else in the engine's tests is compared with it or with
torch.nn itself.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call

import bptt

KINDS = ("tanh", "relu", "gru", "lstm")
GATES = {"tanh": 1, "relu": 1, "gru": 3, "lstm": 4}
PARTS = {"tanh": ("h0",), "relu": ("h0",), "gru": ("h0",), "lstm": ("h0", "c0")}


def theirs(kind: str, *args: Any, dtype: Any = torch.float64, **options: Any) -> Any:
    """torch.nn's module of this kind."""
    if kind in ("tanh", "relu"):
        options = {"nonlinearity": kind, **options}
    classes = {"gru": torch.nn.GRU, "lstm": torch.nn.LSTM}
    return classes.get(kind, torch.nn.RNN)(*args, dtype=dtype, **options)


def ours(kind: str, *args: Any, dtype: Any = torch.float64, **options: Any) -> Any:
    """The module of this kind that is tested."""
    if kind in ("tanh", "relu"):
        options = {"nonlinearity": kind, **options}
    classes = {"gru": bptt.GRU, "lstm": bptt.LSTM}
    return classes.get(kind, bptt.RNN)(*args, dtype=dtype, **options)


def pair(kind: str, *args: Any, seed: int = 0, **options: Any) -> tuple[Any, Any]:
    """Ours and torch.nn's with the same weights, larger than torch.nn draws them."""
    truncation = options.pop("truncation", None)
    reference = theirs(kind, *args, **options)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in reference.parameters():
            weight.uniform_(-0.8, 0.8, generator=generator)
    module = ours(kind, *args, truncation=truncation, **options)
    module.load_state_dict(reference.state_dict(), strict=True)
    return module, reference


@dataclass(frozen=True)
class Problem:
    """A stack's weights, named as torch.nn names them, its inputs and its errors."""

    kind: str
    weights: dict[str, Tensor]
    x: Tensor  # (time, batch, input)
    state: tuple[Tensor, ...]  # parts (layers, batch, hidden)
    masks: list[Tensor]  # between layers, (time, batch, hidden)
    dy: Tensor  # (time, batch, hidden)
    dfinal: tuple[Tensor, ...]  # as state

    @property
    def layers(self) -> int:
        return self.state[0].shape[0]

    def to(self, dtype: torch.dtype) -> "Problem":
        """The same in another precision."""
        return Problem(
            self.kind,
            {name: weight.to(dtype) for name, weight in self.weights.items()},
            self.x.to(dtype),
            tuple(part.to(dtype) for part in self.state),
            [mask.to(dtype) for mask in self.masks],
            self.dy.to(dtype),
            tuple(part.to(dtype) for part in self.dfinal),
        )


def problem(
    kind: str,
    *,
    time: int,
    batch: int = 2,
    inputs: int = 3,
    hidden: int = 4,
    layers: int = 1,
    bias: bool = True,
    dropout: float = 0.0,
    seed: int = 0,
    largest_weight: float = 0.8,
) -> Problem:
    """Random weights, inputs, masks and errors, the same for the same arguments."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    rows = GATES[kind] * hidden
    weights = {}
    for layer in range(layers):
        shapes = {"weight_ih": (rows, hidden if layer else inputs)}
        shapes["weight_hh"] = (rows, hidden)
        if bias:
            shapes |= {"bias_ih": (rows,), "bias_hh": (rows,)}
        for name, shape in shapes.items():
            uniform = torch.rand(*shape, generator=generator, dtype=torch.float64)
            weights[f"{name}_l{layer}"] = (2 * uniform - 1) * largest_weight
    parts = PARTS[kind]
    keep = 1 - dropout
    return Problem(
        kind,
        weights,
        normal(time, batch, inputs),
        tuple(normal(layers, batch, hidden) for _ in parts),
        [
            torch.bernoulli(
                torch.full((time, batch, hidden), keep), generator=generator
            )
            .div(keep)
            .double()
            for _ in range(layers - 1 if dropout else 0)
        ],
        normal(time, batch, hidden),
        tuple(normal(layers, batch, hidden) for _ in parts),
    )


def unroll(
    kind: str,
    weights: Mapping[str, Tensor],
    x: Tensor,
    state: Sequence[Tensor],
    masks: Sequence[Tensor] = (),
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """torch.nn over a sequence, a layer at a time, so that the masks can be given."""
    final = []
    for layer in range(state[0].shape[0]):
        own = {
            name.replace(f"_l{layer}", "_l0"): weight
            for name, weight in weights.items()
            if name.endswith(f"_l{layer}")
        }
        hidden = state[0].shape[-1]
        single = theirs(
            kind, x.shape[-1], hidden, bias="bias_ih_l0" in own, dtype=x.dtype
        )
        before = tuple(part[layer : layer + 1] for part in state)
        hx = before if kind == "lstm" else before[0]
        x, after = functional_call(single, own, (x, hx))
        final.append(after if kind == "lstm" else (after,))
        if masks and layer < len(masks):
            x = x * masks[layer]
    return x, tuple(torch.cat(part) for part in zip(*final, strict=True))


def literal_gradients(p: Problem, k1: int, k2: int) -> dict[str, Tensor]:
    """The sum over chunks of `k1` outputs of what autograd gives each of them."""
    time = p.x.shape[0]
    leaves = dict(p.weights) | {"x": p.x}
    leaves |= dict(zip(PARTS[p.kind], p.state, strict=True))
    leaves = {n: leaf.detach().clone().requires_grad_() for n, leaf in leaves.items()}
    weights = {name: leaves[name] for name in p.weights}
    total = {name: torch.zeros_like(leaf) for name, leaf in leaves.items()}
    for a in range(0, time, k1):
        b = max(0, a + k1 - k2)
        end = min(a + k1, time)
        if b >= end:
            continue
        state: tuple[Tensor, ...] = tuple(leaves[name] for name in PARTS[p.kind])
        if b:
            _, state = unroll(
                p.kind, weights, leaves["x"][:b], state, [m[:b] for m in p.masks]
            )
            state = tuple(part.detach() for part in state)
        y, final = unroll(
            p.kind, weights, leaves["x"][b:end], state, [m[b:end] for m in p.masks]
        )
        counted = max(a, b)
        loss = (p.dy[counted:end] * y[counted - b :]).sum()
        if end == time:
            for d, part in zip(p.dfinal, final, strict=True):
                loss = loss + (d * part).sum()
        grads = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
        for name, grad in zip(leaves, grads, strict=True):
            if grad is not None:
                total[name] += grad
    return total


def gradients(
    loss: Tensor, tensors: Mapping[str, Tensor], **options: Any
) -> dict[str, Tensor]:
    """`dloss` of each named tensor; zeros where the loss does not read it."""
    found = torch.autograd.grad(
        loss, list(tensors.values()), allow_unused=True, **options
    )
    return {
        name: torch.zeros_like(tensor) if grad is None else grad
        for (name, tensor), grad in zip(tensors.items(), found, strict=True)
    }


def outputs(module: Any, x: Tensor, *state: Tensor) -> dict[str, Tensor]:
    """The outputs by name; `state` is empty or h0, c0."""
    hx = None if not state else state if isinstance(module, torch.nn.LSTM) else state[0]
    y, final = module(x, hx)
    names = ("h_n", "c_n") if isinstance(final, tuple) else ("h_n",)
    ends = final if isinstance(final, tuple) else (final,)
    return {"y": y} | dict(zip(names, ends, strict=True))


def stack(
    kind: str,
    truncation: bptt.Truncation | None = None,
    *,
    seed: int = 0,
    time: int = 4,
    batch: int = 2,
    **options: Any,
) -> tuple[Any, Problem, dict[str, Tensor]]:
    """A two-layer module of ours, its problem, and everything one can differentiate."""
    module, _ = pair(kind, 3, 2, 2, truncation=truncation, seed=seed, **options)
    p = problem(kind, time=time, batch=batch, hidden=2, layers=2, seed=seed)
    leaves = dict(module.named_parameters()) | {"x": p.x.clone().requires_grad_()}
    for name, part in zip(PARTS[kind], p.state, strict=True):
        leaves[name] = part.clone().requires_grad_()
    return module, p, leaves


def assert_same(
    mine: Mapping[str, Tensor],
    reference: Mapping[str, Tensor],
    tolerance: float = 1e-11,
) -> None:
    """Equal up to `tolerance` times the largest entry, tensor by tensor, by name."""
    assert mine.keys() == reference.keys()
    wrong = {}
    for name, expected in reference.items():
        given, expected = mine[name].detach().double(), expected.detach().double()
        assert given.shape == expected.shape, (
            f"{name} has shape {tuple(given.shape)}, not {tuple(expected.shape)}"
        )
        if expected.numel() == 0:
            continue
        scale = max(float(expected.abs().max()), 1e-2)
        error = float((given - expected).abs().max()) / scale
        if not error <= tolerance:  # so that nan fails
            wrong[name] = error
    assert not wrong, f"relative errors over {tolerance:g}: {wrong}"
