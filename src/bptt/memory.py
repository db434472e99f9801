"""Memory budgets: what is kept for the backward pass, and what is run again instead.

Integers only. The sequence is divided into blocks of steps. Of the way forward only the
states before blocks are kept; on the way back each block is run again, from the last to
the first, with the tape of that block alone. Where one state a block is too much, the
states of a group of blocks are made again from the state before the group, and so on:
every level costs one more run forward and keeps far fewer states.

References: Chen, Xu, Zhang & Guestrin, "Training deep nets with sublinear memory cost",
2016 (blocks, and blocks of blocks); Gruslys, Munos, Danihelka, Lanctot & Graves,
"Memory-efficient backpropagation through time", 2016 (a budget that is given).
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from fractions import Fraction

from bptt.truncation import Truncation

_UNITS: dict[str, int] = {"B": 1} | {
    f"{prefix}{suffix}": base ** (power + 1)
    for power, prefix in enumerate("KMGT")
    for suffix, base in (("B", 1000), ("iB", 1024))
}
_SIZE = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([kmgt]?i?b)\s*", re.IGNORECASE)


@dataclass(frozen=True)
class Budget:
    """A number of bytes, and how the user wrote it.

    Attributes:
        size_bytes: what may be kept.
        given: as the user wrote it, for errors.
        held_bytes: what is kept whatever the plan, part of `size_bytes`.
        runs: loops through time that share it: each keeps its own states, and one at a
            time is run again.
        widest_input: of these loops, so that all come to the same plan.
    """

    size_bytes: int
    given: int | str
    held_bytes: int = 0
    runs: int = 1
    widest_input: int = 0

    @classmethod
    def parse(cls, given: object) -> "Budget":
        """Bytes, or a number with a unit in upper or lower case.

        Raises:
            TypeError: not an int or a str.
            ValueError: no size, or none that is at least 1.

        >>> Budget.parse("512MB").size_bytes, Budget.parse("16 MiB").size_bytes
        (512000000, 16777216)
        """
        if isinstance(given, bool) or not isinstance(given, int | str):
            raise TypeError(
                "memory_budget must be an int of bytes, a str as '512MB', or None; got "
                f"{given!r} ({type(given).__name__})"
            )
        size = int(_exact(given)) if isinstance(given, str) else int(given)
        if size < 1:
            raise ValueError(
                f"memory_budget must be at least 1 byte; got {given!r}; None keeps all"
            )
        return cls(size, given)

    def shared(self, runs: int, held_bytes: int, widest_input: int) -> "Budget":
        """The same for several runs, beside what is kept anyway."""
        return replace(
            self, runs=runs, held_bytes=held_bytes, widest_input=widest_input
        )

    def in_its_unit(self, size_bytes: int) -> str:
        """At least `size_bytes`, to four digits, in the unit that the user wrote."""
        if isinstance(self.given, int):
            return f"{size_bytes} bytes"
        found = _SIZE.fullmatch(self.given)
        assert found is not None
        name = _unit(found[2])
        places = 0
        while _UNITS[name] > 1 and size_bytes * 10**places < 1000 * _UNITS[name]:
            places += 1
        scaled = -(-size_bytes * 10**places // _UNITS[name])
        digits = f"{scaled:0{places + 1}d}"
        number = f"{digits[:-places]}.{digits[-places:]}" if places else digits
        return f"{size_bytes} bytes ({number}{name})"


@dataclass(frozen=True)
class Costs:
    """What a run keeps, in bytes.

    Attributes:
        step_bytes: for each step that is run again, with all work arrays of its length.
        state_bytes: for a state that is kept.
        fixed_bytes: for what does not depend on the plan.
    """

    step_bytes: int
    state_bytes: int
    fixed_bytes: int = 0


@dataclass(frozen=True)
class Block:
    """Steps that are run again together.

    Attributes:
        start: the first step that is run.
        first: the first step whose outputs' errors belong to this block.
        stop: one past the last step.
        hands_on: whether the error of the state before `start` goes on to the block
            that ends there; else it is cut, but for that of the initial state.
    """

    start: int
    first: int
    stop: int
    hands_on: bool


@dataclass(frozen=True)
class Plan:
    """How a sequence is divided.

    Attributes:
        blocks: in order of their steps.
        levels: runs forward beside the one that makes the outputs; 0 where all is
            kept, as without a budget.
        fan: groups that a group is divided into.
        truncation: to be run inside a block.
        size_bytes: what that keeps.
    """

    blocks: tuple[Block, ...]
    levels: int
    fan: int
    truncation: Truncation
    size_bytes: int

    @property
    def longest(self) -> int:
        """Steps of the longest block."""
        return max(block.stop - block.start for block in self.blocks)

    def groups(self, low: int, high: int, level: int) -> range:
        """Where the groups of the blocks [low, high) begin at this level.

        A group at the last level is one block.
        """
        return range(low, high, int(self.fan ** (self.levels - 1 - level)))


@dataclass(frozen=True)
class _Division:
    """A way to divide a sequence: in blocks of any number of units."""

    time: int
    unit: int  # steps
    overlap: int  # steps that a block runs before its own
    most: int  # units in the longest block
    count: Callable[[int], int]  # units in a block -> blocks, not increasing


def plan(time: int, truncation: Truncation, costs: Costs, budget: Budget) -> Plan:
    """The fewest runs forward that the budget allows, in the longest blocks.

    Args:
        time: steps of the sequence, at least 1.
        truncation: which errors go how far back.
        costs: of the kernel that runs.
        budget: what may be kept.

    Raises:
        ValueError: no plan keeps so little; the text names the least that one keeps.
    """
    if truncation.is_full_over(time):
        truncation = Truncation.full()
    fixed = budget.held_bytes + costs.fixed_bytes
    room = budget.size_bytes - fixed
    whole = budget.runs * time * costs.step_bytes
    if whole <= room:
        return Plan((Block(0, 0, time, True),), 0, 1, truncation, fixed + whole)
    divisions = _divisions(time, truncation)
    for levels in range(1, _most_levels(time) + 1):
        for division in divisions:
            units = _longest(division, levels, costs, budget.runs, room)
            if units:
                return _plan(time, truncation, division, units, levels, costs, budget)
    least = min(
        time * costs.step_bytes,  # one block: for several runs, one at a time
        *(
            _least(division, levels, costs, budget.runs)
            for levels in range(1, _most_levels(time) + 1)
            for division in divisions
        ),
    )
    raise _too_small(time, budget, fixed + least)


def segment_steps(time: int, costs: Costs, budget: Budget) -> int:
    """The longest segments, one level of them, whose states and one tape fit.

    Args:
        time: steps of the sequence, at least 1.
        costs: of a step that is run again and of a state that is kept.
        budget: what may be kept.

    Returns:
        Steps a segment; `time` if nothing needs to be run again.

    Raises:
        ValueError: the budget is too small; the text names the least that is enough.
    """
    fixed = budget.held_bytes + costs.fixed_bytes
    room = budget.size_bytes - fixed
    if budget.runs * time * costs.step_bytes <= room:
        return time
    division = _in_units(time, 1, overlap=0)
    units = _longest(division, 1, costs, budget.runs, room)
    if units:
        return units
    least = min(
        _bytes(division, units, 1, costs, budget.runs)
        for units in range(1, division.most + 1)
    )
    raise _too_small(time, budget, fixed + least)


def _too_small(time: int, budget: Budget, least_bytes: int) -> ValueError:
    return ValueError(
        f"memory_budget={budget.given!r} cannot be met: the backward pass over {time} "
        f"steps keeps at least {budget.in_its_unit(least_bytes)}; give as much, or a "
        "smaller batch or a shorter sequence"
    )


def _exact(text: str) -> Fraction:
    found = _SIZE.fullmatch(text)
    if found is None:
        raise ValueError(
            f"memory_budget must be a number of bytes with a unit ({', '.join(_UNITS)})"
            f", as '512MB' or '1.5 GiB'; got {text!r}"
        )
    return _UNITS[_unit(found[2])] * Fraction(found[1])


def _unit(text: str) -> str:
    """The unit's name as `_UNITS` spells it."""
    return next(name for name in _UNITS if name.lower() == text.lower())


