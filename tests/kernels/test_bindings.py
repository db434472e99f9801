"""The core's entry points with arguments that nobody should give: an error, no crash.

The arrays lie before pages that may not be touched, so reading beyond one is a fault.
"""

import ctypes
import gc
import os
import random
import subprocess
import sys
from contextlib import suppress

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import bptt
from bptt import kernels
from bptt.kernels import native as look
from kernels.guards import guarded

native = pytest.importorskip("bptt.kernels._native")

T, B, IN, H, L = 3, 2, 4, 5, 2
GATES = {0: 1, 1: 1, 2: 3, 3: 4}
WRONG = (ValueError, IndexError, TypeError, OverflowError, MemoryError)
_kept = {}


def array(*shape, key, dtype=torch.float32, at_end=True):
    """A tensor between pages that may not be touched; the same for the same key."""
    if key not in _kept:
        _kept[key] = guarded(torch.zeros(shape, dtype=dtype), at_end=at_end)
    return _kept[key]


def forward_arguments(kernel, cell):
    width = GATES[cell] * H

    def weight(layer):
        inputs = H if layer else IN
        return (
            array(width, inputs, key=("U", cell, layer)),
            array(width, H, key=("W", cell, layer)),
            array(width, key=("b_ih", cell, layer)),
            array(width, key=("b_hh", cell, layer)),
        )

    floats = native.tape_floats(kernel, cell, T * B, H)
    tape = array(floats, key=("tape", cell, kernel)) if floats else None
    c0 = array(L, B, H, key="c0") if cell == 3 else None
    c_end = array(L, B, H, key="c_end") if cell == 3 else None
    return [
        kernel,
        1,
        cell,
        (T, B, IN, H),
        (None, None),
        None,
        array(T, B, IN, key="x"),
        None,
        [weight(layer) for layer in range(L)],
        [array(T, B, H, key="mask")],
        array(L, B, H, key="h0"),
        c0,
        array(T, B, H, key="y"),
        array(L, B, H, key="h_end"),
        c_end,
        [(array(B + T * B, H, key=("h", layer)), tape) for layer in range(L)],
    ]


def backward_arguments(kernel, cell):
    width, blocks = GATES[cell] * H, {2: 4}.get(cell, GATES[cell])
    floats = native.tape_floats(kernel, cell, T * B, H)
    tape = array(floats, key=("tape", cell, kernel)) if floats else None
    layer = (
        array(width, H, key=("W", cell, 0)),
        None,
        array(B + T * B, H, key=("h", 0)),
        tape,
        None,
        array(B, H, key="dh_end"),
        array(B, H, key="dc_end") if cell == 3 else None,
        array(T * B, blocks * H, key=("delta", cell)),
        array(B, H, key="dh_start"),
        array(B, H, key="dc_start") if cell == 3 else None,
    )
    sizes, dy = (T, B, H), array(T, B, H, key="y")
    rows = (None, None)
    return [kernel, 1, cell, sizes, rows, None, None, (2, 3), 0, dy, [layer], None]


def gradients_arguments(kernel, cell):
    width, blocks = GATES[cell] * H, {2: 4}.get(cell, GATES[cell])
    wanted = (
        IN,
        array(T, B, IN, key="x"),
        None,
        array(width, IN, key=("U", cell, 0)),
        array(width, IN, key=("dU", cell)),
        array(width, H, key=("dW", cell)),
        None,
        None,
        array(T, B, IN, key="dx"),
    )
    delta = array(T * B, blocks * H, key=("delta", cell))
    h = array(B + T * B, H, key=("h", 0))
    return [kernel, 1, cell, (T, B, H), (None, None), None, delta, h, wanted]


