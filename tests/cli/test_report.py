"""`bptt report`: a page of what there is, with the numbers of the files."""

import json
import os
import re

import msgspec
import pytest

from bptt import page
from bptt.cli.arguments import Train
from bptt.cli.commands import _options
from bptt.language_model import LanguageModel
from bptt.report import load
from bptt.report.command import command
from bptt.training import resolve


def shown(path):
    """The data of a page."""
    text = path.read_text()
    block = re.search(r'id="data">(.*?)</script>', text, re.DOTALL)[1]
    return msgspec.json.decode(block, type=page.Page)


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def run(train, tmp_path):
    assert train("--window", 8).code == 0
    return tmp_path / "run"


def test_training_ends_with_a_page_of_its_files(run, bptt):
    (one,) = shown(run / "report.html").runs
    metrics, timings = lines(run / "metrics.jsonl"), []
    if (run / "timings.jsonl").exists():
        timings = lines(run / "timings.jsonl")
    updates = [m for m in metrics if "loss" in m]
    for name in ("step", "loss", "gradient_norm", "learning_rate"):
        assert getattr(one.curves, name) == [m[name] for m in updates]
    valid = [m for m in metrics if "valid_loss" in m and not m.get("final")]
    assert one.curves.valid_loss == [m["valid_loss"] for m in valid]
    assert one.curves.tokens_per_s == [t["tokens_per_s"] for t in timings]
    (final,) = [m for m in metrics if m.get("final")]
    assert one.curves.final_loss == final["valid_loss"]
    assert f"{final['valid_loss']:.4f} nats" in " ".join(one.lines)
    findings = load(run)
    assert (one.flow, one.reading) == (findings.flow, findings.reading)
    assert one.samples == findings.samples
    assert dict(one.settings)["hidden"] == "16"
    # Made again, it is the same.
    before = (run / "report.html").read_bytes()
    ended = bptt("report", run)
    assert (ended.code, ended.out, ended.err) == (0, f"{run / 'report.html'}\n", "")
    assert (run / "report.html").read_bytes() == before


def test_the_verdict_comes_first(run):
    text = (run / "report.html").read_text()
    body = text[text.index("<article") :]
    verdict = load(run).flow.verdict[0].replace(" %", "\xa0%")
    assert verdict in body
    assert body.index(verdict) < body.index("<section>")


def test_several_runs(run, train, bptt, tmp_path):
    other = tmp_path / "other"
    assert train("--cell", "gru", "--out", other).code == 0
    out = tmp_path / "both.html"
    ended = bptt("report", run, other, "--out", out)
    assert (ended.code, ended.out) == (0, f"{out}\n")
    found = shown(out)
    assert [r.name for r in found.runs] == [str(run), str(other)]
    assert [dict(r.facts)["Cell"] for r in found.runs] == ["LSTM", "GRU"]
    assert dict(found.runs[0].facts)["Truncation"] == "k1 = 8, k2 = 8"
    for one in found.runs:
        assert dict(one.facts)["Held-out loss, nats"] == f"{one.curves.final_loss:.4f}"


def test_another_text_is_looked_at(run, bptt, tmp_path):
    other = tmp_path / "other.txt"
    other.write_text("on the mat the dog ran and the cat ran to the door.\n" * 30)
    before = load(run)
    assert bptt("report", run, "--text", other).code == 0
    (one,) = shown(run / "report.html").runs
    assert one.flow != before.flow
    assert (before.text, one.text) == ("the held-out text", str(other))
    assert "".join(one.reading.tokens) in other.read_text()
    assert load(run) == before


def test_without_findings_they_are_measured(run, bptt, book):
    (run / "flow.json").unlink()
    assert bptt("report", run, "--text", book).code == 0
    assert shown(run / "report.html").runs[0].flow.steps == 64
    assert not (run / "flow.json").exists()


def test_an_unfinished_run_has_a_page(tmp_path, bptt):
    folder = tmp_path / "begun"
    folder.mkdir()
    (folder / "metrics.jsonl").write_text(
        '{"step": 1, "loss": 2.5, "gradient_norm": 1.0, "learning_rate": 0.1}\n{"st'
    )
    assert bptt("report", folder).code == 0
    (one,) = shown(folder / "report.html").runs
    assert one.curves.loss == [2.5]
    assert one.notes == [
        "1 line of metrics.jsonl could not be read.",
        "The run is not finished.",
        "No model is saved yet, so there is nothing to look into.",
    ]


def test_damaged_metrics_are_left_away(run, bptt):
    with open(run / "metrics.jsonl", "a") as file:
        file.write("nonsense\n")
    assert bptt("report", run).code == 0
    (one,) = shown(run / "report.html").runs
    assert one.notes == ["1 line of metrics.jsonl could not be read."]
    assert one.flow is not None


def test_what_is_refused(run, bptt, tmp_path):
    for words, code, match in (
        ((tmp_path / "none",), 2, "is no run"),
        ((), 2, "name at least one RUN"),
        ((run, "--out", tmp_path / "no" / "x.html"), 2, "cannot be written"),
        ((run, "--text", tmp_path / "none.txt"), 2, "no such file"),
    ):
        ended = bptt("report", *words)
        assert ended.code == code
        assert match in ended.message
    (run / "flow.json").write_text("{}")
    ended = bptt("report", run)
    assert (ended.code, "delete it" in ended.message) == (3, True)
    (run / "model.safetensors").write_bytes(b"")
    assert bptt("report", run).code == 3


def test_a_name_that_is_no_text(run, bptt, tmp_path):
    strange = tmp_path / os.fsdecode(b"\xff<b>\n\x1b")
    run.rename(strange)
    assert bptt("report", strange, "--out", tmp_path / "page.html").code == 0
    name = shown(tmp_path / "page.html").runs[0].name
    assert name.endswith("\\udcff<b>\n\\x1b")
    assert "&lt;b&gt;" in (tmp_path / "page.html").read_text()


@pytest.mark.parametrize(
    "options",
    [
        Train(),
        Train(cell="gru", k1=4, k2="32", window=16, epochs=3, dropout=0.25),
        Train(cell="rnn", unit="sentence", one_a_line=True, optimizer="sgd",
              bptt_truncate=4, level="word", vocab=500, steps=7),
        Train(level="bpe", embedding=32, tied=False, hidden=32, minutes=0.5, seed=3),
    ],
)  # fmt: skip
def test_the_command_trains_the_same_again(options):
    import tyro

    model, config = resolve(_options(options), 300)
    words = command(model, config).split()
    assert words[:3] == ["bptt", "train", "TEXT"]
    again = tyro.cli(Train, args=words[2:])
    assert resolve(_options(again), 300) == (model, config)


def test_the_model_is_the_runs(run):
    model = LanguageModel.from_pretrained(run)
    (one,) = shown(run / "report.html").runs
    first = one.samples[0]
    text = model.generate(length=240, temperature=first.temperature, seed=0)
    assert first.text == text.strip()
