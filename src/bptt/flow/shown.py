"""A gradient flow as data of a page, and as a page of its own."""

import html as escaping
import math
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from bptt import page
from bptt.flow import verdict
from bptt.flow.estimates import FlowEstimates
from bptt.truncation import Truncation

if TYPE_CHECKING:
    from bptt.flow.result import GradientFlow

# Decomposing a Jacobian is cubic in its width: two seconds for all, or none are shown.
_MOST_WORK = 4e9
_SPECTRA = (0.25, 0.5, 0.75)  # of the sequence
_WIDTH, _HEIGHT = 560, 120  # of a notebook's figure
_SHOWN = 0.999  # share of the gradient that it shows, at least
_FEWEST_BARS = 8


def flow_data(
    found: FlowEstimates, look_into: "GradientFlow | None" = None
) -> page.FlowData:
    """All that a page shows of a flow; measures some twenty truncations more.

    Args:
        found: of one batch or several.
        look_into: whose Jacobians are decomposed; None for the first of `found`.
    """
    time = found.time
    margins = [finite(e.margin) for e in found.by_lag_estimates]
    sizes = [2**n for n in range(1 + (time - 1).bit_length()) if 2**n < time]
    own = found.truncation
    cosines = torch.stack([flow.cosines for flow in found.flows]).mean(0)
    norms = found.norms.double().cpu().numpy()
    return page.FlowData(
        verdict=found.verdict.splitlines(),
        steps=time,
        batches=len(found.flows),
        rows=found.problem.rows.batch,
        cut=None if own.is_full_over(time) else _cut(found, own),
        by_lag=found.by_lag.tolist(),
        by_lag_margin=[m or 0.0 for m in margins] if all(margins) else None,
        # The longest window leaves nothing away: what is left is rounding.
        biases=[*found.biases[:-1].tolist(), 0.0],
        cosines=[*cosines[:-1].tolist(), 1.0],
        works=[
            verdict.work(found.problem, Truncation(1, k2 + 1)) for k2 in range(time)
        ],
        chunks=[_cut(found, Truncation.chunks(k)) for k in sizes],
        halves=[_cut(found, Truncation(k // 2, k)) for k in sizes if k > 2],
        window=found.window(),
        half=found.horizon(0.5),
        horizon=found.horizon(),
        growth=_growth(found),
        norms=page.triangle(norms),
        band=page.band(norms),
        spectra=_spectra(found.flows[0] if look_into is None else look_into),
    )


def write_page(found: FlowEstimates, path: str | Path) -> None:
    """One file that opens offline."""
    module = found.flows[0].module
    name = f"Gradient flow of {module}" if module else "Gradient flow"
    run = page.RunData(name=name, flow=flow_data(found))
    text = page.html(page.Page(run.name, [run]))
    Path(path).write_text(text, encoding="utf-8")


def notebook(found: FlowEstimates) -> str:
    """The verdict, and a small figure of what each lag contributes."""
    lines = "".join(f"<p>{escaping.escape(s)}</p>" for s in found.verdict.splitlines())
    window = found.window()
    shown = min(found.time, max(2 * window, found.horizon(_SHOWN) + 1, _FEWEST_BARS))
    by_lag = found.by_lag[:shown].double().cpu().numpy()
    heights = _HEIGHT * by_lag / (by_lag.max() or 1.0)
    # As many bars as can be told apart.
    each = -(-len(heights) // (_WIDTH // 4))
    padded = np.pad(heights, (0, -len(heights) % each))
    bars = padded.reshape(-1, each).max(axis=1)
    wide = _WIDTH / len(bars)
    marks = "".join(
        f'<rect x="{at * wide:.1f}" y="{_HEIGHT - h:.1f}" width="{wide * 0.8:.1f}" '
        f'height="{h:.1f}" fill="{"#2a6f97" if at * each < window else "#a8b0b5"}"/>'
        for at, h in enumerate(bars)
    )
    about = (
        f"Norm of what each lag contributes to the gradient, lags 0 to {shown - 1} of "
        f"{found.time - 1}; the first {window}, in blue, keep its bias within 5 %."
    )
    return (
        f'<div style="max-width:{_WIDTH + 40}px;line-height:1.45">{lines}'
        f'<svg role="img" aria-label="{about}" width="{_WIDTH}" height="{_HEIGHT}" '
        f'viewBox="0 0 {_WIDTH} {_HEIGHT}" style="max-width:100%">{marks}</svg>'
        f'<p style="opacity:.7">{about}</p></div>'
    )


def finite(value: float) -> float | None:
    """JSON has neither infinity nor NaN."""
    return value if math.isfinite(value) else None


def _cut(found: FlowEstimates, truncation: Truncation) -> page.Cut:
    assert truncation.k1 is not None
    assert truncation.k2 is not None
    bias = found.bias(truncation)
    return page.Cut(
        truncation.k1,
        truncation.k2,
        bias.mean,
        finite(bias.margin),
        found.cosine(truncation).mean,
        verdict.work(found.problem, truncation),
    )


def _growth(found: FlowEstimates) -> page.GrowthData | None:
    if found.time < 2:
        return None
    rate = found.growth.rate
    if not math.isfinite(rate.mean):
        return None
    return page.GrowthData(
        found.growth.kind,
        rate.mean,
        finite(rate.margin),
        finite(found.growth.half_life),
    )


def _spectra(flow: "GradientFlow") -> list[page.Spectrum]:
    problem = flow.problem
    width = sum(math.prod(shape) for shape in problem.state_shapes)
    steps = sorted({round(flow.time * share) for share in _SPECTRA})
    steps = [step for step in steps if 0 < step < flow.time]
    if problem.rows.batch * width**3 * len(steps) > _MOST_WORK:
        return []
    values = [flow.singular_values(step).double().mean(0) for step in steps]
    return [
        page.Spectrum(step, v.tolist())
        for step, v in zip(steps, values, strict=True)
        if bool(torch.isfinite(v).all())
    ]
