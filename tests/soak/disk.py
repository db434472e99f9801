"""Disks that are full or broken at the k-th call, for every k."""

import errno
import os
import tempfile
from pathlib import Path
from typing import Any

from failing_disk import CALLS, failing
from soak.processes import Runs, unwhole

OPTIONS = "--hidden 16 --window 8 --batch 2 --steps 4 --dropout 0.2 --snapshot-every 2"


def run(share: float, seed: int) -> dict[str, Any]:
    """A line says what failed; what is there is whole, and the run goes on from it."""
    failures: list[str] = []
    done = tolerated = 0
    with tempfile.TemporaryDirectory() as name:
        runs = Runs(Path(name), OPTIONS)
        calls = runs.count()
        every = max(1, round(1 / share))
        for code in (errno.ENOSPC, errno.EIO):
            for k in range(1 + seed % every, sum(calls.values()) + 1, every):
                out = runs.here / f"{errno.errorcode[code]}-{k}"
                error = OSError(code, os.strerror(code))
                ended = runs.run(
                    out,
                    prepare=lambda patch, k=k, error=error: failing(
                        patch, error, k, half=k % 2 == 0, kinds=CALLS
                    ),
                )
                done += 1
                said = runs.said()
                last = said.splitlines()[-1] if said else ""
                told = last.startswith("bptt: ") and os.strerror(code) in last
                if ended == 0:  # as a folder that is there already and is not made
                    tolerated += 1
                elif ended not in (1, 2) or not told or str(out) not in last:
                    failures.append(f"{out.name}: ended with {ended}: {said[-300:]}")
                if "Traceback" in said:
                    failures.append(f"{out.name}: a traceback")
                failures += unwhole(out)
                failures += runs.ends(out)
    return {
        "calls": calls,
        "failed": done,
        "made_no_difference": tolerated,
        "failures": failures,
    }
