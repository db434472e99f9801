import json
import os
from contextlib import suppress

import pytest
import torch

from bptt import storage
from bptt.errors import CheckpointError, InputError
from bptt.training import RunFolder
from bptt.training.run_folder import METRICS, TIMINGS, Progress, _read_snapshot
from failing_disk import Killed, failing

TENSORS = {
    "model.w": torch.tensor([[1.5, -0.0], [float("inf"), 1e-45]]),
    "state.0": torch.tensor([3, 4]),
    "optimizer.0.step": torch.tensor(7.0, dtype=torch.float64),
}


@pytest.fixture
def folder(tmp_path):
    run = RunFolder(tmp_path / "run")
    run.create()
    return run


def snapshot(folder, step, **progress):
    folder.save_snapshot(Progress(data="d", step=step, **progress), TENSORS)


def snapshots(folder):
    return sorted(path.name for path in (folder.path / "checkpoints").iterdir())


def steps(folder, name=METRICS):
    lines = (folder.path / name).read_text().splitlines()
    return [json.loads(line)["step"] for line in lines]


def test_a_folder_that_holds_something_is_not_free(tmp_path):
    run = RunFolder(tmp_path / "a" / "run")
    run.check_free()
    assert not run.path.exists()
    run.create()
    with pytest.raises(
        InputError, match=r"--out .*run: the folder is not empty; .*--re"
    ):
        run.check_free()
    run.create()  # as a resume does
    (tmp_path / "empty").mkdir()
    RunFolder(tmp_path / "empty").check_free()


def test_a_file_is_no_folder(tmp_path):
    path = tmp_path / "file"
    path.write_text("x")
    for refuse in (RunFolder(path).check_free, RunFolder(path).create):
        with pytest.raises(
            InputError, match=r"--out .*file: the folder cannot be used"
        ):
            refuse()
    with pytest.raises(InputError, match="cannot be used: Not a directory"):
        RunFolder(path / "run").create()


def test_lines_are_written_by_flush(folder):
    folder.append(METRICS, {"step": 1, "loss": 0.1})
    folder.append(TIMINGS, {"step": 1, "elapsed_s": 2.0})
    folder.append(METRICS, {"step": 2, "loss": 1 / 3})
    assert not (folder.path / METRICS).exists()
    folder.flush()
    folder.flush()
    assert (folder.path / METRICS).read_text() == (
        '{"step": 1, "loss": 0.1}\n{"step": 2, "loss": 0.3333333333333333}\n'
    )
    assert folder.metrics() == [{"step": 1, "loss": 0.1}, {"step": 2, "loss": 1 / 3}]
    assert steps(folder, TIMINGS) == [1]


def test_no_number_that_json_does_not_have(folder):
    with pytest.raises(ValueError, match="JSON"):
        folder.append(METRICS, {"step": 1, "loss": float("nan")})


def test_finished_is_said_by_the_last_line(folder):
    assert not folder.finished
    folder.append(METRICS, {"step": 1})
    folder.flush()
    assert not folder.finished
    folder.append(METRICS, {"step": 1, "final": True})
    folder.flush()
    assert folder.finished


def test_a_last_line_cut_short_is_dropped(folder):
    (folder.path / METRICS).write_text('{"step": 1}\n{"step": 2, "lo')
    assert folder.metrics() == [{"step": 1}]
    assert not folder.finished


@pytest.mark.parametrize(
    "line",
    [
        *('{"step": 1, "lo', "[]", "", "\udcff", "3"),
        *(
            '{"step": "1"}',
            '{"k2": 0}',
            '{"valid_loss": "3"}',
            '{"valid_loss": null}',
            '{"final": 1}',
        ),
    ],
)
def test_a_damaged_line_is_named(folder, line):
    data = f'{{"step": 1}}\n{line}\n{{"step": 3}}\n'
    (folder.path / METRICS).write_bytes(data.encode(errors="surrogateescape"))
    with pytest.raises(CheckpointError, match=r"metrics\.jsonl, line 2: "):
        folder.metrics()
    with pytest.raises(CheckpointError, match=r"metrics\.jsonl, line 2: "):
        _ = folder.finished


