"""What the commands say about the kernel: a line on stderr, or nothing."""

import pytest

from bptt import kernels
from bptt.kernels import choice


@pytest.fixture
def fresh(monkeypatch):
    """As in a new process: no kernel is chosen."""
    monkeypatch.delenv(choice.VARIABLE, raising=False)
    monkeypatch.setattr(choice, "_active", None)
    return monkeypatch


@pytest.fixture
def without_core(fresh):
    """As where the package was installed without a compiler."""
    fresh.setattr(choice, "INSTALLED", False)
    fresh.setattr(choice, "_available", None)
    return fresh


def test_a_missing_core_is_told_in_one_plain_line(without_core, train):
    ended = train()
    assert ended.code == 0
    about = [line for line in ended.err.splitlines() if "core" in line]
    assert about == [ended.err.splitlines()[0]]
    assert about[0].startswith("bptt: bptt was installed without its native core")
    assert "BPTT_KERNEL=torch" in about[0]
    assert "Warning" not in ended.err
    assert ".py" not in ended.err
    assert kernels.active() == "torch"


def test_a_core_that_is_missed_by_nobody_is_not_mentioned(without_core, train):
    without_core.setenv(choice.VARIABLE, "torch")
    ended = train()
    assert ended.code == 0
    assert "core" not in ended.err


def test_a_kernel_that_is_there_is_not_mentioned(fresh, train):
    if not choice.INSTALLED:
        fresh.setenv(choice.VARIABLE, "torch")
    ended = train()
    assert ended.code == 0
    assert "bptt: " not in ended.err


@pytest.mark.parametrize("name", ["avx1024", "AVX2", "torch "])
def test_a_wrong_name_is_refused(fresh, train, tmp_path, name):
    fresh.setenv(choice.VARIABLE, name)
    ended = train()
    assert ended.code == 2
    assert f"BPTT_KERNEL={name} is not a kernel; possible here: " in ended.message
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("words", ["evaluate run book", "generate run", "check"])
def test_every_command_refuses_it(fresh, bptt, words):
    fresh.setenv(choice.VARIABLE, "avx1024")
    ended = bptt(*words.split())
    assert ended.code == 2
    assert "BPTT_KERNEL=avx1024" in ended.message


def test_a_native_kernel_without_the_core_is_refused(without_core, train):
    without_core.setenv(choice.VARIABLE, "avx2")
    ended = train()
    assert ended.code == 2
    assert ended.message == (
        "bptt: BPTT_KERNEL=avx2 is not installed; possible here: torch"
    )


def test_help_does_not_wait_for_a_kernel(fresh, bptt):
    fresh.setenv(choice.VARIABLE, "avx1024")
    assert bptt("train", "--help").code == 0
