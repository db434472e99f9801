"""JSON as an enemy would write it: a tree with one thing changed, and what is none."""

import json
from typing import Any

from hypothesis import strategies as st

NUMBERS = (-1, 0, 1, 2**31, 2**53, 2**63, 2**64, 10**30, -(2**63), 0.5, 1e308, 5e-324)
RAW = (  # not what `json.dumps` writes
    *("NaN", "-Infinity", "1e999", "9" * 5000, "0." + "1" * 5000),
    *("[" * 5000, '{"a":' * 5000, "[" * 900 + "]" * 900, '{"a": 1, "a": 2}', "tru"),
    *('"\\ud800"', '"\\u0000"', "'", "", "//", "﻿"),
)
_MARK = "what is to be replaced"

numbers = st.sampled_from(NUMBERS) | st.integers() | st.floats(allow_nan=False)
values = st.recursive(
    st.none() | st.booleans() | numbers | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=8,
)


def places(tree: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths of all values."""
    found = [path]
    if isinstance(tree, dict | list):
        steps = tree if isinstance(tree, dict) else range(len(tree))
        for step in steps:
            found += places(tree[step], (*path, step))
    return found


def with_value(tree: Any, path: tuple[Any, ...], new: Any) -> Any:
    """The tree with another value there."""
    if not path:
        return new
    changed = dict(tree) if isinstance(tree, dict) else list(tree)
    changed[path[0]] = with_value(tree[path[0]], path[1:], new)
    return changed


@st.composite
def changed(draw: st.DrawFn, tree: Any) -> bytes:
    """The text of a tree with a value changed, taken away, added, or no JSON."""
    path = draw(st.sampled_from(places(tree)))
    at = tree
    for step in path:
        at = at[step]
    how = draw(st.sampled_from(["value", "raw", "remove", "add", "bytes"]))
    if how == "remove" and isinstance(at, dict | list) and at:
        kept = list(at.items() if isinstance(at, dict) else at)
        del kept[draw(st.integers(0, len(kept) - 1))]
        tree = with_value(tree, path, type(at)(kept))
    elif how == "add" and isinstance(at, dict):
        new = {draw(st.text(max_size=8)): draw(values)}
        tree = with_value(tree, path, {**at, **new})
    elif how == "raw":
        raw = draw(st.sampled_from(RAW))
        text = json.dumps(with_value(tree, path, _MARK))
        return text.replace(f'"{_MARK}"', raw).encode("utf-8", "surrogatepass")
    elif how == "bytes":
        data = json.dumps(tree).encode()
        first = draw(st.integers(0, len(data)))
        stop = draw(st.integers(first, min(len(data), first + 9)))
        return data[:first] + draw(st.binary(max_size=9)) + data[stop:]
    else:
        tree = with_value(tree, path, draw(values))
    return json.dumps(tree).encode()
