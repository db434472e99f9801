"""Gates and states as histograms, with what is saturated and what never moves."""

import torch
from torch import Tensor

from bptt import page
from bptt.flow.problem import Activity

_BINS = 40
_NEAR = 0.05  # share of a bounded range that counts as its end
_STILL = 0.01  # standard deviation over the steps, below which a unit does not move


def histograms(activity: list[Activity]) -> list[page.Histogram]:
    """One for each gate and output of each layer."""
    return [_histogram(one) for one in activity if one.values.numel()]


def _histogram(one: Activity) -> page.Histogram:
    values = one.values.detach().double().cpu()
    low = float(values.min()) if one.low is None else float(one.low)
    high = float(values.max()) if one.high is None else float(one.high)
    if not high > low:
        high = low + 1.0
    counts = torch.histc(values, _BINS, low, high)
    near = _NEAR * (high - low)
    moves = values.std(0) if len(values) > 1 else torch.ones(values.shape[1])
    return page.Histogram(
        name=one.name,
        layer=one.layer + 1,
        low=low,
        high=high,
        counts=[int(count) for count in counts.tolist()],
        mean=float(values.mean()),
        low_share=0.0 if one.low is None else _share(values < low + near),
        high_share=0.0 if one.high is None else _share(values > high - near),
        still=_share(moves < _STILL),
    )


def _share(which: Tensor) -> float:
    return float(which.double().mean())
