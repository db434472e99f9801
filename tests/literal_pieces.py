"""One draw of a random truncation by its definition: row by row, step by step."""

import torch
from torch.nn.utils.rnn import PackedSequence

from bptt import RandomTruncation
from literal import gradients
from literal_cells import floating, mapped

TIME, BATCH = 9, 4
LENGTHS = torch.tensor([5, 9, 1, 7])
CUTS = (RandomTruncation(2, 0.4), RandomTruncation(1, 0.3, alpha=3.5))


def normal(*shape, seed=1, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


def literal_draw(cut, boundaries, batch):
    """Row by row, number by number."""
    chance = torch.rand(boundaries, batch, dtype=torch.float64)
    factors = torch.zeros(boundaries, batch, dtype=torch.float64)
    for row in range(batch):
        last = -1
        for at in range(boundaries):
            c = cut.probability_after(at - last)
            if float(chance[at, row]) < c:
                last = at
            else:
                factors[at, row] = 1 / (1 - c)
    return factors


def gate(state, factor):
    """The value as it is, the derivative times the factor."""

    def gated(s):
        if not s.is_floating_point():
            return s
        return s.detach() + factor * (s - s.detach())

    return mapped(gated, state)


def zeroed(state):
    return mapped(torch.zeros_like, state)


def literal_loss(step, x, state, dy, dfinal, cut, factors, lengths, resets, axis):
    """Row by row, step by step; the factors' rows are those of the longest first."""
    loss = torch.zeros((), dtype=torch.float64)
    order = range(BATCH)
    if lengths is not None:
        order = lengths.argsort(descending=True, stable=True).tolist()
    for column, row in enumerate(order):
        s = mapped(lambda part, row=row: part.narrow(axis, row, 1), state)
        for t in range(TIME if lengths is None else int(lengths[row])):
            if t and t % cut.every == 0:
                s = gate(s, factors[t // cut.every - 1, column])
            if resets is not None and resets[t, row]:
                s = zeroed(s)
            y, s = step(x[t, row : row + 1], s)
            loss = loss + (dy[t, row] * y).sum()
        for d, leaf in zip(dfinal, floating(s), strict=True):
            loss = loss + (d.narrow(axis, row, 1) * leaf).sum()
    return loss


def drawn(cut, seed):
    torch.manual_seed(seed)
    return literal_draw(cut, (TIME - 1) // cut.every, BATCH)


def both(module, cut, *arguments, seed=0, **options):
    """All gradients and the outputs of a call under a policy."""
    module.truncation = cut
    leaves = dict(module.named_parameters())
    leaves |= {
        str(at): a
        for at, a in enumerate(arguments)
        if isinstance(a, torch.Tensor) and a.requires_grad
    }
    torch.manual_seed(seed)
    y, final = module(*arguments, **options)
    y = y.data if isinstance(y, PackedSequence) else y
    loss = (normal(*y.shape, seed=9) * y).sum()
    for part in final if isinstance(final, tuple) else (final,):
        loss = loss + (normal(*part.shape, seed=10) * part).sum()
    return gradients(loss, leaves), y
