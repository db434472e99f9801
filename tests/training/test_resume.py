"""A run that was stopped and went on is the run that never stopped, bit for bit."""

import json
import shutil
from itertools import pairwise

import pytest
import torch

from bptt.errors import CheckpointError, InputError
from bptt.training import Options, RunFolder, Stopped
from training.problems import corpus, trainer, weights

STEPS = 12
RUNS = {
    "adamw, dropout": {"layers": 2, "dropout": 0.4},
    "adamw, k2 across windows, dropout": {"cell": "gru", "k2": 24, "dropout": 0.4},
    "sgd, state carried": {"cell": "rnn", "optimizer": "sgd", "lr": 0.3},
    "sgd, k1 below the window": {"optimizer": "sgd", "k1": 2, "k2": 12, "lr": 0.3},
    "words, tied, sentences": {"level": "word", "unit": "sentence"}
    | {"one_a_line": True, "dropout": 0.4},
    "epochs": {"window": 32, "epochs": 3, "steps": None},
}


def small(options):
    known = {n: options[n] for n in ("level", "unit", "one_a_line") if n in options}
    return corpus(Options(**known), n=20)


def result(folder, run):
    """All that a run leaves behind but its clocks."""
    names = ("metrics.jsonl", "model.safetensors", "config.json", "manifest.json")
    files = {name: (folder / name).read_bytes() for name in names}
    tensors = {name: t.numpy().tobytes() for name, t in run.model.state_dict().items()}
    return files | tensors


def finished(folder, options, stops=(), **more):
    """The result of a run that is stopped at these steps and goes on each time."""
    more["data"] = small(options)
    for stop in stops:
        run, _ = trainer(folder, stop_at=(stop,), **options, **more)
        run.resume()
        with pytest.raises(Stopped):
            run.run()
        assert run.progress.step == stop
    run, _ = trainer(folder, **options, **more)
    assert run.resume() == bool(stops)
    assert run.progress.step == (stops[-1] if stops else 0)
    run.run()
    return result(folder, run)


@pytest.mark.parametrize("name", RUNS)
def test_stopped_and_resumed_is_uninterrupted(tmp_path, name):
    options = {"steps": STEPS, **RUNS[name]}
    expected = finished(tmp_path / "whole", options)
    # after one step, between measurements, at one, and after the last
    stops = [(1,), (4,), (5, 6), (STEPS,)]
    for at in stops:
        folder = tmp_path / "-".join(map(str, at))
        assert finished(folder, options, at) == expected, f"stopped at {at}"


@pytest.mark.parametrize("name", RUNS)
def test_the_metrics_are_a_function_of_data_seed_and_step(tmp_path, name):
    options = {"steps": STEPS, **RUNS[name]}
    first = finished(tmp_path / "a", options)
    torch.manual_seed(99)  # what else the process does must not matter
    again = finished(tmp_path / "b", options)
    other = finished(tmp_path / "c", options, seed=1)
    assert first == again
    for file in ("metrics.jsonl", "model.safetensors"):
        assert first[file] != other[file]


AUTO = {"k2": "auto", "tolerance": 0.17, "choose_every": 2, "steps": 15, "lr": 0.1}
AUTO |= {"k2_max": 32, "dropout": 0.3, "hidden": 8}


def k2_of_updates(folder):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [(x["step"], x["k2"]) for x in map(json.loads, lines) if "k2" in x]


@pytest.mark.parametrize(("k1", "tolerance"), [(8, 0.17), (2, 0.12)])
def test_a_chosen_k2_goes_on_whenever_it_is_stopped(tmp_path, k1, tolerance):
    options = AUTO | {"k1": k1, "tolerance": tolerance}
    expected = finished(tmp_path / "whole", options)
    steps, chosen = zip(*k2_of_updates(tmp_path / "whole"), strict=True)
    assert steps == (2, 4, 6, 8, 10, 12, 14)
    assert any(b > a for a, b in pairwise((k1, *chosen)))
    assert any(b < a for a, b in pairwise(chosen))
    for stop in range(1, 15):  # before, at and after each change
        folder = tmp_path / str(stop)
        assert finished(folder, options, (stop,)) == expected, f"stopped at {stop}"
    assert finished(tmp_path / "each", options, tuple(range(1, 15))) == expected


