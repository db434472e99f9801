"""How much faster than the usual Python loop does Recurrent train a cell?

    python benchmarks/own_cells.py [--quick] [--json RESULT] [--rounds N]
        [--only SUBSTRING ...]

The usual loop calls the cell step by step under autograd, stacks the outputs, and under
a truncation detaches the state every k steps. Every figure is its time divided by
Recurrent's, from alternating runs in one process: a training step, forward and backward
from a fixed gradient of the outputs. Parts:

- "full" and "chunks(16)": the same gradients, found to agree first.
- "per_output(4)": there the usual loop detaches every 5 steps, which is the cheap
  truncation of that reach and not the same gradient.
- "generic": the same cell seen only as `(x, state) -> (y, state)`, so that Recurrent
  knows neither its split nor its derivative.
- "first call": seconds that Recurrent's first training step takes at 1024 steps,
  against its later ones: nothing is compiled.
"""

import argparse
import time
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import torch

import bptt
import timing
from bptt import Truncation, cells
from timing import Figure, Target, alternate, ratios

Run = Callable[[], object]
Record = dict[str, Any]


class Shape(NamedTuple):
    """Sizes of a cell and its input."""

    batch: int
    time: int
    units: int

    def __str__(self) -> str:
        return ",".join(map(str, self))


class Generic(torch.nn.Module):
    """A cell of which nothing is known but its call."""

    def __init__(self, cell: torch.nn.Module) -> None:
        super().__init__()
        self.of = cell

    def forward(self, x: torch.Tensor, state: Any) -> Any:
        """The cell's."""
        return self.of(x, state)


CELLS: dict[str, Callable[[int], torch.nn.Module]] = {
    "LSTMCell": lambda units: torch.nn.LSTMCell(units, units),
    "GRUCell": lambda units: torch.nn.GRUCell(units, units),
    "PeepholeLSTM": lambda units: cells.PeepholeLSTM(units, units),
    "LayerNormLSTM": lambda units: cells.LayerNormLSTM(units, units),
    "MinimalGatedUnit": lambda units: cells.MinimalGatedUnit(units, units),
    "LinearRecurrence": lambda units: cells.LinearRecurrence(units, units),
    "LeakyRate": lambda units: cells.LeakyRate(units, units),
    "LeakyIntegrateAndFire": lambda units: cells.LeakyIntegrateAndFire(units, units),
}
GENERIC = ("PeepholeLSTM", "LeakyRate")
SHAPES = (Shape(32, 128, 128), Shape(8, 256, 64))
LONG = Shape(8, 1024, 64)
POLICIES: dict[str, tuple[Truncation | None, int | None]] = {
    "full": (None, None),
    "chunks(16)": (Truncation.chunks(16), 16),
    "per_output(4)": (Truncation.per_output(4), 5),
}
TOLERANCE = 1e-4  # of the largest entry, float32 against float32
LEAST = 1.0


