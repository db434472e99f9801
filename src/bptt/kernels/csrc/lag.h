// One lag of the way back where every output has a pass of its own (k1 = 1): for those
// who look at each lag's errors, which the loop in backward.h never writes down.
#pragma once

#include "backward.h"

namespace bptt {
namespace {

template <Cell kCell>
class LagScan {
 public:
  explicit LagScan(const LagBack& lag) : g_(lag), steps_{g_.time, g_.batch, nullptr, nullptr} {}

  bool run(Team& team) {
    const int threads = team.size();
    const int64_t each = kGroupRows * ld();  // a thread's deltas
    Scratch<> deltas(threads * each);
    if (!deltas) return false;
    Barrier packed;
    packed.reset(threads);
    auto work = [&](int part) {
      if (g_.W) {
        for (int64_t u = part; u < panels(); u += threads)
          pack_recurrent<kCell>(g_.W + u * kPanel, g_.hidden,
                                min(kPanel, g_.hidden - u * kPanel),
                                g_.packed + u * depth() * kPanel);
        packed.wait();
      }
      const Range rows = share(g_.steps * g_.batch, kPartRows, part, threads);
      float* delta = deltas.get() + part * each;
      for (int64_t low = rows.begin, count; low < rows.end; low += count) {
        count = min(kGroupRows, rows.end - low);
        for (int64_t r = 0; r < count; ++r) through_cell(low + r, delta + r * ld());
        before(low, count, delta);
      }
    };
    parallel(team, work);
    return true;
  }

 private:
  static constexpr int kBlocks = delta_blocks(kCell);
  static constexpr int64_t kRowsLater = 2;  // whose tape is fetched
  static constexpr bool kCarry = kCell == Cell::kGru || kCell == Cell::kLstm;

  int64_t panels() const { return ceil_div(g_.hidden, kPanel); }
  int64_t depth() const { return gates(kCell) * g_.hidden; }
  int64_t ld() const { return padded_stride(kBlocks * g_.hidden); }

  // A row's delta from the error of its state, whose square it sums on the way.
  void through_cell(int64_t row, float* delta) const {
    const int64_t H = g_.hidden, t = row / g_.batch, b = row % g_.batch;
    const float* ds = g_.ds + row * H;
    const int64_t later = min(row + kRowsLater, g_.steps * g_.batch - 1);
    float carry[kPanel], units[kPanel] = {};
    Vec squares{}, squares_c{};
    for (int64_t u = 0; u < panels(); ++u) {
      const int64_t at = u * kPanel, valid = min(kPanel, H - at);
      const size_t bytes = static_cast<size_t>(valid) * sizeof(float);
      std::memcpy(units, ds + at, bytes);
      if (kCell == Cell::kLstm)
        std::memcpy(carry, g_.dc + row * H + at, bytes);
      else if (kCarry)
        std::memset(carry, 0, sizeof carry);
      BackwardRow to{};
      to.hidden = H;
      to.ds = units;
      if constexpr (kCarry) {
        to.tape = g_.tape + tape_at(kCell, panels(), steps_, t, u, b);
        to.carry = carry;
        prefetch<false>(g_.tape + tape_at(kCell, panels(), steps_, later / g_.batch, u,
                                          later % g_.batch),
                        tape_blocks(kCell) * kPanel);
      } else {
        to.h = g_.h + (row + g_.batch) * H + at;
      }
      to.previous = delta + at;
      if (g_.delta) to.delta = g_.delta + row * kBlocks * H + at;
      for (int64_t unit = 0; unit < valid; unit += kLanes) {
        const int first = static_cast<int>(unit);
        const int lanes = static_cast<int>(min(kLanes, valid - unit));
        const Vec d = load(units + unit, lanes);
        squares += d * d;
        if constexpr (kCell == Cell::kLstm) {
          const Vec c = load(carry + unit, lanes);
          squares_c += c * c;
        }
        const bool whole = lanes == kLanes;  // a constant, so that nothing is masked
        if (g_.delta)
          whole ? backward_units<kCell, Sum::kStore>(to, first, kLanes)
                : backward_units<kCell, Sum::kStore>(to, first, lanes);
        else
          whole ? backward_units<kCell, Sum::kNone>(to, first, kLanes)
                : backward_units<kCell, Sum::kNone>(to, first, lanes);
      }
      if (kCell == Cell::kLstm)
        std::memcpy(g_.dc_before + row * H + at, carry, bytes);
      else if (kCarry)
        std::memcpy(g_.ds_before + row * H + at, carry, bytes);
    }
    g_.squares[row] = sum(squares);
    if (kCell == Cell::kLstm) g_.squares_c[row] = sum(squares_c);
  }

  // The errors before the step, of rows that lie in one group.
  void before(int64_t low, int64_t count, const float* delta) const {
    constexpr bool kAdd = kCell == Cell::kGru;  // to what passes by its gate
    const int64_t H = g_.hidden;
    float edge[kGroupRows * kWide];
    StepProduct s{};
    s.rows = count;
    s.depth = depth();
    s.a = delta;
    s.lda = ld();
    s.b_stride = depth() * kPanel;
    s.gates = 1;
    s.c_stride = kPanel;
    s.add = kAdd;
    s.split = parts_of_sums(g_.steps * g_.batch);
    const bool far = is_far({0, panels()}, s.b_stride);
    for (int64_t u = 0; u < panels(); u += kTilePanels) {
      s.panels = tile_panels(u, panels());
      float* to = g_.ds_before + low * H + u * kPanel;
      const int64_t valid = min(s.panels * kPanel, H - u * kPanel);
      const bool direct = valid == s.panels * kPanel;  // to where it belongs at once
      const size_t bytes = static_cast<size_t>(valid) * sizeof(float);
      for (int64_t r = 0; r < count && !direct && kAdd; ++r)
        std::memcpy(edge + r * kWide, to + r * H, bytes);
      s.b = g_.packed + u * s.b_stride;
      s.c = direct ? to : edge;
      s.ldc = direct ? H : kWide;
      if (far)
        s.next = g_.packed + (u + kTilePanels < panels() ? u + kTilePanels : 0) * s.b_stride;
      step_product(s);
      for (int64_t r = 0; r < count && !direct; ++r)
        std::memcpy(to + r * H, edge + r * kWide, bytes);
    }
  }

  const LagBack& g_;
  const Steps steps_;
};

int64_t packed_floats(Cell cell, int64_t hidden) {
  return ceil_div(hidden, kPanel) * kPanel * gates(cell) * hidden;
}

bool back_lag(Team& team, const LagBack& lag) {
  switch (lag.cell) {
    case Cell::kTanh:
      return LagScan<Cell::kTanh>(lag).run(team);
    case Cell::kRelu:
      return LagScan<Cell::kRelu>(lag).run(team);
    case Cell::kGru:
      return LagScan<Cell::kGru>(lag).run(team);
    case Cell::kLstm:
      return LagScan<Cell::kLstm>(lag).run(team);
  }
  return false;
}

}  // namespace
}  // namespace bptt
