// One variant of the kernels: this file is compiled once for each, with the compiler's
// flags for its processors and BPTT_VARIANT as its name.
#include "backward.h"
#include "forward.h"
#include "gradients.h"
#include "lag.h"

namespace bptt {
namespace {

void transpose(Team& team, int64_t m, int64_t n, const float* from, float* to) {
  constexpr int64_t kTile = 32;
  auto work = [&](int part) {
    Range rows = share(m, kTile, part, team.size());
    for (int64_t i = rows.begin; i < rows.end; i += kTile)
      for (int64_t j = 0; j < n; j += kTile) {
        int64_t height = min(kTile, rows.end - i), width = min(kTile, n - j);
        int64_t r = 0;
        for (; r + 4 <= height; r += 4) {
          int64_t c = 0;
          for (; c + 4 <= width; c += 4)
            transpose_four(from + (i + r) * n + j + c, n, to + (j + c) * m + i + r, m);
          for (; c < width; ++c)
            for (int64_t k = 0; k < 4; ++k)
              to[(j + c) * m + i + r + k] = from[(i + r + k) * n + j + c];
        }
        for (; r < height; ++r)
          for (int64_t c = 0; c < width; ++c)
            to[(j + c) * m + i + r] = from[(i + r) * n + j + c];
      }
  };
  parallel(team, work);
}

}  // namespace

#define BPTT_STRING_(name) #name
#define BPTT_STRING(name) BPTT_STRING_(name)
#define BPTT_JOIN_(prefix, name) prefix##name
#define BPTT_JOIN(prefix, name) BPTT_JOIN_(prefix, name)

extern const Kernels BPTT_JOIN(kernels_, BPTT_VARIANT);
const Kernels BPTT_JOIN(kernels_, BPTT_VARIANT) = {
    BPTT_STRING(BPTT_VARIANT), tape_floats, forward, backward, gradients,
    packed_floats, back_lag, transpose};

}  // namespace bptt
