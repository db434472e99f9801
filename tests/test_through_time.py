"""The loop through time against the literal definition, detaching and the tutorial."""

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

import bptt
from bptt import through_time
from bptt.cells import GRUCell, LSTMCell, ReLUCell, TanhCell
from bptt.rows import Rows
from bptt.through_time import Layer
from bptt.truncation import Truncation
from literal import (
    KINDS,
    PARTS,
    assert_same,
    gradients,
    literal_gradients,
    ours,
    pair,
    problem,
    unroll,
)

CELLS = {"tanh": TanhCell, "relu": ReLUCell, "gru": GRUCell, "lstm": LSTMCell}
WEIGHTS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")


def layers_of(p):
    return [
        Layer(CELLS[p.kind](), *(p.weights.get(f"{name}_l{at}") for name in WEIGHTS))
        for at in range(p.layers)
    ]


def run(p):
    layers = layers_of(p)
    initial = list(zip(*(part.unbind(0) for part in p.state), strict=True))
    rows = Rows(*p.x.shape[:2])
    return layers, through_time.forward(layers, p.x, initial, p.masks, rows)


def loop_gradients(p, truncation, *, needs_dx=True):
    """The loop's gradients, named as those of the literal definition."""
    layers, tapes = run(p)
    dfinal = list(zip(*(part.unbind(0) for part in p.dfinal), strict=True))
    rows = Rows(*p.x.shape[:2])
    dx, each = through_time.backward(
        layers, p.x, p.masks, tapes, p.dy, dfinal, truncation, rows, needs_dx=needs_dx
    )
    found = {}
    for at, g in enumerate(each):
        given = (g.dU, g.dW, g.db_ih, g.db_hh)
        for name, d in zip(WEIGHTS, given, strict=True):
            assert (d is None) == (f"{name}_l{at}" not in p.weights)
            if d is not None:
                found[f"{name}_l{at}"] = d
    if needs_dx:
        found["x"] = dx
    else:
        assert dx is None
    starts = zip(*(g.dstate for g in each), strict=True)
    return found | {
        name: torch.stack(parts)
        for name, parts in zip(PARTS[p.kind], starts, strict=True)
    }


problems = st.fixed_dictionaries(
    {
        "time": st.integers(1, 9),
        "batch": st.integers(1, 3),
        "inputs": st.integers(1, 4),
        "hidden": st.integers(1, 4),
        "layers": st.integers(1, 3),
        "bias": st.booleans(),
        "dropout": st.sampled_from([0.0, 0.4]),
        "seed": st.integers(0, 2**32 - 1),
    }
)
STACK = {"time": 7, "inputs": 3, "hidden": 2, "layers": 3, "dropout": 0.4, "seed": 1}


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=25, deadline=None, derandomize=True)
@given(shape=problems)
@example(shape=STACK)
def test_forward_is_torch_nn(kind, shape):
    p = problem(kind, **shape)
    _, tapes = run(p)
    y, final = unroll(kind, p.weights, p.x, p.state, p.masks)
    mine = {"y": tapes[-1].states[0][1:]}
    ends = zip(*([s[-1] for s in tape.states] for tape in tapes), strict=True)
    mine |= {f"final {i}": torch.stack(parts) for i, parts in enumerate(ends)}
    assert_same(mine, {"y": y} | {f"final {i}": part for i, part in enumerate(final)})


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=50, deadline=None, derandomize=True)
@given(shape=problems, k1=st.integers(1, 11), k2=st.integers(1, 12))
@example(shape=STACK, k1=2, k2=5)
@example(shape=STACK, k1=3, k2=2)  # k2 < k1, and a short last chunk
@example(shape=STACK, k1=2, k2=8)  # nothing is cut, in four passes
@example(shape=STACK, k1=9, k2=8)  # one pass, whose first lags lie past the end
@example(shape=STACK, k1=9, k2=2)  # its window lies past the end: all is zero
def test_any_truncation_is_its_literal_definition(kind, shape, k1, k2):
    p = problem(kind, **shape)
    mine = loop_gradients(p, Truncation(k1, k2))
    assert_same(mine, literal_gradients(p, k1, k2))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("k1", range(1, 7))
def test_every_small_truncation_of_a_stack(kind, k1):
    p = problem(kind, time=5, layers=2, hidden=3, dropout=0.3, seed=k1)
    for k2 in range(1, 8):
        assert_same(loop_gradients(p, Truncation(k1, k2)), literal_gradients(p, k1, k2))


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=25, deadline=None, derandomize=True)
@given(shape=problems)
@example(shape=STACK)
def test_full_is_autograd_over_the_whole_sequence(kind, shape):
    p = problem(kind, **shape)
    mine = loop_gradients(p, Truncation.full())
    assert_same(mine, literal_gradients(p, shape["time"], shape["time"]))


