"""What is found in a model is the library's, and survives its file."""

import json

import msgspec
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from bptt import CheckpointError, LanguageModel, Truncation, gradient_flow
from bptt.language_model import ModelConfig
from bptt.page.numbers import entries
from bptt.report import FLOW, findings_of, load, save
from bptt.report.activity import histograms
from bptt.text import Tokenizer, encode_sentences, encode_stream
from bptt.training import FlowPlan, flow_over

TEXT = "the cat sat on the mat; a dog ran to the door and the cat slept on.\n" * 30


def model_of(cell="gru", level="char", unit="stream"):
    torch.manual_seed(0)
    tokenizer = Tokenizer.train(TEXT, level)
    config = ModelConfig(vocab=tokenizer.size, cell=cell, hidden=7, unit=unit)
    return LanguageModel(config, tokenizer)


@pytest.fixture(scope="module")
def looked_into():
    model = model_of()
    text = encode_stream(TEXT, model.tokenizer)
    found = flow_over(model, Truncation.chunks(8), 8, text, FlowPlan(2, 3, 20))
    return model, text, found, findings_of(model, found, text, "a text")


def test_the_flow_is_the_librarys(looked_into):
    *_, found, findings = looked_into
    flow = findings.flow
    assert findings.text == "a text"
    assert flow.verdict == found.verdict.splitlines()
    assert (flow.steps, flow.batches, flow.rows) == (20, 3, 2)
    assert flow.by_lag == found.by_lag.tolist()
    assert flow.by_lag_margin == [e.margin for e in found.by_lag_estimates]
    assert flow.biases == [*found.biases[:-1].tolist(), 0]
    for k2 in (1, 5, 20):
        cut = Truncation(1, k2)
        assert flow.biases[k2 - 1] == pytest.approx(found.bias(cut).mean, abs=1e-12)
        assert flow.cosines[k2 - 1] == pytest.approx(found.cosine(cut).mean)
    for cut in (*flow.chunks, *flow.halves, flow.cut):
        truncation = Truncation(cut.k1, cut.k2)
        assert cut.bias == found.bias(truncation).mean
        assert cut.bias_margin == found.bias(truncation).margin
        assert cut.cosine == found.cosine(truncation).mean
    assert [cut.k2 for cut in flow.chunks] == [1, 2, 4, 8, 16]
    assert [(cut.k1, cut.k2) for cut in flow.halves] == [(2, 4), (4, 8), (8, 16)]
    assert (flow.cut.k1, flow.cut.k2) == (8, 8)
    assert flow.window == found.window()
    assert (flow.half, flow.horizon) == (found.horizon(0.5), found.horizon())
    assert flow.growth.rate == found.growth.rate.mean
    assert flow.growth.half_life == found.growth.half_life
    norms = found.norms.numpy()[np.tril_indices(20)]
    np.testing.assert_array_equal(entries(flow.norms), norms.astype(np.float32))
    # Full BPTT is one unit of work.
    assert flow.works[-1] > flow.chunks[0].work == pytest.approx(1)


def test_the_reading_is_token_by_token(looked_into):
    model, text, _, findings = looked_into
    reading = findings.reading
    first = (len(text.ids) - 1 - 200) // 2
    ids = torch.from_numpy(text.ids[first : first + 201].astype(np.int64))
    assert "".join(reading.tokens) == model.tokenizer.decode(ids.numpy())
    before = torch.from_numpy(text.ids[first - 256 : first].astype(np.int64))
    model.eval()
    with torch.no_grad():
        _, state = model(before.unsqueeze(1))

    def loss():
        logits, _ = model(ids[:-1].unsqueeze(1), state)
        return F.cross_entropy(logits[:, 0], ids[1:], reduction="sum")

    expected = gradient_flow(model, loss)
    assert sum(reading.losses) == pytest.approx(loss().item(), rel=1e-5)
    norms = expected.norms.numpy()[np.tril_indices(200)]
    np.testing.assert_allclose(entries(reading.norms), norms, rtol=1e-4, atol=1e-9)


def test_looking_leaves_the_model_alone(looked_into):
    model, text, found, _ = looked_into
    model.train()
    model.truncation = truncation = Truncation.chunks(3)
    weights = {name: w.clone() for name, w in model.state_dict().items()}
    findings_of(model, found, text, "a text")
    assert model.training
    assert model.truncation is truncation
    for name, w in model.state_dict().items():
        assert torch.equal(w, weights[name])


def test_a_sentence_is_read_from_its_start_to_its_end():
    model = model_of("lstm", "word", "sentence")
    text = encode_sentences(
        ["a dog ran.", "the cat slept on the mat."], model.tokenizer
    )
    found = flow_over(model, Truncation.full(), None, text, FlowPlan(2, 1))
    reading = findings_of(model, found, text, "a text").reading
    assert reading.spaced
    words = ["the", "cat", "slept", "on", "the", "mat", "."]
    assert reading.tokens == ["⟨start⟩", *words, "⟨end⟩"]


