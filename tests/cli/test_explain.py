"""`bptt explain`: its numbers, its page, what it refuses."""

import json
import os
import pty
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from bptt.cells import ReLUCell, TanhCell
from bptt.cli import grid
from bptt.cli.explain_stack import StackPage
from bptt.cli.sheet import Sheet
from bptt.explain import read_by_model, read_by_small_network, worked_example
from bptt.language_model import LanguageModel, ModelConfig
from bptt.text import Tokenizer
from training.problems import text


@pytest.fixture
def trained(train, tmp_path):
    def run(*words):
        assert train("--cell", "rnn", "--level", "word", *words).code == 0
        return tmp_path / "run"

    return run


def load(run):
    return LanguageModel.from_pretrained(run)


def entries(found, name):
    return np.array(found[name]["entries"])


def test_json_holds_the_numbers_of_the_example(bptt):
    ended = bptt("explain", "--json")
    assert (ended.code, ended.err) == (0, "")
    found = json.loads(ended.out)
    example = worked_example(read_by_small_network())
    network = example.network
    assert found["sentence"] == ["the", "cat", "sat", "down"]
    assert found["network"]["words"] == list(network.words)
    (layer,) = network.layers
    for name, weight in (("U", layer.U), ("W", layer.W), ("V", network.V)):
        np.testing.assert_array_equal(entries(found["network"], name), weight)
    for name in ("dU", "dW", "dV"):
        mine, engine = getattr(example, name), getattr(example.engine, name[1])
        np.testing.assert_array_equal(entries(found[name], "sum"), mine)
        np.testing.assert_array_equal(entries(found[name], "engine"), engine)
        assert found[name]["sum"]["norm"] == np.linalg.norm(mine)
    for step, given in zip(example.steps, found["steps"], strict=True):
        assert given["s"] == step.s.tolist()
        assert given["o"] == step.o.tolist()
        assert (given["t"], given["E"]) == (step.t, step.E)
        assert given["x"] == network.words[step.x]
        assert given["y"] == network.words[step.y]
    assert found["dV"]["error"] == example.dlogits.tolist()
    for term, given in zip(example.terms, found["terms"], strict=True):
        assert given["k"] == term.k
        for name in ("delta", "ds", "h_before", "hidden_delta"):
            assert given[name] == getattr(term, name).tolist()
        for name in ("dW", "dU", "product"):
            np.testing.assert_array_equal(entries(given, name), getattr(term, name))
        if term.jacobian is None:
            assert given["jacobian"] is None
        else:
            np.testing.assert_array_equal(entries(given, "jacobian"), term.jacobian)
            norm = np.sqrt(np.linalg.eigvalsh(term.jacobian @ term.jacobian.T).max())
            assert given["jacobian_2_norm"] == pytest.approx(norm, abs=1e-14)
    for cut, given in zip(example.truncated, found["truncations"], strict=True):
        assert given["bptt_truncate"] == cut.n
        assert given["steps_kept"] == list(cut.kept)
        np.testing.assert_array_equal(entries(given, "left_away_dW"), cut.dW)
        assert (given["bias_W"], given["bias_U"]) == (cut.bias_W, cut.bias_U)
    separate = found["separate_W"]
    for dW, given in zip(example.unshared, separate["gradients"], strict=True):
        np.testing.assert_array_equal(entries(given, "dW"), dW)
    np.testing.assert_array_equal(entries(separate, "sum"), example.sum_of_unshared)
    assert found["largest_differences"] == vars(example.differences)


def test_the_page_shows_them(bptt):
    ended = bptt("explain", "--sentence", "the dog sat down")
    assert (ended.code, ended.err) == (0, "")
    example = worked_example(read_by_small_network("the dog sat down"))
    page = ended.out
    for part in range(1, 8):
        assert f"\n{part}. " in page
    for term in example.terms:
        assert grid.numbers(term.delta) in page
        assert grid.numbers(term.dW[0]) + grid.number(np.linalg.norm(term.dW)) in page
        assert grid.numbers(term.dU[0]) in page
        assert f"delta_{term.k}^(3) = " in page
        if term.jacobian is not None:
            assert grid.numbers(term.jacobian[1]) in page
            assert grid.numbers(term.product[1]) in page
            norm = np.linalg.norm(term.product, 2)
            assert "2-norm" + grid.number(norm) in page
    for step in example.steps:
        assert grid.numbers(step.s) + grid.number(np.linalg.norm(step.s)) in page
        assert grid.numbers(step.o) in page
    for y in range(6):
        assert grid.number(example.dlogits[y]) + grid.numbers(example.dV[y]) in page
    for name, matrix in (("sum", example.dW), ("engine", example.engine.W)):
        line = next(x for x in page.splitlines() if x.startswith(f"  {name} "))
        assert line.endswith(grid.numbers([*matrix[0], np.linalg.norm(matrix)]))
    for cut in example.truncated[:2]:
        row = grid.number(cut.left_W) + grid.percent(cut.bias_W)
        assert row + grid.number(cut.left_U) + grid.percent(cut.bias_U) in page


