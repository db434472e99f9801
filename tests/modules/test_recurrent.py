"""Recurrent: any cell under any truncation, and how it meets odd cells and calls."""

from typing import NamedTuple

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

import bptt
from bptt import own_cells
from bptt.cells.nest import flatten
from bptt.rows import Rows
from bptt.truncation import Truncation
from literal import assert_same
from literal_cells import leaves, literal_gradients, mapped, module_gradients

CUT = Truncation(2, 3)
TRUNCATIONS = pytest.mark.parametrize("truncation", [None, CUT], ids=str)


def normal(*shape, seed=4):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def linear(inputs, outputs, seed):
    layer = torch.nn.Linear(inputs, outputs, dtype=torch.float64)
    layer.weight.data = 0.6 * normal(outputs, inputs, seed=seed)
    layer.bias.data = 0.3 * normal(outputs, seed=seed + 50)
    return layer


class Inner(NamedTuple):
    """A named part of a state."""

    slow: torch.Tensor
    count: torch.Tensor


class Nested(torch.nn.Module):
    """A state of several shapes, a counter among them, and an output of its own."""

    def __init__(self):
        super().__init__()
        self.U, self.W, self.V = linear(3, 4, 1), linear(4, 4, 2), linear(4, 5, 3)
        self.unused = torch.nn.Parameter(normal(2))

    def start(self, batch):
        count = torch.arange(batch) % 3
        return normal(batch, 4), (Inner(normal(batch, 2, 2, seed=5), count),)

    def forward(self, x, state):
        h, (inner,) = state
        pace = torch.cos(inner.count.to(x)).unsqueeze(1)
        h = torch.tanh(self.U(x) + self.W(h) * inner.slow.mean((1, 2)).unsqueeze(1))
        slow = 0.9 * inner.slow + pace.unsqueeze(1) * h[:, :2, None] * x[:, None, :2]
        return self.V(h) + inner.slow.flatten(1)[:, :1], (
            h,
            (Inner(slow, inner.count + 1),),
        )


class Split(bptt.cells.SplitCell):
    """The same kind of thing, in two parts."""

    def __init__(self):
        super().__init__()
        self.U, self.W, self.V = linear(3, 4, 1), linear(4, 4, 2), linear(4, 5, 3)
        self.projected = 0

    def start(self, batch):
        return (normal(batch, 4), normal(batch, 2, seed=6))

    def project(self, x):
        self.projected += 1
        return self.U(x)

    def step(self, gx, state):
        h, s = state
        h = torch.tanh(gx + self.W(h) * s.sum(1, keepdim=True))
        return self.V(h), (h, torch.sin(s) + h[:, :2])


class Hidden(torch.nn.Module):
    """A cell of which the loop knows nothing but the call."""

    def __init__(self, cell):
        super().__init__()
        self.of = cell

    def forward(self, x, state):
        return self.of(x, state)


def problem(cell, time, batch, seed=0):
    x, dy = normal(time, batch, 3, seed=seed), normal(time, batch, 5, seed=seed + 1)
    state = cell.start(batch)
    floats = [leaf for leaf in leaves(state) if leaf.is_floating_point()]
    return x, state, dy, [normal(*s.shape, seed=seed + 2) for s in floats]


def through_run(cell, truncation, **options):
    """The loop below the module, which can recompute segments."""

    def call(x, state, resets=None):
        flat, nest = flatten(state, "state")
        rows = Rows(*x.shape[:2], None, resets)
        policy = truncation or Truncation.full()
        y, final = own_cells.run(cell, nest, x, flat, policy, rows, **options)
        return y, nest.state(final)

    return call


cases = st.fixed_dictionaries(
    {
        "time": st.integers(1, 8),
        "batch": st.integers(1, 3),
        "k1": st.integers(1, 10),
        "k2": st.integers(1, 11),
        "ragged": st.booleans(),
        "reset": st.booleans(),
        "losses": st.sampled_from(["both", "y", "final"]),
        "seed": st.integers(0, 1000),
    }
)
CASE = {
    "time": 7,
    "batch": 3,
    "ragged": True,
    "reset": True,
    "losses": "both",
    "seed": 4,  # of lengths whose order is not its own inverse
}


