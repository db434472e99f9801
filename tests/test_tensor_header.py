import json

import pytest
import safetensors.torch
import torch

from bptt import tensor_header
from bptt.tensor_header import Kind


def file(header, size=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if size is None else size).to_bytes(8, "little") + text


def test_the_header_tells_what_the_library_reads():
    tensors = {
        "a": torch.zeros(2, 3),
        "b": torch.zeros((), dtype=torch.float64),
        "c": torch.zeros(0, 4, dtype=torch.bfloat16),
        "d": torch.zeros(1, dtype=torch.float16),
        "e": torch.zeros(7, dtype=torch.int64),
    }
    assert tensor_header.kinds(safetensors.torch.save(tensors, {"more": "x"})) == {
        "a": Kind(torch.float32, (2, 3)),
        "b": Kind(torch.float64, ()),
        "c": Kind(torch.bfloat16, (0, 4)),
        "d": Kind(torch.float16, (1,)),
        "e": Kind(None, (7,)),
    }


ENTRY = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
WRONG = {
    "nothing": (b"", "does not end within its 0 bytes"),
    "half a size": (b"abc", "does not end within its 3 bytes"),
    "a size beyond the file": (file({}, 3), "does not end within its 10 bytes"),
    "the largest size": (file({}, 2**64 - 1), "does not end"),
    "too many bytes": (file(b" " * (2**24 + 1)), "16,777,217 bytes, too many"),
    "no JSON": (file(b"{"), "not JSON"),
    "deep": (file(b"[" * 100_000), "nested too deeply"),
    "a list": (file([]), "no object"),
    "a name twice": (file(b'{"a": 1, "a": 2}'), r"given twice - at `\$\.a`"),
    "an entry that is none": (file({"a": 3}), "'a' has no dtype or shape"),
    "no shape": (file({"a": {"dtype": "F32"}}), "'a' has no dtype or shape"),
    "a shape of fractions": (file({"a": {**ENTRY, "shape": [1.0]}}), "no dtype or"),
    "a shape of truths": (file({"a": {**ENTRY, "shape": [True]}}), "no dtype or"),
    "a long name": (file({"a\n" * 999: 3}), r"entry 'a\\n"),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_is_no_header(what):
    data, match = WRONG[what]
    with pytest.raises(ValueError, match=match) as caught:
        tensor_header.kinds(data)
    assert len(str(caught.value)) < 200
    assert "\n" not in str(caught.value)
