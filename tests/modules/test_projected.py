"""LSTMs with proj_size: torch.nn's, and cut by the literal definition."""

import pytest
import torch
from torch.nn.utils.parametrizations import weight_norm

from bptt import LSTM, Truncation
from literal import assert_same, gradients, pair

SHAPES = [
    {"num_layers": 1},
    {"num_layers": 3, "bias": False},
    {"num_layers": 1, "bidirectional": True},
]


def normal(*shape):
    return torch.randn(*shape, dtype=torch.float64)


@pytest.fixture(autouse=True)
def _same_numbers_every_time():
    torch.manual_seed(0)


def pair_and_data(time=7, batch=3, truncation=None, **options):
    module, reference = pair("lstm", 3, 5, proj_size=2, **options)
    module.truncation = truncation
    count = options["num_layers"] * (1 + options.get("bidirectional", False))
    state = (normal(count, batch, 2), normal(count, batch, 5))
    return module, reference, normal(time, batch, 3), state


def all_gradients(module, x, state, errors, **call):
    leaves = dict(module.named_parameters()) | {"x": x.clone().requires_grad_()}
    leaves |= {n: s.clone().requires_grad_() for n, s in zip("hc", state, strict=True)}
    y, (h, c) = module(leaves["x"], (leaves["h"], leaves["c"]), **call)
    loss = sum((e * out).sum() for e, out in zip(errors, (y, h, c), strict=True))
    return gradients(loss, leaves)


@pytest.mark.parametrize("k1", [1, 2, 3, 7])
@pytest.mark.parametrize("options", SHAPES[:2], ids=str)
def test_any_truncation_is_its_literal_definition(options, k1):
    for k2 in (1, 2, 3, 5, 7):
        module, reference, x, state = pair_and_data(
            truncation=Truncation(k1, k2), **options
        )
        errors = (normal(7, 3, 2), normal(*state[0].shape), normal(*state[1].shape))
        mine = all_gradients(module, x, state, errors)
        expected = {name: torch.zeros_like(grad) for name, grad in mine.items()}
        for a in range(0, 7, k1):
            b, end = max(0, a + k1 - k2), min(a + k1, 7)
            if b >= end:
                continue
            with torch.no_grad():
                before = reference(x[:b], state)[1] if b else state
            error = torch.zeros_like(errors[0])
            error[max(a, b) : end] = errors[0][max(a, b) : end]
            at_end = [e if end == 7 else torch.zeros_like(e) for e in errors[1:]]
            part = all_gradients(reference, x[b:end], before, (error[b:end], *at_end))
            for name, grad in part.items():
                if name == "x":
                    expected["x"][b:end] += grad
                elif name not in ("h", "c") or b == 0:
                    expected[name] += grad
        assert_same(mine, expected)


@pytest.mark.parametrize("options", SHAPES, ids=str)
def test_lengths_and_resets_are_those_of_each_part(options):
    module, reference, x, state = pair_and_data(**options)
    lengths = torch.tensor([4, 7, 2])
    resets = torch.zeros(7, 3, dtype=torch.bool)
    resets[3, 1] = True
    y, (h, c) = module(x, state, lengths=lengths, resets=resets)
    for row, length in ((0, 4), (2, 2)):
        alone, ends = reference(
            x[:length, row : row + 1], tuple(p[:, row : row + 1] for p in state)
        )
        assert_same({"y": y[:length, row]}, {"y": alone[:, 0]})
        assert not y[length:, row].any()
        for part, end in zip((h, c), ends, strict=True):
            assert_same({"end": part[:, row]}, {"end": end[:, 0]})
    if not options.get("bidirectional"):
        first, _ = reference(x[:3, 1:2], tuple(p[:, 1:2] for p in state))
        second, _ = reference(x[3:, 1:2])
        assert_same({"y": y[:, 1]}, {"y": torch.cat((first, second))[:, 0]})


@pytest.mark.parametrize("truncation", [None, Truncation(2, 4)], ids=str)
def test_dropout_draws_the_masks_of_torch_nn(truncation):
    module, reference, x, state = pair_and_data(num_layers=3, dropout=0.4)
    module.truncation = truncation
    torch.manual_seed(1)
    expected = reference(x, state)[0]
    torch.manual_seed(1)
    lengths = torch.tensor([7, 7, 7])
    assert_same({"y": module(x, state, lengths=lengths)[0]}, {"y": expected})


def test_ids_are_one_hot_vectors():
    module, reference, _, state = pair_and_data(num_layers=2)
    ids = torch.randint(0, 3, (7, 3))
    one_hot = torch.nn.functional.one_hot(ids, 3).double()
    assert_same({"y": module(ids, state)[0]}, {"y": reference(one_hot, state)[0]})


def test_parametrized_weights_learn_under_a_truncation():
    module = LSTM(3, 5, proj_size=2, dtype=torch.float64, truncation=Truncation(2, 3))
    weight_norm(module, "weight_hr_l0")
    x = normal(6, 2, 3)
    originals = dict(module.named_parameters())
    mine = gradients(module(x)[0].square().sum(), originals)
    weight = module.weight_hr_l0.detach().clone().requires_grad_()
    plain = LSTM(3, 5, proj_size=2, dtype=torch.float64, truncation=Truncation(2, 3))
    values = {n: p for n, p in originals.items() if "parametrizations" not in n}
    plain.load_state_dict(values | {"weight_hr_l0": weight})
    expected = gradients(
        plain(x)[0].square().sum(), {"weight_hr_l0": plain.weight_hr_l0}
    )
    chained = gradients(
        (module.weight_hr_l0 * expected["weight_hr_l0"]).sum(), originals
    )
    names = [name for name in originals if "weight_hr" in name]
    assert any(bool(mine[name].any()) for name in names)
    assert_same({n: mine[n] for n in names}, {n: chained[n] for n in names})


def test_a_wrong_width_of_the_state_is_named():
    module, _, x, _ = pair_and_data(num_layers=1)
    state = normal(1, 3, 5), normal(1, 3, 5)
    with pytest.raises(RuntimeError, match=r"h_0 must have shape \(1, 3, 2\).*proj"):
        module(x, state, lengths=torch.tensor([7, 2, 3]))
