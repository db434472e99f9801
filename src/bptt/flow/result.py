"""GradientFlow: how far back a gradient goes, and what a truncation costs."""

import math
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bptt.flow import measure, spectrum
from bptt.flow.estimates import FlowEstimates
from bptt.flow.measure import Lags, Norms, Progress
from bptt.flow.problem import Problem, flat
from bptt.flow.spectrum import Growth
from bptt.truncation import Truncation


@dataclass(frozen=True)
class GradientFlow:
    """How far back the gradient of one loss goes in one recurrent module.

    `E_t` is what the loss takes from the module's output at step `t` (at a row's last
    step also from its final state), `s_k` the module's whole state after step `k`: of
    all layers, h and c. Steps count from 0; `lag = t - k`.

    Everything is computed when it is first asked for, on copies: what becomes of the
    model in the meantime changes nothing. With T steps and B rows, `norms` takes as
    many products with the recurrent weights as full BPTT over T/2 times as many rows,
    `by_lag` and what follows from it about three times that. Memory grows as T x T plus
    a few times T x B states.

    Attributes:
        problem: what is asked.
        module: the name of the module in its model.
    """

    problem: Problem = field(repr=False)
    module: str
    progress: Progress | None = field(default=None, repr=False)

    @property
    def time(self) -> int:
        """Steps of the longest row."""
        return self.problem.time

    @property
    def truncation(self) -> Truncation:
        """That the module trains with."""
        return self.problem.truncation

    @property
    def norms(self) -> Tensor:
        """(time, time): at [t, k] the norm of `dE_t/ds_k`, mean over rows; 0 for k > t.

        The parts of `s_k` are independent variables, so at `k = t` only what `E_t`
        reads counts. In ragged batches the mean is over the rows longer than `t`.
        """
        return self._norms.whole

    @property
    def norms_by_part(self) -> dict[str, Tensor]:
        """As `norms`, for each part of the state: `h_l0`, `c_l0`, `h_l1` and so on.

        The parts of an own cell's state are `s0`, `s1` and so on, as they are nested.
        """
        return self._norms.by_part

    @property
    def by_lag(self) -> Tensor:
        """(time,) norm of what each lag contributes to the parameters' gradient."""
        return self._lags.norms.to(self.problem.dy.dtype)

    @property
    def parameters(self) -> tuple[str, ...]:
        """The names that `gradient_by_lag` knows, as the module has them."""
        return tuple(self.problem.parameters)

    def gradient_by_lag(self, name: str) -> Tensor:
        """What each lag contributes to a parameter's gradient.

        Takes a sweep over all lags.

        Args:
            name: of the parameter, as in `parameters`; the module's own name may stand
                before it.

        Returns:
            (time, *parameter.shape). The sum over all lags is the full gradient; the
            sum over lags 0 to `L` is that of `Truncation(1, L + 1)`.

        Raises:
            ValueError: the module has no such parameter.
        """
        short = name.removeprefix(f"{self.module}.") if self.module else name
        if short not in self.problem.parameters:
            raise ValueError(
                f"name: the module has no parameter {name!r}; it has "
                f"{', '.join(self.parameters)}"
            )
        return measure.by_lag(self.problem, short, progress=self.progress)

    def bias(self, truncation: Truncation) -> float:
        """`|g_truncated - g_full| / |g_full|`, over all the module's parameters.

        Every `Truncation(1, k2)` comes from one sweep for all; any other takes a
        backward pass of its own. (Aicher, Foti & Fox, "Adaptively truncating
        backpropagation through time to control gradient bias", 2019, equation 7.)

        Raises:
            ValueError: the full gradient is zero.
        """
        return self._compared(truncation)[0]

    def cosine(self, truncation: Truncation) -> float:
        """Of the angle between the truncated and the full gradient; 0 if one is zero.

        Raises:
            ValueError: the full gradient is zero.
        """
        return self._compared(truncation)[1]

    def window(self, tolerance: float = 0.05) -> int:
        """The smallest `k2` with `bias(Truncation(1, k2)) <= tolerance`, in steps.

        That many steps are visited, so the largest lag is one less.

        Raises:
            ValueError: `tolerance` is negative, or the full gradient is zero.
        """
        if not tolerance >= 0:
            raise ValueError(f"tolerance must be at least 0; got {tolerance!r}")
        biases = self.biases
        within = (biases <= tolerance).nonzero()
        return int(within[0]) + 1 if len(within) else self.time

    def horizon(self, share: float = 0.95) -> int:
        """The smallest lag `L` such that lags 0 to `L` hold this share of `by_lag`.

        Raises:
            ValueError: `share` is not between 0 and 1, or the gradient is zero.
        """
        if not 0 <= share <= 1:
            raise ValueError(f"share must be between 0 and 1; got {share!r}")
        norms = self._lags.norms
        sums = norms.cumsum(0)
        self._require_gradient(float(sums[-1]))
        reached = (sums >= share * sums[-1]).nonzero()
        return int(reached[0])

    @cached_property
    def biases(self) -> Tensor:
        """(time,) float64: at `k2 - 1` the bias of `Truncation(1, k2)`."""
        lags = self._lags
        size = float(torch.linalg.vector_norm(lags.full.double()))
        self._require_gradient(size)
        return lags.missing / size

    @cached_property
    def cosines(self) -> Tensor:
        """(time,) float64: at `k2 - 1` the cosine of `Truncation(1, k2)`."""
        lags = self._lags
        size = float(torch.linalg.vector_norm(lags.full.double()))
        self._require_gradient(size)
        dot = size**2 - lags.along
        # |full - missing|^2, which may round below what is left of it.
        square = (size**2 - 2 * lags.along + lags.missing**2).clamp(min=0)
        cosines = torch.where(square > 0, dot / (size * square.sqrt()), 0.0)
        return cosines.clamp(-1, 1)

    @cached_property
    def growth(self) -> Growth:
        """Whether an error vanishes, stays or explodes on its way back, and how fast.

        Raises:
            ValueError: the sequence is too short.
        """
        return spectrum.growth(self.problem)

    def jacobian(self, step: int) -> Tensor:
        """`ds_t/ds_{t-1}`, (batch, state, state), of the whole state of each row.

        Rows without the step, and those reset before it, have zeros. Takes as many
        vectors back through the step as the state has numbers.

        Raises:
            ValueError: `step` is not from 1 to time - 1, or the result too large.
        """
        return spectrum.jacobian(self.problem, step)

    def singular_values(self, step: int) -> Tensor:
        """Of `jacobian`, the largest first, (batch, state)."""
        values: Tensor = torch.linalg.svdvals(self.jacobian(step))
        return values

    @property
    def verdict(self) -> str:
        """The answer in plain words, with its numbers, a line each."""
        return FlowEstimates((self,)).verdict

    def plot(self, axes: Any = None) -> Any:
        """Draw the map of `norms` and the gradient by lag with the 5 % window.

        Args:
            axes: two of matplotlib's, to draw into; None makes a figure.

        Returns:
            The two axes.

        Raises:
            ImportError: matplotlib is not installed; `pip install "bptt[plot]"`.
        """
        return FlowEstimates((self,)).plot(axes)

    def to_html(self, path: str | Path) -> None:
        """Write a page of one file: verdict, map, bias of every window, Jacobians.

        It opens offline and asks nothing of any network. Some twenty truncations more
        are measured for it, each a backward pass.

        Args:
            path: of the file; one that is there is written over.

        Raises:
            ValueError: the gradient is zero.
            OSError: it cannot be written.
        """
        FlowEstimates((self,)).to_html(path)

    def _repr_html_(self) -> str:
        """For a notebook: the verdict, and a figure of the gradient by lag."""
        return FlowEstimates((self,))._repr_html_()

    def __str__(self) -> str:
        """The verdict."""
        return self.verdict

    def _compared(self, truncation: Truncation) -> tuple[float, float]:
        if not isinstance(truncation, Truncation):
            raise TypeError(f"truncation must be a Truncation; got {truncation!r}")
        if truncation.is_full_over(self.time):
            self._require_gradient(self.gradient_norm)
            return 0.0, 1.0
        if truncation.k1 == 1:
            assert truncation.k2 is not None
            at = truncation.k2 - 1
            return float(self.biases[at]), float(self.cosines[at])
        if truncation not in self._cuts:
            self._cuts[truncation] = self._cut_by(truncation)
        return self._cuts[truncation]

    @cached_property
    def _cuts(self) -> dict[Truncation, tuple[float, float]]:
        """Bias and cosine of truncations that took a backward pass."""
        return {}

    def _cut_by(self, truncation: Truncation) -> tuple[float, float]:
        full = self._full
        cut = flat(self.problem.gradient(truncation)).double()
        size, cut_size = full.norm(), cut.norm()
        self._require_gradient(float(size))
        bias = float((cut - full).norm() / size)
        if not cut_size:
            return bias, 0.0
        return bias, float(torch.dot(cut, full) / (size * cut_size))

    @property
    def gradient_norm(self) -> float:
        """`|g_full|`, over all the module's parameters."""
        return float(self._full.norm())

    @cached_property
    def _full(self) -> Tensor:
        if "_swept" in self.__dict__:
            return self._lags.full.double()
        return flat(self.problem.gradient(Truncation.full())).double()

    @staticmethod
    def _require_gradient(size: float) -> None:
        if not size:
            raise ValueError(
                "the gradient of the module's parameters is zero, so it has no parts; "
                "let the loss depend on the module's weights"
            )
        if not math.isfinite(size):
            raise FloatingPointError(
                "the gradient of the module's parameters is not finite: it explodes; "
                "look at a shorter sequence, or shrink the recurrent weights"
            )

    @cached_property
    def _swept(self) -> tuple[Norms, Lags]:
        norms, lags = measure.sweep(
            self.problem, gradients=True, progress=self.progress
        )
        assert lags is not None
        return norms, lags

    @property
    def _lags(self) -> Lags:
        return self._swept[1]

    @cached_property
    def _norms(self) -> Norms:
        if "_swept" in self.__dict__:
            return self._swept[0]
        return measure.sweep(self.problem, gradients=False, progress=self.progress)[0]
