"""Errors in truncations, the loop through time, and what stands around it."""

from soak.mutations.mutation import Mutation

LAGS = ("test_truncation.py::test_lags_are_the_definition_for_every_small_truncation",)
CUT = ("test_through_time.py::test_every_small_truncation_of_a_stack",)
FULL = ("test_through_time.py::test_full_is_autograd_over_the_whole_sequence",)
ROWS = (
    "modules/test_rows.py::"
    "test_any_truncation_of_ragged_rows_with_resets_is_that_of_each_row",
)
BOTH = (
    "modules/test_rows.py::"
    "test_both_directions_of_rows_with_resets_are_those_of_their_parts",
)
BUDGET = ("test_recompute.py::test_every_truncation_is_its_literal_definition",)
RAGGED_BUDGET = ("test_recompute.py::test_the_gradients_are_those_without_a_budget",)
ONE = ("kernels/test_truncation.py::test_one_tensor_alone_gets_its_gradient",)
TUTORIAL = (
    "test_tutorial.py::test_window_equals_its_definition_without_any_derivative",
)

MUTATIONS = (
    Mutation(
        "truncation.py",
        "range(first_lag, min(k2, nominal_end + 1))",
        "range(first_lag, min(k2 - 1, nominal_end + 1))",
        "every pass visits a step less than k2",
        CUT,
    ),
    Mutation(
        "truncation.py",
        "range(first_lag, min(k2, nominal_end + 1))",
        "range(first_lag, min(k2 + 1, nominal_end + 1))",
        "every pass visits a step more than k2",
        CUT,
    ),
    Mutation(
        "truncation.py",
        "owns=lag < k1",
        "owns=lag <= k1",
        "a pass carries an output of the chunk before, too",
        CUT,
    ),
    Mutation(
        "truncation.py",
        "owns=lag < k1",
        "owns=lag < k1 - 1 or k1 == 1",
        "a pass leaves out the first output of its chunk",
        CUT,
    ),
    Mutation(
        "truncation.py",
        "at_start=start == 0",
        "at_start=start == 0 and first == 0",
        "of the passes the first alone reaches the initial state",
        CUT,
    ),
    Mutation(
        "truncation.py",
        "cls(1, bptt_truncate + 1)",
        "cls(1, bptt_truncate + 2)",
        "the tutorial's window goes back a recurrence too many",
        ("test_through_time.py::test_per_output_is_the_tutorials_loop",),
    ),
    Mutation(
        "truncation.py",
        "return cls(k, k)",
        "return cls(k, k + 1)",
        "the error of a chunk reaches into the chunk before",
        ("test_through_time.py::test_chunks_is_detaching_the_state_every_k_steps",),
    ),
    Mutation(
        "truncation.py",
        "return self.k2 > nominal_end",
        "return self.k2 > nominal_end - 1",
        "a window that ends a step short of the start is taken for full",
        (
            "test_truncation.py::test_full_over_a_length_means_that_every_pass_reaches_the_start",
        ),
    ),
    Mutation(
        "through_time.py",
        "total[turn.lag.steps] += delta",
        "total[turn.lag.steps] = delta",
        "of the passes that visit a step the last one alone counts",
        CUT,
    ),
    Mutation(
        "through_time.py",
        "        d = d[left:]\n",
        "        d = d[: len(d) - left]\n",
        "the last passes are dropped, not those that have gone",
        CUT,
    ),
    Mutation(
        "through_time.py",
        "tuple(total + d[0] for total, d in zip",
        "tuple(d[0] for total, d in zip",
        "of the passes the last one alone gives the initial state its error",
        CUT,
    ),
    Mutation(
        "through_time.py",
        "below = below * masks[index - 1][lag.steps]",
        "pass",
        "an error goes down a truncated stack past the dropout mask",
        ("test_through_time.py::test_any_truncation_is_its_literal_definition",),
    ),
    Mutation(
        "through_time.py",
        "dy = dx * masks[bottom - 1] if bottom and masks else dx",
        "dy = dx",
        "an error goes down an uncut stack past the dropout mask",
        FULL,
    ),
    Mutation(
        "through_time.py",
        "ds[index] = zeroed(before, tapes[index].cut_at(lag))",
        "ds[index] = before",
        "an error passes a reset",
        ROWS,
    ),
    Mutation(
        "through_time.py",
        "(rows.lengths - 1 == steps)",
        "(rows.lengths == steps)",
        "the final state's error comes a step after the row's last",
        ROWS,
    ),
    Mutation(
        "through_time.py",
        "hidden_rows.sum(0) if has_bias",
        "rows.sum(0) if has_bias",
        "b_hn has the gradient of b_in, as if outside the reset gate",
        FULL,
    ),
    Mutation(
        "through_time.py",
        "hidden_rows.t() @ _rows(tape.before[0])",
        "hidden_rows.t() @ _rows(tape.after[0])",
        "dW is made with h_t, not h_{t-1}",
        FULL,
    ),
    Mutation(
        "through_time.py",
        "dU.index_add(0, x.reshape(-1), rows)",
        "dU.index_copy(0, x.reshape(-1), rows)",
        "of the steps with an id one alone counts for its column of dU",
        ("modules/test_layers.py::test_ids_are_one_hot_vectors",),
    ),
    Mutation(
        "autograd.py",
        "                by_layer(ends),\n                plan.truncation,",
        "                by_layer(ends),\n                Truncation.full(),",
        "the definition's way back is never cut",
        (
            "modules/test_layers.py::test_a_truncated_stack_with_dropout_is_its_literal_definition",
        ),
    ),
    Mutation(
        "autograd.py",
        "else _tapes(kept, ctx.tape_sizes, rows.cut(x.device)),",
        "else _tapes(kept, ctx.tape_sizes, None),",
        "the definition's way back knows of no reset",
        ROWS,
    ),
    Mutation(
        "autograd.py",
        "any(needs[-len(initial) :])",
        "needs[-1]",
        "h0 gets its gradient only where c0 wants one, too",
        ONE,
    ),
    Mutation(
        "recompute.py",
        "if block.first > block.start:",
        "if block.first > block.stop:",
        "a block counts outputs of the block before, too",
        BUDGET,
    ),
    Mutation(
        "recompute.py",
        "error[:, :going] = above[at]",
        "error[:, :going] = 0",
        "no error goes from a block to the one before",
        RAGGED_BUDGET,
    ),
    Mutation(
        "recompute.py",
        "return dstate if block.hands_on else None",
        "return dstate",
        "a truncated block hands its error on",
        BUDGET,
    ),
    Mutation(
        "recompute.py",
        "total.dW.add_(new.dW)",
        "total.dW.copy_(new.dW)",
        "of the blocks the first alone counts for dW",
        BUDGET,
    ),
    Mutation(
        "recompute.py",
        "slice(going, self.rows.running(block.first))",
        "slice(going + 1, self.rows.running(block.first))",
        "of the rows that end in a block one loses its final error",
        RAGGED_BUDGET,
    ),
    Mutation(
        "recompute.py",
        "rows.span(block.first, block.stop).start - span.start] = 0",
        "rows.span(block.first, block.stop).start - span.start - 1] = 0",
        "the row before a block's own outputs counts there, too",
        BUDGET,
    ),
    Mutation(
        "memory.py",
        "max(0, -(-(k2 - k1) // k1)) * k1",
        "max(0, (k2 - k1) // k1) * k1",
        "a block begins after where its first pass reaches",
        BUDGET,
    ),
    Mutation(
        "rows.py",
        "torch.cat((first, self.resets[1:].flip(0)))",
        "torch.cat((self.resets[1:].flip(0), first))",
        "resets of the second direction stand a step early",
        BOTH,
    ),
    Mutation(
        "rows.py",
        "return x.flip(0)",
        "return x.flip(0).roll(1, 0)",
        "the second direction begins a step off",
        (
            "modules/test_layers.py::test_each_direction_is_truncated_along_its_own_time",
        ),
    ),
    Mutation(
        "rows.py",
        "after = torch.cat((padded[1:], torch.zeros_like(padded[:1])))",
        "after = padded",
        "resets of ragged rows stand a step off in the second direction",
        BOTH,
    ),
    Mutation(
        "places.py",
        "return placed.index_fill_(0, places.padding, 0)",
        "return placed",
        "the padding of large outputs is not zero",
        ("test_places.py::test_what_is_taken_and_placed",),
    ),
    Mutation(
        "tutorial.py",
        "np.outer(delta, s[k - 1])",
        "np.outer(delta, s[k])",
        "the tutorial's dW is made with s_k, not s_{k-1}",
        TUTORIAL,
    ),
    Mutation(
        "tutorial.py",
        "range(t, max(0, t - n) - 1, -1)",
        "range(t, max(0, t - n), -1)",
        "the tutorial's window goes back a recurrence too few",
        TUTORIAL,
    ),
    Mutation(
        "verify/forward_mode.py",
        "state, [zeroed(J) for J in influence]",
        "state, list(influence)",
        "in forward mode an influence passes a reset",
        ("test_verify_forward_mode.py::test_own_cells",),
    ),
)
