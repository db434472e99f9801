"""Growth and Jacobians are those of theory, and of autograd."""

import math

import pytest
import torch

import bptt
from bptt import Truncation
from bptt.flow import gradient_flow
from bptt.flow.statistics import estimate
from flow.test_flow import DY, KINDS, TIME, X, data, stack, weighted

STATE = 6


class Linear(torch.nn.Module):
    """`h = U x + rho Q h`, Q orthogonal: every error shrinks by rho a step."""

    def __init__(self, rho):
        super().__init__()
        q, _ = torch.linalg.qr(data(STATE, STATE))
        self.W = torch.nn.Parameter(rho * q)
        self.U = torch.nn.Parameter(data(STATE, 3, seed=1))

    def forward(self, x, h):
        h = x @ self.U.t() + h @ self.W.t()
        return h, h


@pytest.mark.parametrize(
    ("rho", "kind"), [(0.8, "vanishing"), (1.0, "stable"), (1.1, "exploding")]
)
def test_a_linear_network_shows_the_decay_that_theory_gives(rho, kind):
    module = bptt.Recurrent(Linear(rho))
    x, h = data(30, 2, 3), torch.zeros(2, STATE, dtype=torch.float64)
    flow = gradient_flow(module, lambda: module(x, h)[0].sum())
    t, k = torch.meshgrid(torch.arange(30), torch.arange(30), indexing="ij")
    expected = math.sqrt(STATE) * (rho ** (t - k).double()).tril()
    torch.testing.assert_close(flow.norms, expected, rtol=1e-12, atol=1e-12)
    assert flow.growth.kind == kind
    assert flow.growth.rate.mean == pytest.approx(math.log(rho), abs=1e-12)
    if rho != 1:
        half = math.log(2) / abs(math.log(rho))
        assert flow.growth.half_life == pytest.approx(half)
    values = flow.singular_values(3)
    torch.testing.assert_close(values, torch.full_like(values, rho))
    words = {"vanishing": "halves every 3.1 steps", "exploding": "doubles every 7.3"}
    assert words.get(kind, "keeps its size") in flow.verdict


def test_the_lag_of_a_linear_network_with_a_known_radius():
    # Not normal: its norm is above 1, and yet errors vanish as its radius 0.5 says.
    cell = Linear(0.0)
    with torch.no_grad():
        cell.W.copy_(0.5 * torch.eye(STATE) + torch.diag(torch.ones(STATE - 1), 1))
    module = bptt.Recurrent(cell)
    x, h = data(400, 1, 3), torch.zeros(1, STATE, dtype=torch.float64)
    flow = gradient_flow(module, lambda: module(x, h)[0].sum())
    assert float(flow.singular_values(1)[0, 0]) > 1.4
    assert flow.growth.kind == "vanishing"
    # Of a Jordan block of size n the product grows as k^(n-1) 0.5^k.
    assert flow.growth.rate.mean == pytest.approx(math.log(0.5), abs=0.1)


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_jacobians_are_those_of_autograd(kind, layers):
    module = stack(kind, layers)
    flow = gradient_flow(module, weighted(module))
    found = flow.jacobian(4)
    parts = 2 if kind == "lstm" else 1

    def step(s):
        """The state after step 4 from that before it, of one row."""
        state = s.reshape(layers, parts, 1, -1).transpose(0, 1)
        given = (state[0], state[1]) if parts == 2 else state[0]
        _, after = module(X[4:5, :1], given)
        after = after if parts == 2 else (after,)
        return torch.stack(after, dim=1).reshape(-1)

    with torch.no_grad():
        _, before = module(X[:4, :1])
    before = before if parts == 2 else (before,)
    s = torch.stack(before, dim=1).reshape(-1)
    expected = torch.autograd.functional.jacobian(step, s)
    torch.testing.assert_close(found[0], expected, rtol=1e-10, atol=1e-12)


def test_jacobians_of_ragged_rows_and_resets():
    module = stack("gru", 2)
    resets = torch.zeros(TIME, 3, dtype=torch.bool)
    resets[4, 1] = True
    whole = gradient_flow(module, weighted(module)).jacobian(4)
    cut = gradient_flow(module, weighted(module, resets=resets)).jacobian(4)
    torch.testing.assert_close(cut[[0, 2]], whole[[0, 2]])
    assert not cut[1].any()
    lengths = torch.tensor([TIME, TIME, 4])  # the last row lacks step 4
    ragged = gradient_flow(module, weighted(module, lengths=lengths)).jacobian(4)
    torch.testing.assert_close(ragged[:2], whole[:2])
    assert not ragged[2].any()
    assert gradient_flow(module, weighted(module, lengths=lengths)).growth.rate.samples


def test_growth_of_a_diagonal_network_is_its_slowest_mode():
    cell = bptt.cells.LinearRecurrence(3, 4).double()
    module = bptt.Recurrent(cell)
    x, h = data(60, 2, 3), torch.zeros(2, 4, dtype=torch.float64)
    flow = gradient_flow(module, lambda: module(x, h)[0].sum())
    largest = float(flow.singular_values(5).max())
    assert flow.growth.rate.mean == pytest.approx(math.log(largest), abs=0.05)


def test_the_verdict_is_computed():
    module = stack("lstm", truncation=Truncation.chunks(3))
    flow = gradient_flow(module, weighted(module))
    lines = flow.verdict.splitlines()
    assert f"lags 0 to {flow.horizon(0.95)}, half of it from" in lines[0]
    bias = flow.bias(Truncation.chunks(3))
    cosine = flow.cosine(Truncation.chunks(3))
    assert f"k1 = 3, k2 = 3: the gradient is off by {100 * bias:.0f} %" in lines[2]
    assert f"a cosine of {cosine:.3f}" in lines[2]
    window = flow.window(0.05)
    assert (f"k2 = {window} steps" in lines[3]) or window == TIME
    assert str(flow) == flow.verdict
    module.truncation = None
    free = gradient_flow(module, weighted(module)).verdict
    assert "cuts nothing within these 9 steps" in free
    assert float(DY.sum())


def test_estimates():
    assert estimate([2.0]).margin == math.inf
    found = estimate([1.0, 2.0, 4.0])
    assert found.mean == pytest.approx(7 / 3)
    # scipy.stats.t.interval(0.95, 2, 7/3, sem) gives -1.4612 to 6.1279.
    assert found.interval == pytest.approx((-1.4612, 6.1279), abs=1e-3)
    many = estimate([0.0, 1.0] * 50)
    assert many.margin == pytest.approx(1.96 * math.sqrt(0.25 * 100 / 99) / 10)
    with pytest.raises(ValueError, match="at least one"):
        estimate([])
