// The gradients of a layer's weights and input: products of its deltas with what the
// layer read, all linear, so they can be formed from a piece of the steps at a time.
#pragma once

#include "product.h"

namespace bptt {
namespace {

// sums (columns) [+]= the column sums of a (m, ...), rows of stride lda. Long sums are
// taken in blocks, so that their rounding grows with the number of blocks.
inline void column_sums(int64_t m, Range columns, const float* a, int64_t lda,
                        float* sums, bool add) {
  constexpr int64_t kBlock = 64;
  for (int64_t j = columns.begin; j < columns.end; j += kLanes) {
    const int lanes = static_cast<int>(min(kLanes, columns.end - j));
    Vec total = add ? load(sums + j, lanes) : Vec{};
    for (int64_t i = 0; i < m; i += kBlock) {
      Vec block{};
      for (int64_t r = i; r < min(m, i + kBlock); ++r) block += load(a + r * lda + j, lanes);
      total += block;
    }
    store(sums + j, total, lanes);
  }
}

// One thread's turn at the products of some rows.
struct Turn {
  int part;
  bool first;  // whether nothing has been summed before
  bool even;   // whether all threads form as much
};

template <Cell kCell>
class GradientProducts {
 public:
  // For many turns U is packed once, by `pack_U` before the first of them.
  GradientProducts(const Gradients& gradients, int64_t hidden, int threads, bool many)
      : g_(gradients), H_(hidden), threads_(threads),
        each_(kLeft + kRight), packs_(threads * each_), sums_(kBlocks * hidden),
        is_packed_(many && g_.dx),
        U_(is_packed_ ? ceil_div(g_.inputs, kPanel) * kPanel * kGates * H_ : 0) {}

  explicit operator bool() const { return packs_ && sums_ && U_; }

  // A thread's share.
  void pack_U(int part) const {
    const int64_t I = g_.inputs, k = kGates * H_;
    for (int64_t j = part * kPanel; is_packed_ && j < I; j += threads_ * kPanel)
      pack<kPanel>(g_.U + j, 1, I, min(kPanel, I - j), k, U_.get() + j * k);
  }

  // Where a turn is not even, the first threads together form only this part of all.
  void relieve(int first_threads, double part) {
    relieved_ = first_threads;
    relieved_part_ = part;
  }

  // A thread's share for `rows` (step, batch) rows: delta, rows of stride lda, and
  // what belongs to its rows: h before the step, x or ids, and where dx goes; with their
  // places in h, and in x and dx.
  void add(Turn turn, int64_t rows, const float* delta, int64_t lda, const float* h,
           Places h_places, const float* x, const int64_t* ids, float* dx,
           Places x_places) const {
    const float* input_delta = delta + kInput * H_;
    if (g_.dW) {
      if constexpr (kCell == Cell::kGru) {
        weights(turn, rows, delta + H_, lda, 2 * H_, h, H_, h_places, g_.dW);
        weights(turn, rows, delta, lda, H_, h, H_, h_places, g_.dW + 2 * H_ * H_);
      } else {
        weights(turn, rows, delta, lda, kGates * H_, h, H_, h_places, g_.dW);
      }
    }
    if (g_.dU && g_.x)
      weights(turn, rows, input_delta, lda, kGates * H_, x, g_.inputs, x_places, g_.dU);
    if (g_.dU && g_.ids) columns(turn, rows, input_delta, lda, ids);
    if (g_.db_ih || g_.db_hh)
      column_sums(rows, share(kBlocks * H_, kLanes, turn.part, threads_), delta, lda,
                  sums_.get(), !turn.first);
    if (dx) {
      Product p{};
      p.m = rows;
      p.n = g_.inputs;
      p.k = kGates * H_;
      p.a = {input_delta, lda, 1};
      p.b = {g_.U, g_.inputs, 1};
      if (is_packed_) p.b_packed = U_.get();
      p.c = dx;
      p.ldc = g_.inputs;
      p.c_places = x_places;
      product_part(p, turn);
    }
  }

  // After all rows, in one thread.
  void finish() const {
    const float* sums = sums_.get();
    auto copy = [](const float* from, int64_t count, float* to) {
      std::memcpy(to, from, static_cast<size_t>(count) * sizeof(float));
    };
    if (g_.db_ih) copy(sums + kInput * H_, kGates * H_, g_.db_ih);
    if (!g_.db_hh) return;
    if constexpr (kCell == Cell::kGru) {
      copy(sums + H_, 2 * H_, g_.db_hh);
      copy(sums, H_, g_.db_hh + 2 * H_);
    } else {
      copy(sums, kGates * H_, g_.db_hh);
    }
  }

