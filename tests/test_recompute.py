"""Within a memory budget: the same gradients, and no more memory than it allows."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.nn.utils.rnn import pack_padded_sequence
from torch.profiler import ProfilerActivity, profile

import bptt
from bptt import kernels
from bptt.masks import PackedMask
from bptt.truncation import Truncation
from literal import (
    KINDS,
    PARTS,
    assert_same,
    gradients,
    literal_gradients,
    ours,
    problem,
    stack,
)

KIND = pytest.mark.parametrize("kind", KINDS)
SMALL = [(1, 1), (1, 3), (2, 1), (2, 2), (2, 5), (3, 2), (3, 4), (4, 4), (7, 9)]


def named_least(call):
    with pytest.raises(ValueError, match="memory_budget=1 cannot be met") as caught:
        call()
    return int(str(caught.value).split("at least ")[1].split()[0])


def budgets(module, call):
    """The least, and some that are met in fewer and fewer pieces."""
    module.memory_budget = 1
    least = named_least(call)
    module.memory_budget = least - 1
    with pytest.raises(ValueError, match=f"at least {least} bytes"):
        call()
    return [least, int(1.3 * least), 2 * least, 4 * least]


def all_of(module, x, hx, *, reads_y=True, wanted=None, **options):
    """Outputs and gradients of everything, by name; masks from one seed."""
    torch.manual_seed(3)
    data = x.data if not isinstance(x, torch.Tensor) else x
    state = [part.clone().requires_grad_() for part in hx]
    leaves = dict(module.named_parameters())
    leaves |= {f"state {at}": part for at, part in enumerate(state)}
    if data.is_floating_point():
        leaves["x"] = data.requires_grad_()
    y, final = module(x, tuple(state) if len(state) > 1 else state[0], **options)
    y = y.data if not isinstance(y, torch.Tensor) else y
    ends = final if isinstance(final, tuple) else (final,)
    generator = torch.Generator().manual_seed(4)
    found = {"y": y} | {f"final {at}": end for at, end in enumerate(ends)}
    read = list(found.values()) if reads_y else ends
    loss = sum(
        (out * torch.randn(out.shape, generator=generator).to(out)).sum()
        for out in read
    )
    return found | {f"d{n}": g for n, g in gradients(loss, leaves).items()}


def hx_of(kind, rows, batch, hidden=4, dtype=torch.float64):
    return [torch.randn(rows, batch, hidden, dtype=dtype) for _ in PARTS[kind]]


@KIND
@pytest.mark.parametrize(("layers", "dropout"), [(1, 0.0), (2, 0.5), (3, 0.5)])
def test_every_truncation_is_its_literal_definition(kind, layers, dropout, monkeypatch):
    p = problem(kind, time=6, layers=layers, dropout=dropout, seed=layers)
    module = ours(kind, 3, 4, layers, dropout=dropout)
    module.load_state_dict(p.weights)
    packed = [PackedMask.of(m > 0, 1 - dropout, m.dtype) for m in p.masks]
    masks = iter(())
    monkeypatch.setattr(PackedMask, "drawn", lambda *_: next(masks))

    def run():
        nonlocal masks
        masks = iter(packed)
        leaves = dict(module.named_parameters()) | {"x": p.x.clone().requires_grad_()}
        state = [part.clone().requires_grad_() for part in p.state]
        leaves |= dict(zip(PARTS[kind], state, strict=True))
        y, final = module(leaves["x"], tuple(state) if kind == "lstm" else state[0])
        ends = final if kind == "lstm" else (final,)
        loss = (p.dy * y).sum()
        loss += sum((d * end).sum() for d, end in zip(p.dfinal, ends, strict=True))
        return gradients(loss, leaves)

    for k1, k2 in SMALL:
        module.truncation = Truncation(k1, k2)
        expected = literal_gradients(p, k1, k2)
        for budget in budgets(module, run)[:2]:
            module.memory_budget = budget
            assert_same(run(), expected)


@KIND
@pytest.mark.parametrize(
    ("options", "call"),
    [
        ({}, {}),
        ({"num_layers": 2, "dropout": 0.5}, {}),
        ({"num_layers": 2, "dropout": 1.0}, {}),
        ({"num_layers": 2, "bias": False, "batch_first": True}, {}),
        ({"num_layers": 2, "truncation": Truncation(2, 5)}, {"lengths", "resets"}),
        ({"num_layers": 2, "dropout": 0.3}, {"lengths", "resets"}),
        ({"truncation": Truncation(4, 4)}, {"packed"}),
        ({"truncation": Truncation(3, 2)}, {"resets", "ids"}),
        ({"num_layers": 2, "dropout": 0.5, "bidirectional": True}, {"resets"}),
        ({"num_layers": 2, "bidirectional": True}, {"lengths"}),
        ({"num_layers": 2}, {"final only"}),
        ({"num_layers": 2, "truncation": Truncation(2, 3)}, {"final only", "lengths"}),
    ],
    ids=lambda value: "+".join(sorted(map(str, value))) or "plain",
)
def test_the_gradients_are_those_without_a_budget(kind, options, call):
    torch.manual_seed(1)
    time, batch = 11, 3
    module = ours(kind, 3, 4, **options)
    directions = 2 if module.bidirectional else 1
    hx = hx_of(kind, module.num_layers * directions, batch)
    axes = (batch, time) if module.batch_first else (time, batch)
    x = torch.randn(*axes, 3, dtype=torch.float64)
    given = {"reads_y": "final only" not in call}
    lengths = torch.tensor([4, 11, 7])
    if "ids" in call:
        x = torch.randint(0, 3, axes)
    if "lengths" in call:
        given["lengths"] = lengths
    if "packed" in call:
        x = pack_padded_sequence(x, lengths, enforce_sorted=False)
    if "resets" in call:
        given["resets"] = torch.rand(axes) < 0.2

    def run():
        return all_of(module, x, hx, **given)

    expected = run()
    for budget in budgets(module, run):
        module.memory_budget = budget
        assert_same(run(), expected)


@KIND
def test_one_sequence_and_frozen_weights(kind):
    module = ours(kind, 3, 4, 2)
    module.weight_hh_l0.requires_grad_(False)
    x, wanted = torch.randn(9, 3, dtype=torch.float64), module.weight_ih_l1

    def run():
        return {"d": torch.autograd.grad((module(x)[0] ** 2).sum(), wanted)[0]}

    expected = run()
    for budget in budgets(module, run):
        module.memory_budget = budget
        assert_same(run(), expected)


@KIND
@pytest.mark.parametrize("truncation", [None, Truncation(2, 3)], ids=str)
def test_second_derivatives_and_second_passes(kind, truncation):
    module, _, leaves = stack(kind, truncation, time=6)

    def first(**options):
        loss = (module(leaves["x"])[0] ** 2).sum()
        return gradients(loss, leaves, **options)

    def second():
        once = first(create_graph=True)
        return gradients(sum((g**2).sum() for g in once.values()), leaves)

    expected = first(), second()
    for budget in budgets(module, first)[1:3]:
        module.memory_budget = budget
        assert_same(second(), expected[1])
        loss = (module(leaves["x"])[0] ** 2).sum()
        assert_same(gradients(loss, leaves, retain_graph=True), expected[0])
        assert_same(gradients(loss, leaves), expected[0])


def most_bytes(module, x, dy):
    """The most that torch allocates in a step, beyond outputs and gradients."""
    module(x)[0].backward(dy)
    module.zero_grad()
    x.grad = None
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        y, _ = module(x)
        y.backward(dy)
    events = [
        (event.start_ns(), event.nbytes())
        for event in record.profiler.kineto_results.events()
        if event.name() == "[memory]"
    ]
    now = most = 0
    for _, size in sorted(events, key=lambda event: event[0]):
        now += size
        most = max(most, now)
    made = [y, x.grad, *(w.grad for w in module.parameters())]
    return most - sum(t.numel() * t.element_size() for t in made)


@pytest.mark.parametrize(
    ("kind", "layers", "dropout", "truncation", "budget"),
    [
        ("tanh", 2, 0.5, None, 56_000),
        ("gru", 1, 0.0, Truncation(1, 3), 56_000),
        ("lstm", 1, 0.0, None, 56_000),
        ("lstm", 2, 0.5, Truncation(4, 10), 120_000),
    ],
)
def test_the_definition_allocates_no_more_than_the_budget(
    kind, layers, dropout, truncation, budget
):
    module = ours(kind, 5, 12, layers, dropout=dropout, truncation=truncation)
    x = torch.randn(60, 2, 5, dtype=torch.float64, requires_grad=True)
    dy = torch.randn(60, 2, 12, dtype=torch.float64)
    assert most_bytes(module, x, dy) > budget
    module.memory_budget = budget
    weights = sum(w.numel() * w.element_size() for w in module.parameters())
    assert budget / 4 < most_bytes(module, x, dy) < budget + 2 * weights


_RESIDENT = """
import sys
from pathlib import Path
import torch, bptt

