"""`bptt flow`: how far back the gradient of a trained model goes."""

import sys
from itertools import pairwise
from typing import Any

from rich.console import Console

from bptt.cli.arguments import Flow
from bptt.cli.output import write_json
from bptt.cli.progress import bar, console
from bptt.cli.runs import as_input_error, load_run
from bptt.errors import InputError
from bptt.flow import FlowEstimates
from bptt.language_model import LanguageModel
from bptt.text import Sentences, Stream, read_text
from bptt.training import (
    FlowPlan,
    RunFolder,
    TrainingConfig,
    encode_for,
    flow_over,
    trained_truncation,
)
from bptt.truncation import Truncation

_BAR_WIDTH = 40
_SHARES = (0.5, 0.95)
_TOLERANCE = 0.05
AFTER_TRAINING = FlowPlan(rows=4, batches=2)


def run(command: Flow) -> int:
    """Measure, and say it in words with a small chart."""
    if not 0 < command.tolerance < float("inf"):
        raise InputError(f"--tolerance must be above 0; got {command.tolerance}")
    to = console()
    model, config = load_run(command.run)
    with as_input_error():
        plan = FlowPlan(command.rows, command.batches, command.steps)
        text = read_text(command.text)
    assert model.tokenizer is not None
    encoded = encode_for(
        text, model.tokenizer, model.config.unit, one_a_line=model.config.one_a_line
    )
    chosen_k2 = RunFolder(command.run).chosen_k2
    found = measured(to, model, config, encoded, plan, chosen_k2)
    if command.json:
        write_json(record(found, command.tolerance))
    else:
        sys.stdout.write(words(found, command.tolerance))
    return 0


def say(
    to: Console,
    model: LanguageModel,
    config: TrainingConfig,
    text: Stream | Sentences,
    chosen_k2: int | None,
) -> FlowEstimates:
    """At the end of training: the same over little of the held-out text."""
    found = measured(to, model, config, text, AFTER_TRAINING, chosen_k2)
    to.print(f"How far back the gradient goes:\n{words(found, _TOLERANCE)}")
    return found


def measured(
    to: Console,
    model: LanguageModel,
    config: TrainingConfig | None,
    text: Stream | Sentences,
    plan: FlowPlan,
    chosen_k2: int | None,
) -> FlowEstimates:
    """The flow over a text, with a bar while it takes its time.

    `chosen_k2` is the run's last choice, which counts with `--k2 auto`.
    """
    progress = bar(to)
    task = progress.add_task("gradient flow", total=None)

    def advance(done: int, total: int) -> None:
        progress.update(task, completed=done, total=total)

    truncation = (
        Truncation.full() if config is None else trained_truncation(config, chosen_k2)
    )
    window = None if config is None else config.window
    with progress:
        return flow_over(model, truncation, window, text, plan, advance)


def words(found: FlowEstimates, tolerance: float) -> str:
    """The verdict and a chart of the gradient by lag."""
    return f"{found.verdict_at(tolerance)}\n\n{chart(found)}"


def chart(found: FlowEstimates) -> str:
    """What each lag contributes, in lags 0, 1, 2 to 3, 4 to 7 and so on.

    The bars are shares of the sum over all lags of the norms; beside them the bias of
    a window that ends there.
    """
    by_lag, biases = found.by_lag, found.biases
    total = float(by_lag.sum())
    bounds = [0, 1]
    while bounds[-1] < found.time:
        bounds.append(min(max(2 * bounds[-1], 2), found.time))
    groups = list(pairwise(bounds))
    shares = [float(by_lag[a:b].sum()) / total for a, b in groups]
    largest = max(shares)
    lines = [f"{'lag':>9}  {'share':>7}  {'bias if cut there':>17}"]
    for (a, b), share in zip(groups, shares, strict=True):
        lag = f"{a}" if b == a + 1 else f"{a}-{b - 1}"
        bar_ = "█" * round(_BAR_WIDTH * share / largest)
        lines.append(
            f"{lag:>9}  {100 * share:>5.1f} %  {100 * float(biases[b - 1]):>15.1f} %"
            f"  {bar_}".rstrip()
        )
    return "\n".join(lines) + "\n"


def record(found: FlowEstimates, tolerance: float) -> dict[str, Any]:
    """What `--json` prints."""
    time, growth = found.time, found.growth if found.time > 1 else None
    truncations = {found.truncation} - {Truncation.full()}
    size = 1
    while size < time:
        truncations |= {Truncation(1, size), Truncation.chunks(size)}
        size *= 2
    ordered = sorted(truncations, key=lambda t: (t.k1 or 0, t.k2 or 0))
    names = {f"{t.k1},{t.k2}": t for t in ordered}
    tolerances = sorted({_TOLERANCE, tolerance})
    by_lag = found.by_lag_estimates
    return {
        "verdict": found.verdict_at(tolerance),
        "steps": time,
        "batches": len(found.flows),
        "rows": found.problem.rows.batch,
        "truncation": str(found.truncation),
        "by_lag": [e.mean for e in by_lag],
        "by_lag_margin": [e.margin for e in by_lag],
        "horizon": {f"{share:g}": found.horizon(share) for share in _SHARES},
        "window": {f"{t:g}": found.window(t) for t in tolerances},
        "bias": {name: found.bias(t).mean for name, t in names.items()},
        "bias_margin": {name: found.bias(t).margin for name, t in names.items()},
        "cosine": {name: found.cosine(t).mean for name, t in names.items()},
        "growth": None
        if growth is None
        else {
            "kind": growth.kind,
            "rate": growth.rate.mean,
            "rate_margin": growth.rate.margin,
            "half_life": growth.half_life,
        },
    }
