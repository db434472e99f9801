"""What do ragged rows and resets cost in training, next to padding and to torch.nn?

    python benchmarks/ragged.py [--quick] [--json RESULT] [--rounds N]
        [--only SUBSTRING ...] [--load N]

A training step is forward and backward from a fixed gradient of the outputs, without
and with the input's gradient. All contestants of a case have the same weights and
input, are found to agree in outputs and gradients, and run by turns in one process on
the same threads. A figure is one's time divided by another's, at best below its target.
Parts:

- "lengths": rows of 1..T steps ("uniform") or of 0.95 T..T ("nearly equal"), given as
  `lengths` or as a PackedSequence, relative to bptt's own step on the padded batch, and
  a PackedSequence relative to torch.nn's step on it.
- "resets": one step in 100 begins anew. Relative to the same batch without resets, and
  to what is done with torch.nn today: step after step, with the state multiplied by
  `1 - done`; in pieces between the steps where any row begins anew; and every row cut
  at its own resets, the parts padded into one larger batch.

`--only` measures what has one of the texts in its name, as "lengths lstm" or "with dx".
`--load` keeps N other processes busy. `--quick` is to see that it runs: its figures
mean little.
"""

import argparse
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import bptt
import timing
from against_torch import GATES, TOLERANCE, Shape, inputs, new_module
from timing import Figure, Target, alternate, ratios

Run = Callable[[], list[Tensor]]  # a training step, which gives the gradients
Record = dict[str, Any]
Outputs = Callable[[], Tensor]

SHAPES = (
    Shape(32, 128, 256, 256),
    Shape(8, 4000, 64, 64),
    Shape(16, 1000, 128, 128),
)
QUICK = (Shape(16, 64, 64, 64), Shape(4, 200, 32, 32))
TASKS = ("without dx", "with dx")
SHORTEST = {"uniform": 0.0, "nearly equal": 0.95}  # rows, as shares of all steps
EVERY = 100  # steps between resets, on average

# (contestant, relative to, at most)
GOALS = {
    "lengths": (
        ("lengths", "padded", 1.0),
        ("packed", "padded", 1.3),
        ("packed", "torch packed", 1.0),
    ),
    "resets": (
        ("resets", "no resets", 1.1),
        ("resets", "torch steps", 1.0),
        ("resets", "torch pieces", 1.0),
        ("resets", "torch regrouped", 1.0),
    ),
}


@dataclass(frozen=True)
class Case:
    """Contestants to compare, as `GOALS` says for its part."""

    name: str
    part: str
    contestants: Callable[[], dict[str, Run]]  # made when it is their turn

    def records(self, rounds: int, least_s: float) -> Iterator[Record]:
        """Measure it: a record for each goal."""
        times = alternate(self.contestants(), rounds, least_s)
        for first, second, most in GOALS[self.part]:
            seconds = {name: Figure.of(times[name]) for name in (first, second)}
            yield {
                "name": f"{self.name}: {first} / {second}",
                "part": self.part,
                "ratio": ratios(times[first], times[second]),
                "at_most": most,
                "seconds": seconds,
            }


