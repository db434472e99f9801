// A layer forward through time: all steps in one call, one thread team.
#pragma once

#include "schedule.h"

namespace bptt {
namespace {

// The cell's arithmetic for one row and the units of one panel, z (gates, kPanel) being
// the row's W h; gx, h_prev ... point at the panel's first unit, `count` units remain.
struct ForwardRow {
  const float* z;
  const float* gx;
  const float* b_hidden;  // at the panel; or null
  const float* h_prev;    // (hidden) of the step before
  const float* c_prev;
  float* h;
  float* h_copy;  // where the next step's product reads it
  float* c;
  float* gates;   // or null
  float* extra;   // or null
  int64_t hidden;
};

template <Cell kCell>
inline void forward_units(const ForwardRow& row, int at, int lanes) {
  const int64_t H = row.hidden;
  auto z = [&](int gate) { return load(row.z + gate * kPanel + at); };
  auto gx = [&](int gate) { return load(row.gx + gate * H + at, lanes); };
  Vec h;
  if constexpr (kCell == Cell::kTanh) {
    h = tanh(gx(0) + z(0));
  } else if constexpr (kCell == Cell::kRelu) {
    Vec sum = gx(0) + z(0);
    h = sum < 0.0f ? Vec{} : sum;  // so that NaN stays NaN
  } else if constexpr (kCell == Cell::kGru) {
    Vec r = sigmoid(gx(0) + z(0));
    Vec u = sigmoid(gx(1) + z(1));
    Vec gh = z(2);
    if (row.b_hidden) gh += load(row.b_hidden + at, lanes);
    Vec n = tanh(gx(2) + r * gh);
    h = n + u * (load(row.h_prev + at, lanes) - n);
    if (row.gates) {
      store(row.gates + at, r, lanes);
      store(row.gates + H + at, u, lanes);
      store(row.gates + 2 * H + at, n, lanes);
      store(row.extra + at, gh, lanes);
    }
  } else {
    Vec i = sigmoid(gx(0) + z(0));
    Vec f = sigmoid(gx(1) + z(1));
    Vec g = tanh(gx(2) + z(2));
    Vec o = sigmoid(gx(3) + z(3));
    Vec c = f * load(row.c_prev + at, lanes) + i * g;
    Vec tanh_c = tanh(c);
    h = o * tanh_c;
    store(row.c + at, c, lanes);
    if (row.gates) {
      store(row.gates + at, i, lanes);
      store(row.gates + H + at, f, lanes);
      store(row.gates + 2 * H + at, g, lanes);
      store(row.gates + 3 * H + at, o, lanes);
      store(row.extra + at, tanh_c, lanes);
    }
  }
  store(row.h + at, h, lanes);
  if (row.h_copy) store(row.h_copy + at, h, lanes);
}

template <Cell kCell>
class ForwardScan {
 public:
  explicit ForwardScan(const Forward& forward) : f_(forward) {}

  bool run(Team& team) {
    // So few steps do not earn back the packing of W.
    return f_.time * f_.batch <= kUnpackedRows ? run_unpacked(team) : run_packed(team);
  }

 private:
  static constexpr int kGates = gates(kCell);
  static constexpr int64_t kUnpackedRows = 8;

