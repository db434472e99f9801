"""Errors in the loops for cells of one's own."""

from soak.mutations.mutation import Mutation

ANY = ("modules/test_recurrent.py::test_any_truncation_is_its_literal_definition",)
SEGMENTS = (
    "modules/test_recurrent.py::test_recomputed_segments_change_no_gradient",
    "modules/test_recurrent.py::test_recomputed_segments_of_ragged_rows",
)
DERIVED = ("cells/test_own.py::test_any_truncation_is_its_literal_definition",)
DRAWS = (
    "modules/test_recurrent.py::"
    "test_a_cell_that_draws_numbers_sees_the_same_ones_again",
)

MUTATIONS = (
    Mutation(
        "own_cells/sweep.py",
        "if rows.resets is not None and before:",
        "if False:",
        "an error of a cell of one's own passes a reset",
        ANY,
    ),
    Mutation(
        "own_cells/sweep.py",
        "(self.rows.lengths - 1 == steps)",
        "(self.rows.lengths == steps)",
        "the final state's error comes a step after the row's last",
        ANY,
    ),
    Mutation(
        "own_cells/sweep.py",
        "tuple(a + d[0] for a, d in",
        "tuple(d[0] for a, d in",
        "of the passes the last one alone gives the initial state its error",
        ANY,
    ),
    Mutation(
        "own_cells/sweep.py",
        "sequence[self.steps] += values",
        "sequence[self.steps] = values",
        "of the passes that visit a step the last one alone counts",
        DERIVED,
    ),
    Mutation(
        "own_cells/sweep.py",
        "tuple(torch.cat((d[left:], d.new_zeros(entering, *d.shape[1:]))) for d in ds)",
        "tuple(torch.cat((d.new_zeros(entering, *d.shape[1:]), d[left:])) for d in ds)",
        "a pass that begins takes the place of one that has gone",
        ANY,
    ),
    Mutation(
        "own_cells/merged.py",
        "vjp(steps.outputs, steps.sums, self._wanted(steps))",
        "vjp(steps.outputs, errors, self._wanted(steps))",
        "of a graph's visits the last one alone counts for the weights",
        ANY,
    ),
    Mutation(
        "own_cells/merged.py",
        "a if b is None else b if a is None else a + b\n"
        "                for a, b in zip(steps.sums, errors, strict=True)",
        "a if b is None else b\n"
        "                for a, b in zip(steps.sums, errors, strict=True)",
        "errors of a graph's visits are not summed",
        ANY,
    ),
    Mutation(
        "own_cells/stepwise.py",
        "range(own, (t + self._k2 - self._k1) // self._k1 + 1)",
        "range(own, (t + self._k2 - self._k1 + 1) // self._k1 + 1)",
        "step by step, every pass visits a step more than k2",
        SEGMENTS,
    ),
    Mutation(
        "own_cells/stepwise.py",
        "errors = [dy if own in passes else None, *sums]",
        "errors = [None, *sums]",
        "step by step, the weights learn nothing from a step's own output",
        SEGMENTS,
    ),
    Mutation(
        "own_cells/stepwise.py",
        "found[p] = zeroed_rows(found[p], cut)",
        "pass",
        "step by step, an error passes a reset",
        SEGMENTS,
    ),
    Mutation(
        "own_cells/stepwise.py",
        "if p == own and later < size:",
        "if later < size:",
        "step by step, all passes carry the final state's error",
        SEGMENTS,
    ),
    Mutation(
        "own_cells/caller.py",
        "        _set_random_state(device, state)\n        yield",
        "        yield",
        "a step that runs again draws other numbers",
        DRAWS,
    ),
    Mutation(
        "own_cells/stepwise.py",
        "if cut is not None and t > start:",
        "if cut is not None and t > start + 1:",
        "a reset of a segment's second step is forgotten where it runs again",
        SEGMENTS,
    ),
    Mutation(
        "own_cells/derived.py",
        "zip(*self._visited[::-1], strict=True)",
        "zip(*self._visited, strict=True)",
        "the deltas of one pass are in the opposite order",
        DERIVED,
    ),
    Mutation(
        "own_cells/derived.py",
        "tape = _Tape(flat[:parts], flat[parts : 2 * parts], flat[2 * parts :])",
        "tape = _Tape(flat[parts : 2 * parts], flat[:parts], flat[2 * parts :])",
        "the derivative sees the state after for that before",
        DERIVED,
    ),
    Mutation(
        "own_cells/scan.py",
        "state = zeroed_rows(state, cut)",
        "pass",
        "no row of a cell of one's own is reset",
        ANY,
    ),
)
