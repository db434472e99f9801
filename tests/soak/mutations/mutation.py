"""What a mutation is."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Mutation:
    """One error, made in one place.

    Attributes:
        file: below src/bptt.
        source: text that occurs once in it.
        replacement: what stands there instead.
        words: what is wrong then.
        tests: below tests, that catch it.
    """

    file: str
    source: str
    replacement: str
    words: str
    tests: tuple[str, ...]