def back_lag_arguments(kernel, cell):
    is_lstm, blocks = cell == 3, {2: 4}.get(cell, GATES[cell])
    floats = native.tape_floats(kernel, cell, T * B, H)
    packed = native.packed_floats(kernel, cell, H)
    return [
        kernel,
        1,
        cell,
        (T, B, H),
        T,
        array(GATES[cell] * H, H, key=("W", cell, 0)),
        # At the begin of a page, since it must be aligned.
        array(packed, key=("packed", cell, kernel), at_end=False),
        array(B + T * B, H, key=("h", 0)),
        array(floats, key=("tape", cell, kernel)) if floats else None,
        array(T, B, H, key="ds"),
        array(T, B, H, key="dc") if is_lstm else None,
        array(T * B, blocks * H, key=("delta", cell)),
        array(T, B, H, key="ds_before"),
        array(T, B, H, key="dc_before") if is_lstm else None,
        array(T, B, key="squares"),
        array(T, B, key="squares_c") if is_lstm else None,
    ]


def padded_arguments(kernel, cell):
    """Those of `forward` for a padded batch of 3 and 1 steps, run from their ends."""
    offsets, order = torch.tensor([0, 2, 3, 4]), torch.tensor([1, 0])
    arguments, steps = forward_arguments(kernel, cell), 4
    floats = native.tape_floats(kernel, cell, steps, H)
    tape = array(floats, key=("short tape", cell, kernel)) if floats else None
    arguments[4] = (offsets, None)
    arguments[5] = (order, T, False, True)
    arguments[9] = [array(steps, H, key="short mask")]
    arguments[15] = [
        (array(B + steps, H, key=("short h", layer)), tape) for layer in range(L)
    ]
    return arguments


def sort_rows_arguments(kernel, cell):
    return [[2, 4, 1], array(2 * (3 + 4) + 1, key="sorted", dtype=torch.int64)]


CALLS = {
    "sort_rows": (native.sort_rows, sort_rows_arguments),
    "forward": (native.forward, forward_arguments),
    "padded forward": (native.forward, padded_arguments),
    "back_lag": (native.back_lag, back_lag_arguments),
    "backward": (native.backward, backward_arguments),
    "gradients": (native.gradients, gradients_arguments),
}
SIZES = st.one_of(
    st.sampled_from([-1, 0, 1, 2**31, 2**32, 2**46, 2**62, 2**63 - 1, -(2**63)]),
    st.integers(-(2**63), 2**63 - 1),
    st.integers(0, 8),
)


def places(value, path=()):
    """The paths of all numbers and arrays inside nested lists and tuples."""
    if isinstance(value, tuple | list):
        if path:
            yield path
        for i, part in enumerate(value):
            yield from places(part, (*path, i))
    elif path:
        yield path


def at(value, path):
    for i in path:
        value = value[i]
    return value


def replaced(value, path, new):
    if not path:
        return new
    parts = list(value)
    parts[path[0]] = replaced(parts[path[0]], path[1:], new)
    return type(value)(parts) if isinstance(value, tuple) else parts


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("cell", range(4))
def test_the_arguments_are_right_before_they_are_spoilt(name, cell):
    for kernel in native.variants():
        call, arguments = CALLS[name]
        call(*arguments(kernel, cell))


@pytest.mark.parametrize("name", CALLS)
@settings(max_examples=int(os.environ.get("BPTT_SOAK_EXAMPLES", "150")), deadline=None)
@given(data=st.data())
def test_a_wrong_argument_is_an_error(name, data):
    call, arguments = CALLS[name]
    kernel = data.draw(st.sampled_from(native.variants()))
    whole = arguments(kernel, data.draw(st.integers(0, 3)))
    spoilt = whole
    for _ in range(data.draw(st.integers(1, 2))):
        path = data.draw(st.sampled_from(list(places(spoilt))))
        nothing = st.sampled_from([None, (), [], "x", 1.5])
        parts = [at(whole, p) for p in places(whole)]
        # The memory of another argument, or of so many elements.
        shared = st.sampled_from([p for p in parts if isinstance(p, torch.Tensor)])
        other = st.integers(1, 40).map(lambda n: array(n, key=("of", n)))
        new = data.draw(st.one_of(SIZES, nothing, shared, other))
        spoilt = replaced(spoilt, path, new)
    with suppress(*WRONG):
        call(*spoilt)


