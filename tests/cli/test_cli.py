"""What the commands do, and what they write where."""

import importlib
import json
import subprocess
import sys
from dataclasses import fields
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from bptt import __version__, kernels
from bptt.cells import TanhCell
from bptt.cli import main
from bptt.cli.arguments import Train
from bptt.language_model import LanguageModel
from bptt.text import read_text
from bptt.training import Options, encode_for, evaluate, evaluation_batches, load_corpus
from bptt.truncation import Truncation
from training.problems import text


@pytest.fixture
def run(train, tmp_path):
    """A finished run, of a seed that gives no empty text."""
    assert train("--cell", "gru").code == 0
    return tmp_path / "run"


# train


@pytest.mark.parametrize(
    ("cell", "level", "unit"),
    [
        ("rnn", "char", "stream"),
        ("gru", "word", "stream"),
        ("lstm", "bpe", "stream"),
        ("lstm", "char", "sentence"),
        ("rnn", "word", "sentence"),
        ("gru", "bpe", "sentence"),
    ],
)
def test_train_evaluate_generate(bptt, train, book, tmp_path, cell, level, unit):
    ended = train("--cell", cell, "--level", level, "--unit", unit)
    path = tmp_path / "run"
    assert (ended.code, ended.out) == (0, f"{path}\n")
    assert "loss " in ended.err
    assert "A sample:" in ended.err
    names = {"config.json", "model.safetensors", "tokenizer.json", "manifest.json"}
    found = {p.name for p in path.iterdir()}
    others = {"metrics.jsonl", "checkpoints", "flow.json", "report.html"}
    assert found - {"timings.jsonl"} == names | others
    manifest = json.loads((path / "manifest.json").read_bytes())["files"]
    assert manifest.keys() == names - {"manifest.json"}

    config = json.loads((path / "config.json").read_bytes())
    assert (config["model"]["cell"], config["model"]["unit"]) == (cell, unit)
    assert config["model"]["hidden"] == 16
    assert config["training"]["level"] == level
    assert config["training"]["steps"] == 3
    lines = [json.loads(x) for x in (path / "metrics.jsonl").read_text().splitlines()]
    assert [x["step"] for x in lines if "loss" in x] == [1, 2, 3]
    assert lines[-1]["final"]

    ended = bptt("evaluate", path, book, "--json")
    assert ended.code == 0
    assert json.loads(ended.out).keys() == {
        "loss",
        "perplexity",
        "bits_per_token",
        "tokens",
    }
    ended = bptt("generate", path, "--length", 5, "--prompt", "the cat")
    assert ended.code == 0
    assert ended.out.startswith("the cat")


def test_every_option_arrives(train, tmp_path, book):
    words = "--cell gru --layers 2 --embedding 6 --no-bias --dropout 0.25 --level word "
    words += "--vocab 12 --window 6 --k1 2 --k2 10 --batch 3 --lr 0.01 --clip 0.5 "
    words += "--weight-decay 0.1 --epochs 1 --seed 5 --snapshot-every 2 --hidden 7 "
    words += "--on-nonfinite skip "
    ended = train(*words.split(), "--valid", book, "--tied", "False", steps=None)
    if ended.code:  # flags of three states are spelled in full
        words = words.replace("--no-bias", "--bias False")
        ended = train(*words.split(), "--valid", book, "--tied", "False", steps=None)
    assert ended.code == 0, ended.err
    config = json.loads((tmp_path / "run" / "config.json").read_bytes())
    assert config["model"] == {
        "vocab": 12,
        "cell": "gru",
        "hidden": 7,
        "layers": 2,
        "embedding": 6,
        "tied": False,
        "bias": False,
        "dropout": 0.25,
        "unit": "stream",
        "one_a_line": False,
    }
    assert config["training"] == {
        "level": "word",
        "vocab": 12,
        "window": 6,
        "k1": 2,
        "k2": 10,
        "batch": 3,
        "optimizer": "adamw",
        "lr": 0.01,
        "clip": 0.5,
        "weight_decay": 0.1,
        "epochs": 1,
        "steps": None,
        "minutes": None,
        "seed": 5,
        "device": "cpu",
        "snapshot_every": 2,
        "tolerance": None,
        "k2_max": None,
        "choose_every": None,
        "on_nonfinite": "skip",
    }