@pytest.mark.parametrize(
    "options",
    [
        "--hidden 1 --vocab 6",
        "--hidden 3 --embedding 0 --unit sentence",
        "--hidden 40",
        "--level char --hidden 3",
        "--level bpe --hidden 5 --bias False",
    ],
)
def test_the_page_of_a_run_is_plain_and_fits_80_columns(bptt, trained, options):
    run = trained(*options.split())
    ended = bptt("explain", run)
    assert ended.code == 0
    assert max(map(len, ended.out.splitlines())) <= 80
    assert ended.out.replace("\n", "").isprintable()
    example = worked_example(read_by_model(load(run)))
    for term in example.terms:
        row = grid.numbers(term.dW[0][:3]) + grid.number(np.linalg.norm(term.dW))
        assert row in ended.out
    hidden = int(options.split()[1] if options.startswith("--h") else 0)
    assert ("Shown are the first" in ended.out) or hidden == 1


@pytest.mark.parametrize("words", [2, 20])
def test_other_lengths_fit_too(bptt, words):
    ended = bptt("explain", "--sentence", "cat " * words)
    assert ended.code == 0
    assert max(map(len, ended.out.splitlines())) <= 80
    assert f"dE_{words - 1}/dW = sum" in ended.out


def test_json_of_a_larger_run_leaves_large_matrices_out(bptt, trained):
    run = trained("--hidden", 65, "--embedding", 0)
    found = json.loads(bptt("explain", run, "--json").out)
    example = worked_example(read_by_model(load(run)))
    dW = found["dW"]["sum"]
    assert (dW["shape"], dW["entries"]) == ([65, 65], None)
    assert dW["norm"] == np.linalg.norm(example.dW)
    assert found["terms"][2]["delta"] == example.terms[2].delta.tolist()
    assert found["dV"]["sum"]["entries"] == example.dV.tolist()


# gated cells and several layers


@pytest.fixture
def saved(tmp_path):
    """A folder as that of a run, with an untrained model."""

    def save(level="char", **options):
        tokenizer = Tokenizer.train(text(), level, 270 if level == "bpe" else None)
        torch.manual_seed(0)
        config = ModelConfig(vocab=tokenizer.size, **({"hidden": 16} | options))
        model = LanguageModel(config, tokenizer).eval()
        model.save_pretrained(tmp_path / "run")
        return tmp_path / "run", model

    return save


def test_a_run_of_the_default_cell(bptt, train, tmp_path):
    assert train().code == 0
    run = tmp_path / "run"
    ended = bptt("explain", run)
    assert (ended.code, ended.err) == (0, "")
    require_page(ended.out, worked_example(read_by_model(load(run))))


@pytest.mark.parametrize(
    ("layer", "options"),
    [
        (None, {"cell": "lstm", "layers": 2, "unit": "sentence"}),
        (1, {"cell": "lstm", "layers": 3, "bias": False, "hidden": 2}),
        (None, {"cell": "gru", "hidden": 1}),
        (1, {"cell": "gru", "layers": 2, "hidden": 40, "level": "bpe"}),
        (2, {"cell": "gru", "layers": 2, "embedding": 16, "tied": True}),
        (2, {"cell": "rnn", "layers": 2, "hidden": 3}),
    ],
)
def test_the_page_of_any_network(bptt, saved, layer, options):
    run, model = saved(**options)
    ended = bptt("explain", run, *(() if layer is None else ("--layer", layer)))
    assert (ended.code, ended.err) == (0, "")
    require_page(ended.out, worked_example(read_by_model(model), layer))


