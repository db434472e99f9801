"""Truncation: which errors go how far back, as a value; integers only, no tensors.

Every `k1` steps, run the error of the newest `k1` outputs back through `k2` steps
(Williams & Peng, "An efficient gradient-based algorithm for on-line training of
recurrent network trajectories", 1990; Sutskever, "Training recurrent neural networks",
2013, section 2.8.6). Full BPTT, chunk-and-detach and the tutorial's window are values
of it.

A *pass* is one run back. Pass `p` carries the errors of the outputs
`[p * k1, (p + 1) * k1)`, starts at the *nominal* end of that chunk, even where the
sequence is shorter, and visits `k2` steps from there: so `chunks(k)` is detaching every
`k` steps, whatever the length of the last chunk. All passes go back together, one lag
at a time: at lag `j` pass `p` stands at step `p * k1 + k1 - 1 - j`, hence the passes of
one lag stand `k1` steps apart and are one strided slice of any array over time.
"""

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Lag:
    """One turn of the backward loop: where every running pass stands."""

    lag: int  # steps back from the nominal end of each pass's chunk
    first: int  # the running passes are those with index first <= p < last
    last: int
    steps: slice  # the step of each running pass, in order of the passes
    owns: bool  # whether the step's own outputs belong to the pass standing there
    at_start: bool  # whether pass `first` stands at step 0, so h0 comes next
    at_end: bool  # whether pass `last - 1` stands at the last step of the sequence

    @property
    def after(self) -> slice:
        """`steps`, as indices of the states after them (entry 0 is the initial)."""
        return slice(self.steps.start + 1, self.steps.stop + 1, self.steps.step)


@dataclass(frozen=True, init=False, repr=False)
class Truncation:
    """Every `k1` steps, run the newest `k1` outputs' error back through `k2` steps.

    Args:
        k1: outputs per pass, at least 1.
        k2: steps that a pass visits, at least 1, counted from the nominal end of its
            `k1` outputs. With `k2 < k1` the chunk's earliest outputs teach nothing.

    Raises:
        TypeError: `k1` or `k2` is not an int.
        ValueError: `k1` or `k2` is smaller than 1.

    >>> Truncation.chunks(8) == Truncation(8, 8)
    True
    >>> Truncation.per_output(4)  # the tutorial's bptt_truncate=4 visits 5 steps
    Truncation(k1=1, k2=5)
    >>> Truncation.full()
    Truncation.full()
    """

    k1: int | None
    k2: int | None

    def __init__(self, k1: int, k2: int) -> None:
        require_steps("k1", k1, smallest=1)
        require_steps("k2", k2, smallest=1)
        object.__setattr__(self, "k1", int(k1))
        object.__setattr__(self, "k2", int(k2))

    @classmethod
    def full(cls) -> "Truncation":
        """Full BPTT: one pass over all steps, however many (Werbos, 1990)."""
        truncation = object.__new__(cls)
        object.__setattr__(truncation, "k1", None)
        object.__setattr__(truncation, "k2", None)
        return truncation

    @classmethod
    def chunks(cls, k: int) -> "Truncation":
        """`(k, k)`: what detaching the state every `k` steps gives."""
        require_steps("k", k, smallest=1)
        return cls(k, k)

    @classmethod
    def per_output(cls, bptt_truncate: int) -> "Truncation":
        """`(1, n + 1)`: each output's error goes back `n` recurrences.

        That is the tutorial's `bptt_truncate=n`, which visits the step of the output
        itself and `n` earlier ones (Britz, "Recurrent Neural Networks Tutorial,
        part 3", 2015).
        """
        require_steps("bptt_truncate", bptt_truncate, smallest=0)
        return cls(1, bptt_truncate + 1)

    @property
    def mean(self) -> "Truncation":
        """This: what is cut here is the same each time (see `RandomTruncation`)."""
        return self

    @property
    def is_full(self) -> bool:
        """Whether this is `Truncation.full()`."""
        return self.k1 is None

    def is_full_over(self, time: int) -> bool:
        """Whether nothing is cut in a sequence of `time` steps."""
        if self.k1 is None or self.k2 is None:
            return True
        nominal_end = -(-time // self.k1) * self.k1 - 1  # of the last pass
        return self.k2 > nominal_end

    def lags(self, time: int) -> Iterator[Lag]:
        """The turns of the backward loop over a sequence of `time` steps.

        Args:
            time: steps in the sequence, at least 1.

        Yields:
            A `Lag` for each turn in which a pass stands inside the sequence. From one
            to the next, passes drop out at the front (they stood at step 0) and one
            may join at the back (a short last chunk).
        """
        k1 = time if self.k1 is None or self.k2 is None else self.k1
        k2 = time if self.k1 is None or self.k2 is None else self.k2
        passes = -(-time // k1)
        nominal_end = passes * k1 - 1  # of the last pass; the only one past the end
        # With a single pass that starts past the end, the first lags stand nowhere.
        first_lag = max(0, k1 - time)
        for lag in range(first_lag, min(k2, nominal_end + 1)):
            first = lag // k1  # the passes before it have passed step 0
            last = passes if nominal_end - lag < time else passes - 1
            start = first * k1 + k1 - 1 - lag
            stop = (last - 1) * k1 + k1 - lag
            yield Lag(
                lag=lag,
                first=first,
                last=last,
                steps=slice(start, stop, k1),
                owns=lag < k1,
                at_start=start == 0,
                at_end=stop == time,
            )

    def __repr__(self) -> str:
        if self.is_full:
            return "Truncation.full()"
        return f"Truncation(k1={self.k1}, k2={self.k2})"


def require_steps(name: str, value: object, *, smallest: int) -> None:
    """Refuse what is no number of steps, or too few of them.

    Raises:
        TypeError: `value` is not an int.
        ValueError: it is smaller than `smallest`.
    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(
            f"{name} must be an int, a number of steps; got {value!r} "
            f"({type(value).__name__})"
        )
    if value < smallest:
        remedy = "; for full BPTT use Truncation.full()" if smallest else ""
        raise ValueError(f"{name} must be at least {smallest}; got {value}{remedy}")