 private:
  static constexpr int kGates = gates(kCell);
  static constexpr int kBlocks = delta_blocks(kCell);
  static constexpr int64_t kInput = kBlocks - kGates;  // the block where U x begins
  static constexpr int64_t kLeft = kDepth * kBlockRows;
  static constexpr int64_t kRight = kDepth * kBlockColumns;

  void product_part(const Product& p, Turn turn) const {
    const int part = turn.part;
    if (turn.even || !relieved_) return product_part(p, {0, p.m}, part, part, threads_);
    const auto low = static_cast<int64_t>(static_cast<double>(p.m) * relieved_part_);
    const int64_t cut = low / kRows * kRows;
    if (part < relieved_)
      product_part(p, {0, cut}, part, part, relieved_);
    else
      product_part(p, {cut, p.m}, part, part - relieved_, threads_ - relieved_);
  }

  // Rows of a product, as the part `at` of `of` that form them.
  void product_part(const Product& p, Range rows, int part, int at, int of) const {
    if (rows.begin == rows.end) return;
    const Grid parts = grid(rows.end - rows.begin, p.n, of);
    if (at >= parts.rows * parts.columns) return;
    float* right = packs_.get() + part * each_;
    const Range mine = share(rows.end - rows.begin, 2, at / parts.columns, parts.rows);
    product_block(p, {rows.begin + mine.begin, rows.begin + mine.end},
                  share(p.n, kWide, at % parts.columns, parts.columns), right + kRight,
                  right);
  }

  // to (count, n) [+]= [delta columns]^T right (rows, n)
  void weights(Turn turn, int64_t rows, const float* delta, int64_t lda, int64_t count,
               const float* right, int64_t n, Places places, float* to) const {
    Product p{};
    p.m = count;
    p.n = n;
    p.k = rows;
    p.a = {delta, 1, lda};
    p.b = {right, n, 1};
    p.b_places = places;
    p.c = to;
    p.ldc = n;
    p.add = !turn.first;
    product_part(p, turn);
  }

  // The columns of dU that one-hot input picks.
  void columns(Turn turn, int64_t rows, const float* delta, int64_t lda,
               const int64_t* ids) const {
    const int64_t width = kGates * H_;
    const Range mine = share(width, kLanes, turn.part, threads_);
    if (!g_.dU_columns && turn.first)
      std::memset(g_.dU + mine.begin * g_.inputs, 0,
                  static_cast<size_t>((mine.end - mine.begin) * g_.inputs) * sizeof(float));
    for (int64_t r = 0; r < rows; ++r) {
      const float* from = delta + r * lda;
      if (g_.dU_columns) {
        float* to = g_.dU + ids[r] * width;
        for (int64_t j = mine.begin; j < mine.end; j += kLanes) {
          const int lanes = static_cast<int>(min(kLanes, mine.end - j));
          store(to + j, load(to + j, lanes) + load(from + j, lanes), lanes);
        }
      } else {
        for (int64_t j = mine.begin; j < mine.end; ++j)
          g_.dU[j * g_.inputs + ids[r]] += from[j];
      }
    }
  }

  const Gradients& g_;
  const int64_t H_;
  const int threads_;
  const int64_t each_;
  int relieved_ = 0;  // threads
  double relieved_part_ = 0;
  Scratch<> packs_;
  Scratch<> sums_;
  const bool is_packed_;
  Scratch<> U_;  // as Product has b_packed
};

template <Cell kCell>
bool all_gradients(Team& team, int64_t rows, int64_t hidden, const float* delta,
                   const float* h, Places h_places, const Gradients& g) {
  GradientProducts<kCell> products(g, hidden, team.size(), false);
  if (!products) return false;
  auto work = [&](int part) {
    products.add({part, true, true}, rows, delta, delta_blocks(kCell) * hidden, h,
                 h_places, g.x, g.ids, g.dx, g.x_places);
  };
  parallel(team, work);
  products.finish();
  return true;
}

bool gradients(Team& team, Cell cell, int64_t rows, int64_t hidden, const float* delta,
               const float* h, Places h_places, const Gradients& g) {
  switch (cell) {
    case Cell::kTanh:
    case Cell::kRelu:
      return all_gradients<Cell::kTanh>(team, rows, hidden, delta, h, h_places, g);
    case Cell::kGru:
      return all_gradients<Cell::kGru>(team, rows, hidden, delta, h, h_places, g);
    case Cell::kLstm:
      return all_gradients<Cell::kLstm>(team, rows, hidden, delta, h, h_places, g);
  }
  return false;
}

}  // namespace
}  // namespace bptt
