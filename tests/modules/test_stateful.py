"""State carried between windows: errors across them go back as the truncation says."""

import copy
import weakref

import jaxtyping
import pytest
import torch
from torch import nn

import bptt
from bptt.truncation import Truncation
from literal import (
    KINDS,
    PARTS,
    assert_same,
    literal_gradients,
    ours,
    problem,
    unroll,
)

KIND = pytest.mark.parametrize("kind", KINDS)
FULL = Truncation.full()
# truncation, steps of the windows
CASES = [
    (None, (3, 1, 4)),
    (FULL, (4, 4)),
    (Truncation(3, 3), (3, 6, 4, 2)),  # nothing reaches across: any length will do
    (Truncation(3, 2), (6, 4, 3)),
    (Truncation(4, 1), (4, 3)),
    (Truncation(1, 4), (1, 1, 1, 1, 1, 1, 3, 2, 1)),
    (Truncation(1, 3), (4, 4, 4)),
    (Truncation(2, 5), (2, 4, 2, 2, 6)),
    (Truncation(2, 8), (2, 2, 2, 2, 2, 2)),
    (Truncation(3, 4), (3, 6, 3)),
    (Truncation(4, 6), (4, 4, 8, 4)),
    (Truncation(2, 50), (4, 2, 4)),
]


@pytest.fixture(autouse=True)
def seeded_and_quick():
    torch.manual_seed(0)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def make(kind, truncation, layers=1, *, time=12, seed=0, **options):
    """A stateful module, the problem whose weights it has, and a stream."""
    p = problem(kind, time=time, layers=layers, seed=seed)
    module = ours(kind, 3, 4, layers, truncation=truncation, **options)
    module.load_state_dict(p.weights)
    return bptt.Stateful(module), p


def reach_of(truncation):
    if truncation is None or truncation.is_full:
        return 0
    chunks = 0
    while chunks * truncation.k1 < truncation.k2 - truncation.k1:
        chunks += 1
    return chunks * truncation.k1


class Literal:
    """The definition: every chunk by itself, from a detached state, by torch.nn."""

    def __init__(self, kind, truncation, x, layers):
        self.kind, self.truncation, self.x = kind, truncation, x
        self.kept_at = 0
        shape = (layers, x.shape[1], 4)
        self.kept = tuple(x.new_zeros(shape) for _ in PARTS[kind])

    def run(self, weights, start, stop, state):
        if start == stop:
            return None, state
        return unroll(self.kind, weights, self.x[start:stop], state)

    def window(self, weights, start, stop, dy):
        """Outputs and gradients of a window, under these weights."""
        leaves = {n: w.detach().clone().requires_grad_() for n, w in weights.items()}
        full = self.truncation is None or self.truncation.is_full
        k1 = stop - start if full else self.truncation.k1
        k2 = stop - start if full else self.truncation.k2
        total = {name: torch.zeros_like(leaf) for name, leaf in leaves.items()}
        for a in range(start, stop, k1):
            end, b = min(a + k1, stop), max(self.kept_at, a + k1 - k2)
            if b >= end:
                continue
            with torch.no_grad():
                _, state = self.run(leaves, self.kept_at, b, self.kept)
            y, _ = self.run(leaves, b, end, state)
            counted = max(a, b)
            loss = (dy[counted - start : end - start] * y[counted - b :]).sum()
            grads = torch.autograd.grad(loss, list(leaves.values()))
            for name, grad in zip(leaves, grads, strict=True):
                total[name] += grad
        with torch.no_grad():
            y, _ = self.run(weights, self.kept_at, stop, self.kept)
            y = y[start - self.kept_at :]
            kept_at = max(0, stop - reach_of(self.truncation))
            _, self.kept = self.run(weights, self.kept_at, kept_at, self.kept)
            self.kept_at = kept_at
        return y, total


@KIND
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_gradients_are_the_literal_ones_with_an_update_after_each_window(
    kind, layers, case
):
    truncation, windows = case
    stateful, p = make(kind, truncation, layers, time=sum(windows))
    optimizer = torch.optim.SGD(stateful.parameters(), lr=0.05)
    literal = Literal(kind, truncation, p.x, layers)
    weights = {name: w.clone() for name, w in p.weights.items()}
    start = 0
    for steps in windows:
        stop = start + steps
        dy = p.dy[start:stop]
        expected_y, expected = literal.window(weights, start, stop, dy)
        optimizer.zero_grad()
        y = stateful(p.x[start:stop])
        (dy * y).sum().backward()
        assert_same({"y": y}, {"y": expected_y})
        found = {n: w.grad.clone() for n, w in stateful.module.named_parameters()}
        assert_same(found, expected)
        optimizer.step()
        weights = {n: w - 0.05 * expected[n] for n, w in weights.items()}
        start = stop


