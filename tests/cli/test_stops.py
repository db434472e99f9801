"""Runs that are stopped, go on, or meet damage."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load, save

from bptt import storage
from bptt.cli import commands
from bptt.training import Options, resolve
from damage import vouched

ENDLESS = ("--dropout", "0.2", "--snapshot-every", "1000000")
SIGNALS = {"SIGINT": 130, "SIGTERM": 143}


def steps(folder):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["step"] for line in lines if "gradient_norm" in line]


def snapshots(folder):
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


@pytest.fixture
def stop_at(monkeypatch):
    """Send this process a signal after some update of a run."""

    def arrange(step, name="SIGINT"):
        update = commands.Trainer._update

        def with_signal(self, batch):
            loss = update(self, batch)
            if self.progress.step == step:
                signal.raise_signal(signal.Signals[name])
            return loss

        monkeypatch.setattr(commands.Trainer, "_update", with_signal)

    return arrange


def test_a_signal_to_the_program_saves_its_state(train, stop_at, book, tmp_path):
    words = [sys.executable, "-m", "bptt", "train", book, "--hidden", "16"]
    words += ["--window", "8", "--batch", "2", "--steps", "1000000", *ENDLESS]
    programs = {}
    for name in SIGNALS:
        out = tmp_path / name
        programs[name] = subprocess.Popen(
            [*words, "--out", out],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
    for name, code in SIGNALS.items():
        out, program = tmp_path / name, programs[name]
        deadline_s = time.monotonic() + 60
        while not (out / "metrics.jsonl").exists():
            assert time.monotonic() < deadline_s
            assert program.poll() is None, program.stderr.read()
            time.sleep(0.05)
        time.sleep(0.3)
        program.send_signal(signal.Signals[name])
        stdout, stderr = program.communicate(timeout=60)
        assert program.returncode == code, stderr
        assert stdout == ""
        assert ", 1000000 steps." in stderr
        last = stderr.splitlines()[-1]
        assert last.endswith(f"the state is saved: go on with --out {out} --resume")
        done = steps(out)
        assert done == list(range(1, len(done) + 1))
        assert snapshots(out) == [f"step-{len(done):09d}"]
        assert f"Stopped at step {len(done)};" in last

    out, before = tmp_path / "SIGTERM", len(done)
    stop_at(before + 3)
    ended = train(*ENDLESS, "--out", out, "--resume", steps=1_000_000)
    assert (ended.code, ended.out) == (130, "")
    assert f"Going on from step {before}." in ended.err
    assert steps(out) == list(range(1, before + 4))


@pytest.mark.parametrize("name", SIGNALS)
def test_a_stopped_run_goes_on_to_the_same_end(train, stop_at, tmp_path, name):
    words = ("--dropout", 0.3, "--k2", 16)
    assert train(*words, "--out", tmp_path / "whole", steps=9).code == 0
    stop_at(5, name)
    handlers = [signal.getsignal(signal.Signals[n]) for n in SIGNALS]
    ended = train(*words, steps=9)
    assert (ended.code, ended.out) == (SIGNALS[name], "")
    assert "Stopped at step 5; the state is saved" in ended.err
    assert handlers == [signal.getsignal(signal.Signals[n]) for n in SIGNALS]
    ended = train(*words, "--resume", steps=9)
    assert (ended.code, ended.out) == (0, f"{tmp_path / 'run'}\n")
    assert "Going on from step 5." in ended.err
    for file in ("metrics.jsonl", "model.safetensors", "manifest.json", "config.json"):
        a, b = ((tmp_path / run / file).read_bytes() for run in ("whole", "run"))
        assert a == b, file


def test_a_second_signal_acts_as_usual(train, monkeypatch):
    def twice(self):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(commands.Trainer, "run", twice)
    ended = train()
    assert (ended.code, ended.out) == (130, "")
    assert ended.err.splitlines()[-1] == "bptt: interrupted"
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_resuming_a_finished_run_is_done(train, tmp_path):
    assert train().code == 0
    before = {p: p.read_bytes() for p in (tmp_path / "run").iterdir() if p.is_file()}
    ended = train("--resume")
    assert (ended.code, ended.out) == (0, "")
    assert ended.err.strip() == f"The run in {tmp_path / 'run'} is finished."
    assert before == {p: p.read_bytes() for p in before}


def test_resuming_what_has_no_snapshot_begins_and_says_so(train, tmp_path):
    assert train("--out", tmp_path / "whole").code == 0
    for prepare in ("nothing", "killed early"):
        out = tmp_path / prepare
        if prepare == "killed early":
            (out / "checkpoints").mkdir(parents=True)
            line = (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()[0]
            (out / "metrics.jsonl").write_text(line + '\n{"step": 1, "lo')
        ended = train("--out", out, "--resume")
        assert (ended.code, ended.out) == (0, f"{out}\n")
        assert "No snapshot yet: starting from the beginning." in ended.err
        for file in ("metrics.jsonl", "model.safetensors"):
            a, b = ((tmp_path / "whole" / file).read_bytes(), (out / file).read_bytes())
            assert a == b, (prepare, file)


OTHER_OPTIONS = {
    "--hidden 17": "hidden was 16 and is 17",
    "--cell gru": "cell was 'lstm' and is 'gru'",
    "--lr 0.1": "lr was {lr} and is 0.1",
    "--seed 1": "seed was 0 and is 1",
    "--k2 16": "k1 was None and is 8",
    "--window 4": "window was 8 and is 4",
    "--dropout 0.5": "dropout was 0.0 and is 0.5",
    "--steps 10": "steps was 9 and is 10",
}


@pytest.fixture
def stopped(train, stop_at, monkeypatch, tmp_path):
    """A run that was stopped at step 5 of 9."""
    with monkeypatch.context():
        stop_at(5)
        assert train(steps=9).code == 130
    return tmp_path / "run"


def test_resuming_with_other_options_is_refused(train, stopped):
    before = {p: p.read_bytes() for p in stopped.rglob("*") if p.is_file()}
    for words, message in OTHER_OPTIONS.items():
        ended = train("--resume", *words.split(), steps=9)
        assert ended.code == 2, words
        assert ended.message == (
            "bptt: --resume needs the options that the run began with: "
            + message.format(lr=resolve(Options(), 9)[1].lr)
        )
    assert before == {p: p.read_bytes() for p in stopped.rglob("*") if p.is_file()}


def test_resuming_with_another_text_is_refused(train, stopped, book, tmp_path):
    other = tmp_path / "other.txt"
    other.write_text(book.read_text().replace("the cat", "a dog"))
    for texts, valid in (([other], []), ([book], ["--valid", other]), ([], [])):
        ended = train("--resume", *valid, texts=texts, steps=9)
        assert ended.code == 2
        assert "--resume needs the texts that the run began with" in ended.message


# damage


def damage(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x10
    path.write_bytes(data)


@pytest.mark.parametrize(
    "name", ["config.json", "model.safetensors", "tokenizer.json", "manifest.json"]
)
def test_a_damaged_run(bptt, train, book, tmp_path, name):
    assert train(steps=1).code == 0
    path = tmp_path / "run" / name
    damage(path)
    for command in (("evaluate", tmp_path / "run", book), ("generate", path.parent)):
        ended = bptt(*command)
        assert ended.code == 3
        assert str(path if name != "manifest.json" else path.parent) in ended.message
    if name != "manifest.json":
        path.unlink()
        ended = bptt("generate", tmp_path / "run")
        assert ended.code == 3
        assert f"{path} cannot be read" in ended.message


@pytest.mark.parametrize("name", ["state.json", "tensors.safetensors", "manifest.json"])
def test_damaged_snapshots(train, stopped, name):
    for snapshot in (stopped / "checkpoints").iterdir():
        damage(snapshot / name)
    ended = train("--resume", steps=9)
    assert ended.code == 3
    assert f"step-000000005/{name}" in ended.message


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"{}", b'{"format": 1, "model": "x"}', b"\xff\xfe"]
)
def test_a_damaged_configuration_of_a_run_to_go_on_with(train, stopped, content):
    (stopped / "config.json").write_bytes(content)
    ended = train("--resume", steps=9)
    assert ended.code == 3
    assert str(stopped / "config.json") in ended.message


def test_damaged_metrics(train, stopped):
    path = stopped / "metrics.jsonl"
    path.write_text("x" + path.read_text())
    ended = train("--resume", steps=9)
    assert ended.code == 3
    assert f"{path}, line 1: " in ended.message


def test_a_damaged_snapshot_is_passed_over_and_this_is_said(
    train, stop_at, tmp_path, monkeypatch
):
    words = ("--snapshot-every", 2)
    assert train(*words, "--out", tmp_path / "whole", steps=9).code == 0
    stop_at(5)
    assert train(*words, steps=9).code == 130
    monkeypatch.undo()
    path = tmp_path / "run" / "checkpoints" / "step-000000005" / "tensors.safetensors"
    damage(path)
    ended = train(*words, "--resume", steps=9)
    assert ended.code == 0
    (line,) = [x for x in ended.err.splitlines() if "not usable" in x]
    assert line == (
        f"A newer snapshot is not usable: {path} is damaged: its SHA-256 is not the "
        "saved one"
    )
    assert "Going on from step 4." in ended.err
    for file in ("metrics.jsonl", "model.safetensors"):
        a, b = ((tmp_path / run / file).read_bytes() for run in ("whole", "run"))
        assert a == b, file


def test_another_number_of_threads_is_said_in_a_line(train, stopped, monkeypatch):
    ended = train("--resume", steps=9)
    assert "threads" not in ended.err
    stopped_again = stopped / "checkpoints"
    assert snapshots(stopped)  # of the finished run
    for path in stopped_again.iterdir():
        state = json.loads((path / "state.json").read_bytes())
        assert state["threads"] == 1
        state["threads"] = 5
        tensors = (path / "tensors.safetensors").read_bytes()
        storage.write_files(
            path,
            {"state.json": json.dumps(state).encode(), "tensors.safetensors": tensors},
        )
    (stopped / "metrics.jsonl").write_text("")  # as if it had not finished
    ended = train("--resume", steps=9)
    (line,) = [x for x in ended.err.splitlines() if "threads" in x]
    assert line.startswith("Warning: the run had 5 threads and now has 1; ")


def test_a_run_from_before_an_option_goes_on(train, stop_at, tmp_path, monkeypatch):
    assert train("--out", tmp_path / "whole", steps=9).code == 0
    stop_at(5)
    assert train(steps=9).code == 130
    monkeypatch.undo()
    folder = tmp_path / "run"
    config = json.loads((folder / "config.json").read_bytes())
    assert config["training"].pop("on_nonfinite") == "raise"
    vouched(folder, "config.json", json.dumps(config).encode())
    snapshot = folder / "checkpoints" / "step-000000005"
    state = json.loads((snapshot / "state.json").read_bytes())
    state = {name: state[name] for name in ("data", "step", "last_valid", "best_valid")}
    vouched(snapshot, "state.json", json.dumps(state).encode())
    ended = train("--resume", "--on-nonfinite", "skip", steps=9)
    assert ended.code == 2
    assert "on_nonfinite was 'raise' and is 'skip'" in ended.message
    ended = train("--resume", steps=9)
    assert ended.code == 0
    assert "Going on from step 5." in ended.err
    for file in ("metrics.jsonl", "model.safetensors"):
        a, b = ((tmp_path / run / file).read_bytes() for run in ("whole", "run"))
        assert a == b, file


def test_a_snapshot_that_does_not_fit_is_passed_over_and_this_is_said(
    train, stop_at, tmp_path, monkeypatch
):
    stop_at(5)
    assert train("--snapshot-every", 2, steps=9).code == 130
    monkeypatch.undo()
    newest = tmp_path / "run" / "checkpoints" / "step-000000005"
    tensors = load((newest / "tensors.safetensors").read_bytes())
    tensors["model.decoder.bias"] = torch.zeros(2)
    vouched(newest, "tensors.safetensors", save(tensors))
    ended = train("--snapshot-every", 2, "--resume", steps=9)
    assert ended.code == 0
    (line,) = [x for x in ended.err.splitlines() if "not usable" in x]
    assert line == (
        f"A newer snapshot is not usable: {newest / 'tensors.safetensors'}: the "
        "snapshot does not fit this model: 'model.decoder.bias' is torch.float32 (2,)"
    )
    assert "Going on from step 4." in ended.err