def test_the_options_of_the_command_are_those_of_the_library():
    """Every one of them, with the same default: none is dropped on the way."""
    mine = {field.name: field.default for field in fields(Train)}
    theirs = Options()
    for name in Options.__struct_fields__:
        assert mine.pop(name) == getattr(theirs, name), name
    assert mine.keys() == {"text", "out", "valid", "resume"}


def test_the_tutorials_own_run(train, tmp_path):
    words = "--cell rnn --level word --vocab 8000 --unit sentence --one-a-line"
    words += " --bptt-truncate 4 --optimizer sgd"
    assert train(*words.split()).code == 0
    config = json.loads((tmp_path / "run" / "config.json").read_bytes())
    training = config["training"]
    assert (training["k1"], training["k2"], training["lr"]) == (1, 5, 0.005)
    assert (training["window"], training["clip"]) == (None, 0.0)
    assert config["model"]["one_a_line"]
    assert not config["model"]["bias"]


@pytest.mark.parametrize("k2", ["full", "4", "24"])
def test_k2(train, tmp_path, k2):
    assert train("--k2", k2).code == 0
    config = json.loads((tmp_path / "run" / "config.json").read_bytes())
    assert config["training"]["k2"] == (None if k2 == "full" else int(k2))


def test_without_a_text_it_reads_the_one_inside_python(train, tmp_path):
    ended = train(texts=[], steps=2)
    assert (ended.code, ended.out) == (0, f"{tmp_path / 'run'}\n")
    config = json.loads((tmp_path / "run" / "config.json").read_bytes())
    assert config["model"]["vocab"] > 80


