import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from bptt import kernels
from bptt.cli import main
from training.problems import text


@pytest.fixture(autouse=True, scope="session")
def chosen():
    """The kernel; what a command says about it is tested by itself."""
    with warnings.catch_warnings(action="ignore"):
        kernels.active()


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """One thread, since tiny products take less time than threads take to meet; and no
    waiting for the disk, which only a power cut would notice."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    yield
    torch.set_num_threads(before)


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def message(self) -> str:
        """The one line with which a refused command ends."""
        assert self.out == ""
        (line,) = self.err.splitlines()
        assert line.startswith("bptt: ")
        return line


@pytest.fixture
def bptt(capsys) -> Callable[..., Ended]:
    """Run a command in this process."""

    def run(*words: Any) -> Ended:
        capsys.readouterr()
        code = main([str(word) for word in words])
        found = capsys.readouterr()
        assert "Traceback" not in found.err
        return Ended(code, found.out, found.err)

    return run


@pytest.fixture
def book(tmp_path) -> Path:
    """A small text."""
    path = tmp_path / "book.txt"
    path.write_text(text(30))
    return path


@pytest.fixture
def train(bptt, book, tmp_path) -> Callable[..., Ended]:
    """Train something tiny on the book into tmp_path/run."""

    def run(*words: Any, texts: Any = None, steps: int | None = 3) -> Ended:
        given = [book] if texts is None else texts
        length = [] if steps is None else ["--steps", steps]
        tiny = ["--hidden", 16, "--window", 8, "--batch", 2]
        out = [] if "--out" in words else ["--out", tmp_path / "run"]
        return bptt("train", *given, *out, *tiny, *length, *words)

    return run
