// The way back through time, with the lag outermost: all passes of a truncation go back
// together, one lag at a time, as rows of one product (see through_time.py, which is
// the definition of what is computed here).
#pragma once

#include "schedule.h"

namespace bptt {
namespace {

// Where the passes stand: pass p at lag j at step p * k1 + k1 - 1 - j.
struct Passes {
  int64_t time, k1, k2, count, nominal_end;

  explicit Passes(const Backward& b)
      : time(b.time), k1(b.k1), k2(b.k2), count(ceil_div(b.time, b.k1)),
        nominal_end(count * b.k1 - 1) {}
  int64_t first_lag() const { return max(0, k1 - time); }
  int64_t end_lag() const { return min(k2, nominal_end + 1); }
  int64_t first(int64_t lag) const { return lag / k1; }
  int64_t last(int64_t lag) const { return nominal_end - lag < time ? count : count - 1; }
  int64_t step(int64_t pass, int64_t lag) const { return pass * k1 + k1 - 1 - lag; }
  // Whether two passes may come by the same step.
  bool overlap() const { return k2 > k1 && count > 1; }
};

// The cell's derivative for one row and the units of one panel; pointers point at the
// panel's first unit.
struct BackwardRow {
  const float* ds;      // (kPanel) what came from the step after and the layer above
  const float* dy;      // or null
  const float* dh_end;  // or null
  const float* dc_end;
  const float* h_prev;
  const float* h;
  const float* c_prev;
  const float* gates;
  const float* extra;
  float* carry;    // GRU dh, LSTM dc past the gates, to the step before
  float* previous; // the pass's delta, where the next lag's product reads it
  float* delta;    // summed over passes
  int64_t hidden;
};

template <Cell kCell, bool kAdd>
__attribute__((always_inline)) inline void backward_units(const BackwardRow& row, int at, int lanes) {
  const int64_t H = row.hidden;
  auto gate = [&](int g) { return load(row.gates + g * H + at, lanes); };
  auto put = [&](int block, Vec v) {
    store(row.previous + block * H + at, v, lanes);
    float* delta = row.delta + block * H + at;
    store(delta, kAdd ? load(delta, lanes) + v : v, lanes);
  };
  Vec dh = load(row.ds + at);
  if (row.dy) dh += load(row.dy + at, lanes);
  if (row.dh_end) dh += load(row.dh_end + at, lanes);
  if constexpr (kCell == Cell::kTanh) {
    Vec h = load(row.h + at, lanes);
    put(0, dh * (1.0f - h * h));
  } else if constexpr (kCell == Cell::kRelu) {
    Vec h = load(row.h + at, lanes);
    put(0, h > 0.0f ? dh : dh * 0.0f);
  } else if constexpr (kCell == Cell::kGru) {
    dh += load(row.carry + at, lanes);
    Vec r = gate(0), u = gate(1), n = gate(2);
    Vec dn = dh * (1.0f - u) * (1.0f - n * n);
    put(0, dn * r);
    put(1, dn * load(row.extra + at, lanes) * (r * (1.0f - r)));
    put(2, dh * (load(row.h_prev + at, lanes) - n) * (u * (1.0f - u)));
    put(3, dn);
    store(row.carry + at, dh * u, lanes);
  } else {
    Vec dc = load(row.carry + at, lanes);
    if (row.dc_end) dc += load(row.dc_end + at, lanes);
    Vec i = gate(0), f = gate(1), g = gate(2), o = gate(3);
    Vec tanh_c = load(row.extra + at, lanes);
    dc += dh * o * (1.0f - tanh_c * tanh_c);
    put(0, dc * g * (i * (1.0f - i)));
    put(1, dc * load(row.c_prev + at, lanes) * (f * (1.0f - f)));
    put(2, dc * i * (1.0f - g * g));
    put(3, dh * tanh_c * (o * (1.0f - o)));
    store(row.carry + at, dc * f, lanes);
  }
}

template <Cell kCell>
class BackwardScan {
 public:
  explicit BackwardScan(const Backward& backward) : b_(backward), passes_(backward) {}

