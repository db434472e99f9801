"""The native core: see `csrc/bindings.cpp`. Tensors are contiguous and on the CPU."""

from typing import Any

from torch import Tensor

_Rows = tuple[Tensor | None, Tensor | None]  # offsets, resets
# Order, time, whether the batch is first, whether rows run backwards.
_Padded = tuple[Tensor, int, bool, bool] | None
_Layer = tuple[
    Tensor,  # W
    Tensor | None,  # U
    Tensor,  # h
    Tensor | None,  # tape
    Tensor | None,  # mask
    Tensor | None,  # dh_end
    Tensor | None,  # dc_end
    Tensor | None,  # delta
    Tensor | None,  # dh_start
    Tensor | None,  # dc_start
]
_Gradients = tuple[
    int,  # inputs
    Tensor | None,  # x
    Tensor | None,  # ids
    Tensor,  # U
    Tensor | None,  # dU
    Tensor | None,  # dW
    Tensor | None,  # db_ih
    Tensor | None,  # db_hh
    Tensor | None,  # dx
]

def variants() -> list[str]: ...
def read_tensors(of: type[Tensor], parameter: type[Tensor], exchange: Any) -> bool: ...
def are_fit(tensors: list[Tensor]) -> bool: ...
def empty(elements: int) -> Tensor: ...
def sort_rows(lengths: list[int], to: Tensor) -> None: ...
def tape_floats(name: str, cell: int, rows: int, hidden: int) -> int: ...
def packed_floats(name: str, cell: int, hidden: int) -> int: ...
def forward(
    name: str,
    threads: int,
    cell: int,
    sizes: tuple[int, int, int, int],
    rows: _Rows,
    padded: _Padded,
    x: Tensor | None,
    ids: Tensor | None,
    weights: list[tuple[Tensor, Tensor, Tensor | None, Tensor | None]],
    masks: list[Tensor],
    h0: Tensor,
    c0: Tensor | None,
    y: Tensor,
    h_end: Tensor,
    c_end: Tensor | None,
    tapes: list[tuple[Tensor, Tensor | None]],
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
    chunk: int,
    dy: Tensor,
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
    delta: Tensor,
    h: Tensor,
    gradients: _Gradients,
) -> None: ...
def back_lag(
    name: str,
    threads: int,
    cell: int,
    sizes: tuple[int, int, int],
    steps: int,
    W: Tensor | None,
    packed: Tensor,
    h: Tensor,
    tape: Tensor | None,
    ds: Tensor,
    dc: Tensor | None,
    delta: Tensor | None,
    ds_before: Tensor,
    dc_before: Tensor | None,
    squares: Tensor,
    squares_c: Tensor | None,
) -> None: ...