def test_a_snapshot_comes_back_bit_for_bit(folder):
    saved = {"scale": 0.25, "last_valid": 1 / 3, "best_valid": 0.1, "elapsed_s": 1e-9}
    snapshot(folder, 12, **saved)
    progress, tensors = folder.load_snapshot()
    assert progress == Progress(data="d", step=12, **saved)
    assert tensors.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert tensors[name].dtype == tensor.dtype, name
        assert tensors[name].shape == tensor.shape, name
        assert torch.equal(
            tensors[name].flatten().view(torch.uint8),
            tensor.flatten().view(torch.uint8),
        ), name


def test_the_newest_two_snapshots_are_kept(folder):
    for step in (1, 9, 10, 1_000_000):
        snapshot(folder, step)
    assert snapshots(folder) == ["step-000000010", "step-001000000"]
    assert folder.load_snapshot()[0].step == 1_000_000


def test_a_snapshot_replaces_one_of_the_same_step(folder):
    snapshot(folder, 3, scale=1.0)
    snapshot(folder, 3, scale=0.5)
    assert snapshots(folder) == ["step-000000003"]
    assert folder.load_snapshot()[0].scale == 0.5


def test_what_a_crash_left_behind_is_in_nobodys_way(folder):
    aside = folder.path / "checkpoints" / ".begun"
    aside.mkdir()
    (aside / "tensors.safetensors").write_bytes(b"half")
    assert folder.load_snapshot() is None
    snapshot(folder, 3)
    assert snapshots(folder) == ["step-000000003"]


