"""Commands in a fork of this process, which has loaded everything already."""

import gc
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
import torch._dynamo  # which the first optimiser loads

os.environ["TOKENIZERS_PARALLELISM"] = "false"  # its threads are not in a fork

from bptt.cli import commands, main
from bptt.errors import CheckpointError
from bptt.report import findings
from bptt.training import run_folder
from failing_disk import CALLS, failing
from run_files import check_whole, digest
from training.problems import text

torch.set_num_threads(1)
# What a run writes at its end is as long as it needs to be.
commands._SAMPLE_TOKENS = 3
findings._SAMPLE_TOKENS = dict.fromkeys(findings._SAMPLE_TOKENS, 3)

Prepare = Callable[[pytest.MonkeyPatch], object]


def start(
    words: Sequence[object], err: Path, prepare: Prepare = lambda patch: None
) -> int:
    """A child that runs the command, its messages in a file; the child's id."""
    child = os.fork()
    if child:
        return child
    code = 70
    try:
        target = os.open(err, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(target, 1)
        os.dup2(target, 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
        os.fsync = lambda descriptor: None
        prepare(pytest.MonkeyPatch())
        code = main([str(word) for word in words])
    finally:
        sys.stderr.flush()
        os._exit(code)


def end(child: int, *, kill_after_s: float | None = None) -> int:
    """Wait for a child, or kill it; its exit code, below zero for a signal's number."""
    if kill_after_s is not None:
        time.sleep(kill_after_s)
        os.kill(child, signal.SIGKILL)
    deadline_s = time.monotonic() + 60
    while not (found := os.waitpid(child, os.WNOHANG))[0]:
        if time.monotonic() > deadline_s:
            os.kill(child, signal.SIGABRT)
        time.sleep(0.002)
    status = found[1]
    return os.waitstatus_to_exitcode(status)


class Runs:
    """Runs of the same command into folders of their own.

    Args:
        here: an empty folder.
        options: of the training.
    """

    def __init__(self, here: Path, options: str) -> None:
        self.here, self.err = here, here / "err"
        book = here / "book.txt"
        book.write_text(text(60))
        self.words = ["train", book, *options.split()]
        self.calls: dict[str, int] = {}
        # The second is what takes its time: the first loads what is loaded late.
        for name in ("first", "whole"):
            started_s = time.monotonic()
            assert self.run(here / name) == 0, self.said()
            self.whole_s = time.monotonic() - started_s
            gc.freeze()  # so that children share what they do not change
        self.expected = digest(here / "whole")

    def start(self, out: Path, *more: str, prepare: Prepare = lambda _: None) -> int:
        """A child's id; nothing waits for the disk, which no kill would notice."""
        return start([*self.words, *more, "--out", out], self.err, prepare)

    def run(self, out: Path, *more: str, prepare: Prepare = lambda _: None) -> int:
        return end(self.start(out, *more, prepare=prepare))

    def said(self) -> str:
        return self.err.read_text(errors="replace")

    def count(self) -> dict[str, int]:
        """The calls of each kind that a whole run makes."""
        report = self.here / "calls"

        def prepare(patch: pytest.MonkeyPatch) -> None:
            calls = failing(patch, None, 0)
            leave = os._exit

            def tell(code: int) -> None:
                report.write_text(" ".join(f"{k} {calls[k]}" for k in CALLS))
                leave(code)

            patch.setattr(os, "_exit", tell)

        assert self.run(self.here / "counted", prepare=prepare) == 0, self.said()
        words = report.read_text().split()
        return dict(zip(words[::2], map(int, words[1::2]), strict=True))

    def ends(self, out: Path) -> list[str]:
        """Resume a run; what is not as in the run that was never stopped."""
        had = bool(run_folder.RunFolder(out)._snapshots())
        code = self.run(out, "--resume")
        if code:
            return [f"{out.name}: resumed with {code}: {self.said()[-500:]}"]
        if had and not any(x in self.said() for x in ("Going on", "is finished")):
            return [f"{out.name}: began again: {self.said()[-500:]}"]
        found = digest(out)
        wrong = [name for name in found if found[name] != self.expected[name]]
        return [f"{out.name}: {', '.join(wrong)} ended otherwise"] if wrong else []


def unwhole(out: Path) -> list[str]:
    """What is there and not whole."""
    try:
        check_whole(out)
    except CheckpointError as error:
        return [f"{out.name}: {error}"]
    return []
