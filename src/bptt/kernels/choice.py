"""Which kernel runs: the best that this machine has, or the one that is asked for."""

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

try:
    from bptt.kernels import _native

    INSTALLED = True
except ImportError:  # installed where no compiler was at hand
    INSTALLED = False

TORCH = "torch"
VARIABLE = "BPTT_KERNEL"
_NAMES = ("avx512", "avx2", "baseline", TORCH)

_available: tuple[str, ...] | None = None
_active: str | None = None


def available() -> tuple[str, ...]:
    """The kernels that run on this machine, the fastest first, "torch" last.

    "torch" alone where the package was installed without a C++ compiler.
    """
    global _available
    if _available is None:
        native = tuple(_native.variants()) if INSTALLED else ()
        _available = (*native, TORCH)
    return _available


def active() -> str:
    """The kernel that float32 tensors on the CPU use: "avx512", "avx2", ... or "torch".

    Raises:
        ValueError: BPTT_KERNEL names none that runs here.
    """
    global _active
    if _active is None:
        asked = os.environ.get(VARIABLE)
        if asked:
            _require(asked, f"{VARIABLE}={asked}")
        _active = asked or available()[0]
        if not asked and not INSTALLED:  # once: it is chosen now
            warnings.warn(
                "bptt was installed without its native core, which could not be "
                "compiled, so recurrent layers run the slower definition in PyTorch; "
                "install it again with a C++ compiler (pip install --verbose shows "
                f"what it says), or set {VARIABLE}=torch",
                stacklevel=2,
            )
    return _active


@contextmanager
def use(name: str) -> Iterator[None]:
    """Run with one kernel, in the whole process, until the context ends.

    For tests and measurements.

    Raises:
        ValueError: `name` is none that runs here.

    >>> with use("torch"):
    ...     active()
    'torch'
    """
    global _active
    _require(name, f"name = {name!r}")
    before, _active = _active, name
    try:
        yield
    finally:
        _active = before


def _require(name: str, given: str) -> None:
    if name in available():
        return
    possible = ", ".join(available())
    if name not in _NAMES:
        raise ValueError(f"{given} is not a kernel; possible here: {possible}")
    reason = "does not run on this processor" if INSTALLED else "is not installed"
    raise ValueError(f"{given} {reason}; possible here: {possible}")
