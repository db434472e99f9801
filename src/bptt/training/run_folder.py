"""The folder of a run: the model, its metrics, and snapshots to go on from.

`config.json`, `model.safetensors` and `tokenizer.json` are the best model so far, with
`manifest.json` to vouch for them; `metrics.jsonl` is a function of data, seed and step;
`timings.jsonl` holds clocks and rates; `checkpoints/` the newest snapshots.
"""

import json
import math
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, final

import msgspec
import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from bptt import storage, strict_json, tensor_header
from bptt.errors import CheckpointError, InputError
from bptt.tensor_header import Kind

METRICS = "metrics.jsonl"
TIMINGS = "timings.jsonl"
CHECKPOINTS = "checkpoints"
KEPT_SNAPSHOTS = 2
_STATE = "state.json"
_TENSORS = "tensors.safetensors"
_BEGUN = ".begun"  # a snapshot that is being written
_DROPPED = ".dropped"  # a snapshot that is being removed

_Count = Annotated[int, msgspec.Meta(ge=0, lt=10**9)]  # what a snapshot's name holds
_Positive = Annotated[int, msgspec.Meta(ge=1, lt=2**31)]
_Factor = Annotated[float, msgspec.Meta(ge=0, le=1)]  # halved often enough it is 0
_Seconds = Annotated[float, msgspec.Meta(ge=0)]


