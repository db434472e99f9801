"""A flow as a page of its own, and in a notebook."""

import re

import msgspec
import numpy as np
import pytest

from bptt import page
from bptt.flow import FlowEstimates, gradient_flow
from bptt.page.numbers import entries
from flow.test_flow import TIME, data, stack, weighted


@pytest.fixture(scope="module")
def flow():
    module = stack("gru")
    return gradient_flow(module, weighted(module))


def shown(path):
    block = re.search(r'id="data">(.*?)</script>', path.read_text(), re.DOTALL)[1]
    return msgspec.json.decode(block, type=page.Page).runs[0]


def test_the_page_holds_the_numbers(flow, tmp_path):
    flow.to_html(tmp_path / "flow.html")
    found = shown(tmp_path / "flow.html").flow
    assert found.verdict == flow.verdict.splitlines()
    assert found.by_lag == flow.by_lag.double().tolist()
    assert found.biases[:-1] == flow.biases[:-1].tolist()
    assert found.cosines[:-1] == flow.cosines[:-1].tolist()
    assert found.by_lag_margin is None
    norms = flow.norms.numpy()[np.tril_indices(TIME)]
    np.testing.assert_array_equal(entries(found.norms), norms.astype(np.float32))
    assert [s.step for s in found.spectra] == sorted(
        {round(TIME * share) for share in (0.25, 0.5, 0.75)}
    )
    for spectrum in found.spectra:
        values = flow.singular_values(spectrum.step).mean(0)
        np.testing.assert_allclose(spectrum.values, values)


def test_several_batches(flow, tmp_path):
    module = stack("gru")
    other = gradient_flow(module, weighted(module, data(TIME, 3, 4, seed=8)))
    together = FlowEstimates((flow, other))
    together.to_html(str(tmp_path / "both.html"))
    found = shown(tmp_path / "both.html").flow
    assert found.batches == 2
    assert found.by_lag == together.by_lag.tolist()
    assert found.by_lag_margin == [e.margin for e in together.by_lag_estimates]


def test_in_a_notebook(flow):
    text = flow._repr_html_()
    assert text == FlowEstimates((flow,))._repr_html_()
    for line in flow.verdict.splitlines():
        assert f"<p>{line}</p>" in text
    heights = [float(h) for h in re.findall(r'height="([\d.]+)" fill', text)]
    assert len(heights) >= min(TIME, flow.horizon(0.999) + 1)
    expected = 120 * flow.by_lag[: len(heights)] / flow.by_lag.max()
    np.testing.assert_allclose(heights, expected, atol=0.051)
    kept = text.count('fill="#2a6f97"')
    assert kept == flow.window()
    assert "<script" not in text
