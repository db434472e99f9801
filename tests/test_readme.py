"""What the README and the docstrings say: examples give what they show."""

import doctest
import importlib
import re
import shlex
from pathlib import Path

import pytest
import torch
import tyro

from bptt.cli.arguments import Command, Train
from bptt.cli.commands import _options

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
SOURCES = sorted(
    path
    for path in (ROOT / "src").rglob("*.py")
    if re.search(r"^ *>>> ", path.read_text(), re.MULTILINE)
)


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


@pytest.fixture(autouse=True)
def seeded_and_quick():
    """One thread, since tiny products take less time than threads take to meet."""
    torch.manual_seed(0)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_the_readmes_examples():
    found = doctest.testfile(str(ROOT / "README.md"), module_relative=False)
    assert found.failed == 0
    assert found.attempted == README.count("\n>>> ") > 5
    for block in blocks("python"):
        assert block.startswith(">>> "), "a block that is not tested"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_the_docstrings_examples(path):
    name = ".".join(path.relative_to(ROOT / "src").with_suffix("").parts)
    found = doctest.testmod(importlib.import_module(name))
    assert found.failed == 0
    assert found.attempted > 0


def test_there_are_docstrings_with_examples():
    assert {"truncation", "layers", "tutorial"} <= {path.stem for path in SOURCES}


def commands():
    text = "".join(blocks("console")).replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line.startswith("bptt ")]
    examples = [
        example.strip()
        for options in Command.__args__
        for example in re.findall(r"Example: (bptt .*)", options.__doc__)
    ]
    return lines + examples


@pytest.mark.parametrize("line", commands())
def test_the_commands_that_are_shown_are_commands(line):
    program, *words = shlex.split(line, comments=True)
    assert program == "bptt"
    command = tyro.cli(Command, args=words)
    if isinstance(command, Train):
        _options(command)


def test_the_links_lead_somewhere():
    links = re.findall(r"\]\(([^)#:]+)\)", README)
    assert len(links) > 3
    for link in links:
        assert (ROOT / link).exists(), link
