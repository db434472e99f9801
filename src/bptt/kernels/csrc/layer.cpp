#include "layer.h"

#include <algorithm>

#include "scratch.h"

namespace bptt {
namespace {

// With so many more words than tokens, single columns of U cost less than all of U.
bool few_tokens(int64_t tokens, int64_t words) { return tokens * 8 < words; }

}  // namespace

bool layer_forward(const Kernels& kernels, Team& team, Forward f) {
  const int64_t width = gates(f.cell) * f.hidden;
  const bool transpose = f.ids && !few_tokens(f.time * f.batch, f.inputs);
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
  return multiplications < kWorthWaking ? 1 : threads;
}

bool stack_forward(const Kernels& kernels, Team& team, const Stack& s) {
  const int64_t state = s.batch * s.hidden, steps = s.time * state;
  const bool is_lstm = s.cell == Cell::kLstm;
  // What passes between layers, where no tape holds it.
  const bool loose = s.layers > 1 && !s.layer[0].h;
  bool masked = false;
  for (int l = 0; l + 1 < s.layers; ++l) masked |= s.layer[l].mask != nullptr;
  Scratch<> between(loose ? 2 * steps : 0), input(masked ? steps : 0);
  if (!between || !input) return false;
  Forward f{};
  f.cell = s.cell;
  f.time = s.time;
  f.batch = s.batch;
  f.hidden = s.hidden;
  f.inputs = s.inputs;
  f.x = s.x;
  f.ids = s.ids;
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
      f.h = top ? s.y : between.get() + l % 2 * steps;
    }
    f.y = top && layer.h ? s.y : nullptr;
    if (is_lstm) {
      f.c = s.c_end + l * state;
      std::copy_n(s.c0 + l * state, state, f.c);
    }
    f.tape = layer.tape;
    if (!layer_forward(kernels, team, f)) return false;
    std::copy_n(f.h + steps - state, state, s.h_end + l * state);
    f.inputs = s.hidden;
    f.ids = nullptr;
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
  return with_columns(kernels, team, b.time * b.batch, gates(b.cell) * b.hidden,
                      *b.gradients, [&](const Gradients& g) {
                        b.gradients = &g;
                        return kernels.backward(team, b);
                      });
}

bool layer_gradients(const Kernels& kernels, Team& team, Cell cell, int64_t time,
                     int64_t batch, int64_t hidden, const float* delta, const float* h,
                     Gradients gradients) {
  return with_columns(kernels, team, time * batch, gates(cell) * hidden, gradients,
                      [&](const Gradients& g) {
                        return kernels.gradients(team, cell, time, batch, hidden, delta,
                                                 h, g);
                      });
}

}  // namespace bptt
