"""The figure shows the numbers of the flow."""

import sys

import matplotlib as mpl
import numpy as np
import pytest

from bptt.flow import FlowEstimates, gradient_flow
from flow.test_flow import TIME, data, stack, weighted

mpl.use("Agg")


@pytest.fixture
def flow():
    module = stack("gru")
    return gradient_flow(module, weighted(module))


def test_the_axes_hold_the_numbers(flow):
    left, right = flow.plot()
    image = left.images[0].get_array()
    norms = flow.norms.numpy()
    shown = ~np.ma.getmaskarray(image)
    expected = np.log10(norms[shown] / norms.max())
    np.testing.assert_allclose(image[shown], expected)
    assert not np.triu(shown, 1).any()
    lags, window = right.lines
    np.testing.assert_allclose(lags.get_ydata(), flow.by_lag.numpy())
    assert list(window.get_xdata()) == [flow.window() - 1] * 2
    mpl.pyplot.close("all")


def test_given_axes_and_several_batches(flow):
    module = stack("gru")
    other = gradient_flow(module, weighted(module, data(TIME, 3, 4, seed=8)))
    together = FlowEstimates((flow, other))
    figure, axes = mpl.pyplot.subplots(1, 2)
    assert together.plot(axes) is axes
    assert figure.axes[:2] == list(axes)
    (band,) = axes[1].collections
    highest = max(e.mean + e.margin for e in together.by_lag_estimates)
    assert band.get_paths()[0].vertices[:, 1].max() == pytest.approx(highest)
    mpl.pyplot.close("all")


def test_without_matplotlib(flow, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    with pytest.raises(ImportError, match=r'pip install "bptt\[plot\]"'):
        flow.plot()
