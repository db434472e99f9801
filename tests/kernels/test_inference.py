"""Forward alone: the same numbers, nothing kept, nothing of the caller's changed."""

import copy
import gc
import io
import pickle
from dataclasses import replace

import pytest
import torch

import bptt
from kernels import cases
from kernels.cases import BEST, KIND, NATIVE, Case, assert_bits, assert_near, bits, run
from kernels.layouts import laid_out
from literal import ours, outputs

pytestmark = NATIVE

SHAPES = [
    {"hidden": 1, "batch": 1, "time": 1, "inputs": 1},
    {"hidden": 17, "batch": 1, "time": 9, "inputs": 5, "layers": 2},
    {"hidden": 33, "batch": 7, "time": 5, "inputs": 12, "layers": 3},
    {"hidden": 20, "batch": 3, "time": 6, "inputs": 4, "bidirectional": True},
    {"hidden": 64, "batch": 32, "time": 20, "inputs": 64},
    {"hidden": 9, "batch": None, "time": 6, "inputs": 30, "ids": True},
]
SHAPE = pytest.mark.parametrize("shape", SHAPES, ids=lambda s: str(s["hidden"]))
WITHOUT = pytest.mark.parametrize(
    "without", [torch.no_grad, torch.inference_mode], ids=lambda w: w.__name__
)


@SHAPE
@WITHOUT
@KIND
def test_the_outputs_are_those_of_training(kind, shape, without):
    case = Case(kind, **shape)
    module, data = case.modules()[0], case.data()
    with cases.native_only():
        expected = outputs(module, data.x, *data.state)
        with without():
            found = outputs(module, data.x, *data.state)
    assert all(t.requires_grad for t in expected.values())
    assert not any(t.requires_grad or t.grad_fn for t in found.values())
    assert_near(found, expected, 2e-6)


@KIND
def test_frozen_weights_mean_inference_and_leave_no_graph(kind):
    case = Case(kind, 21, batch=4, time=6, inputs=5, layers=2)
    module, data = case.modules()[0], case.data()
    expected = outputs(module, data.x, *data.state)
    module.requires_grad_(False)
    with cases.native_only():
        found = outputs(module, data.x, *data.state)
    assert not any(t.requires_grad for t in found.values())
    assert_near(found, expected, 2e-6)


@BEST
@KIND
def test_only_the_outputs_stay_in_memory(kind):
    """And not, because they are views of it, the tape that they were made with."""
    resident = _resident_bytes()
    module = ours(kind, 2, 128, dtype=torch.float32)
    x = torch.randn(500, 16, 2)
    with torch.no_grad():
        alive = [module(x)[0] for _ in range(4)]
    per_call = resident() / len(alive) / alive[0].nbytes
    assert per_call < 2, f"{per_call:.1f} times y for every call"


@BEST
@KIND
def test_the_tape_dies_in_the_backward_pass_though_the_outputs_live(kind):
    resident = _resident_bytes()
    module = ours(kind, 2, 128, dtype=torch.float32)
    x = torch.randn(200, 16, 2)
    alive = []
    for _ in range(10):
        y, _ = module(x)
        y.sum().backward()
        alive.append(y)
    # What one window needs at a time is about 14 times y for an LSTM.
    per_call = resident() / len(alive) / y.nbytes
    assert per_call < 3, f"{per_call:.1f} times y for every call"


def _resident_bytes():
    """A function that says how much more memory is resident than now."""
    try:
        with open("/proc/self/statm") as file:
            before = int(file.read().split()[1])
    except FileNotFoundError:
        pytest.skip("the system has no /proc")

    def grown():
        with open("/proc/self/statm") as file:
            return (int(file.read().split()[1]) - before) * 4096

    return grown


@KIND
def test_step_by_step_is_the_whole_sequence(kind):
    """As `bptt generate` runs; with floats and with ids."""
    for batch, ids in [(1, True), (1, False), (5, False), (None, True)]:
        case = Case(kind, 30, batch, 10, inputs=7, layers=2, ids=ids)
        module, data = case.modules()[0], case.data()
        with torch.no_grad(), cases.native_only():
            whole = outputs(module, data.x, *data.state)
            state, ys = data.state, []
            for x in data.x.split(1):
                step = outputs(module, x, *state)
                state = tuple(step[n] for n in ("h_n", "c_n") if n in step)
                ys.append(step["y"])
        names = [name for name in whole if name != "y"]
        found = {"y": torch.cat(ys)} | dict(zip(names, state, strict=True))
        assert_near(found, whole, 5e-6)


@pytest.mark.parametrize("layout", ["plain", "sliced", "offset"])
@KIND
def test_what_the_caller_gave_is_not_modified(kind, layout):
    """Inputs, states, errors and weights, and the memory between and around them."""
    case = Case(kind, 19, batch=3, time=7, inputs=5, layers=2)
    module, data = case.modules()[0], case.data()
    if layout != "plain":
        data = cases.Data(
            laid_out(data.x, layout),
            tuple(laid_out(part, layout) for part in data.state),
            {name: laid_out(error, layout) for name, error in data.errors.items()},
        )
        for weight in module.parameters():
            weight.data = laid_out(weight, layout)
    given = [data.x, *data.state, *data.errors.values()]
    given += [weight.detach() for weight in module.parameters()]

    def everything():
        return [bits(t.new_empty(0).set_(t.untyped_storage())) for t in given]

    before = everything()
    for truncation in (None, bptt.Truncation(2, 3), bptt.Truncation.chunks(3)):
        module.truncation = truncation
        run(module, data)
    with torch.no_grad():
        outputs(module, data.x, *data.state)
    assert all(map(torch.equal, everything(), before))


