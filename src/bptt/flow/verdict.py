"""The answer in words: reach, growth, cost of the truncation, window, and what helps.

Every number is computed from the flows at hand, and what is said follows from them.
"""

import math
from typing import TYPE_CHECKING

from bptt.flow.problem import Problem
from bptt.flow.statistics import Estimate
from bptt.truncation import Truncation

if TYPE_CHECKING:
    from bptt.flow.estimates import FlowEstimates


def of(found: "FlowEstimates", tolerance: float) -> str:
    """The verdict on one flow, or on several batches of one model together."""
    if found.time == 1:
        return "The sequence has one step, so nothing goes back."
    lines = [
        _reach(found),
        _growth(found),
        _truncation(found),
        _window(found, tolerance),
        _advice(found),
    ]
    return "\n".join(line for line in lines if line)


def work(problem: Problem, truncation: Truncation) -> float:
    """Multiplications of a training step, full BPTT being 1.

    The way forward, each visit of a pass, and the weights' gradients: a product with U
    or W each, visits with W.
    """
    inputs, states = problem.products()
    visits = sum(lag.last - lag.first for lag in truncation.lags(problem.time))
    each = visits / problem.time
    return (2 * inputs + (2 + each) * states) / (2 * inputs + 3 * states)


def _reach(found: "FlowEstimates") -> str:
    time, most, half = found.time, found.horizon(0.95), found.horizon(0.5)
    text = (
        f"95 % of the gradient comes from {_lags(most)}, half of it from "
        f"{_lags(half)}, of {time} steps."
    )
    if most >= 0.9 * (time - 1):
        text += " It reaches across the whole sequence: a longer one may show more."
    return text


def _growth(found: "FlowEstimates") -> str:
    growth = found.growth
    exponent = f"largest Lyapunov exponent {_signed(growth.rate)} a step"
    if growth.kind == "stable":
        return f"Going back, an error keeps its size ({exponent}): it is stable."
    halves = growth.kind == "vanishing"
    return (
        f"Going back, an error {'halves' if halves else 'doubles'} every "
        f"{_steps(growth.half_life)} ({exponent}): it "
        f"{'vanishes' if halves else 'explodes'}."
    )


def _truncation(found: "FlowEstimates") -> str:
    cut = found.truncation
    if cut.is_full_over(found.time):
        return f"Training cuts nothing within these {found.time} steps."
    b, c = found.bias(cut), found.cosine(cut)
    return (
        f"Training cuts it at k1 = {cut.k1}, k2 = {cut.k2}: the gradient is off by "
        f"{_percent(b)} (bias), at a cosine of {c.mean:.3f} with the full one."
    )


def _window(found: "FlowEstimates", tolerance: float) -> str:
    k2 = found.window(tolerance)
    limit = f"{100 * tolerance:g} %"
    own = Truncation(1, k2)
    if k2 >= found.time:
        return f"No window shorter than these {found.time} steps keeps within {limit}."
    times = work(found.problem, own)
    text = (
        f"A window of k2 = {k2} steps for each output keeps within {limit} "
        f"({_percent(found.bias(own))}), at {times:.3g} times the work of full BPTT."
    )
    size = found.chunk(tolerance)
    if size is None:
        return f"{text} Detaching the state anywhere in the sequence costs more bias."
    off = _percent(found.bias(Truncation.chunks(size)))
    return (
        f"{text} So does detaching the state every {size} steps ({off}), at its work."
    )


def _advice(found: "FlowEstimates") -> str:
    growth, carried = found.growth, found.problem.carried()
    if growth.kind == "exploding":
        # How much larger the error is that has gone all the way.
        flow = found.flows[0]
        first, own = float(flow.norms[:, 0].max()), float(flow.norms.diagonal().max())
        ratio = f", up to {first / own:.3g} times what enters" if own else ""
        factor = math.exp(-growth.rate.mean)
        return (
            f"What usually helps: clip the norm of the gradient (here "
            f"{flow.gradient_norm:.3g}{ratio}), or begin with recurrent weights "
            f"{factor:.2g} times these."
        )
    if growth.kind == "stable" or carried is None:
        return ""
    share = carried.share
    if carried.cell == "RNN":
        return (
            "What usually helps: a GRU or an LSTM, or orthogonal recurrent weights. "
            f"A unit's slope lets {100 * share:.0f} % of an error through on average, "
            f"and the recurrent weights stretch it by {carried.spectral_norm:.2g} at "
            "most."
        )
    gate = "forget" if carried.cell == "LSTM" else "update"
    life = math.log(0.5) / math.log(share) if 0 < share < 1 else math.inf
    wanted = 0.5 ** (2 / found.time)  # what halves an error in half of the sequence
    if share >= wanted:
        return ""
    shift = _logit(wanted) - _logit(share)
    return (
        f"What usually helps: {gate} gates nearer to 1. They are {share:.2f} on "
        f"average, which alone halves an error in {_steps(life)}; a bias larger by "
        f"{shift:.1f} would make it {found.time // 2}."
    )


def _lags(last: int) -> str:
    return f"lags 0 to {last}" if last else "lag 0 alone"


def _logit(p: float) -> float:
    p = min(max(p, 1e-6), 1 - 1e-6)
    return math.log(p / (1 - p))


def _percent(value: Estimate) -> str:
    text = f"{100 * value.mean:.2g}" if value.mean < 0.1 else f"{100 * value.mean:.0f}"
    if not math.isfinite(value.margin):
        return f"{text} %"
    return f"{text} ± {100 * value.margin:.2g} %"


def _signed(value: Estimate) -> str:
    margin = f" ± {value.margin:.2g}" if math.isfinite(value.margin) else ""
    return f"{value.mean:+.3g}{margin}"


def _steps(count: float) -> str:
    text = f"{count:.0f}" if count >= 10 else f"{count:.1f}"
    return f"{text} step" if text == "1" else f"{text} steps"
