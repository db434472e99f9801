"""The checker passes right gradients and names wrong ones.

Right: every cell under every truncation, torch.nn's modules, users' own. Wrong: each
term of a derivative disturbed in turn, windows off by one, precision lost, NaN.
"""

import copy
import dataclasses
import doctest
import math
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import bptt
from bptt import GRU, LSTM, RNN, Truncation, check_gradients, kernels, through_time
from bptt.cells import GRUCell, LSTMCell, ReLUCell, TanhCell
from bptt.errors import GradientError
from bptt.verify import GradientReport, TensorCheck, certificates, certify, check
from bptt.verify.difference import slope_along
from bptt.verify.literal import LiteralObjective, Window, cuts, windows
from bptt.verify.report import CHECK_KINDS

FULL = Truncation.full()
TRUNCATIONS = [
    FULL,
    Truncation.chunks(3),
    Truncation.per_output(2),
    Truncation(2, 5),
    Truncation(5, 2),
    Truncation(3, 100),
]
CELLS = {
    "tanh": lambda *sizes, **options: RNN(*sizes, **options),
    "relu": lambda *sizes, **options: RNN(*sizes, nonlinearity="relu", **options),
    "gru": GRU,
    "lstm": LSTM,
}


@pytest.fixture(autouse=True)
def _one_thread_and_a_seed():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


def problem(cell="tanh", truncation=None, *, time=7, state=True, **options):
    """A small module, its input and a random initial state."""
    module = CELLS[cell](3, 2, truncation=truncation, **options)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.6)
    count = module.num_layers * (2 if module.bidirectional else 1)
    parts = tuple(torch.randn(count, 2, 2) for _ in range(2 if cell == "lstm" else 1))
    hx = (parts if cell == "lstm" else parts[0]) if state else None
    return module, torch.randn(time, 2, 3), hx


