"""`bptt flow`: the numbers of the library, in words, in a chart and as JSON."""

import json
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from bptt import Truncation, gradient_flow
from bptt.cli.flow import chart
from bptt.flow import FlowEstimates
from bptt.language_model import LanguageModel
from bptt.text import encode_stream
from bptt.training import FlowPlan, flow_over

TEXT = "the cat sat on the mat; a dog ran to the door and the cat slept on.\n" * 40


@pytest.fixture
def run(train, tmp_path):
    def trained(*words):
        assert train(*words).code == 0
        return tmp_path / "run"

    return trained


@pytest.fixture
def book(tmp_path):
    path = tmp_path / "book.txt"
    path.write_text(TEXT)
    return path


def test_json_holds_what_the_library_says(bptt, run, book):
    path = run("--window", "8", "--k1", "4", "--k2", "4")
    ended = bptt("flow", path, book, "--rows", 3, "--batches", 2, "--steps", 20,
                 "--json", "--tolerance", 0.1)  # fmt: skip
    assert (ended.code, ended.err) == (0, "")
    found = json.loads(ended.out)
    model = LanguageModel.from_pretrained(path)
    text = encode_stream(TEXT, model.tokenizer)
    flows = flow_over(model, Truncation(4, 4), 8, text, FlowPlan(3, 2, 20))
    assert (found["steps"], found["batches"], found["rows"]) == (20, 2, 3)
    assert found["truncation"] == "Truncation(k1=4, k2=4)"
    assert found["verdict"] == flows.verdict_at(0.1)
    assert found["by_lag"] == pytest.approx(flows.by_lag.tolist())
    assert found["horizon"] == {"0.5": flows.horizon(0.5), "0.95": flows.horizon(0.95)}
    assert found["window"] == {"0.05": flows.window(0.05), "0.1": flows.window(0.1)}
    for name, value in found["bias"].items():
        bias = flows.bias(Truncation(*map(int, name.split(","))))
        assert value == pytest.approx(bias.mean)
        assert found["bias_margin"][name] == pytest.approx(bias.margin)
    assert {"1,1", "1,16", "4,4", "16,16"} <= set(found["bias"])
    assert found["growth"]["rate"] == pytest.approx(flows.growth.rate.mean)
    # Words, and not JSON, are the same.
    plain = bptt("flow", path, book, "--rows", 3, "--batches", 2, "--steps", 20)
    assert plain.out == f"{flows.verdict_at(0.05)}\n\n{chart(flows)}"


def test_rows_are_windows_of_the_text_with_the_state_before_them(run, book):
    model = LanguageModel.from_pretrained(run())
    ids = encode_stream(TEXT, model.tokenizer).ids
    text = encode_stream(TEXT, model.tokenizer)
    flows = flow_over(model, Truncation.full(), None, text, FlowPlan(2, 2, 12))
    steps = [0, 1]  # of the two batches, the first rows and those after them
    last = len(ids) - 1 - 12
    firsts = np.linspace(0, last, 4).astype(int)
    for at in steps:
        hs, rows = [], firsts[at::2]
        for first in rows:
            begin = max(first - 256, 0)
            state = None
            if first:
                before = torch.from_numpy(ids[begin:first].astype(np.int64))
                with torch.no_grad():
                    _, state = model(before.unsqueeze(1))
            hs.append(state)
        parts = [
            torch.cat(
                [
                    torch.zeros(1, 1, model.config.hidden) if h is None else h[i]
                    for h in hs
                ],
                dim=1,
            )
            for i in (0, 1)
        ]
        inputs = np.stack([ids[f : f + 12] for f in rows], axis=1).astype(np.int64)
        targets = np.stack([ids[f + 1 : f + 13] for f in rows], axis=1).astype(np.int64)

        def loss(inputs=inputs, parts=parts, targets=targets):
            logits, _ = model(torch.from_numpy(inputs), tuple(parts))
            return F.cross_entropy(
                logits.flatten(0, 1), torch.from_numpy(targets).flatten()
            )

        expected = gradient_flow(model, loss)
        found = flows.flows[at]
        torch.testing.assert_close(found.norms, expected.norms, rtol=1e-4, atol=1e-8)
        torch.testing.assert_close(found.by_lag, expected.by_lag, rtol=1e-4, atol=1e-8)


def test_sentences_are_ragged_rows(bptt, run, book):
    path = run("--unit", "sentence", "--one-a-line")
    ended = bptt("flow", path, book, "--json", "--rows", 2, "--batches", 2)
    found = json.loads(ended.out)
    assert ended.code == 0
    assert (found["rows"], found["batches"]) == (4, 1)
    assert found["by_lag_margin"][0] is None  # of one batch there is no interval
    assert "cuts nothing" in found["verdict"]


def test_training_ends_with_it(train):
    ended = train("--window", "8")
    assert ended.code == 0
    assert "How far back the gradient goes:\n95 % of the gradient" in ended.err
    assert "Training cuts it at k1 = 8, k2 = 8" in ended.err
    assert "bias if cut there" in ended.err


def test_the_chart_shows_shares_that_sum_to_all(run, book):
    model = LanguageModel.from_pretrained(run())
    text = encode_stream(TEXT, model.tokenizer)
    flows = flow_over(model, Truncation.full(), None, text, FlowPlan(2, 1, 21))
    lines = chart(flows).splitlines()[1:]
    lags = [line.split()[0] for line in lines]
    assert lags == ["0", "1", "2-3", "4-7", "8-15", "16-20"]
    shares = [float(line.split()[1]) for line in lines]
    assert sum(shares) == pytest.approx(100, abs=0.4)
    biases = [float(line.split()[3]) for line in lines]
    expected = [100 * float(flows.biases[last]) for last in (0, 1, 3, 7, 15, 20)]
    assert biases == pytest.approx(expected, abs=0.051)
    longest = max(lines, key=lambda line: line.count("█"))
    assert longest.count("█") == 40
    assert float(longest.split()[1]) == max(shares)


def test_what_is_refused(bptt, run, book, tmp_path):
    path = run()
    tiny = tmp_path / "tiny.txt"
    tiny.write_text("a")
    for words, match in (
        ((path, book, "--tolerance", -1), "--tolerance must be above 0; got -1.0"),
        ((path, book, "--tolerance", "nan"), "--tolerance must be above 0; got nan"),
        ((path, book, "--rows", 0), "rows must be at least 1; got 0"),
        ((path, book, "--steps", 1), "steps must be at least 2; got 1"),
        ((path, tiny), "at least"),
        ((tmp_path / "none",), "is no run"),
    ):
        ended = bptt("flow", *words)
        assert ended.code == 2
        assert match in ended.message


def test_a_damaged_run(bptt, run, book):
    path = run()
    config = path / "config.json"
    config.write_bytes(config.read_bytes().replace(b'"window"', b'"widnow"'))
    ended = bptt("flow", path, book)
    assert ended.code == 3
    assert "config.json" in ended.message


def test_unequal_flows_are_no_sample():
    import bptt

    gru = bptt.GRU(2, 3)
    flows = tuple(
        gradient_flow(gru, lambda time=time: gru(torch.ones(time, 1, 2))[0].sum())
        for time in (4, 5)
    )
    with pytest.raises(ValueError, match=r"as many steps.*\[4, 5\]"):
        FlowEstimates(flows)
    assert math.isinf(FlowEstimates(flows[:1]).growth.rate.margin)