@pytest.mark.parametrize("cell", ["rnn", "gru", "lstm"])
def test_gates_are_those_of_the_equations(cell):
    torch.manual_seed(1)
    H, T = 6, 9
    module = {"rnn": torch.nn.RNN, "gru": torch.nn.GRU, "lstm": torch.nn.LSTM}[cell](
        4, H
    )
    module.double()
    x = 2 * torch.randn(T, 1, 4, dtype=torch.float64)
    flow = gradient_flow(module, lambda: module(x)[0].square().sum())
    found = {one.name: one.values for one in flow.problem.activity()}
    U, W = module.weight_ih_l0, module.weight_hh_l0
    y, _ = module(x)
    y = y[:, 0]
    before = torch.cat([torch.zeros(1, H, dtype=torch.float64), y[:-1]])
    gx, gh = x[:, 0] @ U.t() + module.bias_ih_l0, before @ W.t() + module.bias_hh_l0
    if cell == "lstm":
        i, f, g, o = (gx + gh).chunk(4, 1)
        expected = {"input gate i": i.sigmoid(), "forget gate f": f.sigmoid(),
                    "candidate g": g.tanh(), "output gate o": o.sigmoid()}  # fmt: skip
    elif cell == "gru":
        (xr, xz, xn), (hr, hz, hn) = gx.chunk(3, 1), gh.chunk(3, 1)
        r = (xr + hr).sigmoid()
        expected = {"reset gate r": r, "update gate z": (xz + hz).sigmoid(),
                    "candidate n": (xn + r * hn).tanh()}  # fmt: skip
    else:
        expected = {}
    expected["output h"] = y
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        torch.testing.assert_close(found[name], values.detach(), msg=name)
    # The histograms count them.
    for one in histograms(flow.problem.activity()):
        values = found[one.name]
        counts, _ = np.histogram(values, bins=40, range=(one.low, one.high))
        assert one.counts == counts.tolist()
        near = 0.05 * (one.high - one.low)
        low = float((values < one.low + near).double().mean())
        high = float((values > one.high - near).double().mean())
        assert (one.low_share, one.high_share) == pytest.approx((low, high))
        assert one.mean == pytest.approx(float(values.mean()))
        still = float((values.std(0) < 0.01).double().mean())
        assert one.still == pytest.approx(still)


def test_units_without_bounds_and_units_that_never_move():
    torch.manual_seed(2)
    module = torch.nn.RNN(2, 4, nonlinearity="relu").double()
    with torch.no_grad():
        module.bias_hh_l0[:2] = -100  # never above zero
        module.bias_hh_l0[2:] = 1
    x = torch.randn(30, 1, 2, dtype=torch.float64)
    flow = gradient_flow(module, lambda: module(x)[0].sum())
    (one,) = histograms(flow.problem.activity())
    assert one.still == 0.5
    assert one.low_share >= 0.5
    assert one.high_share == 0
    assert one.high == pytest.approx(module(x)[0].max().item())


def test_a_file_gives_back_what_was_saved(looked_into, tmp_path):
    *_, findings = looked_into
    save(tmp_path, findings)
    assert load(tmp_path) == findings
    assert load(tmp_path / "none") is None


def damaged(findings):
    good = json.loads(msgspec.json.encode(findings))

    def changed(change):
        copy = json.loads(json.dumps(good))
        change(copy)
        return json.dumps(copy).encode()

    yield b"", "Input data was truncated"
    yield b"[" * 100_000, ""
    yield changed(lambda d: d.update(format=2)), "format"
    yield changed(lambda d: d.pop("flow")), "flow"
    yield changed(lambda d: d["flow"]["biases"].pop()), "lists of other lengths"
    yield changed(lambda d: d["flow"]["by_lag"].append("x")), "by_lag"
    yield changed(lambda d: d["flow"]["norms"].update(values="AAAA")), "numbers"
    yield changed(lambda d: d["flow"].update(window=10**9)), "window"
    yield changed(lambda d: d["reading"]["tokens"].pop()), "tokens"
    yield changed(lambda d: d["reading"]["norms"].update(kind="cube")), "cube"
    yield changed(lambda d: d["flow"].update(verdict=[])), "no verdict"
    yield changed(lambda d: d["flow"]["norms"].update(steps=21)), "21 steps"
    yield changed(lambda d: d["flow"]["spectra"][0].update(values=[])), "spectrum"
    yield changed(lambda d: d["activity"][0].update(counts=[])), "histogram"


def test_a_damaged_file_is_refused_in_one_line(looked_into, tmp_path):
    *_, findings = looked_into
    for data, reason in damaged(findings):
        (tmp_path / FLOW).write_bytes(data)
        with pytest.raises(CheckpointError) as caught:
            load(tmp_path)
        message = str(caught.value)
        assert reason in message
        assert "flow.json" in message
        assert "delete it" in message
        assert "\n" not in message
