"""Exceptions that a caller may want to catch.

Wrong arguments raise `ValueError` or `TypeError`, as everywhere in Python; the classes
here are for what lies outside the program: texts, files and numbers.
"""


class InputError(ValueError):
    """A text or file that the user named cannot be used; the command line exits 2."""


class CheckpointError(RuntimeError):
    """A saved model or snapshot is damaged or incomplete; the command line exits 3."""


class GradientError(ArithmeticError):
    """A gradient disagrees with its check; the command line exits 4."""
