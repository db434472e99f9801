import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch

import bptt
import bptt.training.loop
from bptt.errors import InputError
from bptt.language_model import LanguageModel
from bptt.training import Measurement, Options, Stopped, evaluate, load_corpus
from bptt.training.loop import EVALUATIONS
from bptt.training.optimizer import learning_rate
from training.problems import corpus, trainer, weights


def metrics(folder):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def updates(folder):
    return [line for line in metrics(folder) if "loss" in line]


def measurements(folder):
    return [line for line in metrics(folder) if "valid_loss" in line]


# the tutorial's recipe


def test_the_tutorials_options_are_the_tutorials_sgd(tmp_path):
    steps = 40
    options = {"cell": "rnn", "level": "word", "unit": "sentence", "one_a_line": True}
    options |= {"bptt_truncate": 2, "optimizer": "sgd", "lr": 0.1, "hidden": 10}
    run, watcher = trainer(
        tmp_path, dtype=torch.float64, steps=steps, batch=None, **options
    )
    assert run.config.batch == 1
    tutorial = bptt.tutorial.RNN(run.corpus.tokenizer.size, 10, bptt_truncate=2)
    run.model.load_state_dict(
        {
            "recurrent.weight_ih_l0": torch.from_numpy(tutorial.U),
            "recurrent.weight_hh_l0": torch.from_numpy(tutorial.W),
            "decoder.weight": torch.from_numpy(tutorial.V),
        }
    )
    begin = tutorial.U.copy()
    seen = []

    def step_too(run):
        step = run.progress.step
        batch = run.batches.batch_at(step - 1)
        x, y = batch.inputs[:, 0], batch.targets[:, 0]
        seen.append(tuple(x))
        rate = run.optimizer.param_groups[0]["lr"]
        tutorial.sgd_step(x, y, rate)
        for name, parameter, expected in (
            ("U", run.model.recurrent.weight_ih_l0, tutorial.U),
            ("V", run.model.decoder.weight, tutorial.V),
            ("W", run.model.recurrent.weight_hh_l0, tutorial.W),
        ):
            np.testing.assert_allclose(
                parameter.detach().numpy(),
                expected,
                rtol=0,
                atol=1e-10,
                err_msg=f"{name} after step {step}",
            )

    watcher.after_step = step_too
    run.run()
    assert len(seen) == steps
    assert len(set(seen)) > 20  # sentences differ
    assert max(map(len, seen)) > 3  # and the truncation cuts
    assert abs(tutorial.U - begin).max() > 0.1
    assert updates(tmp_path)[0]["learning_rate"] == 0.1


# rates and clipping


def test_the_rates_are_those_of_the_schedule(tmp_path):
    run, _ = trainer(tmp_path, steps=7)
    run.run()
    rates = [line["learning_rate"] for line in updates(tmp_path)]
    assert rates == [learning_rate(run.config, n / 7, 1.0) for n in range(1, 8)]
    assert rates[-1] == pytest.approx(0.02 * run.config.lr)


def test_epochs_are_as_many_steps_as_there_are_batches(tmp_path):
    run, _ = trainer(tmp_path, epochs=2, window=64)
    run.run()
    lines = updates(tmp_path)
    assert len(lines) == run.progress.step == 2 * run.batches.steps_per_epoch > 10
    assert lines[0]["learning_rate"] == learning_rate(run.config, 1 / len(lines), 1.0)


def scripted(monkeypatch, values):
    """Let the measurements come out as told, then stay."""
    left = list(values)

    def measure(model, batches):
        return Measurement(left.pop(0) if len(left) > 1 else left[0], 10)

    monkeypatch.setattr(bptt.training.loop, "evaluate", measure)


VALID = [3.0, 2.0, 2.5, 2.5, 2.4, 2.6, 2.7, 2.1]
SCALES = [1, 1, 0.5, 0.5, 0.5, 0.25, 0.125, 0.125]


def test_sgd_halves_its_rate_exactly_when_the_validation_loss_rises(
    tmp_path, monkeypatch
):
    scripted(monkeypatch, VALID)
    run, _ = trainer(tmp_path, steps=10, optimizer="sgd", lr=0.5)
    run.run()
    rates = [line["learning_rate"] for line in updates(tmp_path)]
    assert rates[: len(SCALES)] == [0.5 * scale for scale in SCALES]


def test_adamw_does_not(tmp_path, monkeypatch):
    scripted(monkeypatch, VALID)
    run, _ = trainer(tmp_path, steps=10)
    run.run()
    rates = [line["learning_rate"] for line in updates(tmp_path)]
    assert rates == [learning_rate(run.config, n / 10, 1.0) for n in range(1, 11)]


