"""Disks that are full or broken, and processes that are killed, at any call."""

import errno
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress

import pytest

from bptt.cli import main
from bptt.training import RunFolder
from failing_disk import WRITING, Killed, failing
from run_files import check_whole, digest

WORDS = ("--snapshot-every", 2, "--dropout", 0.2)


@pytest.fixture
def whole(train, tmp_path, monkeypatch):
    """The run that was never stopped, and its number of calls."""
    with monkeypatch.context() as patch:
        calls = failing(patch, None, 0)
        assert train(*WORDS, "--out", tmp_path / "whole", steps=4).code == 0
    return digest(tmp_path / "whole"), sum(calls[kind] for kind in WRITING)


def at_each(calls, ks):
    """So many of the calls, the first and the last among them."""
    return sorted({1 + round(i * (calls - 1) / (ks - 1)) for i in range(ks)})


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_a_disk_that_fails_at_any_call(train, tmp_path, monkeypatch, whole, code):
    expected, calls = whole
    for k in at_each(calls, 8):
        out = tmp_path / f"{code}-{k}"
        with monkeypatch.context() as patch:
            failing(patch, OSError(code, os.strerror(code)), k, half=k % 2)
            ended = train(*WORDS, "--out", out, steps=4)
        assert (ended.code, ended.out) == (1, ""), (k, ended.err)
        last = ended.err.splitlines()[-1]
        assert last.startswith(f"bptt: the run in {out} cannot be written: "), last
        assert os.strerror(code) in last
        check_whole(out)
        ended = train(*WORDS, "--out", out, "--resume", steps=4)
        assert ended.code == 0, (k, ended.err)
        assert digest(out) == expected, k


@pytest.mark.parametrize("half", [False, True])
def test_a_kill_at_any_call(train, tmp_path, monkeypatch, whole, half):
    expected, calls = whole
    for k in at_each(calls, 6):
        out = tmp_path / f"{half}-{k}"
        for again in (k, 1 + k // 2):  # and the resume is killed, too
            words = ("--resume",) if again != k or out.exists() else ()
            with monkeypatch.context() as patch:
                failing(patch, Killed(), again, half=half)
                with suppress(Killed):
                    train(*WORDS, *words, "--out", out, steps=4)
            check_whole(out)
        ended = train(*WORDS, "--out", out, "--resume", steps=4)
        assert ended.code == 0, (k, ended.err)
        assert digest(out) == expected, k


def test_killed_three_times_it_ends_as_the_run_that_was_not(book, tmp_path):
    words = [sys.executable, "-m", "bptt", "train", book, "--hidden", "16"]
    words += ["--window", "8", "--batch", "2", "--steps", "1000", "--dropout", "0.2"]
    words += ["--snapshot-every", "50"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        assert main([str(w) for w in [*words[3:], "--out", tmp_path / "whole"]]) == 0
    out = tmp_path / "run"
    before = 0
    for wait_s in (0.1, 0.25, 0.4):
        program = subprocess.Popen(
            [*words, "--out", out, *(["--resume"] if before else [])],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        deadline_s = time.monotonic() + 60
        while newest(out) <= before and time.monotonic() < deadline_s:
            assert program.poll() is None, program.stderr.read()
            time.sleep(0.01)
        time.sleep(wait_s)
        program.send_signal(signal.SIGKILL)
        _, err = program.communicate(timeout=60)
        assert program.returncode == -signal.SIGKILL, err
        assert (f"Going on from step {before}." in err) == (before > 0)
        assert newest(out) > before
        before = newest(out)
    ran = subprocess.run(
        [*words, "--out", out, "--resume"],
        capture_output=True,
        text=True,
        env=environment,
        timeout=120,
    )
    assert ran.returncode == 0, ran.stderr
    assert f"Going on from step {before}." in ran.stderr
    assert digest(out) == digest(tmp_path / "whole")


def newest(out):
    found = RunFolder(out)._snapshots()
    return int(found[0].name.removeprefix("step-")) if found else 0
