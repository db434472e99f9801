import json

import pytest

from bptt.strict_json import loads


@pytest.mark.parametrize(
    "value", [None, True, "😀", 1.5, -0.0, 10**30, "é", [], {}, {"a": [1, {"b": [[]]}]}]
)
def test_what_json_writes_is_read(value):
    for data in (json.dumps(value), json.dumps(value).encode()):
        found = loads(data)
        assert (found, type(found)) == (value, type(value))


WRONG = {
    '{"a": 1, "b": 2, "a": 1}': "the field is given twice - at `$.a`",
    '{"x": [0, {"a b": 1, "a b": 2}]}': r"twice - at `$.x[1]['a b']`",
    '{"x": {"y": NaN}}': "NaN is no number of JSON - at `$.x.y`",
    '{"x": [1, -Infinity]}': "-Infinity is no number of JSON - at `$.x[1]`",
    '{"x": 1e999}': "a number out of range - at `$.x`",
    '{"x": ' + "1" * 100_000 + "}": "a number of 100000 digits - at `$.x`",
    '{"x": 0.' + "1" * 100_000 + "}": "a number out of range - at `$.x`",
    '{"x": ' + "[" * 100_000: "it is nested too deeply",
    '{"x": ' * 100_000: "it is nested too deeply",
    '{"a": NaN, "a": 1}': "at `$.a`",
    '{"a": {"b": NaN}, "a": {"b": 1}}': "at `$.a`",
    "": "it is not JSON",
    "{'a': 1}": "it is not JSON",
    "1 2": "it is not JSON",
    b'"\xff"': "it is not UTF-8",
    b'"\xed\xa0\x80"': "it is not UTF-8",
    '{"a": "x"}'.encode("utf-16"): "it is not UTF-8",
    r'{"x": ["a", "\ud800"]}': "half a surrogate pair - at `$.x[1]`",
    r'{"x": {"\uDFFF": 1}}': "a name is half a surrogate pair - at `$.x`",
    '"\ud800"': "half a surrogate pair - at `$`",
    '{"' + "x" * 999 + '": NaN}': "at `$." + "x" * 40 + "`",
}


@pytest.mark.parametrize("data", WRONG, ids=lambda data: ascii(data[:30]))
def test_what_is_refused_and_where(data):
    with pytest.raises(ValueError) as caught:
        loads(data)
    assert WRONG[data] in str(caught.value)
    assert len(str(caught.value)) < 200
