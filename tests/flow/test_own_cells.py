"""The flow of cells of one's own is that of autograd through a loop of their calls."""

import pytest
import torch

import bptt
from bptt import Truncation
from bptt.flow import gradient_flow

TIME, BATCH, INPUTS, STATE = 8, 3, 4, 5


def data(*shape, seed=5):
    return torch.randn(
        *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )


X, DY = data(TIME, BATCH, INPUTS), data(TIME, BATCH, STATE, seed=6)


class Separate(torch.nn.Module):
    """Its output is no part of its state, which has a counter too."""

    def __init__(self):
        super().__init__()
        self.U = torch.nn.Linear(INPUTS, STATE)
        self.W = torch.nn.Linear(STATE, STATE)
        self.V = torch.nn.Linear(STATE, STATE)
        self.unused = torch.nn.Parameter(torch.ones(2))

    def forward(self, x, state):
        h, count = state
        h = torch.tanh(self.U(x) + self.W(h))
        return self.V(h), (h, count + 1)


CELLS = {
    "separate": Separate,
    "peephole": lambda: bptt.cells.PeepholeLSTM(INPUTS, STATE),
    "minimal": lambda: bptt.cells.MinimalGatedUnit(INPUTS, STATE),
    "norm": lambda: bptt.cells.LayerNormLSTM(INPUTS, STATE),
}


def made(kind):
    torch.manual_seed(2)
    cell = CELLS[kind]().double()
    with torch.no_grad():
        for parameter in cell.parameters():
            parameter.uniform_(-0.8, 0.8)
    h = data(BATCH, STATE, seed=9)
    if kind == "separate":
        return cell, (h, torch.zeros(BATCH, dtype=torch.int64))
    return cell, h if kind == "minimal" else (h, data(BATCH, STATE, seed=10))


def leaves(state):
    parts = state if isinstance(state, tuple) else (state,)
    return [part for part in parts if part.is_floating_point()]


def mapped(function, state):
    if isinstance(state, tuple):
        return tuple(mapped(function, part) for part in state)
    return function(state)


def literal_norms(cell, state, lengths=None, resets=None):
    lengths = torch.full((BATCH,), TIME) if lengths is None else lengths
    table = torch.zeros(TIME, TIME, dtype=torch.float64)
    states, losses = [], []
    for t in range(TIME):
        if resets is not None:
            keep = (~resets[t]).unsqueeze(1)
            state = tuple(part * keep for part in leaves(state))
            state = state if len(state) > 1 else state[0]
        y, after = cell(X[t], state)
        # Copies are what the next step reads, and E_t, where y is part of the state.
        state = mapped(lambda part: part * 1, after)
        pairs = zip(leaves(after), leaves(state), strict=True)
        y = next((copy for part, copy in pairs if part is y), y)
        states.append(leaves(state))
        losses.append((y * DY[t]).sum())
    for t in range(TIME):
        flat = [part for k in range(t + 1) for part in states[k]]
        found = torch.autograd.grad(
            losses[t], flat, retain_graph=True, allow_unused=True
        )
        each = len(states[0])
        for k in range(t + 1):
            parts = [d for d in found[k * each : (k + 1) * each] if d is not None]
            if parts:
                squares = sum(d.square().sum(1) for d in parts)
                table[t, k] = squares[lengths > t].sqrt().mean()
    return table