def resident(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(x for x in lines if x.startswith(name)).split()[1])

steps = int(sys.argv[1])
module = bptt.LSTM(64, 256, memory_budget="16MB")
x, dy = torch.randn(steps, 1, 64), torch.randn(steps, 1, 256)
module(x[:64])[0].backward(dy[:64])
Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
before = resident("VmRSS")
y = module(x)[0]
kept = resident("VmRSS")
y.backward(dy)
size = y.numel() * y.element_size()
print(kept - before - size, resident("VmHWM") - before - size)
"""


@pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists() or kernels.active() == "torch",
    reason="resident memory is Linux's, and the native core's",
)
def test_the_core_stays_resident_within_the_budget_and_its_work_space():
    done = subprocess.run(
        [sys.executable, "-c", _RESIDENT, "20000"],
        check=True,
        capture_output=True,
        text=True,
    )
    kept, most = map(int, done.stdout.split())
    assert kept < 10e6  # without a budget: 140 MB
    assert most < 16e6 + 12e6


def test_a_wrong_budget_is_refused_where_it_is_given():
    with pytest.raises(ValueError, match=r"memory_budget must be a number.*got '512'"):
        bptt.GRU(3, 4, memory_budget="512")
    module = bptt.GRU(3, 4)
    module.memory_budget = 0
    with pytest.raises(ValueError, match="at least 1 byte; got 0"):
        module(torch.randn(5, 2, 3))
    assert "memory_budget='1MB'" in repr(bptt.GRU(3, 4, memory_budget="1MB"))


def test_without_gradients_a_budget_bounds_nothing():
    module, x = bptt.GRU(3, 4, memory_budget=1), torch.randn(50, 2, 3)
    with torch.no_grad():
        assert module(x)[0].shape == (50, 2, 4)
    torch.func.grad(lambda x: module(x)[0].sum())(x)