@WITHOUT
@KIND
def test_the_outputs_share_no_memory(kind, without):
    case = Case(kind, 10, batch=3, time=4, inputs=5, layers=2)
    module, data = case.modules()[0], case.data()
    with without():
        expected = outputs(module, data.x, *data.state)
        for name in expected:
            found = outputs(module, data.x, *data.state)
            found.pop(name).fill_(torch.nan)
            assert_bits(found, {n: expected[n] for n in found})
            assert not any(part.isnan().any() for part in data.state)


@pytest.mark.parametrize(("batch", "time"), [(6, 8), (64, 64)])
@KIND
def test_results_outlive_later_calls(kind, batch, time):
    """No memory is used again while the caller holds what is in it."""
    case = Case(kind, 72, batch, time, inputs=5)
    module, data = case.modules()[0], case.data()
    with torch.no_grad():
        results = [outputs(module, data.x, *data.state)]
    results.append(run(module, data))
    before = [{name: t.clone() for name, t in result.items()} for result in results]
    for seed in range(3):
        other = replace(case, seed=seed).data()
        run(module, other)
        with torch.no_grad():
            outputs(module, other.x)
    for result, once in zip(results, before, strict=True):
        assert_bits(result, once)


@WITHOUT
def test_outputs_are_ordinary_tensors(without):
    """Whatever owns their memory: numpy reads it, files and processes share it."""
    case = Case("lstm", 72, batch=64, time=64, inputs=5)  # so large that it may be ours
    module, data = case.modules()[0], case.data()
    expected = outputs(module, data.x)["y"].detach()
    with without():
        y = outputs(module, data.x)["y"]
    assert y.numpy().tobytes() == expected.numpy().tobytes()
    file = io.BytesIO()
    torch.save(y, file)
    file.seek(0)
    assert_bits({"y": torch.load(file)}, {"y": expected})
    assert_bits({"y": pickle.loads(pickle.dumps(y))}, {"y": expected})
    shared = y.clone().share_memory_()
    y.share_memory_()
    assert_bits({"y": y, "clone": shared}, {"y": expected, "clone": expected})
    part = y[1:, 1]
    del y
    gc.collect()
    assert_bits({"part": part}, {"part": expected[1:, 1]})


def wrong_calls(module):
    """Calls that none of the modules takes, whatever the kind."""
    x, h = torch.ones(3, 2, 5), torch.zeros(1, 2, 9)
    both = (h, h) if isinstance(module, torch.nn.LSTM) else h
    one = (h,) if not isinstance(module, torch.nn.LSTM) else h
    ids = torch.tensor([[0, 1], [2, 5]])
    return [
        *((x, hx) for hx in (5, "h", {}, [], one, (h, h, h), (h, None))),
        *((x, wrong) for wrong in ([both], (h[:, :1], h[:, :1]), h[0])),
        *((t, both) for t in (x[..., :4], x[:0], x.double(), x.int(), x[None])),
        *((t, both) for t in (ids, ids - 1, ids[:, :1], ids > 0, ids.float())),
        *((t, both) for t in (5, [1, 2], None)),
    ]


@BEST
@KIND
def test_wrong_arguments_are_refused_as_in_training(kind):
    """With the same words, though what checks them may be left out on a short way."""
    module = ours(kind, 5, 9, dtype=torch.float32)
    for call in wrong_calls(module):
        with pytest.raises(Exception) as training:
            module(*call)
        with pytest.raises(type(training.value)) as inference, torch.no_grad():
            module(*call)
        assert str(inference.value) == str(training.value)


CHANGES = {
    "in place": lambda m: m.weight_hh_l0.mul_(0.5),
    "through .data": lambda m: m.weight_hh_l0.data.mul_(0.5),
    "by numpy": lambda m: m.weight_hh_l0.detach().numpy().__imul__(0.5),
    "a new parameter": lambda m: setattr(
        m, "weight_hh_l0", torch.nn.Parameter(m.weight_hh_l0 * 0.5)
    ),
    "other memory": lambda m: setattr(
        m.weight_hh_l0, "data", m.weight_hh_l0.data * 0.5
    ),
    "a state dict": lambda m: m.load_state_dict(
        m.state_dict() | {"weight_hh_l0": m.weight_hh_l0 * 0.5}
    ),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@KIND
def test_weights_are_read_anew_at_every_call(kind, change):
    """However they were changed: packed weights must not outlive them."""
    case = Case(kind, 40, batch=4, time=3, inputs=5)
    module, data = case.modules()[0], case.data()
    fresh = copy.deepcopy(module)
    with torch.no_grad():
        for m in (module, fresh):
            before = outputs(m, data.x, *data.state) if m is module else None
            change(m)
            found = outputs(m, data.x, *data.state)
            if before is not None:
                first, stale = found, before
    assert_bits(first, found)
    assert not torch.equal(bits(first["y"]), bits(stale["y"]))
