#include "padded.h"

#include <algorithm>
#include <numeric>
#include <vector>

#include "steps.h"
#include "threads.h"

namespace bptt {
namespace {

int64_t place_at(const Padded& p, const Steps& s, int64_t t, int64_t b) {
  return p.batch_first ? p.order[b] * p.time + t : t * s.batch + p.order[b];
}

}  // namespace

void sort_rows(const int64_t* lengths, int64_t batch, int64_t* order, int64_t* inverse,
               int64_t* sizes, int64_t* offsets) {
  std::iota(order, order + batch, 0);
  std::stable_sort(order, order + batch,
                   [&](int64_t a, int64_t b) { return lengths[a] > lengths[b]; });
  for (int64_t b = 0; b < batch; ++b) inverse[order[b]] = b;
  offsets[0] = 0;
  int64_t t = 0;
  for (int64_t rows = batch; rows > 0; --rows)
    for (; t < lengths[order[rows - 1]]; ++t) {
      sizes[t] = rows;
      offsets[t + 1] = offsets[t] + rows;
    }
}

bool fits(const Padded& p, const Steps& s) {
  if (p.time < s.time) return false;
  std::vector<bool> taken(static_cast<size_t>(s.batch));
  for (int64_t b = 0; b < s.batch; ++b) {
    if (p.order[b] < 0 || p.order[b] >= s.batch) return false;
    const auto row = static_cast<size_t>(p.order[b]);
    if (taken[row]) return false;
    taken[row] = true;
  }
  return true;
}

void find_places(const Padded& p, const Steps& s, int64_t* places) {
  // Where each row begins, and from there on one step after another.
  std::vector<int64_t> first(static_cast<size_t>(s.batch));
  for (int64_t b = 0; b < s.batch; ++b)
    first[static_cast<size_t>(b)] = place_at(p, s, 0, b);
  int64_t apart = p.batch_first ? 1 : s.batch;
  if (p.backwards) {
    for (int64_t t = 0, b = s.batch; t < s.time; ++t) {
      const int64_t after = t + 1 < s.time ? rows_at(s, t + 1) : 0;
      while (b > after) first[static_cast<size_t>(--b)] += t * apart;
    }
    apart = -apart;
  }
  for (int64_t t = 0; t < s.time; ++t) {
    int64_t* at = places + begin_of(s, t);
    const int64_t rows = rows_at(s, t);
    for (int64_t b = 0; b < rows; ++b) at[b] = first[static_cast<size_t>(b)] + t * apart;
  }
}

void clear_padding(Team& team, const Padded& p, const Steps& s, int64_t width,
                   float* to) {
  // A tenth of a millisecond of one thread.
  constexpr int64_t kWorthWaking = 1 << 18;
  const int64_t padding = (p.time * s.batch - begin_of(s, s.time)) * width;
  const int parts = padding < kWorthWaking ? 1 : team.size();
  auto work = [&](int part) {
    const int64_t first = p.time * part / parts, last = p.time * (part + 1) / parts;
    for (int64_t t = first; t < last; ++t)
      for (int64_t b = t < s.time ? rows_at(s, t) : 0; b < s.batch; ++b)
        std::fill_n(to + place_at(p, s, t, b) * width, width, 0.0f);
  };
  auto call = [](void* context, int part) {
    (*static_cast<decltype(work)*>(context))(part);
  };
  if (parts == 1)
    work(0);
  else
    team.run(call, &work);
}

}  // namespace bptt
