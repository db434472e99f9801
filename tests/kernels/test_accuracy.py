"""Outputs and gradients in float32, against float64: widths that fill no register."""

from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.func import functional_call

import bptt
from bptt import kernels
from kernels import cases
from kernels.cases import KIND, KIND_AND_READS, NATIVE, Case, Data, assert_near, run
from kernels.law import assert_as_exact_as_torch, assert_lawful, exact, steady
from kernels.layouts import LAYOUTS, laid_out
from literal import KINDS, outputs, pair

pytestmark = NATIVE

WIDTHS = (1, 2, 3, 7, 8, 15, 16, 17, 31, 32, 33, 48, 63, 64, 65, 100, 130)
BATCHES = (1, 2, 3, 5, 7, 8, 9, 31, 33, 70)
TIMES = (1, 2, 3, 17, 60)
INPUTS = (1, 5, 64, 129)

OPTIONS = {
    "no bias": {"bias": False},
    "batch first": {"batch_first": True},
    "one sequence": {"batch": None},
    "one sequence, batch first": {"batch": None, "batch_first": True},
    "2 layers": {"layers": 2},
    "3 layers, no bias": {"layers": 3, "bias": False},
    "both directions": {"bidirectional": True},
    "both directions, 3 layers": {"bidirectional": True, "layers": 3},
    "ids": {"ids": True},
    "ids, batch first, no bias": {"ids": True, "batch_first": True, "bias": False},
    "ids, 2 layers": {"ids": True, "layers": 2},
    "ids of one sequence": {"ids": True, "batch": None},
    "ids, both directions": {"ids": True, "bidirectional": True},
}


