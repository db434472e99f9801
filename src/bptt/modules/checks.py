"""What the modules refuse: each error names the argument, its value and the remedy."""

from typing import Any

import torch
from torch import Tensor

from bptt.memory import Budget
from bptt.outside import inside_transform
from bptt.random_truncation import Policy, RandomTruncation


def require_sequence(
    x: Tensor,
    given: str,
    axes: tuple[str, ...],
    *,
    width: int,
    dtype: torch.dtype,
    name: str,
) -> None:
    """Refuse a sequence of a wrong dtype, number of axes or width.

    Args:
        x: floats with these axes and one of `width`, or int64 ids with these axes.
        given: what the caller calls it.
        axes: names of the axes; "batch" may be missing, for one sequence.
        width: of the module's input.
        dtype: of the module's weights.
        name: of the module.

    Raises:
        ValueError, TypeError, RuntimeError: as torch.nn's modules raise them.
    """
    shape = tuple(x.shape)
    listed = ", ".join(axes)
    fewest = len(axes) - ("batch" in axes)
    alone = ", without batch for one sequence" if "batch" in axes else ""
    if x.is_floating_point():
        if not fewest <= x.dim() - 1 <= len(axes):
            raise ValueError(
                f"{name}: {given} must be ({listed}, input_size){alone}; got shape "
                f"{shape}"
            )
        if x.dtype != dtype:
            raise ValueError(
                f"{name}: {given} has dtype {x.dtype} and the weights {dtype}; convert "
                f"one of them, as with input.to({dtype})"
            )
        if shape[-1] != width:
            raise RuntimeError(
                f"{name}: {given}.size(-1) must be input_size = {width}; got shape "
                f"{shape}"
            )
    elif x.dtype == torch.int64:
        if not fewest <= x.dim() <= len(axes):
            raise ValueError(
                f"{name}: integer {given} is ids ({listed}){alone}; got shape {shape}"
            )
    else:
        raise TypeError(
            f"{name}: {given} must be floats ({listed}, input_size) or int64 ids "
            f"({listed}); got dtype {x.dtype}"
        )


def require_ids(x: Tensor, count: int, name: str) -> None:
    """Refuse ids that are not below `count`, the number of them.

    Raises:
        ValueError: one is not.
    """
    # Inside torch.func's transforms values cannot be asked for.
    if x.is_floating_point() or not x.numel() or inside_transform():
        return
    if not 0 <= x.min() <= x.max() < count:
        raise ValueError(
            f"{name}: ids in input must be at least 0 and below input_size = {count}; "
            f"got {int(x.min())} to {int(x.max())}"
        )


def state_parts(
    hx: Any,
    *,
    count: int,
    batch: int | None,
    widths: tuple[int, ...],
    dtype: torch.dtype,
    name: str,
) -> tuple[Tensor, ...]:
    """The parts of a state, h or h and c, with the shapes that they must have.

    Args:
        hx: a tensor, or for two parts a pair of them.
        count: layers x directions.
        batch: rows; None for one sequence, whose state has no such axis.
        widths: of the parts.
        dtype: of the module's weights.
        name: of the module.

    Raises:
        TypeError, RuntimeError: as torch.nn's modules raise them.
    """
    parts = _split(hx, len(widths), name)
    names = ("h_0", "c_0") if len(widths) == 2 else ("hx",)
    for of, part, width in zip(names, parts, widths, strict=True):
        expected = (count, width) if batch is None else (count, batch, width)
        if tuple(part.shape) != expected:
            size = "proj_size" if width != widths[-1] else "hidden_size"
            raise RuntimeError(
                f"{name}: {of} must have shape {expected} (layers x directions"
                f"{'' if batch is None else ', batch'}, {size}); got "
                f"{tuple(part.shape)}"
            )
        if not part.is_floating_point():
            raise TypeError(
                f"{name}: {of} must hold floats, as the weights do ({dtype}); got "
                f"{part.dtype}"
            )
    return parts


def _split(hx: Any, parts: int, name: str) -> tuple[Tensor, ...]:
    if parts == 1 and isinstance(hx, Tensor):
        return (hx,)
    if (
        parts == 2
        and isinstance(hx, tuple | list)
        and len(hx) == 2
        and all(isinstance(part, Tensor) for part in hx)
    ):
        return tuple(hx)
    wanted = "a tuple (h_0, c_0) of tensors" if parts == 2 else "a tensor h_0"
    raise TypeError(f"{name}: hx must be {wanted}; got {type(hx).__name__}")


def require_policies(truncation: object, memory_budget: object, name: str) -> None:
    """Refuse what is no truncation or no budget, or both where they do not go together.

    Args:
        truncation: None, or which errors go how far back.
        memory_budget: None, bytes, or a str as "512MB".
        name: of the module, for errors.

    Raises:
        TypeError, ValueError: they cannot be used.
    """
    if truncation is not None and not isinstance(truncation, Policy):
        raise TypeError(
            f"{name}: truncation must be a bptt.Truncation, a bptt.RandomTruncation or "
            f"None; got {truncation!r}"
        )
    if memory_budget is None:
        return
    Budget.parse(memory_budget)
    if isinstance(truncation, RandomTruncation) and truncation.is_random:
        raise ValueError(
            f"{name}: memory_budget={memory_budget!r} cannot be kept under "
            f"{truncation}, whose pieces are loops of their own, each of which keeps "
            "what it needs; set memory_budget to None, or take a bptt.Truncation"
        )
