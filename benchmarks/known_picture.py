"""Does gradient flow show the picture that is known of RNN, GRU and LSTM?

    python benchmarks/known_picture.py [--quick] [--json RESULT]
        [--only SUBSTRING ...]

Two tasks that need a long memory, both generated:

- "adding" (Hochreiter & Schmidhuber, "Long short-term memory", 1997, task 4, as in Le,
  Jaitly & Hinton, "A simple way to initialize recurrent networks of rectified linear
  units", 2015): of 100 numbers from 0 to 1 two are marked, one in each half, and their
  sum is to be told at the end. Who always says 1 has an error of 1/6.
- "copy" (as in the first, task 2): three letters of four kinds are to be told again
  after 50 blanks. Who guesses has an error of ln 4 = 1.39 a letter.

Each cell is looked at as it is initialised, and after a short training by Adam of a
fixed number of updates: how far back the gradient goes, whether an error vanishes on
its way back, and the loss on new sequences. "raised" starts with a bias of the forget
or update gate that halves an error in half of the sequence (Tallec & Ollivier, "Can
recurrent neural networks warp time?", 2018, in short); "identity" is the RNN of Le,
Jaitly & Hinton, with rectified units and W = 1.
"""

import argparse
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import bptt
import timing
from bptt.flow import GradientFlow, gradient_flow

UNITS = 64
BATCH = 32
UPDATES = 4000
LOOKED_AT = 16  # rows whose gradient flow is measured
MEASURED = 512  # rows of the loss
BEYOND = (10, 20, 50)

NUMBERS = 100
LETTERS, KINDS, BLANKS = 3, 4, 50


@dataclass(frozen=True)
class Task:
    """Sequences and the loss.

    Attributes:
        batch: rows, generator -> inputs (time, rows, inputs), and targets.
        loss: outputs (time, rows, classes) and targets -> the mean error.
        inputs: width of the input.
        classes: width of the output.
        time: steps.
        guess: the loss of who remembers nothing.
    """

    batch: Callable[[int, torch.Generator], tuple[Tensor, Tensor]]
    loss: Callable[[Tensor, Tensor], Tensor]
    inputs: int
    classes: int
    time: int
    guess: float


def adding(rows: int, random: torch.Generator) -> tuple[Tensor, Tensor]:
    """Numbers with two marks, and the sum of the marked ones."""
    numbers = torch.rand(NUMBERS, rows, generator=random)
    marks = torch.zeros(NUMBERS, rows)
    half = NUMBERS // 2
    for first in (0, half):
        at = first + torch.randint(half, (rows,), generator=random)
        marks[at, torch.arange(rows)] = 1
    return torch.stack((numbers, marks), dim=2), (numbers * marks).sum(0)


def copying(rows: int, random: torch.Generator) -> tuple[Tensor, Tensor]:
    """Letters, blanks, and one sign for each letter that is to be told."""
    letters = torch.randint(KINDS, (LETTERS, rows), generator=random)
    blanks = torch.full((BLANKS, rows), KINDS)
    asked = torch.full((LETTERS, rows), KINDS + 1)
    ids = torch.cat((letters, blanks, asked))
    return F.one_hot(ids, KINDS + 2).float(), letters


