"""Forward mode (RTRL) and backpropagation through time give the same gradient.

Neither shares a loop with the other, so each is the other's oracle.
"""

import pytest
import torch

import bptt
from bptt import Truncation, cells
from bptt.verify import forward_mode, rtrl
from literal import KINDS, PARTS, assert_same, pair, problem, theirs
from literal_cells import leaves, mapped

CELLS = (
    "LayerNormLSTM",
    "LeakyIntegrateAndFire",
    "LeakyRate",
    "LinearRecurrence",
    "MinimalGatedUnit",
    "PeepholeLSTM",
)
TOLERANCE = 1e-10


def normal(*shape, seed=3):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def backward(module, x, hx, dy, **options):
    """The gradient of the parameters, by the module's own way back."""
    y, _ = module(x, hx, **options)
    named = {n: p for n, p in module.named_parameters() if p.requires_grad}
    found = torch.autograd.grad((dy * y).sum(), named.values(), allow_unused=True)
    return {
        name: torch.zeros_like(p) if g is None else g
        for (name, p), g in zip(named.items(), found, strict=True)
    }


def layered(kind, layers, time=6, batch=2, **options):
    module, _ = pair(kind, 3, 4, layers, **options)
    p = problem(kind, time=time, batch=batch, layers=layers)
    return module, p.x, (p.state if kind == "lstm" else p.state[0]), p.dy


def own_cell(name):
    cell = getattr(cells, name)(3, 4).double()
    for at, parameter in enumerate(cell.parameters()):
        parameter.data += 0.5 * normal(*parameter.shape, seed=at)
    state = mapped(lambda s: normal(*s.shape, seed=5), cell.initial_state(2))
    return bptt.Recurrent(cell), normal(6, 2, 3), state, normal(6, 2, 4, seed=6)


RESETS = torch.zeros(6, 2, dtype=torch.bool)
RESETS[0, 1] = RESETS[2, 0] = RESETS[4, 0] = RESETS[4, 1] = True


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layers", [1, 2, 3])
def test_layers(kind, layers):
    module, x, hx, dy = layered(kind, layers)
    assert_same(rtrl(module, x, hx, dy=dy), backward(module, x, hx, dy), TOLERANCE)
    assert_same(rtrl(module, x, dy=dy), backward(module, x, None, dy), TOLERANCE)


@pytest.mark.parametrize("kind", KINDS)
def test_layers_with_resets_ids_batch_first_and_no_biases(kind):
    module, x, hx, dy = layered(kind, 2, bias=False, batch_first=True)
    x, dy = x.transpose(0, 1), dy.transpose(0, 1)
    resets = RESETS.t()
    expected = backward(module, x, hx, dy, resets=resets)
    assert_same(rtrl(module, x, hx, dy=dy, resets=resets), expected, TOLERANCE)
    without = rtrl(module, x, hx, dy=dy)
    assert (without["weight_hh_l0"] - expected["weight_hh_l0"]).abs().max() > 1e-3
    ids = torch.tensor([[0, 2, 1, 1, 0, 2], [2, 2, 0, 1, 2, 1]])
    mine = rtrl(module, ids, hx, dy=dy)
    assert_same(mine, backward(module, ids, hx, dy), TOLERANCE)


@pytest.mark.parametrize("name", CELLS)
@pytest.mark.parametrize("resets", [None, RESETS], ids=["", "resets"])
def test_own_cells(name, resets):
    """All of them, the spiking one too: its surrogate is the derivative of a step."""
    module, x, state, dy = own_cell(name)
    expected = backward(module, x, state, dy, resets=resets)
    mine = rtrl(module, x, state, dy=dy, resets=resets)
    assert_same(mine, expected, TOLERANCE)
    assert max(float(g.abs().max()) for g in mine.values()) > 0.1
    mine = rtrl(module, x, dy=dy)
    assert_same(mine, backward(module, x, None, dy), TOLERANCE)


