import numpy as np
import pytest

from bptt.training import Options, resolve
from bptt.training.window_plan import (
    BURN_IN,
    ROWS,
    SHARE,
    Search,
    candidates,
    updates_between,
)

SEARCH = Search(k1=8, k2_max=24, tolerance=0.1, every=5)


@pytest.mark.parametrize(
    ("k1", "k2_max", "expected"),
    [
        (64, 256, (64, 128, 256)),
        (8, 24, (8, 16, 24)),
        (8, 8, (8,)),
        (8, 16, (8, 16)),
        (1, 5, (1, 2, 4, 5)),
        (3, 300, (3, 6, 12, 24, 48, 96, 192, 300)),
    ],
)
def test_what_is_tried(k1, k2_max, expected):
    assert candidates(k1, k2_max) == expected
    assert Search(k1, k2_max, 0.1, 1).candidates == expected


def test_the_rows_are_a_function_of_seed_and_step():
    rows = SEARCH.rows(1000, seed=3, step=7)
    again = SEARCH.rows(1000, seed=3, step=7)
    assert rows.first.tolist() == again.first.tolist()
    for seed, step in ((4, 7), (3, 8)):
        other = SEARCH.rows(1000, seed=seed, step=step)
        assert rows.first.tolist() != other.first.tolist()


def test_the_rows_lie_anywhere_in_the_text():
    found = [SEARCH.rows(52, seed=0, step=step) for step in range(200)]
    first = np.concatenate([rows.first for rows in found])
    assert set(first.tolist()) == set(range(52 - 48 + 1))  # 48 steps of 52 predictions
    for rows in found:
        assert len(rows) == ROWS
        assert (rows.stop - rows.first == 48).all()
    far = Search(8, 24, 0.1, 5).rows(10_000, seed=0, step=0)
    assert (far.begin == np.maximum(far.first - BURN_IN, 0)).all()


def test_every_so_many_updates_and_not_the_first():
    assert [step for step in range(16) if SEARCH.is_due(step)] == [4, 9, 14]


def test_the_interval_makes_the_products_of_a_choice_a_small_share():
    # k1 = 64 and k2 = 64, 128, 256 over 512 steps: a run for the errors, and 3 for the
    # full gradient; then forward and weights' gradients with 1, 2 and 4 visits a step
    choice = ROWS * (256 + 512 * (1 + 3 + 3 + 4 + 6))
    update = 3 * 32 * 64
    every = updates_between(64, 256, 32 * 64)
    assert choice / (every * update) <= SHARE < choice / ((every - 1) * update)
    # one output a pass: each of 32 lags has a visit and the weights' gradients of half
    # of the steps on average
    choice = ROWS * (256 + 32 * (1 + 3 + 32))
    every = updates_between(1, 16, 100)
    assert choice / (every * 300) <= SHARE < choice / ((every - 1) * 300)


def test_defaults():
    _, training = resolve(Options(k2="auto"), 50)
    assert (training.k1, training.k2, training.first_k2) == (64, "auto", 64)
    assert training.search == Search(64, 256, 0.05, updates_between(64, 256, 32 * 64))
    given = Options(
        k2="auto", window=16, k1=8, tolerance=0.2, k2_max=24, choose_every=9
    )
    _, training = resolve(given, 50)
    assert training.search == Search(8, 24, 0.2, 9)
    _, training = resolve(Options(k2=128), 50)
    assert training.search is None
    assert (training.tolerance, training.k2_max, training.choose_every) == (None,) * 3


@pytest.mark.parametrize(
    ("k1", "k2", "truncation", "context"),
    [(8, 8, "full", 0), (8, 24, "full", 16), (4, 4, "4,4", 0), (4, 10, "4,10", 8)],
)
def test_segments_follow_from_the_k2_in_effect(k1, k2, truncation, context):
    _, training = resolve(Options(k2="auto", window=8, k1=k1), 50)
    found = training.truncation(k2)
    assert ("full" if found.is_full else f"{found.k1},{found.k2}") == truncation
    assert training.context(k2) == context
