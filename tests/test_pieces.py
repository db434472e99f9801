"""Errors cut at random: one draw is its literal unroll, and the mean is full BPTT."""

import pytest
import torch
from torch.nn.utils.rnn import pack_padded_sequence

import bptt
from bptt import RandomTruncation, Truncation
from literal import KINDS, PARTS, assert_same, gradients, pair
from literal_cells import floating, gradients_of, mapped
from literal_pieces import (
    BATCH,
    CUTS,
    LENGTHS,
    TIME,
    both,
    drawn,
    gate,
    literal_draw,
    literal_loss,
    normal,
)


def some_resets():
    resets = torch.zeros(TIME, BATCH, dtype=torch.bool)
    resets[4, 1] = resets[3, 1] = resets[2, 0] = resets[5, 3] = True
    return resets


CASES = {
    "dense": {},
    "ragged": {"lengths": LENGTHS},
    "resets": {"resets": some_resets()},
    "both": {"lengths": LENGTHS, "resets": some_resets()},
}


def of_stack(kind, layers, cut, seed=0, dtype=torch.float64, **options):
    """A module's gradients, and those of its literal unroll."""
    module, reference = pair(kind, 3, 4, layers, truncation=cut)
    x, dy = normal(TIME, BATCH, 3), normal(TIME, BATCH, 4, seed=2)
    h0 = [normal(layers, BATCH, 4, seed=at + 3) for at in range(len(PARTS[kind]))]
    dh = [normal(layers, BATCH, 4, seed=at + 5) for at in range(len(PARTS[kind]))]

    def hx(parts):
        return tuple(parts) if kind == "lstm" else parts[0]

    def leaves(module, dtype):
        given = {"x": x, **dict(zip(PARTS[kind], h0, strict=True))}
        given = {n: t.to(dtype).requires_grad_() for n, t in given.items()}
        return given | dict(module.named_parameters())

    mine = leaves(module.to(dtype), dtype)
    torch.manual_seed(seed)
    y, final = module(mine["x"], hx([mine[n] for n in PARTS[kind]]), **options)
    loss = (dy.to(dtype) * y).sum()
    for d, part in zip(dh, final if kind == "lstm" else (final,), strict=True):
        loss = loss + (d.to(dtype) * part).sum()

    theirs = leaves(reference, torch.float64)

    def step(x_t, s):
        y, s = reference(x_t.unsqueeze(0), s)
        return y[0], s

    literal = literal_loss(
        step,
        theirs["x"],
        hx([theirs[n] for n in PARTS[kind]]),
        dy,
        dh,
        cut,
        drawn(cut, seed),
        options.get("lengths"),
        options.get("resets"),
        axis=1,
    )
    return gradients(loss, mine), gradients(literal, theirs)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_a_draw_is_its_literal_unroll(kind, layers, case):
    for cut in CUTS:
        assert_same(*of_stack(kind, layers, cut, **CASES[case]))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("kind", KINDS)
def test_so_it_is_in_the_native_core(kind, case):
    options = CASES[case]
    for cut in CUTS:
        found = of_stack(kind, 2, cut, dtype=torch.float32, **options)
        assert_same(*found, tolerance=2e-5)


class Counting(torch.nn.Module):
    """Its state has an int; what it gives is a part of its state."""

    def __init__(self):
        super().__init__()
        self.inner = torch.nn.Linear(7, 4, dtype=torch.float64)

    def forward(self, x, state):
        h, (count, slow) = state
        h = torch.tanh(self.inner(torch.cat((x, h), -1)) + slow / (1 + count))
        return h, (h, (count + 1, 0.7 * slow + h))