def damage(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


FILES = ("state.json", "tensors.safetensors", "manifest.json")


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("how", [damage, os.unlink])
def test_a_damaged_snapshot_is_passed_over_for_the_one_before(folder, name, how):
    snapshot(folder, 1)
    snapshot(folder, 2)
    folder.append(METRICS, {"step": 2})
    folder.flush()
    how(folder.path / "checkpoints" / "step-000000002" / name)
    assert folder.load_snapshot()[0].step == 1
    assert steps(folder) == []


@pytest.mark.parametrize("name", FILES)
def test_nothing_but_damaged_snapshots(folder, name):
    folder.append(METRICS, {"step": 1})
    snapshot(folder, 1)
    snapshot(folder, 2)
    for step in (1, 2):
        damage(folder.path / "checkpoints" / f"step-00000000{step}" / name)
    with pytest.raises(CheckpointError, match=f"step-000000002/{name}"):
        folder.load_snapshot()
    assert steps(folder) == [1]  # nothing is thrown away


@pytest.mark.parametrize(
    "state",
    [
        b"{}",
        b"[]",
        b"",
        b'{"data": "d", "step": 1, "colour": 1}',
        b'{"data": 3, "step": 1}',
        b'{"data": "d", "step": 2}',  # that of another snapshot
        b'{"data": "d", "step": -1}',
        b'{"data": "d", "step": 1, "scale": 2}',
        b'{"data": "d", "step": 1, "k2": 0}',
        b'{"data": "d", "step": 1, "skipped": -1}',
    ],
)
def test_a_state_that_is_none(folder, state):
    snapshot(folder, 1)
    path = folder.path / "checkpoints" / "step-000000001"
    tensors = (path / "tensors.safetensors").read_bytes()
    storage.write_files(path, {"state.json": state, "tensors.safetensors": tensors})
    with pytest.raises(CheckpointError, match=r"step-000000001/state\.json: "):
        folder.load_snapshot()


@pytest.mark.parametrize("left_out", ["state.json", "tensors.safetensors"])
def test_a_snapshot_without_a_part(folder, left_out):
    snapshot(folder, 1)
    path = folder.path / "checkpoints" / "step-000000001"
    names = ("state.json", "tensors.safetensors")
    parts = {n: (path / n).read_bytes() for n in names if n != left_out}
    storage.write_files(path, parts)
    with pytest.raises(CheckpointError, match=f"step-000000001.* lists no {left_out}"):
        folder.load_snapshot()


def test_loading_cuts_what_came_after_the_snapshot(folder):
    for step in (0, 1, 2, 2, 3):
        folder.append(METRICS, {"step": step, "x": 0.1 + step})
        folder.append(TIMINGS, {"step": step})
    folder.flush()
    before = (folder.path / METRICS).read_text().splitlines(keepends=True)
    snapshot(folder, 2)
    with open(folder.path / METRICS, "a") as file:
        file.write('{"step": 4, "x"')  # cut short by a crash
    folder.load_snapshot()
    assert (folder.path / METRICS).read_text() == "".join(before[:4])
    assert steps(folder, TIMINGS) == [0, 1, 2, 2]


def test_without_a_snapshot_the_run_begins_again(folder):
    folder.append(METRICS, {"step": 0})
    folder.append(METRICS, {"step": 1})
    folder.flush()
    assert folder.load_snapshot() is None
    assert folder.metrics() == []


def test_a_snapshot_writes_the_waiting_lines_first(folder):
    folder.append(METRICS, {"step": 1})
    snapshot(folder, 1)
    assert steps(folder) == [1]


def test_replacing_a_snapshot_leaves_one_whenever_it_is_killed(folder, monkeypatch):
    class Killed(BaseException):
        pass

    snapshot(folder, 3, elapsed_s=0.0)
    k = 0
    while True:
        k += 1
        calls = [0]

        def counted(function, calls=calls, k=k):
            def run(*arguments, **more):
                calls[0] += 1
                if calls[0] == k:
                    raise Killed
                return function(*arguments, **more)

            return run

        with monkeypatch.context() as patch:
            for name in ("fsync", "replace", "rename", "unlink", "rmdir"):
                patch.setattr(os, name, counted(getattr(os, name)))
            try:
                snapshot(folder, 3, elapsed_s=float(k))
            except Killed:
                pass
            else:
                break
        assert folder.load_snapshot()[0].elapsed_s in range(k + 1)
    assert k > 3 + 3
    assert folder.load_snapshot()[0].elapsed_s == k
    assert snapshots(folder) == ["step-000000003"]


def test_a_kill_leaves_no_half_of_an_old_snapshot(folder, monkeypatch):
    step = k = 0
    done = False
    while not done:
        k += 1
        for _ in range(3):
            step += 1
            snapshot(folder, step)
        with monkeypatch.context() as patch:
            failing(patch, Killed(), k, kinds=("rename", "unlink", "rmdir"))
            with suppress(Killed):
                snapshot(folder, step + 1)
                done = True
        for path in (folder.path / "checkpoints").glob("step-*"):
            _read_snapshot(path)
        step += 1
    assert k > 1 + 1 + 3 + 1
    snapshot(folder, step + 1)
    snapshot(folder, step + 2)
    assert snapshots(folder) == [f"step-{step + i:09d}" for i in (1, 2)]


def test_what_is_in_the_place_of_a_snapshot_gives_way(folder):
    path = folder.path / "checkpoints" / "step-000000003"
    path.write_text("no folder")
    snapshot(folder, 3)
    assert folder.load_snapshot()[0].step == 3
    damage(path / "state.json")
    (path / "tensors.safetensors").unlink()
    (path / "tensors.safetensors").mkdir()
    snapshot(folder, 3, scale=0.5)
    assert folder.load_snapshot()[0].scale == 0.5


def test_snapshots_that_were_passed_over_go_when_the_run_has_gone_on(folder):
    for step in (4, 9):
        snapshot(folder, step)
    damage(folder.path / "checkpoints" / "step-000000009" / "state.json")
    assert folder.load_snapshot()[0].step == 4
    (error,) = folder.passed_over
    assert "step-000000009/state.json" in str(error)
    snapshot(folder, 5)
    assert snapshots(folder) == ["step-000000004", "step-000000005"]


def test_metrics_cut_anywhere_keep_their_whole_lines(folder):
    lines = [{"step": i, "loss": 1 / (i + 1), "final": i == 3} for i in range(4)]
    for line in lines:
        folder.append(METRICS, line)
    folder.flush()
    path = folder.path / METRICS
    data = path.read_bytes()
    for size in range(len(data) + 1):
        for tail in (b"", b"\0" * 20, b"\xff"):
            path.write_bytes(data[:size] + tail)
            assert folder.metrics() == lines[: data[:size].count(b"\n")]
            assert folder.finished == (size == len(data) and folder.metrics() == lines)