@pytest.mark.parametrize("kind", [Nested, Split])
@settings(max_examples=40, deadline=None, derandomize=True)
@given(case=cases)
@example(case=CASE | {"k1": 1, "k2": 3})
@example(case=CASE | {"k1": 3, "k2": 2})  # k2 < k1, and a short last chunk
@example(case=CASE | {"k1": 2, "k2": 5})
@example(case=CASE | {"k1": 9, "k2": 8})  # one pass, whose first lags lie past the end
@example(case=CASE | {"k1": 9, "k2": 2})  # its window lies past the end: all is zero
def test_any_truncation_is_its_literal_definition(kind, case):
    cell = kind()
    time, batch, seed = case["time"], case["batch"], case["seed"]
    x, state, dy, dfinal = problem(cell, time, batch, seed)
    generator = torch.Generator().manual_seed(seed)
    rows = {}
    if case["ragged"]:
        rows["lengths"] = torch.randint(1, time + 1, (batch,), generator=generator)
    if case["reset"]:
        rows["resets"] = torch.rand(time, batch, generator=generator) < 0.25
    dy = None if case["losses"] == "final" else dy
    dfinal = None if case["losses"] == "y" else dfinal
    truncation = Truncation(case["k1"], case["k2"])
    recurrent = bptt.Recurrent(cell, truncation=truncation)
    mine = module_gradients(recurrent, x, state, dy, dfinal, **rows)
    k1, k2 = case["k1"], case["k2"]
    assert_same(mine, literal_gradients(cell, x, state, dy, dfinal, k1, k2, **rows))
    recurrent.truncation = None
    full = module_gradients(recurrent, x, state, dy, dfinal, **rows)
    assert_same(full, literal_gradients(cell, x, state, dy, dfinal, None, None, **rows))


@pytest.mark.parametrize("kind", [Nested, Split])
@pytest.mark.parametrize("segment_steps", [1, 2, 3, 7, 9])
def test_recomputed_segments_change_no_gradient(kind, segment_steps):
    cell = kind()
    x, state, dy, dfinal = problem(cell, 7, 3)
    resets = normal(7, 3) > 0.8
    module = bptt.Recurrent(cell)
    for truncation in (None, Truncation(1, 3), Truncation(2, 5), Truncation(3, 2)):
        found = [
            module_gradients(
                module,
                x,
                state,
                dy,
                dfinal,
                through_run(cell, truncation, segment_steps=steps),
                resets=resets,
            )
            for steps in (None, segment_steps)
        ]
        assert_same(*reversed(found))


def test_recomputed_segments_of_ragged_rows():
    cell = Nested()
    x, state, dy, dfinal = problem(cell, 7, 3)
    lengths = torch.tensor([7, 4, 2])  # sorted, as the loop has them
    sizes = (lengths > torch.arange(7).unsqueeze(1)).sum(1)
    rows = Rows(7, 3, sizes)
    for truncation in (Truncation.full(), Truncation(2, 5)):

        def call(x, state, truncation=truncation):
            flat, nest = flatten(state, "state")
            y, final = own_cells.run(
                cell, nest, rows.pack(x), flat, truncation, rows, segment_steps=3
            )
            return rows.pad(y), nest.state(final)

        mine = module_gradients(bptt.Recurrent(cell), x, state, dy, dfinal, call)
        expected = literal_gradients(
            cell, x, state, dy, dfinal, truncation.k1, truncation.k2, lengths
        )
        assert_same(mine, expected)


class Dropped(Nested):
    """Draws random numbers at each step."""

    def forward(self, x, state):
        y, (h, rest) = super().forward(x, state)
        return y, (torch.nn.functional.dropout(h, 0.5), rest)


class Masked(torch.nn.Module):
    """The same with the masks given, one a step: what was drawn, by other means."""

    def __init__(self, cell, masks):
        super().__init__()
        self.of, self.masks, self.t = cell, masks, 0

    def forward(self, x, state):
        y, (h, rest) = Nested.forward(self.of, x, state)
        mask = self.masks[self.t % len(self.masks)]
        self.t += 1
        return y, (h * mask, rest)


