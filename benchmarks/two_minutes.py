"""What validation loss do the defaults of `bptt train` reach in two minutes?

    python benchmarks/two_minutes.py TEXT [--minutes 2] [--json RESULT] [-- OPTIONS]

Runs the command as a user would, in a folder of its own, and writes one JSON object:
the loss on the whole held-out tenth as `bptt evaluate` measures it again, the curve
(seconds, step, loss on the beginning of the held-out text), the rate, and the machine.
OPTIONS go to `bptt train`.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from timing import machine, median, peak_gflops, versions


def main() -> None:
    """Train, evaluate, report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("text", type=Path)
    parser.add_argument("--minutes", type=float, default=2.0)
    parser.add_argument("--json", type=Path)
    parser.add_argument("options", nargs="*", help="for bptt train, after --")
    arguments = parser.parse_args()
    peak_before = peak_gflops()
    with tempfile.TemporaryDirectory() as scratch:
        run = Path(scratch) / "run"
        command = [sys.executable, "-m", "bptt", "train", str(arguments.text)]
        command += ["--minutes", str(arguments.minutes), "--out", str(run)]
        started_s = time.perf_counter()
        subprocess.run([*command, *arguments.options], check=True)
        wall_s = time.perf_counter() - started_s
        metrics = read_lines(run / "metrics.jsonl")
        timings = read_lines(run / "timings.jsonl")
        config = json.loads((run / "config.json").read_text())
        again = evaluate_held_out(run, arguments.text, Path(scratch))
    final = metrics[-1]
    curve = [
        {
            "step": line["step"],
            "elapsed_s": elapsed_at(timings, line["step"]),
            "valid_loss": line["valid_loss"],
        }
        for line in metrics
        if "valid_loss" in line and not line.get("final")
    ]
    result = {
        "question": "validation loss of `bptt train` with defaults, by time",
        "minutes": arguments.minutes,
        "options": arguments.options,
        "valid_loss": final["valid_loss"],
        "valid_tokens": final["valid_tokens"],
        "valid_loss_evaluated_again": again["loss"],
        "wall_s": round(wall_s, 1),
        "steps": final["step"],
        "median_tokens_per_s": median([line["tokens_per_s"] for line in timings]),
        "peak_gflops_before_and_after": [peak_before, peak_gflops()],
        "curve": curve,
        "config": config,
        "versions": versions(),
        "machine": machine(),
    }
    text = json.dumps(result, indent=2)
    if arguments.json:
        arguments.json.write_text(text + "\n")
    print(text)


def evaluate_held_out(run: Path, text: Path, scratch: Path) -> dict[str, float]:
    """The last tenth once more, through the other command."""
    whole = text.read_text(encoding="utf-8")
    held_out = scratch / "held_out.txt"
    held_out.write_text(whole[int(len(whole) * 0.9) :], encoding="utf-8")
    command = [sys.executable, "-m", "bptt", "evaluate", str(run), str(held_out)]
    done = subprocess.run([*command, "--json"], check=True, capture_output=True)
    return json.loads(done.stdout)


def elapsed_at(timings: list[dict[str, float]], step: int) -> float:
    """Seconds of training at the last timing not after `step`."""
    return max((t["elapsed_s"] for t in timings if t["step"] <= step), default=0.0)


def read_lines(path: Path) -> list[dict[str, float]]:
    """The records of a JSON lines file."""
    return [json.loads(line) for line in path.read_text().splitlines()]


if __name__ == "__main__":
    main()
