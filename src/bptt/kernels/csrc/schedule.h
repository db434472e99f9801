// How the rows and units of a loop through time are divided among threads.
#pragma once

#include "product.h"
#include "tape.h"

namespace bptt {
namespace {

// Rows whose products with a panel follow each other, while that panel's piece is in
// the first-level cache.
constexpr int64_t kGroupRows = 4 * kRows;
// A thread that holds whole rows reads all recurrent weights at every step, so they
// should fit its second-level cache.
constexpr int64_t kResidentFloats = 192 * 1024;

// Groups of threads that divide the units of the same rows.
constexpr int kMostRowParts = 16;

// Threads that hold different rows never wait for each other. Those that divide the
// units of the same rows meet at a barrier a step, but each keeps its share of the
// weights in its cache.
struct Division {
  int row_parts, unit_parts;

  int threads() const { return row_parts * unit_parts; }
  Range rows(int part, int64_t rows) const {
    return share(rows, kRows, part / unit_parts, row_parts);
  }
  Range panels(int part, int64_t panels) const {
    return share(panels, 1, part % unit_parts, unit_parts);
  }
};

// weights: floats that a step multiplies with; rows: beside each other in a step.
inline Division divide(int threads, int64_t rows, int64_t panels, int64_t weights) {
  // Below this many multiplications a step, meeting (0.1 us) costs more than it saves.
  constexpr int64_t kWorthMeeting = 6 * 1024;
  int64_t blocks = ceil_div(rows, kRows);
  Division best{1, 1};
  double least = 0;
  for (int units = 1; units <= threads && units <= panels; ++units) {
    if (units > 1 && rows * weights < kWorthMeeting * units) break;
    int64_t most = units > 1 ? min(blocks, kMostRowParts) : blocks;
    int row_parts = static_cast<int>(min(threads / units, most));
    double cost = static_cast<double>(ceil_div(blocks, row_parts)) *
                  static_cast<double>(ceil_div(panels, units));
    if (units > 1) cost *= 1.1;
    if (weights / units > kResidentFloats) cost *= 1.25;
    if (units == 1 || cost < least) {
      least = cost;
      best = {row_parts, units};
    }
  }
  return best;
}

// The next rows to take from `low` on: from a multiple of kRows a group, else up to the
// next multiple, so that tiles are cut alike however many threads share the rows.
inline int64_t group_rows(int64_t low, int64_t end) {
  return min(low % kRows ? kRows - low % kRows : kGroupRows, end - low);
}

// Brings the units of a panel into the cache while a product runs: the rows of a step
// lie pages apart, which no processor foresees.
template <bool kWrite>
inline void prefetch(const float* from, int64_t floats) {
  for (int64_t i = 0; i < floats; i += 16) __builtin_prefetch(from + i, kWrite, 2);
}

// A step's product: c (rows, count * kPanel), rows of stride ldc, = [c +] a (rows, depth)
// times panels b[0 .. count), each (depth, kPanel), the last one first if `back`; rows up
// to kGroupRows.
inline void step_product(int64_t rows, int64_t depth, const float* a, int64_t lda,
                         const float* b, int64_t panel_stride, int count, bool back,
                         float* c, int64_t ldc, bool add) {
  for (int64_t k = 0; k < depth; k += kDepth) {
    int64_t piece = min(kDepth, depth - k);
    for (int i = 0; i < count; ++i) {
      const int p = back ? count - 1 - i : i;
      for (int64_t r = 0; r < rows; r += kRows)
        tile<false>(min(kRows, rows - r), piece, a + r * lda + k, lda,
                    b + p * panel_stride + k * kPanel, c + r * ldc + p * kPanel, ldc,
                    add || k > 0);
    }
  }
}

}  // namespace
}  // namespace bptt
