// Which rows have which steps. Private to each file that includes it, see simd.h.
#pragma once

#include <cstring>

#include "kernels.h"

namespace bptt {
namespace {

// Where the rows of step t begin; t may be `time`.
inline int64_t begin_of(const Steps& s, int64_t t) {
  return s.offsets ? s.offsets[t] : t * s.batch;
}

// Where row `row` of all stands.
inline int64_t place_of(Places places, int64_t row) {
  return places ? places[row] : row;
}

// How many rows have step t: the first of those that have the step before.
inline int64_t rows_at(const Steps& s, int64_t t) {
  return s.offsets ? s.offsets[t + 1] - s.offsets[t] : s.batch;
}

// Whether the state of row b is zeroed before step t.
inline bool is_reset(const Steps& s, int64_t t, int64_t b) {
  return s.resets && s.resets[begin_of(s, t) + b];
}

// Whether the state before a step is just the state that the step before left, row by
// row as they lie.
inline bool is_plain(const Steps& s) { return !s.offsets && !s.resets; }

// Where in h (batch + rows, hidden), which begins with the initial states, the states
// before step t begin if none is reset.
inline int64_t row_before(const Steps& s, int64_t t) {
  return t ? s.batch + begin_of(s, t - 1) : 0;
}

// Whether those of the steps [first, last) lie there one after another, as their rows do.
inline bool lie_in_a_row(const Steps& s, int64_t first, int64_t last) {
  return rows_at(s, first ? first - 1 : 0) == rows_at(s, last - 1);
}

// to (rows) = where in h (batch + rows, hidden), as below, the state before each of the
// steps [first, last) stands if none is reset, of part `part` of the steps.
inline void places_before(const Steps& s, int64_t first, int64_t last, int part,
                          int parts, int64_t* to) {
  const int64_t origin = begin_of(s, first), count = last - first;
  for (int64_t t = first + count * part / parts;
       t < first + count * (part + 1) / parts; ++t)
    for (int64_t b = 0; b < rows_at(s, t); ++b)
      to[begin_of(s, t) - origin + b] = row_before(s, t) + b;
}

// to (rows, hidden) = the state before each of the steps [first, last), of part `part`
// of the rows; h (batch + rows, hidden) begins with the initial states.
inline void states_before(const Steps& s, int64_t first, int64_t last, const float* h,
                          int64_t hidden, int part, int parts, float* to) {
  const int64_t origin = begin_of(s, first);
  for (int64_t t = first; t < last; ++t) {
    const int64_t rows = rows_at(s, t), begin = begin_of(s, t);
    const float* from = h + row_before(s, t) * hidden;
    for (int64_t b = rows * part / parts; b < rows * (part + 1) / parts; ++b) {
      float* row = to + (begin - origin + b) * hidden;
      const size_t bytes = static_cast<size_t>(hidden) * sizeof(float);
      if (is_reset(s, t, b))
        std::memset(row, 0, bytes);
      else
        std::memcpy(row, from + b * hidden, bytes);
    }
  }
}

}  // namespace
}  // namespace bptt
