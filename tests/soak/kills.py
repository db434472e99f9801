"""Runs that are killed at random moments, and instead of each call that writes."""

import os
import random
import signal
import tempfile
from pathlib import Path
from typing import Any

import pytest

from failing_disk import CALLS, failing
from soak.processes import Runs, end, unwhole

RANDOM, AIMED = 200, 40
OPTIONS = "--hidden 24 --window 8 --batch 2 --steps 60 --dropout 0.2 --snapshot-every 5"
SHORT = "--hidden 16 --window 8 --batch 2 --steps 8 --dropout 0.2 --snapshot-every 3"


def at_random(share: float, seed: int) -> dict[str, Any]:
    """Killed up to three times and resumed, every run ends as the one never stopped."""
    choose = random.Random(seed)
    failures: list[str] = []
    kills = resumed = 0
    with tempfile.TemporaryDirectory() as name:
        runs = Runs(Path(name), OPTIONS)
        while kills < RANDOM * share:
            out, resume = runs.here / f"random-{resumed}", ()
            for _ in range(3):
                child = runs.start(out, *resume)
                ended = end(child, kill_after_s=choose.uniform(0, 0.8 * runs.whole_s))
                kills += ended == -signal.SIGKILL
                failures += unwhole(out)
                resume = ("--resume",)
            failures += runs.ends(out)
            resumed += 1
    return {"kills": kills, "runs": resumed, "failures": failures}


def aimed(share: float, seed: int) -> dict[str, Any]:
    """Killed instead of a call: up to 40 of each kind, evenly over the run.

    Half of the kills at a `write` leave half of the data. The run that goes on is
    killed, too, where the next of these calls would be.
    """
    failures: list[str] = []
    done: dict[str, int] = {}
    with tempfile.TemporaryDirectory() as name:
        runs = Runs(Path(name), SHORT)
        calls = runs.count()
        for kind in CALLS:
            count = min(calls[kind], max(1, round(AIMED * share)))
            first = seed % 4 / 4  # another seed aims between those of the first
            ks = sorted(
                {1 + int((i + first) * calls[kind] / count) for i in range(count)}
            )
            killed = 0
            for k in ks:
                out = runs.here / f"{kind}-{k}"
                for again, words in ((k, ()), (1 + (k + seed) % 7, ("--resume",))):
                    ended = runs.run(
                        out,
                        *words,
                        prepare=lambda patch, k=again, kind=kind: failing(
                            patch, _die, k, half=k % 2 == 0, kinds=(kind,)
                        ),
                    )
                    killed += ended == -signal.SIGKILL
                    failures += unwhole(out)
                failures += runs.ends(out)
            done[kind] = killed
            if killed < len(ks):
                failures.append(f"{kind}: {killed} kills of {len(ks)}")
    return {"calls": calls, "kills": done, "failures": failures}


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
    pytest.fail("still alive")
