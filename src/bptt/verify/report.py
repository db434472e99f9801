"""What a gradient check found: a row for each tensor and each kind of check."""

import math
from dataclasses import dataclass
from typing import Literal, get_args

CheckKind = Literal["finite difference", "float32"]
CHECK_KINDS: tuple[CheckKind, ...] = get_args(CheckKind)


@dataclass(frozen=True)
class TensorCheck:
    """One tensor's gradient held to one check; of several directions, the worst.

    Attributes:
        tensor: the parameter's name, or "input", "h_0", "c_0".
        check: "finite difference" (float64) or "float32" (against float64).
        error: relative error; infinite where it could not be formed.
        tolerance: the largest error that passes.
        gradient: what the gradient says: its product with the direction, or its
            worst float32 entry.
        reference: the same by the difference, or that entry in float64.
        skipped: directions drawn again because no difference along them was to be
            trusted: two step sizes disagreed, as they do across a kink.
        note: why the error is infinite, or empty.
        kernel: that ran in float32, where several were to be checked, or empty.
    """

    tensor: str
    check: CheckKind
    error: float
    tolerance: float
    gradient: float
    reference: float
    skipped: int = 0
    note: str = ""
    kernel: str = ""

    @property
    def passed(self) -> bool:
        """Whether the error is within the tolerance; a NaN is not."""
        return self.error <= self.tolerance

    @property
    def severity(self) -> float:
        """The error in units of its tolerance, a NaN as infinite."""
        return math.inf if math.isnan(self.error) else self.error / self.tolerance

    def __str__(self) -> str:
        found = "gradient" if self.check == "finite difference" else "in float32"
        against = "difference" if self.check == "finite difference" else "in float64"
        by = f" ({self.kernel})" if self.kernel else ""
        return (
            f"{self.tensor}, {self.check}{by} check: relative error {self.error:.3g}, "
            f"tolerance {self.tolerance:.3g} ({found} {self.gradient:.9g}, {against} "
            f"{self.reference:.9g})" + (f": {self.note}" if self.note else "")
        )


@dataclass(frozen=True)
class GradientReport:
    """Every tensor's gradient under every check; `str(report)` is a small table."""

    rows: tuple[TensorCheck, ...]

    @property
    def worst(self) -> TensorCheck:
        """The row with the largest error, in units of its tolerance."""
        return max(self.rows, key=lambda row: row.severity)

    @property
    def passed(self) -> bool:
        """Whether every row passed."""
        return all(row.passed for row in self.rows)

    @property
    def failed(self) -> tuple[TensorCheck, ...]:
        """The rows that did not pass, worst first."""
        rows = [row for row in self.rows if not row.passed]
        return tuple(sorted(rows, key=lambda row: -row.severity))

    def max_error(self, check: CheckKind, kernel: str | None = None) -> float:
        """The largest error of one kind of check; a NaN counts as infinite.

        Args:
            check: the kind.
            kernel: by this one alone; None for any.
        """
        errors = [
            row.error
            for row in self.rows
            if row.check == check and kernel in (None, row.kernel)
        ]
        return max(math.inf if math.isnan(error) else error for error in errors)

    def __str__(self) -> str:
        width = max(len("tensor"), *(len(row.tensor) for row in self.rows))
        lines = [f"{'tensor':{width}}  {'check':17}  {'error':>8}  tolerance"]
        lines += [
            f"{row.tensor:{width}}  {row.check:17}  {row.error:8.1e}  "
            f"{row.tolerance:9.1e}  {'ok' if row.passed else 'FAILED'}"
            for row in self.rows
        ]
        return "\n".join(lines)
