"""The mean gradient over the draws of a random truncation is that of full BPTT.

A sample is the mean over the rows of one call, so nearly normal, and the samples are
independent. Each coordinate's mean over the samples is held to the full gradient by a
t test; the tests of all coordinates together raise a false alarm with a probability of
1e-6 at most (Bonferroni). The seed is fixed, so that is about the choice of a seed.
"""

from statistics import NormalDist

import pytest
import torch

from bptt import RandomTruncation, pieces
from literal import PARTS, pair

SAMPLES, ROWS, TIME, ALARM = 40, 400, 6, 1e-6


def normal(*shape, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def call(kind, layers, lengths):
    """A module and its gradients' mean over the rows, of x and the state too."""
    module, _ = pair(kind, 2, 3, layers)
    x, dy = normal(TIME, 1, 2, seed=1), normal(TIME, 1, 3, seed=2)
    state = [normal(layers, 1, 3, seed=3 + at) for at in range(len(PARTS[kind]))]
    dend = normal(layers, 1, 3, seed=5)

    def gradient():
        leaves = [t.repeat(1, ROWS, 1).requires_grad_() for t in (x, *state)]
        y, end = module(
            leaves[0],
            tuple(leaves[1:]) if kind == "lstm" else leaves[1],
            lengths=lengths,
        )
        loss = (dy * y).sum()
        for part in end if isinstance(end, tuple) else (end,):
            loss = loss + (dend * part).sum()
        weights = list(module.parameters())
        found = torch.autograd.grad(loss, [*leaves, *weights])
        means = [d.mean(1) for d in found[: len(leaves)]]
        means += [d / ROWS for d in found[len(leaves) :]]
        return torch.cat([d.flatten() for d in means])

    return module, gradient


def largest_t(kind, layers, cut, lengths=None):
    """Of all coordinates, in units of what one in a million samples would exceed."""
    module, gradient = call(kind, layers, lengths)
    full = gradient()
    module.truncation = cut
    torch.manual_seed(0)
    samples = torch.stack([gradient() for _ in range(SAMPLES)])
    sd = samples.std(0)
    drawn = sd > 1e-12 * full.abs().max()  # what no boundary stands before is exact
    torch.testing.assert_close(samples[0][~drawn], full[~drawn], rtol=1e-11, atol=1e-12)
    assert int(drawn.sum()) > len(full) / 2
    t = (samples.mean(0) - full)[drawn] / sd[drawn] * SAMPLES**0.5
    return float(t.abs().max()) / quantile(1 - ALARM / 2 / len(t), SAMPLES - 1)


def quantile(p, n):
    """Of Student's t with n degrees of freedom, to 1 %: the Cornish-Fisher series."""
    z = NormalDist().inv_cdf(p)
    first = (z**3 + z) / 4
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / n + second / n**2 + third / n**3


LENGTHS = torch.arange(ROWS) % TIME + 1
PROBLEMS = {
    "rnn, each step": ("tanh", 1, RandomTruncation(1, 0.3), None),
    "gru, two layers, every second step": ("gru", 2, RandomTruncation(2, 0.5), None),
    "lstm, ragged, falling": ("lstm", 1, RandomTruncation(1, 0.4, alpha=3.5), LENGTHS),
}


@pytest.mark.parametrize("name", PROBLEMS)
def test_the_mean_is_the_full_gradient(name):
    assert largest_t(*PROBLEMS[name]) < 1


@pytest.mark.parametrize("name", list(PROBLEMS)[1:])
def test_without_the_factor_the_test_finds_it(name, monkeypatch):
    right = pieces.draw

    def disturbed(*arguments):
        return (right(*arguments) > 0).double()

    monkeypatch.setattr(pieces, "draw", disturbed)
    assert largest_t(*PROBLEMS[name]) > 2


def test_a_factor_a_little_too_small_is_found(monkeypatch):
    """1 + c for 1 / (1 - c): 9 % less."""
    right = pieces.draw

    def disturbed(*arguments):
        return (right(*arguments) > 0) * 1.3

    monkeypatch.setattr(pieces, "draw", disturbed)
    assert largest_t(*PROBLEMS["rnn, each step"]) > 1


def test_an_error_that_passes_n_boundaries_has_the_stated_second_moment():
    """The mean square of its factor is `factor`, within 6 standard errors (1e-8)."""
    torch.manual_seed(0)
    for cut in (RandomTruncation(2, 0.3), RandomTruncation(2, 0.3, alpha=4)):
        passed = pieces.draw(cut, 4, 100_000).prod(0).square()
        error = float(passed.std() / len(passed) ** 0.5)
        assert abs(float(passed.mean()) - cut.factor(8)) < 6 * error
        assert float(passed.mean()) > 2
