"""A run's folder -> what a page says of it."""

import math
from pathlib import Path
from typing import Any

import msgspec

from bptt import page
from bptt.escape import printable
from bptt.language_model import LanguageModel, ModelConfig
from bptt.page.words import number, percent
from bptt.report.command import command
from bptt.report.findings import Findings, versions
from bptt.report.logs import curves
from bptt.training import RunFolder, TrainingConfig, trained_truncation

_LONGEST = 200  # characters of a setting


def run_data(
    folder: Path,
    model: LanguageModel | None,
    config: TrainingConfig | None,
    findings: Findings | None,
) -> page.RunData:
    """Everything that there is.

    Args:
        folder: of the run.
        model: the best so far; None where none is saved yet.
        config: how it was trained, where that is known.
        findings: None where it was not looked into.

    Raises:
        InputError: a log is there and cannot be read.
    """
    drawn, notes = curves(folder, None if config is None else config.clip)
    if model is None:
        notes.append("No model is saved yet, so there is nothing to look into.")
    flow = None if findings is None else findings.flow
    return page.RunData(
        name=_name(folder),
        lines=_lines(model, drawn),
        notes=notes,
        facts=_facts(model, config, drawn, flow, RunFolder(folder).chosen_k2),
        settings=_settings(model, config),
        versions=versions() if findings is None else findings.versions,
        command=""
        if model is None or config is None
        else command(model.config, config),
        curves=drawn,
        flow=flow,
        reading=None if findings is None else findings.reading,
        text="" if findings is None else findings.text,
        activity=[] if findings is None else findings.activity,
        samples=[] if findings is None else findings.samples,
    )


def _name(folder: Path) -> str:
    # Bytes of a path that are no text arrive as lone surrogates.
    return printable(str(folder).encode("utf-8", "backslashreplace").decode())


def _lines(model: LanguageModel | None, drawn: page.Curves | None) -> list[str]:
    lines = []
    if model is not None:
        shape = model.config
        count = sum(p.numel() for p in model.parameters())
        layers = "one layer" if shape.layers == 1 else f"{shape.layers} layers"
        lines.append(
            f"{shape.cell.upper()} with {layers} of {shape.hidden} units and "
            f"{count:,} parameters."
        )
    if drawn is None:
        return lines
    if drawn.step:
        seconds = f" in {_duration(drawn.elapsed_s[-1])}" if drawn.elapsed_s else ""
        lines.append(f"It was updated {drawn.step[-1]:,} times{seconds}.")
    if drawn.final_loss is not None and drawn.final_tokens is not None:
        lines.append(
            f"On the held-out text, {drawn.final_tokens:,} tokens, its loss is "
            f"{drawn.final_loss:.4f} nats a token, a perplexity of "
            f"{_perplexity(drawn.final_loss)}."
        )
    elif drawn.valid_loss:
        best = min(drawn.valid_loss)
        lines.append(
            f"So far the best loss on the beginning of the held-out text is {best:.4f} "
            f"nats a token, a perplexity of {_perplexity(best)}."
        )
    return lines


def _facts(
    model: LanguageModel | None,
    config: TrainingConfig | None,
    drawn: page.Curves | None,
    flow: page.FlowData | None,
    chosen_k2: int | None,
) -> list[tuple[str, str]]:
    """For the table that lays runs side by side; as many for every run."""
    shape: ModelConfig | None = None if model is None else model.config
    loss, cut = None, "–"
    if drawn is not None:
        loss = drawn.final_loss
        if loss is None and drawn.valid_loss:
            loss = min(drawn.valid_loss)
    if config is not None:
        trained = trained_truncation(config, chosen_k2)
        cut = "full" if trained.k1 is None else f"k1 = {trained.k1}, k2 = {trained.k2}"
    window = "–" if config is None else str(config.window or "a sentence")
    return [
        ("Held-out loss, nats", "–" if loss is None else f"{loss:.4f}"),
        ("Perplexity", "–" if loss is None else _perplexity(loss)),
        ("Cell", "–" if shape is None else shape.cell.upper()),
        (
            "Layers × units",
            "–" if shape is None else f"{shape.layers} × {shape.hidden}",
        ),
        ("Window of training", window),
        ("Truncation", cut),
        ("Updates", f"{drawn.step[-1]:,}" if drawn is not None and drawn.step else "–"),
        (
            "Tokens a second",
            number(drawn.tokens_per_s[-1])
            if drawn is not None and drawn.tokens_per_s
            else "–",
        ),
        ("Bias of the truncation", _bias(flow)),
        ("Steps for a bias within 5 %", "–" if flow is None else str(flow.window)),
        ("Half-life of an error", _half_life(flow)),
    ]


def _settings(
    model: LanguageModel | None, config: TrainingConfig | None
) -> list[tuple[str, str]]:
    found: dict[str, Any] = {}
    for struct in (None if model is None else model.config, config):
        if struct is not None:
            found |= msgspec.to_builtins(struct)
    return [(name, _setting(value)) for name, value in found.items()]


def _setting(value: object) -> str:
    text = "–" if value is None else printable(str(value))
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"


def _bias(flow: page.FlowData | None) -> str:
    if flow is None:
        return "–"
    return "0" if flow.cut is None else percent(flow.cut.bias)


def _half_life(flow: page.FlowData | None) -> str:
    if flow is None or flow.growth is None or flow.growth.half_life is None:
        return "–"
    word = "doubles in" if flow.growth.kind == "exploding" else "halves in"
    return f"{word} {number(flow.growth.half_life)} steps"


def _perplexity(loss: float) -> str:
    return number(math.exp(loss) if loss < 700 else math.inf)


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} seconds"
    if seconds < 7200:
        return f"{seconds / 60:.0f} minutes"
    return f"{seconds / 3600:.1f} hours"