@pytest.mark.parametrize(
    "x",
    [
        torch.zeros(T, B, IN, dtype=torch.float64),
        torch.zeros(T, B, IN, dtype=torch.int64),
        torch.zeros(T, B, IN, dtype=torch.complex64),
        torch.zeros(T, B, IN, dtype=torch.bfloat16),
        torch.zeros(T, B, 2 * IN)[..., ::2],
        torch.zeros(B, T, IN).transpose(0, 1),
        torch.zeros(1, 1, 1).expand(T, B, IN),
        torch.zeros(T, B, IN, device="meta"),
        torch.zeros(T, B, IN).to_sparse(),
        torch.zeros(T, B, IN - 1),
        torch.zeros(0),
    ],
    ids=lambda x: f"{x.dtype}-{tuple(x.shape)}-{x.layout}-{x.device}",
)
def test_a_tensor_that_is_not_as_it_must_be(x):
    arguments = forward_arguments(native.variants()[0], 0)
    arguments[6] = x
    with pytest.raises((ValueError, TypeError)):
        native.forward(*arguments)


def test_a_tensor_is_read_where_it_lies():
    arguments = forward_arguments(native.variants()[0], 0)
    given, y = torch.randn(T + 1, B, IN), torch.empty(T, B, H)
    arguments[6], arguments[12] = given[1:], y
    U, W, b_ih, b_hh = (torch.randn(*shape) for shape in ((H, IN), (H, H), (H,), (H,)))
    arguments[8], arguments[9] = [(U, W, b_ih, b_hh)], []
    state = torch.zeros(1, B, H)
    arguments[10], arguments[13] = state, torch.empty(1, B, H)
    arguments[15] = []
    native.forward(*arguments)
    rnn = torch.nn.RNN(IN, H)
    torch.nn.utils.vector_to_parameters(
        torch.cat([w.flatten() for w in (U, W, b_ih, b_hh)]), rnn.parameters()
    )
    torch.testing.assert_close(y, rnn(given[1:])[0].detach())


def left_by_a_transform():
    """A wrapper without memory."""
    found = []
    torch.func.vmap(lambda t: found.append(t) or t)(torch.randn(2, 3))
    return found[0]


class Own(torch.Tensor):
    """A class that may do anything."""


FIT = {
    "plain": lambda: torch.randn(3, 4),
    "a parameter": lambda: torch.nn.Parameter(torch.randn(3, 4)),
    "a number": lambda: torch.randn(()),
    "empty": lambda: torch.randn(3, 0),
    "a part": lambda: torch.randn(5, 4)[2:],
    "one row of many": lambda: torch.randn(3, 4)[::2][:1],
    "of a graph": lambda: torch.randn(3, requires_grad=True) * 2,
}
UNFIT = {
    "ids": lambda: torch.arange(3),
    "double": lambda: torch.randn(3).double(),
    "half": lambda: torch.randn(3).half(),
    "bfloat16": lambda: torch.randn(3).bfloat16(),
    "32 bits, no floats": lambda: torch.arange(3, dtype=torch.int32),
    "64 bits, complex": lambda: torch.zeros(3, dtype=torch.complex64),
    "transposed": lambda: torch.randn(3, 4).t(),
    "every other": lambda: torch.randn(6)[::2],
    "expanded": lambda: torch.randn(1, 3).expand(2, 3),
    "negated as it is read": lambda: torch._neg_view(torch.ones(3)),
    "an imaginary part": lambda: torch.randn(3, dtype=torch.cfloat).conj().imag,
    "sparse": lambda: torch.eye(3).to_sparse(),
    "without memory": lambda: torch.empty(3, device="meta"),
    "a subclass": lambda: torch.randn(3).as_subclass(Own),
    "left by a transform": left_by_a_transform,
}


