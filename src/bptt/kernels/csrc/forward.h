// A layer forward through time: all steps in one call, one thread team.
#pragma once

#include "schedule.h"

namespace bptt {
namespace {

// Blocks of kPanel floats in which a row's pre-activations are formed. All are sums of
// U x, W h and the biases, but for GRU's last two: W_n h + b_hn, which the reset gate
// scales, and U_n x + b_in.
constexpr int z_blocks(Cell cell) { return cell == Cell::kGru ? 4 : gates(cell); }
// The block to which U x of a gate goes.
constexpr int input_block(Cell cell, int gate) {
  return cell == Cell::kGru && gate == 2 ? 3 : gate;
}

// The cell's arithmetic for one row and the units of one panel; all but z point at the
// panel's first unit.
struct ForwardRow {
  const float* z;       // (z_blocks, kPanel)
  const float* h_prev;  // GRU
  float* h;
  float* y;       // or null
  float* h_copy;  // where the next step's product reads it; or null
  float* c;       // LSTM
  float* tape;    // (tape_blocks, kPanel); or null
};

template <Cell kCell>
__attribute__((always_inline)) inline void forward_units(const ForwardRow& row, int at,
                                                         int lanes) {
  auto z = [&](int block) { return load(row.z + block * kPanel + at); };
  auto remember = [&](int block, Vec v) { store(row.tape + block * kPanel + at, v); };
  Vec h;
  if constexpr (kCell == Cell::kTanh) {
    h = tanh_apart(z(0));
  } else if constexpr (kCell == Cell::kRelu) {
    h = z(0) < 0.0f ? Vec{} : z(0);  // so that NaN stays NaN
  } else if constexpr (kCell == Cell::kGru) {
    Vec r = sigmoid(z(0));
    Vec u = sigmoid(z(1));
    Vec gh = z(2);
    Vec n = tanh(z(3) + r * gh);
    Vec before = load(row.h_prev + at, lanes);
    h = n + u * (before - n);
    if (row.tape) {
      remember(0, r);
      remember(1, u);
      remember(2, n);
      remember(3, gh);
      remember(4, before);
    }
  } else {
    Vec i = sigmoid(z(0));
    Vec f = sigmoid(z(1));
    Vec g = tanh(z(2));
    Vec o = sigmoid(z(3));
    Vec before = load(row.c + at, lanes);
    Vec c = f * before + i * g;
    Vec tanh_c = tanh(c);
    h = o * tanh_c;
    store(row.c + at, c, lanes);
    if (row.tape) {
      remember(0, i);
      remember(1, f);
      remember(2, g);
      remember(3, o);
      remember(4, tanh_c);
      remember(5, before);
    }
  }
  store(row.h + at, h, lanes);
  if (row.y) store(row.y + at, h, lanes);
  if (row.h_copy) store(row.h_copy + at, h, lanes);
}

template <Cell kCell>
class ForwardScan {
 public:
  explicit ForwardScan(const Forward& forward)
      : f_(forward), s_(forward.steps), zeros_(forward.steps.resets ? f_.hidden : 0) {}

  bool run(Team& team) {
    if (!zeros_) return false;
    if (s_.resets)
      std::memset(zeros_.get(), 0, static_cast<size_t>(f_.hidden) * sizeof(float));
    // So few steps do not earn back the packing of the weights.
    return begin_of(s_, s_.time) <= kUnpackedRows ? run_unpacked(team)
                                                  : run_packed(team);
  }

 private:
  static constexpr int kGates = gates(kCell);
  static constexpr int kBlocks = z_blocks(kCell);
  static constexpr int64_t kWidth = kBlocks * kPanel;
  static constexpr int64_t kUnpackedRows = 8;
  // A thread's pre-activations are formed for so many steps ahead that they stay in
  // its second-level cache until the loop has come to them.
  static constexpr int64_t kAheadFloats = 96 * 1024;
  // But for no fewer rows than earn back the reading of U.
  static constexpr int64_t kLeastAhead = kBlockRows;

  int64_t panels() const { return ceil_div(f_.hidden, kPanel); }
  int64_t units(int64_t u) const { return min(kPanel, f_.hidden - u * kPanel); }
  // (hidden) of row b before step t.
  const float* h_before(int64_t t, int64_t b) const {
    if (is_reset(s_, t, b)) return zeros_.get();
    return (t ? f_.h + begin_of(s_, t - 1) * f_.hidden : f_.h0) + b * f_.hidden;
  }

