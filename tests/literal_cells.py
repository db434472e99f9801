"""Truncated BPTT of any cell by its definition, a row and a chunk at a time.

Knows no pass, no packing and no merging of rows: each row of the batch is a sequence of
its own, run step by step as a batch of one.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor


def mapped(f: Callable[[Tensor], Tensor], state: Any) -> Any:
    """A nested state with `f` of each of its tensors."""
    if isinstance(state, Tensor):
        return f(state)
    parts = [mapped(f, part) for part in state]
    return tuple(parts) if type(state) is tuple else type(state)(*parts)


def leaves(state: Any) -> list[Tensor]:
    """The tensors of a nested state."""
    if isinstance(state, Tensor):
        return [state]
    return [leaf for part in state for leaf in leaves(part)]


def floating(state: Any) -> list[Tensor]:
    """Those that can have gradients."""
    return [leaf for leaf in leaves(state) if leaf.is_floating_point()]


def unroll(
    cell: Any, x: Tensor, state: Any, resets: Tensor | None
) -> tuple[list[Tensor], Any]:
    """One row, (time, 1, ...), step by step; resets (time,)."""
    ys = []
    for t in range(x.shape[0]):
        if resets is not None and resets[t]:
            state = mapped(torch.zeros_like, state)
        y, state = cell(x[t], state)
        ys.append(y)
    return ys, state


def literal_gradients(
    cell: Any,
    x: Tensor,
    state: Any,
    dy: Tensor | None,
    dfinal: list[Tensor] | None,
    k1: int | None,
    k2: int | None,
    lengths: Tensor | None = None,
    resets: Tensor | None = None,
) -> dict[str, Tensor]:
    """`dE` of the input, the initial state's floats and the trained parameters.

    `dy` (time, batch, ...) and `dfinal` (leaves of floats) are the errors; None for
    none. `k1` None is full BPTT.
    """
    x = x.detach().clone()
    if x.is_floating_point():
        x.requires_grad_()
    state = mapped(
        lambda s: s.detach().clone().requires_grad_(s.is_floating_point()), state
    )
    wanted = {n: p for n, p in cell.named_parameters() if p.requires_grad}
    wanted |= {f"s{i}": leaf for i, leaf in enumerate(floating(state))}
    if x.is_floating_point():
        wanted["x"] = x
    total = {name: torch.zeros_like(t) for name, t in wanted.items()}
    for r in range(x.shape[1]):
        row = slice(r, r + 1)
        time = x.shape[0] if lengths is None else int(lengths[r])
        one, two = (time, time) if k1 is None or k2 is None else (k1, k2)
        cut = None if resets is None else resets[:, r]
        for a in range(0, time, one):
            b, end = max(0, a + one - two), min(a + one, time)
            if b >= end:
                continue
            s = mapped(lambda part, row=row: part[row], state)
            if b:
                before = None if cut is None else cut[:b]
                _, s = unroll(cell, x[:b, row], s, before)
                s = mapped(torch.Tensor.detach, s)
            within = None if cut is None else cut[b:end]
            ys, final = unroll(cell, x[b:end, row], s, within)
            loss = sum(leaf.sum() * 0 for leaf in floating(final))
            loss = loss + sum(y.sum() * 0 for y in ys)
            for t in range(max(a, b), end):
                if dy is not None:
                    loss = loss + (dy[t, row] * ys[t - b]).sum()
            if end == time and dfinal is not None:
                for d, leaf in zip(dfinal, floating(final), strict=True):
                    loss = loss + (d[row] * leaf).sum()
            if not loss.requires_grad:
                continue
            found = torch.autograd.grad(loss, list(wanted.values()), allow_unused=True)
            for name, g in zip(wanted, found, strict=True):
                if g is not None:
                    total[name] += g
    return total


def module_gradients(
    recurrent: Any,
    x: Tensor,
    state: Any,
    dy: Tensor | None,
    dfinal: list[Tensor] | None,
    call: Callable[..., Any] | None = None,
    **options: Any,
) -> dict[str, Tensor]:
    """The same by a module, or by `call` in its place."""
    x = x.detach().clone()
    if x.is_floating_point():
        x.requires_grad_()
    state = mapped(
        lambda s: s.detach().clone().requires_grad_(s.is_floating_point()), state
    )
    y, final = (call or recurrent)(x, state, **options)
    loss = torch.zeros((), dtype=torch.float64)
    if dy is not None:
        loss = loss + (dy * y).sum()
    if dfinal is not None:
        for d, leaf in zip(dfinal, floating(final), strict=True):
            loss = loss + (d * leaf).sum()
    wanted = {n: p for n, p in recurrent.cell.named_parameters() if p.requires_grad}
    wanted |= {f"s{i}": leaf for i, leaf in enumerate(floating(state))}
    if x.is_floating_point():
        wanted["x"] = x
    return gradients_of(loss, wanted)


def gradients_of(loss: Tensor, wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Zeros where the loss does not depend."""
    found = torch.autograd.grad(loss, list(wanted.values()), allow_unused=True)
    return {
        name: torch.zeros_like(t) if g is None else g
        for (name, t), g in zip(wanted.items(), found, strict=True)
    }