@pytest.mark.parametrize("truncation", [None, CUT, Truncation(1, 4)], ids=str)
@pytest.mark.parametrize("segment_steps", [None, 2])
def test_a_cell_that_draws_numbers_sees_the_same_ones_again(truncation, segment_steps):
    cell = Dropped()
    x, state, dy, dfinal = problem(cell, 6, 2)
    torch.manual_seed(11)
    ones = torch.ones(2, 4, dtype=torch.float64)
    masks = [torch.nn.functional.dropout(ones, 0.5) for _ in range(6)]
    after = torch.rand(1)
    torch.manual_seed(11)
    run = through_run(cell, truncation, segment_steps=segment_steps)
    mine = module_gradients(bptt.Recurrent(cell), x, state, dy, dfinal, run)
    assert torch.equal(torch.rand(1), after)  # the way back drew none of its own
    # By the definition with these masks: each window's steps know their own.
    total = {name: torch.zeros_like(d) for name, d in mine.items()}
    k1, k2 = (6, 6) if truncation is None else (truncation.k1, truncation.k2)
    for a in range(0, 6, k1):
        e = a + k1
        b = max(0, e - k2)
        own = dy.clone()
        own[: max(a, b)] = 0
        own[e:] = 0
        ends = dfinal if e >= 6 else [torch.zeros_like(d) for d in dfinal]

        def windowed(x, state, b=b):
            masked = Masked(cell, masks)
            ys = []
            for t, x_t in enumerate(x):
                if t == b and b:
                    state = mapped(torch.Tensor.detach, state)
                y, state = masked(x_t, state)
                ys.append(y)
            return torch.stack(ys), state

        part = module_gradients(bptt.Recurrent(cell), x, state, own, ends, windowed)
        for name in total:
            # What comes before the cut only reads, so it gets no error but through y.
            total[name] += part[name]
    assert_same(mine, total)


def test_what_needs_no_state_runs_once():
    cell = Split()
    x, state, _, _ = problem(cell, 6, 2)
    bptt.Recurrent(cell)(x, state)
    assert cell.projected == 1


KINDS = {
    "rnn": (torch.nn.RNNCell, {}),
    "relu": (torch.nn.RNNCell, {"nonlinearity": "relu"}),
    "gru": (torch.nn.GRUCell, {}),
    "lstm": (torch.nn.LSTMCell, {}),
}


class OfState(torch.nn.Module):
    """A torch.nn cell as the contract has it."""

    def __init__(self, cell):
        super().__init__()
        self.of = cell

    def forward(self, x, state):
        state = self.of(x, state)
        return (state[0] if isinstance(state, tuple) else state), state


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("k1", [None, 2])
def test_torch_nns_cells_are_cells_whose_output_is_h(kind, bias, k1):
    make, options = KINDS[kind]
    cell = make(3, 5, bias=bias, dtype=torch.float64, **options)
    for at, parameter in enumerate(cell.parameters()):
        parameter.data = 0.5 * normal(*parameter.shape, seed=at)
    h = normal(2, 5)
    state = (h, normal(2, 5, seed=7)) if kind == "lstm" else h
    x, dy = normal(6, 2, 3), normal(6, 2, 5)
    dfinal = [normal(2, 5, seed=20 + i) for i in range(len(leaves(state)))]
    rows = {"lengths": torch.tensor([4, 6]), "resets": normal(6, 2) > 1}
    truncation = None if k1 is None else Truncation(k1, 3)
    recurrent = bptt.Recurrent(cell, truncation=truncation)
    mine = module_gradients(recurrent, x, state, dy, dfinal, **rows)
    expected = literal_gradients(
        OfState(cell), x, state, dy, dfinal, k1, k1 and 3, **rows
    )
    assert_same(mine, {n.removeprefix("of."): d for n, d in expected.items()})
    zeros = mapped(torch.zeros_like, state)
    assert_same({"y": recurrent(x)[0]}, {"y": recurrent(x, zeros)[0]}, 0.0)


@TRUNCATIONS
@pytest.mark.parametrize("kind", [Nested, Split, "PeepholeLSTM"])
def test_not_a_number_stays_in_its_row_and_padding_is_not_read(kind, truncation):
    if isinstance(kind, str):
        cell = bptt.cells.PeepholeLSTM(3, 5).double()
        state = cell.initial_state(3)
    else:
        cell = kind()
        state = cell.start(3)
    recurrent = bptt.Recurrent(cell, truncation=truncation)
    x, dy = normal(6, 3, 3), normal(6, 3, 5)
    lengths = torch.tensor([6, 2, 4])
    clean = module_gradients(recurrent, x, state, dy, None, lengths=lengths)
    y, final = recurrent(x, state, lengths=lengths)
    padded = x.clone()
    padded[2:, 1] = torch.nan
    padded[4:, 2] = torch.inf
    mine = module_gradients(recurrent, padded, state, dy, None, lengths=lengths)
    assert_same(mine, clean, 0.0)
    assert not y[2:, 1].any()
    again, end = recurrent(padded, state, lengths=lengths)
    assert_same({"y": again}, {"y": y}, 0.0)
    assert_same(dict(enumerate(leaves(end))), dict(enumerate(leaves(final))), 0.0)
    broken = x.clone()
    broken[0, 1] = torch.nan
    bad, _ = recurrent(broken, state)
    good, _ = recurrent(x, state)
    assert bad[:, 1].isnan().any()
    assert_same({"y": bad[:, ::2]}, {"y": good[:, ::2]}, 0.0)
    dx = module_gradients(recurrent, broken, state, dy, None)["x"]
    expected = module_gradients(recurrent, x, state, dy, None)["x"]
    assert_same({"x": dx[:, ::2]}, {"x": expected[:, ::2]}, 0.0)


