// How the rows and units of a loop through time are divided among threads, and what the
// others do meanwhile.
#pragma once

#include "product.h"
#include "tape.h"

namespace bptt {
namespace {

// Rows whose products with a panel follow each other, while that panel's piece is in
// the first-level cache.
constexpr int64_t kGroupRows = 4 * kRows;
// A thread that holds whole rows reads all recurrent weights at every step, so they
// should fit its second-level cache.
constexpr int64_t kResidentFloats = 192 * 1024;

// Whether panels of so many floats, read at every step, come from beyond that cache.
inline bool is_far(Range panels, int64_t floats) {
  return (panels.end - panels.begin) * floats > kResidentFloats;
}

// Helpers get their work in no fewer parts than this, if each has a few tiles.
constexpr int64_t kTimesHelped = 4;
constexpr int64_t kLeastHelped = 3 * kRows;

constexpr int kMostRowParts = 256;
// Groups of threads that divide the units of the same rows.
constexpr int kMostGroups = 16;

// The threads of the loop: those that hold different rows never wait for each other,
// and those that divide the units of the same rows meet at a barrier a step, but each
// keeps its share of the weights in its cache. The rest are helpers: they do what can be
// done for many steps at once, before the loop comes there or after it.
struct Division {
  int row_parts, unit_parts;
  double step;  // what a step costs each of them, in multiplications
  int64_t cuts[kMostRowParts + 1];  // where the rows of each part begin, and their end

