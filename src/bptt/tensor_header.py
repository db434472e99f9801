"""What a safetensors file holds, told by its header alone.

Reading the tensors copies them. A file that does not fit is refused before that, so a
wrong one costs no more memory than its bytes.

Format: 8 bytes with the header's length, the header in JSON, the numbers.
"""

from typing import Any, NamedTuple

import torch

from bptt import strict_json

_LARGEST = 1 << 24  # bytes; 16,000 tensors of a deep model take an eighth of it
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}


class Kind(NamedTuple):
    """Of a tensor.

    Attributes:
        dtype: None for those that weights do not have.
        shape: as it says; numbers, but not yet known to be sensible ones.
    """

    dtype: torch.dtype | None
    shape: tuple[int, ...]


def kinds(data: bytes) -> dict[str, Kind]:
    """The kinds of all tensors, by name.

    Raises:
        ValueError: in a few words, why this is no header.
    """
    size = int.from_bytes(data[:8], "little")
    if len(data) < 8 or size > len(data) - 8:
        raise ValueError(f"the header does not end within its {len(data)} bytes")
    if size > _LARGEST:
        raise ValueError(f"the header has {size:,} bytes, too many")
    header = strict_json.loads(data[8 : 8 + size])
    if not isinstance(header, dict):
        raise ValueError("the header is no object of JSON")
    header.pop("__metadata__", None)
    return {name: _kind(name, entry) for name, entry in header.items()}


def _kind(name: str, entry: Any) -> Kind:
    match entry:
        case {"dtype": str(dtype), "shape": [*shape]} if all(
            type(width) is int for width in shape
        ):
            return Kind(_DTYPES.get(dtype), tuple(shape))
    raise ValueError(f"the header's entry {name[:60]!a} has no dtype or shape")
