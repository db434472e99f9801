"""Ragged batches and resets: every row is what it is alone, cut into its parts."""

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from bptt import Truncation
from literal import KINDS, PARTS, assert_same, gradients, ours, pair, problem, unroll

KIND = pytest.mark.parametrize("kind", KINDS)
FULL = 10**6


def unroll_parts(kind, weights, x, state, masks, resets):
    """`unroll` of one row, with the state zeroed before each reset."""
    starts = [0, *[t for t in range(len(x)) if resets[t]]]
    outputs = []
    for start, stop in zip(starts, [*starts[1:], len(x)], strict=True):
        if start or resets[start]:
            state = tuple(torch.zeros_like(part) for part in state)
        if start == stop:
            continue
        part = [m[start:stop] for m in masks]
        y, state = unroll(kind, weights, x[start:stop], state, part)
        outputs.append(y)
    return torch.cat(outputs), state


def literal_row(kind, leaves, row, resets, k1, k2, dy, dfinal):
    """Gradients of one row's scores by the definition: run from each window's start."""
    time = len(dy)
    weights = {n: w for n, w in leaves.items() if n not in ("x", *PARTS[kind])}
    x = leaves["x"][:time, row : row + 1]
    initial = tuple(leaves[name][:, row : row + 1] for name in PARTS[kind])
    total = {name: torch.zeros_like(leaf) for name, leaf in leaves.items()}
    for a in range(0, time, k1):
        b, end = max(0, a + k1 - k2), min(a + k1, time)
        if b >= end:
            continue
        state = initial
        if b:
            _, state = unroll_parts(kind, weights, x[:b], state, [], resets)
            state = tuple(part.detach() for part in state)
        y, final = unroll_parts(kind, weights, x[b:end], state, [], resets[b:])
        counted = max(a, b)
        loss = (dy[counted:end] * y[counted - b :, 0]).sum()
        if end == time:
            for d, part in zip(dfinal, final, strict=True):
                loss = loss + (d * part[:, 0]).sum()
        found = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
        for name, grad in zip(leaves, found, strict=True):
            if grad is not None:
                total[name] += grad
    return total


def drawn(kind, seed, *, time, batch, layers, ragged, reset_rate):
    """A problem, and what its rows are like."""
    p = problem(kind, time=time, batch=batch, hidden=3, layers=layers, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, time + 1, (batch,), generator=generator)
    resets = torch.rand(time, batch, generator=generator) < reset_rate
    return p, (lengths if ragged else None), (resets if reset_rate else None)


def leaves_of(p):
    leaves = dict(p.weights) | {"x": p.x}
    leaves |= dict(zip(PARTS[p.kind], p.state, strict=True))
    return {n: leaf.detach().clone().requires_grad_() for n, leaf in leaves.items()}


def scored(p, y, final):
    loss = (p.dy * y).sum()
    for d, part in zip(p.dfinal, final, strict=True):
        loss = loss + (d * part).sum()
    return loss


def module_gradients(p, truncation, lengths, resets):
    """The module's own, named as the leaves are; its outputs beside them."""
    layers = p.layers
    module = ours(p.kind, p.x.shape[-1], 3, layers, truncation=truncation)
    module.load_state_dict(p.weights)
    leaves = leaves_of(p)
    leaves |= dict(module.named_parameters())
    state = tuple(leaves[name] for name in PARTS[p.kind])
    y, final = module(
        leaves["x"],
        state if len(state) > 1 else state[0],
        lengths=lengths,
        resets=resets,
    )
    final = final if isinstance(final, tuple) else (final,)
    return gradients(scored(p, y, final), leaves), y, final


rows = st.fixed_dictionaries(
    {
        "time": st.integers(1, 8),
        "batch": st.integers(1, 4),
        "layers": st.integers(1, 3),
        "ragged": st.booleans(),
        "reset_rate": st.sampled_from([0.0, 0.3, 1.0]),
    }
)
BOTH = {"time": 8, "batch": 4, "layers": 2, "ragged": True, "reset_rate": 0.3}


@KIND
@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    shape=rows, seed=st.integers(0, 999), k1=st.integers(1, 9), k2=st.integers(1, 10)
)
@example(shape=BOTH, seed=1, k1=1, k2=3)
@example(shape=BOTH, seed=2, k1=3, k2=5)
@example(shape=BOTH, seed=3, k1=3, k2=2)
@example(shape=BOTH, seed=4, k1=FULL, k2=FULL)
def test_any_truncation_of_ragged_rows_with_resets_is_that_of_each_row(
    kind, shape, seed, k1, k2
):
    p, lengths, resets = drawn(kind, seed, **shape)
    truncation = None if k1 == FULL else Truncation(k1, k2)
    mine, y, final = module_gradients(p, truncation, lengths, resets)
    leaves = leaves_of(p)
    expected = {name: torch.zeros_like(leaf) for name, leaf in leaves.items()}
    for row in range(shape["batch"]):
        length = shape["time"] if lengths is None else int(lengths[row])
        own = [False] * length if resets is None else resets[:length, row].tolist()
        dfinal = [d[:, row] for d in p.dfinal]
        found = literal_row(kind, leaves, row, own, k1, k2, p.dy[:length, row], dfinal)
        for name in expected:
            expected[name] += found[name]
        x = p.x[:length, row : row + 1]
        state = tuple(part[:, row : row + 1] for part in p.state)
        y_alone, final_alone = unroll_parts(kind, p.weights, x, state, [], own)
        assert_same({"y": y[:length, row]}, {"y": y_alone[:, 0]})
        assert not y[length:, row].any()
        ends = {str(i): part[:, row] for i, part in enumerate(final)}
        assert_same(ends, {str(i): part[:, 0] for i, part in enumerate(final_alone)})
    assert_same(mine, expected)


