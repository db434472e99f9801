// One variant of the kernels: this file is compiled once for each, with the compiler's
// flags for its processors and BPTT_VARIANT as its name.
#include "backward.h"
#include "forward.h"
#include "product.h"

namespace bptt {
namespace {

constexpr int64_t kBlock = 64;  // rows whose sum is formed before it joins the rest

bool column_sums(Team& team, int64_t m, int64_t n, const float* a, int64_t lda,
                 float* sums) {
  auto work = [&](int part) {
    Range columns = share(n, kPanel, part, team.size());
    for (int64_t j = columns.begin; j < columns.end; j += kPanel) {
      int64_t width = min(kPanel, columns.end - j);
      float total[kPanel] = {};
      for (int64_t i = 0; i < m; i += kBlock) {
        float block[kPanel] = {};
        for (int64_t r = i; r < min(m, i + kBlock); ++r)
          if (width == kPanel)
            for (int64_t v = 0; v < kPanel; v += kLanes)
              store(block + v, load(block + v) + load(a + r * lda + j + v));
          else
            for (int64_t v = 0; v < width; ++v) block[v] += a[r * lda + j + v];
        for (int64_t v = 0; v < kPanel; ++v) total[v] += block[v];
      }
      std::memcpy(sums + j, total, static_cast<size_t>(width) * sizeof(float));
    }
  };
  parallel(team, work);
  return true;
}

void add_rows(Team& team, int64_t m, int64_t n, const float* a, int64_t lda,
              const int64_t* ids, float* table) {
  auto work = [&](int part) {
    Range columns = share(n, kLanes, part, team.size());
    for (int64_t i = 0; i < m; ++i) {
      const float* from = a + i * lda;
      float* to = table + ids[i] * n;
      int64_t j = columns.begin;
      for (; j + kLanes <= columns.end; j += kLanes)
        store(to + j, load(to + j) + load(from + j));
      for (; j < columns.end; ++j) to[j] += from[j];
    }
  };
  parallel(team, work);
}

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
    BPTT_STRING(BPTT_VARIANT), product,  forward,  backward,
    column_sums,               add_rows, transpose};

}  // namespace bptt
