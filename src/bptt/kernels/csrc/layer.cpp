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
