import os

import pytest
import torch


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """One thread, since tiny products take less time than threads take to meet; and no
    waiting for the disk, which only a power cut would notice."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    yield
    torch.set_num_threads(before)
