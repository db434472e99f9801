// The large products around the loops: projections of the input, gradients of the
// weights and of the input. (The order of the loops is that of Goto & van de Geijn,
// "Anatomy of high-performance matrix multiplication", 2008.)
#pragma once

#include "pack.h"
#include "steps.h"
#include "threads.h"

namespace bptt {
namespace {

// A matrix in place: element (i, j) at data[i * row + j * column]; one stride is 1.
struct Matrix {
  const float* data;
  int64_t row;
  int64_t column;
};

// c (m, n), rows of stride ldc, = [c +] a (m, k) b (k, n).
struct Product {
  int64_t m, n, k;
  Matrix a, b;
  float* c;
  int64_t ldc;
  bool add;  // to what c holds
  Places b_places;  // of the rows of b, whose columns lie side by side; or null
  Places c_places;
  const float* b_packed;  // (panels, k, kPanel), instead of b; or null
};

constexpr int64_t kWide = kTilePanels * kPanel;  // columns of a tile
constexpr int64_t kBlockRows = 16 * kRows;     // of the left factor, packed at a time
constexpr int64_t kBlockColumns = 32 * kPanel; // of the right factor

template <typename Work>
void parallel(Team& team, Work& work) {
  team.run([](void* context, int part) { (*static_cast<Work*>(context))(part); },
           &work);
}

struct Range {
  int64_t begin, end;
};

// Part `part` of `parts` equal parts of [0, size), cut at multiples of `grain`.
inline Range share(int64_t size, int64_t grain, int part, int parts) {
  int64_t grains = ceil_div(size, grain);
  return {min(size, grains * part / parts * grain),
          min(size, grains * (part + 1) / parts * grain)};
}

// How `parts` threads divide an (m, n) result among them: the division whose threads
// pack least, since each packs what it reads.
struct Grid {
  int rows, columns;
};
inline Grid grid(int64_t m, int64_t n, int parts) {
  Grid best{1, 1};
  double least = 0;
  for (int rows = 1; rows <= parts; ++rows) {
    int columns = parts / rows;
    double height = static_cast<double>(ceil_div(ceil_div(m, kRows), rows) * kRows);
    double width = static_cast<double>(ceil_div(ceil_div(n, kWide), columns) * kWide);
    double cost = height * width + 24 * (height + width);
    if (rows == 1 || cost < least) {
      least = cost;
      best = {rows, columns};
    }
  }
  return best;
}

inline void product_block(const Product& p, Range rows, Range columns, float* left,
                          float* right) {
  float edge[kRows * kWide];
  for (int64_t j = columns.begin; j < columns.end; j += kBlockColumns) {
    int64_t width = min(kBlockColumns, columns.end - j);
    for (int64_t k = 0; k < p.k; k += kDepth) {
      int64_t depth = min(kDepth, p.k - k);
      if (p.b_places)
        pack_placed(p.b.data + j, p.b_places + k, p.k - k, p.b.row, width, depth, right);
      else
        for (int64_t at = 0; at < width && !p.b_packed; at += kPanel)
          pack<kPanel>(p.b.data + k * p.b.row + (j + at) * p.b.column, p.b.column,
                       p.b.row, min(kPanel, width - at), depth, right + at * depth);
      // From a panel's begin to the next one's.
      const int64_t apart = kPanel * (p.b_packed ? p.k : depth);
      const float* packed = p.b_packed ? p.b_packed + j * p.k + k * kPanel : right;
      for (int64_t i = rows.begin; i < rows.end; i += kBlockRows) {
        int64_t height = min(kBlockRows, rows.end - i);
        for (int64_t at = 0; at < height; at += kRows)
          pack<kRows>(p.a.data + (i + at) * p.a.row + k * p.a.column, p.a.row,
                      p.a.column, min(kRows, height - at), depth, left + at * depth);
        for (int64_t low = 0; low < height; low += kRows) {
          if (p.c_places)
            for (int64_t r = low + 2 * kRows; r < min(low + 3 * kRows, height); ++r)
              prefetch<true>(p.c + p.c_places[i + r] * p.ldc + j, width);
          for (int64_t at = 0; at < width; at += kWide) {
            int64_t count = min(kRows, height - low);
            int64_t valid = min(kWide, width - at);
            const auto panels = static_cast<int>(ceil_div(valid, kPanel));
            auto c = [&](int64_t r) {
              return p.c + place_of(p.c_places, i + low + r) * p.ldc + j + at;
            };
            // Whole tiles go where they belong at once.
            const bool direct = valid == panels * kPanel && !p.c_places;
            const bool add = k > 0 || p.add;
            const Columns columns{packed + at / kPanel * apart, apart,
                                  direct ? c(0) : edge, direct ? p.ldc : kWide, kPanel,
                                  add};
            auto copy = [valid](float* row_to, const float* from) {
              constexpr size_t kEach = sizeof(float);
              if (valid == kWide)  // a constant, so that nothing is called
                std::memcpy(row_to, from, kWide * kEach);
              else
                std::memcpy(row_to, from, static_cast<size_t>(valid) * kEach);
            };
            for (int64_t r = 0; r < count && !direct && add; ++r)
              copy(edge + r * kWide, c(r));
            tile<true>(count, panels, depth, left + low * depth, 1, columns);
            for (int64_t r = 0; r < count && !direct; ++r)
              copy(c(r), edge + r * kWide);
          }
        }
      }
    }
  }
}

inline float sum(Vec v) {
  float lanes[kLanes];
  store(lanes, v);
  for (int half = kLanes / 2; half; half /= 2)
    for (int i = 0; i < half; ++i) lanes[i] += lanes[i + half];
  return lanes[0];
}

// to[j] += the inner product of one row `a` (k) with row j of b, j in [columns), without
// packing: for so few rows that packing b would cost more than the product.
inline void dot_row(const float* a, const float* b, int64_t ldb, int64_t k,
                    Range columns, float* to) {
  constexpr int kTogether = 4;
  int64_t j = columns.begin;
  for (; j < columns.end; j += kTogether) {
    int count = static_cast<int>(min(kTogether, columns.end - j));
    const float* rows[kTogether];
    for (int i = 0; i < kTogether; ++i) rows[i] = b + (j + (i < count ? i : 0)) * ldb;
    Vec sums[kTogether][2] = {};
    int64_t at = 0;
    for (; at + 2 * kLanes <= k; at += 2 * kLanes) {
      Vec low = load(a + at), high = load(a + at + kLanes);
#pragma GCC unroll 4
      for (int i = 0; i < kTogether; ++i) {
        sums[i][0] += low * load(rows[i] + at);
        sums[i][1] += high * load(rows[i] + at + kLanes);
      }
    }
    for (; at < k; at += kLanes) {
      int lanes = static_cast<int>(min(kLanes, k - at));
      Vec low = load(a + at, lanes);
      for (int i = 0; i < kTogether; ++i)
        sums[i][0] += low * load(rows[i] + at, lanes);
    }
    for (int i = 0; i < count; ++i) to[j + i] += sum(sums[i][0] + sums[i][1]);
  }
}

}  // namespace
}  // namespace bptt
