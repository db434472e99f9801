"""What does a memory budget cost in time, and what does it save?

    python benchmarks/memory_budget.py [--quick] [--json RESULT] [--rounds N]

A training step (forward, and backward from a fixed gradient of the outputs) over one
long sequence: by bptt without a budget and with one, and, as one does it today, by
torch.nn with `torch.utils.checkpoint` over segments of the sequence, as long as those
that bptt chooses. torch.nn is slow: it is given a tenth of the steps, and its times are
multiplied. Times are taken by turns in one process; a ratio is that of the times of one
round. Peaks are those of resident memory in a process of its own, beyond what was there
before the step and beyond the outputs; weights' gradients and work space are in them.
`--quick` is to see that it runs: its figures mean little.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

import bptt
import timing
from timing import Figure, Target, alternate, ratios

INPUT, HIDDEN = 64, 256
BUDGET = "16MB"
SEGMENT = 1900  # steps: what fits the budget
CELLS = ("lstm", "gru")
SHARES = {"all kept": 1, "budget": 1, "torch.nn, checkpointed": 10, "torch.nn": 10}
MOST_OF_ALL_KEPT = 1.35
MOST_PEAK_MB = 32.0  # the budget, and work space

Run = Callable[[], torch.Tensor]


def main() -> None:
    """Measure, print a line for each figure, compare with the targets."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", type=Path, metavar="RESULT")
    parser.add_argument("--rounds", type=int, metavar="N")
    parser.add_argument("--peak-of", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peak_of:
        cell, contestant, time = arguments.peak_of
        print(json.dumps(peak_bytes(cell, contestant, int(time))))
        return
    time = 5_000 if arguments.quick else 100_000
    rounds = arguments.rounds or (1 if arguments.quick else 5)
    figures, targets = [], []
    for cell in CELLS:
        steps = {name: time // share for name, share in SHARES.items()}
        runs = {name: step(cell, name, count) for name, count in steps.items()}
        taken = alternate(runs, rounds, least_s=0.0)
        seconds = {name: [SHARES[name] * s for s in taken[name]] for name in SHARES}
        peaks = {n: peak_in_a_process(cell, n, count) for n, count in steps.items()}
        kept = seconds["all kept"]
        for name in SHARES:
            figure = {
                "cell": cell,
                "contestant": name,
                "seconds": Figure.of(seconds[name]),
                "of_all_kept": ratios(seconds[name], kept),
                "peak_mb": round(peaks[name] / 1e6, 1),
                "peak_at_steps": steps[name],
            }
            figures.append(figure)
            print(
                f"{cell:<6}{name:<26}{figure['seconds']} s, "
                f"{figure['of_all_kept']} of all kept, "
                f"peak {figure['peak_mb']} MB at {steps[name]} steps",
                flush=True,
            )
        slower = ratios(seconds["budget"], kept).median
        targets += [
            Target(f"{cell}: budget of all kept", MOST_OF_ALL_KEPT, slower, True),
            Target(f"{cell}: peak, MB", MOST_PEAK_MB, peaks["budget"] / 1e6, True),
        ]
    print(*targets, sep="\n")
    result: dict[str, Any] = {
        "question": "time and memory of a training step within a memory budget",
        "options": vars(arguments),
        "shape": {"time": time, "batch": 1, "input": INPUT, "hidden": HIDDEN},
        "budget": BUDGET,
        "rounds": rounds,
        **timing.about(),
        "figures": figures,
        "targets": targets,
    }
    timing.write_json(arguments.json, result)


def step(cell: str, contestant: str, time: int) -> Run:
    """A training step, as a function that returns the outputs."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(time, 1, INPUT, generator=generator)
    dy = torch.randn(time, 1, HIDDEN, generator=generator)
    library: Any = torch.nn if contestant.startswith("torch") else bptt
    module = getattr(library, cell.upper())(INPUT, HIDDEN)
    if contestant == "budget":
        module.memory_budget = BUDGET
    is_checkpointed = contestant.endswith("checkpointed")
    forward = partial(in_segments, module) if is_checkpointed else module

    def run() -> torch.Tensor:
        module.zero_grad()
        y: torch.Tensor = forward(x)[0]
        y.backward(dy)
        return y

    return run


def in_segments(module: torch.nn.Module, x: torch.Tensor) -> Any:
    """The outputs and the final state, by checkpointed segments."""
    outputs, state = [], None
    for segment in x.split(SEGMENT):
        y, state = checkpoint(module, segment, state, use_reentrant=False)
        outputs.append(y)
    return torch.cat(outputs), state


def peak_in_a_process(cell: str, contestant: str, time: int) -> int:
    """`peak_bytes` in a process of its own; -1 where the system does not tell."""
    command = [sys.executable, __file__, "--peak-of", cell, contestant, str(time)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return int(json.loads(done.stdout))


def peak_bytes(cell: str, contestant: str, time: int) -> int:
    """Resident memory at its highest in a step, without what is there anyway."""
    status = Path("/proc/self/status")
    if not status.exists():
        return -1
    step(cell, contestant, 64)()  # what a first call brings
    run = step(cell, contestant, time)
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = _status_bytes(status, "VmRSS")
    y = run()
    return _status_bytes(status, "VmHWM") - before - y.numel() * y.element_size()


def _status_bytes(status: Path, name: str) -> int:
    line = next(x for x in status.read_text().splitlines() if x.startswith(name))
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    main()
