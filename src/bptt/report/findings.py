"""What a trained model was found to do, measured once and kept in `flow.json`."""

import platform
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np
import torch

from bptt import __version__, kernels, page, storage
from bptt.errors import CheckpointError
from bptt.escape import printable
from bptt.flow import FlowEstimates
from bptt.flow.shown import flow_data
from bptt.language_model import LanguageModel
from bptt.page.numbers import entries
from bptt.report.activity import histograms
from bptt.text import Sentences, Stream, Tokenizer
from bptt.training import Stretch, flow_of_stretch

FLOW = "flow.json"
READ_TOKENS = 200
_TEMPERATURES = (0.3, 0.6, 0.8, 1.0)
_SAMPLE_TOKENS = {"char": 240, "bpe": 120, "word": 80}
_SPECIAL = {
    Tokenizer.unknown_id: "⟨unknown⟩",
    Tokenizer.start_id: "⟨start⟩",
    Tokenizer.end_id: "⟨end⟩",
}
_PACKAGES = ("torch", "numpy", "tokenizers")


@dataclass(frozen=True)
class Findings:
    """The content of `flow.json`.

    Attributes:
        flow: over parts of a text.
        reading: of one stretch of it, token by token.
        activity: of gates and states over that stretch.
        samples: what the model writes.
        text: what was read, in words.
        versions: of what measured it.
        format: of the file.
    """

    flow: page.FlowData
    reading: page.Reading
    activity: list[page.Histogram]
    samples: list[page.Sample]
    text: str
    versions: list[tuple[str, str]]
    format: Literal[1] = 1


def findings_of(
    model: LanguageModel,
    found: FlowEstimates,
    text: Stream | Sentences,
    name: str,
    seed: int = 0,
) -> Findings:
    """Look into a model, besides what is found already.

    Args:
        model: with a tokenizer; is left as it was.
        found: its gradient flow over the text.
        text: of which one stretch is read, token by token.
        name: what to call the text, as "the held-out text".
        seed: of the samples.

    Raises:
        InputError: the text has no stretch of two steps.
    """
    stretch = flow_of_stretch(model, text, READ_TOKENS)
    assert model.tokenizer is not None
    length = _SAMPLE_TOKENS[model.tokenizer.level]
    return Findings(
        flow=flow_data(found, stretch.flow),
        reading=_reading(model.tokenizer, stretch),
        activity=histograms(stretch.flow.problem.activity()),
        samples=[
            page.Sample(
                temperature,
                printable(
                    model.generate(length=length, temperature=temperature, seed=seed)
                ).strip(),
            )
            for temperature in _TEMPERATURES
        ],
        text=printable(name),
        versions=versions(),
    )


def versions() -> list[tuple[str, str]]:
    """Of what runs now."""
    return [
        ("bptt", __version__),
        *((name, metadata.version(name)) for name in _PACKAGES),
        ("Python", platform.python_version()),
        ("kernel", kernels.active()),
        ("threads", str(torch.get_num_threads())),
        ("machine", f"{platform.system()} {platform.machine()}"),
    ]


def save(folder: Path, findings: Findings) -> None:
    """Write `flow.json`.

    Raises:
        OSError: it cannot be written.
    """
    storage.write_atomically(folder / FLOW, msgspec.json.encode(findings))


def load(folder: Path) -> Findings | None:
    """The findings of a run, if it has any.

    Raises:
        CheckpointError: the file is damaged.
    """
    path = folder / FLOW
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
    try:
        findings = msgspec.json.decode(data, type=Findings)
        for problem in _contradictions(findings):
            raise ValueError(problem)
    except (ValueError, RecursionError) as error:  # msgspec's errors are ValueErrors
        raise CheckpointError(
            f"{path}: {error}; delete it, and bptt report measures anew"
        ) from error
    return findings


def _contradictions(found: Findings) -> Iterator[str]:
    """What the figures would stumble over."""
    flow, reading = found.flow, found.reading
    steps = flow.steps
    if not flow.verdict:
        yield "the flow has no verdict"
    lists = (flow.by_lag, flow.biases, flow.cosines, flow.works)
    if steps < 1 or any(len(values) != steps for values in lists):
        yield f"the flow of {steps} steps has lists of other lengths"
    margins = flow.by_lag_margin
    if margins is not None and len(margins) != steps:
        yield f"the flow of {steps} steps has {len(margins)} margins"
    if not 1 <= flow.window <= steps:
        yield f"a window of {flow.window} steps is not one of {steps}"
    length = len(reading.losses)
    if len(reading.tokens) != length + 1 or reading.norms.rows != length:
        yield f"the reading of {length} steps has {len(reading.tokens)} tokens"
    for table, kind, about in (
        (flow.norms, "triangle", steps),
        (flow.band, "band", steps),
        (reading.norms, "triangle", length),
    ):
        if table is None:
            continue
        if table.kind != kind or table.steps != about or table.rows > about:
            yield f"a table of {table.steps} steps is of kind {table.kind!r}"
        entries(table)
    if any(not spectrum.values for spectrum in flow.spectra):
        yield "a spectrum is empty"
    for histogram in found.activity:
        counts, width = histogram.counts, histogram.high - histogram.low
        if min(counts, default=-1) < 0 or not width > 0:
            yield f"the histogram of {histogram.name!r} has no counts"


def _reading(tokenizer: Tokenizer, stretch: Stretch) -> page.Reading:
    norms = stretch.flow.norms.double().cpu().numpy()
    ids = [int(i) for i in stretch.ids]
    return page.Reading(
        tokens=[_label(tokenizer, i) for i in ids],
        spaced=tokenizer.level == "word",
        losses=stretch.losses,
        norms=page.triangle(norms),
    )


def _label(tokenizer: Tokenizer, token: int) -> str:
    if token in _SPECIAL:
        return _SPECIAL[token]
    return printable(tokenizer.decode(np.array([token])))
