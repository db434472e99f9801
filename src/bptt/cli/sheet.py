"""Lines on stdout: bold headings and dim notes, plain where there is no terminal."""

import os
import sys
from typing import final

from rich.console import Console
from rich.text import Text


@final
class Sheet:
    """Prints lines as they are, in a terminal with styles unless color is unwanted."""

    def __init__(self) -> None:
        color = None if "NO_COLOR" in os.environ else "auto"
        self._console = Console(
            file=sys.stdout,
            color_system=color,  # type: ignore[arg-type]
            highlight=False,
            soft_wrap=True,
        )

    def line(self, text: str = "", style: str = "") -> None:
        """One line, or a few."""
        # Never as markup: a word may hold brackets.
        self._console.print(Text(text.rstrip(), style=style))

    def head(self, text: str) -> None:
        """A heading after an empty line."""
        self.line()
        self.line(text, "bold")

    def note(self, text: str) -> None:
        """What explains the numbers."""
        self.line(text, "dim")