@pytest.mark.parametrize("kind", KINDS)
def test_the_whole_tape_is_the_tape_at_every_step(kind):
    p = problem(kind, **STACK)
    _, tapes = run(p)
    for tape in tapes:
        (every,) = Truncation.per_output(0).lags(p.x.shape[0])  # all passes, at lag 0
        whole, at = tape.whole(), tape.at(every)
        for name in ("before", "after", "kept"):
            parts = getattr(whole, name), getattr(at, name)
            assert_same(*({f"{name} {i}": t for i, t in enumerate(of)} for of in parts))
        assert_same({"next": at.before[0][1:]}, {"next": at.after[0][:-1]}, 0.0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("truncation", [Truncation.full(), Truncation(2, 3)])
def test_without_dx_the_other_gradients_are_the_same(kind, truncation):
    p = problem(kind, **STACK)
    expected = loop_gradients(p, truncation)
    del expected["x"]
    assert_same(loop_gradients(p, truncation, needs_dx=False), expected, 0.0)


@pytest.mark.parametrize("truncation", [Truncation.full(), Truncation(1, 2)])
def test_a_rectifier_at_its_kink_is_off_as_in_torch_nn(truncation):
    p = problem("relu", time=4, inputs=2, hidden=3, bias=False)
    p.x[1:3] = 0
    p.state[0].zero_()  # so z = 0 exactly at some steps
    p.x[0] = 0
    k = (4, 4) if truncation.is_full else (1, 2)
    mine = loop_gradients(p, truncation)
    assert float(mine["x"][0].abs().max()) == 0
    assert_same(mine, literal_gradients(p, *k))


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=20, deadline=None, derandomize=True)
@given(
    time=st.integers(1, 11),
    k=st.integers(1, 12),
    layers=st.integers(1, 3),
    seed=st.integers(0, 99),
)
@example(time=7, k=3, layers=2, seed=0)
def test_chunks_is_detaching_the_state_every_k_steps(kind, time, k, layers, seed):
    module, reference = pair(kind, 3, 4, layers, seed=seed)
    module.truncation = Truncation.chunks(k)
    p = problem(kind, time=time, layers=layers, seed=seed)
    state = p.state if kind == "lstm" else p.state[0]
    target = torch.sin(p.dy)

    def loss_of(y, target):
        return ((y - target) ** 2).sum() + (y**3).sum()

    x = p.x.clone().requires_grad_()
    y, final = module(x, state)
    mine = gradients(loss_of(y, target), dict(module.named_parameters()) | {"x": x})

    loss, carried = torch.zeros((), dtype=torch.float64), state
    for at in range(0, time, k):
        y, carried = reference(x[at : at + k], carried)
        loss = loss + loss_of(y, target[at : at + k])
        carried = (
            tuple(part.detach() for part in carried)
            if kind == "lstm"
            else carried.detach()
        )
    expected = dict(reference.named_parameters()) | {"x": x}
    assert_same(mine, gradients(loss, expected))
    assert_same(
        dict(enumerate(final if kind == "lstm" else [final])),
        dict(enumerate(carried if kind == "lstm" else [carried])),
    )


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    ids=st.lists(st.integers(0, 5), min_size=2, max_size=12),
    n=st.integers(0, 13),
    hidden=st.integers(1, 6),
    seed=st.integers(0, 99),
)
@example(ids=[0, 1, 2, 3, 4, 5, 1, 1], n=3, hidden=4, seed=0)
def test_per_output_is_the_tutorials_loop(ids, n, hidden, seed):
    oracle = bptt.tutorial.RNN(6, hidden, bptt_truncate=n, seed=seed)
    oracle.W *= 3  # so that what is cut away is large
    x, y = ids[:-1], ids[1:]
    rnn = ours("tanh", 6, hidden, bias=False, truncation=Truncation.per_output(n))
    readout = torch.nn.Linear(hidden, 6, bias=False, dtype=torch.float64)
    with torch.no_grad():
        rnn.weight_ih_l0.copy_(torch.from_numpy(oracle.U))
        rnn.weight_hh_l0.copy_(torch.from_numpy(oracle.W))
        readout.weight.copy_(torch.from_numpy(oracle.V))
    s, _ = rnn(torch.tensor(x))
    loss = torch.nn.functional.cross_entropy(
        readout(s), torch.tensor(y), reduction="sum"
    )
    parameters = {"dLdU": rnn.weight_ih_l0, "dLdV": readout.weight}
    parameters["dLdW"] = rnn.weight_hh_l0
    expected = dict(zip(parameters, oracle.bptt(np.array(x), np.array(y)), strict=True))
    assert_same(
        gradients(loss, parameters),
        {name: torch.from_numpy(d) for name, d in expected.items()},
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "truncation",
    [
        Truncation.full(),
        Truncation.chunks(10),
        Truncation(8, 24),
        Truncation.per_output(4),
        Truncation(16, 5),
    ],
    ids=str,
)
def test_float32_is_within_5e_6_of_float64(kind, truncation):
    shape = {"time": 64, "batch": 16, "inputs": 96, "hidden": 128, "layers": 2}
    p = problem(kind, **shape, dropout=0.2, largest_weight=128**-0.5)
    p = p.to(torch.float32)  # and back: the same numbers in both
    exact = p.to(torch.float64)
    assert_same(loop_gradients(p, truncation), loop_gradients(exact, truncation), 5e-6)
    states = {}
    for name, q in {"float32": p, "float64": exact}.items():
        _, tapes = run(q)
        states[name] = {
            f"state {i} of layer {at}": s
            for at, tape in enumerate(tapes)
            for i, s in enumerate(tape.states)
        }
    assert next(iter(states["float32"].values())).dtype == torch.float32
    assert_same(states["float32"], states["float64"], 5e-6)
