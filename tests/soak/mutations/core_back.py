"""Errors in the native core's way back."""

from soak.mutations.mutation import Mutation

WIDTHS = ("kernels/test_accuracy.py::test_every_width",)
LARGE = ("kernels/test_accuracy.py::test_large_networks",)
EVERY = ("kernels/test_truncation.py::test_every_window_of_a_short_sequence",)
STACKS = ("kernels/test_truncation.py::test_odd_widths_and_stacks",)
ALONG = (
    "kernels/test_truncation.py::test_one_layer_whose_lags_have_rows_for_a_product",
)
ENDS = (
    "kernels/test_truncation.py::"
    "test_the_final_states_error_belongs_to_the_last_steps_pass",
)
ROWS = ("kernels/test_rows.py::test_ragged_rows_and_resets",)
THREADS = ("kernels/test_threads.py::test_as_exact_on_any_number_of_threads",)
FLOW = ("flow/test_flow.py::test_float32_of_every_kernel_is_that_of_float64",)
READY = ("kernels/test_ready.py::test_both_ways_back_give_the_same_bits",)
BACK = "kernels/csrc/backward.h"
GRADIENTS = "kernels/csrc/gradients.h"

MUTATIONS = (
    Mutation(
        BACK,
        "put(0, dh * (1.0f - h * h));",
        "put(0, dh * (1.0f - h));",
        "tanh' is 1 - h",
        WIDTHS,
    ),
    Mutation(
        BACK,
        "h > 0.0f ? dh : dh * 0.0f",
        "h >= 0.0f ? dh : dh * 0.0f",
        "a rectifier is on where it is off",
        ("kernels/test_edges.py::test_relu_at_its_kink_has_slope_zero",),
    ),
    Mutation(
        BACK,
        "Vec dn = dh * (1.0f - u) * (1.0f - n * n);",
        "Vec dn = dh * (1.0f - n * n);",
        "the candidate's error lacks 1 - z",
        WIDTHS,
    ),
    Mutation(
        BACK,
        "put(0, dn * r);",
        "put(0, dn);",
        "the error reaches W_n h + b_hn past the reset gate",
        WIDTHS,
    ),
    Mutation(
        BACK,
        "put(1, dn * recall(3) * (r * (1.0f - r)));",
        "put(1, dn * recall(4) * (r * (1.0f - r)));",
        "the reset gate is taken to scale h_{t-1}",
        WIDTHS,
    ),
    Mutation(
        BACK,
        "dh * (recall(4) - n) * (u * (1.0f - u))",
        "dh * (n - recall(4)) * (u * (1.0f - u))",
        "the update gate's error has the wrong sign",
        WIDTHS,
    ),
    Mutation(
        BACK,
        "store(row.carry + at, dh * u, lanes);",
        "store(row.carry + at, dh * r, lanes);",
        "r lets the state's error through, not z",
        WIDTHS,
    ),
    Mutation(
        BACK,
        "put(0, dc * g * (i * (1.0f - i)));\n"
        "    put(1, dc * recall(5) * (f * (1.0f - f)));",
        "put(1, dc * g * (i * (1.0f - i)));\n"
        "    put(0, dc * recall(5) * (f * (1.0f - f)));",
        "the deltas of i and f are swapped",
        WIDTHS,
    ),
    Mutation(
        BACK,
        "dc += dh * o * (1.0f - tanh_c * tanh_c);",
        "dc += dh * o;",
        "the cell's error lacks tanh'",
        WIDTHS,
    ),
    Mutation(
        BACK,
        "store(row.carry + at, dc * f, lanes);",
        "store(row.carry + at, dc * i, lanes);",
        "the cell's error goes back through i, not f",
        WIDTHS,
    ),
    Mutation(
        BACK,
        "put(3, dh * tanh_c * (o * (1.0f - o)));",
        "put(3, dh * g * (o * (1.0f - o)));",
        "the output gate's error is made with g, not tanh c",
        WIDTHS,
    ),
    Mutation(
        BACK,
        "if (row.dc_end) dc += load(row.dc_end + at, lanes);",
        "",
        "the error of c_n is dropped",
        ENDS,
    ),
    Mutation(
        BACK,
        "pack<kPanel>(from + 2 * H * H, 1, H, count, H, to);\n"
        "    pack<kPanel>(from, 1, H, count, 2 * H, to + H * kPanel);",
        "pack<kPanel>(from, 1, H, count, 3 * H, to);",
        "the GRU's W is in the order r z n where its deltas are in n r z",
        WIDTHS,
    ),
    Mutation(
        BACK,
        "next = passes_.step(pass, lag) + 1;\n    return next < s_.time",
        "next = passes_.step(pass, lag);\n    return next < s_.time",
        "errors are cut off a step after the reset",
        ROWS,
    ),
    Mutation(
        BACK,
        "if (kCarry && (is_reset(s_, step, b) || begins_chunk(step)))",
        "if (kCarry && begins_chunk(step))",
        "the cell's error passes a reset",
        ROWS,
    ),
    Mutation(
        BACK,
        "if (kCarry && (is_reset(s_, step, b) || begins_chunk(step)))",
        "if (kCarry && is_reset(s_, step, b))",
        "the cell's error passes from chunk to chunk",
        ALONG,
    ),
    Mutation(
        BACK,
        "lag == passes_.first_lag() || begins_chunk(passes_.step(0, lag) + 1)",
        "lag == passes_.first_lag() || begins_chunk(passes_.step(0, lag))",
        "chunks are cut a step early",
        ALONG,
    ),
    Mutation(
        BACK,
        "return b_.chunk && t > 0 && t % b_.chunk == 0;",
        "return b_.chunk && t % b_.chunk == 0;",
        "the initial state gets no error of the cell's",
        ALONG,
    ),
    Mutation(
        BACK,
        "if (s.add)\n        std::memcpy(p.product + r * kWide, kept + r * kWide, "
        "bytes);\n      else\n",
        "",
        "at a reset the error from the layer above is lost, too",
        ROWS,
    ),
    Mutation(
        BACK,
        "lag < passes_.k1)\n",
        "lag <= passes_.k1)\n",
        "a pass carries an output of the chunk before, too",
        EVERY,
    ),
    Mutation(
        BACK,
        "const bool ends = step == s_.time - 1 || b >= rows_at(s_, step + 1);",
        "const bool ends = step == s_.time - 1;",
        "a short row's final state has no error",
        ROWS,
    ),
    Mutation(
        BACK,
        "if (kCell == Cell::kGru)\n                  *dh += carry;\n"
        "                else if (layer.dc_start)",
        "if (layer.dc_start)",
        "dh0 lacks what the update gate lets through",
        WIDTHS,
    ),
    Mutation(
        BACK,
        "!is_reset(s_, 0, r - first) &&",
        "",
        "the initial state of a row that is reset at once has an error",
        ROWS,
    ),
    Mutation(
        BACK,
        "kCell == Cell::kGru ? H : 0;  // r z n, after hn",
        "0;",
        "in the GRU the error of W h goes down the stack for that of U x",
        STACKS,
    ),
    Mutation(
        BACK,
        "products_of.add({part, lag == 0, true}",
        "products_of.add({part, lag <= 1, true}",
        "the gradients of the first lag are written over",
        ALONG,
    ),
    Mutation(
        BACK,
        "Turn turn{part, lag < piece(), lag + 1 == s_.time}",
        "Turn turn{part, true, lag + 1 == s_.time}",
        "of the pieces of a long sequence the last one alone counts",
        LARGE,
    ),
    Mutation(
        BACK,
        "h += row_before(s_, begin) * b_.hidden;",
        "h += (row_before(s_, begin) + s_.batch) * b_.hidden;",
        "dW is made with h_t, not h_{t-1}",
        WIDTHS,
    ),
    Mutation(
        "kernels/csrc/passes.h",
        "return min(k2, nominal_end + 1);",
        "return min(k2 - 1, nominal_end + 1);",
        "every pass visits a step less than k2",
        EVERY,
    ),
    Mutation(
        "kernels/csrc/passes.h",
        "return k2 > k1 && count > 1;",
        "return k2 > k1 + 1 && count > 1;",
        "where windows overlap by a step, the last pass alone counts",
        EVERY,
    ),
    Mutation(
        "kernels/csrc/passes.h",
        "copy(b_.layer[0].h, step, h_to",
        "copy(b_.layer[0].h, step + 1, h_to",
        "dW of a lag is made with h_t, not h_{t-1}",
        ALONG,
    ),
    Mutation(
        GRADIENTS,
        "copy(sums, H_, g_.db_hh + 2 * H_);",
        "copy(sums + 3 * H_, H_, g_.db_hh + 2 * H_);",
        "b_hn has the gradient of b_in, as if outside the reset gate",
        WIDTHS,
    ),
    Mutation(
        GRADIENTS,
        "weights(turn, rows, delta, lda, H_, h, H_, h_places, g_.dW + 2 * H_ * H_",
        "weights(turn, rows, delta + 3 * H_, lda, H_, h, H_, h_places, "
        "g_.dW + 2 * H_ * H_",
        "dW_n is made without the reset gate",
        WIDTHS,
    ),
    Mutation(
        GRADIENTS,
        "product_part(p, {0, cut}, part, part, relieved_);",
        "product_part(p, {0, cut - kRows}, part, part, relieved_);",
        "between the rows of the loop's threads and of their helpers some are left out",
        THREADS,
    ),
    Mutation(
        GRADIENTS,
        "p.a = {input_delta, lda, 1};",
        "p.a = {delta, lda, 1};",
        "the GRU's dx is made with the error of W h",
        WIDTHS,
    ),
    Mutation(
        GRADIENTS,
        "r < min(m, i + kBlock); ++r)",
        "r < min(m - 1, i + kBlock); ++r)",
        "biases lack the last row of a piece",
        WIDTHS,
    ),
    Mutation(
        GRADIENTS,
        "r < min(m, i + kBlock); ++r)",
        "r < min(m, i + kBlock - 1); ++r)",
        "biases lack the last of every 64 rows",
        LARGE,
    ),
    Mutation(
        GRADIENTS,
        "store(to + j, load(to + j, lanes) + load(from + j, lanes), lanes);",
        "store(to + j, load(from + j, lanes), lanes);",
        "of the steps with an id one alone counts for its column of dU",
        ("kernels/test_edges.py::test_every_id_the_same_and_some_never",),
    ),
    Mutation(
        GRADIENTS,
        "g_.dU[j * g_.inputs + ids[r]] += from[j];",
        "g_.dU[j * g_.inputs + ids[r]] = from[j];",
        "of few tokens among many ids one alone counts for its column of dU",
        ("kernels/test_edges.py::test_every_id_the_same_and_some_never",),
    ),
    Mutation(
        "kernels/csrc/lag.h",
        "to.h = g_.h + (row + g_.batch) * H + at;",
        "to.h = g_.h + row * H + at;",
        "a lag's tanh' is that of h_{t-1}",
        FLOW,
    ),
    Mutation(
        "kernels/csrc/lag.h",
        "constexpr bool kAdd = kCell == Cell::kGru;",
        "constexpr bool kAdd = false;",
        "in a lag of the GRU no error goes past the gates",
        FLOW,
    ),
    Mutation(
        "kernels/csrc/lag.h",
        "const int64_t H = g_.hidden, t = row / g_.batch, b = row % g_.batch;",
        "const int64_t H = g_.hidden, t = row / g_.batch, b = 0;",
        "all rows of a lag read the gates of the first",
        FLOW,
    ),
    Mutation(
        "kernels/ready.py",
        "dh_end, dc_end = dfinal if kind == 3 else (dfinal[0], None)",
        "dh_end, dc_end = dfinal[0], None",
        "the error of c at the end does not enter the short way back",
        READY,
    ),
    Mutation(
        "autograd.py",
        "native.chunk_of(truncation, rows) if len(weights) == 1 else None",
        "0 if len(weights) == 1 else None",
        "the short way back is taken past a truncation's cuts",
        READY,
    ),
    Mutation(
        "autograd.py",
        "or (given and any(needs[-given:]))",
        "or (given and all(needs))",
        "the short way back is taken where the state's error is wanted",
        ("kernels/test_accuracy.py::test_every_width",),
    ),
    Mutation(
        GRADIENTS,
        "min(kPanel, I - j), k, U_.get() + j * k);",
        "min(kPanel, I - j), k, U_.get());",
        "panels of U are packed over each other",
        LARGE,
    ),
)
