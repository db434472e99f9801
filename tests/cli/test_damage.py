"""Damage to a model or a snapshot: refused in one line that names the file."""

import shutil
import time

import pytest

from damage import damages, restore

COUNT = 105


@pytest.fixture
def run(train, tmp_path):
    """A run that has finished, and a copy of it to damage."""
    assert train("--snapshot-every", 2, steps=4).code == 0
    shutil.copytree(tmp_path / "run", tmp_path / "copy")
    return tmp_path / "run", tmp_path / "copy"


def is_harmless(folder, kind):
    """Bits of a manifest may change white space, or its case, and nothing else."""
    return kind == "bit" and folder == "manifest.json"


def test_a_damaged_model_is_refused_in_a_line(bptt, run):
    whole, copy = run
    refused = 0
    for name, kind, apply in damages(whole, 1, COUNT):
        if name in ("metrics.jsonl", "timings.jsonl", "flow.json", "report.html"):
            continue  # which are not the model
        apply(copy)
        started_s = time.monotonic()
        ended = bptt("generate", copy, "--length", 1)
        assert time.monotonic() - started_s < 5
        if ended.code == 0:
            assert is_harmless(name, kind), (name, kind)
        else:
            assert ended.code == 3, (name, kind)
            assert str(copy) in ended.message, (name, kind, ended.err)
            # What a damaged manifest says is wrong of the file that it vouches for.
            names = name in ended.message or "manifest" in ended.message
            assert names or name == "manifest.json", (name, kind, ended.err)
            refused += 1
        restore(whole, copy)
    assert refused > COUNT / 2


def test_a_damaged_snapshot_is_passed_over_or_refused_in_a_line(train, run):
    whole, copy = run
    older, newer = sorted((copy / "checkpoints").iterdir())
    lines = (copy / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    unfinished = b"".join(lines[:-1])
    source = whole / "checkpoints" / newer.name
    for number, (name, kind, apply) in enumerate(damages(source, 2, 21)):
        (copy / "metrics.jsonl").write_bytes(unfinished)
        apply(newer)
        spoilt = number % 2
        if spoilt:
            (older / "state.json").write_bytes(b"{}")
        ended = train("--snapshot-every", 2, "--out", copy, "--resume", steps=4)
        if spoilt and ended.code:
            assert ended.code == 3, (name, kind, ended.err)
            assert str(newer) in ended.message
        else:
            assert ended.code == 0, (name, kind, ended.err)
            said = f"A newer snapshot is not usable: {newer}" in ended.err
            assert said or is_harmless(name, kind), (name, kind)
        shutil.rmtree(copy)
        shutil.copytree(whole, copy)