def main() -> None:
    """Measure, print a line for each figure, compare with the targets."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", type=Path, metavar="RESULT")
    parser.add_argument("--only", nargs="+", default=[""], metavar="SUBSTRING")
    parser.add_argument("--rounds", type=int, metavar="N")
    parser.add_argument("--load", type=int, default=0, metavar="N")
    arguments = parser.parse_args()
    rounds = arguments.rounds or (4 if arguments.quick else 9)
    least_s = 0.003 if arguments.quick else timing.LEAST_S
    records: list[Record] = []
    targets: list[Target] = []
    result = {
        "question": "training steps with ragged rows and resets: relative times",
        "options": vars(arguments),
        "busy_processes": arguments.load,
        "rounds": rounds,
        **timing.about(),
        "figures": records,
        "targets": targets,
    }
    with timing.busy_processes(arguments.load):
        for case in cases(QUICK if arguments.quick else SHAPES):
            if not any(text in case.name for text in arguments.only):
                continue
            for r in case.records(rounds, least_s):
                records.append(r)
                ratio, most = r["ratio"].median, r["at_most"]
                targets.append(Target(r["name"], most, ratio, at_most=True))
                print(line(r), flush=True)
            # All that there is so far: the whole takes long, and may be stopped.
            timing.write_json(arguments.json, result)
    missed = [target for target in targets if not target.met]
    print(
        f"{len(targets) - len(missed)} of {len(targets)} targets met", *missed, sep="\n"
    )


def cases(shapes: Sequence[Shape]) -> Iterator[Case]:
    """Every cell, shape and task; rows of both kinds, then resets."""
    for cell, shape, spread, task in product(GATES, shapes, SHORTEST, TASKS):
        runs = partial(length_runs, cell, shape, spread, task)
        yield Case(f"lengths {cell} {shape} {spread} {task}", "lengths", runs)
    for cell, shape, task in product(GATES, shapes, TASKS):
        runs = partial(reset_runs, cell, shape, task)
        yield Case(f"resets {cell} {shape} {task}", "resets", runs)


def length_runs(cell: str, shape: Shape, spread: str, task: str) -> dict[str, Run]:
    """A ragged batch: all of it computed, by its lengths, and packed."""
    x, dy = inputs(shape)
    x.requires_grad_(task == "with dx")
    lengths = some_lengths(shape, spread)
    ours, theirs = both(cell, shape)
    packed = pack(x, lengths)
    dy_packed = pack(dy, lengths).data
    given = packed._replace(data=packed.data.detach().requires_grad_(x.requires_grad))

    def of_packed(module: Any) -> Tensor:
        y, _ = module(given)
        return y.data

    of_lengths = partial(first, ours, x, lengths=lengths)
    contestants = {
        "lengths": step(ours, x, of_lengths, dy),
        "packed": step(ours, given.data, partial(of_packed, ours), dy_packed),
        "torch packed": step(theirs, given.data, partial(of_packed, theirs), dy_packed),
    }
    require_agreement(contestants, (ours, theirs))
    require_equal(pack(of_lengths(), lengths).data, of_packed(ours))
    return {**contestants, "padded": step(ours, x, partial(first, ours, x), dy)}


def reset_runs(cell: str, shape: Shape, task: str) -> dict[str, Run]:
    """A batch in which rows begin anew, by bptt and as users of torch.nn do it."""
    x, dy = inputs(shape)
    x.requires_grad_(task == "with dx")
    generator = torch.Generator().manual_seed(1)
    resets = torch.rand(shape.time, shape.batch, generator=generator) < 1 / EVERY
    ours, theirs = both(cell, shape)
    any_row = resets[1:].any(1).nonzero().squeeze(1) + 1
    outputs: dict[str, Outputs] = {
        "resets": partial(first, ours, x, resets=resets),
        "torch steps": partial(in_pieces, theirs, x, resets, range(shape.time)),
        "torch pieces": partial(in_pieces, theirs, x, resets, [0, *any_row.tolist()]),
        "torch regrouped": partial(regrouped, theirs, x, *parts_of(resets)),
    }
    for outputs_of in outputs.values():
        require_equal(outputs_of(), outputs["resets"]())
    contestants = {
        name: step(ours if name == "resets" else theirs, x, outputs_of, dy)
        for name, outputs_of in outputs.items()
    }
    require_agreement(contestants, (ours, theirs))
    return {**contestants, "no resets": step(ours, x, partial(first, ours, x), dy)}


def in_pieces(module: Any, x: Tensor, resets: Tensor, starts: Iterable[int]) -> Tensor:
    """Outputs piece by piece; the state goes on where a row is not reset."""
    keep = (~resets).to(x.dtype).unsqueeze(-1)
    state: Any = None
    outputs = []
    for start, end in pairwise((*starts, len(x))):
        if isinstance(state, tuple):
            state = tuple(part * keep[start] for part in state)
        elif state is not None:
            state = state * keep[start]
        y, state = module(x[start:end], state)
        outputs.append(y)
    return torch.cat(outputs)


def parts_of(resets: Tensor) -> tuple[Tensor, Tensor]:
    """Where the steps of the rows' parts stand, and where a part's steps are now.

    Both count in (time x batch). The first is (longest part, parts), padded with 0; the
    second (time x batch,), an index into the first, flattened.
    """
    time, batch = resets.shape
    begins = resets.clone()
    begins[0] = True
    part = begins.t().flatten().cumsum(0) - 1  # of each step, row after row
    first_step = begins.t().flatten().nonzero().squeeze(1)
    at = torch.arange(time * batch)
    step_of = at - first_step[part]  # within its part
    count = len(first_step)
    where = torch.zeros(int(step_of.max()) + 1, count, dtype=torch.int64)
    where[step_of, part] = at % time * batch + at // time
    back = (step_of * count + part).view(batch, time).t().flatten()
    return where, back


def regrouped(module: Any, x: Tensor, where: Tensor, back: Tensor) -> Tensor:
    """Outputs with every part of a row as a row of its own."""
    y, _ = module(x.flatten(0, 1)[where])
    return y.flatten(0, 1)[back].view(*x.shape[:2], -1)


def step(module: torch.nn.Module, x: Tensor, outputs: Outputs, dy: Tensor) -> Run:
    """Forward, and backward from the gradient `dy` of the outputs."""
    leaves = [*module.parameters(), *((x,) if x.requires_grad else ())]

    def run() -> list[Tensor]:
        for leaf in leaves:
            leaf.grad = None
        torch.autograd.backward(outputs(), dy)
        return [leaf.grad for leaf in leaves if leaf.grad is not None]

    return run


def first(module: Any, *args: Any, **kwargs: Any) -> Tensor:
    """The outputs without the state."""
    y: Tensor = module(*args, **kwargs)[0]
    return y


def both(cell: str, shape: Shape) -> tuple[Any, Any]:
    """A module of bptt, and torch.nn's with the same weights."""
    theirs = new_module(torch.nn, cell, shape)
    ours = new_module(bptt, cell, shape)
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


