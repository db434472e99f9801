"""What is not finite reaches neither the weights nor a snapshot, by every policy."""

import json
import math

import pytest
import torch

from bptt.training import RunFolder, Stopped, loop
from bptt.training.nonfinite import MOST_ROLLBACKS, MOST_SKIPS
from training.problems import trainer, weights

STEPS = 12
BASE = {"steps": STEPS, "snapshot_every": 4, "dropout": 0.3, "lr": 0.05}
PLACES = ("logits", "gradient", "state")


@pytest.fixture(autouse=True)
def few_snapshots(monkeypatch):
    """At steps 4, 6, 8 and 12, and at 0 to roll back to."""
    monkeypatch.setattr(loop, "EVALUATIONS", 2)


def spoil(run, place, when):
    """Make one number of the updates for which `when(progress)` is true not finite."""
    model = run.model

    def forward(module, given, out):
        logits, state = out
        if not (module.training and torch.is_grad_enabled() and when(run.progress)):
            return out
        if place == "logits":
            logits = logits * torch.where(
                torch.arange(logits.shape[-1]) == 2, math.nan, 1.0
            )
        elif place == "state":
            state = tuple(part * math.nan for part in state)
            logits = logits * math.inf
        return logits, state

    model.register_forward_hook(forward)
    if place == "gradient":
        weight = model.decoder.weight
        weight.register_hook(lambda g: g * math.inf if when(run.progress) else g)


def lines(folder):
    return [json.loads(x) for x in (folder / "metrics.jsonl").read_text().splitlines()]


def finished(folder, place, when, stops=(), **options):
    """The metrics and weights of a run that is stopped at these steps."""
    options = BASE | options
    for stop in stops:
        run, _ = trainer(folder, stop_at=(stop,), **options)
        spoil(run, place, when)
        run.resume()
        with pytest.raises(Stopped):
            run.run()
        _, tensors = RunFolder(folder).load_snapshot()
        assert all(t.isfinite().all() for t in tensors.values())
    run, _ = trainer(folder, **options)
    spoil(run, place, when)
    assert run.resume() == bool(stops)
    run.run()
    found = {n: t.numpy().tobytes() for n, t in run.model.state_dict().items()}
    assert all(t.isfinite().all() for t in run.model.state_dict().values())
    return (folder / "metrics.jsonl").read_bytes(), found, run


@pytest.mark.parametrize("place", PLACES)
def test_wherever_it_appears_no_weight_and_no_snapshot_has_it(tmp_path, place):
    """At each of 14 steps, in three places: 42 in all."""
    for bad in range(1, 15):
        folder = tmp_path / str(bad)
        before = {}
        run, watcher = trainer(folder, **BASE | {"steps": 14, "snapshot_every": 3})
        spoil(run, place, lambda progress, bad=bad: progress.step == bad - 1)
        before[0] = weights(run.model)
        watcher.after_step = lambda run, before=before: before.update(
            {run.progress.step: weights(run.model)}
        )
        with pytest.raises(FloatingPointError, match=f"step {bad - 1}: "):
            run.run()
        after = weights(run.model)
        assert max(before) == bad - 1
        for name, weight in before[bad - 1].items():
            assert torch.equal(after[name], weight)
            assert weight.isfinite().all()
        saved = RunFolder(folder).load_snapshot()
        due = [step for step in (3, 6, 7, 9, 12) if step < bad]  # 7: a measurement
        assert (saved is None) == (not due)
        if saved is not None:
            progress, tensors = saved
            assert progress.step == due[-1]
            assert all(t.isfinite().all() for t in tensors.values())


@pytest.mark.parametrize("place", PLACES)
def test_a_skipped_update_changes_no_weight(tmp_path, place):
    seen = {}
    run, watcher = trainer(tmp_path, **BASE, on_nonfinite="skip")
    spoil(run, place, lambda progress: progress.step in (4, 5))
    watcher.after_step = lambda run: seen.update(
        {run.progress.step: weights(run.model)}
    )
    run.run()
    for step in range(2, STEPS + 1):
        same = all(torch.equal(seen[step][n], seen[step - 1][n]) for n in seen[step])
        assert same == (step in (5, 6)), step
    skipped = [line for line in lines(tmp_path) if "skipped" in line]
    assert [line["step"] for line in skipped] == [5, 6]
    assert all("loss" not in line for line in skipped)
    assert (run.progress.skipped, run.progress.skipped_in_a_row) == (2, 0)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("policy", ["skip", "rollback"])
