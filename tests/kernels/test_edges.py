"""nan, inf, saturation, kinks, empty batches, one step, thousands of steps."""

import gc
import multiprocessing
import os
from dataclasses import replace

import pytest
import torch

import bptt
from kernels import cases
from kernels.cases import BEST, KIND, NATIVE, Case, Data, assert_bits, assert_near, run
from kernels.guards import guarded
from kernels.law import assert_as_exact_as_torch, steady
from literal import GATES, KINDS, ours, outputs, theirs

pytestmark = NATIVE

nan, inf = torch.nan, torch.inf


@pytest.mark.parametrize("hidden", [1, 21])
@pytest.mark.parametrize("truncation", [None, bptt.Truncation(2, 3)], ids=str)
@KIND
def test_a_nan_stays_in_its_row(kind, truncation, hidden):
    """In x, a state or an error: all that other rows get stays to the last bit."""
    case = Case(kind, hidden, batch=6, time=5, inputs=7, layers=2)
    module, data = replace(case, truncation=truncation).modules()[0], case.data()
    clean = run(module, data)
    for where in ("x", "state", "error"):
        for row in (0, 5):
            ill = case.data()
            target = {"x": ill.x, "state": ill.state[-1], "error": ill.errors["y"]}
            target[where][0, row, -1] = nan
            found = run(module, ill)
            others = [at for at in range(6) if at != row]
            if where != "error":
                assert found["y"][-1, row].isnan().all()
            assert_bits(
                *(
                    {n: f[n][:, others] for n in f if not n.startswith(("dw", "db"))}
                    for f in (found, clean)
                )
            )


@pytest.mark.parametrize("value", [inf, -inf, nan, 3e38, -3e38, 1e-42])
@KIND
def test_extreme_inputs_give_what_torch_nn_gives(kind, value):
    """Compared with its float64, where no product of these overflows on the way."""
    case = Case(kind, 19, batch=4, time=3, inputs=6)
    (module, reference), data = case.modules(), case.data()
    data.x[1, 2, 3] = value
    found, expected = (
        outputs(module, data.x),
        outputs(reference.double(), data.x.double()),
    )
    if abs(value) > 1e30 and kind == "relu":  # there float32 has no numbers to say it
        rows = {n: [at for at in range(4) if at != 2] for n in found}
        assert not found["y"][1, 2].detach().abs().lt(1e30).all()
        found = {n: t[:, rows[n]] for n, t in found.items()}
        expected = {n: t[:, rows[n]] for n, t in expected.items()}
    for name, given in found.items():
        assert torch.equal(given.isnan(), expected[name].isnan()), name
        finite = [t[~expected[name].isnan()] for t in (given, expected[name])]
        assert_near({name: finite[0]}, {name: finite[1]}, 4e-6)


@KIND
def test_relu_and_tanh_and_gates_pass_inf_and_nan_on(kind):
    """Exactly as torch.nn, unit by unit: one input, so that nothing is added up."""
    module, reference = ours(kind, 1, 9, dtype=torch.float32), theirs(kind, 1, 9)
    reference.load_state_dict(module.state_dict())
    x = torch.tensor([inf, -inf, nan, 0.0, -0.0, 1.0]).view(1, 6, 1)
    found, expected = outputs(module, x), outputs(reference, x.double())
    for name in found:
        torch.testing.assert_close(
            found[name].double(), expected[name], equal_nan=True, rtol=1e-6, atol=1e-6
        )


@pytest.mark.parametrize("scale", [1e4, 1e20, 1e30])
@KIND
def test_saturating_inputs_give_finite_outputs_and_gradients(kind, scale):
    if kind == "relu":
        scale = min(scale, 1e4)
    case = Case(kind, 19, batch=4, time=6, inputs=7)
    module, data = case.modules()[0], case.data()
    found = run(module, replace(data, x=data.x * scale))
    assert not [name for name, t in found.items() if not t.isfinite().all()]
    exactly = run(case.modules()[0].double(), replace(data, x=data.x * scale).double())
    outside = {n: t for n, t in found.items() if not n.startswith("d")}
    assert_near(outside, {n: exactly[n] for n in outside}, 4e-6)