@pytest.mark.parametrize("hidden", WIDTHS)
@KIND
def test_every_width(kind, hidden):
    """Each width with two batches; each batch, length and input with each cell."""
    at, shift = WIDTHS.index(hidden), KINDS.index(kind)
    for turn in range(2):
        assert_as_exact_as_torch(
            Case(
                kind,
                hidden,
                BATCHES[(3 * at + 7 * turn + shift) % len(BATCHES)],
                TIMES[(at + 2 * turn + shift) % len(TIMES)],
                INPUTS[(at + turn + at // 4) % len(INPUTS)],
                bias=(at + turn) % 3 != 0,
            )
        )


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@KIND
def test_every_option(kind, options):
    case = Case(kind, hidden=37, batch=5, time=7, inputs=11)
    assert_as_exact_as_torch(replace(case, **options))


@pytest.mark.parametrize(
    ("hidden", "batch", "time", "inputs"), [(256, 32, 64, 100), (512, 4, 8, 512)]
)
@KIND
def test_large_networks(kind, hidden, batch, time, inputs):
    assert_as_exact_as_torch(Case(kind, hidden, batch, time, inputs))


@pytest.mark.parametrize("scale", [1e-30, 1e-6, 1e-3, 30.0])
@KIND
def test_small_and_large_inputs(kind, scale):
    """Where a tanh from an exponential alone would lose all its digits."""
    case = steady(Case(kind, 17, batch=3, time=4, inputs=6, bias=False))
    module, data = case.modules()[0], case.data()
    data = replace(
        data, x=data.x * scale, state=tuple(part * scale for part in data.state)
    )
    with cases.native_only():
        found = run(module, data)
    assert_near(found, run(case.modules()[0].double(), data.double()), 4e-6)


def test_tanh_and_sigmoid_to_the_last_digits():
    """Three units in the last place; torch's own sigmoid needs two and a half."""
    x = torch.cat([torch.linspace(-30, 30, 100_001), torch.randn(100_000).exp2()])
    x = torch.cat([x, -x, x * 1e-6])
    tanh, gate = bptt.RNN(1, 1, bias=False), bptt.GRU(1, 1, bias=False)
    with torch.no_grad():
        tanh.weight_ih_l0.fill_(1)
        tanh.weight_hh_l0.zero_()
        gate.weight_ih_l0.copy_(torch.tensor([[0.0], [1.0], [0.0]]))
        gate.weight_hh_l0.zero_()  # so h' = z h
        with cases.native_only():
            found = {
                "tanh": tanh(x.view(1, -1, 1))[1].flatten(),
                "sigmoid": gate(x.view(1, -1, 1), torch.ones(1, len(x), 1))[
                    1
                ].flatten(),
            }
    for name, y in found.items():
        exactly = getattr(torch, name)(x.double())
        near = exactly.float().abs()
        unit = torch.nextafter(near, torch.tensor(torch.inf)) - near
        worst = ((y.double() - exactly).abs() / unit.double()).max()
        assert float(worst) <= 3, f"{name}: {float(worst)} units in the last place"


@settings(
    max_examples=30,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    case=st.builds(
        Case,
        kind=st.sampled_from(KINDS),
        hidden=st.integers(4, 80),
        batch=st.none() | st.integers(1, 40),
        time=st.integers(1, 24),
        inputs=st.integers(1, 70),
        layers=st.integers(1, 3),
        bias=st.booleans(),
        bidirectional=st.booleans(),
        batch_first=st.booleans(),
        ids=st.booleans(),
        seed=st.integers(0, 1000),
    )
)
def test_any_shape(case):
    assert_as_exact_as_torch(case)


@pytest.mark.parametrize(
    ("layers", "bidirectional"), [(2, False), (3, False), (3, True)]
)
@KIND
def test_dropout_between_layers_reaches_the_gradients(kind, layers, bidirectional):
    """One seed, the same masks as in the definition; another seed, other masks."""
    options = {"dropout": 0.4, "bidirectional": bidirectional, "dtype": torch.float32}
    module, _ = pair(kind, 5, 18, layers, **options)
    case = Case(
        kind, 18, batch=3, time=6, inputs=5, layers=layers, bidirectional=bidirectional
    )
    with torch.no_grad():
        for weight in module.parameters():
            weight *= 0.4

    def seeded(seed):
        torch.manual_seed(seed)
        return run(module, case.data())

    with kernels.use("torch"):
        expected = seeded(3)
    with cases.native_only():
        assert_near(seeded(3), expected, 5e-6)
        other = seeded(4)
    assert float((other["y"] - expected["y"]).abs().max()) > 1e-3


@pytest.mark.parametrize("layers", [1, 3])
@KIND_AND_READS
def test_whatever_the_loss_reads(kind, layers, reads):
    case = steady(Case(kind, 21, batch=6, time=5, inputs=10, layers=layers))
    with cases.native_only():
        found = run(case.modules()[0], case.data(), reads=reads)
    assert_near(found, exact(case, frozenset(reads)), 4e-6)


@pytest.mark.parametrize("layers", [1, 2])
@KIND
def test_each_tensor_alone_gets_its_gradient(kind, layers):
    """All others are frozen, so a kernel may leave their gradients out."""
    case = steady(Case(kind, 13, batch=4, time=6, inputs=9, layers=layers))
    module, data = case.modules()[0], case.data()
    everything = {name[1:] for name in exact(case) if name.startswith("d")}
    weights = {name for name in everything if name.startswith(("weight", "bias"))}
    for wanted in [*({name} for name in everything), weights, everything - weights]:
        with cases.native_only():
            found = run(module, data, wanted=wanted)
        assert {f"d{name}" for name in wanted} < found.keys()
        assert_lawful(case, found)


@pytest.mark.parametrize("layout", LAYOUTS)
@KIND
def test_tensors_are_read_as_they_stand_in_memory(kind, layout):
    """Inputs, states, errors and weights, each in turn and all together."""
    case = steady(Case(kind, 11, batch=3, time=5, inputs=6, layers=2))
    module, plain = case.modules()[0], case.data()
    for at in ("x", "state", "error", "weight", "everything"):

        def placed(what, t, at=at):
            return laid_out(t, layout) if at in (what, "everything") else t

        data = Data(
            placed("x", plain.x),
            tuple(placed("state", part) for part in plain.state),
            {name: placed("error", error) for name, error in plain.errors.items()},
        )
        weights = {n: placed("weight", w) for n, w in module.named_parameters()}
        found = run(_With(module, weights), data)
        assert_lawful(case, found)


@KIND
def test_an_expanded_error_is_a_constant_one(kind):
    """`y.sum()` gives errors whose strides are all zero."""
    case = steady(Case(kind, 14, batch=5, time=6, inputs=3))
    found = []
    for dtype in (torch.float32, torch.float64):
        module, data = case.modules()[0].to(dtype), case.data()
        x = data.x.to(dtype).requires_grad_()
        out = outputs(module, x, *(part.to(dtype) for part in data.state))
        sum(o.sum() for o in out.values()).backward()
        found.append({n: w.grad for n, w in module.named_parameters()} | {"x": x.grad})
    assert_near(*found, 5e-6)


class _With:
    """A module with other tensors for its weights."""

    def __init__(self, module, weights):
        self.__class__ = type("With", (_With, type(module)), {})
        self.__dict__.update(module=module, weights=weights)

    def named_parameters(self):
        return self.weights.items()

    def __call__(self, *inputs):
        return functional_call(self.module, self.weights, inputs)