@KIND
@pytest.mark.parametrize("k", [(1, 4), (2, 5), (3, 3), (4, 6)])
def test_windows_add_up_to_one_sequence_where_the_weights_stay(kind, k):
    stateful, p = make(kind, Truncation(*k), 2)
    for x, dy in zip(p.x.split(k[0]), p.dy.split(k[0]), strict=True):
        (dy * stateful(x)).sum().backward()
    p = copy.deepcopy(p)
    for d in p.dfinal:
        d.zero_()
    for part in p.state:
        part.zero_()
    expected = literal_gradients(p, *k)
    found = {n: w.grad for n, w in stateful.module.named_parameters()}
    assert_same(found, {name: expected[name] for name in found})


@pytest.mark.parametrize("truncation", [None, Truncation(2, 5)], ids=str)
def test_the_input_learns_from_the_steps_of_its_window(truncation):
    stateful, p = make("gru", truncation)
    reference = ours("gru", 3, 4, truncation=truncation)
    reference.load_state_dict(p.weights)
    windows = [x.clone().requires_grad_() for x in p.x.split(4)]
    for x in windows:
        stateful(x).square().sum().backward()
    whole = p.x.clone().requires_grad_()
    y = reference(whole)[0]
    y[8:].square().sum().backward()
    if truncation is not None:  # errors of the last window alone, at its own steps
        assert_same({"dx": windows[2].grad}, {"dx": whole.grad[8:]})
    assert all(float(x.grad.abs().min()) > 0 for x in windows)


@pytest.mark.parametrize("truncation", [None, Truncation(2, 5)], ids=str)
def test_batch_first(truncation):
    found = []
    for batch_first in (False, True):
        stateful, p = make("lstm", truncation, 2, batch_first=batch_first)
        ys = []
        for x in p.x.split(4):
            y = stateful(x.transpose(0, 1) if batch_first else x)
            y.square().sum().backward()
            ys.append(y.detach().transpose(0, 1) if batch_first else y.detach())
        grads = {n: w.grad for n, w in stateful.module.named_parameters()}
        found.append({"y": torch.cat(ys), **grads})
    assert_same(*found)


@pytest.mark.parametrize("truncation", [None, Truncation(1, 3)], ids=str)
def test_ids_stand_for_one_hot_vectors(truncation):
    ids = torch.randint(3, (8, 2))
    found = []
    for x in (ids, nn.functional.one_hot(ids, 3).double()):
        stateful, _ = make("tanh", truncation)
        for window in x.split(2):
            stateful(window).square().sum().backward()
        found.append({n: w.grad for n, w in stateful.module.named_parameters()})
    assert_same(*found)


class Passes(nn.Module):
    """The definition as a module: nested state, resets, each chunk in its own pass."""

    def __init__(self, truncation):
        super().__init__()
        self.truncation = truncation
        self.rnn = nn.GRUCell(3, 4, dtype=torch.float64)
        self.lstm = nn.LSTMCell(4, 4, dtype=torch.float64)

    def scan(self, x, state, resets):
        ys = []
        for t in range(x.shape[0]):
            keep = (~resets[t]).double().unsqueeze(1)
            g, (h, c) = state
            g = self.rnn(x[t], g * keep)
            h, c = self.lstm(g, (h * keep, c * keep))
            state = g, (h, c)
            ys.append(h)
        return ys, state

    def forward(self, x, hx=None, *, resets=None):
        time, batch = x.shape[:2]
        zeros = x.new_zeros(batch, 4)
        hx = (zeros, (zeros, zeros)) if hx is None else hx
        if resets is None:
            resets = torch.zeros(time, batch, dtype=torch.bool)
        k1, k2 = self.truncation.k1 or time, self.truncation.k2 or time
        ys = []
        for a in range(0, time, k1):
            b, end = max(0, a + k1 - k2), min(a + k1, time)
            assert b <= a
            with torch.no_grad():
                _, before = self.scan(x[:b], hx, resets[:b])
            y, state = self.scan(x[b:end], before if b else hx, resets[b:end])
            ys += y[a - b :]
        return torch.stack(ys), state


NESTED = [FULL, Truncation(2, 2), Truncation(1, 4), Truncation(2, 7)]