@pytest.mark.parametrize("are_fit", [look.are_fit, look._are_fit])
def test_what_is_fit_for_the_core(are_fit):
    """By the core's own look and by the one that an older torch needs."""
    for name, make in FIT.items():
        assert are_fit([make()]), name
        assert are_fit([torch.arange(3), make(), make()]), name
    for name, make in UNFIT.items():
        assert name == "ids" or not are_fit([make()]), name
        assert not are_fit([torch.randn(3), make()]), name


def test_a_torch_whose_tensors_cannot_be_read_from_c():
    """Its tensors' methods tell the same."""
    code = """
import sys, torch
if sys.argv[1] == "old":
    del torch.Tensor.__dlpack_c_exchange_api__
import bptt
torch.manual_seed(0)
lstm = bptt.LSTM(3, 5, num_layers=2, truncation=bptt.Truncation.chunks(2))
x = torch.randn(7, 2, 3, requires_grad=True)
lstm(x, lengths=torch.tensor([7, 4]))[0].square().sum().backward()
assert bptt.kernels.active() != "torch"
print([t.grad.double().norm().item() for t in (x, *lstm.parameters())])
"""
    if not hasattr(torch.Tensor, "__dlpack_c_exchange_api__"):
        pytest.skip("this torch is such a one")
    found = [
        subprocess.run(
            [sys.executable, "-c", code, age],
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for age in ("new", "old")
    ]
    assert found[0] == found[1] != ""


@pytest.mark.parametrize("sizes", [[0, -1, 3, 6], [0, 2, 1, 6], [0, 2**63 - 1, -5, 6]])
def test_offsets_that_are_none(sizes):
    kernel = native.variants()[0]
    arguments = forward_arguments(kernel, 0)
    offsets = torch.tensor(sizes)
    arguments[4] = (offsets, None)
    with pytest.raises(ValueError, match=r"offsets|rows of the steps"):
        native.forward(*arguments)


def resident_kib(*, kept):
    """Resident memory, with what is kept to be used again or without.

    The core keeps up to 256 MiB of idle blocks, until each size has occurred as often
    at a time as it ever will; a single block of that size, never touched, takes the
    place of all others.
    """
    gc.collect()
    if not kept:
        native.empty(2**26)
        libc = ctypes.CDLL(None)
        if hasattr(libc, "malloc_trim"):
            libc.malloc_trim(0)
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE") // 1024


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="needs /proc")
def test_memory_is_flat_over_windows_of_random_shapes():
    assert kernels.active() != "torch"
    windows = int(os.environ.get("BPTT_SOAK_WINDOWS", "500"))
    choose = random.Random(0)
    modules = [m(8, 12, num_layers=2) for m in (bptt.RNN, bptt.GRU, bptt.LSTM)]
    optimizers = [torch.optim.SGD(m.parameters(), 1e-3) for m in modules]

    def window():
        i = choose.randrange(3)
        x = torch.randn(choose.randint(1, 90), choose.randint(1, 16), 8)
        k1 = choose.randint(1, 20)
        modules[i].truncation = bptt.Truncation(k1, choose.randint(k1, 40))
        optimizers[i].zero_grad()
        modules[i](x)[0].square().mean().backward()
        optimizers[i].step()

    for _ in range(200 + windows // 10):
        window()
    with_kept = resident_kib(kept=True)
    before = resident_kib(kept=False)
    for _ in range(windows):
        window()
    with_kept = resident_kib(kept=True) - with_kept
    grown = resident_kib(kept=False) - before
    sys.stdout.write(f"grown by {grown} KiB, {with_kept} with what is kept\n")
    assert grown < 2048, f"{grown} KiB over {windows} windows"
    assert with_kept < 256 * 1024
