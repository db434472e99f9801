// Copies of matrices in the order in which tiles read them.
#pragma once

#include "kernels.h"
#include "micro.h"
#include "scratch.h"

namespace bptt {
namespace {

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Rows that tiles read side by side must not be a power of two apart, or they would
// all want the same lines of the cache.
inline int64_t padded_stride(int64_t columns) {
  return ceil_div(columns, kLanes) * kLanes + 16;
}

typedef float Four __attribute__((vector_size(16)));
typedef float UnalignedFour __attribute__((vector_size(16), aligned(4), may_alias));

// to[k * step + i] = from[i * ld + k] for i, k < 4.
inline void transpose_four(const float* from, int64_t ld, float* to, int64_t step) {
  Four a = *reinterpret_cast<const UnalignedFour*>(from);
  Four b = *reinterpret_cast<const UnalignedFour*>(from + ld);
  Four c = *reinterpret_cast<const UnalignedFour*>(from + 2 * ld);
  Four d = *reinterpret_cast<const UnalignedFour*>(from + 3 * ld);
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

// to (depth, Width): to[k][i] = from[i * across + k * along] for i < count, else 0.
template <int Width>
void pack(const float* from, int64_t across, int64_t along, int64_t count,
          int64_t depth, float* to) {
  if (across == 1 && count == Width) {
    for (int64_t k = 0; k < depth; ++k)
      for (int i = 0; i < Width; ++i) to[k * Width + i] = from[k * along + i];
    return;
  }
  int64_t i = 0;
  if (along == 1)
    for (; i + 4 <= count; i += 4) {
      int64_t k = 0;
      for (; k + 4 <= depth; k += 4)
        transpose_four(from + i * across + k, across, to + k * Width + i, Width);
      for (; k < depth; ++k)
        for (int j = 0; j < 4; ++j)
          to[k * Width + i + j] = from[(i + j) * across + k];
    }
  for (; i < count; ++i)
    for (int64_t k = 0; k < depth; ++k)
      to[k * Width + i] = from[i * across + k * along];
  for (; i < Width; ++i)
    for (int64_t k = 0; k < depth; ++k) to[k * Width + i] = 0;
}

}  // namespace
}  // namespace bptt