  // (inputs) of row `row` of all; (hidden) of its output.
  const float* x_of(int64_t row) const {
    return f_.x + place_of(f_.x_places, row) * f_.inputs;
  }
  float* y_of(int64_t row) const {
    return f_.y + place_of(f_.y_places, row) * f_.hidden;
  }

  // One thread's share: rows of the batch, panels of units, and where it works.
  struct Part {
    Range rows, panels;
    int64_t ahead;  // steps
    float* z;       // (panels, ahead * rows, z_blocks, kPanel)
    float* left;    // rows of x, packed; each thread's own
    float* bias;    // (panels, z_blocks, kPanel)
    int64_t* first; // (ahead + 1), where the rows of each of the steps begin in z; each
                    // thread's own

    int64_t z_stride() const { return ahead * (rows.end - rows.begin) * kWidth; }
    float* z_at(int64_t u, int64_t step, int64_t row) const {
      return z + (u - panels.begin) * z_stride() +
             (first[step] + row - rows.begin) * kWidth;
    }
  };

  // How many of a thread's rows have step t.
  int64_t active(const Part& p, int64_t t) const {
    return max(0, min(p.rows.end, rows_at(s_, t)) - p.rows.begin);
  }

  bool run_packed(Team& team) {
    const int64_t H = f_.hidden, B = s_.batch, I = f_.inputs;
    const int64_t W_panel = H * kPanel, U_panel = I * kPanel;
    const int64_t aside = f_.x ? B * kGates * panels() * U_panel : 0;
    const Division division =
        divide(team, s_, {1, panels(), kGates * panels() * W_panel, H, kGates * H,
                          aside, 0});
    const int scanners = division.threads();
    const int helpers = f_.x ? team.size() - scanners : 0;
    // Whether they would fall behind without the others.
    const bool too_few = static_cast<double>(aside) > division.step * helpers;
    const int64_t rows = division.most_rows();
    const int64_t wide = ceil_div(panels(), division.unit_parts);
    int64_t ahead = min(s_.time, max(kAheadFloats / (rows * wide * kWidth),
                                     ceil_div(kLeastAhead, rows)));
    if (helpers)
      ahead = min(ahead, max(ceil_div(s_.time, kTimesHelped),
                             ceil_div(kLeastHelped, rows)));
    const int64_t z_floats = wide * ahead * rows * kWidth;
    const int64_t left_floats = f_.x ? kBlockRows * kDepth : 0;
    const int64_t bias_floats = wide * kWidth;
    const int buffers = helpers ? 2 : 1;
    ldh_ = padded_stride(H);
    Scratch<> W(panels() * kGates * W_panel);
    Scratch<> U(f_.x ? panels() * kGates * U_panel : 0);
    Scratch<> copies(2 * B * ldh_);
    Scratch<> z(scanners * buffers * z_floats), biases(scanners * bias_floats);
    Scratch<> lefts((scanners + helpers) * left_floats);
    Scratch<int64_t> firsts((scanners + helpers) * (ahead + 1));
    if (!W || !U || !copies || !z || !biases || !lefts || !firsts) return false;
    W_ = W.get();
    U_ = U.get();
    float* h_copy[2] = {copies.get(), copies.get() + B * ldh_};
    Barrier all, groups[kMostGroups];
    all.reset(team.size());
    for (Barrier& barrier : groups) barrier.reset(division.unit_parts);
    // A scanner's part from step t on, as `thread` works on it.
    auto part_of = [&](int scanner, int thread, int64_t t) {
      const int64_t buffer = scanner * buffers + t / ahead % buffers;
      Part p{division.rows(scanner), division.panels(scanner, panels()), ahead,
             z.get() + buffer * z_floats, lefts.get() + thread * left_floats,
             biases.get() + scanner * bias_floats, firsts.get() + thread * (ahead + 1)};
      p.first[0] = 0;
      for (int64_t s = 0; s < min(ahead, s_.time - t); ++s)
        p.first[s + 1] = p.first[s] + active(p, t + s);
      return p;
    };
    // The share of a thread in what all scanners need from step t on.
    auto help = [&](int thread, int64_t t, int at, int of) {
      for (int scanner = 0; scanner < scanners; ++scanner) {
        const Part p = part_of(scanner, thread, t);
        const Range all_panels = p.panels;
        const Range mine = share(all_panels.end - all_panels.begin, 1, at, of);
        project(p, t, {all_panels.begin + mine.begin, all_panels.begin + mine.end});
      }
    };
    auto work = [&](int part) {
      pack_weights(part, team.size());
      const bool scans = part < scanners;
      if (scans) {
        const Part p = part_of(part, part, 0);
        set_bias(p);
        for (int64_t b = p.rows.begin; b < p.rows.end; ++b)
          for (int64_t u = p.panels.begin; u < p.panels.end; ++u)
            std::memcpy(h_copy[0] + b * ldh_ + u * kPanel, h_before(0, b) + u * kPanel,
                        static_cast<size_t>(units(u)) * sizeof(float));
      }
      all.wait();
      if (!scans && !helpers) return;
      if (helpers) help(part, 0, part, team.size());
      for (int64_t begin = 0; begin < s_.time; begin += ahead) {
        if (helpers) all.wait();
        if (helpers && begin + ahead < s_.time) {
          if (too_few)
            help(part, begin + ahead, part, team.size());
          else if (!scans)
            help(part, begin + ahead, part - scanners, helpers);
        }
        if (!scans) continue;
        const Part p = part_of(part, part, begin);
        if (!helpers) project(p, begin, p.panels);
        for (int64_t t = begin; t < min(s_.time, begin + ahead); ++t) {
          step(p, t, h_copy[t % 2], h_copy[(t + 1) % 2]);
          if (division.unit_parts > 1) {
            groups[part / division.unit_parts].wait();
            fetch_others(p, h_copy[(t + 1) % 2]);
          }
        }
      }
    };
    parallel(team, work);
    return true;
  }

