#include <cstring>

#include "kernels.h"

#if defined(__linux__)
#include <unistd.h>
#endif

namespace bptt {

extern const Kernels kernels_baseline;
#if defined(BPTT_X86)
extern const Kernels kernels_avx2;
extern const Kernels kernels_avx512;
#endif

const Kernels* const built_kernels[] = {
#if defined(BPTT_X86)
    &kernels_avx512, &kernels_avx2,
#endif
    &kernels_baseline, nullptr};

bool runs_here([[maybe_unused]] const Kernels& kernels) {
#if defined(BPTT_X86)
  // What x86-64-v4 and x86-64-v3 allow the compiler to use beyond the baseline.
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                    __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2");
  if (!std::strcmp(kernels.name, "avx2")) return avx2;
  if (!std::strcmp(kernels.name, "avx512"))
    return avx2 && __builtin_cpu_supports("avx512f") &&
           __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512cd") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
#endif
  return true;
}

int64_t cached_floats() {
  static const int64_t floats = [] {
    int64_t bytes = 0;
#if defined(_SC_LEVEL2_CACHE_SIZE)
    bytes = sysconf(_SC_LEVEL2_CACHE_SIZE);
#endif
    if (bytes <= 0) bytes = 1 << 20;  // unknown
    return bytes / static_cast<int64_t>(sizeof(float)) * 3 / 4;
  }();
  return floats;
}

}  // namespace bptt
