"""What the benchmarks share: times by turns, the machine and its peak, targets.

Programs are compared in one process and by turns, A B A B, so that all of them meet
the same disturbances. A round times as many calls as fill `LEAST_S`; a ratio is that of
the times of one round; a figure is the median over the rounds.
"""

import json
import math
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

import bptt
from bptt import kernels

LEAST_S = 0.03  # that a round times a contestant for
SLOW_S, SLOW_ROUNDS = 10.0, 2  # who takes so long a call is in the first rounds alone

# Busy until killed, or until whoever started it is gone, however that went.
_BUSY = """
import os, sys
while os.getppid() == int(sys.argv[1]):
    for _ in range(1_000_000):
        pass
"""


@dataclass(frozen=True)
class Figure:
    """A median over rounds, with the quartiles around it."""

    median: float
    lower: float
    upper: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Figure":
        """The figure of one value a round."""
        ordered = sorted(values)
        lower, middle, upper = (ordered[len(ordered) * i // 4] for i in (1, 2, 3))
        return cls(median=middle, lower=lower, upper=upper)

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.lower:.2f} to {self.upper:.2f})"


@dataclass(frozen=True)
class Target:
    """What a figure should be, and whether it is."""

    name: str
    target: float
    measured: float
    at_most: bool = False  # else it should be at least `target`

    @property
    def met(self) -> bool:
        """Whether the figure is on the right side of the target."""
        over = self.measured >= self.target
        return self.measured <= self.target if self.at_most else over

    def as_json(self) -> dict[str, Any]:
        """For the result."""
        return {**asdict(self), "met": self.met}

    def __str__(self) -> str:
        sign = "<=" if self.at_most else ">="
        verdict = "met" if self.met else "MISSED"
        goal = f"{sign} {self.target:g}"
        return f"{self.name:<56}{self.measured:>8.3f}  {goal:<8}{verdict}"


def alternate(
    contestants: Mapping[str, Callable[[], object]],
    rounds: int,
    least_s: float = LEAST_S,
) -> dict[str, list[float]]:
    """Seconds a call of each contestant, one for each round, taken by turns."""
    calls = {name: _calls_in(run, least_s) for name, run in contestants.items()}
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for turn in range(rounds):
        for name, run in contestants.items():
            if turn < SLOW_ROUNDS or times[name][0] < SLOW_S:
                times[name].append(_seconds(run, calls[name]) / calls[name])
    return times


def ratios(slow: Sequence[float], fast: Sequence[float]) -> Figure:
    """`slow / fast`, round by round, of the rounds that both were in."""
    return Figure.of([a / b for a, b in zip(slow, fast, strict=False)])


def median(values: Sequence[float]) -> float:
    """The middle value."""
    return Figure.of(values).median


def geometric_mean(values: Sequence[float]) -> float:
    """The mean for ratios."""
    return math.exp(math.fsum(map(math.log, values)) / len(values))


def relative_difference(a: torch.Tensor, b: torch.Tensor) -> float:
    """The largest difference, relative to the largest entry of `b`."""
    a, b = a.detach().double(), b.detach().double()
    return float((a - b).abs().max() / b.abs().max())


def peak_gflops(size: int = 2048, repeats: int = 5) -> float:
    """The matrix-product peak of torch, float32, best of some."""
    a = torch.randn(size, size)
    best_s = min(_seconds(lambda: a @ a, 1) for _ in range(repeats))
    return round(2 * size**3 / best_s / 1e9, 1)


def versions() -> dict[str, str]:
    """Of what is measured."""
    return {
        "bptt": bptt.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def machine() -> dict[str, Any]:
    """Cores, and the threads of torch."""
    return {"cores": os.cpu_count(), "threads": torch.get_num_threads()}


@contextmanager
def busy_processes(count: int) -> Iterator[None]:
    """As many other processes that compute without end, while the block runs."""
    command = [sys.executable, "-c", _BUSY, str(os.getpid())]
    started: list[subprocess.Popen[bytes]] = []
    try:
        for _ in range(count):
            started.append(subprocess.Popen(command))
        yield
    finally:
        for process in started:
            process.kill()
        for process in started:
            process.wait()


def about() -> dict[str, Any]:
    """What was measured, and on what."""
    vectors = torch.backends.cpu.get_cpu_capability()
    return {
        "versions": versions(),
        "machine": {**machine(), "vectors": vectors},
        "kernels": kernels.active(),
    }


def write_json(path: Path | None, result: dict[str, Any]) -> None:
    """Write the result, if a path is given."""
    if path is not None:
        path.write_text(json.dumps(result, indent=2, default=_plain) + "\n")


def _calls_in(run: Callable[[], object], least_s: float) -> int:
    """How many calls last so long; finding out warms the contestant up."""
    if _seconds(run, 1) > SLOW_S:
        return 1
    calls = 1
    while (took_s := _seconds(run, calls)) < least_s:
        calls = min(10 * calls, math.ceil(1.2 * calls * least_s / max(took_s, 1e-9)))
    return calls


def _seconds(run: Callable[[], object], calls: int) -> float:
    started_s = time.perf_counter()
    for _ in range(calls):
        run()
    return time.perf_counter() - started_s


def _plain(value: object) -> object:
    """For JSON: our own values as objects, others as their text."""
    if isinstance(value, Target):
        return value.as_json()
    return asdict(value) if isinstance(value, Figure) else str(value)