def require_page(page, example):
    """Every number of the page of gated cells and of stacks."""
    lines, network = page.splitlines(), example.network
    assert max(map(len, lines)) <= 80
    assert page.replace("\n", "").isprintable()
    for part in range(1, 8):
        assert f"\n{part}. " in page
    gates = len(network.gates) or 1

    def by_gate(rows):
        blocks = rows.reshape(gates, -1)
        return grid.numbers(np.linalg.norm(blocks, axis=1))

    for term in example.terms:
        parts = [term.ds[network.part(example.layer, name)] for name in network.parts]
        row = f"  {term.k:2}" + grid.numbers(np.linalg.norm(parts, axis=1))
        row += by_gate(term.delta)
        if network.gates == "rzn":
            row += by_gate(term.hidden_delta)[-grid.WIDTH :]
        assert row.rstrip() in lines
        for matrix in (term.dW, term.dU):
            row = by_gate(matrix) if network.gates else ""
            row += grid.number(np.linalg.norm(matrix))
            assert f"  {term.k:2}    {row}" in lines
    for step in example.steps:
        if network.gates:
            row = f"  {step.t:2}" + grid.numbers(np.abs(step.gates).mean(axis=1))
            assert any(line.startswith(row) for line in lines)
    for term in example.terms[1:]:
        found = [term.stretch_of_step, term.stretch]
        if term.carried is not None:
            found.append(example.stretch_of_part(term))
            found += [term.carried.max(), term.carried.mean()]
        assert f"  {term.k:2}{grid.numbers(found)}" in lines
    for name, matrix in (("sum", example.dW), ("engine", example.engine.W)):
        norms = (by_gate(matrix) if network.gates else "") + grid.number(
            np.linalg.norm(matrix)
        )
        largest = sorted(matrix.ravel(), key=abs, reverse=True)[:6]
        assert f"  {name:6}{norms}" in lines
        assert f"  {name:6}{grid.numbers(largest)}" in lines


def test_the_page_of_rectifiers(capsys):
    reading = read_by_small_network()
    layers = tuple(a._replace(cell=ReLUCell()) for a in reading.network.layers)
    network = replace(reading.network, layers=layers)
    example = worked_example(replace(reading, network=network))
    StackPage(Sheet(), example).print()
    page = capsys.readouterr().out
    assert "  h_t = max(0, U x_t + W h_{t-1})\n" in page
    require_page(page, example)


def test_the_names_of_the_largest_entries_are_theirs(bptt, saved):
    run, model = saved(cell="gru")
    lines = bptt("explain", run).out.splitlines()
    example = worked_example(read_by_model(model))
    at = next(n for n, line in enumerate(lines) if line.endswith("row, column"))
    rows, columns = lines[at - 1].split()[:6], lines[at].split()[1:7]
    values = next(line for line in lines[at:] if line.startswith("  sum")).split()[1:]
    for row, column, value in zip(rows, columns, values, strict=True):
        assert column.startswith("h[")
        dW = example.dW.reshape(3, 16, 16)["rzn".index(row[0]), int(row[2:-1])]
        assert grid.number(dW[int(column[2:-1])]).strip() == value


def test_what_f_does_is_said_with_its_numbers(bptt, saved):
    run, model = saved()
    said = " ".join(bptt("explain", run).out.split())
    example = worked_example(read_by_model(model))
    carried = example.terms[-1].carried
    mean = np.mean([step.gates[1] for step in example.steps[1:]])
    assert "here also c_{j-1} reaches c_j as f_j * c_{j-1}, past W" in said
    assert f"Here f is {mean:.3f} on average, and over 3 steps this part is " in said
    assert f"{carried.mean():.2g} for the mean unit, {carried.max():.2g} for" in said


def test_json_of_a_gated_network(bptt, saved):
    run, model = saved(layers=2, hidden=4)
    found = json.loads(bptt("explain", run, "--layer", 1, "--json").out)
    example = worked_example(read_by_model(model), 1)
    network = found["network"]
    assert (network["cell"], network["layers"], network["layer"]) == ("LSTMCell", 2, 1)
    np.testing.assert_array_equal(
        entries(network, "W"), model.recurrent.weight_hh_l0.detach().double()
    )
    for step, given in zip(example.steps, found["steps"], strict=True):
        assert list(given["gates"]) == ["i", "f", "g", "o"]
        assert list(given["gates"].values()) == step.gates.tolist()
        assert len(given["s"]) == 2 * 2 * 4
        assert (given["s"], given["h"]) == (step.s.tolist(), step.h.tolist())
    for term, given in zip(example.terms, found["terms"], strict=True):
        for name in ("ds", "delta", "hidden_delta", "h_before", "carried"):
            assert given[name] == getattr(term, name).tolist()
        assert given["part_2_norm"] == example.stretch_of_part(term)
        np.testing.assert_array_equal(entries(given, "dW"), term.dW)
        assert given["product"]["shape"] == [16, 16]


def test_every_field_of_the_json_is_documented(bptt):
    page = (Path(__file__).parents[2] / "docs" / "explain.md").read_text()
    documented = set(re.findall(r"[`\"](\w+)(?:\[\])?[`\"]", page))
    found = json.loads(bptt("explain", "--json").out)

    def names(value):
        if isinstance(value, dict):
            yield from value
            value = list(value.values())
        if isinstance(value, list):
            for part in value:
                yield from names(part)

    assert set(names(found)) <= documented


