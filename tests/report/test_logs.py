"""Curves are the lines of the logs; damaged ones are counted and left out."""

import json

import numpy as np
import pytest

from bptt.errors import InputError
from bptt.report.logs import MOST_POINTS, curves


def write(folder, metrics, timings=()):
    (folder / "metrics.jsonl").write_text("".join(f"{line}\n" for line in metrics))
    if timings:
        (folder / "timings.jsonl").write_text("".join(f"{t}\n" for t in timings))


def update(step):
    return json.dumps(
        {
            "step": step,
            "loss": 3 + step % 7 / 10,
            "gradient_norm": 1 + step % 5 / 4,
            "learning_rate": 1 / step,
        }
    )


def measured(step, loss, **more):
    return json.dumps({"step": step, "valid_loss": loss, "valid_tokens": 50, **more})


def test_every_line_is_a_point(tmp_path):
    lines = [measured(0, 4.5), update(1), update(2), measured(2, 4.25)]
    lines.append(measured(2, 4.125, final=True))
    timing = {"step": 2, "elapsed_s": 1.5, "tokens_per_s": 321.5}
    write(tmp_path, lines, [json.dumps(timing)])
    found, notes = curves(tmp_path, 0.5)
    assert notes == []
    assert (found.every, found.clip) == (1, 0.5)
    assert found.step == [1, 2]
    assert found.loss == [3.1, 3.2]
    assert found.gradient_norm == [1.25, 1.5]
    assert found.learning_rate == [1, 0.5]
    assert (found.valid_step, found.valid_loss) == ([0, 2], [4.5, 4.25])
    assert (found.final_loss, found.final_tokens) == (4.125, 50)
    assert (found.timing_step, found.elapsed_s, found.tokens_per_s) == (
        [2], [1.5], [321.5]
    )  # fmt: skip


def test_many_updates_become_means_largest_and_last(tmp_path):
    count = 2 * MOST_POINTS + 3
    write(tmp_path, [update(step) for step in range(1, count + 1)])
    found, notes = curves(tmp_path, None)
    assert notes == ["The run is not finished."]
    assert found.every == 3
    assert len(found.step) == -(-count // 3) <= MOST_POINTS
    lines = [json.loads(update(step)) for step in range(1, count + 1)]
    for at in range(100, 107):
        group = lines[3 * at : 3 * at + 3]
        assert found.step[at] == group[-1]["step"]
        assert found.loss[at] == pytest.approx(np.mean([g["loss"] for g in group]))
        assert found.gradient_norm[at] == max(g["gradient_norm"] for g in group)
        assert found.learning_rate[at] == group[-1]["learning_rate"]
    assert found.step[-1] == count


def test_damaged_lines_are_counted(tmp_path):
    lines = [update(1), "{", '{"step": "one"}', update(2), "\x00", "[" * 5000, ""]
    write(tmp_path, lines, ["nonsense"])
    found, notes = curves(tmp_path, None)
    assert found.step == [1, 2]
    assert notes[0] == "4 lines of metrics.jsonl could not be read."
    assert notes[1] == "1 line of timings.jsonl could not be read."


def test_nothing_to_draw(tmp_path):
    assert curves(tmp_path, None) == (None, ["metrics.jsonl has nothing to draw."])
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(InputError, match=r"metrics\.jsonl cannot be read"):
        curves(tmp_path, None)