def test_a_window_that_still_grows_goes_on_growing(tmp_path):
    options = AUTO | {"tolerance": 1e-9, "choose_every": 6}
    expected = finished(tmp_path / "whole", options)
    assert k2_of_updates(tmp_path / "whole") == [(6, 32), (12, 32)]
    for stop, k2 in ((6, 16), (7, 24), (8, 32)):
        folder = tmp_path / str(stop)
        assert finished(folder, options, (stop,)) == expected, f"stopped at {stop}"
        run, _ = trainer(
            folder / "again", data=small(options), stop_at=(stop,), **options
        )
        with pytest.raises(Stopped):
            run.run()
        assert (run.progress.k2, run.progress.chosen_k2) == (k2, 32)


@pytest.mark.parametrize("step", range(3, 13))
def test_a_chosen_k2_goes_on_after_a_crash(tmp_path, step):
    options = AUTO | {"snapshot_every": 3}
    expected = finished(tmp_path / "whole", options)
    crash_at(tmp_path / "crashed", options, step=step)
    run, _ = trainer(tmp_path / "crashed", data=small(options), **options)
    assert run.resume()
    run.run()
    assert result(tmp_path / "crashed", run) == expected


class CrashError(RuntimeError):
    pass


def crash_at(folder, options, *, step=None, evaluation=None):
    """Run until the process would have died, with nothing saved for the occasion."""
    run, watcher = trainer(folder, data=small(options), **options)

    def crash(run):
        if run.progress.step in (step, evaluation):
            raise CrashError

    if step is not None:
        watcher.after_step = crash
    else:
        watcher.after_evaluation = crash
    run.resume()
    with pytest.raises(CrashError):
        run.run()


CRASHES = {
    "in the first measurement": {"evaluation": 0},
    "before the first snapshot": {"step": 1},
    "between snapshots": {"step": 8},
    "in a measurement": {"evaluation": 9},
    "in the last measurement": {"evaluation": STEPS},
}


@pytest.mark.parametrize("when", CRASHES)
@pytest.mark.parametrize("every", [None, 3, 4])
def test_a_run_that_crashed_goes_on_from_its_snapshot(tmp_path, when, every):
    options = {"steps": STEPS, "dropout": 0.3, "snapshot_every": every}
    expected = finished(tmp_path / "whole", options)
    folder = tmp_path / "crashed"
    crash_at(folder, options, **CRASHES[when])
    with open(folder / "metrics.jsonl", "a") as file:
        file.write('{"step": ')  # and the line it was writing
    run, _ = trainer(folder, data=small(options), **options)
    assert run.resume() == (when in list(CRASHES)[2:])
    run.run()
    assert result(folder, run) == expected


def test_twice_crashed(tmp_path):
    options = {"steps": STEPS, "snapshot_every": 2}
    expected = finished(tmp_path / "whole", options)
    folder = tmp_path / "crashed"
    for step in (3, 4, 9, 12):
        crash_at(folder, options, step=step)
    run, _ = trainer(folder, data=small(options), **options)
    assert run.resume()
    run.run()
    assert result(folder, run) == expected


def test_the_clock_goes_on(tmp_path):
    run, _ = trainer(tmp_path, steps=STEPS, stop_at=(4,))
    run.clock.before_s = 1000.0
    with pytest.raises(Stopped):
        run.run()
    run, _ = trainer(tmp_path, steps=STEPS)
    run.resume()
    assert 1000 < run.clock.elapsed_s < 1100


def stopped(folder, **options):
    run, _ = trainer(folder, steps=STEPS, stop_at=(5,), **options)
    with pytest.raises(Stopped):
        run.run()


def test_other_texts_are_refused(tmp_path):
    data = corpus(Options())
    stopped(tmp_path, data=data)
    letters = data.tokenizer.to_json().replace('"h"', '"H"')
    others = {
        "other lines": corpus(Options(), seed=5),
        "fewer lines": corpus(Options(), n=59),
        "another letter": type(data)(
            type(data.tokenizer).from_json(letters), data.train, data.held_out
        ),
        "other held-out text": type(data)(data.tokenizer, data.train, data.train),
    }
    for other in others.values():
        run, _ = trainer(tmp_path, steps=STEPS, data=other)
        with pytest.raises(InputError, match="--resume needs the texts that the run"):
            run.resume()
    run, _ = trainer(tmp_path, steps=STEPS, data=data)
    assert run.resume()


@pytest.mark.parametrize("other", [{"hidden": 7}, {"layers": 2}, {"cell": "gru"}])
def test_a_snapshot_of_another_model_is_refused(tmp_path, other):
    stopped(tmp_path)
    run, _ = trainer(tmp_path, steps=STEPS, **other)
    with pytest.raises(CheckpointError, match="the snapshot does not fit this model"):
        run.resume()
    assert run.progress.step == 0