def _sum_error(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.mse_loss(outputs[-1, :, 0], targets)


def _letter_error(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs[-LETTERS:].flatten(0, 1), targets.flatten())


TASKS = {
    "adding": Task(adding, _sum_error, 2, 1, NUMBERS, 1 / 6),
    "copy": Task(
        copying,
        _letter_error,
        KINDS + 2,
        KINDS,
        2 * LETTERS + BLANKS,
        math.log(KINDS),
    ),
}


class Net(nn.Module):
    """A recurrent layer and a linear one."""

    def __init__(self, recurrent: nn.Module, classes: int) -> None:
        super().__init__()
        self.recurrent = recurrent
        self.out = nn.Linear(UNITS, classes)

    def forward(self, x: Tensor) -> Tensor:
        """(time, rows, classes)."""
        y: Tensor = self.out(self.recurrent(x)[0])
        return y


def rnn(inputs: int, _time: int) -> nn.Module:
    """As torch.nn initialises it, with tanh."""
    return bptt.RNN(inputs, UNITS)


def identity_rnn(inputs: int, _time: int) -> nn.Module:
    """Rectified units that begin by adding up what they read."""
    module = bptt.RNN(inputs, UNITS, nonlinearity="relu")
    with torch.no_grad():
        module.weight_hh_l0.copy_(torch.eye(UNITS))
        module.weight_ih_l0.normal_(0, 0.001)
        module.bias_ih_l0.zero_()
        module.bias_hh_l0.zero_()
    return module


def gru(inputs: int, _time: int) -> nn.Module:
    """As torch.nn initialises it."""
    return bptt.GRU(inputs, UNITS)


def lstm(inputs: int, _time: int) -> nn.Module:
    """As torch.nn initialises it."""
    return bptt.LSTM(inputs, UNITS)


def raised_gru(inputs: int, time: int) -> nn.Module:
    """Update gates that keep the state."""
    return _raised(bptt.GRU(inputs, UNITS), time)


def raised_lstm(inputs: int, time: int) -> nn.Module:
    """Forget gates that keep the state."""
    return _raised(bptt.LSTM(inputs, UNITS), time)


def _raised(module: Any, time: int) -> nn.Module:
    """The gate that keeps the state stands second in both cells."""
    keeps = 0.5 ** (2 / time)
    with torch.no_grad():
        for bias, value in (
            (module.bias_ih_l0, math.log(keeps / (1 - keeps))),
            (module.bias_hh_l0, 0.0),
        ):
            bias[UNITS : 2 * UNITS] = value
    return module


CELLS: dict[str, Callable[[int, int], nn.Module]] = {
    "RNN": rnn,
    "RNN, identity": identity_rnn,
    "GRU": gru,
    "GRU, raised": raised_gru,
    "LSTM": lstm,
    "LSTM, raised": raised_lstm,
}


def main() -> None:
    """Look at each cell on each task; print and write what is seen."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", type=Path, metavar="RESULT")
    parser.add_argument("--only", nargs="+", default=[""], metavar="SUBSTRING")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    updates = UPDATES // 50 if arguments.quick else UPDATES
    records = []
    for task_name, task in TASKS.items():
        print(f"\n{task_name}, {task.time} steps, guessing {task.guess:.3f}\n{_HEAD}")
        for cell in CELLS:
            if any(part in f"{task_name} {cell}" for part in arguments.only):
                record = {"task": task_name, "cell": cell, **seen(task, cell, updates)}
                records.append(record)
                print(*lines(record), sep="\n", flush=True)
    result = {"question": __doc__.splitlines()[0], **timing.about()}
    result |= {"updates": updates, "guesses": {n: t.guess for n, t in TASKS.items()}}
    timing.write_json(arguments.json, {**result, "figures": records})


def seen(task: Task, cell: str, updates: int) -> dict[str, Any]:
    """The flow before and after training, and what was learnt."""
    torch.manual_seed(0)
    net = Net(CELLS[cell](task.inputs, task.time), task.classes)
    before = picture(net, task)
    started_s = time.perf_counter()
    train(net, task, updates)
    return {
        "at_initialisation": before,
        "trained": picture(net, task),
        "training_s": time.perf_counter() - started_s,
    }


def train(net: Net, task: Task, updates: int) -> None:
    """Adam on new sequences all the time, the rate falling to zero."""
    random = torch.Generator().manual_seed(1)
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
    for update in range(updates):
        optimizer.param_groups[0]["lr"] = 3e-3 * (1 - update / updates)
        x, targets = task.batch(BATCH, random)
        optimizer.zero_grad()
        task.loss(net(x), targets).backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()


def picture(net: Net, task: Task) -> dict[str, Any]:
    """What gradient flow says, and the loss."""
    flow = flow_of(net, task)
    shares = flow.by_lag.double() / float(flow.by_lag.double().sum())
    with torch.no_grad():
        x, targets = task.batch(MEASURED, torch.Generator().manual_seed(3))
        loss = float(task.loss(net(x), targets))
    growth = flow.growth
    return {
        "horizon": flow.horizon(0.95),
        "growth": growth.kind,
        "rate": growth.rate.mean,
        "half_life": growth.half_life if math.isfinite(growth.half_life) else None,
        "beyond": {str(lag): float(shares[lag + 1 :].sum()) for lag in BEYOND},
        "loss": loss,
    }


def flow_of(net: Net, task: Task) -> GradientFlow:
    """Of the task's loss."""
    x, targets = task.batch(LOOKED_AT, torch.Generator().manual_seed(2))
    return gradient_flow(net, lambda: task.loss(net(x), targets))


_HEAD = (
    f"{'':<28}{'horizon':>8}  {'an error':<12}{'half-life':>10}"
    + "".join(f"{f'> lag {lag}':>10}" for lag in BEYOND)
    + f"{'loss':>9}"
)


def lines(record: dict[str, Any]) -> list[str]:
    """Two lines of the table."""
    found = []
    for when, words in (("at_initialisation", "begins"), ("trained", "trained")):
        p = record[when]
        half = "-" if p["half_life"] is None else f"{p['half_life']:.3g}"
        beyond = "".join(f"{100 * share:>8.2g} %" for share in p["beyond"].values())
        found.append(
            f"{record['cell']:<18}{words:<10}{p['horizon']:>8}  {p['growth']:<12}"
            f"{half:>10}{beyond}{p['loss']:>9.4f}"
        )
    return found


if __name__ == "__main__":
    main()
