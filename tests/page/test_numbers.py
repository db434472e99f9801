"""Tables hold the norms they were made of."""

import numpy as np
import pytest

from bptt.page import band, triangle
from bptt.page.data import Table
from bptt.page.numbers import BAND_LAGS, MOST_ROWS, entries


def lower(time):
    return np.tril(np.random.default_rng(0).uniform(1e-6, 2, (time, time)))


@pytest.mark.parametrize("time", [1, 2, 7, MOST_ROWS])
def test_a_small_triangle_is_whole(time):
    norms = lower(time)
    table = triangle(norms)
    assert (table.kind, table.steps, table.rows) == ("triangle", time, time)
    expected = norms.astype(np.float32)[np.tril_indices(time)]
    np.testing.assert_array_equal(entries(table), expected)
    assert band(norms) is None


@pytest.mark.parametrize("time", [MOST_ROWS + 1, 600])
def test_a_large_one_keeps_the_largest_of_each_cell(time):
    norms = lower(time)
    table = triangle(norms)
    each = -(-time // MOST_ROWS)
    assert table.rows == -(-time // each) <= MOST_ROWS
    found = np.zeros((table.rows, table.rows), np.float32)
    found[np.tril_indices(table.rows)] = entries(table)
    for row, column in ((0, 0), (5, 3), (table.rows - 1, 0), (table.rows - 1,) * 2):
        cell = norms[row * each : (row + 1) * each, column * each : (column + 1) * each]
        assert found[row, column] == np.float32(cell.max())
    # The first lags of every step come beside it.
    beside = band(norms)
    values = entries(beside).reshape(time, BAND_LAGS)
    for t, lag in ((0, 0), (30, 30), (time - 1, BAND_LAGS - 1), (40, 7)):
        assert values[t, lag] == np.float32(norms[t, t - lag])
    assert values[3, 4] == 0


def test_numbers_beyond_float32_are_its_largest():
    found = entries(triangle(np.array([[1e300, 0.0], [0.0, 1.0]])))
    assert found[0] == np.finfo(np.float32).max


@pytest.mark.parametrize("values", ["", "AAAA", "!", "AADAfwAAwH8AAMB/"])
def test_other_tables_are_refused(values):
    with pytest.raises(ValueError):
        entries(Table("triangle", 2, 2, 2, values))
