"""The figure of a gradient flow: the map of all pairs, and the gradient by lag."""

from typing import TYPE_CHECKING, Any

import numpy as np

from bptt.flow.estimates import FlowEstimates

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_DECADES = 6  # of the map's colours


def plot(found: FlowEstimates, axes: "tuple[Axes, Axes] | None" = None) -> Any:
    """Draw into two axes, of a new figure if None: the map, and the lags.

    Returns:
        The two axes.

    Raises:
        ImportError: matplotlib is not installed.
    """
    if axes is None:
        axes = _new_axes()
    _map(axes[0], found)
    _lags(axes[1], found)
    return axes


def _new_axes() -> Any:
    try:
        from matplotlib import pyplot
    except ImportError as error:
        raise ImportError(
            'plot needs matplotlib; install it with pip install "bptt[plot]"'
        ) from error
    _, axes = pyplot.subplots(1, 2, figsize=(11, 4.5), layout="constrained")
    return tuple(axes)


def _map(axes: "Axes", found: FlowEstimates) -> None:
    norms = found.norms.double().cpu().numpy()
    largest = float(norms.max()) or 1.0
    with np.errstate(divide="ignore"):
        logs = np.log10(norms / largest)
    shown = np.ma.masked_less(logs, -_DECADES)
    image = axes.imshow(
        shown, origin="lower", cmap="viridis", vmin=-_DECADES, vmax=0, aspect="auto"
    )
    axes.figure.colorbar(image, ax=axes, label="log10 of the norm, of the largest")
    axes.set(
        xlabel="step k of the state",
        ylabel="step t of the output",
        title="|dE_t / ds_k|",
    )


def _lags(axes: "Axes", found: FlowEstimates) -> None:
    by_lag = found.by_lag.cpu().numpy()
    lags = np.arange(found.time)
    positive = by_lag > 0
    axes.plot(lags[positive], by_lag[positive], color="C0", label="gradient by lag")
    if len(found.flows) > 1:
        margins = np.array([e.margin for e in found.by_lag_estimates])
        low = np.maximum(by_lag - margins, by_lag[positive].min())
        axes.fill_between(lags, low, by_lag + margins, color="C0", alpha=0.2, lw=0)
    window = found.window()
    axes.axvline(
        window - 1,
        color="C1",
        ls="--",
        label=f"5 % window, k2 = {window}",
    )
    axes.set(
        xlabel="lag t - k in steps",
        ylabel="norm of the contribution",
        yscale="log",
        title="What each lag contributes",
    )
    axes.legend()
