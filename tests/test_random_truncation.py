"""Random truncations as values: probabilities, lengths and factors."""

import math
from dataclasses import FrozenInstanceError
from fractions import Fraction

import pytest
import torch

from bptt import RandomTruncation, Truncation, pieces
from literal_pieces import literal_draw


def test_a_value_says_what_it_is():
    cut = RandomTruncation(32, 0.25)
    assert (cut.every, cut.probability, cut.alpha) == (32, 0.25, math.inf)
    assert cut == RandomTruncation.of_mean_length(128, every=32)
    assert hash(cut) == hash(RandomTruncation(32, 0.25))
    assert cut != RandomTruncation(32, 0.25, alpha=4)
    assert str(cut) == "RandomTruncation(every=32, probability=0.25)"
    assert (
        str(RandomTruncation(1, 0.1, alpha=4))
        == "RandomTruncation(every=1, probability=0.1, alpha=4)"
    )
    with pytest.raises(FrozenInstanceError):
        cut.every = 2
    assert cut.mean_length == 128
    assert RandomTruncation(3, 0).mean_length == math.inf
    assert RandomTruncation.of_mean_length(math.inf) == RandomTruncation(1, 0)
    assert list(RandomTruncation(3, 0.5).boundaries(9)) == [3, 6]
    assert list(RandomTruncation(3, 0.5).boundaries(10)) == [3, 6, 9]
    assert not RandomTruncation(3, 0.5).boundaries(3)


@pytest.mark.parametrize(
    ("probability", "mean", "full", "random"),
    [
        (0, Truncation.full(), True, False),
        (0.5, Truncation.full(), False, True),
        (1, Truncation.chunks(4), False, False),
    ],
)
def test_what_it_is_on_average(probability, mean, full, random):
    cut = RandomTruncation(4, probability)
    assert (cut.mean, cut.is_full, cut.is_random) == (mean, full, random)
    assert cut.is_full_over(4)
    assert cut.is_full_over(5) == full
    assert Truncation(2, 5).mean == Truncation(2, 5)


@pytest.mark.parametrize("alpha", [2.5, 3.5, 6.0, 40.0, math.inf])
@pytest.mark.parametrize("probability", [0.05, 0.3, 0.9, 1.0])
def test_the_mean_length_is_the_one_asked_for(alpha, probability):
    """It is the sum over n of S(n), the probability of a length above n.

    With `b = (alpha - 2) / probability`, `F(n) = S(n) (b + n) / (alpha - 2)` has
    `F(n) - F(n + 1) = S(n)`, so F(n) is the sum of all that follows.
    """
    cut, terms = RandomTruncation(1, probability, alpha=alpha), 5000
    survival, total = 1.0, 0.0
    for at in range(1, terms + 1):
        total += survival
        survival *= 1 - cut.probability_after(at)
    if math.isinf(alpha):
        rest = survival / probability
    else:
        rest = survival * (1 / probability + terms / (alpha - 2))
    assert total + rest == pytest.approx(cut.mean_length, rel=1e-9)


def test_the_factor_is_one_over_the_probability_to_pass():
    assert RandomTruncation(1, 0.25).factor(3) == pytest.approx(float(Fraction(64, 27)))
    assert RandomTruncation(4, 0.25).factor(3) == 1
    assert RandomTruncation(4, 0.25).factor(11) == pytest.approx(16 / 9)
    assert RandomTruncation(4, 1).factor(4) == math.inf
    assert RandomTruncation(4, 0).factor(400) == 1
    # c_j = 3 / (2 / 0.2 + j), so 1 - c_j = (7 + j) / (10 + j).
    power = RandomTruncation(1, 0.2, alpha=4)
    assert power.factor(2) == pytest.approx(11 / 8 * 12 / 9)
    # A power of the length, where that of a constant probability is exponential.
    assert power.factor(2000) / power.factor(1000) == pytest.approx(8, rel=0.05)
    assert RandomTruncation(1, 0.2).factor(1000) > 1e90


@pytest.mark.parametrize("alpha", [math.inf, 3.5])
def test_a_seed_fixes_the_draws(alpha):
    cut = RandomTruncation(2, 0.4, alpha=alpha)
    torch.manual_seed(3)
    found, state = pieces.draw(cut, 9, 7), torch.get_rng_state()
    torch.manual_seed(3)
    expected = literal_draw(cut, 9, 7)
    assert torch.equal(torch.get_rng_state(), state)
    torch.testing.assert_close(found, expected, rtol=1e-15, atol=0)
    assert 0 < int((found == 0).sum()) < found.numel()


def test_rows_are_cut_by_themselves_and_as_often_as_asked():
    """Each count lies within 6 standard deviations: a false alarm in 1e9."""
    torch.manual_seed(0)
    cut = pieces.draw(RandomTruncation(1, 0.3), 200, 300) == 0
    for share, mean in ((cut, 0.3), (cut[1:] & cut[:-1], 0.09)):
        sd = (mean * (1 - mean) / share.numel() * 1.5) ** 0.5
        assert abs(float(share.double().mean()) - mean) < 6 * sd
    both = (cut[:, 1:] & cut[:, :-1]).double().mean()
    assert abs(float(both) - 0.09) < 6 * (0.09 * 0.91 / 59800 * 1.5) ** 0.5


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RandomTruncation(0, 0.5), "every must be at least 1; got 0"),
        (lambda: RandomTruncation(2, -0.1), r"from 0 to 1.*got -0\.1"),
        (lambda: RandomTruncation(2, 1.5), r"from 0 to 1.*got 1\.5"),
        (lambda: RandomTruncation(2, math.nan), "from 0 to 1.*got nan"),
        (lambda: RandomTruncation(2, 0.5, alpha=2), "alpha must be above 2.*got 2"),
        (lambda: RandomTruncation(2, 0.5, alpha=math.nan), "alpha must be above 2"),
        (
            lambda: RandomTruncation.of_mean_length(7, every=8),
            "steps must be at least every = 8.*got 7",
        ),
    ],
)
def test_numbers_out_of_range_are_refused_by_name(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("value", ["0.5", None, True])
def test_what_is_no_number_is_refused_by_name(value):
    # The types are annotated, so the checker of the tests would speak first.
    make, self = plain(RandomTruncation.__init__), object.__new__(RandomTruncation)
    with pytest.raises(TypeError, match="every must be an int"):
        make(self, value, 0.5)
    with pytest.raises(TypeError, match="probability must be a number"):
        make(self, 2, value)
    with pytest.raises(TypeError, match="alpha must be a number"):
        make(self, 2, 0.5, alpha=value)
    of_mean_length = plain(RandomTruncation.of_mean_length.__func__)
    with pytest.raises(TypeError, match="steps must be a number"):
        of_mean_length(RandomTruncation, value)


def plain(function):
    """A function without the checker of annotations around it."""
    while hasattr(function, "__wrapped__"):
        function = function.__wrapped__
    return function
