"""The native core: see `csrc/bindings.cpp`. An array is (address, elements)."""

from torch import Tensor

_Array = tuple[int, int]
_Rows = tuple[_Array | None, _Array | None]  # offsets, resets
# Order, time, whether the batch is first, whether rows run backwards.
_Padded = tuple[_Array, int, bool, bool] | None
_Layer = tuple[
    _Array,  # W
    _Array | None,  # U
    _Array,  # h
    _Array | None,  # tape
    _Array | None,  # mask
    _Array | None,  # dh_end
    _Array | None,  # dc_end
    _Array | None,  # delta
    _Array | None,  # dh_start
    _Array | None,  # dc_start
]
_Gradients = tuple[
    int,  # inputs
    _Array | None,  # x
    _Array | None,  # ids
    _Array,  # U
    _Array | None,  # dU
    _Array | None,  # dW
    _Array | None,  # db_ih
    _Array | None,  # db_hh
    _Array | None,  # dx
]

def variants() -> list[str]: ...
def empty(elements: int) -> Tensor: ...
def sort_rows(lengths: list[int], to: _Array) -> None: ...
def tape_floats(name: str, cell: int, rows: int, hidden: int) -> int: ...
def packed_floats(name: str, cell: int, hidden: int) -> int: ...
def forward(
    name: str,
    threads: int,
    cell: int,
    sizes: tuple[int, int, int, int],
    rows: _Rows,
    padded: _Padded,
    x: _Array | None,
    ids: _Array | None,
    weights: list[tuple[_Array, _Array, _Array | None, _Array | None]],
    masks: list[_Array],
    h0: _Array,
    c0: _Array | None,
    y: _Array,
    h_end: _Array,
    c_end: _Array | None,
    tapes: list[tuple[_Array, _Array | None]],
) -> None: ...
def backward(
    name: str,
    threads: int,
    cell: int,
    sizes: tuple[int, int, int],
    rows: _Rows,
    padded_dy: _Padded,
    padded_x: _Padded,
    truncation: tuple[int, int] | None,
    dy: _Array,
    layers: list[_Layer],
    gradients: _Gradients | None,
) -> None: ...
def gradients(
    name: str,
    threads: int,
    cell: int,
    sizes: tuple[int, int, int],
    rows: _Rows,
    padded: _Padded,
    delta: _Array,
    h: _Array,
    gradients: _Gradients,
) -> None: ...
def back_lag(
    name: str,
    threads: int,
    cell: int,
    sizes: tuple[int, int, int],
    steps: int,
    W: _Array | None,
    packed: _Array,
    h: _Array,
    tape: _Array | None,
    ds: _Array,
    dc: _Array | None,
    delta: _Array | None,
    ds_before: _Array,
    dc_before: _Array | None,
    squares: _Array,
    squares_c: _Array | None,
) -> None: ...
