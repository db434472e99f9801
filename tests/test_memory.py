"""Memory plans: integers, held to what each plan would keep if it were carried out."""

import math

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from bptt.memory import Block, Budget, Costs, plan, segment_steps
from bptt.truncation import Truncation

FULL = Truncation.full()
truncations = st.one_of(
    st.just(FULL), st.builds(Truncation, st.integers(1, 40), st.integers(1, 60))
)


def least_of(time, truncation, costs, **shared):
    with pytest.raises(ValueError, match="memory_budget=1 cannot be met") as caught:
        plan(time, truncation, costs, budget_of(1, **shared))
    return int(str(caught.value).split("at least ")[1].split()[0])


def budget_of(size, runs=1, held=0):
    return Budget.parse(size).shared(runs, held, 0)


def kept(found, costs, runs, held):
    """The most bytes alive at a time, by walking over the blocks as a run does."""
    blocks = found.blocks

    def walk(low, high, level):
        groups = found.groups(low, high, level)
        inner = (
            max(walk(at, min(at + groups.step, high), level + 1) for at in groups)
            if level + 1 < found.levels
            else 0
        )
        own = len(groups) - 1
        return own * (runs if level == 0 else 1) + inner

    longest = max(block.stop - block.start for block in blocks)
    if found.levels == 0:
        return held + costs.fixed_bytes + runs * longest * costs.step_bytes
    return (
        held
        + costs.fixed_bytes
        + walk(0, len(blocks), 0) * costs.state_bytes
        + longest * costs.step_bytes
    )


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    time=st.integers(1, 300),
    truncation=truncations,
    step=st.integers(2, 50),
    state=st.integers(1, 50),
    fixed=st.integers(0, 20),
    held=st.integers(0, 20),
    runs=st.integers(1, 4),
    more=st.floats(0, 6),
)
@example(100, FULL, 8, 2, 0, 0, 1, 0.0)
@example(100, Truncation(30, 30), 8, 2, 0, 0, 1, 0.0)
def test_a_plan_keeps_no_more_than_the_budget_and_covers_every_output(
    time, truncation, step, state, fixed, held, runs, more
):
    costs = Costs(step, state, fixed)
    smallest = least_of(time, truncation, costs, runs=runs, held=held)
    size = int(smallest * 2**more)
    found = plan(time, truncation, costs, budget_of(size, runs, held))
    assert kept(found, costs, runs, held) <= found.size_bytes <= size
    firsts = [block.first for block in found.blocks]
    assert firsts == [0, *(block.stop for block in found.blocks[:-1])]
    assert found.blocks[-1].stop == time
    for block in found.blocks:
        assert 0 <= block.start <= block.first < block.stop
    with pytest.raises(ValueError, match=f"at least {smallest} "):
        plan(time, truncation, costs, budget_of(smallest - 1, runs, held))


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    time=st.integers(2, 120), k1=st.integers(1, 9), k2=st.integers(1, 30), m=st.data()
)
def test_a_block_of_passes_is_run_from_where_its_first_pass_begins(time, k1, k2, m):
    truncation, costs = Truncation(k1, k2), Costs(10, 3)
    if truncation.is_full_over(time):
        return
    smallest = least_of(time, truncation, costs)
    size = m.draw(st.integers(smallest, max(smallest, 10 * time - 1)))
    found = plan(time, truncation, costs, budget_of(size))
    for block in found.blocks if found.levels else ():
        if found.truncation.is_full:  # pieces of chunks
            assert (k1, block.first) == (k2, block.start)
            assert block.start // k1 == (block.stop - 1) // k1
            assert block.hands_on == (block.start % k1 > 0)
        else:
            assert block.first % k1 == 0
            assert block.stop % k1 == 0 or block.stop == time
            reach = max(0, block.first + k1 - k2)
            assert block.start == reach // k1 * k1
            assert not block.hands_on


