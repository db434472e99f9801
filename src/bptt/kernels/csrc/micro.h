// The product of a few rows with a panel of columns, in registers: what all the work
// of this core comes down to. See simd.h for why nothing here is shared.
#pragma once

#include "simd.h"

namespace bptt {
namespace {

// A panel is kPanel columns of a right factor, (depth, kPanel), aligned and padded
// with zeros. A tile is up to kRows rows times one panel or kTilePanels of them, and fits
// the registers: the wider it is, the less is read for each multiplication.
constexpr int kVectors = 2;
constexpr int kPanel = kVectors * kLanes;
constexpr int kTilePanels = kLanes == 16 ? 2 : 1;
constexpr int kRows = kLanes >= 8 ? 6 : 4;
// With one panel alone, and a left factor that is not packed, it may be higher.
constexpr int kMostRows = kLanes == 16 ? 8 : kRows;

// Long sums are taken in pieces of this depth, so that their rounding grows with the
// number of pieces; a piece of a panel stays in the first-level cache meanwhile.
constexpr int64_t kDepth = 256;
// In the loops through time, where fewer rows use a piece, it leaves room for them.
constexpr int64_t kStepDepth = 256 / kTilePanels;

// So many floats of the next panel, a line of the cache, a tile may ask for at each k:
// one that comes from far away then arrives in time, and not all at once.
constexpr int kFetched = kPanel < 16 ? kPanel : 16;

// The right factor of a tile and its result, panel by panel.
struct Columns {
  const float* b;
  int64_t b_stride;  // from a panel to the next
  float* c;
  int64_t ldc;       // from a row to the next
  int64_t c_stride;  // from a panel to the next
  bool add;          // to what c holds
};

// c (rows, panels, kPanel) = [c +] a (rows, depth) b (panels, depth, kPanel).
// a: element (r, k) at a[r * row + k * column]; b: aligned; next: (depth * kFetched) of
// each of the panels that come next, as far apart, which `Fetch` brings into the
// second-level cache.
// `Split` takes the sums of few rows in so many interleaved parts, to keep the multipliers
// busy. A call costs nothing beside a tile, and so the compiler has no choice that would
// depend on its callers.
template <int Rows, int Panels, int Split, bool Packed, bool Fetch>
__attribute__((noinline)) void tile(int64_t depth, const float* a, int64_t row,
                                    const Columns& columns, const float* next) {
  constexpr int kAcross = Panels * kVectors;
  const int64_t column = Packed ? kRows : 1;
  if (Packed) row = 1;
  const float* const b = columns.b;
  const int64_t b_stride = columns.b_stride;
  Vec sums[Split][Rows][kAcross] = {};
  const float* rows[Rows];
  for (int r = 0; r < Rows; ++r) rows[r] = a + r * row;
  auto right_at = [&](int64_t k, int v) {
    return b + v / kVectors * b_stride + k * kPanel + v % kVectors * kLanes;
  };
  auto c_at = [&](int r, int v) {
    return columns.c + r * columns.ldc + v / kVectors * columns.c_stride +
           v % kVectors * kLanes;
  };
  if (Packed && columns.add)  // of large products: they arrive while the sums are formed
    for (int r = 0; r < Rows; ++r)
      for (int v = 0; v < kAcross; ++v) __builtin_prefetch(c_at(r, v), 1);
  int64_t k = 0;
  for (; k + Split <= depth; k += Split) {
#pragma GCC unroll 8
    for (int s = 0; s < Split; ++s) {
      if (Fetch)
        for (int p = 0; p < Panels; ++p)
          __builtin_prefetch(next + p * b_stride + (k + s) * kFetched, 0, 2);
      Vec right[kAcross];
#pragma GCC unroll 4
      for (int v = 0; v < kAcross; ++v)
        right[v] = *reinterpret_cast<const Vec*>(right_at(k + s, v));
#pragma GCC unroll 16
      for (int r = 0; r < Rows; ++r) {
        float left = Packed ? a[(k + s) * column + r] : rows[r][k + s];
#pragma GCC unroll 4
        for (int v = 0; v < kAcross; ++v) sums[s][r][v] += left * right[v];
      }
    }
  }
  for (; Split > 1 && k < depth; ++k)
    for (int r = 0; r < Rows; ++r)
      for (int v = 0; v < kAcross; ++v)
        sums[0][r][v] += rows[r][k] * *reinterpret_cast<const Vec*>(right_at(k, v));
#pragma GCC unroll 16
  for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < kAcross; ++v) {
      Vec sum = sums[0][r][v];
      for (int s = 1; s < Split; ++s) sum += sums[s][r][v];
      float* to = c_at(r, v);
      store(to, columns.add ? load(to) + sum : sum);
    }
}

// In how many parts the sums are taken where all threads together have so few rows:
// which of them fall to a thread must not decide on a result's bits.
inline int parts_of_sums(int64_t all_rows) {
  return all_rows == 1 ? 4 : all_rows == 2 ? 2 : 1;
}

// The same of up to kRows rows and kTilePanels panels, or kMostRows and one.
template <bool Packed, bool Fetch = false>
inline void tile(int64_t rows, int panels, int64_t depth, const float* a, int64_t row,
                 const Columns& columns, int split = 1, const float* next = nullptr) {
  constexpr int P = kTilePanels;
#define BPTT_TILE(R, S)                                                              \
  case R:                                                                            \
    if (P > 1 && panels == P)                                                        \
      return tile<R, P, S, Packed, Fetch && (R > 2)>(depth, a, row, columns, next);  \
    return tile<R, 1, S, Packed, Fetch && (R > 2)>(depth, a, row, columns, next);
  if constexpr (!Packed) {
    if (split == 4) switch (rows) { BPTT_TILE(1, 4) }
    if (split == 2) switch (rows) {
        BPTT_TILE(1, 2)
        BPTT_TILE(2, 2)
      }
  }
  switch (rows) {
    BPTT_TILE(1, 1)
    BPTT_TILE(2, 1)
    BPTT_TILE(3, 1)
    BPTT_TILE(4, 1)
#if defined(__AVX__)
    BPTT_TILE(5, 1)
    BPTT_TILE(6, 1)
#endif
  }
  if constexpr (kMostRows == 8 && !Packed) {
    if (rows == 7) tile<7, 1, 1, Packed, Fetch>(depth, a, row, columns, next);
    if (rows == 8) tile<8, 1, 1, Packed, Fetch>(depth, a, row, columns, next);
  }
#undef BPTT_TILE
}

}  // namespace
}  // namespace bptt