MISFITS = {
    "a weight is missing": ("model.decoder.bias", None),
    "a weight of another shape": ("model.decoder.bias", torch.zeros(3)),
    "a weight of another rank": ("model.decoder.weight", torch.zeros(2, 3, 5)),
    "a weight in integers": ("model.decoder.bias", torch.int32),
    "a weight in float64": ("model.decoder.bias", torch.float64),
    "one tensor too many": ("model.more", torch.zeros(1)),
    "a name of nothing": ("more", torch.zeros(1)),
    "no momentum": ("optimizer.0.exp_avg", None),
    "no number of steps": ("optimizer.3.step", None),
    "more than a number of steps": ("optimizer.3.step", torch.zeros(2)),
    "momentum of another shape": ("optimizer.1.exp_avg_sq", torch.zeros(4)),
    "momentum of no parameter": ("optimizer.99.exp_avg", torch.zeros(4)),
    "an optimiser that keeps more": ("optimizer.0.momentum_buffer", torch.zeros(4)),
    "half of the carried state": ("state.1", None),
    "the other half of it": ("state.0", None),
    "a carried state of other rows": ("state.0", torch.zeros(1, 3, 6)),
    "a third carried state": ("state.2", torch.zeros(1, 2, 6)),
}


@pytest.fixture(scope="module")
def crashed(tmp_path_factory):
    """The run that never stopped, and one with the snapshots of steps 5 and 6."""
    options = {"steps": STEPS, "dropout": 0.3, "snapshot_every": 2}
    expected = finished(tmp_path_factory.mktemp("whole"), options)
    folder = tmp_path_factory.mktemp("crashed")
    crash_at(folder, options, step=7)
    return expected, folder, options


@pytest.mark.parametrize("what", MISFITS)
def test_a_snapshot_that_does_not_fit_is_passed_over(tmp_path, crashed, what):
    expected, before, options = crashed
    folder = shutil.copytree(before, tmp_path / "run")
    progress, tensors = RunFolder(folder).load_snapshot()
    assert progress.step == 6
    name, new = MISFITS[what]
    if isinstance(new, torch.dtype):
        new = tensors[name].to(new)
    spoilt = {n: t for n, t in (tensors | {name: new}).items() if t is not None}
    RunFolder(folder).save_snapshot(progress, spoilt)
    run, _ = trainer(folder, data=small(options), **options)
    assert run.resume()
    assert run.progress.step == 5
    (said,) = run.folder.passed_over
    path = folder / "checkpoints" / "step-000000006" / "tensors.safetensors"
    assert said.startswith(f"{path}: the snapshot does not fit this model: '")
    assert "\n" not in said
    if what == next(iter(MISFITS)):
        run.run()
        assert result(folder, run) == expected


@pytest.mark.parametrize(
    ("cell", "optimizer"), [("lstm", "adamw"), ("gru", "adamw"), ("rnn", "sgd")]
)
def test_where_no_snapshot_fits_the_newest_is_named(tmp_path, cell, optimizer):
    options = {"cell": cell, "optimizer": optimizer}
    stopped(tmp_path, **options)
    for path in (tmp_path / "checkpoints").iterdir():
        if path.name != "step-000000005":
            shutil.rmtree(path)
    progress, tensors = RunFolder(tmp_path).load_snapshot()
    run, _ = trainer(tmp_path, steps=STEPS, **options)
    before = weights(run.model)
    for name in tensors:
        for other in (torch.zeros(3), torch.zeros(2, 3, 5), tensors[name][..., None]):
            RunFolder(tmp_path).save_snapshot(progress, tensors | {name: other})
            with pytest.raises(CheckpointError) as caught:
                run.resume()
            assert "step-000000005/tensors.safetensors: the snap" in str(caught.value)
            assert all(torch.equal(w, before[n]) for n, w in weights(run.model).items())
    RunFolder(tmp_path).save_snapshot(progress, tensors)
    assert run.resume()


@pytest.mark.parametrize("field", ["k2", "chosen_k2"])
def test_a_chosen_k2_beyond_the_largest_is_passed_over(tmp_path, field):
    options = AUTO | {"snapshot_every": 3}
    crash_at(tmp_path, options, step=8)
    progress, tensors = RunFolder(tmp_path).load_snapshot()
    setattr(progress, field, 33)
    RunFolder(tmp_path).save_snapshot(progress, tensors)
    run, _ = trainer(tmp_path, data=small(options), **options)
    assert run.resume()
    assert run.progress.step < progress.step
    assert "its k2 is above the run's largest, 32" in run.folder.passed_over[0]
