"""`--k2 auto`: what is chosen, held to explicit gradients."""

import json
import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from bptt.errors import InputError
from bptt.language_model import LanguageModel
from bptt.text import Stream, Tokenizer, encode_stream
from bptt.training import Corpus, Options, resolve
from bptt.training.window_choice import Choice, choose
from bptt.training.window_plan import BURN_IN, Search
from training.problems import corpus, trainer

CELLS = {"rnn": torch.nn.RNN, "gru": torch.nn.GRU, "lstm": torch.nn.LSTM}


def metrics(folder, key):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [line for line in map(json.loads, lines) if key in line]


# the choice


def new_model(cell, layers=1, vocab=9, hidden=5, seed=0):
    options = Options(cell=cell, layers=layers, hidden=hidden, bias=True, dropout=0.5)
    config, _ = resolve(options, vocab)
    model = LanguageModel(config).double()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.uniform_(-0.9, 0.9, generator=generator)
    return model.train()


def literal_biases(model, ids, search, rows):
    """Of every candidate: unroll, cut the graph, let autograd differentiate."""
    config = model.config
    nn = CELLS[config.cell](config.vocab, config.hidden, config.layers).double()
    nn.load_state_dict(model.recurrent.state_dict())
    weight, bias = model.decoder.weight.detach(), model.decoder.bias.detach()
    half = search.steps // 2

    def one_hot(positions):
        return F.one_hot(
            torch.from_numpy(ids[positions].astype(np.int64)), config.vocab
        )

    def state_before(row):
        warm = np.arange(max(0, row - BURN_IN), row)
        return None if not len(warm) else nn(one_hot(warm)[:, None].double())[1]

    def gradient(k1, k2):
        nn.zero_grad()
        for row in rows.first.tolist():
            x = one_hot(np.arange(row, row + search.steps))[:, None].double()
            targets = torch.from_numpy(ids[row + 1 : row + search.steps + 1]).long()
            for a in range(half, search.steps, k1):
                begin = max(0, a + k1 - k2)
                with torch.no_grad():
                    state = state_before(row)
                    if begin:
                        _, state = nn(x[:begin], state)
                y, _ = nn(x[begin : a + k1], state)
                own = slice(max(a, begin) - begin, None)
                logits = F.linear(y[own, 0], weight, bias)
                error = F.cross_entropy(
                    logits, targets[max(a, begin) : a + k1], reduction="sum"
                )
                error.backward()
        return torch.cat([p.grad.flatten() for p in nn.parameters()])

    full = gradient(half, search.steps)
    return {
        k2: float((gradient(search.k1, k2) - full).norm() / full.norm())
        for k2 in search.candidates
    }


@pytest.mark.parametrize(
    ("cell", "layers", "k1", "k2_max"),
    [("rnn", 1, 4, 16), ("gru", 2, 2, 12), ("lstm", 1, 1, 8), ("lstm", 2, 8, 16)],
)
def test_the_choice_is_the_smallest_that_explicit_gradients_allow(
    cell, layers, k1, k2_max
):
    model = new_model(cell, layers)
    ids = np.random.default_rng(1).integers(0, 9, 500).astype(np.int32)
    search = Search(k1, k2_max, 1e-9, 1)
    rows = search.rows(len(ids) - 1, seed=3, step=6)
    assert (rows.begin == 0).any()
    assert (rows.begin > 0).any()
    expected = literal_biases(model, ids, search, rows)
    before = {name: t.clone() for name, t in model.state_dict().items()}

    def chosen(tolerance):
        search = Search(k1, k2_max, tolerance, 1)
        return choose(model, Stream(ids), search, seed=3, step=6)

    everything = chosen(1e-9)
    assert everything.biases == pytest.approx(expected, rel=1e-7)
    assert everything.k2 == k2_max  # none keeps to it
    biases = list(expected.items())
    assert len({round(b, 3) for _, b in biases}) == len(biases)
    for _, bias in biases:
        for tolerance in (bias * 1.001, bias * 0.999):
            found = chosen(tolerance)
            keeps = [i for i, (_, b) in enumerate(biases) if b <= tolerance]
            last = keeps[0] if keeps else len(biases) - 1
            assert found.k2 == biases[last][0]
            assert found.biases == pytest.approx(dict(biases[: last + 1]), rel=1e-7)
            assert found.bias == found.biases[found.k2]
    assert model.training
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])
    assert all(p.grad is None for p in model.parameters())


def test_without_a_gradient_nothing_is_chosen(tmp_path):
    run, watcher = trainer(tmp_path, k2="auto", choose_every=3, steps=4)
    run.progress.chosen_k2 = 16

    def silent(run):  # no error comes through a decoder of zeros
        if run.progress.step == 2:
            with torch.no_grad():
                run.model.decoder.weight.zero_()

    watcher.after_step = silent
    run.run()
    assert watcher.choices == [(3, 16, Choice(None, {}))]
    (line,) = metrics(tmp_path, "biases")
    assert line == {"step": 3, "k2": 16, "bias": None, "biases": {}}
    assert run.progress.chosen_k2 == 16


