"""Errors in modules, in windows and random cuts, and in gradient flow."""

from soak.mutations.mutation import Mutation

STATEFUL = (
    "modules/test_stateful.py::"
    "test_gradients_are_the_literal_ones_with_an_update_after_each_window",
)
RESETS = (
    "modules/test_stateful.py::"
    "test_resets_and_nested_states_of_a_module_that_takes_them",
)
DRAW = ("test_pieces.py::test_a_draw_is_its_literal_unroll",)
LENGTH = ("test_random_truncation.py::test_the_mean_length_is_the_one_asked_for",)
FLOW = "flow/test_flow.py::"
EVERY_KERNEL = (FLOW + "test_float32_of_every_kernel_is_that_of_float64",)

MUTATIONS = (
    Mutation(
        "modules/base.py",
        "row = 2 * at + direction",
        "row = at + direction * self.num_layers",
        "the directions' initial states are taken in another order",
        ("modules/test_layers.py::test_outputs_and_gradients_are_torch_nns",),
    ),
    Mutation(
        "modules/base.py",
        "both = (rows, rows.flipped())",
        "both = (rows, rows)",
        "resets are not turned round for the second direction",
        (
            "modules/test_rows.py::"
            "test_both_directions_of_rows_with_resets_are_those_of_their_parts",
        ),
    ),
    Mutation(
        "modules/arrangement.py",
        "resets if order is None else resets[:, order.to(resets.device)]",
        "resets",
        "resets of a packed sequence are not sorted as its rows are",
        (
            "modules/test_rows.py::"
            "test_resets_of_a_packed_sequence_are_in_the_order_before_packing",
        ),
    ),
    Mutation(
        "modules/arrangement.py",
        "part if self.order is None else part.index_select(1, self._inverse)",
        "part if self.order is None else part.index_select(1, self.order)",
        "final states are sorted twice, not put back",
        (
            "modules/test_rows.py::"
            "test_any_truncation_of_ragged_rows_with_resets_is_that_of_each_row",
        ),
    ),
    Mutation(
        "modules/projected.py",
        "f.sigmoid() * c + i.sigmoid() * g.tanh()",
        "i.sigmoid() * c + f.sigmoid() * g.tanh()",
        "the projected LSTM has i and f swapped",
        ("modules/test_projected.py::test_any_truncation_is_its_literal_definition",),
    ),
    Mutation(
        "modules/recurrent.py",
        "back = batch.order.argsort()",
        "back = batch.order",
        "final states of a cell are sorted twice, not put back",
        ("modules/test_recurrent.py::test_any_truncation_is_its_literal_definition",),
    ),
    Mutation(
        "modules/stateful.py",
        "-(-max(0, truncation.k2 - truncation.k1) // truncation.k1) * truncation.k1",
        "max(0, truncation.k2 - truncation.k1) // truncation.k1 * truncation.k1",
        "the steps that run again are a chunk too few",
        STATEFUL,
    ),
    Mutation(
        "modules/stateful.py",
        "before = context.before",
        "pass",
        "steps run again from the state after them",
        STATEFUL,
    ),
    Mutation(
        "modules/stateful.py",
        "context is not None and (not reach or context.truncation != truncation)",
        "context is not None and not reach",
        "steps that were kept under another truncation run again",
        ("modules/test_stateful.py::test_errors_stop_where_the_context_ends",),
    ),
    Mutation(
        "modules/stateful.py",
        "inside.select(self._time, 0).logical_or_(self._zeroed)",
        "pass",
        "an error passes a reset of rows between windows",
        RESETS,
    ),
    Mutation(
        "modules/stateful.py",
        "None if resets is None else newest(resets)",
        "None",
        "steps that run again forget their resets",
        RESETS,
    ),
    Mutation(
        "pieces.py",
        "return (chance >= c).double() / (1 - c)",
        "return (chance >= c).double()",
        "an error that is not cut lacks its weight",
        (
            "test_pieces_mean.py",
            "test_random_truncation.py::test_rows_are_cut_by_themselves_and_as_often_as_asked",
        ),
    ),
    Mutation(
        "pieces.py",
        "factors[at] = kept / (1 - chosen)",
        "factors[at] = kept.double()",
        "an error that is not cut lacks the weight of its alpha",
        (
            "test_pieces_mean.py",
            "test_random_truncation.py::test_the_mean_length_is_the_one_asked_for",
        ),
    ),
    Mutation(
        "pieces.py",
        "since = (since + 1) * kept",
        "since = since + 1",
        "the boundaries are not counted from the last cut",
        ("test_random_truncation.py::test_a_seed_fixes_the_draws",),
    ),
    Mutation(
        "pieces.py",
        "draw(policy, len(boundaries), rows.batch)",
        "draw(policy, len(boundaries), rows.batch).flip(1)",
        "a row is cut where another was to be",
        DRAW,
    ),
    Mutation(
        "random_truncation.py",
        "(self.alpha - 1) / (scale + boundaries)",
        "(self.alpha - 1) / (scale + boundaries - 1)",
        "the probability to cut is that of the boundary before",
        LENGTH,
    ),
    Mutation(
        "random_truncation.py",
        "range(1, steps // self.every + 1)",
        "range(1, steps // self.every)",
        "the factor is that of a boundary less",
        (
            "test_random_truncation.py::"
            "test_the_factor_is_one_over_the_probability_to_pass",
        ),
    ),
    Mutation(
        "random_truncation.py",
        "range(self.every, time, self.every)",
        "range(self.every + 1, time, self.every)",
        "all cuts come a step late",
        DRAW,
    ),
    Mutation(
        "flow/measure.py",
        "counts = self._counts[lag:]",
        "counts = self._counts[: len(self._counts) - lag]",
        "the mean is over the rows that have step k, not t",
        (FLOW + "test_ragged_rows_are_as_if_each_were_alone",),
    ),
    Mutation(
        "flow/result.py",
        "int(within[0]) + 1 if len(within)",
        "int(within[0]) if len(within)",
        "the window is the largest lag, a step less",
        (FLOW + "test_window_and_horizon_are_the_smallest_that_hold",),
    ),
    Mutation(
        "flow/result.py",
        "at = truncation.k2 - 1",
        "at = truncation.k2",
        "the bias is that of a window a step longer",
        (FLOW + "test_bias_and_cosine_are_those_of_explicitly_truncated_gradients",),
    ),
    Mutation(
        "flow/stack.py",
        "layer, x[steps], tape.at(turn.lag), delta",
        "layer, x[len(x) - len(delta) :], tape.at(turn.lag), delta",
        "a lag's gradients are made with the inputs of another's steps",
        (FLOW + "test_lags_sum_to_every_per_output_window",),
    ),
    Mutation(
        "flow/stack.py",
        "            last = self.rows.lengths - 1\n",
        "            pass\n",
        "final states of ragged rows have their error in the padding",
        EVERY_KERNEL,
    ),
    Mutation(
        "flow/own_cell.py",
        "errors[leaf] = errors[leaf] + own",
        "pass",
        "reading the output is not reading the state",
        (
            "flow/test_own_cells.py::"
            "test_norms_are_those_of_one_autograd_call_an_output",
        ),
    ),
    Mutation(
        "flow/spectrum.py",
        "found = problem.state_vjp(step, ds)",
        "found = problem.state_vjp(step - 1, ds)",
        "the Jacobian is that of the step before",
        ("flow/test_spectrum.py::test_jacobians_are_those_of_autograd",),
    ),
    Mutation(
        "kernels/lags.py",
        "        if self._rows.resets is None:\n            return\n",
        "        return\n",
        "in the core's lags an error passes a reset",
        EVERY_KERNEL,
    ),
    Mutation(
        "kernels/lags.py",
        "error = error * self._masks[at - 1][:steps]",
        "pass",
        "in the core's lags an error goes down past the dropout mask",
        EVERY_KERNEL,
    ),
    Mutation(
        "kernels/lags.py",
        "return [part[1 if lag else 0 :] for part in parts]",
        "return [part[0:] for part in parts]",
        "a lag takes up the errors a step off",
        EVERY_KERNEL,
    ),
)