@KIND
@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("ragged", [True, False])
def test_both_directions_of_rows_with_resets_are_those_of_their_parts(
    kind, ragged, layers
):
    module, reference = pair(kind, 3, 4, layers, bidirectional=True)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(9, 3, 3, generator=generator, dtype=torch.float64)
    lengths = torch.tensor([4, 9, 6] if ragged else [9, 9, 9])
    resets = torch.zeros(9, 3, dtype=torch.bool)
    resets[[3, 2, 5], [0, 1, 1]] = True
    resets[7, 0] = True  # past the row's end, where it is ragged
    parts = {0: [(0, 3), (3, 4)], 1: [(0, 2), (2, 5), (5, 9)], 2: [(0, 6)]}
    if not ragged:
        parts |= {0: [(0, 3), (3, 7), (7, 9)], 2: [(0, 9)]}
    x.requires_grad_()
    y, final = module(x, lengths=lengths if ragged else None, resets=resets)
    weights = torch.randn(y.shape, generator=generator, dtype=torch.float64)
    mine = gradients((weights * y).sum(), dict(module.named_parameters()) | {"x": x})
    expected_y = torch.zeros_like(y)
    h_n = torch.zeros_like(final[0] if kind == "lstm" else final)
    for row, segments in parts.items():
        for start, stop in segments:
            part, end = reference(x[start:stop, row])
            expected_y = expected_y.index_put(
                (torch.arange(start, stop), torch.tensor(row)), part
            )
            h = (end[0] if kind == "lstm" else end).view(layers, 2, -1)
            if stop == lengths[row]:
                h_n.view(layers, 2, 3, -1)[:, 0, row] = h[:, 0]
            if start == 0:
                h_n.view(layers, 2, 3, -1)[:, 1, row] = h[:, 1]
    leaves = dict(reference.named_parameters()) | {"x": x}
    assert_same({"y": y}, {"y": expected_y})
    assert_same({"h_n": final[0] if kind == "lstm" else final}, {"h_n": h_n})
    assert_same(mine, gradients((weights * expected_y).sum(), leaves))


@KIND
@pytest.mark.parametrize("sort", [False, True])
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_layers": 3, "dropout": 0.4},
        {"num_layers": 2, "dropout": 0.4, "bidirectional": True},
    ],
    ids=str,
)
def test_packed_sequences_are_those_of_torch_nn(kind, sort, batch_first, options):
    module, reference = pair(kind, 3, 4, batch_first=batch_first, **options)
    lengths = torch.tensor([3, 7, 1, 5])
    lengths = lengths.sort(descending=True).values if sort else lengths
    generator = torch.Generator().manual_seed(0)
    shape = (4, 7, 3) if batch_first else (7, 4, 3)
    x = torch.randn(shape, generator=generator, dtype=torch.float64)
    count = options.get("num_layers", 1) * (1 + options.get("bidirectional", False))
    found = []
    for m in (module, reference):
        leaves = dict(m.named_parameters()) | {"x": x.clone().requires_grad_()}
        for name in PARTS[kind]:
            leaves[name] = torch.linspace(-1, 1, count * 16).double().view(count, 4, 4)
            leaves[name].requires_grad_()
        state = tuple(leaves[name] for name in PARTS[kind])
        packed = pack_padded_sequence(
            leaves["x"], lengths, enforce_sorted=sort, batch_first=batch_first
        )
        torch.manual_seed(3)
        y, final = m(packed, state if len(state) > 1 else state[0])
        assert isinstance(y, PackedSequence)
        padded, ended = pad_packed_sequence(y, batch_first=batch_first)
        assert torch.equal(ended, lengths)
        ends = final if isinstance(final, tuple) else (final,)
        loss = padded.sin().sum() + sum((part**2).sum() for part in ends)
        out = {"y": padded} | {f"final {i}": part for i, part in enumerate(ends)}
        found.append(out | gradients(loss, leaves))
    assert_same(*found)


