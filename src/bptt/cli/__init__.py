"""The command line: one subcommand a verb.

Data goes to stdout and messages to stderr. Exit codes: 0 done, 1 failed, 2 wrong usage
or input, 3 damaged checkpoint, 4 gradients wrong, 130 or 143 after a signal.
"""

import os
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from itertools import pairwise

import tyro

from bptt import __version__
from bptt.cli.arguments import Command
from bptt.errors import CheckpointError, GradientError, InputError
from bptt.escape import printable


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: the words after `bptt`; the process's own if None.

    Returns:
        The exit code.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words == ["--version"]:
        sys.stdout.write(f"bptt {__version__}\n")
        return 0
    try:
        command: Command = tyro.cli(
            Command,
            prog="bptt",
            description="Train recurrent networks with backpropagation through time.",
            args=words or ["--help"],
        )
    except SystemExit as stop:
        _suggest_cell(words)
        return stop.code if isinstance(stop.code, int) else 2
    try:
        # Only now, so that help and wrong usage do not wait for PyTorch.
        from bptt.cli import commands

        return commands.run(command)
    except BrokenPipeError:
        # The reader of our output has gone; the interpreter must not complain of it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        return _failed("interrupted", 130)
    except InputError as error:
        return _failed(error, 2)
    except CheckpointError as error:
        return _failed(error, 3)
    except GradientError as error:
        return _failed(error, 4)
    except (FloatingPointError, OSError, NotImplementedError, MemoryError) as error:
        return _failed(error, 1)


def _suggest_cell(words: Sequence[str]) -> None:
    """Say which cell was meant; options that were meant are suggested by tyro."""
    cells = ("rnn", "gru", "lstm")
    given = [b for a, b in pairwise(words) if a == "--cell" and b not in cells]
    for cell in given[:1]:
        if meant := get_close_matches(cell.lower(), cells, n=1, cutoff=0.5):
            sys.stderr.write(f"bptt: did you mean --cell {meant[0]}?\n")


def _failed(error: object, code: int) -> int:
    sys.stderr.write(f"bptt: {printable(str(error))}\n")
    return code