# what is refused


@pytest.mark.parametrize(
    ("sentence", "message"),
    [
        ("the bird sat down", "sentence has 'bird', which the network does not know"),
        ("the", "sentence must have from 2 to 20 words or tokens; got 1"),
        ("", "got 0"),
        ("the \x1b]0;owned\x07cat \x9b2J", r"has '\x1b]0;owned\x07cat', '\x9b2j'"),
    ],
)
def test_a_sentence_that_cannot_be(bptt, sentence, message):
    for more in ((), ("--json",)):
        ended = bptt("explain", "--sentence", sentence, *more)
        assert ended.code == 2
        assert message in ended.message
        assert ended.err.rstrip("\n").isprintable()


def test_runs_that_cannot_be(bptt, train, tmp_path):
    ended = bptt("explain", tmp_path / "a\x1b[31m")
    assert ended.code == 2
    assert r"a\x1b[31m is no run" in ended.message
    assert ended.err.rstrip("\n").isprintable()
    assert train("--layers", 2).code == 0
    ended = bptt("explain", tmp_path / "run", "--layer", 3)
    assert ended.code == 2
    assert "layer must be from 1 to 2; got 3" in ended.message
    (tmp_path / "run" / "model.safetensors").write_bytes(b"x")
    assert bptt("explain", tmp_path / "run").code == 3


def test_words_of_a_vocabulary_cannot_drive_the_terminal(bptt, train, tmp_path):
    odd = tmp_path / "odd.txt"
    odd.write_text("a[red]\x1b[31m\u202eb\n" * 60)
    words = ["--cell", "rnn", "--level", "char"]
    assert train(*words, texts=[odd]).code == 0
    ended = bptt("explain", tmp_path / "run", "--sentence", "[red]\x1b[\u202e")
    assert ended.code == 0
    assert ended.out.replace("\n", "").isprintable()
    assert ended.out.startswith(
        r"Backpropagation through time: [ r e d ] \x1b [ \u202e"
    )


def test_a_wrong_gradient_of_the_engine_exits_4(bptt, monkeypatch):
    monkeypatch.setattr(TanhCell, "slope", staticmethod(lambda h: 1 - h))
    ended = bptt("explain")
    assert ended.code == 4
    assert "the terms and the engine differ" in ended.message


# terminals


def in_a_terminal(**environment):
    """What `bptt explain` writes to a terminal."""
    master, slave = pty.openpty()
    env = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "FORCE_COLOR")}
    env |= {"TERM": "xterm-256color", "OMP_NUM_THREADS": "1", **environment}
    command = [sys.executable, "-W", "ignore", "-m", "bptt", "explain"]
    process = subprocess.Popen(command, stdout=slave, stderr=slave, env=env)
    os.close(slave)
    found = b""
    while True:
        try:
            found += os.read(master, 65536)
        except OSError:  # the other end is closed
            break
    os.close(master)
    assert process.wait() == 0
    return found.decode().replace("\r\n", "\n")


def test_a_terminal_gets_headings_unless_color_is_unwanted(bptt):
    plain = bptt("explain").out
    assert in_a_terminal(NO_COLOR="1") == plain
    styled = in_a_terminal()
    assert "\x1b[1m1. Forward" in styled
    assert len(styled) > len(plain)


def test_help_does_not_wait_for_torch():
    code = "import sys; from bptt.cli import main; main(['explain', '--help'])"
    code += "; assert not {'torch', 'numpy'} & set(sys.modules), 'slow'"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "--sentence" in done.stdout


# the columns


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.0, "        0"),
        (-0.0, "        0"),
        (0.123456, "  0.12346"),
        (-9.99, " -9.99000"),
        (-12.3456, "  -12.346"),
        (999.4, "  999.400"),
        (1234.5, "  1.2e+03"),
        (-0.00012345, " -1.2e-04"),
        (float("nan"), "      nan"),
    ],
)
def test_numbers(value, shown):
    assert grid.number(value) == shown


@pytest.mark.parametrize(
    ("word", "shown"),
    [
        ("cat", "      cat"),
        ("attribute", " attribut"),
        (" ", "      ' '"),
        ("\n", "       \\n"),
        ("\x1b", "     \\x1b"),
        ("猫", "       猫"),
        ("猫" * 9, " 猫猫猫猫"),
    ],
)
def test_words(word, shown):
    assert grid.word(word) == shown
