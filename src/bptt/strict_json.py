"""JSON from files that may be damaged or hostile: one value a field, or a refusal.

Python's reader takes the last of two equal fields, NaN, and numbers without end; each
is refused here, with its path, as is what is nested too deeply, and half a surrogate
pair, which is no character.
"""

import json
import math
import re
from collections import Counter
from typing import Any, TypeVar

import msgspec

from bptt.escape import one_line

_LONGEST = 160  # characters of a message, whose names come from the file
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]|[\ud800-\udfff]")  # half a pair, perhaps
_MOST_DIGITS = 100  # of an integer; more would only cost time to read


_Kind = TypeVar("_Kind")


def convert(tree: Any, kind: type[_Kind]) -> _Kind:
    """The value of `loads` as a struct of msgspec.

    Raises:
        ValueError: in one short line, what is wrong, and with which field.
    """
    try:
        return msgspec.convert(tree, kind)
    except msgspec.ValidationError as error:
        line = one_line(str(error))
        if len(line) > _LONGEST:  # the path is at the end
            line = f"{line[: _LONGEST // 2]} ... {line[-_LONGEST // 2 :]}"
        raise ValueError(line) from None


class _Wrong:
    """Stands in the tree for what is refused, until its path is known."""

    def __init__(self, reason: str, key: str | None = None) -> None:
        self.reason = reason
        self.key = key


def loads(data: bytes | str) -> Any:
    """The value that `data` holds.

    Raises:
        ValueError: in a few words, what is wrong, and with which field.
    """
    found: list[_Wrong] = []

    def wrong(reason: str, key: str | None = None) -> _Wrong:
        found.append(_Wrong(reason, key))
        return found[-1]

    def integer(text: str) -> Any:
        if len(text) > _MOST_DIGITS:
            return wrong(f"a number of {len(text)} digits")
        return int(text)

    def real(text: str) -> Any:
        value = float(text) if len(text) <= 1000 else math.inf
        return value if math.isfinite(value) else wrong("a number out of range")

    def fields(pairs: list[tuple[str, Any]]) -> Any:
        content = dict(pairs)
        if len(content) == len(pairs):
            return content
        ((twice, _),) = Counter(key for key, _ in pairs).most_common(1)
        return wrong("the field is given twice", twice)

    try:
        text = data if isinstance(data, str) else data.decode()
        tree = json.loads(
            text,
            object_pairs_hook=fields,
            parse_int=integer,
            parse_float=real,
            parse_constant=lambda name: wrong(f"{name} is no number of JSON"),
        )
        if found or _SURROGATE.search(text):
            _refuse(tree, found)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"it is not UTF-8: {error.reason}") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"it is not JSON: {error}") from None
    return tree


def _refuse(tree: Any, found: list[_Wrong]) -> None:
    """Say where the first of what is wrong and still in the tree stands."""
    waiting = [(tree, "$")]
    while waiting:
        node, path = waiting.pop()
        if isinstance(node, _Wrong):
            raise ValueError(f"{node.reason} - at `{path}{_step(node.key)}`")
        if isinstance(node, dict):
            if not all(map(_is_text, node)):
                raise ValueError(f"a name is half a surrogate pair - at `{path}`")
            waiting += [(value, path + _step(key)) for key, value in node.items()]
        elif isinstance(node, list):
            waiting += [(value, f"{path}[{i}]") for i, value in enumerate(node)]
        elif isinstance(node, str) and not _is_text(node):
            raise ValueError(f"half a surrogate pair - at `{path}`")
    if found:
        raise ValueError(f"{found[0].reason}, inside a field that is given twice")


def _is_text(text: str) -> bool:
    return text.isascii() or not any("\ud800" <= c <= "\udfff" for c in text)


def _step(key: str | None) -> str:
    if key is None:
        return ""
    key = key[:40]
    return f".{key}" if key.isidentifier() else f"[{key!a}]"