def test_a_text_that_is_too_short(tmp_path):
    data = corpus(Options(), n=25)
    predictions = data.train.tokens
    steps = 2 * (predictions // 16 * 8)
    run, _ = trainer(tmp_path, k2="auto", k2_max=steps // 2, steps=1, data=data)
    run.run()
    with pytest.raises(
        InputError, match=f"give a smaller --k2-max than {steps // 2 + 8}"
    ):
        trainer(tmp_path, k2="auto", k2_max=steps // 2 + 8, steps=1, data=data)


# what the run keeps of it


def test_what_is_logged(tmp_path):
    run, watcher = trainer(
        tmp_path, k2="auto", choose_every=3, tolerance=0.3, steps=11, lr=0.05
    )
    run.run()
    lines = metrics(tmp_path, "biases")
    assert [line["step"] for line in lines] == [3, 6, 9]
    assert [step for step, _, _ in watcher.choices] == [3, 6, 9]
    assert [before for _, before, _ in watcher.choices] == [
        8,
        *(line["k2"] for line in lines[:-1]),
    ]
    for line, (_, _, choice) in zip(lines, watcher.choices, strict=True):
        assert line["k2"] == choice.k2
        assert line["bias"] == choice.bias == line["biases"][str(choice.k2)]
        assert line["biases"] == {str(k): b for k, b in choice.biases.items()}
    timings = (tmp_path / "timings.jsonl").read_text().splitlines()
    seconds = [t["choosing_k2_s"] for t in map(json.loads, timings) if len(t) == 2]
    assert len(seconds) == 3
    assert run.progress.choosing_s == pytest.approx(sum(seconds), abs=0.002)
    assert 0 < run.progress.choosing_s < run.clock.elapsed_s


def test_the_folder_knows_the_choice_of_the_saved_model(tmp_path):
    run, _ = trainer(tmp_path, k2="auto", choose_every=100, steps=1)
    assert run.folder.chosen_k2 is None
    for record in (
        {"step": 0, "valid_loss": 4.0},
        {"step": 3, "k2": 16, "bias": 0.1},
        {"step": 4, "loss": 1.0},
        {"step": 5, "valid_loss": 3.0},
        {"step": 6, "k2": 32, "bias": 0.1},
        {"step": 7, "valid_loss": 3.5},
        {"step": 7, "valid_loss": 2.0, "final": True},
    ):
        run.folder.append("metrics.jsonl", record)
    run.folder.flush()
    assert run.folder.chosen_k2 == 16


# tasks


def far_text(distance, n, seed=0):
    """A letter, so many dots, and the letter again."""
    choose_letter = random.Random(seed).choice
    letters = [choose_letter("abcd") for _ in range(n)]
    return "".join(f"{x}{'.' * (distance - 1)}{x}" for x in letters)


def near_text(n, seed=0):
    """Each letter by itself: what came before tells nothing."""
    choose_letter = random.Random(seed).choice
    return "".join(choose_letter("abcd.") for _ in range(n))


SMALL = {"hidden": 16, "window": 4, "batch": 16, "lr": 0.02, "steps": 400}


def trained(folder, train, held_out, *, begin=None, **options):
    tokenizer = Tokenizer.train(train, "char", None)
    data = Corpus(
        tokenizer, encode_stream(train, tokenizer), encode_stream(held_out, tokenizer)
    )
    run, _ = trainer(folder, data=data, **{**SMALL, **options})
    if begin is not None:
        run.progress.k2 = run.progress.chosen_k2 = begin
    run.run()
    return run


AUTO = {"k2": "auto", "k2_max": 32, "tolerance": 0.2, "choose_every": 40}


def test_a_long_memory_raises_k2_and_is_learnt(tmp_path):
    texts = far_text(10, 3000), far_text(10, 300, seed=1)
    auto = trained(tmp_path / "auto", *texts, cell="gru", **AUTO)
    chosen = [line["k2"] for line in metrics(tmp_path / "auto", "biases")]
    assert chosen[0] == 4
    assert max(chosen[1:]) >= 16 > 10  # an error goes 10 steps back
    assert auto.progress.k2 > 4
    fixed = trained(tmp_path / "fixed", *texts, cell="gru")
    # every 11th letter cannot be known, and as many only from 10 steps before
    unknown = np.log(4) / 11
    assert fixed.progress.best_valid > 2 * unknown
    assert auto.progress.best_valid < 1.7 * unknown


def test_where_nothing_is_remembered_k2_falls(tmp_path):
    texts = near_text(20_000), near_text(3000, seed=1)
    run = trained(tmp_path, *texts, begin=32, **AUTO | {"steps": 130})
    chosen = [line["k2"] for line in metrics(tmp_path, "biases")]
    assert chosen[-1] == 4 == run.progress.k2