@pytest.mark.parametrize("clip", [0.01, 1e6, 0.0])
def test_the_gradient_is_clipped_and_its_norm_told_from_before(tmp_path, clip):
    run, watcher = trainer(
        tmp_path, steps=1, optimizer="sgd", clip=clip, lr=1.0, dtype=torch.float64
    )
    before = weights(run.model)
    after = {}
    watcher.after_step = lambda run: after.update(weights(run.model))
    run.run()
    batch = run.batches.batch_at(0)
    run.model.load_state_dict(before)
    logits, _ = run.model(torch.from_numpy(batch.inputs))
    loss = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), torch.from_numpy(batch.targets).flatten(), reduction="sum"
    )
    parameters = dict(run.model.named_parameters())
    found = torch.autograd.grad(loss / run.config.batch, list(parameters.values()))
    norm = math.sqrt(sum(float(g.square().sum()) for g in found))
    (line,) = updates(tmp_path)
    assert line["gradient_norm"] == pytest.approx(norm, rel=1e-12)
    assert line["loss"] == pytest.approx(loss.item() / batch.tokens, rel=1e-12)
    applied = min(1.0, clip / norm) if clip else 1.0
    for name, gradient in zip(parameters, found, strict=True):
        torch.testing.assert_close(
            before[name] - after[name], applied * gradient, rtol=1e-4, atol=1e-10
        )


def test_adamw_takes_the_mean_over_tokens(tmp_path):
    options = {"unit": "sentence", "one_a_line": True, "batch": 60, "clip": 0.0}
    run, watcher = trainer(tmp_path, steps=1, dtype=torch.float64, **options)
    before, gradients = weights(run.model), {}
    watcher.after_step = lambda run: gradients.update(
        {name: p.grad.clone() for name, p in run.model.named_parameters()}
    )
    run.run()
    batch = run.batches.batch_at(0)
    assert (batch.targets < 0).any()  # the sentences differ in length
    run.model.load_state_dict(before)
    run.model.zero_grad()
    logits, _ = run.model(torch.from_numpy(batch.inputs))
    torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), torch.from_numpy(batch.targets).flatten()
    ).backward()
    for name, parameter in run.model.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad, msg=name)


def test_dropout_is_another_one_at_every_step_and_for_every_seed(tmp_path):
    def masks(name, seed):
        run, _ = trainer(tmp_path / name, steps=4, dropout=0.5, seed=seed)
        seen = []

        def look(module, given):
            if module.training:
                seen.append((given[0] == 0).numpy().tobytes())

        run.model.decoder.register_forward_pre_hook(look)
        run.run()
        return seen

    first = masks("a", 0)
    assert len(set(first)) == len(first) == 4
    assert first == masks("b", 0)
    assert not set(first) & set(masks("c", 1))


# what goes wrong


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_a_step_that_is_not_finite_changes_nothing(tmp_path, optimizer, what):
    run, watcher = trainer(tmp_path, steps=20, optimizer=optimizer, lr=0.1)
    found = {}

    def spoil(run):
        if run.progress.step == 3:
            weight = run.model.decoder.weight
            if what == "loss":
                with torch.no_grad():
                    weight[4] = math.nan
            else:
                weight.register_hook(lambda gradient: gradient * math.inf)
            found.update(weights(run.model))

    watcher.after_step = spoil
    message = r"step 3: .*: the run diverged; try a smaller --lr than 0\.1"
    message += " or --clip 1" if optimizer == "sgd" else "$"
    with pytest.raises(FloatingPointError, match=message):
        run.run()
    assert run.progress.step == 3
    for name, tensor in run.model.state_dict().items():
        assert torch.equal(tensor.nan_to_num(9), found[name].nan_to_num(9)), name
    assert LanguageModel.from_pretrained(tmp_path).decoder.weight.isfinite().all()


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_validation_loss_that_is_not_finite(tmp_path, monkeypatch, value):
    scripted(monkeypatch, [3.0, value])
    run, _ = trainer(tmp_path, steps=20)
    with pytest.raises(FloatingPointError, match=r"step 2: validation loss (nan|inf)"):
        run.run()


def test_a_text_shorter_than_a_window(tmp_path):
    with pytest.raises(InputError, match="smaller --window or more text"):
        trainer(tmp_path, data=corpus(Options(), n=4), window=200, steps=1)


# learning