def test_each_policy_is_exact_with_a_resume(tmp_path, place, policy):
    def when(progress):
        return progress.backoff > {5: 0.6, 10: 0.3, 11: 0.3}.get(progress.step, 1)

    metrics, found, run = finished(tmp_path / "whole", place, when, on_nonfinite=policy)
    if policy == "rollback":
        assert run.progress.backoff == 0.25
        told = [x for x in lines(tmp_path / "whole") if "rolled_back" in x]
        assert [x["step"] for x in told] == [5, 9]
    else:
        assert run.progress.skipped == 3
    for stops in ((1,), (5,), (6, 7), (4, 8, 11), (9, 10)):
        folder = tmp_path / "-".join(map(str, stops))
        again = finished(folder, place, when, stops, on_nonfinite=policy)
        assert again[:2] == (metrics, found), stops


def test_too_many_skips_in_a_row_end_the_run(tmp_path):
    run, _ = trainer(tmp_path, **BASE | {"steps": 40}, on_nonfinite="skip")
    spoil(run, "logits", lambda progress: progress.step >= 3)
    message = rf"step 13: .*after {MOST_SKIPS} updates in a row .*try a smaller --lr"
    with pytest.raises(FloatingPointError, match=message):
        run.run()
    assert run.progress.skipped == MOST_SKIPS


@pytest.mark.parametrize("place", PLACES)
def test_too_many_rollbacks_end_the_run(tmp_path, place):
    run, _ = trainer(tmp_path, **BASE, on_nonfinite="rollback")
    spoil(run, place, lambda progress: progress.step == 5)
    message = rf"step 5: .*after {MOST_ROLLBACKS} rollbacks, each with half"
    with pytest.raises(FloatingPointError, match=message):
        run.run()
    progress, tensors = RunFolder(tmp_path).load_snapshot()
    assert progress.step == 4
    assert progress.backoff == 0.5**MOST_ROLLBACKS
    assert all(t.isfinite().all() for t in tensors.values())


def test_a_rollback_before_the_first_snapshot_begins_at_step_0(tmp_path):
    run, watcher = trainer(tmp_path, **BASE, on_nonfinite="rollback")
    spoil(run, "logits", lambda progress: progress.step == 1 and progress.backoff == 1)
    run.run()
    found = lines(tmp_path)
    assert [x["step"] for x in found if "loss" in x] == list(range(1, STEPS + 1))
    assert [x["step"] for x in found if "valid_loss" in x][:2] == [0, 6]
    assert [x["step"] for x in found if "rolled_back" in x] == [1]
    assert len([e for e in watcher.evaluations if e[0] == 0]) == 1


@pytest.mark.parametrize("policy", ["raise", "skip", "rollback"])
@pytest.mark.parametrize("at", [6, STEPS])
def test_a_measurement_that_is_not_finite(tmp_path, monkeypatch, policy, at):
    run, _ = trainer(tmp_path, **BASE, on_nonfinite=policy)
    evaluate = loop.evaluate

    def spoilt(model, batches):
        measured = evaluate(model, batches)
        if run.progress.step == at and run.progress.backoff == 1:
            return loop.Measurement(math.nan, measured.tokens)
        return measured

    monkeypatch.setattr(loop, "evaluate", spoilt)
    if policy == "rollback":
        run.run()
        assert run.progress.backoff == 0.5
        return
    with pytest.raises(FloatingPointError, match=f"step {at}: validation loss nan"):
        run.run()
    progress, tensors = RunFolder(tmp_path).load_snapshot()
    assert progress.step < at or at == STEPS  # that one is from before it
    assert all(t.isfinite().all() for t in tensors.values())


@pytest.mark.parametrize("policy", ["raise", "skip", "rollback"])
def test_weights_that_overflow_are_in_no_snapshot(tmp_path, policy):
    run, watcher = trainer(
        tmp_path, **BASE | {"snapshot_every": 1}, on_nonfinite=policy
    )

    def overflow(run):
        if run.progress.step == 7 and run.progress.backoff == 1:
            with torch.no_grad():
                run.model.decoder.weight[0, 0] = math.inf

    watcher.after_step = overflow
    if policy == "rollback":
        run.run()
    else:
        with pytest.raises(FloatingPointError, match="step 7: weights"):
            run.run()
        assert RunFolder(tmp_path).load_snapshot()[0].step == 6
