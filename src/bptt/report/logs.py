"""`metrics.jsonl` and `timings.jsonl` as curves; lines that are damaged are counted."""

from pathlib import Path
from typing import TypeVar

import msgspec
import numpy as np

from bptt import page
from bptt.errors import InputError
from bptt.training.run_folder import METRICS, TIMINGS

MOST_POINTS = 1000

_Kind = TypeVar("_Kind", bound=msgspec.Struct)


class _Line(msgspec.Struct, kw_only=True):
    """Of `metrics.jsonl`: an update's, or a measurement's."""

    step: int
    loss: float | None = None
    gradient_norm: float | None = None
    learning_rate: float | None = None
    valid_loss: float | None = None
    valid_tokens: int | None = None
    final: bool = False


class _Timing(msgspec.Struct, kw_only=True):
    step: int
    elapsed_s: float
    tokens_per_s: float


def curves(folder: Path, clip: float | None) -> tuple[page.Curves | None, list[str]]:
    """How a run went, and what could not be read.

    Of more than 1000 updates each point stands for several: the mean of their losses,
    the largest of their gradients' norms, the last learning rate.

    Raises:
        InputError: a file is there and cannot be read.
    """
    lines, damaged = _read(folder / METRICS, _Line)
    timings, damaged_timings = _read(folder / TIMINGS, _Timing)
    notes = [
        f"{count} line{'s' * (count > 1)} of {name} could not be read."
        for name, count in ((METRICS, damaged), (TIMINGS, damaged_timings))
        if count
    ]
    if not lines:
        return None, [*notes, f"{METRICS} has nothing to draw."]
    updates = [
        (line.step, line.loss, line.gradient_norm, line.learning_rate)
        for line in lines
        if line.loss is not None
        and line.gradient_norm is not None
        and line.learning_rate is not None
    ]
    each = max(1, -(-len(updates) // MOST_POINTS))
    groups = [updates[at : at + each] for at in range(0, len(updates), each)]
    valid = [
        (line.step, line.valid_loss)
        for line in lines
        if line.valid_loss is not None and not line.final
    ]
    last = [line for line in lines if line.final and line.valid_loss is not None]
    if not last:
        notes.append("The run is not finished.")
    return (
        page.Curves(
            every=each,
            step=[group[-1][0] for group in groups],
            loss=[float(np.mean([u[1] for u in group])) for group in groups],
            gradient_norm=[max(u[2] for u in group) for group in groups],
            learning_rate=[group[-1][3] for group in groups],
            valid_step=[step for step, _ in valid],
            valid_loss=[loss for _, loss in valid],
            timing_step=[line.step for line in timings],
            elapsed_s=[line.elapsed_s for line in timings],
            tokens_per_s=[line.tokens_per_s for line in timings],
            clip=clip,
            final_loss=last[-1].valid_loss if last else None,
            final_tokens=last[-1].valid_tokens if last else None,
        ),
        notes,
    )


def _read(path: Path, kind: type[_Kind]) -> tuple[list[_Kind], int]:
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return [], 0
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    lines, damaged = [], 0
    for line in text.splitlines():
        if not line.strip():
            continue
        try:
            lines.append(msgspec.json.decode(line, type=kind))
        except (msgspec.MsgspecError, RecursionError):
            damaged += 1
    return lines, damaged
