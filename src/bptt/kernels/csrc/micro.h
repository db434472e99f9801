// The product of a few rows with a panel of columns, in registers: what all the work
// of this core comes down to. See simd.h for why nothing here is shared.
#pragma once

#include "simd.h"

namespace bptt {
namespace {

// A panel is kPanel columns of a right factor, (depth, kPanel), aligned and padded
// with zeros. A tile is up to kRows rows times one panel, and fits the registers.
constexpr int kVectors = 2;
constexpr int kPanel = kVectors * kLanes;
constexpr int kRows = kLanes == 16 ? 8 : kLanes == 8 ? 6 : 4;

// Long sums are taken in pieces of this depth, so that their rounding grows with the
// number of pieces; a piece of a panel stays in the first-level cache meanwhile.
constexpr int64_t kDepth = 256;

// So many floats of the next panel, a line of the cache, a tile may ask for at each k:
// one that comes from far away then arrives in time, and not all at once.
constexpr int kFetched = kPanel < 16 ? kPanel : 16;

// c (rows, kPanel) = [c +] a (rows, depth) b (depth, kPanel).
// a: element (r, k) at a[r * row + k * column]; b: aligned; c: rows of stride ldc; next:
// (depth * kFetched), which `Fetch` brings into the second-level cache.
// Few rows take the sum in `Split` interleaved parts, to keep the multipliers busy;
// not in packed products, where how many rows are left depends on the threads, and the
// bits of a result must not. A call costs nothing beside a tile, and so the compiler has
// no choice that would depend on its callers.
template <int Rows, int Split, bool Packed, bool Fetch>
__attribute__((noinline)) void tile(int64_t depth, const float* a, int64_t row,
                                    const float* b, float* c, int64_t ldc, bool add,
                                    const float* next) {
  const int64_t column = Packed ? kRows : 1;
  if (Packed) row = 1;
  Vec sums[Split][Rows][kVectors] = {};
  const float* rows[Rows];
  for (int r = 0; r < Rows; ++r) rows[r] = a + r * row;
  if (Packed && add)  // of large products: they arrive while the sums are formed
    for (int r = 0; r < Rows; ++r)
      for (int v = 0; v < kVectors; ++v) __builtin_prefetch(c + r * ldc + v * kLanes, 1);
  int64_t k = 0;
  for (; k + Split <= depth; k += Split) {
#pragma GCC unroll 8
    for (int s = 0; s < Split; ++s) {
      if (Fetch) __builtin_prefetch(next + (k + s) * kFetched, 0, 2);
      Vec right[kVectors];
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v)
        right[v] = *reinterpret_cast<const Vec*>(b + (k + s) * kPanel + v * kLanes);
#pragma GCC unroll 16
      for (int r = 0; r < Rows; ++r) {
        float left = Packed ? a[(k + s) * column + r] : rows[r][k + s];
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v) sums[s][r][v] += left * right[v];
      }
    }
  }
  for (; k < depth; ++k)
    for (int r = 0; r < Rows; ++r)
      for (int v = 0; v < kVectors; ++v)
        sums[0][r][v] += (Packed ? a[k * column + r] : rows[r][k]) *
                         *reinterpret_cast<const Vec*>(b + k * kPanel + v * kLanes);
#pragma GCC unroll 16
  for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      Vec sum = sums[0][r][v];
      for (int s = 1; s < Split; ++s) sum += sums[s][r][v];
      float* to = c + r * ldc + v * kLanes;
      store(to, add ? load(to) + sum : sum);
    }
}

template <bool Packed, bool Fetch = false>
inline void tile(int64_t rows, int64_t depth, const float* a, int64_t row,
                 const float* b, float* c, int64_t ldc, bool add,
                 const float* next = nullptr) {
#define BPTT_TILE(R, S) \
  case R:               \
    return tile<R, Packed ? 1 : S, Packed, Fetch && (R > 2)>(depth, a, row, b, c, \
                                                             ldc, add, next);
  switch (rows) {
    BPTT_TILE(1, 4)
    BPTT_TILE(2, 2)
    BPTT_TILE(3, 1)
    BPTT_TILE(4, 1)
#if defined(__AVX__)
    BPTT_TILE(5, 1)
    BPTT_TILE(6, 1)
#endif
#if defined(__AVX512F__)
    BPTT_TILE(7, 1)
    BPTT_TILE(8, 1)
#endif
  }
#undef BPTT_TILE
}

}  // namespace
}  // namespace bptt
