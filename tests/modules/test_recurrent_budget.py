"""Recurrent within a memory budget: the same gradients, and as little kept."""

import subprocess
import sys

import pytest
import torch

from bptt import Recurrent, Truncation, cells, own_cells
from bptt.cells.nest import Nest
from bptt.memory import Budget
from bptt.rows import Rows
from literal import assert_same


class Noisy(torch.nn.Module):
    """A cell of which nothing is known, and which draws random numbers."""

    def __init__(self):
        super().__init__()
        self.of_input = torch.nn.Linear(3, 8, dtype=torch.float64)
        self.of_state = torch.nn.Linear(8, 8, dtype=torch.float64)
        self.dropout = torch.nn.Dropout(0.3)

    def forward(self, x, state):
        state = torch.tanh(self.of_input(x) + self.of_state(state))
        return self.dropout(state), state

    def initial_state(self, batch):
        return self.of_state.weight.new_zeros(batch, 8)


CELLS = {
    "noisy": Noisy,
    "peephole": lambda: cells.PeepholeLSTM(3, 8).double(),
    "torch": lambda: torch.nn.GRUCell(3, 8, dtype=torch.float64),
}


@pytest.mark.parametrize("truncation", [None, Truncation(2, 5), Truncation.chunks(4)])
@pytest.mark.parametrize("name", CELLS)
@pytest.mark.parametrize("ragged", [False, True])
def test_the_gradients_are_those_without_a_budget(
    name, truncation, ragged, monkeypatch
):
    torch.manual_seed(0)
    cell = CELLS[name]()
    x = torch.linspace(-1, 1, 200 * 2 * 3).double().view(200, 2, 3).requires_grad_()
    lengths = torch.tensor([90, 200]) if ragged else None
    segments = []
    run = own_cells.run

    def noted(*arguments, segment_steps=None, **options):
        segments.append(segment_steps)
        return run(*arguments, segment_steps=segment_steps, **options)

    monkeypatch.setattr(own_cells, "run", noted)
    found = []
    for budget in (None, "600kB"):
        recurrent = Recurrent(cell, truncation=truncation, memory_budget=budget)
        torch.manual_seed(3)
        y, _ = recurrent(x, lengths=lengths)
        leaves = dict(cell.named_parameters()) | {"x": x}
        grads = torch.autograd.grad(y.square().sum(), list(leaves.values()))
        found.append(dict(zip(leaves, grads, strict=True)) | {"y": y})
    assert_same(found[1], found[0])
    if name != "torch":  # which runs in the engine, with a budget of its own
        assert segments[0] is None
        assert 0 < segments[1] < 200


@pytest.mark.parametrize("name", CELLS)
def test_a_budget_that_cannot_be_met_names_the_least(name):
    recurrent = Recurrent(CELLS[name](), memory_budget="200B")
    with pytest.raises(ValueError, match=r"'200B' cannot be met.*keeps at least \d+ b"):
        recurrent(torch.zeros(200, 2, 3, dtype=torch.float64))


_PEAK = """
import sys, torch, bptt
torch.set_num_threads(1)
cell = bptt.cells.MinimalGatedUnit(16, 128)
class Plain(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.cell = cell
    def forward(self, x, state):
        return self.cell(x, state)
def step(time, budget):
    module = bptt.Recurrent(Plain(), memory_budget=budget)
    module(torch.ones(time, 8, 16), torch.zeros(8, 128))[0].sum().backward()
step(100, None)
step(100, "600kB")  # as the way back loads more of torch
def peak():
    with open("/proc/self/status") as status:
        line = next(line for line in status if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024
before = peak()
step(4000, sys.argv[1] if len(sys.argv) > 1 else None)
print(peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_resident_memory_stays_near_the_budget():
    def grown(*arguments):
        out = subprocess.run(
            [sys.executable, "-c", _PEAK, *arguments],
            capture_output=True,
            text=True,
            check=True,
        )
        return int(out.stdout)

    outputs = 4000 * 8 * 128 * 4
    assert grown("4MB") < outputs + 8e6
    assert grown("16MB") < outputs + 20e6
    assert grown() > outputs + 100e6


class Operations(torch.nn.Module):
    """A cell whose step is so many operations on one number."""

    def __init__(self, count):
        super().__init__()
        self.count = count

    def forward(self, x, state):
        for _ in range(self.count):
            state = state.exp()
        return state, state


class Affine(torch.nn.Module):
    """A cell with parameters, whose nodes belong to no step."""

    def __init__(self):
        super().__init__()
        self.of_state = torch.nn.Linear(3, 3)

    def forward(self, x, state):
        state = self.of_state(state)
        return state, state


def test_the_graph_of_a_step_is_counted():
    found = [
        own_cells.kept_bytes(
            Operations(count), Nest(), torch.zeros(1, 1), (torch.zeros(1, 1),)
        )
        for count in (5, 9)
    ]
    assert [kept.saved for kept in found] == [5, 9]
    assert [kept.nodes for kept in found] == [6, 10]  # and that of the state before
    assert [kept.random for kept in found] == [0, 0]
    linear = own_cells.kept_bytes(
        Affine(), Nest(), torch.zeros(1, 3), (torch.zeros(1, 3),)
    )
    assert linear.nodes == 3  # the product, the transposed weight, the state before
    cell = Noisy()
    noisy = own_cells.kept_bytes(
        cell, Nest(), torch.zeros(2, 3).double(), (torch.zeros(2, 8).double(),)
    )
    assert noisy.random == torch.get_rng_state().nbytes


def test_a_small_state_makes_short_segments():
    """What 100 nodes keep of one number is some 100 kB."""
    x, state = torch.zeros(50, 1, 1), (torch.zeros(1, 1),)
    rows = Rows(50, 1)

    def steps(count, size):
        return own_cells.segment_steps(
            Operations(count),
            Nest(),
            x,
            state,
            Truncation.full(),
            rows,
            Budget.parse(size),
        )

    assert steps(100, 50 * 120_000) is None
    assert 5 <= steps(100, 1_000_000) <= 10


class Widening(torch.nn.Module):
    """A cell whose second output has another shape."""

    def forward(self, x, state):
        return state[:, : 1 + int(x[0, 0])], state + x


def test_outputs_of_different_shapes_are_refused():
    x = torch.tensor([0.0, 0.0, 1.0] + [0.0] * 100).view(-1, 1, 1)
    recurrent = Recurrent(Widening(), memory_budget="40kB")
    x.requires_grad_()
    with pytest.raises(ValueError, match=r"y of Widening must have.*at step 2"):
        recurrent(x, torch.ones(1, 4))