@pytest.mark.parametrize("kind", ["tanh", "gru", "lstm"])
def test_torch_nns_cells_and_modules(kind):
    names = {"tanh": "RNNCell", "gru": "GRUCell", "lstm": "LSTMCell"}
    cell = getattr(torch.nn, names[kind])(3, 4, dtype=torch.float64)
    recurrent = bptt.Recurrent(cell)
    x, dy = normal(5, 2, 3), normal(5, 2, 4, seed=6)
    mine = rtrl(recurrent, x, dy=dy)
    assert_same(mine, backward(recurrent, x, None, dy), TOLERANCE)
    state = tuple(normal(2, 4, seed=i) for i in range(len(PARTS[kind])))
    state = state if kind == "lstm" else state[0]
    mine = rtrl(recurrent, x, state, dy=dy)
    assert_same(mine, backward(recurrent, x, state, dy), TOLERANCE)
    layer = theirs(kind, 3, 4, 2)
    mine = rtrl(layer, x, dy=dy)
    assert_same(mine, backward(layer, x, None, dy), TOLERANCE)


def test_the_loss_of_each_step():
    module, x, hx, dy = layered("lstm", 2)

    def loss(t, y):
        return (t + 1) * (y * dy[t]).sin().sum() if t != 3 else torch.zeros(())

    y, _ = module(x, hx)
    named = dict(module.named_parameters())
    total = sum(loss(t, y[t]) for t in range(6))
    expected = torch.autograd.grad(total, named.values())
    mine = rtrl(module, x, hx, loss=loss)
    assert_same(mine, dict(zip(named, expected, strict=True)), TOLERANCE)


def test_a_truncation_does_not_cut_it():
    module, x, hx, dy = layered("gru", 1)
    full = backward(module, x, hx, dy)
    module.truncation = Truncation.chunks(2)
    assert_same(rtrl(module, x, hx, dy=dy), full, TOLERANCE)
    cut = backward(module, x, hx, dy)["weight_hh_l0"]
    assert (cut - full["weight_hh_l0"]).abs().max() > 1e-3


class Counting(torch.nn.Module):
    """A learnt initial state, nested, with a counter; one parameter frozen, one idle.

    Its derivative is in NumPy, so vmap cannot follow it.
    """

    class Cube(torch.autograd.Function):
        @staticmethod
        def forward(ctx, z):
            ctx.save_for_backward(z)
            return torch.from_numpy(z.detach().numpy() ** 3)

        @staticmethod
        def backward(ctx, d):
            (z,) = ctx.saved_tensors
            return torch.from_numpy(d.detach().numpy() * 3 * z.detach().numpy() ** 2)

    def __init__(self):
        super().__init__()
        self.W = torch.nn.Parameter(0.5 * normal(2, 2, seed=1))
        self.start = torch.nn.Parameter(normal(2, seed=2))
        self.frozen = torch.nn.Parameter(normal(2, seed=3), requires_grad=False)
        self.idle = torch.nn.Parameter(normal(2, seed=4))

    def initial_state(self, batch):
        count = torch.zeros(batch, dtype=torch.int64)
        mean = torch.zeros(batch, dtype=torch.float64)
        return (self.start.expand(batch, 2), (mean, count))

    def forward(self, x, state):
        s, (mean, count) = state
        s = torch.tanh(x + s @ self.W.t() + self.frozen)
        count = count + 1
        mean = mean + (self.Cube.apply(s).sum(1) - mean) / count
        return s * mean.unsqueeze(1), (s, (mean, count))


def test_a_learnt_initial_state_counters_and_derivatives_in_numpy():
    recurrent = bptt.Recurrent(Counting())
    x, dy = normal(5, 3, 2), normal(5, 3, 2, seed=6)
    mine = rtrl(recurrent, x, dy=dy)
    assert_same(mine, backward(recurrent, x, None, dy), TOLERANCE)
    assert mine.keys() == {"cell.W", "cell.start", "cell.idle"}
    assert mine["cell.start"].abs().min() > 1e-3
    assert not mine["cell.idle"].any()


def without_the_recurrence(A, influence, own):
    return list(own)


def transposed(A, influence, own):
    return RIGHT(A.transpose(1, 2), influence, own)


def without_the_steps_own(A, influence, own):
    return RIGHT(A, influence, [0.5 * d for d in own])