@pytest.mark.parametrize("truncation", NESTED, ids=str)
@pytest.mark.parametrize("how", ["resets", "reset(rows)", "both", "neither"])
def test_resets_and_nested_states_of_a_module_that_takes_them(truncation, how):
    """Under FULL the whole is cut at the windows, as `Truncation.chunks` cuts it."""
    module = Passes(truncation)
    p = problem("gru", time=12, batch=3)
    inside, between = torch.zeros(2, 12, 3, dtype=torch.bool)
    if how in ("resets", "both"):
        inside[[1, 5, 6], [0, 1, 0]] = True
    if how in ("reset(rows)", "both"):
        between[[4, 8, 8], [1, 0, 2]] = True
    found = {}
    stateful = bptt.Stateful(module)
    for at in (0, 4, 8):
        if between[at].any():
            one = torch.tensor([True, False, False])
            stateful.reset(between[at] & one)
            stateful.reset(between[at] & ~one)
            g, (h, c) = stateful.state
            for part in (g, h, c):
                assert torch.equal(part.eq(0).all(1), between[at])
        given = inside[at : at + 4] if inside.any() else None
        y = stateful(p.x[at : at + 4], resets=given)
        y.square().sum().backward()
        found[f"y{at}"] = y
    found |= {n: w.grad.clone() for n, w in module.named_parameters()}
    module.zero_grad()
    module.truncation = Truncation(4, 4) if truncation.is_full else truncation
    y, (g, (h, c)) = module(p.x, resets=inside | between)
    y.square().sum().backward()
    expected = {f"y{at}": y[at : at + 4] for at in (0, 4, 8)}
    expected |= {n: w.grad for n, w in module.named_parameters()}
    assert_same(found, expected)
    ends = stateful.state
    assert_same(
        {"g": ends[0], "h": ends[1][0], "c": ends[1][1]}, {"g": g, "h": h, "c": c}
    )


@KIND
@pytest.mark.parametrize("truncation", [None, Truncation.chunks(2)], ids=str)
def test_rows_begin_anew(kind, truncation):
    stateful, p = make(kind, truncation, 2)
    first, second = p.x.split(6)
    stateful(first)
    stateful.reset(torch.tensor([True, False]))
    y = stateful(second)
    fresh, _ = make(kind, truncation, 2)
    assert_same({"y": y[:, 0]}, {"y": fresh(second)[:, 0]})
    fresh.reset()
    fresh(first)
    assert_same({"y": y[:, 1]}, {"y": fresh(second)[:, 1]})


@KIND
@pytest.mark.parametrize("truncation", [None, Truncation(2, 7)], ids=str)
def test_reset_and_a_state_that_was_read(kind, truncation):
    stateful, p = make(kind, truncation, 2)
    assert stateful.state is None
    first, second, third = p.x.split(4)
    y = stateful(first)
    state = stateful.state
    expected = stateful(second)
    stateful.state = state
    part = stateful.state if kind not in ("lstm",) else stateful.state[0]
    given = state if kind not in ("lstm",) else state[0]
    assert part is not given
    assert not part.requires_grad
    assert_same({"y": stateful(second)}, {"y": expected})
    stateful(third)
    assert_same({"y": part}, {"y": given}, 0.0)  # what was set is not written to
    for again in range(2):
        stateful.reset() if again else setattr(stateful, "state", None)
        assert stateful.state is None
        assert_same({"y": stateful(first)}, {"y": y}, 0.0)
    stateful.reset()
    assert stateful(p.x[:2, :1]).shape == (2, 1, 4)  # of another batch size
    stateful.reset()
    stateful.reset(torch.tensor([True]))  # nothing to reset


@pytest.mark.parametrize("between", ["without gradients", "state", "truncation"])
def test_errors_stop_where_the_context_ends(between):
    stateful, p = make("gru", Truncation(1, 4))
    first, second, third = p.x.split(4)
    stateful(first)
    if between == "without gradients":
        with torch.no_grad():
            stateful(second[:3])
    elif between == "state":
        stateful.state = stateful.state
    else:
        stateful.module.truncation = Truncation(2, 4)
    state = stateful.state
    y = stateful(third)
    reference = ours("gru", 3, 4, truncation=stateful.module.truncation)
    reference.load_state_dict(p.weights)
    expected = reference(third, state)[0]
    assert_same({"y": y}, {"y": expected})
    for out in (y, expected):
        (out * p.dy[:4]).sum().backward()
    assert_same(
        {n: w.grad for n, w in stateful.module.named_parameters()},
        {n: w.grad for n, w in reference.named_parameters()},
    )


