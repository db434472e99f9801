"""Commands in a fork of this process, which has loaded everything already."""

import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

os.environ["TOKENIZERS_PARALLELISM"] = "false"  # its threads are not in a fork

import bptt.cli.commands  # noqa: F401 - loaded once, before the forks
from bptt.cli import main

torch.set_num_threads(1)


def start(
    words: Sequence[object], err: Path, prepare: Callable[[], None] = lambda: None
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
        prepare()
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