  void pack_weights(int part, int threads) const {
    const int64_t H = f_.hidden, I = f_.inputs;
    for (int64_t u = part; u < panels(); u += threads)
      for (int gate = 0; gate < kGates; ++gate) {
        const int64_t row = gate * H + u * kPanel;
        pack<kPanel>(f_.W + row * H, H, 1, units(u), H,
                     W_ + (u * kGates + gate) * H * kPanel);
        if (f_.x)
          pack<kPanel>(f_.U + row * I, I, 1, units(u), I,
                       U_ + (u * kGates + gate) * I * kPanel);
      }
  }

  // The biases of panel u in the blocks of z, zeros where there are none.
  void bias_blocks(int64_t u, float* to) const {
    std::memset(to, 0, kWidth * sizeof(float));
    if (!f_.b_ih) return;
    for (int gate = 0; gate < kGates; ++gate)
      for (int64_t i = 0; i < units(u); ++i) {
        const int64_t row = gate * f_.hidden + u * kPanel + i;
        to[input_block(kCell, gate) * kPanel + i] += f_.b_ih[row];
        to[gate * kPanel + i] += f_.b_hh[row];
      }
  }

  void set_bias(const Part& p) const {
    for (int64_t u = p.panels.begin; u < p.panels.end; ++u)
      bias_blocks(u, p.bias + (u - p.panels.begin) * kWidth);
  }

  // z = U x + b of a part's steps from t on, for some of its panels.
  void project(const Part& p, int64_t t, Range panels) const {
    const int64_t steps = min(p.ahead, s_.time - t);
    for (int64_t u = panels.begin; u < panels.end; ++u) {
      const float* bias = p.bias + (u - p.panels.begin) * kWidth;
      for (int64_t s = 0; s < steps; ++s)
        for (int64_t b = p.rows.begin; b < p.rows.begin + active(p, t + s); ++b) {
          float* z = p.z_at(u, s, b);
          std::memcpy(z, bias, kWidth * sizeof(float));
          if (f_.ids) add_column(f_.ids[begin_of(s_, t + s) + b], u, z);
        }
    }
    if (f_.x) add_products(p, t, steps, panels);
  }

  // z += the column of U that one-hot input picks.
  void add_column(int64_t id, int64_t u, float* z) const {
    for (int gate = 0; gate < kGates; ++gate) {
      const int64_t row = gate * f_.hidden + u * kPanel;
      float* to = z + input_block(kCell, gate) * kPanel;
      const float* from = f_.U_columns ? f_.U_columns + id * kGates * f_.hidden + row
                                       : f_.U + row * f_.inputs + id;
      const int64_t stride = f_.U_columns ? 1 : f_.inputs;
      if (stride == 1)
        for (int64_t i = 0; i < units(u); ++i) to[i] += from[i];
      else
        for (int64_t i = 0; i < units(u); ++i) to[i] += from[i * stride];
    }
  }