RIGHT = forward_mode._carried


@pytest.mark.parametrize(
    "wrong", [without_the_recurrence, transposed, without_the_steps_own]
)
@pytest.mark.parametrize("kind", KINDS)
def test_a_disturbed_recursion_is_seen(monkeypatch, kind, wrong):
    module, x, hx, dy = layered(kind, 2)
    expected = backward(module, x, hx, dy)
    monkeypatch.setattr(forward_mode, "_carried", wrong)
    with pytest.raises(AssertionError, match="relative errors"):
        assert_same(rtrl(module, x, hx, dy=dy), expected, 1e-3)


def test_nothing_is_left_behind():
    module, x, hx, dy = layered("lstm", 1)
    before = torch.get_rng_state()
    found = rtrl(module, x, hx, dy=dy)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(p.grad is None for p in module.parameters())
    assert not any(g.requires_grad for g in found.values())


class Mixing(torch.nn.Module):
    def forward(self, x, state):
        state = torch.tanh(x + state - state.mean(0))
        return state, state


def refused():
    gru, x, hx, dy = layered("gru", 2)
    lstm = layered("lstm", 1)[0]
    mixing = bptt.Recurrent(Mixing())
    options = {"dy": dy}
    return {
        "neither": (TypeError, gru, x, hx, {}),
        "both": (TypeError, gru, x, hx, {"dy": dy, "loss": lambda t, y: y.sum()}),
        "got Linear": (TypeError, torch.nn.Linear(2, 2), x, hx, options),
        "is bidirectional": (
            ValueError,
            bptt.GRU(3, 4, bidirectional=True).double(),
            x,
            None,
            options,
        ),
        "with proj_size": (
            ValueError,
            bptt.LSTM(3, 4, proj_size=2).double(),
            x,
            None,
            options,
        ),
        "mode with dropout": (
            ValueError,
            bptt.GRU(3, 4, 2, dropout=0.5).double(),
            x,
            hx,
            options,
        ),
        "x must be floats": (ValueError, gru, x[0], hx, options),
        "at least one step": (ValueError, gru, x[:0], hx, {"dy": dy[:0]}),
        "dy must be shaped": (ValueError, gru, x, hx, {"dy": dy[..., :2]}),
        "dy must have the axes": (ValueError, gru, x, hx, {"dy": dy[:2]}),
        "resets must have": (ValueError, gru, x, hx, {**options, "resets": RESETS[1:]}),
        "resets must be bool": (
            ValueError,
            gru,
            x,
            hx,
            {**options, "resets": RESETS.long()},
        ),
        "hx must be h_0 of shape": (ValueError, gru, x, hx[:1], options),
        "hx must be h_0, c_0": (ValueError, lstm, x, hx, options),
        "hx is None": (ValueError, mixing, x, None, options),
        "every tensor of hx": (ValueError, mixing, x, normal(3, 3), options),
        "the state must be real": (
            ValueError,
            mixing,
            x,
            torch.zeros(2, 3, dtype=torch.complex128),
            options,
        ),
        "no floats": (ValueError, mixing, x, torch.zeros(2, 3, dtype=int), options),
        "mixes the rows": (
            ValueError,
            mixing,
            x,
            normal(2, 3),
            {"dy": normal(6, 2, 3)},
        ),
        "loss must return a scalar": (ValueError, gru, x, hx, {"loss": lambda t, y: y}),
        "got float": (ValueError, gru, x, hx, {"loss": lambda t, y: 1.0}),
    }


@pytest.mark.parametrize("message", refused())
def test_what_cannot_be_run_is_refused(message):
    error, module, x, hx, options = refused()[message]
    with pytest.raises(error, match=message):
        rtrl(module, x, hx, **options)


def test_dropout_in_evaluation_mode():
    gru = bptt.GRU(3, 4, 2, dropout=0.5).double().eval()
    x, dy = normal(4, 2, 3), normal(4, 2, 4)
    mine = rtrl(gru, x, dy=dy)
    assert_same(mine, backward(gru, x, None, dy), TOLERANCE)
    assert leaves(mine["weight_hh_l0"])[0].abs().max() > 1e-2
