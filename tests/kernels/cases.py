"""Cases for the native kernels: modules, what goes into them, and what comes out.

A case is shapes and options. Its weights, inputs and errors are float32 numbers.
"""

import math
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from bptt import kernels
from bptt.cells import GRUCell, LSTMCell, ReLUCell, TanhCell
from bptt.truncation import Truncation
from literal import KINDS, PARTS, outputs, pair

CELLS = (TanhCell, ReLUCell, GRUCell, LSTMCell)
KIND = pytest.mark.parametrize("kind", KINDS)
READS = [("y",), ("h_n",), ("y", "h_n"), ("c_n",), ("h_n", "c_n")]
# What the loss may read, where not all.
KIND_AND_READS = pytest.mark.parametrize(
    ("kind", "reads"),
    [(k, r) for k in KINDS for r in READS if k == "lstm" or "c_n" not in r],
    ids=lambda value: value if isinstance(value, str) else "+".join(value),
)
NATIVES = [name for name in kernels.available() if name != "torch"]
_NONE = pytest.param(
    "none", marks=pytest.mark.skip(reason="no native kernel is installed here")
)
ALL = NATIVES or [_NONE]
NATIVE = pytest.mark.usefixtures("kernel")
# For what stands before the kernels, the same for each.
BEST = pytest.mark.parametrize("kernel", ALL[:1], indirect=True)
# Forward-mode differentiation in torch compiles some of its own formulas.
FORWARD_MODE = pytest.mark.filterwarnings("ignore:.torch.jit.script")


@dataclass(frozen=True)
class Data:
    """What goes into a module, and the errors that come back at its outputs."""

    x: Tensor
    state: tuple[Tensor, ...]
    errors: dict[str, Tensor]  # of y, h_n and c_n

    def double(self) -> "Data":
        """The same numbers in float64; ids stay ids."""
        return Data(
            self.x.double() if self.x.is_floating_point() else self.x,
            tuple(part.double() for part in self.state),
            {name: error.double() for name, error in self.errors.items()},
        )


@dataclass(frozen=True)
class Case:
    """Shapes and options; the same case is the same numbers."""

    kind: str
    hidden: int
    batch: int | None  # None: one sequence without a batch axis
    time: int
    inputs: int
    layers: int = 1
    bias: bool = True
    bidirectional: bool = False
    batch_first: bool = False
    ids: bool = False
    truncation: Truncation | None = None
    seed: int = 0

    def modules(self) -> tuple[Any, Any]:
        """Ours and torch.nn's with the same weights, in float32."""
        module, reference = pair(
            self.kind,
            self.inputs,
            self.hidden,
            self.layers,
            seed=self.seed,
            dtype=torch.float32,
            bias=self.bias,
            bidirectional=self.bidirectional,
            batch_first=self.batch_first,
        )
        with torch.no_grad():  # uniform up to 1.5 / sqrt(width): lively, not chaotic
            for name, weight in reference.named_parameters():
                width = weight.shape[1] if "weight" in name else self.hidden
                weight.mul_(1.5 / 0.8 / math.sqrt(width))
        module.load_state_dict(reference.state_dict())
        module.truncation = self.truncation
        return module, reference

    def data(self) -> Data:
        """Normal inputs, states and errors in float32."""
        generator = torch.Generator().manual_seed(self.seed + 1)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator)

        batch = () if self.batch is None else (self.batch,)
        lead = (self.time, *batch)
        if self.batch_first and batch:
            lead = (*batch, self.time)
        directions = 2 if self.bidirectional else 1
        ends = (self.layers * directions, *batch, self.hidden)
        if self.ids:
            x = torch.randint(0, self.inputs, lead, generator=generator)
        else:
            x = normal(*lead, self.inputs)
        names = ("h_n", "c_n")[: len(PARTS[self.kind])]
        return Data(
            x,
            tuple(normal(*ends) for _ in names),
            {"y": normal(*lead, directions * self.hidden)}
            | {name: normal(*ends) for name in names},
        )