def main() -> None:
    """Measure, print a line for each figure, compare with the target."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", type=Path, metavar="RESULT")
    parser.add_argument("--only", nargs="+", default=[""], metavar="SUBSTRING")
    parser.add_argument("--rounds", type=int, metavar="N")
    arguments = parser.parse_args()
    rounds = arguments.rounds or (3 if arguments.quick else 7)
    least_s = 0.003 if arguments.quick else timing.LEAST_S
    records: list[Record] = []
    cases = [(name, False) for name in CELLS] + [(name, True) for name in GENERIC]
    for (cell, generic), shape, policy in product(cases, SHAPES, POLICIES):
        name = f"{'generic ' if generic else ''}{cell} {shape} {policy}"
        if any(text in name for text in arguments.only):
            runs = contestants(cell, shape, policy, generic=generic)
            times = alternate(runs, rounds, least_s)
            records.append(
                {
                    "name": name,
                    "cell": cell,
                    "generic": generic,
                    "shape": str(shape),
                    "policy": policy,
                    "ratio": ratios(times["loop"], times["Recurrent"]),
                    "seconds": {of: Figure.of(s) for of, s in times.items()},
                }
            )
            print(line(records[-1]), flush=True)
    firsts = [
        first_call(cell, generic=generic)
        for cell, generic in cases
        if any(text in f"first call {cell}" for text in arguments.only)
    ]
    for record in firsts:
        print(
            f"{record['name']:<46}{record['first_s'] * 1e3:10.1f} ms, then "
            f"{record['later_s'] * 1e3:.1f} ms"
        )
    reached = [Target(r["name"], LEAST, r["ratio"].median) for r in records]
    print(*(target for target in reached if not target.met), sep="\n")
    timing.write_json(
        arguments.json,
        {
            "question": "times of the usual loop over a cell relative to Recurrent's",
            "options": vars(arguments),
            "rounds": rounds,
            **timing.about(),
            "figures": records,
            "first_calls": firsts,
            "targets": reached,
        },
    )


def contestants(
    cell: str, shape: Shape, policy: str, *, generic: bool = False
) -> dict[str, Run]:
    """The usual loop and Recurrent, found to agree where both mean the same."""
    truncation, detached_every = POLICIES[policy]
    module = new_cell(cell, shape, generic=generic)
    recurrent = bptt.Recurrent(module, truncation=truncation)
    x, dy = inputs(shape)
    state = initial_state(module, shape)
    parameters = list(module.parameters())
    runs: dict[str, Run] = {
        "loop": lambda: usual_loop(module, x, state, detached_every),
        "Recurrent": lambda: recurrent(x, state)[0],
    }
    if policy != "per_output(4)":
        found = []
        for run in runs.values():
            y: Any = run()
            found.append([y, *torch.autograd.grad(y, parameters, dy)])
        worst = max(map(timing.relative_difference, *reversed(found)))
        if not worst <= TOLERANCE:
            raise SystemExit(f"{cell} {shape} {policy}: they differ by {worst:.1e}")
    return {name: training_step(run, parameters, dy) for name, run in runs.items()}


def usual_loop(
    cell: torch.nn.Module, x: torch.Tensor, state: Any, detached_every: int | None
) -> torch.Tensor:
    """What everyone writes."""
    alone = isinstance(cell, torch.nn.RNNCellBase)
    ys = []
    for t, x_t in enumerate(x.unbind(0)):
        if detached_every and t and t % detached_every == 0:
            state = detached(state)
        if alone:
            state = cell(x_t, state)
            ys.append(state[0] if isinstance(state, tuple) else state)
        else:
            y, state = cell(x_t, state)
            ys.append(y)
    return torch.stack(ys)


def detached(state: Any) -> Any:
    """The state without its history."""
    if isinstance(state, tuple):
        return tuple(map(detached, state))
    return state.detach()


def training_step(
    run: Run, parameters: list[torch.nn.Parameter], dy: torch.Tensor
) -> Run:
    """Forward, and backward from the gradient `dy` of the outputs."""

    def step() -> None:
        for parameter in parameters:
            parameter.grad = None
        y: Any = run()
        torch.autograd.backward(y, dy)

    return step


def first_call(cell: str, *, generic: bool) -> Record:
    """A first training step on a long sequence, and the median of later ones."""
    module = new_cell(cell, LONG, generic=generic)
    recurrent = bptt.Recurrent(module)
    x, dy = inputs(LONG)
    state = initial_state(module, LONG)
    step = training_step(lambda: recurrent(x, state)[0], list(module.parameters()), dy)
    times = []
    for _ in range(4):
        started_s = time.perf_counter()
        step()
        times.append(time.perf_counter() - started_s)
    name = f"first call {'generic ' if generic else ''}{cell} {LONG}"
    return {"name": name, "first_s": times[0], "later_s": timing.median(times[1:])}


def new_cell(cell: str, shape: Shape, *, generic: bool) -> torch.nn.Module:
    """A cell with weights of its own."""
    torch.manual_seed(0)
    made = CELLS[cell](shape.units)
    return Generic(made) if generic else made


def initial_state(cell: Any, shape: Shape) -> Any:
    """Zeros, as the cell has them."""
    if isinstance(cell, Generic):
        cell = cell.of
    if isinstance(cell, torch.nn.RNNCellBase):
        h = torch.zeros(shape.batch, shape.units)
        return (h, h) if isinstance(cell, torch.nn.LSTMCell) else h
    return cell.initial_state(shape.batch)


def inputs(shape: Shape) -> tuple[torch.Tensor, torch.Tensor]:
    """An input and a gradient of the outputs."""
    generator = torch.Generator().manual_seed(0)
    size = (2, shape.time, shape.batch, shape.units)
    x, dy = torch.randn(size, generator=generator).unbind(0)
    return x, dy


def line(record: Record) -> str:
    """A record as a line of the table."""
    times = [
        f"{name:>10}{figure.median * 1e3:9.2f} ms"
        for name, figure in record["seconds"].items()
    ]
    return f"{record['name']:<46}{''.join(times)}  ratio {record['ratio']}"


if __name__ == "__main__":
    main()
