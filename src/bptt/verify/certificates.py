"""Certificates that the gradients of this installation, on this machine, are right."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from bptt import kernels
from bptt.modules import GRU, LSTM, RNN
from bptt.truncation import Truncation
from bptt.verify.check import describe_failure, measure
from bptt.verify.report import GradientReport

_TIME, _BATCH, _INPUT, _HIDDEN = 13, 3, 4, 3  # 13: a short last chunk for 4, 2 and 5
_TOLERANCE, _FLOAT32_TOLERANCE, _DIRECTIONS = 1e-6, 5e-6, 1
_SPREAD = 0.5  # of the weights: gradients neither vanish nor explode
_CELLS: dict[str, Callable[..., RNN | GRU | LSTM]] = {
    "rnn tanh": partial(RNN, nonlinearity="tanh"),
    "rnn relu": partial(RNN, nonlinearity="relu"),
    "gru": GRU,
    "lstm": LSTM,
}
_TRUNCATIONS = (
    Truncation.full(),
    Truncation.chunks(4),
    Truncation.per_output(3),
    Truncation(2, 7),
    Truncation(5, 2),
)


@dataclass(frozen=True)
class _Case:
    name: str
    layers: int = 1
    bidirectional: bool = False
    ids: bool = False


_CASES = (
    _Case("1 layer"),
    _Case("3 layers", layers=3),
    _Case("bidirectional", bidirectional=True),
    _Case("ids", ids=True),
)
CASES = len(_CELLS) * len(_TRUNCATIONS) * len(_CASES)  # that `certify` checks


@dataclass(frozen=True)
class Certificate:
    """The gradients of one cell in one setting, under one truncation.

    Attributes:
        cell: "rnn tanh", "rnn relu", "gru" or "lstm".
        case: "1 layer", "3 layers", "bidirectional" or "ids".
        truncation: as it prints.
        finite_difference_error: the largest relative error of a tensor's float64
            gradient.
        float32_errors: by kernel, the largest of a float32 gradient.
        passed: whether every tensor's errors are within their tolerances.
        message: what was checked, or what is wrong.
    """

    cell: str
    case: str
    truncation: str
    finite_difference_error: float
    float32_errors: dict[str, float]
    passed: bool
    message: str

    @property
    def float32_error(self) -> float:
        """The largest by any kernel."""
        return max(self.float32_errors.values())


def certify(
    on_case: Callable[[Certificate], object] | None = None,
) -> list[Certificate]:
    """Check every cell under every kind of truncation, in several settings.

    Small networks on the CPU, with initial states, over 13 steps; float32 by every
    kernel that runs on this machine. Takes a few seconds, on one thread. The global
    random state stays as it is.

    Args:
        on_case: called with each certificate as soon as it is there.

    Returns:
        The certificates, of wrong gradients too: look at `passed`.
    """
    certificates = []
    for cell, truncation, case in _everything():
        with _one_thread():
            certificate = _certificate(cell, truncation, case)
        certificates.append(certificate)
        if on_case is not None:
            on_case(certificate)
    return certificates


@contextmanager
def _one_thread() -> Iterator[None]:
    """For products this small, threads that wait for each other cost five times."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _everything() -> Iterator[tuple[str, Truncation, _Case]]:
    for cell in _CELLS:
        for truncation in _TRUNCATIONS:
            for case in _CASES:
                yield cell, truncation, case


def _certificate(cell: str, truncation: Truncation, case: _Case) -> Certificate:
    module, x, hx = _problem(cell, truncation, case)
    report = measure(
        module,
        x,
        hx,
        loss=None,
        directions=_DIRECTIONS,
        seed=1,
        tolerance=_TOLERANCE,
        float32_tolerance=_FLOAT32_TOLERANCE,
        kernels=kernels.available(),
    )
    return Certificate(
        cell=cell,
        case=case.name,
        truncation=str(truncation),
        finite_difference_error=report.max_error("finite difference"),
        float32_errors={
            name: report.max_error("float32", name) for name in kernels.available()
        },
        passed=report.passed,
        message=_message(report),
    )


def _problem(
    cell: str, truncation: Truncation, case: _Case
) -> tuple[torch.nn.Module, Tensor, Any]:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    with torch.random.fork_rng(devices=[]):  # the constructor draws weights
        module = _CELLS[cell](
            _INPUT,
            _HIDDEN,
            num_layers=case.layers,
            bidirectional=case.bidirectional,
            truncation=truncation,
        )
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(_SPREAD * normal(*parameter.shape))
    if case.ids:
        x = torch.randint(_INPUT, (_TIME, _BATCH), generator=generator)
    else:
        x = normal(_TIME, _BATCH, _INPUT)
    states = case.layers * (2 if case.bidirectional else 1)
    parts = [normal(states, _BATCH, _HIDDEN) for _ in range(2 if cell == "lstm" else 1)]
    return module, x, (tuple(parts) if len(parts) > 1 else parts[0])


def _message(report: GradientReport) -> str:
    if not report.passed:
        return describe_failure(report)
    skipped = sum(row.skipped for row in report.rows)
    again = f"; {skipped} directions drawn again at kinks" if skipped else ""
    return f"{len(report.rows)} checks passed{again}"
