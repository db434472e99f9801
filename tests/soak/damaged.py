"""Thousands of damaged models and snapshots, each loaded: refused, quick, in a line."""

import contextlib
import gc
import io
import os
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from bptt.cli import commands, main
from bptt.language_model import LanguageModel
from damage import damages, restore
from soak.processes import end, start
from training.problems import text

COUNT = 5000
LARGE = 100
LARGE_MODEL, LARGE_SNAPSHOT = 2000, 1150  # units: each file has 64 MB
SLOWEST_S = 1.0  # after start-up
MOST_MEMORY = 2.0  # times the largest file


class Damaged:
    """Loads of damaged copies, and what came of them."""

    def __init__(self) -> None:
        self.failures: list[str] = []
        self.outcomes: Counter[str] = Counter()
        self.slowest = (0.0, "")
        self.largest = (0.0, "")

    def load(
        self,
        words: list[Any],
        what: str,
        size: int,
        wrong: Callable[[int, str], str | None],
    ) -> None:
        """Run a command on damaged files; `wrong` is told how it ended.

        Time is that of the processor, since others may use it; memory is what a
        refusal took at most beyond what was there, in files of this size.
        """
        base = None
        if size > 1e6:
            gc.collect()
            base = _resident() if _reset_peak() else None
        out, err = io.StringIO(), io.StringIO()
        started_s = time.process_time()
        try:
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                code = main([str(word) for word in words])
        except Exception as error:  # noqa: BLE001 - that is what is sought
            self.failures.append(f"{what}: {error!r}")
            return
        self.slowest = max(self.slowest, (time.process_time() - started_s, what))
        if base is not None and code == 3:
            self.largest = max(self.largest, ((_peak() - base) / size, what))
        if reason := wrong(code, err.getvalue()):
            self.failures.append(f"{what}: {reason}: {code}, {err.getvalue()[-300:]}")


def run(share: float, seed: int) -> dict[str, Any]:
    """Small files for the kinds of damage, large ones for time and memory."""
    found = Damaged()
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        here = Path(name)
        (here / "book.txt").write_text(text(30))
        for hidden, model_hidden, count in (
            (4, 4, COUNT * share),
            (LARGE_SNAPSHOT, LARGE_MODEL, LARGE * share),
        ):
            run_of = here / f"run-{hidden}"
            options = f"--hidden {hidden} --steps 4 --snapshot-every 2 --window 8"
            words = ["train", here / "book.txt", *options.split(), "--batch", "2"]
            assert end(start([*words, "--out", run_of], here / "err")) == 0
            model = LanguageModel.from_pretrained(run_of)
            config = msgspec.structs.replace(model.config, hidden=model_hidden)
            whole = here / f"model-{hidden}"
            LanguageModel(config, model.tokenizer).save_pretrained(whole)
            del model
            with patch.context() as stopped:
                stopped.setattr(commands.Trainer, "run", _stop)
                _models(found, whole, seed, count / 2)
                _snapshots(found, run_of, words, seed, count / 2)
    slowest_s, most = found.slowest[0], found.largest[0]
    if slowest_s > SLOWEST_S:
        found.failures.append(f"{found.slowest[1]} took {slowest_s:.2f} s")
    if most >= MOST_MEMORY:
        found.failures.append(f"{found.largest[1]} took {most:.2f} times its file")
    return {
        "damages": sum(found.outcomes.values()),
        "outcomes": dict(sorted(found.outcomes.items())),
        "slowest_s": round(slowest_s, 3),
        "slowest": found.slowest[1],
        "memory_in_files": round(most, 2) or None,  # where the system does not tell
        "largest": found.largest[1],
        "failures": found.failures,
    }


def _models(found: Damaged, whole: Path, seed: int, count: float) -> None:
    """Damage to a model, which is not loaded then."""
    copy = shutil.copytree(whole, whole.with_name(f"{whole.name}-copy"))
    words, size = ["generate", copy, "--length", "1"], _largest(whole)
    for name, kind, apply in damages(whole, seed, round(count)):
        apply(copy)

        def wrong(code: int, said: str, name: str = name, kind: str = kind) -> Any:
            if code == 0 and _harmless(name, kind):
                found.outcomes["a bit of a manifest made no difference"] += 1
                return None
            found.outcomes[f"model, {kind}: exit {code}"] += 1
            one = said.startswith(f"bptt: {copy}{os.sep}") and said.count("\n") == 1
            return None if code == 3 and one else "not refused in a line"

        found.load(words, f"{kind} of {name} of a model", size, wrong)
        restore(whole, copy)


def _snapshots(
    found: Damaged, run: Path, words: list[Any], seed: int, count: float
) -> None:
    """Damage to the newer of two, and every other time to the older one, too."""
    lines = (run / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    metrics = b"".join(lines[:-1])  # as if it had not come to its end
    older, newer = sorted((run / "checkpoints").iterdir())[-2:]
    whole = shutil.copytree(newer, run.with_name(f"{run.name}-newer"))
    first = (older / "state.json").read_bytes()
    step = int(older.name.removeprefix("step-"))
    words, size = [*words, "--out", run, "--resume"], _largest(whole)
    for number, (name, kind, apply) in enumerate(damages(whole, seed, round(count))):
        both = number // 7 % 2 == 1
        (run / "metrics.jsonl").write_bytes(metrics)
        apply(newer)
        if both:
            (older / "state.json").write_bytes(b"{}")

        def wrong(
            code: int, said: str, name: str = name, kind: str = kind, both: bool = both
        ) -> Any:
            if _harmless(name, kind) and "not usable" not in said and code == 130:
                found.outcomes["a bit of a manifest made no difference"] += 1
                return None
            end = f"exit {code}" if both else "passed over"
            found.outcomes[f"snapshot, {kind}: {end}"] += 1
            if both:
                one = said.startswith(f"bptt: {newer}{os.sep}")
                right = code == 3 and one and said.count("\n") == 1
                return None if right else "not refused in a line"
            told = f"A newer snapshot is not usable: {newer}{os.sep}" in said
            went = f"Going on from step {step}." in said and "Traceback" not in said
            right = code == 130 and told and went
            return None if right else "not passed over"

        found.load(words, f"{kind} of {name} of a snapshot", size, wrong)
        restore(whole, newer)
        (older / "state.json").write_bytes(first)


def _stop(trainer: Any) -> None:
    """Instead of training: only the loading is looked at."""
    raise KeyboardInterrupt


def _harmless(name: str, kind: str) -> bool:
    """Bits of a manifest may change white space, or its case, and nothing else."""
    return (kind, name) == ("bit", "manifest.json")


def _largest(folder: Path) -> int:
    return max(path.stat().st_size for path in folder.iterdir())


def _reset_peak() -> bool:
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def _peak() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return 1024 * int(line.split()[1])
    return 0


def _resident() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGESIZE")
