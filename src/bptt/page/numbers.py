"""Tables of gradient norms as text, small enough to travel with a page."""

import base64

import numpy as np
from numpy.typing import NDArray

from bptt.page.data import Table

MOST_ROWS = 256
BAND_LAGS = 48


def triangle(norms: NDArray[np.floating]) -> Table:
    """A square table [t, k], `k <= t`; of more than 256 steps the largest of groups.

    Args:
        norms: (time, time), 0 where `k > t`.
    """
    steps = norms.shape[0]
    each = -(-steps // MOST_ROWS)
    rows = -(-steps // each)
    padded = np.zeros((rows * each, rows * each))
    padded[:steps, :steps] = norms
    largest = padded.reshape(rows, each, rows, each).max(axis=(1, 3))
    return Table("triangle", steps, rows, rows, _text(largest[np.tril_indices(rows)]))


def band(norms: NDArray[np.floating]) -> Table | None:
    """The first lags of every step; None where `triangle` leaves nothing away."""
    steps = norms.shape[0]
    if steps <= MOST_ROWS:
        return None
    lags = min(BAND_LAGS, steps)
    found = np.zeros((steps, lags))
    for lag in range(lags):
        found[lag:, lag] = np.diagonal(norms, -lag)
    return Table("band", steps, steps, lags, _text(found))


def entries(table: Table) -> NDArray[np.float32]:
    """The numbers of a table, as they stand in it.

    Raises:
        ValueError: they are not as many as it says, or not finite.
    """
    data, rows = base64.b64decode(table.values, validate=True), table.rows
    count = rows * table.columns if table.kind == "band" else rows * (rows + 1) // 2
    if rows < 1 or len(data) != 4 * count:
        raise ValueError(f"a table of {rows} rows has {len(data) / 4:g} numbers")
    found = np.frombuffer(data, "<f4")
    if not np.isfinite(found).all():
        raise ValueError(f"a table of {rows} rows has numbers that are not finite")
    return found


def _text(values: NDArray[np.floating]) -> str:
    # Norms can pass the range of float32 where they were measured in float64.
    most = float(np.finfo("<f4").max)
    return base64.b64encode(np.minimum(values, most).astype("<f4").tobytes()).decode()
