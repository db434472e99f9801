// Batches as their owners have them: rows in any order, all padded to the same number of
// steps. The loops count the rows of all steps in their own order, and find them there.
#pragma once

#include "kernels.h"

namespace bptt {

struct Padded {
  int64_t time;          // steps of every row, no fewer than the longest row has
  const int64_t* order;  // (batch), row b of a step is the owner's row order[b]
  bool batch_first;      // (batch, time, ...), else (time, batch, ...)
  bool backwards;        // whether a row's steps are counted from its last one on
};

// The rows of a batch sorted by length, the longest first and equal ones as they are.
// order (batch): whose row is row b; inverse (batch): which row is whose row b; sizes
// (longest): how many rows have each step; offsets (longest + 1): where they begin.
void sort_rows(const int64_t* lengths, int64_t batch, int64_t* order, int64_t* inverse,
               int64_t* sizes, int64_t* offsets);

// Whether every row of these steps has a place of its own.
bool fits(const Padded&, const Steps&);

// places (rows) = where the rows of all steps stand.
void find_places(const Padded&, const Steps&, int64_t* places);

// to (time, batch, width), or batch first: zeros where a row has ended.
void clear_padding(Team&, const Padded&, const Steps&, int64_t width, float* to);

}  // namespace bptt