@pytest.mark.parametrize("kind", CELLS)
def test_norms_are_those_of_one_autograd_call_an_output(kind):
    cell, state = made(kind)
    module = bptt.Recurrent(cell)
    flow = gradient_flow(module, lambda: (module(X, state)[0] * DY).sum())
    expected = literal_norms(cell, state)
    torch.testing.assert_close(flow.norms, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kind", ["separate", "peephole"])
def test_ragged_rows(kind):
    cell, state = made(kind)
    module = bptt.Recurrent(cell)
    lengths = torch.tensor([3, TIME, 5])
    flow = gradient_flow(
        module, lambda: (module(X, state, lengths=lengths)[0] * DY).sum()
    )
    expected = literal_norms(cell, state, lengths)
    torch.testing.assert_close(flow.norms, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kind", ["minimal", "peephole"])
def test_resets(kind):
    cell, state = made(kind)
    module = bptt.Recurrent(cell)
    resets = torch.zeros(TIME, BATCH, dtype=torch.bool)
    resets[4, 1] = resets[6, 2] = True
    flow = gradient_flow(
        module, lambda: (module(X, state, resets=resets)[0] * DY).sum()
    )
    expected = literal_norms(cell, state, resets=resets)
    torch.testing.assert_close(flow.norms, expected, rtol=1e-10, atol=1e-12)


def test_jacobians():
    cell, state = made("separate")
    module = bptt.Recurrent(cell)
    resets = torch.zeros(TIME, BATCH, dtype=torch.bool)
    resets[4, 1] = True
    lengths = torch.tensor([TIME, TIME, 3])

    def loss():
        y, _ = module(X, state, resets=resets, lengths=lengths)
        return (y * DY).sum()

    found = gradient_flow(module, loss).jacobian(4)
    h, count = state
    for t in range(4):
        _, (h, count) = cell(X[t], (h, count))
    expected = torch.autograd.functional.jacobian(
        lambda h: cell(X[4, :1], (h, count[:1]))[1][0], h[:1]
    )
    torch.testing.assert_close(found[0], expected[0, :, 0], rtol=1e-10, atol=1e-12)
    assert not found[1:].any()  # one row is reset there, and one has ended


@pytest.mark.parametrize("kind", CELLS)
def test_lags_sum_to_truncated_gradients(kind):
    cell, state = made(kind)
    module = bptt.Recurrent(cell)

    def loss():
        y, final = module(X, state)
        return (y * DY).sum() + sum(part.pow(3).sum() for part in leaves(final))

    flow = gradient_flow(module, loss)
    known = dict(module.named_parameters())
    assert set(flow.parameters) == set(known) - {"cell.unused"}
    for truncation in (Truncation(1, 3), Truncation(3, 4), None):
        module.truncation = truncation
        cut = torch.autograd.grad(loss(), [known[name] for name in flow.parameters])
        if truncation is None:
            full = torch.cat([g.flatten() for g in cut])
        if truncation is None or truncation.k1 == 1:
            window = TIME if truncation is None else truncation.k2
            for name, expected in zip(flow.parameters, cut, strict=True):
                torch.testing.assert_close(
                    flow.gradient_by_lag(name)[:window].sum(0),
                    expected,
                    rtol=1e-9,
                    atol=1e-11,
                )
    module.truncation = Truncation(3, 4)
    cut = torch.autograd.grad(loss(), [known[name] for name in flow.parameters])
    cut = torch.cat([g.flatten() for g in cut])
    bias = float((cut - full).norm() / full.norm())
    assert flow.bias(Truncation(3, 4)) == pytest.approx(bias, rel=1e-9)


@pytest.mark.parametrize(
    "make", [torch.nn.RNNCell, torch.nn.GRUCell, torch.nn.LSTMCell]
)
def test_cells_of_torch_are_layers_of_the_engine(make):
    torch.manual_seed(0)
    cell = make(INPUTS, STATE, dtype=torch.float64)
    module = bptt.Recurrent(cell)
    flow = gradient_flow(module, lambda: (module(X)[0] * DY).sum())
    kinds = {"RNNCell": bptt.RNN, "GRUCell": bptt.GRU, "LSTMCell": bptt.LSTM}
    other = kinds[make.__name__](INPUTS, STATE, dtype=torch.float64)
    weights = {f"{name}_l0": p for name, p in cell.state_dict().items()}
    other.load_state_dict(weights)
    expected = gradient_flow(other, lambda: (other(X)[0] * DY).sum())
    torch.testing.assert_close(flow.norms, expected.norms)
    torch.testing.assert_close(flow.by_lag, expected.by_lag)
    assert flow.parameters == tuple(
        f"cell.{name}" for name, _ in cell.named_parameters()
    )


def test_a_cell_that_draws_is_refused():
    class Noisy(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.cell = torch.nn.GRUCell(INPUTS, STATE, dtype=torch.float64)

        def forward(self, x, h):
            h = torch.nn.functional.dropout(self.cell(x, h), 0.5, self.training)
            return h, h

    module = bptt.Recurrent(Noisy())
    h = torch.zeros(BATCH, STATE, dtype=torch.float64)
    flow = gradient_flow(module, lambda: module(X, h)[0].sum())
    with pytest.raises(NotImplementedError, match=r"draws random numbers.*eval"):
        assert flow.norms
    module.eval()
    assert gradient_flow(module, lambda: module(X, h)[0].sum()).norms[5, 2] > 0