  // z += U x: rows of all steps together, as one product.
  void add_products(const Part& p, int64_t t, int64_t steps, Range panels) const {
    const int64_t I = f_.inputs, all = p.first[steps];
    for (int64_t low = 0, step = 0; low < all; low += kBlockRows) {
      const int64_t height = min(kBlockRows, all - low);
      while (p.first[step + 1] <= low) ++step;
      for (int64_t k = 0; k < I; k += kDepth) {
        const int64_t depth = min(kDepth, I - k);
        for (int64_t r = 0, at = step; r < height; r += kRows) {
          while (p.first[at + 1] <= low + r) ++at;
          pack_rows(p, t, at, low + r, min(kRows, height - r), all, k, depth,
                    p.left + r * depth);
        }
        for (int64_t u = panels.begin; u < panels.end; u += kTilePanels)
          for (int gate = 0; gate < kGates; ++gate)
            for (int64_t r = 0; r < height; r += kRows) {
              const Columns columns{U_ + ((u * kGates + gate) * I + k) * kPanel,
                                    kGates * I * kPanel,
                                    p.z_at(u, 0, p.rows.begin) + (low + r) * kWidth +
                                        input_block(kCell, gate) * kPanel,
                                    kWidth, p.z_stride(), true};
              tile<true>(min(kRows, height - r), tile_panels(u, panels.end), depth,
                         p.left + r * depth, 1, columns);
            }
      }
    }
  }

  // Rows of x, counted over steps and this thread's rows, in the order of tiles; the
  // first, `low` of `all`, is of step t + step.
  void pack_rows(const Part& p, int64_t t, int64_t step, int64_t low, int64_t count,
                 int64_t all, int64_t k, int64_t depth, float* to) const {
    auto row_of = [&](int64_t i) {
      while (p.first[step + 1] <= i) ++step;
      return begin_of(s_, t + step) + p.rows.begin + i - p.first[step];
    };
    const float* rows[kRows];
    for (int64_t i = 0; i < count; ++i) rows[i] = x_of(row_of(low + i)) + k;
    if (f_.x_places)
      for (int64_t i = low + kRowsAhead; i < min(low + kRowsAhead + count, all); ++i)
        prefetch<false>(x_of(row_of(i)) + k, depth);
    pack_across<kRows>(rows, count, depth, to);
  }

  // Step t of this thread's rows and units: z += W h, then the cell's arithmetic.
  void step(const Part& p, int64_t t, const float* h_copy, float* h_next) const {
    const int64_t H = f_.hidden;
    const int64_t end = p.rows.begin + active(p, t);
    StepProduct s{};
    s.depth = H;
    s.lda = ldh_;
    s.b_stride = kGates * H * kPanel;
    s.gates = kGates;
    s.back = t & 1;
    s.ldc = kWidth;
    s.c_stride = p.z_stride();
    s.add = true;
    s.split = parts_of_sums(rows_at(s_, t));
    const bool far = is_far(p.panels, kGates * H * kPanel);
    const Walk walk(p.panels, s.back);
    for (int64_t low = p.rows.begin; low < end; low += kGroupRows) {
      s.rows = min(kGroupRows, end - low);
      s.a = h_copy + low * ldh_;
      for (int64_t i = 0; i < walk.tiles; ++i) {
        const int64_t u = walk.panel(i);
        s.panels = tile_panels(u, p.panels.end);
        s.b = W_ + u * s.b_stride;
        s.c = p.z_at(u, t % p.ahead, low);
        if (far)
          s.next = W_ + (walk.panel(min(i + 1, walk.tiles - 1)) * kGates +
                         (s.back ? kGates - 1 : 0)) *
                            H * kPanel;
        for (int64_t b = low; b < low + s.rows; ++b)
          for (int at = 0; at < s.panels; ++at) fetch(t, b, u + at);
        step_product(s);
        for (int at = 0; at < s.panels; ++at)
          for (int64_t b = low; b < low + s.rows; ++b)
            finish(t, b, u + at, s.c + at * s.c_stride + (b - low) * kWidth,
                   h_next + b * ldh_);
      }
    }
  }