def _divisions(time: int, truncation: Truncation) -> list[_Division]:
    """The ways to divide, the one with the longer blocks first."""
    k1, k2 = truncation.k1, truncation.k2
    if k1 is None or k2 is None:
        return [_in_units(time, 1, overlap=0)]
    # A pass of the block that begins with output a visits steps from a + k1 - k2 on; it
    # is run from the multiple of k1 before, so that chunks stay chunks.
    overlap = max(0, -(-(k2 - k1) // k1)) * k1
    whole_chunks = _in_units(time, min(k1, time), overlap=overlap)
    if k1 != k2 or k1 == 1:
        return [whole_chunks]
    # Each chunk is full BPTT on its own.
    chunk = min(k1, time)

    def count(steps: int) -> int:
        return time // chunk * -(-chunk // steps) + -(-(time % chunk) // steps)

    return [whole_chunks, _Division(time, 1, 0, chunk - 1, count)]


def _in_units(time: int, unit: int, *, overlap: int) -> _Division:
    total = -(-time // unit)
    return _Division(time, unit, overlap, total, lambda units: -(-total // units))


def _most_levels(time: int) -> int:
    """Levels after which a group of two is one block."""
    return max(1, (time - 1).bit_length())


def _fan(blocks: int, levels: int) -> int:
    """The smallest number that has so many blocks at its power."""
    fan = max(1, round(blocks ** (1 / levels)) - 1)
    while fan**levels < blocks:
        fan += 1
    return int(fan)


def _bytes(
    division: _Division, units: int, levels: int, costs: Costs, runs: int
) -> int:
    """What blocks of so many units keep; the first group's state is an input."""
    states = (runs + levels - 1) * (_fan(division.count(units), levels) - 1)
    steps = min(division.time, units * division.unit + division.overlap)
    return states * costs.state_bytes + steps * costs.step_bytes


def _longest(
    division: _Division, levels: int, costs: Costs, runs: int, room: int
) -> int:
    """The most units a block may have in so much room; 0 if there is none."""
    units = division.most
    while units > 0:
        over = _bytes(division, units, levels, costs, runs) - room
        if over <= 0:
            return units
        # Shorter blocks keep no fewer states, so at least what is over must go.
        units -= -(-over // (division.unit * costs.step_bytes))
    return 0


def _least(division: _Division, levels: int, costs: Costs, runs: int) -> int:
    """The least that so many levels keep: two groups a level keep the fewest states."""
    low, high = 1, max(1, division.most)
    while low < high:
        middle = (low + high) // 2
        if division.count(middle) <= 2**levels:
            high = middle
        else:
            low = middle + 1
    return _bytes(division, low, levels, costs, runs)


def _plan(
    time: int,
    truncation: Truncation,
    division: _Division,
    units: int,
    levels: int,
    costs: Costs,
    budget: Budget,
) -> Plan:
    """The blocks, made equally long: a short one would come first."""
    count = division.count(units)
    while units > 1 and division.count(units - 1) == count:
        units -= 1
    steps = units * division.unit
    k1 = truncation.k1
    inside = truncation
    if k1 is None:
        blocks = [Block(a, a, b, True) for a, b in _cut(0, time, steps)]
    elif division.unit == 1 and k1 > 1:  # chunks are divided
        inside = Truncation.full()
        blocks = [
            Block(a, a, b, a != chunk)
            for chunk in range(0, time, k1)
            for a, b in _cut(chunk, min(chunk + k1, time), steps)
        ]
    else:
        nominal = -(-time // division.unit) * division.unit
        blocks = [
            Block(max(0, a - division.overlap), a, min(b, time), False)
            for a, b in _cut(0, nominal, steps)
        ]
    fixed = budget.held_bytes + costs.fixed_bytes
    return Plan(
        tuple(blocks),
        levels,
        _fan(len(blocks), levels),
        inside,
        fixed + _bytes(division, units, levels, costs, budget.runs),
    )


def _cut(start: int, stop: int, steps: int) -> list[tuple[int, int]]:
    """[start, stop) in pieces of so many steps, the first of them shorter.

    The way back begins with the last, and memory that was used for the longest piece
    is used again for the others.
    """
    ends = range(stop, start, -steps)
    return [(max(start, end - steps), end) for end in reversed(ends)]
