"""How the modules meet odd calls: empty, wrong, mixed precision, not a number."""

import pytest
import torch
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import bptt
from bptt.truncation import Truncation
from literal import KINDS, assert_same, gradients, ours, outputs, pair

KIND = pytest.mark.parametrize("kind", KINDS)
CUT = Truncation(2, 3)
TRUNCATIONS = pytest.mark.parametrize("truncation", [None, CUT], ids=str)


def normal(*shape):
    generator = torch.Generator().manual_seed(4)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def leaves_of(module, x):
    return dict(module.named_parameters()) | {"x": x}


@KIND
@TRUNCATIONS
@pytest.mark.parametrize("layers", [1, 2])
def test_a_batch_of_no_rows_gives_empty_outputs_and_zero_gradients(
    kind, truncation, layers
):
    module, reference = pair(kind, 3, 4, layers, truncation=truncation)
    x = normal(5, 0, 3).requires_grad_()
    out = outputs(module, x)
    assert_same(out, outputs(reference, x))
    found = gradients(out["y"].sum(), leaves_of(module, x))
    assert_same(found, {name: torch.zeros_like(d) for name, d in found.items()}, 0.0)
    ids = torch.zeros(5, 0, dtype=torch.int64)
    assert_same(outputs(module, ids), out, 0.0)


HX = {"lstm": "h_0", "gru": "hx", "tanh": "hx", "relu": "hx"}


def state(kind, *shape, dtype=torch.float64):
    h = torch.zeros(shape, dtype=dtype)
    return (h, h) if kind == "lstm" else h


WRONG_INPUTS = {
    "no steps": (torch.zeros(0, 2, 3).double(), RuntimeError, r"no time.*\(0, 2, 3\)"),
    "no steps of one": (torch.zeros(0, 3).double(), RuntimeError, "no time steps"),
    "no ids": (torch.zeros(0, 2).long(), RuntimeError, "input has no time steps"),
    "width": (torch.zeros(4, 2, 5).double(), RuntimeError, r"input\.size.*3.*2, 5\)"),
    "width of one": (torch.zeros(4, 5).double(), RuntimeError, "input_size = 3"),
    "one axis": (torch.zeros(3).double(), ValueError, r"input must be \(time.*\(3,\)"),
    "four axes": (torch.zeros(1, 1, 1, 3).double(), ValueError, "input must be"),
    "float32": (torch.zeros(4, 2, 3), ValueError, "input has.*float32.*float64"),
    "float16": (torch.zeros(4, 2, 3).half(), ValueError, "input has dtype.*float16"),
    "ids by width": (torch.zeros(4, 2, 3).long(), ValueError, r"is ids.*\(4, 2, 3\)"),
    "one id": (torch.zeros(()).long(), ValueError, "integer input is ids"),
    "large id": (torch.full((4, 2), 3), ValueError, "ids in.*_size = 3; got 3 to 3"),
    "negative id": (torch.tensor([[0, -1]]), ValueError, "ids in input.*got -1 to 0"),
    "int32": (torch.zeros(4, 2).int(), TypeError, "input must be.*int64.*torch.int32"),
    "bool": (torch.zeros(4, 2).bool(), TypeError, "input must be.*torch.bool"),
}


@KIND
@pytest.mark.parametrize("wrong", WRONG_INPUTS)
def test_a_wrong_input_is_refused_by_name(kind, wrong):
    x, error, message = WRONG_INPUTS[wrong]
    module = ours(kind, 3, 4)
    with pytest.raises(error, match=message):
        module(x)


def test_no_time_steps_batch_first():
    module = ours("gru", 3, 4, batch_first=True)
    with pytest.raises(RuntimeError, match=r"input has no time steps.*\(2, 0, 3\)"):
        module(torch.zeros(2, 0, 3).double())
    assert outputs(module, torch.zeros(0, 2, 3).double())["y"].shape == (0, 2, 4)


@KIND
def test_a_wrong_state_is_refused_by_name(kind):
    module, x = ours(kind, 3, 4, 2), normal(5, 2, 3)
    name = f"{HX[kind]} must have shape"
    for shape in [(1, 2, 4), (2, 3, 4), (2, 2, 5), (2, 4)]:
        with pytest.raises(
            RuntimeError, match=rf"{name} \(2, 2, 4\).*got \({shape[0]}"
        ):
            module(x, state(kind, *shape))
    with pytest.raises(RuntimeError, match=rf"{name} \(2, 4\)"):
        module(x[:, 0], state(kind, 2, 1, 4))
    with pytest.raises(TypeError, match=f"{HX[kind]} must hold floats.*int64"):
        module(x, state(kind, 2, 2, 4, dtype=torch.int64))
    part = state("gru", 2, 2, 4)
    for wrong in (part, (part,), (part, None)) if kind == "lstm" else ((part, part), 1):
        with pytest.raises(TypeError, match=r"hx must be a t.*got"):
            module(x, wrong)


def test_the_cell_state_is_named_too():
    h, c = torch.zeros(1, 2, 4).double(), torch.zeros(1, 2, 3).double()
    with pytest.raises(RuntimeError, match=r"c_0 must have shape.*got \(1, 2, 3\)"):
        ours("lstm", 3, 4)(normal(5, 2, 3), (h, c))
    assert outputs(ours("lstm", 3, 4), normal(5, 2, 3), h, h)["c_n"].shape == (1, 2, 4)


@KIND
def test_a_wrong_policy_is_refused_by_name(kind):
    module = ours(kind, 3, 4)
    module.truncation = 5
    with pytest.raises(TypeError, match=r"truncation must be a bptt\.Truncation.*5"):
        module(normal(5, 2, 3))