def own_cells():
    peephole = bptt.cells.PeepholeLSTM(3, 4).double()
    gru = torch.nn.GRUCell(3, 4, dtype=torch.float64)
    return {
        "any": (
            Counting(),
            (
                normal(BATCH, 4, seed=6),
                (torch.zeros(BATCH, 1, dtype=torch.int64), normal(BATCH, 4, seed=7)),
            ),
        ),
        "with its derivative": (
            peephole,
            (normal(BATCH, 4, seed=6), normal(BATCH, 4, seed=7)),
        ),
        "torch.nn's": (gru, normal(BATCH, 4, seed=6)),
    }


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", ["any", "with its derivative", "torch.nn's"])
def test_cells_of_ones_own(name, case):
    torch.manual_seed(1)
    cell, state = own_cells()[name]
    x, dy, options = normal(TIME, BATCH, 3), normal(TIME, BATCH, 4, seed=2), CASES[case]
    dfinal = [normal(BATCH, 4, seed=8 + at) for at in range(len(floating(state)))]
    x.requires_grad_()
    state = mapped(lambda s: s.requires_grad_(s.is_floating_point()), state)
    wanted = {"x": x} | dict(cell.named_parameters())
    wanted |= {f"s{at}": s for at, s in enumerate(floating(state))}

    def step(x_t, s):
        found = cell(x_t, s)
        return (found, found) if isinstance(found, torch.Tensor) else found

    for cut in CUTS:
        torch.manual_seed(0)
        y, final = bptt.Recurrent(cell, truncation=cut)(x, state, **options)
        loss = (dy * y).sum()
        for d, leaf in zip(dfinal, floating(final), strict=True):
            loss = loss + (d * leaf).sum()
        literal = literal_loss(
            step,
            x,
            state,
            dy,
            dfinal,
            cut,
            drawn(cut, 0),
            options.get("lengths"),
            options.get("resets"),
            axis=0,
        )
        assert_same(gradients_of(loss, wanted), gradients_of(literal, wanted))


@pytest.mark.parametrize("kind", ["tanh", "gru", "lstm"])
def test_probability_0_is_full_and_1_is_chunks_bit_for_bit(kind):
    x = normal(TIME, BATCH, 3).requires_grad_()
    module, _ = pair(kind, 3, 4, 2)
    cell = bptt.Recurrent(torch.nn.LSTMCell(3, 4, dtype=torch.float64))
    before = torch.get_rng_state()
    for m in (module, cell):
        for policy, known in ((0, None), (1, Truncation.chunks(4))):
            mine, y = both(m, RandomTruncation(4, policy), x)
            theirs, y_theirs = both(m, known, x)
            assert torch.equal(y, y_theirs)
            for name, d in mine.items():
                assert torch.equal(d, theirs[name]), name
    torch.manual_seed(0)
    for cut in (RandomTruncation(4, 1), RandomTruncation(TIME, 0.5)):
        both(module, cut, x)
        assert torch.equal(torch.get_rng_state(), torch.manual_seed(0).get_state())
    torch.set_rng_state(before)


def test_outputs_are_those_of_full_bptt_and_masks_torch_nns():
    module, reference = pair("lstm", 3, 4, 2, dropout=0.5)
    module.truncation = RandomTruncation(2, 0.5)
    x = normal(TIME, BATCH, 3)
    torch.manual_seed(5)
    y, _ = module(x)
    after = torch.get_rng_state()
    torch.manual_seed(5)
    expected, _ = reference(x)
    torch.testing.assert_close(y, expected, rtol=1e-13, atol=1e-14)
    torch.rand(4, BATCH, dtype=torch.float64)  # the one draw comes last
    assert torch.equal(torch.get_rng_state(), after)
    with torch.no_grad():
        torch.manual_seed(5)
        module.eval()(x)
        assert torch.equal(torch.get_rng_state(), torch.manual_seed(5).get_state())


