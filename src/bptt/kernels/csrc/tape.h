// What the gated cells remember of a step, in the order in which the loops read it: the
// units of a panel for one row side by side, the rows of a step after each other.
#pragma once

#include "pack.h"
#include "steps.h"

namespace bptt {
namespace {

// Blocks of kPanel floats for a row of a panel: LSTM i f g o, tanh c, c before the step;
// GRU r z n, W_n h + b_hn, h before the step.
constexpr int tape_blocks(Cell cell) {
  return cell == Cell::kLstm ? 6 : cell == Cell::kGru ? 5 : 0;
}

// Where the blocks of a step, panel and row begin.
inline int64_t tape_at(Cell cell, int64_t panels, const Steps& steps, int64_t t,
                       int64_t u, int64_t row) {
  return (begin_of(steps, t) * panels + u * rows_at(steps, t) + row) *
         tape_blocks(cell) * kPanel;
}

inline int64_t tape_floats(Cell cell, int64_t rows, int64_t hidden) {
  return rows * ceil_div(hidden, kPanel) * tape_blocks(cell) * kPanel;
}

}  // namespace
}  // namespace bptt
