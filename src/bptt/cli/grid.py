"""Numbers and words in columns of a fixed width, for a page of 80 columns."""

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray
from rich.cells import cell_len, set_cell_size

WIDTH = 9  # of a number or a word, the space before it included

Array = NDArray[np.float64]


def number(value: float) -> str:
    """Five decimals, or a power of ten where those would say little; zero is exact."""
    value = float(value)
    if not value:
        return f"{0:{WIDTH}}"
    if not 1e-3 <= abs(value) < 1e3:
        return f"{value:{WIDTH}.1e}"
    decimals = 5 if abs(value) < 10 else 3
    return f"{value:{WIDTH}.{decimals}f}"


def numbers(values: Iterable[float]) -> str:
    """A row of them."""
    return "".join(map(number, values))


def word(text: str, *, left: bool = False) -> str:
    """In a column, cut if it is too long; what does not print is escaped."""
    shown = label(text)
    width = WIDTH - 1
    if left:
        return set_cell_size(shown, width) + " "
    return " " + set_cell_size(" " * (width - cell_len(shown)) + shown, width)


def words(texts: Iterable[str]) -> str:
    """A row of them."""
    return "".join(map(word, texts))


def label(text: str) -> str:
    """A word as it is seen: white space in quotes, what does not print escaped."""
    if text.isprintable():
        return f"'{text}'" if not text.strip() else text
    return repr(text)[1:-1]


def percent(share: float) -> str:
    """A share of a whole, in a column."""
    if share < 1e-3:
        return f"{share:{WIDTH}.0e}" if share else f"{'none':>{WIDTH}}"
    return f"{share:{WIDTH}.1%}"
