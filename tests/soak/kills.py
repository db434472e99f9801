"""Runs that are killed at random moments, and instead of each call that writes."""

import hashlib
import os
import random
import signal
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bptt import storage
from bptt.errors import CheckpointError
from bptt.language_model import LanguageModel
from bptt.training import run_folder
from soak.processes import end, start
from training.problems import text

RANDOM, AIMED = 200, 40
OPTIONS = "--hidden 24 --window 8 --batch 2 --steps 60 --dropout 0.2 --snapshot-every 5"


def run(share: float, seed: int) -> dict[str, Any]:
    """Kill and resume; every run must end as the one that was never stopped."""
    choose = random.Random(seed)
    failures: list[str] = []
    with tempfile.TemporaryDirectory() as name:
        here = Path(name)
        book = here / "book.txt"
        book.write_text(text(60))
        words = ["train", book, *OPTIONS.split()]
        started_s = time.monotonic()
        assert end(start([*words, "--out", here / "whole"], here / "err")) == 0
        whole_s = time.monotonic() - started_s
        expected = _digest(here / "whole")
        done = {"random": 0, "aimed": 0}
        while done["random"] < RANDOM * share:
            out = here / f"random-{done['random']}"
            resume: list[str] = []
            for _ in range(3):
                child = start([*words, *resume, "--out", out], here / "err")
                ended = end(child, kill_after_s=choose.uniform(0, 0.8 * whole_s))
                done["random"] += ended == -signal.SIGKILL
                failures += _unwhole(out)
                resume = ["--resume"]
            failures += _ends(words, out, here / "err", expected)
        for i in range(round(AIMED * share)):
            out, k = here / f"aimed-{i}", 1 + i * 4
            child = start([*words, "--out", out], here / "err", _kill_at(k))
            done["aimed"] += end(child) == -signal.SIGKILL
            failures += _unwhole(out)
            failures += _ends(words, out, here / "err", expected)
    return {**done, "failures": failures}


def _ends(words: list[Any], out: Path, err: Path, expected: list[str]) -> list[str]:
    had = bool(run_folder.RunFolder(out)._snapshots())
    code = end(start([*words, "--resume", "--out", out], err))
    said = err.read_text()
    if code:
        return [f"{out.name}: resumed with {code}: {said[-500:]}"]
    if had and "Going on" not in said and "is finished" not in said:
        return [f"{out.name}: began again: {said[-500:]}"]
    return [] if _digest(out) == expected else [f"{out.name}: ended otherwise"]


def _unwhole(out: Path) -> list[str]:
    """What is there and not whole."""
    try:
        if (out / "manifest.json").exists():
            LanguageModel.from_pretrained(out)
        newest = run_folder.RunFolder(out)._snapshots()[:1]
        for path in newest:
            run_folder._read_snapshot(path)
    except CheckpointError as error:
        return [str(error)]
    return []


def _digest(out: Path) -> list[str]:
    names = ("metrics.jsonl", "model.safetensors", "config.json", "manifest.json")
    paths = [out / name for name in names]
    paths.append(max((out / "checkpoints").iterdir()) / "tensors.safetensors")
    return [hashlib.sha256(path.read_bytes()).hexdigest() for path in paths]


def _kill_at(k: int) -> Callable[[], None]:
    """Kill this process instead of the k-th fsync, rename or open for writing."""

    def prepare() -> None:
        calls = [0]

        def counted(function: Any) -> Any:
            def call(*arguments: Any, **more: Any) -> Any:
                calls[0] += 1
                if calls[0] == k:
                    os.kill(os.getpid(), signal.SIGKILL)
                return function(*arguments, **more)

            return call

        for name in ("fsync", "replace", "rename", "unlink", "rmdir", "mkdir"):
            setattr(os, name, counted(getattr(os, name)))
        for module in (storage, run_folder):
            module.open = counted(open)

    return prepare
