"""Every test that takes `kernel` runs once for each native kernel this machine has."""

from collections import Counter

import pytest
import torch

from bptt import kernels
from kernels.cases import ALL, CELLS, watch


@pytest.fixture(params=ALL)
def kernel(request):
    """The name of a native kernel, which the modules use while the test runs."""
    with kernels.use(request.param):
        yield request.param


@pytest.fixture
def definition(monkeypatch):
    """How often the definition took a "step" forward and one "back", up to now."""
    seen: Counter[str] = Counter()
    for cell in CELLS:
        watch(monkeypatch, cell, "step", lambda W: seen.update(["step"]))
        watch(monkeypatch, cell, "vjp_state", lambda W: seen.update(["back"]))
    return seen


@pytest.fixture(autouse=True)
def set_threads():
    """torch.set_num_threads, undone after the test.

    One thread at first: tiny products take less time than threads take to meet.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def _same_numbers_every_time():
    torch.manual_seed(0)