class Progress(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """Where a run stands, besides its tensors.

    Attributes:
        step: updates made.
        scale: of SGD's rate, halved when the validation loss rises.
        last_valid: the newest validation loss.
        best_valid: the smallest one, that of the saved model.
        elapsed_s: seconds of training.
        data: hash of the texts in numbers, so that a resume meets the same ones.
        k2: with `--k2 auto`, that of the next update; the state that was kept is the
            one before the steps that it reaches.
        chosen_k2: the last choice, which k2 may still be growing to.
        choosing_s: seconds that the choices took.
        threads: that torch used; sums in another order differ in their last digits.
        backoff: factor of the learning rate, halved by every rollback.
        skipped: updates left out since their loss or gradient was not finite.
        skipped_in_a_row: the last of them, without one between that was not.
        rollbacks: since the snapshot that was gone back to was reached.
        anchor: step of the newest snapshot that was due, not made for a stop; what a
            rollback goes back to, whether the run was stopped or not.
        rolled_back: why, until the update that follows has told it.
    """

    data: str
    step: _Count = 0
    scale: _Factor = 1.0
    last_valid: float | None = None
    best_valid: float | None = None
    elapsed_s: _Seconds = 0.0
    k2: _Positive | None = None
    chosen_k2: _Positive | None = None
    choosing_s: _Seconds = 0.0
    threads: int | None = None
    backoff: _Factor = 1.0
    skipped: _Count = 0
    skipped_in_a_row: _Count = 0
    rollbacks: _Count = 0
    anchor: _Count | None = None
    rolled_back: str | None = None


class _Line(msgspec.Struct):
    """What is read of a line of the logs; there is more in it."""

    step: _Count = 0
    k2: _Positive | None = None
    valid_loss: float = math.inf
    final: bool = False


Check = Callable[[Progress, Mapping[str, Kind]], None]


def _anything(progress: Progress, kinds: Mapping[str, Kind]) -> None:
    """Fits."""


@final
class RunFolder:
    """The files of one run.

    Args:
        path: the folder; made by `create`.

    Attributes:
        passed_over: why newer snapshots than the one that was loaded are not usable.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.passed_over: list[str] = []
        self._waiting: dict[str, list[str]] = {METRICS: [], TIMINGS: []}

    def check_free(self) -> None:
        """Refuse a folder that holds something.

        Raises:
            InputError: it does, or cannot be read.
        """
        try:
            taken = self.path.exists() and any(self.path.iterdir())
        except OSError as error:
            raise self._unusable(error) from error
        if taken:
            raise InputError(
                f"--out {self.path}: the folder is not empty; name another one, or "
                "go on with its run by --resume"
            )

    def create(self) -> None:
        """Make the folder, unless it is there.

        Raises:
            InputError: it cannot be made.
        """
        try:
            (self.path / CHECKPOINTS).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise self._unusable(error) from error

    def _unusable(self, error: OSError) -> InputError:
        return InputError(
            f"--out {self.path}: the folder cannot be used: {error.strerror}"
        )

    def append(self, name: str, record: dict[str, Any]) -> None:
        """Add a line to `metrics.jsonl` or `timings.jsonl`; written by `flush`."""
        self._waiting[name].append(json.dumps(record, allow_nan=False))

    def flush(self) -> None:
        """Write the waiting lines."""
        for name, lines in self._waiting.items():
            if lines:
                with open(self.path / name, "a", encoding="utf-8") as file:
                    file.write("\n".join(lines) + "\n")
                    file.flush()
                    os.fsync(file.fileno())
                lines.clear()

    def drop_waiting(self) -> None:
        """Forget the lines that `flush` has not written."""
        for lines in self._waiting.values():
            lines.clear()

    def metrics(self) -> list[dict[str, Any]]:
        """The lines of `metrics.jsonl` that are whole.

        Raises:
            CheckpointError: a line but the last is damaged.
        """
        return self._lines(METRICS)

    @property
    def finished(self) -> bool:
        """Whether the run has come to its end."""
        lines = self.metrics()
        return bool(lines) and bool(lines[-1].get("final"))

    @property
    def chosen_k2(self) -> int | None:
        """With `--k2 auto` the last choice before the saved model; None before one.

        Raises:
            CheckpointError: the metrics are damaged.
        """
        chosen = found = None
        best = math.inf
        for line in self.metrics():
            chosen = line.get("k2", chosen)
            loss = math.inf if line.get("final") else line.get("valid_loss", math.inf)
            if loss < best:
                best, found = loss, chosen
        return found

    def save_snapshot(self, progress: Progress, tensors: dict[str, Tensor]) -> None:
        """Keep everything that the next step depends on, then drop older snapshots.

        Raises:
            OSError: it cannot be written; the snapshots from before stay.
        """
        self.flush()
        folder = self.path / CHECKPOINTS
        name = _name(progress.step)
        files = {
            _STATE: msgspec.json.encode(progress),
            _TENSORS: safetensors.torch.save(tensors),
        }
        if _is_whole(folder / name):
            storage.write_files(folder / name, files)  # one of the two at any time
        else:
            aside = folder / _BEGUN
            _remove(aside)
            storage.write_files(aside, files)
            _drop(folder / name)
            os.rename(aside, folder / name)
            storage.sync_folder(folder)
        kept = 0
        for other in self._snapshots():
            # The run has not come to the later ones: they were passed over as damaged.
            if other.name > name or (
                kept >= KEPT_SNAPSHOTS and other.name != _name(progress.anchor)
            ):
                _drop(other)
            else:
                kept += 1

    def drop_after(self, step: int) -> None:
        """Remove the snapshots of later steps."""
        for folder in self._snapshots():
            if folder.name > _name(step):
                _drop(folder)

    def load_snapshot(
        self, check: Check = _anything, at_most: int | None = None
    ) -> tuple[Progress, dict[str, Tensor]] | None:
        """The newest usable snapshot, or None; later lines of the logs are dropped.

        Args:
            check: raises a ValueError for a snapshot that does not fit the run, which
                is passed over, or an InputError; asked before its tensors are read.
            at_most: leave those of later steps out.

        Raises:
            CheckpointError: there are snapshots and none of them is usable.
            InputError: that of `check`.
        """
        failures: list[str] = []  # not the errors, whose frames hold what was read
        for folder in self._snapshots():
            if at_most is not None and folder.name > _name(at_most):
                continue
            try:
                progress, tensors = _read_snapshot(folder, check)
            except CheckpointError as error:
                failures.append(str(error))
            else:
                self._cut_logs(progress.step)
                self.passed_over = failures
                return progress, tensors
        if failures:
            raise CheckpointError(failures[0])
        self._cut_logs(-1)  # the run begins again, its first measurement too
        return None

    def _snapshots(self) -> list[Path]:
        """Newest first."""
        return sorted((self.path / CHECKPOINTS).glob("step-*"), reverse=True)

    def _lines(self, name: str) -> list[dict[str, Any]]:
        path = self.path / name
        if not path.exists():
            return []
        text = path.read_text(encoding="utf-8", errors="replace")
        lines = text.splitlines()
        if lines and not text.endswith("\n"):
            del lines[-1]  # cut short by a crash
        records = []
        for number, line in enumerate(lines):
            try:
                record = msgspec.json.decode(line, type=dict[str, Any])
                strict_json.convert(record, _Line)
            except (ValueError, RecursionError) as error:  # msgspec's are ValueErrors
                if number == len(lines) - 1:  # as a power cut may leave it
                    break
                raise CheckpointError(f"{path}, line {number + 1}: {error}") from error
            records.append(record)
        return records

    def _cut_logs(self, step: int) -> None:
        for name in (METRICS, TIMINGS):
            kept = [r for r in self._lines(name) if r.get("step", 0) <= step]
            text = "".join(json.dumps(record) + "\n" for record in kept)
            if (self.path / name).exists():
                storage.write_atomically(self.path / name, text.encode())


def _name(step: int | None) -> str:
    """Of a snapshot's folder; in the order of their steps."""
    return "" if step is None else f"step-{step:09d}"


def _read_snapshot(
    folder: Path, check: Check = _anything
) -> tuple[Progress, dict[str, Tensor]]:
    files = storage.read_files(folder, (_STATE, _TENSORS))
    for name in (_STATE, _TENSORS):
        if name not in files:
            raise CheckpointError(f"{folder / storage.MANIFEST} lists no {name}")
    try:
        progress = strict_json.convert(strict_json.loads(files[_STATE]), Progress)
        if _name(progress.step) != folder.name:
            raise ValueError(f"it is that of step {progress.step}")
    except ValueError as error:
        raise CheckpointError(f"{folder / _STATE}: {error}") from error
    try:
        check(progress, tensor_header.kinds(files[_TENSORS]))
        return progress, safetensors.torch.load(files.pop(_TENSORS))
    except InputError:
        raise  # the snapshot is not what is wrong
    except (SafetensorError, KeyError, ValueError) as error:
        raise CheckpointError(f"{folder / _TENSORS}: {error}") from error


def _is_whole(folder: Path) -> bool:
    try:
        _read_snapshot(folder)
    except CheckpointError:
        return False
    return True


def _drop(snapshot: Path) -> None:
    """Remove a snapshot, or what lies in its place: it is there as a whole or not."""
    aside = snapshot.with_name(_DROPPED)
    _remove(aside)  # which a crash has left
    if snapshot.exists():
        os.rename(snapshot, aside)
    _remove(aside)


def _remove(path: Path) -> None:
    """A folder, or what lies in its place."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