def test_the_longest_blocks_that_fit_are_chosen():
    costs = Costs(step_bytes=10, state_bytes=2)
    for size in range(100, 1000):
        found = plan(100, FULL, costs, budget_of(size))
        if found.levels == 1:
            fits = [n for n in range(1, 101) if (-(-100 // n) - 1) * 2 + n * 10 <= size]
            assert len(found.blocks) == -(-100 // max(fits))


def test_another_level_is_gone_down_only_where_fewer_do_not_fit():
    costs = Costs(step_bytes=10, state_bytes=10)
    sizes = {0: 1000, 1: 190, 2: 129, 3: 109}
    for levels, size in sizes.items():
        assert plan(100, FULL, costs, budget_of(size)).levels == levels
    assert plan(100, FULL, costs, budget_of(999)).levels == 1
    assert plan(100, FULL, costs, budget_of(189)).levels == 2


def test_the_longest_block_comes_last():
    blocks = plan(10, FULL, Costs(10, 1), budget_of(43)).blocks
    assert blocks == (
        Block(0, 0, 2, True),
        Block(2, 2, 6, True),
        Block(6, 6, 10, True),
    )


@pytest.mark.parametrize(
    ("given", "size"),
    [
        (1, 1),
        (123456, 123456),
        ("512MB", 512 * 10**6),
        ("16 MiB", 16 * 2**20),
        ("1.5GB", 1_500_000_000),
        (" 2gib ", 2 * 2**30),
        ("0.1kb", 100),
        ("7 b", 7),
        ("3KiB", 3072),
        ("1tb", 10**12),
    ],
)
def test_sizes_are_read_exactly(given, size):
    assert Budget.parse(given).size_bytes == size


@pytest.mark.parametrize(
    "given", ["", "MB", "512", "1,5GB", "-3MB", "5 PB", "1e3MB", "1 M", "٣MB", "5MBs"]
)
def test_what_is_no_size_is_refused(given):
    with pytest.raises(ValueError, match=r"memory_budget must be a number .*512MB"):
        Budget.parse(given)


def test_other_types_and_nothing_are_refused():
    for wrong in (True, 1.5, None, b"1MB"):
        with pytest.raises(TypeError, match="memory_budget must be an int of bytes"):
            Budget.parse(wrong)
    for small in (0, -5, "0MB", "0.1B"):
        with pytest.raises(ValueError, match="memory_budget must be at least 1 byte"):
            Budget.parse(small)


@pytest.mark.parametrize("unit", ["B", "kb", "KiB", "MB", "mib", "GB", "TiB"])
@pytest.mark.parametrize("step", [1, 999, 12_345, 10**7 + 1])
def test_the_least_that_is_named_is_enough_in_the_unit_that_was_written(unit, step):
    costs = Costs(step_bytes=step, state_bytes=step)
    budget = Budget(1, f"1{unit}")
    with pytest.raises(ValueError, match="cannot be met") as caught:
        plan(50, FULL, costs, budget)
    text = str(caught.value).split("at least ")[1].split(";")[0]
    smallest = int(text.split()[0])
    named = Budget.parse(text.split("(")[1].rstrip(")"))
    assert text.lower().endswith(f"{unit.lower()})")
    assert smallest <= named.size_bytes <= math.ceil(1.001 * smallest) + 1
    plan(50, FULL, costs, named)
    plan(50, FULL, costs, Budget.parse(smallest))


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    time=st.integers(1, 80),
    step=st.integers(1, 9),
    state=st.integers(1, 9),
    size=st.integers(1, 900),
)
def test_segments_are_the_longest_of_one_level(time, step, state, size):
    costs = Costs(step, state)

    def keeps(steps):
        return (-(-time // steps) - 1) * state + min(time, steps) * step

    lengths = range(1, time + 1)
    fits = [n for n in lengths if keeps(n) <= size]
    budget = Budget.parse(size)
    if time * step <= size:
        assert segment_steps(time, costs, budget) == time
    elif fits:
        found = segment_steps(time, costs, budget)
        assert found == max(fits)
    else:
        least = min(map(keeps, lengths))
        with pytest.raises(ValueError, match=f"at least {least} bytes"):
            segment_steps(time, costs, budget)
