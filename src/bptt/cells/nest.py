"""States of users' cells: a tensor, or tuples of states, named or not, nested.

The loops hold a state as the flat tuple of its tensors, its *leaves*, and give it back
to the cell as the cell knows it.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor

Leaves = tuple[Tensor, ...]


@dataclass(frozen=True)
class Nest:
    """How leaves are nested: the type of a tuple and its parts; no type for a leaf."""

    kind: type | None = None
    parts: tuple["Nest", ...] = ()

    def state(self, leaves: Leaves) -> Any:
        """The state with these leaves."""
        return leaves[0] if self.kind is None else self._build(iter(leaves))

    def _build(self, leaves: Iterator[Tensor]) -> Any:
        if self.kind is None:
            return next(leaves)
        parts = [part._build(leaves) for part in self.parts]
        # A NamedTuple takes its parts one by one.
        return tuple(parts) if self.kind is tuple else self.kind(*parts)

    def __str__(self) -> str:
        if self.kind is None:
            return "tensor"
        name = "" if self.kind is tuple else self.kind.__name__
        comma = "," if len(self.parts) == 1 else ""
        return f"{name}({', '.join(map(str, self.parts))}{comma})"


_LEAF = Nest()


def flatten(state: Any, name: str) -> tuple[Leaves, Nest]:
    """The leaves of a state and how they are nested.

    Args:
        state: a tensor, or tuples of states.
        name: of what is flattened, for errors.

    Raises:
        TypeError: it holds something else.

    >>> import torch
    >>> h, c = torch.zeros(2, 1, 4)
    >>> leaves, nest = flatten(((h, c), h), "state")
    >>> len(leaves), str(nest)
    (3, '((tensor, tensor), tensor)')
    """
    if isinstance(state, Tensor):
        return (state,), _LEAF
    if not isinstance(state, tuple):
        raise TypeError(
            f"{name} must be a tensor or tuples of tensors, nested as deep as you "
            f"like; it holds a {type(state).__name__}: write a tuple instead"
        )
    found = [flatten(part, name) for part in state]
    leaves = tuple(leaf for part, _ in found for leaf in part)
    return leaves, Nest(type(state), tuple(nest for _, nest in found))
