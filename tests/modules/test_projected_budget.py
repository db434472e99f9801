"""LSTMs with proj_size within a memory budget: the same gradients, little kept."""

import subprocess
import sys

import pytest
import torch

from bptt import LSTM, Truncation, own_cells
from literal import assert_same

CASES = [
    {"num_layers": 1},
    {"num_layers": 3, "dropout": 0.4, "bias": False},
    {"num_layers": 2, "dropout": 0.4, "bidirectional": True},
    {"num_layers": 2, "dropout": 1.0},
]
BUDGET = "2MB"  # all that 200 steps keep is 4 MB and more


@pytest.fixture
def segments(monkeypatch):
    """How many steps were run again at a time, loop by loop."""
    found = []
    run = own_cells.run

    def noted(*arguments, segment_steps=None, **options):
        found.append(segment_steps)
        return run(*arguments, segment_steps=segment_steps, **options)

    monkeypatch.setattr(own_cells, "run", noted)
    return found


def in_training(module, x, budget, **call):
    """Outputs, ends and all gradients, with the masks of one seed."""
    module.memory_budget = budget
    leaves = dict(module.named_parameters())
    if x.is_floating_point():
        leaves["x"] = x.requires_grad_()
    torch.manual_seed(3)
    y, (h, c) = module(x, **call)
    loss = y.square().sum() + h.sin().sum() + c.sin().sum()
    grads = torch.autograd.grad(loss, list(leaves.values()))
    return dict(zip(leaves, grads, strict=True)) | {"y": y, "h": h, "c": c}


@pytest.mark.parametrize("truncation", [None, Truncation(2, 5), Truncation.chunks(4)])
@pytest.mark.parametrize("options", CASES, ids=str)
@pytest.mark.parametrize("given", ["floats", "ids", "ragged"])
def test_the_gradients_are_those_without_a_budget(given, options, truncation, segments):
    if truncation and options.get("bidirectional"):
        options = options | {"num_layers": 1, "dropout": 0.0}
    torch.manual_seed(0)
    module = LSTM(
        3, 5, proj_size=2, dtype=torch.float64, truncation=truncation, **options
    )
    x = torch.randn(200, 2, 3, dtype=torch.float64)
    call = {}
    if given == "ids":
        x = torch.randint(0, 3, (200, 2))
    elif given == "ragged":
        resets = torch.zeros(200, 2, dtype=torch.bool)
        resets[50, 1] = True
        call = {"lengths": torch.tensor([90, 200]), "resets": resets}
    expected = in_training(module, x, None, **call)
    segments.clear()
    assert_same(in_training(module, x, BUDGET, **call), expected)
    loops = 2 * options["num_layers"] if options.get("bidirectional") else 1
    assert len(segments) == loops
    assert all(0 < steps < 200 for steps in segments)
    segments.clear()
    assert_same(in_training(module, x, "1GB", **call), expected)
    assert set(segments) == {None}


def test_the_masks_are_those_of_torch_nn():
    torch.manual_seed(0)
    options = {"num_layers": 3, "dropout": 0.4, "proj_size": 2, "dtype": torch.float64}
    module, reference = LSTM(3, 5, **options), torch.nn.LSTM(3, 5, **options)
    reference.load_state_dict(module.state_dict())
    x = torch.randn(200, 2, 3, dtype=torch.float64)
    found = in_training(module, x, BUDGET)
    expected = in_training(reference, x, None)
    assert_same(found, expected)


def test_a_budget_that_cannot_be_met_names_the_least():
    x = torch.zeros(200, 2, 3, dtype=torch.float64)
    module = LSTM(3, 5, proj_size=2, dtype=x.dtype, memory_budget="200B")
    with torch.no_grad():  # when nothing is kept
        assert torch.equal(module(x)[0], torch.nn.LSTM.forward(module, x)[0])
    with pytest.raises(ValueError, match=r"'200B' cannot be met.*keeps at least \d+ b"):
        module(x)


_PEAK = """
import sys, torch, bptt
torch.set_num_threads(1)
def step(time, budget):
    module = bptt.LSTM(
        16, 128, 2, proj_size=64, dropout=0.3, memory_budget=budget,
        truncation=bptt.Truncation(1000, 2000),
    )
    module(torch.ones(time, 8, 16))[0].sum().backward()
step(100, None)
step(100, "2MB")
def peak():
    with open("/proc/self/status") as status:
        line = next(line for line in status if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024
before = peak()
step(3000, sys.argv[1] if len(sys.argv) > 1 else None)
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

    outputs = 3000 * 8 * 64 * 4
    assert grown("16MB") < outputs + 20e6
