// How the rows and units of a loop through time are divided among threads, and what the
// others do meanwhile.
#pragma once

#include "product.h"
#include "tape.h"

namespace bptt {
namespace {

// Rows whose products with a panel follow each other, while that panel's piece is in
// the first-level cache.
constexpr int64_t kGroupRows = 32;
// Threads that hold different rows have about so many, or the weights that each of them
// reads would be used too little.
constexpr int64_t kPartRows = 8;
// Whether panels of so many floats, read at every step, are asked for ahead: some of
// them come from beyond a thread's second-level cache, which holds more than weights.
inline bool is_far(Range panels, int64_t floats) {
  constexpr int64_t kNearFloats = 192 * 1024;
  return (panels.end - panels.begin) * floats > kNearFloats;
}

// Helpers get their work in no fewer parts than this, if each has a few tiles.
constexpr int64_t kTimesHelped = 4;
constexpr int64_t kLeastHelped = 3 * kPartRows;

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

// The steps, over all kPartRows rows from `block` on, that have any of those rows.
inline int64_t steps_of_block(const Steps& s, int64_t block) {
  int64_t low = 0, high = s.time;  // steps that have the block's first row
  while (low < high) {
    const int64_t middle = (low + high) / 2;
    if (rows_at(s, middle) > block * kPartRows)
      low = middle + 1;
    else
      high = middle;
  }
  return low;
}

// Cuts the rows of a batch that is alike in all steps into equal parts.
inline void cut_equally(Division& division, int64_t rows) {
  for (int i = 0; i < division.row_parts; ++i) {
    const Range part = share(rows, 1, i, division.row_parts);
    division.cuts[i] = part.begin;
    division.cuts[i + 1] = part.end;
  }
}

// Cuts the rows of a ragged batch, the longest first, into parts of much the same work;
// returns the largest part's share of the steps of the longest row.
inline double cut_by_work(Division& division, const Steps& s) {
  const int64_t blocks = ceil_div(s.batch, kPartRows);
  int64_t all = 0;
  for (int64_t block = 0; block < blocks; ++block) all += steps_of_block(s, block);
  int64_t block = 0, done = 0, most = 0;
  for (int i = 0; i < division.row_parts; ++i) {
    const int64_t from = done;
    division.cuts[i] = block * kPartRows;
    // The block that crosses the part's end goes to whichever side it fits better.
    for (int64_t next; block < blocks; ++block, done += next) {
      next = steps_of_block(s, block);
      if ((done + next / 2) * division.row_parts >= all * (i + 1)) break;
    }
    division.cuts[i + 1] = min(block * kPartRows, s.batch);
    most = max(most, done - from);
  }
  return static_cast<double>(most) / static_cast<double>(s.time);
}

// What the loop is that threads divide.
struct Loop {
  int64_t passes;   // of a truncation, each with the rows of all steps, side by side
  int64_t panels;
  int64_t weights;  // floats that a row's step multiplies with
  int64_t read;     // floats of the row that it multiplies them with
  int64_t width;    // its pre-activations
  int64_t aside;    // multiplications for a step of all rows that helpers can do
  double idle;      // the share of the steps before there is any of that to do
};

inline Division divide(Team& team, const Steps& steps, const Loop& loop) {
  const int threads = team.size();
  const int64_t rows = loop.passes * steps.batch, panels = loop.panels;
  const bool ragged = steps.offsets && loop.passes == 1;
  const auto weights = static_cast<double>(loop.weights);
  const auto aside = static_cast<double>(loop.aside);
  // All costs are in the multiplications that take as long, of which a nanosecond has
  // about this many. (This and what follows: fitted to 77 loops divided both ways.)
  constexpr double kPerNanosecond = 3 * kLanes;
  // The cell's arithmetic for a pre-activation.
  constexpr double kArithmetic = 45;
  // Reading weights takes as long as multiplying them with so many rows, if all of them
  // come from the second-level cache, and from beyond it.
  constexpr double kLeastRows = 3, kFarRows = 7;
  // Reading a float that another thread has just written.
  constexpr double kForeign = kPerNanosecond;
  // Of the time in which helpers have nothing to do, what others can't make up for.
  constexpr double kLost = 0.7;
  int64_t blocks = ceil_div(rows, kPartRows);
  Division best{1, 1, 0, {}};
  double least = 0;
  const double meeting =
      threads > 1 && panels > 1 ? team.meeting() * kPerNanosecond : 0;
  for (int units = 1; units <= threads && units <= panels; ++units) {
    int row_parts =
        static_cast<int>(min(threads / units, min(blocks, units > 1 ? kMostGroups
                                                                    : kMostRowParts)));
    Division candidate{row_parts, units, 0, {}};
    auto height = static_cast<double>(ceil_div(rows, row_parts));
    if (!ragged)
      cut_equally(candidate, rows);
    else if (double blocks_of_steps = cut_by_work(candidate, steps); blocks > 1)
      height = blocks_of_steps * kPartRows;
    const double near = static_cast<double>(cached_floats() * units) / weights;
    const double least_rows =
        near < 1 ? kFarRows + (kLeastRows - kFarRows) * near : kLeastRows;
    double step = weights * (height < least_rows ? least_rows : height);
    step += height * kArithmetic * static_cast<double>(loop.width);
    step *= static_cast<double>(ceil_div(panels, units)) / static_cast<double>(panels);
    if (units > 1) {
      const auto read = static_cast<double>(loop.read);
      step += meeting + height * kForeign * read * (units - 1) / units;
    }
    // Helpers do what is left aside, and scanners their part of it if it takes longer.
    double cost = step + aside / threads;
    if (loop.aside && candidate.threads() < threads) {
      const double helpers = threads - candidate.threads();
      cost = (step * candidate.threads() + aside + kLost * loop.idle * step * helpers) /
             threads;
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

// How many panels from u on a tile takes, of those before `end`.
inline int tile_panels(int64_t u, int64_t end) {
  return static_cast<int>(min(kTilePanels, end - u));
}

// The order in which a step reads a thread's panels, so many at a time as tiles take:
// to and fro, for what was read last is still in the cache.
struct Walk {
  int64_t begin, tiles;
  bool back;

  Walk(Range panels, bool from_the_end)
      : begin(panels.begin),
        tiles(ceil_div(panels.end - panels.begin, kTilePanels)),
        back(from_the_end) {}
  int64_t panel(int64_t i) const {
    return begin + (back ? tiles - 1 - i : i) * kTilePanels;
  }
};

// One step's product with some panels of the recurrent weights: c (rows, gates, kPanel)
// of each of them = [c +] a (rows, depth) b (gates, depth, kPanel).
struct StepProduct {
  int64_t rows, depth;  // up to kGroupRows
  const float* a;       // rows of stride lda
  int64_t lda;
  int panels;        // up to kTilePanels
  const float* b;
  int64_t b_stride;  // from a panel to the next
  int gates;
  bool back;         // the last gate first
  float* c;          // rows of stride ldc
  int64_t ldc;
  int64_t c_stride;  // from a panel to the next
  bool add;          // to what c holds
  int split;         // parts_of_sums
  const float* next; // the panels that are read after these, as far apart, if they come
                     // from beyond the second-level cache; else null
};

inline void step_product(const StepProduct& s) {
  // Tiles of much the same height: the lowest would read the most for what they do.
  const int64_t tiles = ceil_div(s.rows, s.panels < kTilePanels ? kMostRows : kRows);
  for (int64_t k = 0; k < s.depth; k += kStepDepth) {
    const int64_t piece = min(kStepDepth, s.depth - k);
    for (int i = 0; i < s.gates; ++i) {
      auto panel = [&](int at, int64_t from) {
        return s.b + (s.back ? s.gates - 1 - at : at) * s.depth * kPanel + from * kPanel;
      };
      const int gate = s.back ? s.gates - 1 - i : i;
      const float* after = i + 1 < s.gates           ? panel(i + 1, k)
                           : k + kStepDepth < s.depth ? panel(0, k + kStepDepth)
                                                      : s.next;
      for (int64_t tile_at = 0; tile_at < tiles; ++tile_at) {
        const int64_t low = s.rows * tile_at / tiles;
        const int64_t height = s.rows * (tile_at + 1) / tiles - low;
        const float* left = s.a + low * s.lda + k;
        const Columns columns{panel(i, k), s.b_stride, s.c + low * s.ldc + gate * kPanel,
                              s.ldc, s.c_stride, s.add || k > 0};
        const int64_t fetched = tile_at * piece * kFetched;
        if (s.next && fetched < piece * kPanel)
          tile<false, true>(height, s.panels, piece, left, s.lda, columns, s.split,
                            after + fetched);
        else
          tile<false>(height, s.panels, piece, left, s.lda, columns, s.split);
      }
    }
  }
}

}  // namespace
}  // namespace bptt
