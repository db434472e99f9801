"""The native core: see `csrc/bindings.cpp`. An array is (address, elements)."""

_Array = tuple[int, int]
_Layer = tuple[
    _Array,  # W
    _Array | None,  # U
    _Array,  # h
    _Array | None,  # c
    _Array | None,  # gates
    _Array | None,  # extra
    _Array | None,  # mask
    _Array | None,  # dh_end
    _Array | None,  # dc_end
    _Array,  # delta
    _Array | None,  # dh_start
    _Array | None,  # dc_start
]

def variants() -> list[str]: ...
def forward(
    name: str,
    threads: int,
    cell: int,
    sizes: tuple[int, int, int, int],
    x: _Array | None,
    ids: _Array | None,
    U: _Array,
    W: _Array,
    b_ih: _Array | None,
    b_hh: _Array | None,
    h: _Array,
    c: _Array | None,
    gates: _Array | None,
    extra: _Array | None,
    keep: bool,
) -> None: ...
def backward(
    name: str,
    threads: int,
    cell: int,
    sizes: tuple[int, int, int],
    truncation: tuple[int, int],
    dy: _Array,
    layers: list[_Layer],
) -> None: ...
def gradients(
    name: str,
    threads: int,
    cell: int,
    sizes: tuple[int, int, int, int],
    delta: _Array,
    x: _Array | None,
    ids: _Array | None,
    U: _Array,
    h: _Array,
    dU: _Array | None,
    dW: _Array | None,
    db_ih: _Array | None,
    db_hh: _Array | None,
    dx: _Array | None,
) -> None: ...