  bool run(Team& team) {
    if (passes_.first_lag() >= passes_.end_lag()) return true;
    const int64_t rows = passes_.count * b_.batch;
    const int threads = team.size();
    Division division = divide(threads, rows, panels(), depth() * panels() * kPanel);
    // Per layer: packed W, packed U, the passes' deltas of two lags, their carries.
    const int64_t packed = panels() * depth() * kPanel;
    const int64_t carries = kCarry ? rows * padded_stride(b_.hidden) : 0;
    const int64_t each = 2 * packed + 2 * rows * ld() + carries;
    Scratch<> memory(b_.layers * each);
    Scratch<> products(threads * kGroupRows * kPanel);
    Scratch<LayerMemory> layer_memory(b_.layers);
    if (!memory || !products || !layer_memory) return false;
    for (int l = 0; l < b_.layers; ++l) {
      float* W = memory.get() + l * each;
      float* previous = W + 2 * packed;
      layer_memory.get()[l] = {W, W + packed, {previous, previous + rows * ld()},
                               previous + 2 * rows * ld()};
    }
    layer_memory_ = layer_memory.get();
    Barrier all, groups[kMostRowParts];
    all.reset(threads);
    for (Barrier& barrier : groups) barrier.reset(division.unit_parts);
    // A step that several passes visit is summed in the order of the lags.
    const bool overlap = passes_.overlap();
    auto work = [&](int part) {
      pack_weights(part, threads);
      const bool mine = part < division.threads();
      Part p{};
      if (mine) {
        p = {division.rows(part, rows), division.panels(part, panels()),
             products.get() + part * kGroupRows * kPanel};
        clear(p);
      }
      all.wait();
      if (!mine && !overlap) return;
      for (int64_t lag = passes_.first_lag(); lag < passes_.end_lag(); ++lag) {
        for (int l = b_.layers - 1; l >= 0; --l) {
          if (mine) step(p, l, lag);
          if (division.unit_parts > 1 && mine)
            groups[part / division.unit_parts].wait();
        }
        if (mine && passes_.step(passes_.first(lag), lag) == 0) start(p, lag);
        if (overlap) all.wait();
      }
    };
    parallel(team, work);
    return true;
  }

 private:
  static constexpr int kGates = gates(kCell);
  static constexpr int kBlocks = delta_blocks(kCell);
  static constexpr bool kCarry = kCell == Cell::kGru || kCell == Cell::kLstm;

  struct Part {
    Range rows, panels;
    float* product;
  };
  struct LayerMemory {
    float* W;            // (panels, gates * hidden, kPanel)
    float* U;            // the same
    float* previous[2];  // (rows, delta_blocks * hidden), padded
    float* carry;        // (rows, hidden), padded
  };

  int64_t panels() const { return ceil_div(b_.hidden, kPanel); }
  int64_t depth() const { return kGates * b_.hidden; }
  int64_t ld() const { return padded_stride(kBlocks * b_.hidden); }
  float* previous(int l, int64_t lag) const { return layer_memory_[l].previous[lag & 1]; }

  void pack_weights(int part, int threads) const {
    const int64_t H = b_.hidden;
    for (int l = 0; l < b_.layers; ++l)
      for (int64_t u = part; u < panels(); u += threads) {
        float* W = layer_memory_[l].W + u * depth() * kPanel;
        const float* from = b_.layer[l].W + u * kPanel;
        int64_t count = min(kPanel, H - u * kPanel);
        if constexpr (kCell == Cell::kGru) {  // rows in delta's order: n, then r z
          pack<kPanel>(from + 2 * H * H, 1, H, count, H, W);
          pack<kPanel>(from, 1, H, count, 2 * H, W + H * kPanel);
        } else {
          pack<kPanel>(from, 1, H, count, depth(), W);
        }
        if (b_.layer[l].U && l > 0)
          pack<kPanel>(b_.layer[l].U + u * kPanel, 1, H, count, depth(),
                       layer_memory_[l].U + u * depth() * kPanel);
      }
  }

