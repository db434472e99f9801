"""A sequence in pieces, between which errors are cut at random or made larger.

What runs a piece knows `Truncation`s alone. Under a `RandomTruncation` the loop runs
piece by piece under full BPTT, and the state that goes from one to the next passes a
gate, which lets the state through and multiplies its error by 0 or by 1 / (1 - c).
"""

import math
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from bptt.masks import PackedMask, numbers
from bptt.outside import eager, inside_transform
from bptt.random_truncation import Policy, RandomTruncation
from bptt.rows import Rows
from bptt.truncation import Truncation

Parts = tuple[Tensor, ...]  # of a state, each with an axis of rows
Masks = Sequence[Tensor | PackedMask]
Loop = Callable[[Tensor, Parts, Masks, Truncation, Rows], tuple[Tensor, Parts]]


def fixed(policy: Policy, time: int) -> Truncation | None:
    """The truncation that a call runs under; None where cuts are to be drawn.

    Args:
        policy: of the module.
        time: steps of the sequence.

    Raises:
        NotImplementedError: cuts are to be drawn inside a `torch.func` transform or
            forward-mode differentiation.
    """
    if isinstance(policy, Truncation):
        return policy
    if policy.is_full_over(time):
        return Truncation.full()
    if not policy.is_random:
        return policy.certain
    if inside_transform():
        raise NotImplementedError(
            f"{policy} has no meaning inside torch.func transforms or forward-mode "
            "differentiation, which differentiate the whole sequence; set the module's "
            "truncation to None there"
        )
    return None if torch.is_grad_enabled() else Truncation.full()


def run(
    loop: Loop,
    policy: Policy,
    rows: Rows,
    initial: Parts,
    x: Tensor,
    masks: Masks = (),
    *,
    axis: int,
) -> tuple[Tensor, Parts]:
    """Run a loop over a sequence, differentiable as the policy says.

    The cuts are drawn when all steps have run, so that whatever draws random numbers on
    the way, dropout first of all, draws the same under every policy.

    Args:
        loop: runs some of the steps: (x, state, masks, truncation, rows) -> (outputs,
            final state).
        policy: which errors go how far back.
        rows: which steps the rows have.
        initial: the state before the first step.
        x: (time, batch, ...), or packed if `rows` are ragged.
        masks: of dropout, with the steps of x.
        axis: that of the rows in the parts of the state.

    Raises:
        NotImplementedError: see `fixed`.
    """
    truncation = fixed(policy, rows.time)
    if truncation is not None:
        return loop(x, initial, masks, truncation, rows)
    assert isinstance(policy, RandomTruncation)
    return _run(loop, policy, rows, initial, x, masks, axis)


@eager
def _run(
    loop: Loop,
    policy: RandomTruncation,
    rows: Rows,
    initial: Parts,
    x: Tensor,
    masks: Masks,
    axis: int,
) -> tuple[Tensor, Parts]:
    boundaries = policy.boundaries(rows.time)
    starts = (0, *boundaries)
    stops = (*boundaries, rows.time)
    spans = [rows.span(start, stop) for start, stop in zip(starts, stops, strict=True)]
    steps = [span.stop - span.start for span in spans]
    factors = torch.empty(len(boundaries), rows.batch, dtype=torch.float64)
    full = Truncation.full()
    ys: list[Tensor] = []
    ended: list[Parts] = []
    plain = numbers(masks)
    state, passing = initial, False
    # One split: for each slice by itself the error of x would be as large as x.
    for at, piece in enumerate(torch.split(x, steps)):
        part = rows.part(starts[at], stops[at])
        if at:
            state, gone = _parted(state, part.batch, axis)
            if gone is not None:
                ended.append(gone)
            passing |= any(s.requires_grad for s in state)
            state = _gated(state, factors[at - 1, : part.batch], axis)
        dropped = [mask[spans[at]] for mask in plain]
        y, state = loop(piece, state, dropped, full, part)
        ys.append(y)
    for gone in reversed(ended):
        pairs = zip(state, gone, strict=True)
        state = tuple(torch.cat(pair, dim=axis) for pair in pairs)
    if passing:
        factors.copy_(draw(policy, len(boundaries), rows.batch))
    return torch.cat(ys), state


def draw(
    policy: RandomTruncation, boundaries: int, batch: int
) -> Float[Tensor, "boundaries batch"]:
    """What the errors are multiplied by, from torch's global generator on the CPU.

    Args:
        policy: which leaves something to chance.
        boundaries: in order of time.
        batch: rows, each of which has draws of its own.

    Returns:
        0, or 1 / (1 - c), in float64.
    """
    chance = torch.rand(boundaries, batch, dtype=torch.float64)
    if math.isinf(policy.alpha):
        c = policy.probability
        return (chance >= c).double() / (1 - c)
    c_after = torch.tensor(
        [policy.probability_after(at) for at in range(1, boundaries + 1)],
        dtype=torch.float64,
    )
    since = torch.zeros(
        batch, dtype=torch.int64
    )  # boundaries passed since the last cut
    factors = torch.empty_like(chance)
    for at in range(boundaries):
        chosen = c_after[since]
        kept = chance[at] >= chosen
        factors[at] = kept / (1 - chosen)
        since = (since + 1) * kept
    return factors


def _parted(state: Parts, running: int, axis: int) -> tuple[Parts, Parts | None]:
    """The state of the rows that go on, and of those that have ended."""
    ended = state[0].shape[axis] - running if state else 0
    if not ended:
        return state, None
    return (
        tuple(part.narrow(axis, 0, running) for part in state),
        tuple(part.narrow(axis, running, ended) for part in state),
    )


def _gated(state: Parts, factors: Tensor, axis: int) -> Parts:
    """The same state, its error multiplied on its way back.

    Through tensors of their own, since a cell may give a part of its state as output
    too. The factors may be written until the backward pass begins.
    """

    def gated(part: Tensor) -> Tensor:
        if not part.requires_grad:  # as one of integers
            return part
        shape = [1] * part.dim()
        shape[axis] = -1
        each = factors.reshape(shape)
        let = part.view_as(part)
        let.register_hook(lambda d: _multiplied(d, each))  # type: ignore[no-untyped-call]
        return let

    return tuple(map(gated, state))


def _multiplied(d: Tensor | None, each: Tensor) -> Tensor | None:
    if d is None:
        return None
    each = each.to(device=d.device, dtype=d.dtype)
    return (d * each).masked_fill(each == 0, 0)  # else an inf that is cut were NaN