class Marked(torch.autograd.Function):
    """Its place in a graph lives as long as a token."""

    @staticmethod
    def forward(ctx, x, token):
        ctx.token = token
        return x * 1.0

    @staticmethod
    def backward(ctx, dx):
        return dx, None


class Token:
    pass


@KIND
@pytest.mark.parametrize("truncation", [None, Truncation(2, 2), Truncation(2, 7)])
def test_nothing_older_is_kept_alive(kind, truncation):
    stateful, p = make(kind, truncation, 2)
    alive = []
    for x in p.x.split(2):
        token = Token()
        window = Marked.apply(x.clone().requires_grad_(), token)
        y = stateful(window)
        alive += [weakref.ref(o) for o in (token, window, y)]
        del token, window, y
        assert [ref() for ref in alive] == [None] * len(alive)


def held(stateful):
    """Bytes of all storages that tensors of this module's own attributes have."""
    found = {}

    def visit(value):
        if isinstance(value, torch.Tensor):
            assert not value.requires_grad
            storage = value.untyped_storage()
            found[storage.data_ptr()] = storage.nbytes()
        elif isinstance(value, tuple):
            for part in value:
                visit(part)

    visit(stateful.state)
    context = stateful._context
    if context is not None:
        visit((context.input, context.before))
    return sum(found.values())


@pytest.mark.parametrize("truncation", [None, Truncation(2, 7)], ids=str)
def test_what_is_kept_has_its_own_small_memory(truncation):
    stateful, _ = make("lstm", truncation)
    large = torch.zeros(1000, 2, 3, dtype=torch.float64)
    states = 2 * 2 * 4 * 8  # h and c of two rows, in bytes
    context = 6 * 2 * 3 * 8  # k2 - k1 = 5 steps, in whole chunks of 2
    for window in large[:80].split(8):
        stateful(window)
        assert held(stateful) == states + (truncation is not None) * (context + states)


def test_copies_go_on_by_themselves():
    stateful, p = make("lstm", Truncation(2, 5))
    first, second, third = p.x.split(4)
    stateful(first)
    twin = copy.deepcopy(stateful)
    assert_same({"y": twin(second)}, {"y": stateful(second)}, 0.0)
    twin.reset()
    y = stateful(third)
    assert float((twin(third) - y).detach().abs().max()) > 1e-3
    assert set(stateful.state_dict()) == {f"module.{name}" for name in p.weights}


X = torch.zeros(4, 2, 3, dtype=torch.float64)
WRONG = {
    "rows": (
        X[:, :1],
        None,
        r"window has 1 rows, shape \(4, 1, 3\).*2; call reset\(\)",
    ),
    "steps": (X[:3], None, r"window has 3 steps.*multiple of k1 = 2, .* try 2 steps"),
    "few steps": (X[:1], None, r"window has 1 steps.*multiple.* try 2 steps"),
    "one sequence": (X[:, 0], None, r"window must have.*\(4, 3\); one sequence is"),
    "resets": (
        X,
        torch.zeros(2, 4, dtype=torch.bool),
        r"resets must be bool.*\(4, 2\)",
    ),
    "floats": (X, torch.zeros(4, 2), r"resets must be bool of .*got torch.float32"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_window_is_refused_and_changes_nothing(wrong):
    stateful, p = make("gru", Truncation(2, 5))
    stateful(p.x[:4])
    state, context = stateful.state, stateful._context
    window, resets, message = WRONG[wrong]
    with pytest.raises(ValueError, match=message):
        stateful(window, resets=resets)
    assert stateful.state is state
    assert stateful._context is context
    with torch.no_grad():  # nothing goes back, so any length will do
        assert stateful(X[:3]).shape == (3, 2, 4)


def test_wrong_rows_and_modules_are_refused(monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    stateful, p = make("gru", None)
    stateful(p.x)
    for rows in (torch.tensor([True]), torch.tensor([1, 0])):
        with pytest.raises(ValueError, match=r"rows must be bool of shape \(2,\); got"):
            stateful.reset(rows)
    with pytest.raises(
        TypeError, match=r"module must have a truncation.*a LSTM\. bptt"
    ):
        bptt.Stateful(nn.LSTM(3, 4))
    with pytest.raises(ValueError, match="module must not be bidirectional"):
        bptt.Stateful(bptt.LSTM(3, 4, bidirectional=True))