@KIND
def test_a_truncated_stack_of_both_directions_is_refused_with_the_reason(kind):
    reason = r"bidirectional stack of 2 layers.*Truncation\(k1=2, k2=3\).*meets all of"
    with pytest.raises(ValueError, match=reason):
        ours(kind, 3, 4, 2, bidirectional=True, truncation=CUT)
    for allowed in (None, Truncation.full()):
        module = ours(kind, 3, 4, 2, bidirectional=True, truncation=allowed)
    module.truncation = CUT
    with pytest.raises(ValueError, match=reason):
        module(normal(5, 2, 3))


@KIND
def test_packed_sequences_are_those_of_torch_nn(kind):
    module, reference = pair(kind, 3, 4, 2)
    x = normal(5, 3, 3)
    found = []
    for m in (module, reference):
        leaves = leaves_of(m, x.clone().requires_grad_())
        packed = pack_padded_sequence(
            leaves["x"], torch.tensor([2, 5, 3]), enforce_sorted=False
        )
        y, _ = pad_packed_sequence(m(packed)[0])
        found.append({"y": y} | gradients((y**2).sum(), leaves))
    assert_same(*found)


def test_projections_run_in_torch_nn():
    module, reference = pair("lstm", 3, 4, 2, proj_size=2)
    x = normal(5, 3, 3)
    found = []
    for m in (module, reference):
        leaves = leaves_of(m, x.clone().requires_grad_())
        out = outputs(m, leaves["x"])
        found.append(out | gradients((out["y"] ** 2).sum(), leaves))
    assert_same(*found)
    module.truncation = Truncation.full()
    assert_same(outputs(module, x), outputs(reference, x))


@KIND
@TRUNCATIONS
@pytest.mark.parametrize("given", [torch.bfloat16, torch.float32, torch.int64])
def test_autocast_leaves_the_recurrence_in_float32(kind, truncation, given):
    module, _ = pair(kind, 3, 4, 2, truncation=truncation, dtype=torch.float32)
    x = torch.arange(12).view(6, 2) % 3 if given == torch.int64 else normal(6, 2, 3)
    x = x.to(given)
    plain = x if given == torch.int64 else x.float()
    weights = dict(module.named_parameters())
    expected = outputs(module, plain)
    h0 = expected["h_n"].detach()
    hx = (h0, h0) if kind == "lstm" else (h0,)
    expected = outputs(module, plain, *hx)
    expected |= gradients((expected["y"] ** 2).sum(), weights)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = outputs(module, x, *(part.bfloat16().float() * 0 + part for part in hx))
        assert found["y"].dtype == torch.float32
        loss = (found["y"] ** 2).sum()
    found |= gradients(loss, weights)
    assert_same(found, expected, 0.0)


@KIND
@TRUNCATIONS
@pytest.mark.parametrize("hidden", [1, 5, 33])
def test_a_row_that_is_not_a_number_leaves_the_other_rows_alone(
    kind, truncation, hidden
):
    module, _ = pair(kind, 3, hidden, 2, truncation=truncation)
    found = []
    for poison in (0.0, float("nan")):
        x = normal(6, 4, 3)
        x[1, 2] += poison
        x.requires_grad_()
        out = outputs(module, x)
        (dx,) = torch.autograd.grad((out["y"] ** 2).sum(), x)
        rows = {name: o[:, [0, 1, 3]] for name, o in out.items()}
        found.append(rows | {"dx": dx[:, [0, 1, 3]]})
    assert out["y"][1:, 2].isnan().all()
    assert_same(found[1], found[0], 0.0)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")
@TRUNCATIONS
def test_compiling_a_model_that_holds_ours_changes_nothing_and_unrolls_nothing(
    truncation,
):
    rnn, _ = pair("lstm", 4, 4, truncation=truncation)

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = torch.nn.Linear(3, 4, dtype=torch.float64)
            self.rnn = rnn

        def forward(self, x):
            y, (h, _) = self.rnn(self.inner(x).tanh())
            return (y.sin() ** 2).sum() + h.cos().sum()

    model, x, graph_sizes = Model(), normal(40, 2, 3), []

    def backend(graph_module, example_inputs):
        graph_sizes.append(len(graph_module.graph.nodes))
        return graph_module

    def step(x):
        model.zero_grad()
        model(x).backward()
        return {name: weight.grad for name, weight in model.named_parameters()}

    expected = step(x)
    torch.compiler.reset()
    found = torch.compile(step, backend=backend)(x)
    torch.compiler.reset()
    assert_same(found, expected)
    assert max(graph_sizes, default=0) < 40


@KIND
def test_dropout_on_one_layer_warns_as_in_torch_nn_and_does_nothing(kind):
    with pytest.warns(UserWarning, match="dropout option adds dropout after all but"):
        module, _ = pair(kind, 3, 4, dropout=0.5)
    x = normal(5, 2, 3)
    assert_same(outputs(module, x), outputs(module.eval(), x), 0.0)


@KIND
def test_a_module_moves_to_another_precision(kind):
    module, reference = pair(kind, 3, 4, 2)
    x = normal(5, 2, 3).float()
    assert_same(outputs(module.float(), x), outputs(reference.float(), x), 1e-6)
    assert outputs(module, x)["y"].dtype == torch.float32


def test_the_public_names_are_the_modules():
    assert issubclass(bptt.RNN, torch.nn.RNN)
    assert issubclass(bptt.GRU, torch.nn.GRU)
    assert issubclass(bptt.LSTM, torch.nn.LSTM)
