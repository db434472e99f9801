"""The known picture of vanishing gradients (Hochreiter, 1991; Le et al., 2015)."""

import math

import pytest
import torch

import bptt
from bptt.flow import gradient_flow

TIME, BATCH, UNITS = 60, 8, 24
SEEDS = (0, 1)


def adding_problem(seed):
    """Numbers, two of which are marked; the sum of these is the target."""
    random = torch.Generator().manual_seed(100 + seed)
    numbers = torch.rand(TIME, BATCH, generator=random, dtype=torch.float64)
    marks = torch.zeros_like(numbers)
    for first in (0, TIME // 2):
        at = first + torch.randint(TIME // 2, (BATCH,), generator=random)
        marks[at, torch.arange(BATCH)] = 1
    return torch.stack((numbers, marks), dim=2), (numbers * marks).sum(0)


def flow_of(module, seed):
    """Of the error that is made at the last step alone."""
    x, targets = adding_problem(seed)
    out = torch.nn.Linear(UNITS, 1, dtype=torch.float64)

    def loss():
        return (out(module.double()(x)[0][-1])[:, 0] - targets).square().mean()

    return gradient_flow(module, loss)


def raised(module, keep):
    """The gate that keeps the state stands second in LSTM and GRU."""
    with torch.no_grad():
        module.bias_ih_l0[UNITS : 2 * UNITS] = math.log(keep / (1 - keep))
        module.bias_hh_l0[UNITS : 2 * UNITS] = 0
    return module


def identity():
    module = bptt.RNN(2, UNITS, nonlinearity="relu")
    with torch.no_grad():
        module.weight_hh_l0.copy_(torch.eye(UNITS))
        module.weight_ih_l0.normal_(0, 0.001)
        module.bias_ih_l0.zero_()
        module.bias_hh_l0.zero_()
    return module


@pytest.mark.parametrize("seed", SEEDS)
def test_gates_that_keep_the_state_keep_the_gradient(seed):
    torch.manual_seed(seed)
    keep = 0.5 ** (2 / TIME)
    rnn = flow_of(bptt.RNN(2, UNITS), seed)
    gated = {
        "GRU": flow_of(raised(bptt.GRU(2, UNITS), keep), seed),
        "LSTM": flow_of(raised(bptt.LSTM(2, UNITS), keep), seed),
    }
    shares = rnn.by_lag / rnn.by_lag.sum()
    assert rnn.growth.kind == "vanishing"
    assert rnn.growth.half_life < 3
    assert rnn.horizon(0.95) < 10
    assert float(shares[21:].sum()) < 1e-3
    for name, flow in gated.items():
        shares = flow.by_lag / flow.by_lag.sum()
        assert flow.horizon(0.95) > 40, name
        assert float(shares[21:].sum()) > 0.3, name
        assert flow.growth.rate.mean > rnn.growth.rate.mean / 10, name


@pytest.mark.parametrize("cell", [bptt.GRU, bptt.LSTM])
@pytest.mark.parametrize("seed", SEEDS)
def test_gates_half_open_forget_as_an_rnn_does(cell, seed):
    torch.manual_seed(seed)
    flow = flow_of(cell(2, UNITS), seed)
    assert flow.growth.kind == "vanishing"
    assert flow.horizon(0.95) < 10


def test_the_longer_a_gate_keeps_the_farther_the_gradient_goes():
    torch.manual_seed(0)
    horizons = [
        flow_of(raised(bptt.LSTM(2, UNITS), 0.5 ** (1 / half_life)), 0).horizon(0.95)
        for half_life in (1, 3, 9, 27)
    ]
    assert horizons == sorted(horizons)
    assert len(set(horizons)) == 4


@pytest.mark.parametrize("seed", SEEDS)
def test_an_identity_of_rectified_units_is_stable(seed):
    torch.manual_seed(seed)
    flow = flow_of(identity(), seed)
    assert flow.growth.kind == "stable"
    # a lag adds as much as the next, but for what the input has added up by then
    assert flow.horizon(0.95) >= 0.85 * TIME
    lost = flow.norms[-1, 0] / flow.norms[-1, -1]
    assert 0.5 < float(lost) < 2
