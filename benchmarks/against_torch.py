"""How much faster than torch.nn are bptt's RNN, GRU and LSTM, with the same weights?

    python benchmarks/against_torch.py [--quick] [--json RESULT] [--rounds N]
        [--only SUBSTRING ...] [--load N]

Every figure is a ratio, torch's time divided by bptt's, from alternating runs in one
process on the same threads (OMP_NUM_THREADS sets them for both). A training step is
forward and backward from a fixed gradient of the outputs: no loss is timed. Parts:

- "grid": six shapes and three cells; training without and with the input's gradient,
  and inference. At 32,64,512,512 the matrix-product peak, the better one of torch and
  NumPy, is measured in the same rounds, and training steps are a share of it. Beside
  training without the input's gradient run the products that it cannot do without, by
  torch.mm and nothing else: what they alone would reach bounds the ratio.
- "truncation": bptt's truncated training step, relative to its own full BPTT.
- "generation": one step of a batch of one without gradients, the state passed on.

`--only` measures what has one of the texts in its name, as "grid lstm" or "with dx".
`--load` keeps N other processes busy. `--quick` is to see that it runs: its figures
mean little.
"""

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import product
from pathlib import Path
from time import sleep
from typing import Any, NamedTuple

import numpy as np
import torch

import bptt
import timing
from bptt import Truncation
from timing import Figure, Target, alternate, geometric_mean, ratios

Run = Callable[[], object]
Record = dict[str, Any]


class Shape(NamedTuple):
    """Sizes of a layer and its input."""

    batch: int
    time: int
    input: int
    hidden: int

    def __str__(self) -> str:
        return ",".join(map(str, self))


GATES = {"rnn": 1, "gru": 3, "lstm": 4}
SMALLEST = Shape(1, 100, 64, 64)
AT_TRUNCATION = Shape(32, 64, 256, 256)
AT_PEAK = Shape(32, 64, 512, 512)
LARGER = (
    Shape(32, 64, 128, 128),
    AT_TRUNCATION,
    AT_PEAK,
    Shape(16, 128, 1024, 1024),
    Shape(8, 256, 256, 256),
)
TASKS = ("without dx", "with dx", "inference")  # the first two are training steps
TRUNCATIONS = {
    "per_output(4)": Truncation.per_output(4),
    "chunks(8)": Truncation.chunks(8),
}
GENERATED = (64, 512)  # units
PEAK_SIZE = 2048
PRODUCTS = "products alone"
REST = "rest"  # NumPy's threads stay awake for 0.15 s, on the cores of what follows
TOLERANCE = 1e-4  # of the largest entry, float32 against float32

LEAST_MEAN = {"rnn": 2.5, "gru": 2.7, "lstm": 1.25}
LEAST_AT_SMALLEST = {"rnn": 15.0, "gru": 15.0, "lstm": 3.5}
LEAST_SHARE_OF_PEAK = 0.85
MOST_OF_FULL = {"per_output(4)": 2.2, "chunks(8)": 1.0}


@dataclass(frozen=True)
class Case:
    """A figure to take: the first contestant's time relative to the second's."""

    name: str
    contestants: Callable[[], dict[str, Run]]  # made when it is their turn
    about: Record
    training: bool  # whether gradients are wanted
    flop: int | None = None  # floating-point operations of a call

    def record(self, rounds: int, least_s: float) -> Record:
        """Measure it."""
        with torch.set_grad_enabled(self.training):
            times = alternate(self.contestants(), rounds, least_s)
        times.pop(REST, None)
        alone = times.pop(PRODUCTS, None)
        first, second, *products = times.values()
        record = {
            "name": self.name,
            **self.about,
            "ratio": ratios(first, second),
            "seconds": {name: Figure.of(s) for name, s in times.items()},
        }
        if alone:
            record["ratio_of_products_alone"] = ratios(first, alone)
        if self.flop is None:
            return record
        gflops = [self.flop / s / 1e9 for s in second]
        record |= {"flop": self.flop, "gflops": Figure.of(gflops)}
        if products:
            best = map(min, zip(*products, strict=True))
            peak = [2 * PEAK_SIZE**3 / s / 1e9 for s in best]
            record["peak_gflops"] = Figure.of(peak)
            record["share_of_peak"] = ratios(gflops, peak)
        return record


