"""Errors in the native core's way forward, and in how the core is called."""

from soak.mutations.mutation import Mutation

WIDTHS = ("kernels/test_accuracy.py::test_every_width",)
LARGE = ("kernels/test_accuracy.py::test_large_networks",)
EVERY = ("kernels/test_truncation.py::test_every_window_of_a_short_sequence",)
STACKS = ("kernels/test_truncation.py::test_odd_widths_and_stacks",)
ENDS = (
    "kernels/test_truncation.py::"
    "test_the_final_states_error_belongs_to_the_last_steps_pass",
)
MASKS = (
    "kernels/test_truncation.py::"
    "test_dropout_masks_stand_between_the_layers_of_every_pass",
)
ROWS = ("kernels/test_rows.py::test_ragged_rows_and_resets",)
THREADS = ("kernels/test_threads.py::test_as_exact_on_any_number_of_threads",)
PADDED = ("kernels/test_padded.py::test_the_bits_of_the_packed_sequence",)
AHEAD = "kernels/csrc/forward.h"

MUTATIONS = (
    Mutation(
        AHEAD,
        "help(part, begin + ahead, part, team.size());",
        "help(part, begin + ahead, part, team.size() + 1);",
        "a share of U x is formed by nobody",
        THREADS,
    ),
    Mutation(
        AHEAD,
        "help(part, begin + ahead, part - scanners, helpers);",
        "help(part, begin, part - scanners, helpers);",
        "helpers form U x of the steps that the loop is at",
        THREADS,
    ),
    Mutation(
        "kernels/native.py",
        "return truncation.k1, truncation.k2",
        "return truncation.k1, truncation.k2 + 1",
        "the core is asked for a window a step longer",
        EVERY,
    ),
    Mutation(
        "kernels/native.py",
        "dy = dx.mul_(back.masks[index - 1]) if back.masks else dx",
        "dy = dx",
        "an error goes down an uncut stack past the dropout mask",
        MASKS,
    ),
    Mutation(
        "kernels/native.py",
        "mask=back.masks[index] if index < len(back.masks) else None",
        "mask=None",
        "an error goes down a truncated stack past the dropout mask",
        MASKS,
    ),
    Mutation(
        "kernels/native.py",
        "return below * self.masks[index - 1] if self.masks else below",
        "return below",
        "dU of an upper layer is made without the dropout mask",
        MASKS,
    ),
    Mutation(
        "kernels/native.py",
        "below = self.tapes[index - 1].states[0][self.rows.batch :]",
        "below = self.tapes[index - 1].states[0][: -self.rows.batch]",
        "dU of an upper layer is made with h_{t-1} of the one below",
        STACKS,
    ),
    Mutation(
        "kernels/native.py",
        "contiguous(ends[1]) if is_lstm else None",
        "contiguous(ends[0]) if is_lstm else None",
        "the error of h_n is taken for that of c_n",
        ENDS,
    ),
    Mutation(
        AHEAD,
        "Vec c = f * before + i * g;",
        "Vec c = i * before + f * g;",
        "on the way forward i and f are swapped",
        WIDTHS,
    ),
    Mutation(
        AHEAD,
        "h = n + u * (before - n);",
        "h = before + u * (n - before);",
        "the update gate is taken for 1 - z",
        WIDTHS,
    ),
    Mutation(
        AHEAD,
        "remember(5, before);",
        "remember(5, c);",
        "the forget gate's error is made with c_t, not c_{t-1}",
        WIDTHS,
    ),
    Mutation(
        AHEAD,
        "remember(4, before);",
        "remember(4, h);",
        "the update gate's error is made with h_t, not h_{t-1}",
        WIDTHS,
    ),
    Mutation(
        AHEAD,
        "to[gate * kPanel + i] += f_.b_hh[row];",
        "to[input_block(kCell, gate) * kPanel + i] += f_.b_hh[row];",
        "b_hn stands outside the reset gate",
        WIDTHS,
    ),
    Mutation(
        AHEAD,
        "if (is_reset(s_, t, b)) return zeros_.get();",
        "",
        "the update gate lets the state past a reset",
        ROWS,
    ),
    Mutation(
        AHEAD,
        "if (is_reset(s_, t, b)) std::memset(to.c, 0, bytes);",
        "",
        "a reset leaves the LSTM its cell",
        ROWS,
    ),
    Mutation(
        AHEAD,
        "is_reset(s_, t + 1, b))\n      std::memset(to.h_copy",
        "is_reset(s_, t, b))\n      std::memset(to.h_copy",
        "h is zeroed a step after the reset",
        ROWS,
    ),
    Mutation(
        "kernels/csrc/steps.h",
        "if (is_reset(s, t, b))\n        std::memset(row, 0, bytes);\n      else\n",
        "",
        "dW is made with the state before a reset",
        ROWS,
    ),
    Mutation(
        "kernels/csrc/steps.h",
        "== rows_at(s, last - 1);",
        "== rows_at(s, first);",
        "dW of rows of which some end is made as if none did",
        ROWS,
    ),
    Mutation(
        "kernels/csrc/steps.h",
        "= row_before(s, t) + b;",
        "= s.batch + begin_of(s, t) + b;",
        "dW of ragged rows is made with h_t, not h_{t-1}",
        ROWS,
    ),
    Mutation(
        "kernels/csrc/padded.cpp",
        "p.batch_first ? p.order[b] * p.time + t : t * s.batch + p.order[b];",
        "p.batch_first ? b * p.time + t : t * s.batch + b;",
        "padded rows are read in the order of their lengths",
        PADDED,
    ),
    Mutation(
        "kernels/csrc/layer.cpp",
        "f.h0 = s.h0 + l * state;",
        "f.h0 = s.h0;",
        "all layers begin with the state of the first",
        STACKS,
    ),
    Mutation(
        "kernels/csrc/layer.cpp",
        "std::copy_n(h + (begin_of(s, t) + ended) * hidden, (rows - ended) * hidden,",
        "std::copy_n(h + begin_of(s, t) * hidden, (rows - ended) * hidden,",
        "rows end with the state of rows that go on",
        ROWS,
    ),
    Mutation(
        "kernels/csrc/schedule.h",
        "s.add || k > 0};",
        "s.add};",
        "of a long sum in a step the last piece alone counts",
        LARGE,
    ),
    Mutation(
        "kernels/csrc/micro.h",
        "return b + v / kVectors * b_stride + k * kPanel",
        "return b + k * kPanel",
        "the second panel of a tile is multiplied with the first one's weights",
        LARGE,
    ),
    Mutation(
        "kernels/csrc/pack.h",
        "const Four low{a[0], b[0], a[1], b[1]}",
        "const Four low{a[0], b[0], b[1], a[1]}",
        "the last two rows of a tile change their inputs",
        LARGE,
    ),
    Mutation(
        "kernels/csrc/product.h",
        "bool add = k > 0 || p.add;",
        "bool add = p.add;",
        "of a long sum in a large product the last piece alone counts",
        LARGE,
    ),
    Mutation(
        "kernels/csrc/product.h",
        "to[j + i] += sum(sums[i][0] + sums[i][1]);",
        "to[j + i] += sum(sums[i][0]);",
        "a row's product without packing lacks every second vector",
        ("kernels/test_inference.py::test_the_outputs_are_those_of_training", *WIDTHS),
    ),
    Mutation(
        "kernels/csrc/simd.h",
        "return a < 0.625f ? near : far;",
        "return a < 1.625f ? near : far;",
        "tanh's polynomial is used where it does not hold",
        ("kernels/test_accuracy.py::test_tanh_and_sigmoid_to_the_last_digits",),
    ),
    Mutation(
        "kernels/csrc/padded.cpp",
        "if (p.backwards) {",
        "if (false) {",
        "the second direction reads padded rows from their first step on",
        ("kernels/test_padded.py::test_a_memory_budget_and_both_directions",),
    ),
    Mutation(
        "places.py",
        "step = rows.lengths - 1 - step",
        "step = rows.lengths.max() - 1 - step",
        "the definition's second direction begins in the padding",
        (
            "modules/test_rows.py::"
            "test_both_directions_of_rows_with_resets_are_those_of_their_parts",
        ),
    ),
)