def test_relu_at_its_kink_has_slope_zero():
    module = bptt.RNN(2, 21, nonlinearity="relu")
    with torch.no_grad():
        for weight in module.parameters():
            weight.zero_()
        module.weight_ih_l0.copy_(torch.tensor([[1.0, -1.0]]).expand(21, 2))
    x = torch.tensor([[3.0, 3.0], [0.0, -0.0], [2.0, 3.0], [3.0, 2.0]])
    found = run(
        module,
        Data(x.view(4, 1, 2), (), {n: torch.ones(t, 1, 21) for n, t in _ONES.items()}),
    )
    assert found["y"].flatten(1).amax(1).tolist() == [0, 0, 0, 1]
    assert found["dx"].squeeze(1).tolist() == [[0, 0]] * 3 + [[42, -42]]
    assert found["dbias_hh_l0"].tolist() == [2] * 21  # y and h_n, at the last step


_ONES = {"y": 4, "h_n": 1}


@pytest.mark.parametrize("truncation", [None, bptt.Truncation(2, 3)], ids=str)
@pytest.mark.parametrize("ids", [False, True])
@KIND
def test_an_empty_batch_gives_empty_outputs_and_zero_gradients(kind, ids, truncation):
    case = Case(kind, 9, batch=0, time=4, inputs=5, layers=2, ids=ids)
    module = replace(case, truncation=truncation).modules()[0]
    found = run(module, case.data())
    assert found["y"].shape == (4, 0, 9)
    assert found["h_n"].shape == found["dh0"].shape == (2, 0, 9)
    assert ids or found["dx"].shape == (4, 0, 5)
    assert found["dweight_hh_l1"].shape == (GATES[kind] * 9, 9)
    assert not any(t.count_nonzero() for t in found.values())
    with torch.no_grad():
        assert outputs(module, case.data().x)["y"].shape == (4, 0, 9)


EXTREMES = {
    "one of everything": {"hidden": 1, "batch": 1, "time": 1, "inputs": 1},
    "one step": {"hidden": 37, "batch": 11, "time": 1, "inputs": 13},
    "a long sequence": {"hidden": 4, "batch": 2, "time": 3000, "inputs": 3, "seed": 1},
    "a large batch": {"hidden": 8, "batch": 300, "time": 4, "inputs": 3},
    "a wide input": {"hidden": 3, "batch": 2, "time": 3, "inputs": 2000},
    "many layers": {
        "hidden": 5,
        "batch": 2,
        "time": 3,
        "inputs": 4,
        "layers": 8,
    },
}


@pytest.mark.parametrize("shape", EXTREMES.values(), ids=EXTREMES)
@KIND
def test_extreme_shapes(kind, shape):
    assert_as_exact_as_torch(Case(kind, **shape))


@pytest.mark.parametrize("inputs", [40, 3000])  # the second, of few tokens for so many
@KIND
def test_every_id_the_same_and_some_never(kind, inputs):
    """Rows of dU that many steps add to, and rows that none does."""
    case = steady(Case(kind, 13, batch=9, time=30, inputs=inputs, ids=True))
    data = case.data()
    data.x.fill_(39)
    data.x[3, 4] = 0
    module = case.modules()[0]
    with cases.native_only():
        found = run(module, data)
    assert_near(found, run(case.modules()[0].double(), data.double()), 4e-6)
    assert not found["dweight_ih_l0"][:, 1:39].any()