  // A pass begins with no error from a step after. One that begins after the others,
  // in a short last chunk, finds zeros in the place of its previous delta.
  void clear(const Part& p) const {
    const int64_t begin = p.panels.begin * kPanel;
    const int64_t width = min(b_.hidden, p.panels.end * kPanel) - begin;
    if (width <= 0) return;
    const size_t bytes = static_cast<size_t>(width) * sizeof(float);
    const int64_t late = passes_.last(passes_.first_lag()) * b_.batch;
    for (int l = 0; l < b_.layers; ++l)
      for (int64_t r = p.rows.begin; r < p.rows.end; ++r) {
        if (kCarry)
          std::memset(layer_memory_[l].carry + r * carry_ld() + begin, 0, bytes);
        for (int block = 0; r >= late && block < kBlocks; ++block)
          for (float* previous : layer_memory_[l].previous)
            std::memset(previous + r * ld() + block * b_.hidden + begin, 0, bytes);
      }
  }

  int64_t carry_ld() const { return padded_stride(b_.hidden); }

  // Layer l of the passes that run at this lag: the errors of its state after the
  // step, and through the cell.
  void step(const Part& p, int l, int64_t lag) const {
    const int64_t begin = max(p.rows.begin, passes_.first(lag) * b_.batch);
    const int64_t end = min(p.rows.end, passes_.last(lag) * b_.batch);
    for (int64_t low = begin; low < end; low += kGroupRows) {
      int64_t count = min(kGroupRows, end - low);
      for (int64_t u = p.panels.begin; u < p.panels.end; ++u) {
        for (int64_t r = low; r < low + count; ++r) fetch(l, lag, r, u);
        arriving(p, l, lag, low, count, u);
        for (int64_t r = low; r < low + count; ++r)
          finish(l, lag, r, u, p.product + (r - low) * kPanel);
      }
    }
  }

  // What arrives at h of layer l from the step after and from the layer above.
  void arriving(const Part& p, int l, int64_t lag, int64_t low, int64_t count,
                int64_t u) const {
    const int64_t H = b_.hidden, at = u * kPanel;
    bool add = false;
    if (l + 1 < b_.layers) {
      const int64_t skip = kCell == Cell::kGru ? H : 0;  // r z n, after hn
      step_product(count, depth(), previous(l + 1, lag) + low * ld() + skip, ld(),
                   layer_memory_[l + 1].U + u * depth() * kPanel, 0, 1, p.product, kPanel, false);
      if (const float* mask = b_.layer[l].mask)
        for (int64_t r = low; r < low + count; ++r) {
          const float* row = mask + step_row(r, lag) * H + at;
          float* to = p.product + (r - low) * kPanel;
          for (int64_t i = 0; i < min(kPanel, H - at); ++i) to[i] *= row[i];
        }
      add = true;
    }
    if (lag > passes_.first_lag())
      step_product(count, depth(), previous(l, lag - 1) + low * ld(), ld(),
                   layer_memory_[l].W + u * depth() * kPanel, 0, 1, p.product, kPanel, add);
    else if (!add)
      std::memset(p.product, 0, static_cast<size_t>(count * kPanel) * sizeof(float));
  }

  // Prefetches what `finish` will read and write.
  void fetch(int l, int64_t lag, int64_t r, int64_t u) const {
    const BackwardLayer& layer = b_.layer[l];
    const int64_t H = b_.hidden, at = u * kPanel, units = min(kPanel, H - at);
    const int64_t row = step_row(r, lag);
    if (l == b_.layers - 1) prefetch<false>(b_.dy + row * H + at, units);
    if constexpr (kCell == Cell::kLstm)
      prefetch<false>(layer.c + row * H + at, units);
    else if constexpr (kCell == Cell::kGru)
      prefetch<false>(layer.h + row * H + at, units);
    else
      prefetch<false>(layer.h + (row + b_.batch) * H + at, units);
    if constexpr (kCarry) {
      prefetch<false>(layer.extra + row * H + at, units);
      for (int gate = 0; gate < kGates; ++gate)
        prefetch<false>(layer.gates + (row * kGates + gate) * H + at, units);
    }
    for (int block = 0; block < kBlocks; ++block)
      prefetch<true>(layer.delta + (row * kBlocks + block) * H + at, units);
  }

  int64_t pass_of(int64_t r) const { return passes_.count == 1 ? 0 : r / b_.batch; }
  int64_t step_row(int64_t r, int64_t lag) const {
    return passes_.step(pass_of(r), lag) * b_.batch + r - pass_of(r) * b_.batch;
  }

