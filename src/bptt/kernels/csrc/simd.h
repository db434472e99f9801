// Vectors of the variant's width, by the compiler's vector extensions, and the
// functions of the gates on them. Included once per variant, inside its namespace's
// translation unit: nothing here may be shared between variants, or the linker could
// give one processor another one's instructions. Hence no standard library either.
#pragma once

#include <cstdint>
#include <cstring>

namespace bptt {
namespace {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif

typedef float Vec __attribute__((vector_size(kLanes * 4)));
typedef int32_t IntVec __attribute__((vector_size(kLanes * 4)));
typedef float UnalignedVec
    __attribute__((vector_size(kLanes * 4), aligned(4), may_alias));

inline Vec load(const float* p) { return *reinterpret_cast<const UnalignedVec*>(p); }
inline void store(float* p, Vec v) { *reinterpret_cast<UnalignedVec*>(p) = v; }

// The first `count` lanes alone: nothing past them is read or written.
__attribute__((always_inline)) inline Vec load(const float* p, int count) {
  if (count >= kLanes) return load(p);
  float lanes[kLanes] = {};
  std::memcpy(lanes, p, static_cast<size_t>(count) * sizeof(float));
  return load(lanes);
}
__attribute__((always_inline)) inline void store(float* p, Vec v, int count) {
  if (count >= kLanes) return store(p, v);
  float lanes[kLanes];
  store(lanes, v);
  std::memcpy(p, lanes, static_cast<size_t>(count) * sizeof(float));
}

inline Vec splat(float x) { return Vec{} + x; }

// e^x by 2^n e^r with |r| <= ln(2) / 2; relative error below 1e-7. Beyond +-87 it stays
// as there, so that neither it nor its reciprocal is subnormal; NaN stays NaN.
__attribute__((always_inline)) inline Vec exp(Vec x) {
  x = x < -87.0f ? splat(-87.0f) : x;
  x = x > 87.0f ? splat(87.0f) : x;
  const Vec shift = splat(12582912.0f);  // 1.5 * 2^23: adding it rounds to integers
  Vec biased = x * 1.44269504f + shift;
  Vec n = biased - shift;
  Vec r = x - n * 0.693359375f + n * 2.12194440e-4f;
  Vec p = splat(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.0f;
  IntVec power = reinterpret_cast<IntVec>(biased) << 23;  // n, in the exponent's place
  return reinterpret_cast<Vec>(reinterpret_cast<IntVec>(p) + power);
}

__attribute__((always_inline)) inline Vec sigmoid(Vec x) {
  return 1.0f / (1.0f + exp(-x));
}

// Near 0 by an odd polynomial, which keeps the relative precision that
// (1 - e^-2x) / (1 + e^-2x) would lose there. (Coefficients: Moshier, Cephes.)
__attribute__((always_inline)) inline Vec tanh(Vec x) {
  IntVec sign = reinterpret_cast<IntVec>(x) & INT32_MIN;
  Vec a = reinterpret_cast<Vec>(reinterpret_cast<IntVec>(x) ^ sign);
  Vec e = exp(-2.0f * a);
  Vec far = (1.0f - e) / (1.0f + e);
  far = reinterpret_cast<Vec>(reinterpret_cast<IntVec>(far) | sign);
  Vec s = x * x;
  Vec p = splat(-5.70498872745e-3f);
  p = p * s + 2.06390887954e-2f;
  p = p * s - 5.37397155531e-2f;
  p = p * s + 1.33314422036e-1f;
  p = p * s - 3.33332819422e-1f;
  Vec near = p * s * x + x;
  return a < 0.625f ? near : far;
}

// Where nothing else is to be done meanwhile, a call takes less time.
__attribute__((noinline)) inline Vec tanh_apart(Vec x) { return tanh(x); }

}  // namespace
}  // namespace bptt