def run(
    module: Any,
    data: Data,
    *,
    reads: Collection[str] | None = None,
    wanted: Collection[str] | None = None,
) -> dict[str, Tensor]:
    """Outputs, and the gradients `d...` of what is `wanted`, by name.

    The loss reads the outputs in `reads`, all when None. Everything else is frozen
    where not all is wanted: weights by name, "x", "h0", "c0".
    """
    kind = "lstm" if isinstance(module, torch.nn.LSTM) else "gru"
    leaves = dict(module.named_parameters())
    leaves |= {"x": data.x.detach()} if data.x.is_floating_point() else {}
    leaves |= {n: s.detach() for n, s in zip(PARTS[kind], data.state, strict=False)}
    for name, leaf in leaves.items():
        leaf.requires_grad_(wanted is None or name in wanted)
    state = [leaves[name] for name in PARTS[kind] if name in leaves]
    out = outputs(module, leaves.get("x", data.x), *state)
    read = sorted(out.keys() if reads is None else reads)
    chosen = [name for name, leaf in leaves.items() if leaf.requires_grad]
    grads = torch.autograd.grad(
        [out[name] for name in read],
        [leaves[name] for name in chosen],
        [data.errors[name] for name in read],
        allow_unused=True,
    )
    for leaf in leaves.values():
        leaf.requires_grad_(True)
    found = {name: value.detach() for name, value in out.items()}
    for name, grad in zip(chosen, grads, strict=True):
        found[f"d{name}"] = torch.zeros_like(leaves[name]) if grad is None else grad
    return found


def relative_error(given: Tensor, exact: Tensor) -> float:
    """The largest error over the largest magnitude; inf for nan and wrong shapes."""
    if given.shape != exact.shape:
        return math.inf
    if exact.numel() == 0:
        return 0.0
    error = float((given.detach().double() - exact).abs().max())
    if error == 0:
        return 0.0
    largest = float(exact.abs().max())
    ratio = error / largest if largest else math.inf
    return math.inf if math.isnan(ratio) else ratio


def assert_near(
    found: Mapping[str, Tensor], exact: Mapping[str, Tensor], tolerance: float
) -> None:
    """Each tensor within `tolerance` of its largest magnitude, by name."""
    assert found.keys() == exact.keys()
    errors = {n: relative_error(found[n], exact[n].detach().double()) for n in exact}
    wrong = {name: error for name, error in errors.items() if not error <= tolerance}
    assert not wrong, f"relative errors over {tolerance:g}: {wrong}"


def assert_bits(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """The same numbers to the last bit, nan equal to nan."""
    assert found.keys() == expected.keys()
    other = [n for n in expected if not torch.equal(bits(found[n]), bits(expected[n]))]
    assert not other, f"not the same bits: {other}"


def bits(t: Tensor) -> Tensor:
    """The float32 numbers as int32, with one pattern for nan and one for zero."""
    t = torch.where(t.isnan(), torch.nan, t.detach() + 0.0)
    return t.contiguous().view(torch.int32)


@contextmanager
def native_only() -> Iterator[None]:
    """No step of the definition may run inside on float32."""
    with pytest.MonkeyPatch.context() as patch:
        for cell in CELLS:
            watch(patch, cell, "step", _refuse)
            watch(patch, cell, "vjp_state", _refuse)
        yield


def _refuse(W: Tensor) -> None:
    assert W.dtype != torch.float32, f"the definition ran, not {kernels.active()}"


def watch(
    patch: pytest.MonkeyPatch, cell: Any, name: str, notice: Callable[[Tensor], None]
) -> None:
    """Call `notice` with `W` before each `step` or `vjp_state` of this cell."""
    true = getattr(cell, name)

    def noticed(self: Any, given: Any, state: Any, W: Tensor, *others: Any) -> Any:
        notice(W)
        return true(self, given, state, W, *others)

    patch.setattr(cell, name, noticed)
