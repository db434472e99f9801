"""Hours of bad luck in under an hour: kills, damage, wrong arguments, many windows.

`make soak`, or `python tests/soak --json FILE --share 0.05` for a quick look. The
report is JSON; the exit code is 1 where something was lost, wrong, or came in.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from soak import damaged, kills

TESTS = Path(__file__).parents[1]


def native(share: float) -> dict[str, object]:
    """The fuzz of the core's entry points, and its memory, with more of each."""
    examples, windows = max(150, int(20_000 * share)), max(500, int(20_000 * share))
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", TESTS / "kernels" / "test_bindings.py"],
        env={
            **os.environ,
            "BPTT_SOAK_EXAMPLES": str(examples),
            "BPTT_SOAK_WINDOWS": str(windows),
        },
        capture_output=True,
        text=True,
    )
    failures = [] if ran.returncode == 0 else [ran.stdout[-2000:]]
    return {"examples": 3 * examples, "windows": windows, "failures": failures}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="where the report goes, not stdout")
    parser.add_argument("--share", type=float, default=1.0, help="of everything")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    report: dict[str, object] = {"seed": given.seed, "share": given.share}
    failed = False
    for name, part in (
        ("kills", lambda: kills.run(given.share, given.seed)),
        ("damage", lambda: damaged.run(given.share, given.seed)),
        ("native", lambda: native(given.share)),
    ):
        started_s = time.monotonic()
        found = part()
        found["seconds"] = round(time.monotonic() - started_s, 1)
        report[name] = found
        failed |= bool(found["failures"])
        sys.stderr.write(f"{name}: {len(found['failures'])} failures\n")
    text = json.dumps(report, indent=1) + "\n"
    if given.json:
        given.json.write_text(text)
    else:
        sys.stdout.write(text)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
