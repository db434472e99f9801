#include "layer.h"

#include <algorithm>
#include <memory>
#include <new>

#include "threads.h"

namespace bptt {
namespace {

using Floats = std::unique_ptr<float[]>;

Floats allocate(int64_t count) {
  return Floats(new (std::nothrow) float[static_cast<size_t>(std::max<int64_t>(count, 1))]);
}

// With so many more words than tokens, single columns of U cost less than all of U.
bool few_tokens(int64_t tokens, int64_t words) { return tokens * 8 < words; }

}  // namespace

bool layer_forward(const Kernels& kernels, Team& team, Forward f) {
  const int64_t width = gates(f.cell) * f.hidden;
  Floats columns;
  if (f.ids && !few_tokens(f.time * f.batch, f.inputs)) {
    columns = allocate(f.inputs * width);
    if (!columns) return false;
    kernels.transpose(team, width, f.inputs, f.U, columns.get());
    f.U_columns = columns.get();
  }
  return kernels.forward(team, f);
}

bool layer_gradients(const Kernels& kernels, Team& team, const LayerGradients& l) {
  const int64_t H = l.hidden, width = gates(l.cell) * H, rows = l.time * l.batch;
  const int64_t ld = delta_blocks(l.cell) * H;
  const bool is_gru = l.cell == Cell::kGru;
  const float* input_delta = l.delta + (is_gru ? H : 0);  // GRU: after hn

  // to (count, n) = [delta columns]^T right (rows, n)
  auto weights = [&](const float* delta, int64_t count, const float* right, int64_t n,
                     float* to) {
    Product p{};
    p.m = count;
    p.n = n;
    p.k = rows;
    p.a = {delta, 1, ld};
    p.b = {right, n, 1};
    p.c = to;
    p.ldc = n;
    return kernels.product(team, p);
  };
  if (l.dW) {
    const bool done = is_gru ? weights(l.delta + H, 2 * H, l.h, H, l.dW) &&
                                   weights(l.delta, H, l.h, H, l.dW + 2 * H * H)
                             : weights(l.delta, width, l.h, H, l.dW);
    if (!done) return false;
  }
  if (l.dU && l.x && !weights(input_delta, width, l.x, l.inputs, l.dU)) return false;
  if (l.dU && l.ids) {
    if (few_tokens(rows, l.inputs)) {
      std::fill_n(l.dU, width * l.inputs, 0.0f);
      for (int64_t r = 0; r < rows; ++r)
        for (int64_t i = 0; i < width; ++i)
          l.dU[i * l.inputs + l.ids[r]] += input_delta[r * ld + i];
    } else {
      Floats table = allocate(l.inputs * width);
      if (!table) return false;
      std::fill_n(table.get(), l.inputs * width, 0.0f);
      kernels.add_rows(team, rows, width, input_delta, ld, l.ids, table.get());
      kernels.transpose(team, l.inputs, width, table.get(), l.dU);
    }
  }
  if (l.db_ih || l.db_hh) {
    Floats sums = allocate(ld);
    if (!sums || !kernels.column_sums(team, rows, ld, l.delta, ld, sums.get()))
      return false;
    if (l.db_ih) std::copy_n(sums.get() + (is_gru ? H : 0), width, l.db_ih);
    if (l.db_hh && is_gru) {
      std::copy_n(sums.get() + H, 2 * H, l.db_hh);
      std::copy_n(sums.get(), H, l.db_hh + 2 * H);
    } else if (l.db_hh) {
      std::copy_n(sums.get(), width, l.db_hh);
    }
  }
  if (l.dx) {
    Product p{};
    p.m = rows;
    p.n = l.inputs;
    p.k = width;
    p.a = {input_delta, ld, 1};
    p.b = {l.U, l.inputs, 1};
    p.c = l.dx;
    p.ldc = l.inputs;
    if (!kernels.product(team, p)) return false;
  }
  return true;
}

}  // namespace bptt