def test_without_out_it_finds_a_name(train, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    odd = tmp_path / "a b.c.txt"
    odd.write_text(text(30))
    for expected in ("runs/a_b_c-lstm", "runs/a_b_c-lstm-2"):
        ended = train("--out", "None", texts=[odd], steps=1)
        if ended.code:
            pytest.fail(ended.err)
        assert ended.out == f"{expected}\n"


def test_minutes_end_a_run(train, tmp_path):
    ended = train("--minutes", 0.02, steps=None)
    assert ended.code == 0
    assert "0.02 minutes" in ended.err
    assert (tmp_path / "run" / "model.safetensors").is_file()


def test_a_byte_order_mark_and_carriage_returns_change_nothing(train, book, tmp_path):
    plain = book.read_bytes()
    windows = tmp_path / "windows.txt"
    windows.write_bytes(b"\xef\xbb\xbf" + plain.replace(b"\n", b"\r\n"))
    assert train("--out", tmp_path / "a").code == 0
    assert train("--out", tmp_path / "b", texts=[windows]).code == 0
    for name in ("metrics.jsonl", "model.safetensors", "tokenizer.json"):
        a, b = ((tmp_path / run / name).read_bytes() for run in "ab")
        assert a == b, name


def test_several_texts_and_a_text_to_validate_on(train, book, tmp_path):
    more = tmp_path / "more.txt"
    more.write_text("zebra!\n")
    ended = train("--valid", more, texts=[book, more], steps=1)
    assert ended.code == 0
    both = read_text([book, more])
    corpus = load_corpus(Options(), [book, more], [more])
    assert corpus.tokenizer.decode(corpus.train.ids) == both
    assert corpus.tokenizer.decode(corpus.held_out.ids) == "zebra!\n"
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert json.loads(lines[-1])["valid_tokens"] == len("zebra!\n") - 1


# evaluate and generate


@pytest.mark.parametrize("unit", ["stream", "sentence"])
def test_evaluate_is_that_of_python(bptt, train, book, tmp_path, unit):
    assert train("--unit", unit).code == 0
    path = tmp_path / "run"
    other = tmp_path / "other.txt"
    other.write_text(text(12, seed=3))
    model = LanguageModel.from_pretrained(path)
    words = read_text([book, other])
    encoded = encode_for(words, model.tokenizer, unit, one_a_line=False)
    measured = evaluate(model, evaluation_batches(encoded))
    ended = bptt("evaluate", path, book, other, "--json")
    assert ended.code == 0
    assert json.loads(ended.out) == {
        "loss": measured.loss,
        "perplexity": measured.perplexity,
        "bits_per_token": measured.bits_per_token,
        "tokens": encoded.tokens,
    }
    ended = bptt("evaluate", path, book, other)
    assert ended.code == 0
    assert ended.out == (
        f"loss {measured.loss:.4f} nats per token, perplexity "
        f"{measured.perplexity:.3f}, {measured.bits_per_token:.4f} bits per token, "
        f"over {encoded.tokens:,} tokens.\n"
    )


def test_the_loss_told_by_train_is_that_of_evaluate(bptt, train, book, tmp_path):
    ended = train("--valid", book)
    assert ended.code == 0
    told = bptt("evaluate", tmp_path / "run", book).out.strip()
    assert told in ended.err


def test_generate_is_that_of_python(bptt, run):
    model = LanguageModel.from_pretrained(run)
    short = ("--length", 40)
    ended = bptt("generate", run, *short)
    assert (ended.code, ended.err) == (0, "")
    assert ended.out == model.generate(length=40, temperature=0.8, seed=0) + "\n"
    assert bptt("generate", run, *short).out == ended.out
    assert bptt("generate", run, *short, "--seed", 1).out != ended.out
    assert len(bptt("generate", run).out) == 501
    words = ["--prompt", "one", "--length", 9, "--temperature", 2, "--seed", 3]
    expected = model.generate("one", length=9, temperature=2.0, seed=3)
    assert bptt("generate", run, *words).out == expected + "\n"


# check


@pytest.fixture
def few_cases(monkeypatch):
    certificates = importlib.import_module("bptt.verify.certificates")
    monkeypatch.setattr(certificates, "_TRUNCATIONS", (Truncation.chunks(4),))
    monkeypatch.setattr(certificates, "_CASES", certificates._CASES[:1])


def test_check_passes(bptt, few_cases):
    ended = bptt("check")
    assert ended.code == 0
    for cell in ("rnn tanh", "rnn relu", "gru", "lstm"):
        assert ended.out.count(cell) == 1
    by = ", ".join(kernels.available())
    said = f"All 4 gradients are right, by every kernel: {by}."
    assert ended.err.splitlines() == [said]


def test_check_of_a_wrong_gradient(bptt, few_cases, monkeypatch):
    right = TanhCell.vjp_state

    def wrong(self, ds, tape, W):
        delta, (dh,) = right(self, ds, tape, W)
        return delta, (dh * 1.001,)

    monkeypatch.setattr(TanhCell, "vjp_state", wrong)
    ended = bptt("check", "--json")
    assert ended.code == 4
    assert ended.err.splitlines() == ["1 of 4 gradients are wrong."]
    found = json.loads(ended.out)
    assert found["passed"] is False
    passed = {case["cell"]: case["passed"] for case in found["cases"]}
    assert passed == {"rnn tanh": False, "rnn relu": True, "gru": True, "lstm": True}
    for case in found["cases"]:
        assert case["truncation"] == "Truncation(k1=4, k2=4)"
        assert (case["finite_difference_error"] > 1e-5) == (case["cell"] == "rnn tanh")


# the program


def test_python_m_bptt_is_the_same_program(bptt):
    (script,) = entry_points(group="console_scripts", name="bptt")
    assert script.load() is main
    ended = bptt("--version")
    assert (ended.code, ended.out) == (0, f"bptt {__version__}\n")
    words = [sys.executable, "-m", "bptt", "--version"]
    found = subprocess.run(words, capture_output=True, text=True, check=True)
    assert (found.stdout, found.stderr) == (ended.out, "")
    words = [sys.executable, "-m", "bptt", "generate", "nowhere"]
    found = subprocess.run(words, capture_output=True, text=True, check=False)
    assert (found.returncode, found.stdout) == (2, "")
    assert found.stderr.startswith("bptt: nowhere is no run")


HELP = """
import sys
import bptt
from bptt.cli import main
codes = [main(words) for words in (
    [], ["--help"], ["train", "--help"], ["evaluate", "--help"], ["generate", "--help"],
    ["check", "--help"], ["--version"], ["train", "--hiden", "3"],
)]
assert codes == [0] * 7 + [2], codes
assert "torch" not in sys.modules
"""


def test_help_does_not_wait_for_torch():
    found = subprocess.run(
        [sys.executable, "-c", HELP], capture_output=True, text=True, check=False
    )
    assert found.returncode == 0, found.stderr
    for command in ("train", "evaluate", "generate", "check"):
        assert command in found.stdout
    for name in Options.__struct_fields__:
        assert f"--{name.replace('_', '-')}" in found.stdout, name
    assert "Perhaps you meant" in found.stderr
    assert "--hidden" in found.stderr


def test_the_module_runs_nothing_when_imported():
    source = Path(sys.modules["bptt"].__file__).with_name("__main__.py").read_text()
    assert 'if __name__ == "__main__":' in source
