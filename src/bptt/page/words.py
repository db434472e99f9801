"""Numbers in words, for the template."""

import math
from itertools import pairwise

from bptt.page.data import Cut, FlowData


def number(value: float | None) -> str:
    """Three figures that matter."""
    if value is None or not math.isfinite(value):
        return "–"
    if value and not 1e-3 <= abs(value) < 1e5:
        return f"{value:.2e}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def percent(value: float | None) -> str:
    """Of 1."""
    if value is None or not math.isfinite(value):
        return "–"
    if value >= 100:
        return f"{value:.3g} times"
    text = f"{100 * value:.2g}" if abs(value) < 0.1 else f"{100 * value:.0f}"
    return f"{text}\u00a0%"


def unbroken(text: str) -> str:
    """Signs stay with their numbers."""
    for sign in ("%", "±", "="):
        text = text.replace(f" {sign}", f"\u00a0{sign}")
    return text.replace("± ", "±\u00a0").replace("= ", "=\u00a0")


def lags(flow: FlowData) -> list[tuple[str, float, float, float]]:
    """Groups of lags 0, 1, 2 to 3, 4 to 7 and so on.

    Returns:
        Which; their share of the sum over all lags; bias and cosine of a window for
        each output that ends there.
    """
    bounds = [0, 1]
    while bounds[-1] < flow.steps:
        bounds.append(min(max(2 * bounds[-1], 2), flow.steps))
    total = sum(flow.by_lag) or 1.0
    return [
        (
            f"{a}" if b == a + 1 else f"{a} to {b - 1}",
            sum(flow.by_lag[a:b]) / total,
            flow.biases[b - 1],
            flow.cosines[b - 1],
        )
        for a, b in pairwise(bounds)
    ]


def cuts(flow: FlowData) -> list[Cut]:
    """The truncations in chunks that were measured."""
    return sorted([*flow.chunks, *flow.halves], key=lambda cut: (cut.k2, cut.k1))


FILTERS = {
    "number": number,
    "percent": percent,
    "unbroken": unbroken,
    "lags": lags,
    "cuts": cuts,
}
