// Copies of matrices in the order in which tiles read them.
#pragma once

#include "kernels.h"
#include "micro.h"
#include "scratch.h"

namespace bptt {
namespace {

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Brings floats into the cache while something else runs: rows that lie pages apart, or
// in an order of their own, are foreseen by no processor.
template <bool kWrite>
inline void prefetch(const float* from, int64_t floats) {
  for (int64_t i = 0; i < floats; i += 16) __builtin_prefetch(from + i, kWrite, 2);
}

// How many rows ahead of the one that is packed.
constexpr int64_t kRowsAhead = 16;

// Rows that tiles read side by side must not be a power of two apart, or they would
// all want the same lines of the cache.
inline int64_t padded_stride(int64_t columns) {
  return ceil_div(columns, kLanes) * kLanes + 16;
}

typedef float Four __attribute__((vector_size(16)));
typedef float UnalignedFour __attribute__((vector_size(16), aligned(4), may_alias));

// to[k * step + i] = rows[i][at + k] for i, k < 4.
inline void transpose_four(const float* const* rows, int64_t at, float* to,
                           int64_t step) {
  Four a = *reinterpret_cast<const UnalignedFour*>(rows[0] + at);
  Four b = *reinterpret_cast<const UnalignedFour*>(rows[1] + at);
  Four c = *reinterpret_cast<const UnalignedFour*>(rows[2] + at);
  Four d = *reinterpret_cast<const UnalignedFour*>(rows[3] + at);
  Four ab_low{a[0], b[0], a[1], b[1]}, ab_high{a[2], b[2], a[3], b[3]};
  Four cd_low{c[0], d[0], c[1], d[1]}, cd_high{c[2], d[2], c[3], d[3]};
  *reinterpret_cast<UnalignedFour*>(to) =
      Four{ab_low[0], ab_low[1], cd_low[0], cd_low[1]};
  *reinterpret_cast<UnalignedFour*>(to + step) =
      Four{ab_low[2], ab_low[3], cd_low[2], cd_low[3]};
  *reinterpret_cast<UnalignedFour*>(to + 2 * step) =
      Four{ab_high[0], ab_high[1], cd_high[0], cd_high[1]};
  *reinterpret_cast<UnalignedFour*>(to + 3 * step) =
      Four{ab_high[2], ab_high[3], cd_high[2], cd_high[3]};
}

// to[k * step + i] = from[i * ld + k] for i, k < 4.
inline void transpose_four(const float* from, int64_t ld, float* to, int64_t step) {
  const float* const rows[] = {from, from + ld, from + 2 * ld, from + 3 * ld};
  transpose_four(rows, 0, to, step);
}

// to[k * step + i] = rows[i][at + k] for k < 4, i < 2.
inline void transpose_two(const float* const* rows, int64_t at, float* to, int64_t step) {
  Four a = *reinterpret_cast<const UnalignedFour*>(rows[0] + at);
  Four b = *reinterpret_cast<const UnalignedFour*>(rows[1] + at);
  const Four low{a[0], b[0], a[1], b[1]}, high{a[2], b[2], a[3], b[3]};
  constexpr size_t kTwo = 2 * sizeof(float);
  std::memcpy(to, &low, kTwo);
  std::memcpy(to + step, reinterpret_cast<const char*>(&low) + kTwo, kTwo);
  std::memcpy(to + 2 * step, &high, kTwo);
  std::memcpy(to + 3 * step, reinterpret_cast<const char*>(&high) + kTwo, kTwo);
}

// to (depth, Width): to[k][i] = rows[i][k] for i < count, else 0. In blocks of depth, so
// that the lines of `to` are in the first-level cache until all rows have been to them.
template <int Width>
void pack_across(const float* const* rows, int64_t count, int64_t depth, float* to) {
  constexpr int64_t kBlock = 64;
  for (int64_t begin = 0; begin < depth; begin += kBlock) {
    const int64_t end = min(depth, begin + kBlock);
    int64_t i = 0;
    for (; i + 4 <= count; i += 4) {
      int64_t k = begin;
      for (; k + 4 <= end; k += 4)
        transpose_four(rows + i, k, to + k * Width + i, Width);
      for (; k < end; ++k)
        for (int j = 0; j < 4; ++j) to[k * Width + i + j] = rows[i + j][k];
    }
    if (Width % 4 == 2 && i + 2 <= count) {
      int64_t k = begin;
      for (; k + 4 <= end; k += 4) transpose_two(rows + i, k, to + k * Width + i, Width);
      for (; k < end; ++k)
        for (int j = 0; j < 2; ++j) to[k * Width + i + j] = rows[i + j][k];
      i += 2;
    }
    for (; i < count; ++i)
      for (int64_t k = begin; k < end; ++k) to[k * Width + i] = rows[i][k];
    for (; i < Width; ++i)
      for (int64_t k = begin; k < end; ++k) to[k * Width + i] = 0;
  }
}

// Panels of (depth, kPanel) one after another: to[p][k][i] = from[places[k] * ld + j] for
// j = p * kPanel + i < width, else 0. Row by row, so that each is read at once; `places`
// go on as far as `all`.
inline void pack_placed(const float* from, Places places, int64_t all, int64_t ld,
                        int64_t width, int64_t depth, float* to) {
  constexpr int64_t kAhead = 32;  // rows, while which the memory answers
  for (int64_t k = 0; k < depth; ++k) {
    if (k + kAhead < all) prefetch<false>(from + places[k + kAhead] * ld, width);
    const float* row = from + places[k] * ld;
    float* packed = to + k * kPanel;
    int64_t j = 0;
    for (; j + kPanel <= width; j += kPanel, packed += depth * kPanel)
      for (int i = 0; i < kPanel; i += kLanes) store(packed + i, load(row + j + i));
    for (int64_t i = 0; j < width && i < kPanel; ++i)
      packed[i] = j + i < width ? row[j + i] : 0;
  }
}

// to (depth, Width): to[k][i] = from[i * across + k * along] for i < count, else 0.
template <int Width>
void pack(const float* from, int64_t across, int64_t along, int64_t count,
          int64_t depth, float* to) {
  if (across == 1 && count == Width) {
    for (int64_t k = 0; k < depth; ++k)
      std::memcpy(to + k * Width, from + k * along, Width * sizeof(float));
    return;
  }
  if (across == 1) {
    for (int64_t k = 0; k < depth; ++k)
      for (int i = 0; i < Width; ++i)
        to[k * Width + i] = i < count ? from[k * along + i] : 0;
    return;
  }
  if (along == 1) {
    const float* rows[Width];
    for (int64_t i = 0; i < count; ++i) rows[i] = from + i * across;
    pack_across<Width>(rows, count, depth, to);
    return;
  }
  int64_t i = 0;
  for (; i < count; ++i)
    for (int64_t k = 0; k < depth; ++k)
      to[k * Width + i] = from[i * across + k * along];
  for (; i < Width; ++i)
    for (int64_t k = 0; k < depth; ++k) to[k * Width + i] = 0;
}

}  // namespace
}  // namespace bptt