@TRUNCATIONS
def test_a_batch_of_no_rows_and_ids(truncation):
    cell = Nested()
    recurrent = bptt.Recurrent(cell, truncation=truncation)
    x, state, dy, dfinal = problem(cell, 4, 0)
    y, _ = recurrent(x, state)
    assert y.shape == (4, 0, 5)
    found = module_gradients(recurrent, x, state, dy, dfinal)
    assert_same(found, {n: torch.zeros_like(d) for n, d in found.items()}, 0.0)

    class Looked(Nested):
        def __init__(self):
            super().__init__()
            self.table = torch.nn.Parameter(normal(7, 3))

        def forward(self, x, state):
            return super().forward(self.table[x], state)

    ids = torch.arange(15).reshape(5, 3) % 7
    cell = Looked()
    _, state, dy, dfinal = problem(cell, 5, 3)
    recurrent = bptt.Recurrent(cell, truncation=truncation)
    k1, k2 = (None, None) if truncation is None else (2, 3)
    mine = module_gradients(recurrent, ids, state, dy, dfinal)
    assert_same(mine, literal_gradients(cell, ids, state, dy, dfinal, k1, k2))


@TRUNCATIONS
def test_frozen_parameters_and_unused_ones_get_nothing(truncation):
    cell = Nested()
    cell.W.weight.requires_grad_(False)
    recurrent = bptt.Recurrent(cell, truncation=truncation)
    x, state, dy, _ = problem(cell, 5, 2)
    y, _ = recurrent(x, state)
    (dy * y).sum().backward()
    assert cell.W.weight.grad is None
    assert cell.unused.grad is None or not cell.unused.grad.any()
    k1, k2 = (None, None) if truncation is None else (2, 3)
    expected = literal_gradients(cell, x, state, dy, None, k1, k2)
    for name in ("U.weight", "W.bias"):
        grad = cell.get_parameter(name).grad
        assert_same({name: grad}, {name: expected[name]})


@TRUNCATIONS
def test_replaced_parameters_get_the_gradients(truncation):
    cell = Nested()
    recurrent = bptt.Recurrent(cell, truncation=truncation)
    x, state, dy, dfinal = problem(cell, 5, 2)
    expected = module_gradients(recurrent, x, state, dy, dfinal)
    scale = torch.ones((), dtype=torch.float64, requires_grad=True)
    replaced = {n: p.detach().clone() * scale for n, p in recurrent.named_parameters()}
    with torch.no_grad():
        for parameter in cell.parameters():
            parameter.add_(1)  # the module's own are not to be read

    y, _ = torch.func.functional_call(recurrent, replaced, (x, state))
    wanted = {n: replaced[f"cell.{n}"] for n in ("U.weight", "W.weight", "V.bias")}
    found = torch.autograd.grad((dy * y).sum(), list(wanted.values()))
    del expected  # of another loss
    literal = Nested()
    k1, k2 = (None, None) if truncation is None else (2, 3)
    reference = literal_gradients(literal, x, state, dy, None, k1, k2)
    mine = dict(zip(wanted, found, strict=True))
    assert_same(mine, {n: reference[n] for n in wanted})


def test_a_tensor_that_is_no_parameter_is_refused_where_it_would_get_nothing():
    outside = normal(5).requires_grad_()

    class Reading(Nested):
        def forward(self, x, state):
            y, state = super().forward(x, state)
            return y * outside, state

    cell = Reading()
    x, state, dy, _ = problem(cell, 5, 2)
    y, _ = bptt.Recurrent(cell)(x, state)
    (found,) = torch.autograd.grad((dy * y).sum(), outside)
    plain, _ = bptt.Recurrent(Nested())(x, state)
    assert_same({"outside": found}, {"outside": (dy * plain).sum((0, 1))})
    with pytest.raises(ValueError, match=r"shape \(5,\).*neither its parameter.*regis"):
        bptt.Recurrent(cell, truncation=CUT)(x, state)


