"""On a CUDA device everything is what it is on the CPU; skipped where there is none.

The kernels are for the CPU: elsewhere the definition runs, with torch's operations.
"""

import pytest
import torch
from torch.nn.utils.rnn import pack_padded_sequence

import bptt
from bptt import Truncation
from literal import KINDS, ours
from training.problems import text

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="needs a CUDA device"
)

KIND = pytest.mark.parametrize("kind", KINDS)
TIME, BATCH, INPUTS, STATE = 9, 3, 4, 5
TRUNCATIONS = [None, Truncation.per_output(3), Truncation.chunks(4), Truncation(2, 5)]


def data(*shape, seed=5):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


X, DY = data(TIME, BATCH, INPUTS), data(TIME, BATCH, 2 * STATE, seed=6)
LENGTHS = torch.tensor([4, 9, 7])
RESETS = torch.zeros(TIME, BATCH, dtype=torch.bool)
RESETS[3, 1] = RESETS[6, 0] = True


def outcome(module, device, call):
    """Outputs, and gradients of the weights and the input, brought to the CPU."""
    module = module.to(device)
    x = X.to(device, copy=True).requires_grad_()
    y = call(module, x)
    dy = DY[..., : y.shape[-1]].to(device)
    loss = (
        y * (dy if y.shape == dy.shape else dy.flatten()[: y.numel()].view_as(y))
    ).sum()
    found = torch.autograd.grad(loss, [x, *module.parameters()])
    return [part.cpu() for part in (y, *found)]


def assert_same_on_both(module, call):
    module = module.double()
    expected = outcome(module, "cpu", call)
    for found, correct in zip(outcome(module, "cuda", call), expected, strict=True):
        torch.testing.assert_close(found, correct, rtol=1e-10, atol=1e-11)


CALLS = {
    "plain": lambda module, x: module(x)[0],
    "lengths": lambda module, x: module(x, lengths=LENGTHS)[0],
    "resets": lambda module, x: module(x, resets=RESETS.to(x.device))[0],
    "packed": lambda module, x: (
        module(pack_padded_sequence(x, LENGTHS, enforce_sorted=False))[0].data
    ),
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("truncation", TRUNCATIONS)
@KIND
def test_layers(kind, truncation, call):
    torch.manual_seed(0)
    module = ours(kind, INPUTS, STATE, num_layers=2, truncation=truncation)
    assert_same_on_both(module, CALLS[call])


@KIND
def test_both_directions_within_a_budget(kind):
    torch.manual_seed(0)
    module = ours(
        kind, INPUTS, STATE, bidirectional=True, memory_budget="25kB", num_layers=2
    )
    assert_same_on_both(module, CALLS["lengths"])


@KIND
def test_dropout_is_the_same_within_a_budget(kind):
    """Segments run again draw what they drew, of the device's own generator."""
    found = []
    for budget in (None, "20kB"):
        torch.manual_seed(0)
        module = ours(
            kind, INPUTS, STATE, num_layers=3, dropout=0.4, memory_budget=budget
        )
        found.append(outcome(module.double(), "cuda", CALLS["plain"]))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("kind", ["tanh", "gru", "lstm"])
def test_single_precision_is_near_torch(kind):
    torch.manual_seed(0)
    module = ours(kind, 32, 64, num_layers=2).float().cuda()
    theirs = getattr(torch.nn, type(module).__name__)(32, 64, num_layers=2).cuda()
    theirs.load_state_dict(module.state_dict())
    x = torch.randn(20, 8, 32, device="cuda")
    with torch.backends.cudnn.flags(allow_tf32=False):
        expected = theirs(x)[0]
    torch.testing.assert_close(module(x)[0], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["tanh", "gru", "lstm"])
def test_autocast_gives_what_torch_gives(kind):
    module = ours(kind, 32, 64).float().cuda()
    x = torch.randn(20, 8, 32, device="cuda")
    with torch.autocast("cuda", torch.bfloat16):
        y, _ = module(x)
    torch.testing.assert_close(y.float(), module(x)[0], rtol=0.05, atol=0.05)
    y.float().sum().backward()
    assert all(p.grad.isfinite().all() for p in module.parameters())


def test_acceleration_leaves_modules_there_alone():
    model = torch.nn.Sequential(torch.nn.LSTM(4, 8)).cuda()
    done = bptt.accelerate(model)
    assert not done.replaced
    assert "cuda" in done.left["0"]
    assert type(model[0]) is torch.nn.LSTM


@pytest.mark.parametrize("kind", ["tanh", "gru", "lstm"])
def test_gradient_flow(kind):
    torch.manual_seed(0)
    module = ours(kind, INPUTS, STATE, num_layers=2)

    def flow(device):
        layer = module.to(device)
        dy = DY[..., :STATE].to(device)
        state = torch.cuda.get_rng_state()
        found = bptt.gradient_flow(
            layer, lambda: (layer(X.to(device), resets=RESETS.to(device))[0] * dy).sum()
        )
        assert torch.equal(state, torch.cuda.get_rng_state())
        return found

    here, there = flow("cpu"), flow("cuda")
    torch.testing.assert_close(there.norms.cpu(), here.norms, rtol=1e-9, atol=1e-12)
    for k in range(TIME):
        torch.testing.assert_close(
            there.by_lag[k].cpu(), here.by_lag[k], rtol=1e-9, atol=1e-12
        )


CELLS = {
    "peephole": lambda: bptt.cells.PeepholeLSTM(INPUTS, STATE),
    "layer norm": lambda: bptt.cells.LayerNormLSTM(INPUTS, STATE),
    "linear": lambda: bptt.cells.LinearRecurrence(INPUTS, STATE),
    "torch's": lambda: torch.nn.GRUCell(INPUTS, STATE),
}


@pytest.mark.parametrize("truncation", TRUNCATIONS)
@pytest.mark.parametrize("cell", CELLS)
def test_own_cells(cell, truncation):
    torch.manual_seed(0)
    module = bptt.Recurrent(CELLS[cell](), truncation=truncation)
    assert_same_on_both(module, CALLS["lengths"])


def test_state_carried_between_windows():
    torch.manual_seed(0)
    module = bptt.Stateful(
        bptt.GRU(INPUTS, STATE, dtype=torch.float64, truncation=Truncation(2, 4))
    )

    def windows(module, x):
        y = torch.cat([module(part) for part in x[:8].split(2)])
        module.reset()
        return y

    assert_same_on_both(module, windows)


def test_training_from_the_command_line(tmp_path, capsys):
    from bptt.__main__ import main

    book, run = tmp_path / "book.txt", tmp_path / "run"
    book.write_text(text(60))
    words = ["train", str(book), "--out", str(run), "--device", "cuda"]
    words += ["--hidden", "16", "--window", "8", "--batch", "2", "--dropout", "0.2"]
    for steps, more in (("10", []), ("20", ["--resume"])):
        assert main([*words, "--steps", steps, *more]) == 0
    said = capsys.readouterr().out
    assert main(["evaluate", str(run), str(book)]) == 0
    assert main(["flow", str(run), str(book)]) == 0
    assert main(["generate", str(run), "--length", "20"]) == 0
    assert said
