"""The passes of a truncation, against the plain definition of each pass."""

import copy
import pickle
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bptt.truncation import Truncation

STEPS = st.integers(1, 40)


def visits(k1, k2, time):
    """(lag, pass, step, owns) of every visit: a pass counts from its nominal end."""
    found = set()
    for p in range(len(range(0, time, k1))):
        outputs = range(p * k1, (p + 1) * k1)
        for lag, step in enumerate(range(outputs[-1], outputs[-1] - k2, -1)):
            if 0 <= step < time:
                found.add((lag, p, step, step in outputs))
    return found


def visits_of(lags, time):
    """The same, read from the lags, each slice applied to the steps themselves."""
    found = []
    for lag in lags:
        steps = list(range(time))[lag.steps]
        passes = range(lag.first, lag.last)
        assert 0 <= lag.steps.start < lag.steps.stop <= time
        found += [(lag.lag, p, t, lag.owns) for p, t in zip(passes, steps, strict=True)]
    assert len(found) == len(set(found))
    return set(found)


def check(truncation, k1, k2, time):
    lags = list(truncation.lags(time))
    assert visits_of(lags, time) == visits(k1, k2, time)
    for lag in lags:
        steps = list(range(time))[lag.steps]
        assert lag.at_start == (0 in steps)
        assert lag.at_end == (time - 1 in steps)
        assert list(range(time + 1))[lag.after] == [t + 1 for t in steps]
        if lag.at_start:  # pass `first` is the one that h0 comes next to
            assert steps[0] == 0
        if lag.at_end:
            assert steps[-1] == time - 1


@pytest.mark.parametrize("time", range(1, 11))
def test_lags_are_the_definition_for_every_small_truncation(time):
    for k1 in range(1, 13):
        for k2 in range(1, 14):
            check(Truncation(k1, k2), k1, k2, time)


@settings(deadline=None, derandomize=True)
@given(k1=STEPS, k2=STEPS, time=STEPS)
def test_lags_are_the_definition(k1, k2, time):
    check(Truncation(k1, k2), k1, k2, time)


@pytest.mark.parametrize("time", [1, 2, 7, 30])
def test_full_is_one_pass_over_all_steps(time):
    check(Truncation.full(), time, time, time)


@settings(deadline=None, derandomize=True)
@given(k1=STEPS, k2=STEPS, time=STEPS)
def test_from_lag_to_lag_passes_leave_at_the_front_and_one_may_join(k1, k2, time):
    lags = list(Truncation(k1, k2).lags(time))
    for earlier, later in pairwise(lags):
        assert later.lag == earlier.lag + 1
        assert earlier.first <= later.first
        assert earlier.last <= later.last <= earlier.last + 1


@settings(deadline=None, derandomize=True)
@given(k1=STEPS, k2=STEPS, time=STEPS)
def test_full_over_a_length_means_that_every_pass_reaches_the_start(k1, k2, time):
    visited = {(p, step) for _, p, step, _ in visits(k1, k2, time)}
    uncut = {
        (p, step)
        for p, a in enumerate(range(0, time, k1))
        for step in range(min(a + k1, time))
    }
    assert Truncation(k1, k2).is_full_over(time) == (visited == uncut)
    assert Truncation.full().is_full_over(time)


def test_the_named_truncations():
    assert Truncation.chunks(8) == Truncation(8, 8)
    assert Truncation.per_output(4) == Truncation(1, 5)
    assert Truncation.per_output(0) == Truncation(1, 1)
    assert Truncation.full() == Truncation.full()
    assert Truncation(3, 4) != Truncation(4, 3)
    assert Truncation.full() not in {Truncation(1, 1), Truncation(10**9, 10**9)}
    assert Truncation.full().is_full
    assert not Truncation(10**9, 10**9).is_full


@pytest.mark.parametrize("truncation", [Truncation.full(), Truncation(3, 7)])
def test_a_truncation_is_a_value(truncation):
    assert eval(repr(truncation), {"Truncation": Truncation}) == truncation
    assert copy.deepcopy(truncation) == truncation
    again = pickle.loads(pickle.dumps(truncation))
    assert again == truncation
    assert hash(again) == hash(truncation)
    with pytest.raises(AttributeError):
        truncation.k1 = 5


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Truncation(0, 1), r"k1 must be at least 1; got 0.*Truncation\.full"),
        (lambda: Truncation(1, 0), "k2 must be at least 1; got 0"),
        (lambda: Truncation(-3, 1), "k1 must be at least 1; got -3"),
        (lambda: Truncation.chunks(0), "k must be at least 1; got 0"),
        (
            lambda: Truncation.per_output(-1),
            "bptt_truncate must be at least 0; got -1$",
        ),
    ],
)
def test_too_few_steps_are_refused_by_name(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("value", [2.0, True, "4", None])
@pytest.mark.parametrize("name", ["k1", "k2", "k", "bptt_truncate"])
def test_steps_that_are_no_int_are_refused_by_name(name, value):
    # The types are annotated, so the checker of the tests would speak first.
    make = {
        "k1": lambda: plain(Truncation.__init__)(self, value, 1),
        "k2": lambda: plain(Truncation.__init__)(self, 1, value),
        "k": lambda: plain(Truncation.chunks.__func__)(Truncation, value),
        "bptt_truncate": lambda: plain(Truncation.per_output.__func__)(
            Truncation, value
        ),
    }[name]
    self = object.__new__(Truncation)
    with pytest.raises(TypeError, match=f"{name} must be an int"):
        make()


def plain(function):
    """A function without the checker of annotations around it."""
    while hasattr(function, "__wrapped__"):
        function = function.__wrapped__
    return function