  bool run_packed(Team& team) {
    const int64_t H = f_.hidden, panels = ceil_div(H, kPanel);
    const int64_t panel_floats = H * kPanel;
    Division division =
        divide(team.size(), f_.batch, panels, kGates * panels * panel_floats);
    const int64_t ldh = padded_stride(H);
    Scratch<> packed(panels * kGates * panel_floats);
    Scratch<> copies(2 * f_.batch * ldh);
    Scratch<> products(team.size() * kGroupRows * kGates * kPanel);
    if (!packed || !copies || !products) return false;
    Barrier all, groups[kMostRowParts];
    all.reset(team.size());
    for (Barrier& barrier : groups) barrier.reset(division.unit_parts);
    float* h_copy[2] = {copies.get(), copies.get() + f_.batch * ldh};
    auto work = [&](int part) {
      for (int64_t u = part; u < panels; u += team.size())
        for (int gate = 0; gate < kGates; ++gate)
          pack<kPanel>(f_.W + (gate * H + u * kPanel) * H, H, 1,
                       min(kPanel, H - u * kPanel), H,
                       packed.get() + (u * kGates + gate) * panel_floats);
      if (part < division.threads()) {
        Range rows = division.rows(part, f_.batch);
        Range mine = division.panels(part, panels);
        for (int64_t b = rows.begin; b < rows.end; ++b)
          for (int64_t at = mine.begin * kPanel; at < min(H, mine.end * kPanel); ++at)
            h_copy[0][b * ldh + at] = f_.h[b * H + at];
      }
      all.wait();
      if (part >= division.threads()) return;
      Range rows = division.rows(part, f_.batch);
      Range mine = division.panels(part, panels);
      float* z = products.get() + part * kGroupRows * kGates * kPanel;
      for (int64_t t = 0; t < f_.time; ++t) {
        for (int64_t low = rows.begin; low < rows.end; low += kGroupRows) {
          int64_t count = min(kGroupRows, rows.end - low);
          for (int64_t u = mine.begin; u < mine.end; ++u) {
            step_product(count, H, h_copy[t % 2] + low * ldh, ldh,
                         packed.get() + u * kGates * panel_floats, panel_floats,
                         kGates, z, false);
            for (int64_t b = low; b < low + count; ++b)
              finish(t, b, u, z + (b - low) * kGates * kPanel,
                     h_copy[(t + 1) % 2] + b * ldh);
          }
        }
        if (division.unit_parts > 1) groups[part / division.unit_parts].wait();
      }
    };
    parallel(team, work);
    return true;
  }

  bool run_unpacked(Team& team) {
    const int64_t H = f_.hidden, panels = ceil_div(H, kPanel);
    const int64_t row_floats = panels * kGates * kPanel;
    Scratch<> products(row_floats);
    if (!products) return false;
    Barrier barrier;
    int threads = kGates * H * H < 128 * 1024 ? 1 : team.size();
    barrier.reset(threads);
    auto work = [&](int part) {
      if (part >= threads) return;
      Range mine = share(panels, 1, part, threads);
      for (int64_t t = 0; t < f_.time; ++t) {
        for (int64_t b = 0; b < f_.batch; ++b)
          for (int64_t u = mine.begin; u < mine.end; ++u) {
            float* z = products.get() + u * kGates * kPanel;
            for (int gate = 0; gate < kGates; ++gate)
              dot_row(f_.h + (t * f_.batch + b) * H,
                      f_.W + (gate * H + u * kPanel) * H, H, H,
                      {0, min(kPanel, H - u * kPanel)}, z + gate * kPanel);
            finish(t, b, u, z, nullptr);
          }
        barrier.wait();
      }
    };
    parallel(team, work);
    return true;
  }

  // The cell's arithmetic of step t, row b and panel u, whose W h is z.
  void finish(int64_t t, int64_t b, int64_t u, const float* z, float* h_copy) const {
    const int64_t H = f_.hidden, at = u * kPanel;
    const int64_t row = t * f_.batch + b, next = row + f_.batch;
    ForwardRow to;
    to.hidden = H;
    to.z = z;
    to.gx = f_.gx + (f_.ids ? f_.ids[row] : row) * kGates * H + at;
    to.b_hidden = f_.b_hidden ? f_.b_hidden + at : nullptr;
    to.h_prev = f_.h + row * H + at;
    to.h = f_.h + next * H + at;
    to.h_copy = h_copy ? h_copy + at : nullptr;
    if constexpr (kCell == Cell::kLstm) {
      to.c_prev = f_.c + (f_.keep ? row : b) * H + at;
      to.c = f_.c + (f_.keep ? next : b) * H + at;
    }
    const bool keep = f_.keep && f_.gates;
    to.gates = keep ? f_.gates + row * kGates * H + at : nullptr;
    to.extra = keep ? f_.extra + row * H + at : nullptr;
    for (int64_t unit = 0; unit < min(kPanel, H - at); unit += kLanes)
      forward_units<kCell>(to, static_cast<int>(unit),
                           static_cast<int>(min(kLanes, H - at - unit)));
  }

  const Forward& f_;
};

bool forward(Team& team, const Forward& f) {
  switch (f.cell) {
    case Cell::kTanh:
      return ForwardScan<Cell::kTanh>(f).run(team);
    case Cell::kRelu:
      return ForwardScan<Cell::kRelu>(f).run(team);
    case Cell::kGru:
      return ForwardScan<Cell::kGru>(f).run(team);
    case Cell::kLstm:
      return ForwardScan<Cell::kLstm>(f).run(team);
  }
  return false;
}

}  // namespace
}  // namespace bptt
