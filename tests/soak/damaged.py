"""Thousands of damaged models and snapshots, each loaded: refused, quick, in a line."""

import os
import shutil
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch

from bptt.errors import CheckpointError
from bptt.language_model import LanguageModel, ModelConfig
from bptt.text import Tokenizer
from bptt.training import run_folder
from damage import damages, restore

COUNT = 5000
LARGE = 100
SLOWEST_S = 2.0


def run(share: float, seed: int) -> dict[str, Any]:
    """Small files for the kinds of damage, large ones for time and memory."""
    failures: list[str] = []
    outcomes: Counter[str] = Counter()
    slowest_s, most = 0.0, 0.0
    with tempfile.TemporaryDirectory() as name:
        for hidden, count in ((4, COUNT * share), (700, LARGE * share)):
            here = Path(name) / str(hidden)
            sources = _make(here, hidden)
            for kind, (whole, load) in sources.items():
                copy = here / f"{kind}-copy" / whole.name
                shutil.copytree(whole, copy)
                load(copy)  # what is loaded once counts for nothing below
                size = max(p.stat().st_size for p in whole.iterdir() if p.is_file())
                for what in damages(whole, seed, round(count / 2)):
                    file, how, apply = what
                    apply(copy)
                    base = _resident() if hidden > 100 and _reset_peak() else None
                    started_s = time.monotonic()
                    try:
                        load(copy)
                        outcomes[f"{how} of {file} made no difference"] += 1
                        if (how, file) != ("bit", "manifest.json"):
                            failures.append(f"{how} of {file} of a {kind} is accepted")
                    except CheckpointError as error:
                        outcomes[f"{how} refused"] += 1
                        if str(copy) not in str(error):
                            failures.append(f"{how} of {file}: {error}")
                    except Exception as error:  # noqa: BLE001 - that is what is sought
                        failures.append(f"{how} of {file} of a {kind}: {error!r}")
                    slowest_s = max(slowest_s, time.monotonic() - started_s)
                    if base is not None:
                        most = max(most, (_peak() - base) / size)
                    restore(whole, copy)
    if slowest_s > SLOWEST_S:
        failures.append(f"the slowest took {slowest_s:.2f} s")
    if most > 2.1:
        failures.append(f"the largest took {most:.2f} times the file")
    return {
        "outcomes": dict(outcomes),
        "slowest_s": round(slowest_s, 3),
        "memory_in_files": round(most, 2) or None,  # where the system does not tell
        "failures": failures,
    }


def _make(here: Path, hidden: int) -> dict[str, Any]:
    tokenizer = Tokenizer.train("the cat sat", "char")
    model = LanguageModel(ModelConfig(vocab=tokenizer.size, hidden=hidden), tokenizer)
    model.save_pretrained(here / "model")
    folder = run_folder.RunFolder(here / "run")
    folder.create()
    tensors = {n: t.detach() for n, t in model.state_dict().items()}
    folder.save_snapshot(run_folder.Progress(data="d", step=1), tensors)

    def load_snapshot(path: Path) -> None:
        _, found = run_folder._read_snapshot(path)
        if {n: t.shape for n, t in found.items()} != {
            n: t.shape for n, t in tensors.items()
        } or any(t.dtype != torch.float32 for t in found.values()):
            # what `Trainer.resume` refuses, with the model at hand
            raise CheckpointError(f"{path}: the snapshot does not fit this model")

    (snapshot,) = folder._snapshots()
    return {
        "model": (here / "model", LanguageModel.from_pretrained),
        "snapshot": (snapshot, load_snapshot),
    }


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