def some_lengths(shape: Shape, spread: str) -> Tensor:
    """Lengths of the rows, in no order; one row has all steps."""
    generator = torch.Generator().manual_seed(2)
    shortest = max(1, round(shape.time * SHORTEST[spread]))
    size = (shape.batch,)
    lengths = torch.randint(shortest, shape.time + 1, size, generator=generator)
    lengths[shape.batch // 2] = shape.time
    return lengths


def pack(x: Tensor, lengths: Tensor) -> PackedSequence:
    """The rows' steps alone."""
    return pack_padded_sequence(x.detach(), lengths, enforce_sorted=False)


def require_agreement(contestants: dict[str, Run], modules: tuple[Any, Any]) -> None:
    """Refuse to compare what computes something else: gradients of the weights."""
    weights = len(list(modules[0].parameters()))
    all_gradients = [
        [gradient.clone() for gradient in run()[:weights]]
        for run in contestants.values()
    ]
    for gradients in all_gradients[1:]:
        for gradient, expected in zip(gradients, all_gradients[0], strict=True):
            require_equal(gradient, expected)


def require_equal(value: Tensor, expected: Tensor) -> None:
    """Refuse to compare what computes something else."""
    worst = timing.relative_difference(value, expected)
    if not worst <= TOLERANCE:
        raise SystemExit(f"two contestants differ by {worst:.1e}")


def line(record: Record) -> str:
    """A record as a line of the table."""
    times = [f"{figure.median * 1e3:10.3f} ms" for figure in record["seconds"].values()]
    return f"{record['name']:<72}{''.join(times)}  ratio {record['ratio']}"


if __name__ == "__main__":
    main()
