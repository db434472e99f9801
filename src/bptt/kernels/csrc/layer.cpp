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

// Without keeping, this many floats of U x + b at a time, so that a long sequence
// needs no more memory than a short one.
constexpr int64_t kInputFloats = 1 << 20;
constexpr int64_t kLeastSteps = 64;  // to earn back the packing of the weights

// With so many more words than tokens, single columns of U cost less than all of U.
bool few_tokens(int64_t tokens, int64_t words) { return tokens * 8 < words; }

}  // namespace

bool layer_forward(const Kernels& kernels, Team& team, const LayerForward& l) {
  const int64_t H = l.hidden, width = gates(l.cell) * H, rows = l.time * l.batch;
  const bool is_gru = l.cell == Cell::kGru;
  Floats bias;
  if (l.b_ih) {
    bias = allocate(width);
    if (!bias) return false;
    // The reset gate scales b_hh of n: that stays with W h.
    for (int64_t i = 0; i < width; ++i)
      bias[i] = l.b_ih[i] + (is_gru && i >= 2 * H ? 0.0f : l.b_hh[i]);
  }
  Forward f{};
  f.cell = l.cell;
  f.batch = l.batch;
  f.hidden = H;
  f.W = l.W;
  f.b_hidden = is_gru && l.b_hh ? l.b_hh + 2 * H : nullptr;
  f.h = l.h;
  f.c = l.c;
  f.gates = l.gates;
  f.extra = l.extra;
  f.keep = l.keep;

  Floats table;  // the row of U x + b of every id
  if (l.ids && !few_tokens(rows, l.inputs)) {
    table = allocate(l.inputs * width);
    if (!table) return false;
    kernels.transpose(team, width, l.inputs, l.U, table.get());
    if (bias)
      for (int64_t word = 0; word < l.inputs; ++word)
        for (int64_t i = 0; i < width; ++i) table[word * width + i] += bias[i];
    f.time = l.time;
    f.gx = table.get();
    f.ids = l.ids;
    return kernels.forward(team, f);
  }

  const bool simple = l.cell == Cell::kTanh || l.cell == Cell::kRelu;
  int64_t steps = l.time;
  Floats own;
  if (!simple && !l.keep) {
    steps = std::min(l.time,
                     std::max(kLeastSteps, kInputFloats / std::max<int64_t>(
                                                              l.batch * width, 1)));
    own = allocate(steps * l.batch * width);
    if (!own) return false;
  }
  for (int64_t t = 0; t < l.time; t += steps) {
    const int64_t row = t * l.batch;
    f.time = std::min(steps, l.time - t);
    f.h = l.h + row * H;
    // Where there is room that the loop fills only after it has read it.
    float* gx = simple ? f.h + l.batch * H : l.keep ? l.gates : own.get();
    if (l.ids) {
      for (int64_t r = 0; r < f.time * l.batch; ++r) {
        const float* from = l.U + l.ids[row + r];
        for (int64_t i = 0; i < width; ++i)
          gx[r * width + i] = from[i * l.inputs] + (bias ? bias[i] : 0.0f);
      }
    } else {
      Product p{};
      p.m = f.time * l.batch;
      p.n = width;
      p.k = l.inputs;
      p.a = {l.x + row * l.inputs, l.inputs, 1};
      p.b = {l.U, 1, l.inputs};
      p.c = gx;
      p.ldc = width;
      p.bias = bias.get();
      if (!kernels.product(team, p)) return false;
    }
    f.gx = gx;
    if (!kernels.forward(team, f)) return false;
  }
  return true;
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
