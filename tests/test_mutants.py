"""The mutations of `make mutants` are of the code as it is."""

from pathlib import Path

import pytest

import bptt
from soak.mutants import mutated
from soak.mutations import ALL

SOURCE = Path(bptt.__file__).parent
TESTS = Path(__file__).parent


def test_there_are_enough():
    assert len({(m.file, m.source, m.replacement) for m in ALL}) == len(ALL) >= 50


@pytest.mark.parametrize("mutation", ALL, ids=lambda m: f"{m.file}: {m.words}")
def test_each_still_applies_and_its_tests_exist(mutation):
    text = (SOURCE / mutation.file).read_text()
    assert mutated(mutation, text) != text
    for test in mutation.tests:
        path, _, name = test.partition("::")
        assert f"def {name.partition('[')[0]}" in (TESTS / path).read_text()