  int threads() const { return row_parts * unit_parts; }
  Range rows(int part) const {
    return {cuts[part / unit_parts], cuts[part / unit_parts + 1]};
  }
  int64_t most_rows() const {
    int64_t most = 0;
    for (int i = 0; i < row_parts; ++i) most = max(most, cuts[i + 1] - cuts[i]);
    return most;
  }
  Range panels(int part, int64_t panels) const {
    return share(panels, 1, part % unit_parts, unit_parts);
  }
};

// The steps, over all kRows rows from `block` on, that have any of those rows.
inline int64_t steps_of_block(const Steps& s, int64_t block) {
  int64_t low = 0, high = s.time;  // steps that have the block's first row
  while (low < high) {
    const int64_t middle = (low + high) / 2;
    if (rows_at(s, middle) > block * kRows)
      low = middle + 1;
    else
      high = middle;
  }
  return low;
}

// Cuts the rows of a batch that is alike in all steps into equal parts.
inline void cut_equally(Division& division, int64_t rows) {
  for (int i = 0; i < division.row_parts; ++i) {
    const Range part = share(rows, kRows, i, division.row_parts);
    division.cuts[i] = part.begin;
    division.cuts[i + 1] = part.end;
  }
}

// Cuts the rows of a ragged batch, the longest first, into parts of much the same work;
// returns the largest part's share of the steps of the longest row.
inline double cut_by_work(Division& division, const Steps& s) {
  const int64_t blocks = ceil_div(s.batch, kRows);
  int64_t all = 0;
  for (int64_t block = 0; block < blocks; ++block) all += steps_of_block(s, block);
  int64_t block = 0, done = 0, most = 0;
  for (int i = 0; i < division.row_parts; ++i) {
    const int64_t from = done;
    division.cuts[i] = block * kRows;
    // The block that crosses the part's end goes to whichever side it fits better.
    for (int64_t next; block < blocks; ++block, done += next) {
      next = steps_of_block(s, block);
      if ((done + next / 2) * division.row_parts >= all * (i + 1)) break;
    }
    division.cuts[i + 1] = min(block * kRows, s.batch);
    most = max(most, done - from);
  }
  return static_cast<double>(most) / static_cast<double>(s.time);
}

// weights: floats that a row's step multiplies with; width: its pre-activations; passes:
// of a truncation, each with the rows of all steps, side by side; aside: multiplications
// for a step of all rows that helpers can do.
inline Division divide(Team& team, const Steps& steps, int64_t passes, int64_t panels,
                       int64_t weights, int64_t width, int64_t aside) {
  const int threads = team.size();
  const int64_t rows = passes * steps.batch;
  const bool ragged = steps.offsets && passes == 1;
  // All costs are in the multiplications that take as long, of which a nanosecond has
  // about this many.
  constexpr double kPerNanosecond = 5 * kLanes;
  // The cell's arithmetic for a pre-activation.
  constexpr double kArithmetic = 100;
  // Reading the weights takes as long as multiplying them with so many rows.
  constexpr double kLeastRows = 3;
  // Pre-activations that go from thread to thread in the time of a meeting.
  constexpr double kHandedOver = 8192;
  int64_t blocks = ceil_div(rows, kRows);
  Division best{1, 1, 0, {}};
  double least = 0;
  const double meeting =
      threads > 1 && panels > 1 ? team.meeting() * kPerNanosecond : 0;
  for (int units = 1; units <= threads && units <= panels; ++units) {
    int row_parts =
        static_cast<int>(min(threads / units, min(blocks, units > 1 ? kMostGroups
                                                                    : kMostRowParts)));
    Division candidate{row_parts, units, 0, {}};
    double share = static_cast<double>(ceil_div(blocks, row_parts));
    if (ragged)
      share = cut_by_work(candidate, steps);
    else
      cut_equally(candidate, rows);
    double height = share * kRows;
    if (blocks == 1) height = static_cast<double>(rows);
    double step = height < kLeastRows ? kLeastRows : height;
    step *= static_cast<double>(weights);
    if (weights / units > kResidentFloats) step *= 1.25;
    step += height * kArithmetic * static_cast<double>(width);
    step *= static_cast<double>(ceil_div(panels, units)) / static_cast<double>(panels);
    if (units > 1) step = step * 1.1 + meeting;
    // Helpers do what is left aside, and scanners their part of it if it takes longer.
    double cost = step + static_cast<double>(aside) / threads;
    if (aside && candidate.threads() < threads) {
      step += height * static_cast<double>(width) * meeting / kHandedOver;
      cost = (step * candidate.threads() + static_cast<double>(aside)) / threads;
      if (cost < step) cost = step;
    }
    candidate.step = step;
    if (units == 1 || cost < least) {
      least = cost;
      best = candidate;
    }
  }
  return best;
}

// The next rows to take from `low` on: from a multiple of kRows a group, else up to the
// next multiple, so that tiles are cut alike however many threads share the rows.
inline int64_t group_rows(int64_t low, int64_t end) {
  return min(low % kRows ? kRows - low % kRows : kGroupRows, end - low);
}

// A step's product: c (rows, count * kPanel), rows of stride ldc, = [c +] a (rows, depth)
// times panels b[0 .. count), each (depth, kPanel), the last one first if `back`; rows up
// to kGroupRows. `next`: the panel that will be read after these, if they come from
// beyond the second-level cache, else null.
inline void step_product(int64_t rows, int64_t depth, const float* a, int64_t lda,
                         const float* b, int64_t panel_stride, int count, bool back,
                         float* c, int64_t ldc, bool add, const float* next) {
  for (int64_t k = 0; k < depth; k += kDepth) {
    int64_t piece = min(kDepth, depth - k);
    for (int i = 0; i < count; ++i) {
      const int p = back ? count - 1 - i : i;
      const float* from = b + p * panel_stride + k * kPanel;
      const float* after = next;
      if (i + 1 < count)
        after = from + (back ? -panel_stride : panel_stride);
      else if (k + kDepth < depth)
        after = b + (back ? count - 1 : 0) * panel_stride + (k + kDepth) * kPanel;
      for (int64_t r = 0; r < rows; r += kRows) {
        const int64_t height = min(kRows, rows - r);
        const float* left = a + r * lda + k;
        float* to = c + r * ldc + p * kPanel;
        const int64_t part = r / kRows * piece * kFetched;
        if (next && part < piece * kPanel)
          tile<false, true>(height, piece, left, lda, from, to, ldc, add || k > 0,
                            after + part);
        else
          tile<false>(height, piece, left, lda, from, to, ldc, add || k > 0);
      }
    }
  }
}

}  // namespace
}  // namespace bptt
