#include "layer.h"

#include <algorithm>

#include "scratch.h"
#include "steps.h"
#include "threads.h"

namespace bptt {
namespace {

// With so many more words than tokens, single columns of U cost less than all of U.
bool few_tokens(int64_t tokens, int64_t words) { return tokens * 8 < words; }

int64_t rows_of(const Steps& s) { return begin_of(s, s.time); }

}  // namespace

bool layer_forward(const Kernels& kernels, Team& team, Forward f) {
  const int64_t width = gates(f.cell) * f.hidden;
  const bool transpose = f.ids && !few_tokens(rows_of(f.steps), f.inputs);
  Scratch<> columns(transpose ? f.inputs * width : 0);
  if (!columns) return false;
  if (transpose) {
    kernels.transpose(team, width, f.inputs, f.U, columns.get());
    f.U_columns = columns.get();
  }
  return kernels.forward(team, f);
}

int useful_threads(int threads, int64_t multiplications) {
  constexpr int64_t kWorthWaking = 3 << 20;  // a tenth of a millisecond of one thread
  // Some milliseconds, for which a thread waits that shares its processor.
  constexpr int64_t kWorthWaiting = 64 * kWorthWaking;
  if (multiplications < kWorthWaking) return 1;
  return multiplications < kWorthWaiting && crowded() ? 1 : threads;
}

namespace {

// to (batch, hidden) = the state that each row ends with, from h (rows, hidden).
void copy_ends(const Steps& s, int64_t hidden, const float* h, float* to) {
  for (int64_t t = s.time - 1, ended = 0; ended < s.batch; --t) {
    const int64_t rows = rows_at(s, t);  // from `ended` on, this step is their last
    std::copy_n(h + (begin_of(s, t) + ended) * hidden, (rows - ended) * hidden,
                to + ended * hidden);
    ended = rows;
  }
}

}  // namespace

bool stack_forward(const Kernels& kernels, Team& team, const Stack& s) {
  const int64_t state = s.steps.batch * s.hidden, steps = rows_of(s.steps) * s.hidden;
  const bool is_lstm = s.cell == Cell::kLstm;
  // What passes between layers, where no tape holds it.
  const bool loose = !s.layer[0].h && (s.layers > 1 || s.y_places);
  bool masked = false;
  for (int l = 0; l + 1 < s.layers; ++l) masked |= s.layer[l].mask != nullptr;
  Scratch<> between(!loose ? 0 : s.layers > 1 ? 2 * steps : steps);
  Scratch<> input(masked ? steps : 0);
  if (!between || !input) return false;
  Forward f{};
  f.cell = s.cell;
  f.steps = s.steps;
  f.hidden = s.hidden;
  f.inputs = s.inputs;
  f.x = s.x;
  f.ids = s.ids;
  f.x_places = s.x_places;
  for (int l = 0; l < s.layers; ++l) {
    const StackLayer& layer = s.layer[l];
    const bool top = l + 1 == s.layers;
    f.U = layer.U;
    f.W = layer.W;
    f.b_ih = layer.b_ih;
    f.b_hh = layer.b_hh;
    f.h0 = s.h0 + l * state;
    if (layer.h) {
      std::copy_n(f.h0, state, layer.h);
      f.h = layer.h + state;
    } else {
      f.h = top && !s.y_places ? s.y : between.get() + l % 2 * steps;
    }
    f.y = top && f.h != s.y ? s.y : nullptr;
    f.y_places = f.y ? s.y_places : nullptr;
    if (is_lstm) {
      f.c = s.c_end + l * state;
      std::copy_n(s.c0 + l * state, state, f.c);
    }
    f.tape = layer.tape;
    if (!layer_forward(kernels, team, f)) return false;
    copy_ends(s.steps, s.hidden, f.h, s.h_end + l * state);
    f.inputs = s.hidden;
    f.ids = nullptr;
    f.x_places = nullptr;
    f.x = f.h;
    if (!top && layer.mask) {
      for (int64_t i = 0; i < steps; ++i) input.get()[i] = f.h[i] * layer.mask[i];
      f.x = input.get();
    }
  }
  return true;
}

namespace {

// work(gradients), with dU of many ids as a table of columns meanwhile.
template <typename Work>
bool with_columns(const Kernels& kernels, Team& team, int64_t tokens, int64_t width,
                  Gradients g, Work work) {
  float* dU = g.dU;
  g.dU_columns = dU && g.ids && !few_tokens(tokens, g.inputs);
  const int64_t size = g.dU_columns ? g.inputs * width : 0;
  Scratch<> table(size);
  if (!table) return false;
  if (g.dU_columns) {
    std::fill_n(table.get(), size, 0.0f);
    g.dU = table.get();
  }
  if (!work(g)) return false;
  if (g.dU_columns) kernels.transpose(team, g.inputs, width, table.get(), dU);
  return true;
}

}  // namespace

bool layer_backward(const Kernels& kernels, Team& team, Backward b) {
  if (!b.gradients) return kernels.backward(team, b);
  return with_columns(kernels, team, rows_of(b.steps), gates(b.cell) * b.hidden,
                      *b.gradients, [&](const Gradients& g) {
                        b.gradients = &g;
                        return kernels.backward(team, b);
                      });
}

bool layer_gradients(const Kernels& kernels, Team& team, Cell cell, const Steps& steps,
                     int64_t hidden, const float* delta, const float* h,
                     Gradients gradients) {
  const int64_t rows = rows_of(steps);
  const bool moved = !is_plain(steps) && !steps.resets;
  Scratch<> before(steps.resets ? rows * hidden : 0);
  Scratch<int64_t> places(moved ? rows : 0);
  if (!before || !places) return false;
  if (moved) places_before(steps, 0, steps.time, 0, 1, places.get());
  if (steps.resets) {
    states_before(steps, 0, steps.time, h, hidden, 0, 1, before.get());
    h = before.get();
  }
  return with_columns(kernels, team, rows, gates(cell) * hidden, gradients,
                      [&](const Gradients& g) {
                        return kernels.gradients(team, cell, rows, hidden, delta, h,
                                                 moved ? places.get() : nullptr, g);
                      });
}

}  // namespace bptt