  void finish(int l, int64_t lag, int64_t r, int64_t u, const float* ds) const {
    const BackwardLayer& layer = b_.layer[l];
    const LayerMemory& memory = layer_memory_[l];
    const int64_t H = b_.hidden, at = u * kPanel;
    const int64_t pass = pass_of(r), step = passes_.step(pass, lag);
    const int64_t b = r - pass * b_.batch, row = step * b_.batch + b;
    const bool ends = step == b_.time - 1;
    BackwardRow to{};
    to.hidden = H;
    to.ds = ds;
    if (l == b_.layers - 1 && lag < passes_.k1) to.dy = b_.dy + row * H + at;
    if (ends && layer.dh_end) to.dh_end = layer.dh_end + b * H + at;
    if (ends && layer.dc_end) to.dc_end = layer.dc_end + b * H + at;
    to.h_prev = layer.h + row * H + at;
    to.h = layer.h + (row + b_.batch) * H + at;
    if constexpr (kCell == Cell::kLstm) to.c_prev = layer.c + row * H + at;
    if constexpr (kCarry) {
      to.gates = layer.gates + row * kGates * H + at;
      to.extra = layer.extra + row * H + at;
      to.carry = memory.carry + r * carry_ld() + at;
    }
    to.previous = previous(l, lag) + r * ld() + at;
    to.delta = layer.delta + row * kBlocks * H + at;
    for (int64_t unit = 0; unit < min(kPanel, H - at); unit += kLanes) {
      const int first = static_cast<int>(unit);
      const int rest = static_cast<int>(min(kLanes, H - at - unit));
      const bool whole = rest == kLanes;  // a constant, so that nothing is masked
      if (passes_.overlap())
        whole ? backward_units<kCell, true>(to, first, kLanes)
              : backward_units<kCell, true>(to, first, rest);
      else
        whole ? backward_units<kCell, false>(to, first, kLanes)
              : backward_units<kCell, false>(to, first, rest);
    }
  }

  // The pass that has just gone through step 0 gives the initial state its error.
  void start(const Part& p, int64_t lag) const {
    const int64_t H = b_.hidden, first = passes_.first(lag) * b_.batch;
    const int64_t begin = max(p.rows.begin, first);
    const int64_t end = min(p.rows.end, first + b_.batch);
    for (int l = 0; l < b_.layers; ++l) {
      const BackwardLayer& layer = b_.layer[l];
      if (!layer.dh_start) continue;
      for (int64_t low = begin; low < end; low += kGroupRows) {
        int64_t count = min(kGroupRows, end - low);
        for (int64_t u = p.panels.begin; u < p.panels.end; ++u) {
          step_product(count, depth(), previous(l, lag) + low * ld(), ld(),
                       layer_memory_[l].W + u * depth() * kPanel, 0, 1, p.product, kPanel, false);
          for (int64_t r = low; r < low + count; ++r)
            for (int64_t i = 0; i < min(kPanel, H - u * kPanel); ++i) {
              int64_t unit = u * kPanel + i;
              float* dh = layer.dh_start + (r - first) * H + unit;
              *dh += p.product[(r - low) * kPanel + i];
              if constexpr (kCarry) {
                float carry = layer_memory_[l].carry[r * carry_ld() + unit];
                if (kCell == Cell::kGru)
                  *dh += carry;
                else if (layer.dc_start)
                  layer.dc_start[(r - first) * H + unit] += carry;
              }
            }
        }
      }
    }
  }

  const Backward& b_;
  const Passes passes_;
  LayerMemory* layer_memory_ = nullptr;
};

bool backward(Team& team, const Backward& b) {
  switch (b.cell) {
    case Cell::kTanh:
      return BackwardScan<Cell::kTanh>(b).run(team);
    case Cell::kRelu:
      return BackwardScan<Cell::kRelu>(b).run(team);
    case Cell::kGru:
      return BackwardScan<Cell::kGru>(b).run(team);
    case Cell::kLstm:
      return BackwardScan<Cell::kLstm>(b).run(team);
  }
  return false;
}

}  // namespace
}  // namespace bptt