  bool run_unpacked(Team& team) {
    const int64_t H = f_.hidden, I = f_.inputs;
    const int threads = kGates * H * (H + I) < 256 * 1024 ? 1 : team.size();
    Scratch<> products(threads * kWidth);
    if (!products) return false;
    Barrier barrier;
    barrier.reset(threads);
    auto work = [&](int part) {
      if (part >= threads) return;
      Range mine = share(panels(), 1, part, threads);
      float* z = products.get() + part * kWidth;
      for (int64_t t = 0; t < s_.time; ++t) {
        for (int64_t b = 0; b < rows_at(s_, t); ++b)
          for (int64_t u = mine.begin; u < mine.end; ++u) {
            const int64_t row = begin_of(s_, t) + b;
            bias_blocks(u, z);
            if (f_.ids) add_column(f_.ids[row], u, z);
            for (int gate = 0; gate < kGates; ++gate) {
              const int64_t at = gate * H + u * kPanel;
              if (f_.x)
                dot_row(x_of(row), f_.U + at * I, I, I, {0, units(u)},
                        z + input_block(kCell, gate) * kPanel);
              dot_row(h_before(t, b), f_.W + at * H, H, H, {0, units(u)},
                      z + gate * kPanel);
            }
            finish(t, b, u, z, nullptr);
          }
        barrier.wait();
      }
    };
    if (threads == 1)
      work(0);
    else
      parallel(team, work);
    return true;
  }

  // Prefetches what other threads have written of a thread's first rows: read one by
  // one, as a tile comes to them, their lines would take a few times as long.
  __attribute__((noinline)) void fetch_others(const Part& p, const float* h_copy) const {
    const int64_t begin = p.panels.begin * kPanel, end = p.panels.end * kPanel;
    const float* row = h_copy + p.rows.begin * ldh_;
    for (int64_t r = 0; r < min(kGroupRows, p.rows.end - p.rows.begin); ++r, row += ldh_) {
      prefetch<false>(row, begin);
      prefetch<false>(row + end, f_.hidden - end);
    }
  }

  // Prefetches what `finish` will read and write.
  void fetch(int64_t t, int64_t b, int64_t u) const {
    const int64_t H = f_.hidden, at = u * kPanel;
    const int64_t row = begin_of(s_, t) + b;
    prefetch<true>(f_.h + row * H + at, units(u));
    if (!f_.y) return;
    if (!f_.y_places)
      prefetch<true>(f_.y + row * H + at, units(u));
    else if (t + 1 < s_.time && b < rows_at(s_, t + 1))  // from farther away
      prefetch<true>(y_of(begin_of(s_, t + 1) + b) + at, units(u));
  }

  // The cell's arithmetic of step t, row b and panel u.
  __attribute__((always_inline)) void finish(int64_t t, int64_t b, int64_t u,
                                             const float* z, float* h_copy) const {
    const int64_t H = f_.hidden, at = u * kPanel;
    const int64_t row = begin_of(s_, t) + b;
    const size_t bytes = static_cast<size_t>(units(u)) * sizeof(float);
    ForwardRow to{};
    to.z = z;
    to.h_prev = h_before(t, b) + at;
    to.h = f_.h + row * H + at;
    if (f_.y) to.y = y_of(row) + at;
    if (h_copy) to.h_copy = h_copy + at;
    if constexpr (kCell == Cell::kLstm) {
      to.c = f_.c + b * H + at;
      if (is_reset(s_, t, b)) std::memset(to.c, 0, bytes);
    }
    if (tape_blocks(kCell) && f_.tape)
      to.tape = f_.tape + tape_at(kCell, panels(), s_, t, u, b);
    for (int64_t unit = 0; unit < units(u); unit += kLanes)
      if (H - at - unit >= kLanes)  // a constant, so that nothing is masked
        forward_units<kCell>(to, static_cast<int>(unit), kLanes);
      else
        forward_units<kCell>(to, static_cast<int>(unit),
                             static_cast<int>(H - at - unit));
    if (h_copy && s_.resets && t + 1 < s_.time && b < rows_at(s_, t + 1) &&
        is_reset(s_, t + 1, b))
      std::memset(to.h_copy, 0, bytes);
  }

  const Forward& f_;
  const Steps& s_;
  Scratch<> zeros_;  // (hidden), the state of a row that is reset
  int64_t ldh_ = 0;
  float* W_ = nullptr;  // (panels, gates, hidden, kPanel)
  float* U_ = nullptr;  // (panels, gates, inputs, kPanel)
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