@pytest.mark.parametrize(
    "options",
    [
        {"cell": "lstm", "hidden": 24, "lr": 0.02},
        {"cell": "gru", "level": "word", "hidden": 16, "lr": 0.02, "dropout": 0.1},
        {"cell": "rnn", "optimizer": "sgd", "hidden": 24, "lr": 0.02, "clip": 5.0},
        {"cell": "rnn", "level": "word", "unit": "sentence", "one_a_line": True}
        | {"lr": 0.02, "bptt_truncate": 2, "hidden": 16},
    ],
    ids=str,
)
def test_the_loss_falls(tmp_path, options):
    run, watcher = trainer(tmp_path, steps=80, batch=8, **options)
    final = run.run()
    first = watcher.evaluations[0][2]
    assert first.loss == pytest.approx(math.log(run.corpus.tokenizer.size), abs=0.5)
    assert final.loss < 0.75 * first.loss
    assert updates(tmp_path)[-1]["loss"] < 0.8 * updates(tmp_path)[0]["loss"]


def test_the_model_saved_is_the_best_of_those_measured(tmp_path, monkeypatch):
    scripted(monkeypatch, VALID)
    run, watcher = trainer(tmp_path, steps=20)
    at = {}
    watcher.after_evaluation = lambda run: at.update(
        {run.progress.step: weights(run.model)}
    )
    run.run()
    assert sorted(at) == list(range(0, 21, 2))
    best = at[2 * VALID.index(min(VALID))]
    saved = LanguageModel.from_pretrained(tmp_path)
    for name, tensor in best.items():
        assert torch.equal(saved.state_dict()[name], tensor), name
        assert torch.equal(run.model.state_dict()[name], tensor), name
        assert not torch.equal(at[20][name], tensor), name


def test_the_loss_told_is_that_of_the_saved_model_on_all_that_is_held_out(tmp_path):
    run, _ = trainer(tmp_path, steps=10, dropout=0.3, layers=2)
    final = run.run()
    saved = LanguageModel.from_pretrained(tmp_path)
    assert final == evaluate(saved, run.corpus.validation)
    assert saved.config == run.model.config
    assert measurements(tmp_path)[-1] == {
        "step": 10,
        "valid_loss": final.loss,
        "valid_tokens": run.corpus.held_out.tokens,
        "final": True,
    }


def test_it_is_measured_ten_times_and_at_both_ends(tmp_path):
    run, watcher = trainer(tmp_path, steps=40)
    run.run()
    steps = [step for step, _, _ in watcher.evaluations]
    assert steps == [4 * i for i in range(EVALUATIONS + 1)]
    losses = [line["loss"] for line in updates(tmp_path)]
    assert math.isnan(watcher.evaluations[0][1])
    for step, mean, _ in watcher.evaluations[1:]:
        assert mean == pytest.approx(sum(losses[step - 4 : step]) / 4)
    order = [(line["step"], "loss" in line) for line in metrics(tmp_path)]
    expected = sorted([(n, True) for n in range(1, 41)] + [(n, False) for n in steps])
    assert sorted(order[:-1]) == expected
    assert [step for step, _ in order] == sorted(step for step, _ in order)


def test_minutes_end_the_run(tmp_path):
    run, _ = trainer(tmp_path, minutes=0.005)
    run.run()
    assert run.clock.elapsed_s < 5
    assert run.progress.step > 0
    assert run.folder.finished


def test_a_snapshot_is_made_as_often_as_asked(tmp_path):
    run, watcher = trainer(tmp_path, steps=1000, snapshot_every=3, stop_at=(8,))
    seen = []
    watcher.after_step = lambda run: seen.append(
        max((p.name for p in (tmp_path / "checkpoints").iterdir()), default=None)
    )
    with pytest.raises(Stopped):
        run.run()
    assert seen == [None] * 3 + ["step-000000003"] * 3 + ["step-000000006"] * 2
    names = sorted(p.name for p in (tmp_path / "checkpoints").iterdir())
    assert names == ["step-000000006", "step-000000008"]


@pytest.mark.skipif(
    "BPTT_TEST_TEXT" not in os.environ, reason="BPTT_TEST_TEXT names no text"
)
def test_a_real_text_is_learnt(tmp_path):
    text = Path(os.environ["BPTT_TEST_TEXT"])
    data = load_corpus(Options(), [text], [])
    options = {"hidden": 64, "window": 32, "batch": 32, "lr": 0.02}
    run, watcher = trainer(tmp_path, data=data, steps=60, **options)
    run.run()
    assert watcher.evaluations[-1][2].loss < 3.0
    assert watcher.evaluations[-1][2].loss < watcher.evaluations[0][2].loss - 1
