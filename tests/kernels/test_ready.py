"""The shortest way through a dense batch: the numbers of the long way, to the bit."""

from dataclasses import replace

import pytest
import torch

import bptt
from bptt import autograd
from bptt.kernels import native, ready
from bptt.truncation import Truncation
from kernels.cases import BEST, KIND, NATIVE, Case, assert_bits, assert_near, run
from literal import outputs

pytestmark = [NATIVE, BEST]

CASES = [
    {},
    {"bias": False},
    {"layers": 3},
    {"layers": 2, "truncation": Truncation(2, 3)},
    {"batch": 1, "time": 1},
    {"ids": True, "inputs": 11},
    {"batch": 2, "truncation": Truncation.chunks(4)},
]

BACK = [
    {},
    {"bias": False},
    {"ids": True},
    {"batch": 1, "time": 1},
    {"hidden": 40},
    {"batch": 16, "truncation": Truncation.chunks(3)},
]
LONG_BACK = [
    {"layers": 2},
    {"truncation": Truncation(3, 5)},
    {"batch": 2, "truncation": Truncation.chunks(4)},
]


def case_of(kind, **options):
    return Case(kind, **{"hidden": 9, "batch": 3, "time": 8, "inputs": 5} | options)


def kept_long(module):
    """The module, never on the short way."""
    module._run_ready = lambda *_: None
    return module


@pytest.fixture
def short_only(monkeypatch):
    """The long way's function of the core must not be called."""

    def refuse(*_, **__):
        raise AssertionError("the long way was gone")

    def enter():
        monkeypatch.setattr(native, "forward", refuse)

    yield enter
    monkeypatch.undo()


@pytest.mark.parametrize("options", CASES, ids=str)
@KIND
def test_both_ways_give_the_same_bits(kind, options, short_only):
    case = case_of(kind, **options)
    long = run(kept_long(case.modules()[0]), case.data())
    short_only()
    assert_bits(run(case.modules()[0], case.data()), long)


@pytest.mark.parametrize("frozen", [{"h0", "c0"}, {"h0", "c0", "x"}], ids=len)
@pytest.mark.parametrize("reads", [None, ("y",)], ids=str)
@pytest.mark.parametrize("given_state", [True, False])
@pytest.mark.parametrize("options", BACK + LONG_BACK, ids=str)
@KIND
def test_both_ways_back_give_the_same_bits(
    kind, options, given_state, reads, frozen, monkeypatch
):
    case = case_of(kind, **options)
    module, data = case.modules()[0], case.data()
    data = data if given_state else replace(data, state=())
    wanted = {"x", *dict(module.named_parameters())} - frozen
    with monkeypatch.context() as long:
        long.setattr(autograd, "_back_the_short_way", lambda *_: None)
        expected = run(module, data, reads=reads, wanted=wanted)
    if options in BACK:
        monkeypatch.setattr(native, "backward", None)  # the long way's
    assert_bits(run(module, data, reads=reads, wanted=wanted), expected)


@pytest.mark.parametrize("given_state", [True, False])
@KIND
def test_saved_tensors_that_come_back_otherwise_take_the_long_way(kind, given_state):
    case = case_of(kind)
    module, data = case.modules()[0], case.data()
    data = data if given_state else replace(data, state=())
    wanted = {"x", *dict(module.named_parameters())}
    expected = run(module, data, wanted=wanted)
    spread = lambda t: t.repeat_interleave(2, -1)[..., ::2]  # noqa: E731
    with torch.autograd.graph.saved_tensors_hooks(spread, lambda t: t):
        assert_bits(run(module, data, wanted=wanted), expected)


@KIND
def test_zeros_stand_for_no_state_again_and_again(kind, short_only):
    case = case_of(kind, hidden=13, batch=2)
    module, data = case.modules()[0], case.data()
    zeros = replace(data, state=tuple(map(torch.zeros_like, data.state)))
    ready._zeros.cache_clear()
    with torch.inference_mode():  # what this leaves must do for training
        outputs(module, data.x)
    expected = run(module, zeros)
    short_only()
    for _ in range(2):
        found = run(module, replace(data, state=()))
        assert_bits(found, {name: expected[name] for name in found})
        _, end = module(data.x)
        for part in (end,) if isinstance(end, torch.Tensor) else end:
            part.detach().fill_(7)  # is the caller's, whatever it was made from


@KIND
def test_a_wrong_id_is_refused_as_on_the_long_way(kind):
    case = case_of(kind, ids=True)
    module, data = case.modules()[0], case.data()
    with pytest.raises(ValueError, match=r"below input_size = 5; got 0 to 5"):
        module(data.x.remainder(5).index_fill(0, torch.tensor(2), 5))


@pytest.mark.parametrize("differentiated", [True, False])
@KIND
def test_a_tensor_that_a_transform_has_left_is_read(kind, differentiated):
    """It has no address, though it looks like any tensor."""
    case = case_of(kind)
    module, data = case.modules()[0], case.data()
    left = []

    def leave(x):
        left.append(x * 1.0)
        return x.sum()

    torch.func.grad(leave)(data.x)
    with torch.set_grad_enabled(differentiated):
        found = outputs(module, left[0])
        expected = outputs(module, data.x)
    assert_near(found, {n: t.detach() for n, t in expected.items()}, 2e-6)


def test_the_common_call_takes_the_short_way(short_only):
    modules = [bptt.RNN(4, 6), bptt.GRU(4, 6, 2, dropout=0.5).eval(), bptt.LSTM(4, 6)]
    short_only()
    for module in modules:
        y, _ = module(torch.randn(5, 1, 4))
        assert torch.autograd.grad(y.sum(), module.weight_ih_l0)[0].abs().sum() > 0