def test_a_draw_with_dropout_is_its_literal_unroll():
    module, reference = pair("gru", 3, 4, 2, dropout=0.5)
    cut, x = RandomTruncation(2, 0.5), normal(TIME, 1, 3).requires_grad_()
    mine, _ = both(module, cut, x, seed=3)
    torch.manual_seed(3)
    mask = torch.empty(TIME, 1, 4, dtype=torch.float64).bernoulli_(0.5) / 0.5
    factors = literal_draw(cut, 4, 1)
    cells = []
    for layer in (0, 1):
        cell = torch.nn.GRUCell(3 if not layer else 4, 4, dtype=torch.float64)
        for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
            setattr(cell, name, getattr(reference, f"{name}_l{layer}"))
        cells.append(cell)
    h, ys = [x.new_zeros(1, 4)] * 2, []
    for t in range(TIME):
        if t and t % 2 == 0:
            h = [gate(part, factors[t // 2 - 1, 0]) for part in h]
        h[0] = cells[0](x[t], h[0])
        h[1] = cells[1](h[0] * mask[t], h[1])
        ys.append(h[1])
    y, final = torch.stack(ys), torch.stack(h)
    loss = (normal(*y.shape, seed=9) * y).sum()
    loss = loss + (normal(*final.shape, seed=10) * final).sum()
    leaves = dict(reference.named_parameters()) | {"0": x}
    assert_same(mine, gradients(loss, leaves))


def test_every_layout_is_the_same_call():
    """Batch first, packed, unbatched and ids: the draws and gradients are the same."""
    cut = CUTS[0]
    module, _ = pair("gru", 3, 4, 2)
    first, _ = pair("gru", 3, 4, 2, batch_first=True)
    x = normal(TIME, BATCH, 3)
    ragged, y = both(module, cut, x, lengths=LENGTHS)
    packed = pack_padded_sequence(x, LENGTHS, enforce_sorted=False)
    _, y_packed = both(module, cut, packed)
    held = pack_padded_sequence(y, LENGTHS, enforce_sorted=False)
    torch.testing.assert_close(y_packed, held.data, rtol=1e-13, atol=1e-14)
    dy = pack_padded_sequence(
        normal(*y.shape, seed=9), LENGTHS, enforce_sorted=False
    ).data
    torch.manual_seed(0)
    y, final = module(packed)
    loss = (dy * y.data).sum() + (normal(*final.shape, seed=10) * final).sum()
    assert_same(gradients(loss, dict(module.named_parameters())), ragged)

    dense, y = both(module, cut, x)
    first.truncation = cut
    torch.manual_seed(0)
    y, final = first(x.transpose(0, 1))
    dy = normal(TIME, BATCH, 4, seed=9).transpose(0, 1)
    loss = (dy * y).sum() + (normal(*final.shape, seed=10) * final).sum()
    assert_same(gradients(loss, dict(first.named_parameters())), dense)

    one, _ = both(module, cut, x[:, :1])
    assert_same(both(module, cut, x[:, 0])[0].copy(), one)

    ids = torch.randint(3, (TIME, BATCH), generator=torch.Generator().manual_seed(0))
    hot = torch.nn.functional.one_hot(ids, 3).double()
    assert_same(both(module, cut, ids)[0], both(module, cut, hot)[0])


def test_directions_are_cut_along_their_own_time():
    """A bidirectional layer is two layers, each with a draw of its own."""
    cut, x = CUTS[0], normal(TIME, BATCH, 3)
    module, _ = pair("lstm", 3, 4, bidirectional=True, truncation=cut)
    torch.manual_seed(0)
    y, (h, c) = module(x, lengths=LENGTHS)
    dy, dh = normal(TIME, BATCH, 8), normal(2, BATCH, 4)
    loss = (dy * y).sum() + (dh * (h + c)).sum()
    mine = gradients(loss, dict(module.named_parameters()))
    halves = [pair("lstm", 3, 4, truncation=cut)[0] for _ in range(2)]
    torch.manual_seed(0)
    for direction, end in enumerate(("", "_reverse")):
        half = halves[direction]
        half.load_state_dict(
            {n: getattr(module, n + end).detach() for n in half.state_dict()}
        )
        own = slice(4 * direction, 4 * direction + 4)

        def turned(t, direction=direction):
            if not direction:
                return t
            rows = [
                torch.cat((t[:n, r].flip(0), t[n:, r]))
                for r, n in enumerate(LENGTHS.tolist())
            ]
            return torch.stack(rows, 1)

        y, (h, c) = half(turned(x), lengths=LENGTHS)
        loss = (turned(dy)[..., own] * y).sum() + (dh[direction] * (h + c)[0]).sum()
        own_gradients = gradients(loss, dict(half.named_parameters()))
        assert_same({n: mine[n + end] for n in own_gradients}, own_gradients)


def test_a_projected_state_is_cut():
    assert bptt.check_gradients(
        bptt.LSTM(3, 4, 2, proj_size=2, truncation=CUTS[0]), normal(TIME, 2, 3)
    ).passed