def main() -> None:
    """Measure, print a line for each figure, compare with the targets."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", type=Path, metavar="RESULT")
    parser.add_argument("--only", nargs="+", default=[""], metavar="SUBSTRING")
    parser.add_argument("--rounds", type=int, metavar="N")
    parser.add_argument("--load", type=int, default=0, metavar="N")
    arguments = parser.parse_args()
    shapes = (LARGER[0], AT_PEAK, SMALLEST) if arguments.quick else (*LARGER, SMALLEST)
    rounds = arguments.rounds or (3 if arguments.quick else 9)
    least_s = 0.003 if arguments.quick else timing.LEAST_S
    result: Record = {
        "question": "times of torch.nn's recurrent modules relative to bptt's",
        "options": vars(arguments),
        "busy_processes": arguments.load,
        "rounds": rounds,
        **timing.about(),
    }
    records: list[Record] = []
    with timing.busy_processes(arguments.load):
        for case in (*grid(shapes), *truncations(), *generation()):
            if any(text in case.name for text in arguments.only):
                records.append(case.record(rounds, least_s))
                print(line(records[-1]), flush=True)
    means = means_of_larger(records)
    alone = means_of_larger(records, "ratio_of_products_alone")
    for name, mean in means.items():
        bound = f"; of the products alone {alone[name]:.2f}" if name in alone else ""
        print(f"geometric mean of the larger shapes, {name}: {mean:.2f}{bound}")
    reached = targets(records, means)
    print(*reached, sep="\n")
    result |= {
        "figures": records,
        "geometric_means": means,
        "geometric_means_of_products_alone": alone,
        "targets": reached,
    }
    timing.write_json(arguments.json, result)


def grid(shapes: Sequence[Shape]) -> Iterator[Case]:
    """Every cell, shape and task."""
    for cell, shape, task in product(GATES, shapes, TASKS):
        kind = "inference" if task == "inference" else f"training {task}"
        yield Case(
            f"grid {cell} {shape} {kind}",
            partial(grid_runs, cell, shape, task),
            {"part": "grid", "cell": cell, "shape": str(shape), "task": task},
            training=task != "inference",
            flop=operations(cell, shape, task),
        )


def truncations() -> Iterator[Case]:
    """Truncated training steps relative to full BPTT, both of bptt."""
    for cell, name in product(GATES, TRUNCATIONS):
        yield Case(
            f"truncation {cell} {AT_TRUNCATION} {name}",
            partial(truncation_runs, cell, TRUNCATIONS[name]),
            {"part": "truncation", "cell": cell, "truncation": name},
            training=True,
        )


def generation() -> Iterator[Case]:
    """One step after the other, as a model generates."""
    for cell, units in product(GATES, GENERATED):
        yield Case(
            f"generation {cell} {units} units",
            partial(generation_runs, cell, Shape(1, 1, units, units)),
            {"part": "generation", "cell": cell, "units": units},
            training=False,
        )


def grid_runs(cell: str, shape: Shape, task: str) -> dict[str, Run]:
    """Both libraries at one task; the peak beside it where it is asked for."""
    x, dy = inputs(shape)
    both = modules(cell, shape)
    if task == "inference":
        return {name: partial(m.eval(), x) for name, m in both.items()}
    x.requires_grad_(task == "with dx")
    steps = {name: training_step(m.train(), x, dy) for name, m in both.items()}
    if task == "without dx":
        steps[PRODUCTS] = products_alone(cell, shape)
    if shape != AT_PEAK:
        return steps
    a, b, c = torch.randn(3, PEAK_SIZE, PEAK_SIZE).unbind()
    return {
        **steps,
        "torch product": lambda: torch.mm(a, b, out=c),
        "NumPy product": lambda: np.matmul(a.numpy(), b.numpy(), out=c.numpy()),
        REST: partial(sleep, 0.3),
    }


def products_alone(cell: str, shape: Shape) -> Run:
    """A training step's products, those of the loops a step at a time."""
    batch, time, width, hidden = shape
    gates = GATES[cell] * hidden
    U, W = torch.randn(gates, width), torch.randn(gates, hidden)
    x, h = torch.randn(time * batch, width), torch.randn(time * batch, hidden)
    delta, z = torch.randn(time * batch, gates), torch.empty(time * batch, gates)
    step, error = torch.empty(batch, gates), torch.empty(batch, hidden)
    dU, dW, W_columns = torch.empty_like(U), torch.empty_like(W), W.t().contiguous()

    def run() -> None:
        torch.mm(x, U.t(), out=z)
        for before in h.split(batch):
            torch.mm(before, W_columns, out=step)
        for arriving in delta.split(batch):
            torch.mm(arriving, W, out=error)
        torch.mm(delta.t(), h, out=dW)
        torch.mm(delta.t(), x, out=dU)

    return run


def truncation_runs(cell: str, truncation: Truncation) -> dict[str, Run]:
    """A truncated training step and a full one."""
    x, dy = inputs(AT_TRUNCATION)
    full, truncated = (new_module(bptt, cell, AT_TRUNCATION) for _ in range(2))
    truncated.truncation = truncation
    named = {"truncated": truncated, "full": full}
    return {name: training_step(module, x, dy) for name, module in named.items()}


def generation_runs(cell: str, shape: Shape) -> dict[str, Run]:
    """Both libraries, a step from the state that their last one left."""
    x, _ = inputs(shape)
    return {name: one_step(m.eval(), x) for name, m in modules(cell, shape).items()}