@KIND
def test_gradients_share_no_memory(kind):
    """Clipping works in place on each of them, and b_ih and b_hh often get the same."""
    case = Case(kind, 9, batch=3, time=4, inputs=5, layers=2)
    module, data = case.modules()[0], case.data()
    expected = run(module, data)
    for name in [n for n in expected if n.startswith("d")]:
        found = run(module, data)
        found.pop(name).fill_(nan)
        assert_bits(found, {n: expected[n] for n in found})
    sum(t.sum() for t in outputs(module, data.x, *data.state).values()).backward()
    grads = {n: p.grad.clone() for n, p in module.named_parameters()}
    for weight in module.parameters():
        weight.grad *= 2
    assert_bits(
        {n: p.grad for n, p in module.named_parameters()},
        {n: 2 * grad for n, grad in grads.items()},
    )


@KIND
def test_memory_that_nobody_wrote_is_not_read(kind):
    """Under deterministic algorithms torch fills all that it hands out with nan."""
    for truncation in (None, bptt.Truncation(2, 3), bptt.Truncation(3, 2)):
        case = Case(kind, 19, 3, 7, inputs=5, layers=2, truncation=truncation)
        module, data = case.modules()[0], case.data()
        expected = run(module, data)
        torch.use_deterministic_algorithms(True)
        try:
            found = run(module, data)
            with torch.no_grad():
                forward = outputs(module, data.x, *data.state)
        finally:
            torch.use_deterministic_algorithms(False)
        assert_bits(found, expected)
        assert_near(forward, {name: expected[name] for name in forward}, 2e-6)


def _run_at_the_end_of_memory():
    for at in range(24):
        truncation = (None, bptt.Truncation(2, 3))[at // 4 % 2]
        case = Case(
            KINDS[at % 4],
            hidden=(1, 7, 8, 17, 33, 47)[at % 6],
            batch=(1, 3, 8, 13)[at // 2 % 4],
            time=4,
            inputs=(3, 21)[at % 2],
            layers=1 + at % 2,
            ids=at % 3 == 0,
            truncation=truncation,
        )
        module, data = case.modules()[0], case.data()
        expected = run(module, data)
        for at_end in (True, False):
            for weight in module.parameters():
                weight.data = guarded(weight, at_end=at_end)
            data = Data(
                guarded(data.x, at_end=at_end),
                tuple(guarded(part, at_end=at_end) for part in data.state),
                {n: guarded(e, at_end=at_end) for n, e in data.errors.items()},
            )
            assert_bits(run(module, data), expected)
            with torch.no_grad():
                outputs(module, data.x, *data.state)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_nothing_is_touched_beyond_the_tensors():
    """Untouchable pages stand before or after each; a fault would end the child."""
    child = multiprocessing.get_context("fork").Process(
        target=_run_at_the_end_of_memory
    )
    child.start()
    child.join(timeout=60)
    if child.is_alive():
        child.kill()
        child.join()
    assert child.exitcode == 0  # -11 is a segmentation fault


@KIND
def test_numbers_below_the_normal_ones_still_count_after_a_call(kind):
    """A kernel may flush them for speed, and must then undo that for its caller."""
    case = Case(kind, 32, batch=4, time=4, inputs=8)
    run(case.modules()[0], case.data())
    tiny = torch.full((64,), 1e-40)
    assert (tiny + tiny > 1.5e-40).all()
    assert float(tiny[0]) / 2 > 0


@BEST
def test_shapes_that_vary_do_not_pile_up():
    """Resident memory over hundreds of shapes (PyTorch's caches once grew so)."""
    generator = torch.Generator().manual_seed(0)

    def some(count):
        for _ in range(count):
            sizes = torch.randint(1, 33, (4,), generator=generator).tolist()
            hidden, batch, time, inputs = sizes
            module = bptt.LSTM(inputs, hidden)
            y, _ = module(torch.randn(1 + time % 6, batch, inputs))
            y.sum().backward()
        gc.collect()
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * 4096

    try:
        before = some(40)
    except FileNotFoundError:
        pytest.skip("the system has no /proc")
    assert some(100) - before < 24 * 2**20