def failure(module, *args, **options):
    """The report of a check that must raise, and name its worst tensor."""
    reports, right = [], check.measure

    def measure(*args, **options):
        reports.append(right(*args, **options))
        return reports[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(check, "measure", measure)
        with pytest.raises(GradientError) as caught:
            check_gradients(module, *args, **{"directions": 1} | options)
    (report,) = reports
    message = str(caught.value)
    assert message.startswith(f"{type(module).__name__}: wrong gradient of ")
    assert f"{report.worst.tensor}, {report.worst.check} check" in message
    assert f"relative error {report.worst.error:.3g}" in message
    assert f"{report.worst.gradient:.9g}" in message
    assert f"{report.worst.reference:.9g}" in message
    assert all(row.tensor in message for row in report.failed)
    assert caught.value.__notes__ == [str(report)]
    return report


def wrong(report, kind="finite difference"):
    return {row.tensor for row in report.failed if row.check == kind}


# --- right gradients pass -------------------------------------------------------------


# The certificates below go through many more, in a process without beartype.
@pytest.mark.parametrize("truncation", TRUNCATIONS[1::2], ids=str)
@pytest.mark.parametrize("cell", CELLS)
def test_every_cell_passes_under_truncations(cell, truncation):
    module, x, hx = problem(cell, truncation)
    report = check_gradients(module, x, hx, directions=1)
    names = {"input", "h_0", *dict(module.named_parameters())}
    names |= {"c_0"} if cell == "lstm" else set()
    assert {(r.tensor, r.check) for r in report.rows} == {
        (name, kind) for name in names for kind in CHECK_KINDS
    }
    assert report.passed
    assert report.worst.error < 2e-6


@pytest.mark.parametrize(
    ("cell", "options"),
    [
        ("tanh", {"num_layers": 2}),
        ("lstm", {"num_layers": 2, "bias": False}),
        ("gru", {"bidirectional": True, "bias": False}),
    ],
    ids=str,
)
@pytest.mark.parametrize("truncation", TRUNCATIONS[2:4], ids=str)
def test_stacks_and_both_directions_pass(cell, options, truncation):
    module, x, hx = problem(cell, truncation, time=5, **options)
    assert check_gradients(module, x, hx, directions=1).passed


@settings(max_examples=8, deadline=None, derandomize=True)
@given(data=st.data())
def test_any_truncation_layout_and_input_passes(data):
    cell = data.draw(st.sampled_from(["tanh", "gru", "lstm"]))
    k1, k2 = data.draw(st.integers(1, 8)), data.draw(st.integers(1, 9))
    batched, ids = data.draw(st.booleans()), data.draw(st.booleans())
    batch_first, both = data.draw(st.booleans()), data.draw(st.booleans())
    time = data.draw(st.integers(1, 7))
    torch.manual_seed(data.draw(st.integers(0, 9)))
    module, x, hx = problem(
        cell,
        Truncation(k1, k2),
        time=time,
        batch_first=batch_first,
        bidirectional=both,
        num_layers=1 if both else data.draw(st.integers(1, 2)),
    )
    if ids:
        x = torch.randint(3, (time, 2))
    if not batched:
        x = x[:, 0]
        hx = tuple(p[:, 0] for p in hx) if cell == "lstm" else hx[:, 0]
    elif batch_first:
        x = x.transpose(0, 1)
    report = check_gradients(module, x, hx, directions=1)
    assert ("input" in {row.tensor for row in report.rows}) == (not ids)


def test_an_absent_initial_state_has_no_row():
    for truncation in (None, Truncation.chunks(3)):
        module, x, _ = problem("lstm", truncation, state=False)
        report = check_gradients(module, x, directions=1)
        assert {"h_0", "c_0"}.isdisjoint(row.tensor for row in report.rows)


@pytest.mark.parametrize(
    "module",
    [
        torch.nn.LSTM(3, 4, num_layers=2, dropout=0.5, bidirectional=True),
        torch.nn.LSTM(3, 4, proj_size=2),
        torch.nn.GRU(3, 4, batch_first=True),
        torch.nn.RNN(3, 4, nonlinearity="relu"),
        torch.nn.Sequential(
            torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(2), torch.nn.Softplus()
        ),
        LSTM(3, 4, proj_size=2),
        LSTM(3, 4, num_layers=2, dropout=0.5, bidirectional=True),
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore:LSTM with projections:UserWarning")
def test_modules_under_ordinary_autograd_pass(module):
    assert check_gradients(module, torch.randn(4, 2, 3), directions=1).passed


def test_torch_modules_pass_with_their_initial_state():
    hx = torch.randn(1, 2, 4), torch.randn(1, 2, 4)
    report = check_gradients(torch.nn.LSTM(3, 4), torch.randn(5, 2, 3), hx)
    assert {"h_0", "c_0"} <= {row.tensor for row in report.rows}


class Model(torch.nn.Module):
    """Integers in; nested outputs, one tensor twice, one integer, an unused weight."""

    def __init__(self):
        super().__init__()
        self.embedding = torch.nn.Embedding(5, 3)
        self.lstm = LSTM(3, 4)
        self.head = torch.nn.Linear(4, 5)
        self.unused = torch.nn.Parameter(torch.randn(2))
        self.frozen = torch.nn.Parameter(torch.randn(4), requires_grad=False)

    def forward(self, x):
        y, state = self.lstm(self.embedding(x))
        logits = self.head(y + self.frozen)
        return {"logits": logits, "more": [state, (logits, x), None]}


def test_a_model_with_nested_outputs_passes():
    report = check_gradients(Model(), torch.randint(5, (4, 2)), directions=1)
    names = {row.tensor for row in report.rows}
    assert {"embedding.weight", "lstm.weight_hh_l0", "unused"} <= names
    assert names.isdisjoint({"frozen", "input"})


def test_everything_passes_for_float64_and_bfloat16_modules():
    for dtype in (torch.float64, torch.bfloat16):
        module, x, hx = problem("gru", Truncation.chunks(3))
        assert check_gradients(module.to(dtype), x.to(dtype), hx, directions=1).passed


def test_every_parameter_frozen_leaves_the_input():
    module, x, _ = problem("gru", Truncation.chunks(3), state=False)
    module.requires_grad_(False)
    assert {r.tensor for r in check_gradients(module, x).rows} == {"input"}
    with pytest.raises(ValueError, match="nothing to check"):
        check_gradients(module, torch.randint(3, (7, 2)))


@pytest.mark.parametrize("truncation", [None, *TRUNCATIONS[1:5]], ids=str)
def test_a_custom_loss_passes_under_every_truncation(truncation):
    targets = torch.randint(2, (14,))

    def loss(outputs):
        y, (h_n, _) = outputs
        logits = y.flatten(0, 1)
        return torch.nn.functional.cross_entropy(logits, targets) + h_n.square().sum()

    module, x, hx = problem("lstm", truncation)
    assert check_gradients(module, x, hx, loss=loss, directions=1).passed


def test_the_check_is_a_function_of_the_seed():
    module, x, hx = problem("gru", Truncation.per_output(2))
    reports = [check_gradients(module, x, hx, seed=s, directions=1) for s in (0, 0, 1)]
    assert reports[0] == reports[1] != reports[2]


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_the_check_works_where_gradients_are_off(context):
    with context():
        module, x, hx = problem("gru", Truncation.chunks(3))
        assert check_gradients(module, x, hx, directions=1).passed


# --- nothing of the caller's changes --------------------------------------------------


@pytest.mark.parametrize("truncation", [None, Truncation.chunks(3)], ids=str)
def test_module_gradients_mode_and_random_state_are_untouched(truncation):
    module, x, hx = problem("lstm", truncation, num_layers=2, dropout=0.5)
    x.requires_grad_()
    module(x, hx)[0].sum().backward()
    module.weight_hh_l1.requires_grad_(False)
    before = copy.deepcopy(module.state_dict())
    grads = {name: p.grad.clone() for name, p in module.named_parameters()}
    values = x.detach().clone(), [part.clone() for part in hx], x.grad.clone()
    random_state = torch.get_rng_state()
    check_gradients(module, x, hx, directions=1)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert module.training
    assert module.dropout == 0.5
    assert module.truncation == truncation
    assert not module.weight_hh_l1.requires_grad
    for name, value in module.state_dict().items():
        assert torch.equal(value, before[name]), name
        assert value.dtype == torch.float32
    for name, parameter in module.named_parameters():
        assert torch.equal(parameter.grad, grads[name]), name
    assert torch.equal(x, values[0])
    assert torch.equal(x.grad, values[2])
    assert all(torch.equal(a, b) for a, b in zip(hx, values[1], strict=True))
    assert not hx[0].requires_grad


def test_buffers_are_untouched_and_inputs_may_be_changed_in_place():
    class InPlace(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = torch.nn.BatchNorm1d(3)

        def forward(self, x):
            torch.rand(1)  # draws from the global generator
            return self.norm(x.mul_(2).sin())

    module, x = InPlace(), torch.randn(4, 3)
    kept, random_state = x.clone(), torch.get_rng_state()
    check_gradients(module, x)
    assert torch.equal(x, kept)
    assert module.training
    assert module.norm.num_batches_tracked == 0
    assert torch.equal(torch.get_rng_state(), random_state)


def test_a_failed_check_leaves_everything_untouched_too(monkeypatch):
    monkeypatch.setattr(TanhCell, "slope", staticmethod(lambda h: 1 - h))
    module, x, hx = problem()
    before, random_state = copy.deepcopy(module.state_dict()), torch.get_rng_state()
    failure(module, x, hx)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert all(torch.equal(v, before[n]) for n, v in module.state_dict().items())
    assert all(p.grad is None for p in module.parameters())


# --- wrong gradients are named --------------------------------------------------------


@pytest.mark.parametrize("truncation", [None, Truncation.chunks(3)], ids=str)
@pytest.mark.parametrize(("cell", "kind"), [("tanh", TanhCell), ("relu", ReLUCell)])
def test_a_wrong_slope_is_caught(monkeypatch, cell, kind, truncation):
    right = kind.slope
    monkeypatch.setattr(kind, "slope", staticmethod(lambda h: 1.001 * right(h)))
    report = failure(*problem(cell, truncation), directions=2)
    assert {"weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "input"} <= wrong(report)


def disturbed(cell, *, gate=None, part=None):
    """`vjp_state` with one gate's delta, or one part of the earlier state, wrong."""
    right = cell.vjp_state

    def vjp_state(self, ds, tape, W):
        delta, before = right(self, ds, tape, W)
        if gate is not None:
            width = W.shape[1]
            scale = torch.ones_like(delta)
            scale[..., gate * width : (gate + 1) * width] = 1.001
            delta = delta * scale
        if part is not None:
            before = tuple(1.001 * d if i == part else d for i, d in enumerate(before))
        return delta, before

    return vjp_state


@pytest.mark.parametrize("truncation", [None, Truncation(2, 5)], ids=str)
@pytest.mark.parametrize(
    ("name", "cell", "term"),
    [
        *(("gru", GRUCell, {"gate": gate}) for gate in range(3)),
        ("gru", GRUCell, {"part": 0}),
        *(("lstm", LSTMCell, {"gate": gate}) for gate in range(4)),
        *(("lstm", LSTMCell, {"part": part}) for part in range(2)),
    ],
)
def test_each_term_of_vjp_state_is_checked(monkeypatch, name, cell, term, truncation):
    module, x, hx = problem(name, truncation, time=5)
    monkeypatch.setattr(cell, "vjp_state", disturbed(cell, **term))
    bad = wrong(failure(module, x, hx))
    assert "weight_ih_l0" in bad
    if "part" in term:
        assert ("c_0" if term["part"] else "h_0") in bad


def test_a_gru_without_its_reset_gate_in_the_hidden_delta_is_caught(monkeypatch):
    monkeypatch.setattr(GRUCell, "hidden_delta", lambda self, delta, tape: delta)
    bad = wrong(failure(*problem("gru", time=1)))
    assert {"weight_hh_l0", "bias_hh_l0", "h_0"} <= bad
    assert bad.isdisjoint({"weight_ih_l0", "bias_ih_l0", "input"})


@pytest.mark.parametrize("truncation", [None, Truncation.per_output(2)], ids=str)
@pytest.mark.parametrize(
    ("dropped", "name"),
    [
        ("dU", "weight_ih_l0"),
        ("dW", "weight_hh_l0"),
        ("db_ih", "bias_ih_l0"),
        ("db_hh", "bias_hh_l0"),
        ("dstate", "h_0"),
    ],
)
def test_a_dropped_gradient_is_named_alone(monkeypatch, dropped, name, truncation):
    right = through_time.LayerGradients

    def gradients(*args, **named):
        found = right(*args, **named)
        value = getattr(found, dropped)
        if dropped == "dstate":
            zero = tuple(torch.zeros_like(d) for d in value)
        else:
            zero = torch.zeros_like(value)
        return found._replace(**{dropped: zero})

    monkeypatch.setattr(through_time, "LayerGradients", gradients)
    report = failure(*problem("gru", truncation))
    assert report.worst.tensor == name
    assert wrong(report) == {name}
    assert report.worst.error == pytest.approx(1, abs=0.6)
    assert report.worst.gradient == 0


def test_a_dropped_input_gradient_is_named_alone(monkeypatch):
    right = through_time.backward
    monkeypatch.setattr(
        through_time,
        "backward",
        lambda *args, **options: (None, right(*args, **options)[1]),
    )
    assert wrong(failure(*problem("lstm", Truncation.chunks(3)))) == {"input"}


def test_a_dropped_error_of_the_final_state_is_caught(monkeypatch):
    monkeypatch.setattr(through_time, "_add_to_last", lambda ds, d: ds)
    for truncation in (None, Truncation.chunks(3)):
        assert "weight_ih_l0" in wrong(failure(*problem("gru", truncation)))


@pytest.mark.parametrize("off", [-1, 1])
@pytest.mark.parametrize(
    ("truncation", "options"),
    [
        (Truncation.chunks(3), {}),
        (Truncation.per_output(2), {}),
        (Truncation(2, 5), {}),
        (Truncation(2, 4), {"num_layers": 2}),
        (Truncation.chunks(2), {"bidirectional": True}),
    ],
    ids=str,
)
def test_a_window_off_by_one_is_caught(monkeypatch, truncation, off, options):
    right = Truncation.lags

    def lags(self, time):
        return right(Truncation(self.k1, self.k2 + off), time)

    module, x, hx = problem("tanh", truncation, time=5, **options)
    monkeypatch.setattr(Truncation, "lags", lags)
    assert "weight_hh_l0" in wrong(failure(module, x, hx))


def test_chunks_of_a_wrong_length_are_caught(monkeypatch):
    right = Truncation.lags
    monkeypatch.setattr(
        Truncation, "lags", lambda self, time: right(Truncation(4, self.k2), time)
    )
    assert wrong(failure(*problem("gru", Truncation.chunks(3))))


def test_layers_truncated_each_on_its_own_are_caught(monkeypatch):
    """An error could then reach two windows back."""
    right = through_time.backward

    def backward(layers, x, masks, tapes, dy, dfinal, truncation, rows, *, needs_dx):
        found = []
        for at in (1, 0):
            inputs = tapes[0].states[0][1:] if at else x
            one = slice(at, at + 1)
            stack = layers[one], inputs, masks, tapes[one], dy, dfinal[one]
            dy, (gradients,) = right(*stack, truncation, rows, needs_dx=True)
            found = [gradients, *found]
        return dy, found

    monkeypatch.setattr(through_time, "backward", backward)
    x, hx = torch.randn(5, 2, 3), torch.randn(2, 2, 2)
    module = RNN(3, 2, num_layers=2, truncation=Truncation.per_output(1))
    bad = wrong(failure(module, x, hx, directions=2))
    assert {"weight_ih_l0", "weight_hh_l0", "input"} <= bad
    assert bad.isdisjoint({"weight_hh_l1", "weight_ih_l1", "bias_ih_l1"})
    module.truncation = Truncation.chunks(2)  # there it is the same
    assert check_gradients(module, x, hx, directions=1).passed


def test_a_truncation_that_is_ignored_is_caught(monkeypatch):
    right = Truncation.lags
    for truncation in TRUNCATIONS[1:5]:
        module, x, hx = problem("tanh", truncation)
        with monkeypatch.context() as patch:
            patch.setattr(Truncation, "lags", lambda self, time: right(FULL, time))
            assert "weight_hh_l0" in wrong(failure(module, x, hx))


class Doubled(torch.autograd.Function):
    """`2 x w` with a wrong derivative for `w`."""

    @staticmethod
    def forward(ctx, x, w):
        ctx.save_for_backward(x, w)
        return 2 * x * w

    @staticmethod
    def backward(ctx, dy):
        x, w = ctx.saved_tensors
        return 2 * dy * w, (dy * x).sum(0)


class UsersModule(torch.nn.Module):
    def __init__(self, function):
        super().__init__()
        self.w = torch.nn.Parameter(torch.randn(3))
        self.b = torch.nn.Parameter(torch.randn(3))
        self.function = function

    def forward(self, x):
        return self.function(x, self.w) + self.b


def test_a_users_wrong_function_is_caught_and_named():
    report = failure(UsersModule(Doubled.apply), torch.randn(4, 3))
    assert wrong(report) == {"w"}
    assert not wrong(report, "float32")


def test_a_gradient_cut_by_mistake_is_caught():
    module = UsersModule(lambda x, w: (x.detach() * w).tanh())
    assert wrong(failure(module, torch.randn(4, 3))) == {"input"}
    module = UsersModule(lambda x, w: (x * w.item()).tanh())
    module.w = torch.nn.Parameter(torch.randn(()))
    assert "w" in wrong(failure(module, torch.randn(4, 3)))


def test_a_module_without_any_graph_is_caught():
    class Detached(torch.nn.Linear):
        @torch.no_grad()
        def forward(self, x):
            return super().forward(x)

    report = failure(Detached(3, 2), torch.randn(4, 3))
    assert wrong(report) == {"weight", "bias", "input"}


def test_a_wrong_entry_among_many_is_caught():
    class OneWrong(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x.sin()

        @staticmethod
        def backward(ctx, dy):
            (x,) = ctx.saved_tensors
            dx = dy * x.cos()
            dx.view(-1)[1234] *= 1.1
            return dx

    module = UsersModule(lambda x, w: OneWrong.apply(x * w))
    assert "input" in wrong(failure(module, torch.randn(1000, 3)))


# --- float32 --------------------------------------------------------------------------


@pytest.mark.parametrize("truncation", [None, Truncation.chunks(3)], ids=str)
def test_precision_lost_in_float32_is_caught(monkeypatch, truncation):
    right = TanhCell.vjp_state

    def vjp_state(self, ds, tape, W):
        delta, before = right(self, ds, tape, W)
        if delta.dtype == torch.float32:
            delta = delta.bfloat16().float()
        return delta, before

    monkeypatch.setattr(TanhCell, "vjp_state", vjp_state)
    with kernels.use("torch"):
        report = failure(*problem("tanh", truncation))
    assert report.worst.check == "float32"
    assert not wrong(report)
    assert "float32 lost precision" in check.describe_failure(report)
    assert {"weight_hh_l0", "input"} <= wrong(report, "float32")


def test_the_float32_tolerance_is_the_callers():
    module, x, hx = problem("lstm")
    report = check_gradients(module, x, hx, directions=1, float32_tolerance=1e-2)
    assert 0 < report.max_error("float32") < 5e-6
    report = failure(module, x, hx, float32_tolerance=1e-12)
    assert report.worst.check == "float32"


def test_a_gradient_of_zero_but_for_rounding_is_no_failure():
    """A bias before a softmax moves nothing; its gradient is rounding alone."""

    class Shifted(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.w = torch.nn.Parameter(torch.randn(3))
            self.shift = torch.nn.Parameter(torch.ones(()))

        def forward(self, x):
            return ((x * self.w).sin() + self.shift).softmax(-1)

    assert check_gradients(Shifted(), torch.randn(50, 3)).passed


# --- what is not finite or not smooth -------------------------------------------------


class NaNBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.sin()

    @staticmethod
    def backward(ctx, dy):
        return dy * math.nan


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_fails(monkeypatch, value):
    monkeypatch.setattr(
        NaNBackward, "backward", staticmethod(lambda ctx, dy: dy * value)
    )
    module = UsersModule(lambda x, w: NaNBackward.apply(x) * w)
    report = failure(module, torch.randn(4, 3))
    assert wrong(report) == wrong(report, "float32") == {"input"}
    assert report.worst.error == math.inf
    assert report.worst.note == "the gradient is not finite"


def test_a_loss_that_is_not_finite_fails():
    for function in (lambda x, w: (-(x * w).abs()).log(), lambda x, w: x * w / 0):
        report = failure(UsersModule(function), torch.randn(4, 3))
        assert wrong(report) == {"w", "input", "b"}
        assert "not finite" in str(report.worst)


def test_a_gradient_lost_in_float32_alone_fails():
    module = UsersModule(lambda x, w: (x * w * 1e-30) * 1e-30 * 1e60)
    report = failure(module, torch.randn(4, 3))
    assert not wrong(report)
    assert wrong(report, "float32") == {"w", "input"}


def test_a_rectifier_at_exactly_zero_is_not_certified():
    module, x, _ = problem("relu", state=False)
    for name in ("bias_ih_l0", "bias_hh_l0"):
        torch.nn.init.zeros_(getattr(module, name))
    report = failure(module, torch.zeros_like(x[:2]))
    assert "kink" in report.worst.note
    assert report.worst.skipped == 3


def test_kinks_away_from_the_point_are_stepped_around():
    """Rectifiers a thousandth from their kinks, on both sides."""
    module = UsersModule(lambda x, w: (x * w).relu())
    torch.nn.init.ones_(module.w)
    x = torch.linspace(-1e-3, 1e-3, 12).view(4, 3)
    assert check_gradients(module, x).passed


@pytest.mark.parametrize("point", [1e-7, 1e-5, 1e-3, 0.1])
def test_the_slope_beside_a_kink_is_the_one_sided_slope_or_none(point):
    for side in (-1.0, 1.0):
        x = torch.tensor([side * point, 1.0], dtype=torch.float64)
        slope = slope_along(
            lambda x=x: float(x[0].relu() + x[1].sin()),
            x,
            torch.tensor([1.0, 0.5], dtype=torch.float64),
            magnitude=2.0,
            expected=1.0,
            tolerance=1e-6,
        )
        expected = (side > 0) + 0.5 * math.cos(1)
        assert slope is None or abs(slope.value - expected) < 1e-6
        assert point < 1e-5 or slope is not None
        assert x.tolist() == [side * point, 1.0]


@settings(max_examples=50, deadline=None, derandomize=True)
@given(
    scale=st.floats(1e-3, 1e3), frequency=st.floats(1e-2, 1e2), seed=st.integers(0, 99)
)
def test_slopes_of_smooth_functions_are_found(scale, frequency, seed):
    generator = torch.Generator().manual_seed(seed)
    x = scale * torch.randn(6, generator=generator, dtype=torch.float64)
    v = torch.randn(6, generator=generator, dtype=torch.float64)
    dx = frequency * (frequency * x).cos() / 6
    slope = slope_along(
        lambda: float((frequency * x).sin().mean()),
        x,
        v,
        magnitude=1.0,
        expected=float(dx.norm()),
        tolerance=1e-6,
    )
    assert slope is not None
    error = abs(slope.value - float(dx @ v))
    assert error <= 1e-6 * float(dx.norm()) + slope.rounding


def test_a_kink_at_the_point_has_no_slope():
    for function in (torch.abs, torch.relu, lambda x: x.abs().sqrt()):
        x = torch.zeros(1, dtype=torch.float64)
        v = torch.ones(1, dtype=torch.float64)
        found = slope_along(
            lambda x=x, f=function: float(f(x).sum()),
            x,
            v,
            magnitude=1.0,
            expected=1.0,
            tolerance=1e-6,
        )
        assert found is None


# --- the objective under a truncation -------------------------------------------------


def brute_force_windows(k1, k2, time):
    """From the sentence: (steps visited, outputs scored) of each pass."""
    found = []
    for p in range(-(-time // k1)):
        end = (p + 1) * k1 - 1
        steps = [t for t in range(end - k2 + 1, end + 1) if 0 <= t < time]
        own = [t for t in steps if p * k1 <= t < (p + 1) * k1]
        if steps:
            found.append((steps, own))
    return found


@given(st.integers(1, 9), st.integers(1, 20), st.integers(1, 14))
def test_windows_are_the_literal_definition(k1, k2, time):
    found = windows(Truncation(k1, k2), time)
    assert [
        (list(range(w.start, w.stop)), list(range(w.scored, w.stop))) for w in found
    ] == brute_force_windows(k1, k2, time)
    last_start = -(-time // k1) * k1 - k2
    assert cuts(Truncation(k1, k2), time) == (last_start > 0)
    assert windows(FULL, time) == [Window(0, time, 0)]
    assert not cuts(FULL, time)


@pytest.mark.parametrize("k", [1, 3, 4, 7, 9])
def test_under_chunks_the_objective_has_the_gradient_of_detaching(k):
    module, x, hx = problem("lstm", Truncation.chunks(k), num_layers=2)
    module, x, hx = module.double(), x.double(), tuple(p.double() for p in hx)
    plain = torch.nn.LSTM(3, 2, num_layers=2, dtype=torch.float64)
    plain.load_state_dict(module.state_dict())
    weights = [torch.randn_like(x[..., :2]), *(torch.randn_like(p) for p in hx)]

    state, value = hx, torch.zeros((), dtype=torch.float64)
    for start in range(0, 7, k):
        state = tuple(part.detach() for part in state)
        y, state = plain(x[start : start + k], state)
        value = value + (weights[0][start : start + k] * y).sum()
    for part, weight in zip(state, weights[1:], strict=True):
        value = value + (weight * part).sum()
    expected = torch.autograd.grad(value, list(plain.parameters()))

    objective = LiteralObjective(module, x, hx, weights)
    for chosen in objective._runs:  # the runs are made without gradients of states
        assert all(s is None or not s[0].requires_grad for s in chosen.states)
    found = torch.autograd.grad(objective(), list(module.parameters()))
    for (name, _), g, e in zip(module.named_parameters(), found, expected, strict=True):
        torch.testing.assert_close(g, e, msg=name, rtol=1e-10, atol=1e-12)


def test_each_direction_is_cut_along_its_own_time():
    """A bidirectional layer is two layers, the second over the reversed sequence."""
    module, x, hx = problem("gru", Truncation(2, 5), bidirectional=True)
    module, x, hx = module.double(), x.double(), hx.double()
    y_weights, h_weights = torch.randn(7, 2, 4).double(), torch.randn(2, 2, 2).double()
    both = LiteralObjective(module, x, hx, [y_weights, h_weights])()
    halves = []
    for direction, suffix in enumerate(("", "_reverse")):
        half = GRU(3, 2, dtype=torch.float64, truncation=Truncation(2, 5))
        half.load_state_dict(
            {n: getattr(module, n + suffix) for n in half.state_dict()}
        )
        order = slice(None) if direction == 0 else torch.arange(6, -1, -1)
        own = slice(2 * direction, 2 * direction + 2)
        one = slice(direction, direction + 1)
        weights = [y_weights[order][..., own], h_weights[one]]
        halves.append(LiteralObjective(half, x[order], hx[one], weights)())
    torch.testing.assert_close(both, sum(halves))


# --- the report -----------------------------------------------------------------------


def row(error, tolerance=1e-6, tensor="w", kind="finite difference"):
    return TensorCheck(tensor, kind, error, tolerance, 1.0, 2.0)


def test_a_report_knows_its_worst_row_in_units_of_tolerance():
    report = GradientReport((row(1e-7), row(2e-6, 1e-5, "v", "float32")))
    assert report.passed
    assert report.worst.tensor == "v"
    assert report.failed == ()
    failed = GradientReport((row(1.0), row(math.nan, tensor="v"), row(2.0)))
    assert not failed.passed
    assert failed.worst.tensor == "v"
    assert [r.tensor for r in failed.failed] == ["v", "w", "w"]
    assert failed.max_error("finite difference") == math.inf
    with pytest.raises(dataclasses.FrozenInstanceError):
        failed.rows = ()


def test_a_report_prints_a_table():
    report = GradientReport((row(1e-7), row(1.0, 1e-5, "bias_hh_l0", "float32")))
    assert str(report).splitlines() == [
        "tensor      check                 error  tolerance",
        "w           finite difference   1.0e-07    1.0e-06  ok",
        "bias_hh_l0  float32             1.0e+00    1.0e-05  FAILED",
    ]


# --- refusals -------------------------------------------------------------------------

GOOD = torch.nn.Linear(3, 2), torch.randn(4, 3)
# Past beartype, which answers first while the tests run.
unchecked = getattr(check_gradients, "__wrapped__", check_gradients)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((torch.tanh, GOOD[1]), {}, TypeError, "module must be a torch.nn.Module"),
        ((GOOD[0], [1.0]), {}, TypeError, "x must be a torch.Tensor; got list"),
        ((GOOD[0], torch.randn(0, 3)), {}, ValueError, "x must have at least one"),
        ((*GOOD, 3), {}, TypeError, "hx must be None, a tensor, .* got int"),
        ((*GOOD, (GOOD[1], 3)), {}, TypeError, "hx must be .* tuple with a int"),
        (GOOD, {"directions": 0}, ValueError, "directions must be at least 1; got 0"),
        (GOOD, {"directions": 2.5}, TypeError, "directions must be an int; got 2.5"),
        (GOOD, {"seed": -1}, ValueError, "seed must be at least 0; got -1"),
        (GOOD, {"tolerance": 0.0}, ValueError, "tolerance must be positive"),
        (GOOD, {"tolerance": "1"}, TypeError, "tolerance must be a float; got '1'"),
        (GOOD, {"float32_tolerance": math.nan}, ValueError, "float32_tolerance must"),
        (GOOD, {"loss": lambda y: y}, TypeError, r"one element; got shape \(4, 2\)"),
        (GOOD, {"loss": lambda y: 3.0}, TypeError, "loss must return a tensor .*float"),
    ],
)
def test_wrong_arguments_are_refused_with_the_remedy(
    arguments, options, error, message
):
    with pytest.raises(error, match=message):
        unchecked(*arguments, **options)


def test_a_truncated_module_inside_another_is_refused():
    module = torch.nn.Sequential(GRU(3, 2, truncation=Truncation.chunks(3)))
    with pytest.raises(ValueError, match=r"truncated module \(0: Truncation\(k1=3"):
        check_gradients(module, torch.randn(7, 2, 3))
    assert check_gradients(torch.nn.Sequential(GRU(3, 2)), torch.randn(7, 2, 3)).passed


def test_a_module_that_carries_state_between_calls_is_refused():
    class Stateful(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.linear, self.calls = torch.nn.Linear(3, 2), 0

        def forward(self, x):
            self.calls += 1
            return self.linear(x) * self.calls

    with pytest.raises(ValueError, match="same outputs whenever it is called"):
        check_gradients(Stateful(), torch.randn(4, 3))


def test_outputs_that_are_no_tensors_are_refused():
    for function, message in (
        (lambda x, w: "text", "outputs is a str"),
        (lambda x, w: x > w, "no floating-point numbers"),
    ):
        module = UsersModule(function)
        module.forward = lambda x, f=function: f(x, 1.0)
        error = TypeError if "str" in message else ValueError
        with pytest.raises(error, match=message):
            check_gradients(module, torch.randn(4, 3))


# --- certificates ---------------------------------------------------------------------

FULL_RUN = """
import torch
from bptt.kernels import available
from bptt.verify import certify
state, threads, seen = torch.get_rng_state(), torch.get_num_threads(), []
found = certify(seen.append)
assert found == seen and len(found) == 4 * 5 * 4, len(found)
assert len({(c.cell, c.case, c.truncation) for c in found}) == len(found)
assert torch.equal(torch.get_rng_state(), state)
assert torch.get_num_threads() == threads
for c in found:
    assert c.passed and c.finite_difference_error < 1e-8, c
    assert tuple(c.float32_errors) == available(), c
    assert all(0 < error < 5e-6 for error in c.float32_errors.values()), c
    assert "checks passed" in c.message, c
"""


def test_every_certificate_is_given():
    """In a process of its own, without the checks of annotations."""
    subprocess.run([sys.executable, "-c", FULL_RUN], check=True, timeout=300)


def test_a_wrong_gradient_is_recorded_and_not_raised(monkeypatch):
    monkeypatch.setattr(TanhCell, "slope", staticmethod(lambda h: 1 - h))
    monkeypatch.setattr(certificates, "_CELLS", {"rnn tanh": RNN, "gru": GRU})
    monkeypatch.setattr(certificates, "_TRUNCATIONS", (Truncation.chunks(4),))
    monkeypatch.setattr(certificates, "_CASES", certificates._CASES[-1:])
    seen = []
    found = certify(seen.append)
    assert found == seen
    assert [(c.cell, c.passed) for c in found] == [("rnn tanh", False), ("gru", True)]
    assert found[0].message.startswith("wrong gradient of ")
    assert found[0].finite_difference_error > 1e-2
    assert found[0].case == "ids"
    assert found[0].truncation == "Truncation(k1=4, k2=4)"


@pytest.mark.skipif(len(kernels.available()) < 2, reason="there is one kernel")
def test_a_wrong_kernel_is_found_though_another_is_active(monkeypatch):
    monkeypatch.setattr(certificates, "_CELLS", {"gru": GRU})
    monkeypatch.setattr(certificates, "_TRUNCATIONS", (Truncation.full(),))
    monkeypatch.setattr(certificates, "_CASES", certificates._CASES[:1])
    native, wrong = kernels.native.backward, kernels.available()[-2]

    def backward(kernel, *args, **options):
        dx, gradients, dstate = native(kernel, *args, **options)
        if kernel == wrong:
            gradients[0].dU.mul_(1.001)
        return dx, gradients, dstate

    monkeypatch.setattr(kernels.native, "backward", backward)
    with kernels.use("torch"):
        (found,) = certify()
        assert kernels.active() == "torch"
    assert not found.passed
    assert f"weight_ih_l0, float32 ({wrong}) check" in found.message
    errors = {name: error > 5e-6 for name, error in found.float32_errors.items()}
    assert errors == {name: name == wrong for name in kernels.available()}


def test_docstrings_run():
    assert doctest.testmod(check).failed == 0
    assert bptt.check_gradients is check_gradients
