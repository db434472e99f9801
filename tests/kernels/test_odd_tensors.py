"""Tensors of any dtype, stride and shape, sharing memory: refused, or as defined."""

import os
from contextlib import suppress

import pytest
import torch
from hypothesis import event, given, settings
from hypothesis import strategies as st

import bptt
from bptt import kernels

pytest.importorskip("bptt.kernels._native")

WRONG = (ValueError, TypeError, RuntimeError, IndexError, NotImplementedError)
DTYPES = (
    *[torch.float32] * 24,
    *(torch.float64, torch.float16, torch.bfloat16, torch.complex64),
    *(torch.int64, torch.int32, torch.uint8, torch.bool),
)
H = 3  # as wide as an input can be, so that both may be one tensor
HUGE = (-1, 0, 1, 2, 5, 2**31, 2**62, 2**63 - 1, -(2**63))

sizes = st.integers(0, 4)
rarely = st.sampled_from([False] * 5 + [True])
inputs = st.tuples(st.integers(1, 5), st.integers(1, 3), st.just(H))


@st.composite
def shapes(draw, right=inputs):
    """A right one, but rarely."""
    if draw(rarely):
        return tuple(draw(st.lists(sizes, max_size=4)))
    return draw(right)


@st.composite
def tensors(draw, shape, dtypes=DTYPES):
    """The numbers 1, -1, 2, ... in some memory."""
    shape = draw(shape)
    dtype = draw(st.sampled_from(dtypes))
    how = draw(st.sampled_from(["plain", "turned", "spread", "late", "one", "overlap"]))
    if how == "one":
        t = torch.full((1,) * len(shape), 0.5).expand(shape)
    elif how == "overlap" and shape:
        t = torch.linspace(-1, 1, 64).as_strided(shape, (1,) * len(shape))
    elif how == "turned":
        t = torch.linspace(-1, 1, _count(shape)).reshape(shape[::-1])
        t = t.permute(tuple(reversed(range(len(shape)))))
    elif how == "spread" and shape:
        wide = (*shape[:-1], 2 * shape[-1])
        t = torch.linspace(-1, 1, _count(wide)).reshape(wide)[..., ::2]
    else:
        late = 1 if how == "late" else 0  # not at an address that vectors like
        t = torch.linspace(-1, 1, _count(shape) + late)[late:].reshape(shape)
    if dtype in (torch.int64, torch.int32, torch.uint8):
        t = 2 * t.abs()
    if dtype is torch.float32:
        return t
    strides = t.stride()
    other = t.to(dtype)
    with suppress(RuntimeError):  # where memory is shared, the copy is another tensor
        return torch.empty_strided(shape, strides, dtype=dtype).copy_(other)
    return other


def _count(shape):
    return torch.Size(shape).numel()


@st.composite
def calls(draw):
    """What is odd about a module's weights, and what it is called with."""
    kind = draw(st.sampled_from([bptt.RNN, bptt.GRU, bptt.LSTM]))
    torch.manual_seed(0)
    module = kind(H, H, draw(st.integers(1, 2)), bias=draw(st.booleans()))
    module.truncation = draw(st.sampled_from([None, bptt.Truncation(1, 2)]))
    odd = "no"
    if draw(rarely):
        odd = draw(st.sampled_from(["turned", "shared", "wrong", "double"]))
    if odd == "turned":
        module.weight_hh_l0.data = module.weight_hh_l0.data.t().contiguous().t()
    elif odd == "shared":
        module.weight_hh_l0.data = module.weight_ih_l0.data
    elif odd == "wrong":
        module.weight_hh_l0.data = draw(tensors(shapes(), DTYPES[:-4]))
    elif odd == "double":
        module.weight_ih_l0.data = module.weight_ih_l0.data.double()
    x = draw(tensors(shapes()))
    steps, rows = x.shape[:2] if x.dim() == 3 else (1, 1)
    state = None
    if draw(st.booleans()):
        if draw(rarely) and x.dim() == 3 and len(x) >= module.num_layers:
            h = x[: module.num_layers]  # the same memory
        else:
            h = draw(tensors(shapes(st.just((module.num_layers, rows, H)))))
        both = (kind is bptt.LSTM) != draw(rarely)
        state = (h, h) if both else h
    more = {}
    if draw(rarely) or draw(rarely):
        lengths = st.integers(1, max(1, steps))
        if draw(rarely):
            lengths = st.sampled_from(HUGE)
        count = rows + draw(rarely)
        given = draw(st.lists(lengths, min_size=count, max_size=count))
        dtype = torch.int32 if draw(rarely) else torch.int64
        more["lengths"] = torch.tensor(given, dtype=torch.int64).to(dtype)
    if draw(rarely) or draw(rarely):
        dtype = torch.uint8 if draw(rarely) else torch.bool
        more["resets"] = draw(tensors(shapes(st.just((steps, rows))), [dtype]))
    return odd, (module, x, state, more)


def outcome(module, x, state, more):
    """Outputs and gradients, or the error."""
    module.zero_grad()
    x = x.detach()
    if x.is_floating_point():
        x.requires_grad_()
    try:
        y, end = module(x, state, **more)
        (
            y.sum() + sum(t.sum() for t in (end if type(end) is tuple else (end,)))
        ).backward()
    except WRONG as error:
        return type(error)
    return [y, end, x.grad, [p.grad for p in module.parameters()]]


@settings(max_examples=int(os.environ.get("BPTT_SOAK_EXAMPLES", "60")), deadline=None)
@given(call=calls())
def test_odd_tensors_are_refused_or_right(call):
    odd, (module, x, state, more) = call
    before = [t.clone() for t in (x, *more.values())]
    found = outcome(module, x, state, more)
    with kernels.use("torch"):
        expected = outcome(module, x, state, more)
    event("refused" if isinstance(expected, type) else "right")
    if odd == "wrong":
        pass  # nobody is promised anything but that the process goes on
    elif isinstance(expected, type):
        assert isinstance(found, type)
    else:
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    for t, old in zip((x, *more.values()), before, strict=True):
        torch.testing.assert_close(t, old, rtol=0, atol=0)
