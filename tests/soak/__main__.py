"""Hours of bad luck in under an hour: kills, damage, wrong arguments, many windows.

`make soak`, or `python tests/soak --json FILE --share 0.05` for a quick look, or with
`--only PART`. The report is JSON; the exit code is 1 where something was lost, wrong,
or came in.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from soak import bombs, damaged, disk, kills

TESTS = Path(__file__).parents[1]


def parsers(share: float, seed: int) -> dict[str, Any]:
    """Files that anyone may have written, read or refused in a line."""
    tests = (TESTS / "test_parsers.py", TESTS / "text" / "test_vocabulary.py")
    return _fuzz(tests, share, seed, examples=2_000)


def native(share: float, seed: int) -> dict[str, Any]:
    """Arguments to the core that nobody should give."""
    names = ("test_bindings.py", "test_odd_tensors.py")
    tests = (*(TESTS / "kernels" / name for name in names), "-k", "not memory_is_flat")
    return _fuzz(tests, share, seed, examples=20_000)


def windows(share: float, seed: int) -> dict[str, Any]:
    """Windows of random length and shape: resident memory stays."""
    tests = (TESTS / "kernels" / "test_bindings.py", "-k", "memory_is_flat", "-s")
    count = max(500, int(20_000 * share))
    found, said = _pytest(tests, seed, BPTT_SOAK_WINDOWS=str(count))
    grown = re.search(r"grown by (-?\d+) KiB, (-?\d+) with what is kept", said)
    return {
        "windows": count,
        "grown_kib": int(grown[1]) if grown else None,
        "grown_with_idle_blocks_kib": int(grown[2]) if grown else None,
        "failures": found,
    }


def _fuzz(tests: Any, share: float, seed: int, *, examples: int) -> dict[str, Any]:
    each = max(20, int(examples * share))
    found, said = _pytest(tests, seed, BPTT_SOAK_EXAMPLES=str(each))
    passed = re.search(r"(\d+) passed", said)
    return {
        "examples_each": each,
        "tests": int(passed[1]) if passed else 0,
        "failures": found,
    }


def _pytest(tests: Any, seed: int, **environment: str) -> tuple[list[str], str]:
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", f"--hypothesis-seed={seed}", *tests],
        env={**os.environ, **environment, "JAXTYPING_DISABLE": "1"},  # as users run it
        capture_output=True,
        text=True,
    )
    return [] if ran.returncode == 0 else [ran.stdout[-2000:]], ran.stdout


PARTS: dict[str, Callable[[float, int], dict[str, Any]]] = {
    "kills": kills.at_random,
    "aimed": kills.aimed,
    "disk": disk.run,
    "damage": damaged.run,
    "bombs": bombs.run,
    "parsers": parsers,
    "native": native,
    "windows": windows,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="where the report goes, not stdout")
    parser.add_argument("--share", type=float, default=1.0, help="of everything")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=PARTS, action="append", help="these parts")
    given = parser.parse_args()
    report: dict[str, Any] = {"seed": given.seed, "share": given.share}
    failed, began_s = False, time.monotonic()
    for name in given.only or PARTS:
        started_s = time.monotonic()
        found = PARTS[name](given.share, given.seed)
        found["seconds"] = round(time.monotonic() - started_s, 1)
        report[name] = found
        failed |= bool(found["failures"])
        sys.stderr.write(
            f"{name}: {len(found['failures'])} failures, {found['seconds']} s\n"
        )
    report["seconds"] = round(time.monotonic() - began_s, 1)
    text = json.dumps(report, indent=1) + "\n"
    if given.json:
        given.json.write_text(text)
    else:
        sys.stdout.write(text)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
