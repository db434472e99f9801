"""Text from anywhere, made safe for a terminal."""


def printable(text: str) -> str:
    """Control characters as escapes, so that no text can drive the terminal."""
    return "".join(
        c if c in "\n\t" or c.isprintable() else c.encode("unicode_escape").decode()
        for c in text
    )


def one_line(text: str) -> str:
    """The same without line breaks and tabs."""
    return printable(text).replace("\n", "\\n").replace("\t", "\\t")