@KIND
def test_lengths_with_the_batch_first_are_the_same(kind):
    module, _ = pair(kind, 3, 4, 2)
    twin = ours(kind, 3, 4, 2, batch_first=True)
    twin.load_state_dict(module.state_dict())
    x = torch.linspace(-1, 1, 5 * 3 * 3).double().view(5, 3, 3)
    lengths = torch.tensor([2, 5, 4])
    resets = torch.tensor([[0, 1, 0, 0, 1], [0, 0, 1, 0, 0], [1, 0, 0, 0, 1]]).bool()
    y, final = module(x, lengths=lengths, resets=resets.T)
    y_first, final_first = twin(x.transpose(0, 1), lengths=lengths, resets=resets)
    assert_same({"y": y}, {"y": y_first.transpose(0, 1)}, 0.0)
    ends = [f if kind == "lstm" else (f,) for f in (final, final_first)]
    assert_same(*(dict(enumerate(end)) for end in ends), 0.0)


@KIND
def test_what_lies_in_the_padding_is_not_read(kind):
    module, _ = pair(kind, 3, 4, 2)
    x = torch.linspace(-1, 1, 5 * 3 * 3).double().view(5, 3, 3)
    lengths = torch.tensor([2, 5, 4])
    found = []
    for padding in (0.0, float("nan"), float("inf")):
        given = x.clone()
        given[2:, 0] = given[4:, 2] = padding
        given.requires_grad_()
        y, _ = module(given, lengths=lengths)
        leaves = dict(module.named_parameters()) | {"x": given}
        found.append({"y": y} | gradients((y**2).sum(), leaves))
    assert_same(found[1], found[0], 0.0)
    assert_same(found[2], found[0], 0.0)


@KIND
def test_ids_in_the_padding_may_be_any(kind):
    module, _ = pair(kind, 3, 4)
    ids = torch.tensor([[0, 1], [2, 1], [-100, 0]])
    y, _ = module(ids, lengths=torch.tensor([2, 3]))
    expected, _ = module(torch.eye(3).double()[ids.clamp(0)])
    assert_same({"y": y[:2]}, {"y": expected[:2]})
    with pytest.raises(ValueError, match=r"ids in input.*got -100 to 2"):
        module(ids)


@KIND
def test_resets_of_one_sequence_without_a_batch_axis(kind):
    module, _ = pair(kind, 3, 4)
    x = torch.linspace(-1, 1, 15).double().view(5, 3)
    y, _ = module(x, resets=torch.tensor([0, 0, 1, 0, 0]).bool())
    assert_same({"y": y}, {"y": torch.cat((module(x[:2])[0], module(x[2:])[0]))})


@KIND
def test_a_nan_before_a_reset_stays_before_it(kind):
    module, _ = pair(kind, 3, 4)
    x = torch.linspace(-1, 1, 15).double().view(5, 1, 3)
    x[1] = float("nan")
    resets = torch.tensor([0, 0, 1, 0, 0]).bool().view(5, 1)
    y, final = module(x, resets=resets)
    alone, end = module(x[2:])
    assert y[1].isnan().all()
    assert_same({"y": y[2:]}, {"y": alone})
    ends = [f if kind == "lstm" else (f,) for f in (final, end)]
    assert_same(*(dict(enumerate(end)) for end in ends))


@KIND
def test_lengths_and_resets_that_do_not_fit_are_refused_by_name(kind):
    module, x = ours(kind, 3, 4), torch.zeros(5, 2, 3).double()
    with pytest.raises(TypeError, match=r"lengths.*got dtype torch.float32"):
        module(x, lengths=torch.tensor([5.0, 3.0]))
    with pytest.raises(ValueError, match=r"lengths must have shape \(2,\).*\(3,\)"):
        module(x, lengths=torch.tensor([5, 3, 1]))
    with pytest.raises(ValueError, match=r"from 1 to 5.*row 1 has 0: leave empty"):
        module(x, lengths=torch.tensor([5, 0]))
    with pytest.raises(ValueError, match=r"from 1 to 5.*row 0 has 6"):
        module(x, lengths=torch.tensor([6, 2]))
    with pytest.raises(ValueError, match=r"lengths are for a batch.*\(5, 3\)"):
        module(x[:, 0], lengths=torch.tensor([5]))
    with pytest.raises(TypeError, match=r"resets must be a bool.*int64.*resets\.bool"):
        module(x, resets=torch.zeros(5, 2, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"resets must have shape \(5, 2\).*\(2, 5\)"):
        module(x, resets=torch.zeros(2, 5, dtype=torch.bool))
    packed = pack_padded_sequence(x, torch.tensor([5, 3]))
    with pytest.raises(ValueError, match="PackedSequence has its own lengths"):
        module(packed, lengths=torch.tensor([5, 3]))


@KIND
def test_resets_of_a_packed_sequence_are_in_the_order_before_packing(kind):
    module, _ = pair(kind, 3, 4, 2)
    x = torch.linspace(-1, 1, 5 * 3 * 3).double().view(5, 3, 3)
    lengths = torch.tensor([2, 5, 4])
    resets = torch.tensor([[0, 1, 0, 0, 1], [0, 0, 1, 0, 0], [1, 0, 0, 0, 1]]).bool().T
    packed = pack_padded_sequence(x, lengths, enforce_sorted=False)
    y, _ = pad_packed_sequence(module(packed, resets=resets)[0])
    assert_same({"y": y}, {"y": module(x, lengths=lengths, resets=resets)[0]}, 0.0)