class InPlace(Nested):
    def forward(self, x, state):
        y, (h, rest) = super().forward(x, state)
        state[0].copy_(h)
        return y, (state[0], rest)


class Buffered(Nested):
    def forward(self, x, state):
        y, state = super().forward(x, state)
        if not x.requires_grad and not torch.is_grad_enabled():
            self.buffer = y if getattr(self, "buffer", None) is None else self.buffer
            y = self.buffer.copy_(y)
        return y, state


@pytest.mark.parametrize("kind", [InPlace, Buffered])
def test_a_cell_that_writes_over_its_state_is_refused(kind):
    cell = kind()
    x, state, _, _ = problem(cell, 5, 2)
    with pytest.raises(RuntimeError, match=f"{kind.__name__} changed.*s = s \\+ d"):
        bptt.Recurrent(cell, truncation=CUT)(x, state)


def returning(result):
    class Odd(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.w = torch.nn.Parameter(torch.ones(()).double())

        def forward(self, x, state):
            return result(x * self.w, state)

    return Odd()


ODD_CELLS = {
    "a tensor": (lambda x, s: x, TypeError, r"must return a pair.*returned Tensor"),
    "three": (lambda x, s: (x, s, s), TypeError, "returned a tuple of 3"),
    "nesting": (lambda x, s: (x, (s,)), ValueError, r"given, tensor; .*\(tensor,\)"),
    "a list": (lambda x, s: (x, [s]), TypeError, "holds a list: write a tuple"),
    "no y": (lambda x, s: (None, s), ValueError, "output y.*it is NoneType"),
    "less y": (lambda x, s: (x[:1], s), ValueError, r"here \(2, ...\); it is \(1, 3"),
    "y of none": (lambda x, s: (x.sum(), s), ValueError, r"it is \(\)"),
}


@TRUNCATIONS
@pytest.mark.parametrize("odd", ODD_CELLS)
def test_a_cell_that_breaks_the_contract_is_refused(odd, truncation):
    result, error, message = ODD_CELLS[odd]
    with pytest.raises(error, match=message):
        bptt.Recurrent(returning(result), truncation=truncation)(
            normal(4, 2, 3), normal(2, 3)
        )


GOOD = torch.zeros(4, 2, 3).double(), torch.zeros(2, 3).double()
ODD_CALLS = {
    "no steps": ((torch.zeros(0, 2, 3), GOOD[1]), {}, RuntimeError, r"no time.*\(0, 2"),
    "one axis": ((torch.zeros(4), GOOD[1]), {}, ValueError, r"input must be.*\(4,\)"),
    "no state": (
        (GOOD[0],),
        {},
        TypeError,
        r"Odd has no method initial_state\(batch\)",
    ),
    "list": ((GOOD[0], [GOOD[1]]), {}, TypeError, "state must be a tensor.*list"),
    "batch": ((GOOD[0], GOOD[0]), {}, ValueError, r"here \(2, ...\); got.*\(4, 2, 3\)"),
    "length": (
        GOOD,
        {"lengths": torch.tensor([0, 4])},
        ValueError,
        "lengths must be from 1 to 4",
    ),
    "resets": (GOOD, {"resets": torch.zeros(2, 4).bool()}, ValueError, "resets must"),
}


@pytest.mark.parametrize("odd", ODD_CALLS)
def test_a_wrong_argument_is_refused_by_name(odd):
    arguments, options, error, message = ODD_CALLS[odd]
    recurrent = bptt.Recurrent(returning(lambda x, s: (x, s)))
    with pytest.raises(error, match=f"Recurrent.*{message}"):
        recurrent(*arguments, **options)


def test_a_wrong_construction_is_refused():
    class Own(torch.nn.GRUCell):
        pass

    with pytest.raises(TypeError, match=r"Own, returns its state alone.*\(h, state\)"):
        bptt.Recurrent(Own(2, 3))
    recurrent = bptt.Recurrent(Nested())
    recurrent.truncation = 5
    with pytest.raises(TypeError, match=r"truncation must be a bptt.Truncation.*5"):
        recurrent(normal(4, 2, 3))
    with pytest.raises(ValueError, match="memory_budget"):
        bptt.Recurrent(Nested(), memory_budget="much")


@pytest.mark.parametrize(
    ("x", "state", "error", "message"),
    [
        (normal(4, 2, 5), None, ValueError, r"floats \(time, batch, 3\).*\(4, 2, 5\)"),
        (torch.zeros(4, 2, 3).long(), None, ValueError, "got torch.int64"),
        (normal(4, 2), None, ValueError, r"got torch.float64 of shape \(4, 2\)"),
        (normal(4, 2, 3), normal(2, 5), TypeError, r"nested as \(tensor, tensor\)"),
        (
            normal(4, 2, 3),
            (normal(2, 4),) * 2,
            ValueError,
            r"floats \(batch, 5\).*2, 4",
        ),
    ],
)
def test_what_torch_nns_cells_cannot_take_is_refused(x, state, error, message):
    recurrent = bptt.Recurrent(torch.nn.LSTMCell(3, 5, dtype=torch.float64))
    with pytest.raises(error, match=message):
        recurrent(x, state)


def test_double_backward_works_in_full_and_is_refused_under_a_truncation():
    cell = Nested()
    x, state, _, _ = problem(cell, 3, 2)

    def gradient(weight, truncation):
        cell.U.weight.data = weight.detach()
        y, _ = bptt.Recurrent(cell, truncation=truncation)(x, state)
        return torch.autograd.grad((y**2).sum(), cell.U.weight, create_graph=True)

    (g,) = gradient(cell.U.weight, None)
    direction = normal(4, 3, seed=9)
    (curvature,) = torch.autograd.grad((g * direction).sum(), cell.U.weight)
    weight, h = cell.U.weight.detach().clone(), 1e-5
    plus, minus = (gradient(weight + s * h * direction, None)[0] for s in (1, -1))
    assert_same({"H v": curvature}, {"H v": (plus - minus) / (2 * h)}, 1e-6)
    with pytest.raises(NotImplementedError, match=r"Nested under.*DifferentiableCell"):
        gradient(weight, CUT)


def test_a_gradient_check_holds():
    cell = bptt.cells.PeepholeLSTM(3, 4)
    assert bptt.check_gradients(bptt.Recurrent(cell), normal(6, 2, 3)).passed
    hidden = bptt.Recurrent(Hidden(cell))
    state = (normal(2, 4), normal(2, 4))
    assert bptt.check_gradients(hidden, normal(6, 2, 3), state).passed


def test_transforms_differentiate_the_whole_sequence():
    cell = bptt.cells.PeepholeLSTM(3, 4).double()
    recurrent = bptt.Recurrent(cell)
    x, dy = normal(4, 2, 3), normal(4, 2, 4)
    mine = torch.func.grad(lambda x: (dy * recurrent(x)[0]).sum())(x)
    state = cell.initial_state(2)
    expected = literal_gradients(cell, x, state, dy, None, None, None)["x"]
    assert_same({"x": mine}, {"x": expected})
    recurrent.truncation = CUT
    with pytest.raises(NotImplementedError, match=r"no meaning inside torch\.func"):
        torch.func.grad(lambda x: (dy * recurrent(x)[0]).sum())(x)


def test_under_autocast_the_way_back_computes_as_the_way_forward():
    cell = Hidden(bptt.cells.LeakyRate(3, 4))  # its products are in bfloat16 then
    x, state = normal(6, 2, 3).float(), normal(2, 4).float()
    found = {}
    for truncation in (None, Truncation(1, 6), Truncation(2, 3)):
        recurrent = bptt.Recurrent(cell, truncation=truncation)
        with torch.autocast("cpu", torch.bfloat16):
            y, _ = recurrent(x, state)
        y.float().sum().backward()
        found[truncation] = cell.of.recurrent.weight.grad.clone()
        cell.zero_grad()
    assert_same({"dW": found[Truncation(1, 6)]}, {"dW": found[None]}, 3e-2)
    assert found[Truncation(2, 3)].isfinite().all()


def test_what_a_step_keeps_is_measured():
    cell = Nested()
    x, state, _, _ = problem(cell, 4, 2)
    flat, nest = flatten(state, "state")
    before = torch.get_rng_state()
    kept = own_cells.kept_bytes(cell, nest, x[0], flat)
    assert torch.equal(torch.get_rng_state(), before)
    assert kept.state == 2 * (4 + 4 + 1) * 8
    h = 2 * 4 * 8
    assert 4 * h < kept.graph < 40 * h
    twice = problem(cell, 4, 4)
    flat, _ = flatten(twice[1], "state")
    assert own_cells.kept_bytes(cell, nest, twice[0][0], flat).graph == 2 * kept.graph