def training_step(module: torch.nn.Module, x: torch.Tensor, dy: torch.Tensor) -> Run:
    """Forward, and backward from the gradient `dy` of the outputs."""
    leaves = [x, *module.parameters()]

    def step() -> None:
        for leaf in leaves:
            leaf.grad = None
        y, _ = module(x)
        torch.autograd.backward(y, dy)

    return step


def one_step(module: torch.nn.Module, x: torch.Tensor) -> Run:
    """A step from the state that the last one left."""
    state = None

    def step() -> None:
        nonlocal state
        _, state = module(x, state)

    return step


def inputs(shape: Shape) -> tuple[torch.Tensor, torch.Tensor]:
    """An input and a gradient of the outputs."""
    generator = torch.Generator().manual_seed(0)
    leading = (shape.time, shape.batch)
    x = torch.randn(*leading, shape.input, generator=generator)
    return x, torch.randn(*leading, shape.hidden, generator=generator)


def new_module(library: Any, cell: str, shape: Shape) -> Any:
    """The module of torch.nn or bptt."""
    return getattr(library, cell.upper())(shape.input, shape.hidden)


@lru_cache(maxsize=1)
def modules(cell: str, shape: Shape) -> dict[str, torch.nn.Module]:
    """The two libraries' modules with the same weights, found to agree."""
    both = {
        "torch": new_module(torch.nn, cell, shape),
        "bptt": new_module(bptt, cell, shape),
    }
    both["bptt"].load_state_dict(both["torch"].state_dict())
    values = []
    for module in both.values():
        x, dy = inputs(shape)
        with torch.enable_grad():
            y, _ = module(x.requires_grad_())
            values.append([y, *torch.autograd.grad(y, [x, *module.parameters()], dy)])
    worst = max(map(timing.relative_difference, *reversed(values)))
    if not worst <= TOLERANCE:
        raise SystemExit(f"{cell} {shape}: bptt and torch differ by {worst:.1e}")
    return both


def operations(cell: str, shape: Shape, task: str) -> int:
    """Floating-point operations of the products: backward takes twice a forward."""
    batch, time, width, hidden = shape
    of_input, of_state = (
        2 * time * batch * GATES[cell] * hidden * columns for columns in (width, hidden)
    )
    forward = of_input + of_state
    if task == "inference":
        return forward
    return 3 * forward - (of_input if task == "without dx" else 0)


def means_of_larger(records: list[Record], of: str = "ratio") -> dict[str, float]:
    """Geometric means of each cell and task over the larger shapes, where complete."""
    larger = {str(shape) for shape in LARGER}
    means = {}
    for cell in GATES:
        for task in TASKS:
            ratios_found = [
                r[of].median
                for r in find(records, part="grid", cell=cell, task=task)
                if r["shape"] in larger and of in r
            ]
            if len(ratios_found) == len(LARGER):
                means[f"{cell} {task}"] = geometric_mean(ratios_found)
    return means


def targets(records: list[Record], means: Mapping[str, float]) -> list[Target]:
    """The targets of whatever was measured."""
    found = []
    for part in ("grid", "generation"):
        of = sorted(find(records, part=part), key=lambda r: r["ratio"].median)
        for r in of[:1]:
            name = f"slowest: {r['name']}"
            found.append(Target(name, 1.0, r["ratio"].median))
    for cell, least in LEAST_MEAN.items():
        name = f"{cell} {TASKS[0]}"
        if name in means:
            found.append(Target(f"geometric mean {name}", least, means[name]))
    for cell, least in LEAST_AT_SMALLEST.items():
        for r in find(records, shape=str(SMALLEST), cell=cell, task=TASKS[0]):
            found.append(Target(r["name"], least, r["ratio"].median))
    for r in records:
        if "share_of_peak" in r:
            name = f"share of peak {r['cell']} {r['shape']} {r['task']}"
            share = r["share_of_peak"].median
            found.append(Target(name, LEAST_SHARE_OF_PEAK, share))
    for r in find(records, part="truncation"):
        most = MOST_OF_FULL[r["truncation"]]
        found.append(Target(r["name"], most, r["ratio"].median, at_most=True))
    return found


def find(records: list[Record], **wanted: str) -> list[Record]:
    """The records with these entries."""
    return [r for r in records if all(r.get(k) == v for k, v in wanted.items())]


def line(record: Record) -> str:
    """A record as a line of the table."""
    times = [
        f"{name:>9}{figure.median * 1e3:10.3f} ms"
        for name, figure in list(record["seconds"].items())[:2]
    ]
    text = f"{record['name']:<46}{''.join(times)}  ratio {record['ratio']}"
    if "ratio_of_products_alone" in record:
        text += f", products alone {record['ratio_of_products_alone'].median:.2f}"
    if "gflops" in record:
        text += f"  {record['gflops'].median:.0f} GFLOP/s"
    if "share_of_peak" in record:
        share, peak = record["share_of_peak"], record["peak_gflops"]
        text += f", {share.median:.0%} of {peak.median:.0f}"
    return text


if __name__ == "__main__":
    main()
