// The way back through time, with the lag outermost: all passes of a truncation go back
// together, one lag at a time, as rows of one product (see through_time.py, which is
// the definition of what is computed here).
#pragma once

#include "gradients.h"
#include "passes.h"
#include "schedule.h"

namespace bptt {
namespace {

// The cell's derivative for one row and the units of one panel; pointers point at the
// panel's first unit.
struct BackwardRow {
  const float* ds;      // (kPanel) what came from the step after and the layer above
  const float* dy;      // or null
  const float* dh_end;  // or null
  const float* dc_end;
  const float* h;     // RNN
  const float* tape;  // (tape_blocks, kPanel)
  float* carry;    // GRU dh, LSTM dc past the gates, to the step before
  float* previous; // the pass's delta, where the next lag's product reads it
  float* delta;    // summed over passes; or null
  int64_t hidden;
};

// What happens to `delta`.
enum class Sum { kNone, kStore, kAdd };

template <Cell kCell, Sum kSum>
__attribute__((always_inline)) inline void backward_units(const BackwardRow& row, int at,
                                                          int lanes) {
  const int64_t H = row.hidden;
  auto recall = [&](int block) { return load(row.tape + block * kPanel + at); };
  auto put = [&](int block, Vec v) {
    store(row.previous + block * H + at, v, lanes);
    if constexpr (kSum != Sum::kNone) {
      float* delta = row.delta + block * H + at;
      store(delta, kSum == Sum::kAdd ? load(delta, lanes) + v : v, lanes);
    }
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
    Vec r = recall(0), u = recall(1), n = recall(2);
    Vec dn = dh * (1.0f - u) * (1.0f - n * n);
    put(0, dn * r);
    put(1, dn * recall(3) * (r * (1.0f - r)));
    put(2, dh * (recall(4) - n) * (u * (1.0f - u)));
    put(3, dn);
    store(row.carry + at, dh * u, lanes);
  } else {
    Vec dc = load(row.carry + at, lanes);
    if (row.dc_end) dc += load(row.dc_end + at, lanes);
    Vec i = recall(0), f = recall(1), g = recall(2), o = recall(3), tanh_c = recall(4);
    dc += dh * o * (1.0f - tanh_c * tanh_c);
    put(0, dc * g * (i * (1.0f - i)));
    put(1, dc * recall(5) * (f * (1.0f - f)));
    put(2, dc * i * (1.0f - g * g));
    put(3, dh * tanh_c * (o * (1.0f - o)));
    store(row.carry + at, dc * f, lanes);
  }
}

// One panel of W, from its first column on, as deltas (rows, delta_blocks * hidden) are
// multiplied with it.
template <Cell kCell>
inline void pack_recurrent(const float* from, int64_t H, int64_t count, float* to) {
  if constexpr (kCell == Cell::kGru) {  // rows in delta's order: n, then r z
    pack<kPanel>(from + 2 * H * H, 1, H, count, H, to);
    pack<kPanel>(from, 1, H, count, 2 * H, to + H * kPanel);
  } else {
    pack<kPanel>(from, 1, H, count, gates(kCell) * H, to);
  }
}

template <Cell kCell>
class BackwardScan {
 public:
  explicit BackwardScan(const Backward& backward)
      : b_(backward), s_(backward.steps), passes_(backward), piece_(piece_of()) {}

  bool run(Team& team) {
    if (passes_.first_lag() >= passes_.end_lag()) return true;
    const int64_t rows = passes_.count * s_.batch;
    const int threads = team.size();
    const int64_t aside = fused() && !by_lag() ? product_steps() : 0;
    const Division division =
        divide(team, s_, {passes_.count, panels(), depth() * panels() * kPanel, depth(),
                          depth(), aside,
                          static_cast<double>(piece()) / static_cast<double>(s_.time)});
    // Per layer: packed W, packed U, the passes' deltas of two lags, their carries.
    const int64_t packed = panels() * depth() * kPanel;
    const int64_t carries = kCarry ? rows * padded_stride(b_.hidden) : 0;
    const int64_t deltas = (fused() ? piece() : 1) * rows * ld();
    const int64_t each = 2 * packed + 2 * deltas + carries;
    Scratch<> memory(b_.layers * each);
    Scratch<> products(threads * kGroupRows * kWide);
    Scratch<LayerMemory> layer_memory(b_.layers);
    // When fused, the states before the steps of two pieces, where some are zeroed, or
    // their places, where they only don't lie so.
    const bool moved = fused() && !is_plain(s_);
    const int64_t states = moved && s_.resets ? piece() * s_.batch * b_.hidden : 0;
    const int64_t places = moved && !s_.resets ? piece() * s_.batch : 0;
    Scratch<> before(2 * states);
    Scratch<int64_t> places_of(2 * places);
    const Gradients none{};
    GradientProducts<kCell> products_of(fused() ? *b_.gradients : none, b_.hidden,
                                        threads, true);
    if (const int helpers = threads - division.threads(); aside && helpers) {
      // So much of the products that all threads are done at the same time.
      const double each = static_cast<double>(aside) / helpers;
      const int scanners = division.threads();
      const double part = (each - division.step) / (each + each * helpers / scanners);
      products_of.relieve(scanners, part < 0 ? 0 : part);
    }
    LagRows lag_rows(b_, passes_, by_lag());
    if (!products_of || !lag_rows) return false;
    if (!memory || !products || !layer_memory || !before || !places_of)
      return false;
    for (int l = 0; l < b_.layers; ++l) {
      float* W = memory.get() + l * each;
      float* previous = W + 2 * packed;
      layer_memory.get()[l] = {W, W + packed, {previous, previous + deltas},
                               previous + 2 * deltas};
    }
    layer_memory_ = layer_memory.get();
    Barrier all, groups[kMostGroups];
    all.reset(threads);
    for (Barrier& barrier : groups) barrier.reset(division.unit_parts);
    // A step that several passes visit is summed in the order of the lags.
    const bool overlap = passes_.overlap();
    auto work = [&](int part) {
      pack_weights(part, threads);
      products_of.pack_U(part);
      const bool mine = part < division.threads();
      Part p{};
      if (mine) {
        p = {division.rows(part), division.panels(part, panels()),
             products.get() + part * kGroupRows * kWide};
        clear(p);
      }
      all.wait();
      if (!mine && !overlap && !fused()) return;
      for (int64_t lag = passes_.first_lag(); lag < passes_.end_lag(); ++lag) {
        for (int l = b_.layers - 1; l >= 0; --l) {
          if (mine) step(p, l, lag);
          if (division.unit_parts > 1 && mine)
            groups[part / division.unit_parts].wait();
        }
        if (mine && passes_.step(passes_.first(lag), lag) == 0) start(p, lag);
        if (by_lag()) lag_rows.gather(part, threads, lag);
        if (overlap || by_lag()) all.wait();
        if (by_lag()) {
          products_of.add({part, lag == 0, true}, passes_.last(lag) * s_.batch,
                          previous(0, lag), ld(), lag_rows.h(lag), nullptr,
                          lag_rows.x(lag), lag_rows.ids(lag), lag_rows.dx(), nullptr);
          if (lag_rows.dx()) {
            all.wait();
            lag_rows.scatter(part, threads, lag);
          }
        } else if (fused() && ((lag + 1) % piece() == 0 || lag + 1 == s_.time)) {
          const Gradients& g = *b_.gradients;
          const int64_t begin = piece_begin(lag), row = begin_of(s_, begin);
          const int64_t end = s_.time - lag / piece() * piece();
          const float* h = b_.layer[0].h;
          int64_t* h_places = nullptr;
          if (!moved || (places && lie_in_a_row(s_, begin, end))) {
            h += row_before(s_, begin) * b_.hidden;
          } else if (places) {
            h_places = places_of.get() + (lag / piece() & 1) * places;
            places_before(s_, begin, end, part, threads, h_places);
          } else {
            float* to = before.get() + (lag / piece() & 1) * states;
            states_before(s_, begin, end, b_.layer[0].h, b_.hidden, part, threads, to);
            h = to;
          }
          all.wait();
          // Where rows have places, those count from the array's own begin.
          const int64_t skip = g.x_places ? 0 : row * g.inputs;
          // While the steps before are still to come, helpers form more of them.
          const Turn turn{part, lag < piece(), lag + 1 == s_.time};
          products_of.add(turn, begin_of(s_, end) - row, previous(0, lag), ld(), h,
                          h_places, g.x ? g.x + skip : nullptr,
                          g.ids ? g.ids + row : nullptr,
                          g.dx ? g.dx + skip : nullptr,
                          g.x_places ? g.x_places + row : nullptr);
        }
      }
    };
    parallel(team, work);
    if (fused()) products_of.finish();
    return true;
  }

 private:
  static constexpr int kGates = gates(kCell);
  static constexpr int kBlocks = delta_blocks(kCell);
  static constexpr int64_t kStepsAhead = 4;
  static constexpr int64_t kNearFloats = 64 * 1024;
  static constexpr bool kCarry = kCell == Cell::kGru || kCell == Cell::kLstm;

  struct Part {
    Range rows, panels;
    float* product;  // (kGroupRows, kWide)
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
  bool fused() const { return b_.gradients != nullptr; }
  // Whether the passes end before the sequence does: then a lag has the rows of many
  // steps, and its gradients are formed from them alone.
  bool by_lag() const { return fused() && b_.k2 < s_.time; }
  // Steps whose deltas are kept until their products are formed, when fused.
  int64_t piece() const { return piece_; }
  int64_t piece_of() const {
    if (by_lag() || !fused()) return 1;
    const int64_t most = min(s_.time, max(1, kDepth / s_.batch));
    // Where the gradients stay near, more pieces cost little, and helpers begin earlier.
    const bool near = depth() * (b_.hidden + b_.gradients->inputs) <= kNearFloats;
    if (!near) return most;
    return min(most, max(ceil_div(s_.time, kTimesHelped),
                         ceil_div(kLeastHelped, s_.batch)));
  }
  // Multiplications for the gradients of one step.
  int64_t product_steps() const {
    const Gradients& g = *b_.gradients;
    const int64_t inputs = (g.x && g.dU ? g.inputs : 0) + (g.dx ? g.inputs : 0);
    return s_.batch * depth() * ((g.dW ? b_.hidden : 0) + inputs);
  }
  int64_t piece_begin(int64_t lag) const {
    return max(0, s_.time - (lag / piece() + 1) * piece());
  }
  // The rows of the passes' deltas at a lag.
  float* previous(int l, int64_t lag) const {
    if (!fused()) return layer_memory_[l].previous[lag & 1];
    return layer_memory_[l].previous[lag / piece() & 1] +
           (begin_of(s_, s_.time - 1 - lag) - begin_of(s_, piece_begin(lag))) * ld();
  }

  void pack_weights(int part, int threads) const {
    const int64_t H = b_.hidden;
    for (int l = 0; l < b_.layers; ++l)
      for (int64_t u = part; u < panels(); u += threads) {
        float* W = layer_memory_[l].W + u * depth() * kPanel;
        const float* from = b_.layer[l].W + u * kPanel;
        int64_t count = min(kPanel, H - u * kPanel);
        pack_recurrent<kCell>(from, H, count, W);
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
    const int64_t late = passes_.last(passes_.first_lag()) * s_.batch;
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
    const int64_t begin = max(p.rows.begin, passes_.first(lag) * s_.batch);
    const int64_t end = min(p.rows.end, passes_.last(lag) * s_.batch);
    if (!s_.offsets) {
      const int64_t all = (passes_.last(lag) - passes_.first(lag)) * s_.batch;
      return step_rows(p, l, lag, begin, end, all);
    }
    for (int64_t low = begin; low < end;) {  // pass by pass
      const int64_t pass = low / s_.batch;
      const int64_t rows = active(pass, passes_.step(pass, lag));
      step_rows(p, l, lag, low, min(end, pass * s_.batch + rows), rows);
      low = (pass + 1) * s_.batch;
    }
  }

  // The rows [begin, end) of those, of which all threads together have `all`.
  void step_rows(const Part& p, int l, int64_t lag, int64_t begin, int64_t end,
                 int64_t all) const {
    float* deltas = previous(l, lag);
    const Walk walk(p.panels, lag & 1);
    for (int64_t low = begin, count; low < end; low += count) {
      count = min(kGroupRows, end - low);
      for (int64_t i = 0; i < walk.tiles; ++i) {
        const int64_t u = walk.panel(i), then = walk.panel(min(i + 1, walk.tiles - 1));
        const int panels = tile_panels(u, p.panels.end);
        for (int64_t r = low; r < low + count; ++r)
          for (int at = 0; at < panels; ++at) fetch(l, lag, r, u + at);
        arriving(p, l, lag, low, count, u, then, all);
        for (int64_t r = low; r < low + count; ++r)
          for (int at = 0; at < panels; ++at)
            finish(l, lag, r, u + at, p.product + (r - low) * kWide + at * kPanel,
                   deltas + r * ld());
      }
    }
  }

  // What a product of deltas with panels of weights from u on has in all places here.
  StepProduct product(const Part& p, int64_t count, int64_t u, int64_t all) const {
    StepProduct s{};
    s.rows = count;
    s.depth = depth();
    s.lda = ld();
    s.panels = tile_panels(u, p.panels.end);
    s.b_stride = depth() * kPanel;
    s.gates = 1;
    s.c = p.product;
    s.ldc = kWide;
    s.c_stride = kPanel;
    s.split = parts_of_sums(all);
    return s;
  }

  // How many rows of a pass run at step t: those that have the step and any of the
  // pass's outputs.
  int64_t active(int64_t pass, int64_t t) const {
    return t < s_.time ? rows_at(s_, max(t, pass * passes_.k1)) : 0;
  }

  // Of the rows [low, low + count), those whose error comes from the step after, too.
  int64_t continued(int64_t lag, int64_t low, int64_t count) const {
    if (lag == passes_.first_lag() || begins_chunk(passes_.step(0, lag) + 1)) return 0;
    if (!s_.offsets) return count;
    const int64_t pass = pass_of(low);
    const int64_t rows = active(pass, passes_.step(pass, lag) + 1);
    return max(0, min(count, pass * s_.batch + rows - low));
  }

  // Whether step t, which some step comes before, hands no error on to it.
  bool begins_chunk(int64_t t) const { return b_.chunk && t > 0 && t % b_.chunk == 0; }

  // Whether row r is cut off from the step after the one at which it stands.
  bool is_cut_after(int64_t lag, int64_t r) const {
    const int64_t pass = pass_of(r), next = passes_.step(pass, lag) + 1;
    return next < s_.time && is_reset(s_, next, r - pass * s_.batch);
  }

  // What arrives at h of layer l from the step after and from the layer above, for the
  // units of a tile's panels from u on; those from `then` on come after them.
  void arriving(const Part& p, int l, int64_t lag, int64_t low, int64_t count,
                int64_t u, int64_t then, int64_t all) const {
    const int64_t H = b_.hidden, at = u * kPanel, panel = depth() * kPanel;
    const bool far = is_far(p.panels, b_.layers * panel);
    StepProduct s = product(p, count, u, all);
    if (l + 1 < b_.layers) {
      const int64_t skip = kCell == Cell::kGru ? H : 0;  // r z n, after hn
      s.a = previous(l + 1, lag) + low * ld() + skip;
      s.b = layer_memory_[l + 1].U + u * panel;
      if (far) s.next = layer_memory_[l].W + u * panel;
      step_product(s);
      if (const float* mask = b_.layer[l].mask)
        for (int64_t r = low; r < low + count; ++r) {
          const float* row = mask + step_row(r, lag) * H + at;
          float* to = p.product + (r - low) * kWide;
          for (int64_t i = 0; i < min(s.panels * kPanel, H - at); ++i) to[i] *= row[i];
        }
      s.add = true;
    }
    const int64_t more = continued(lag, low, count);
    if (!s.add)
      std::memset(p.product + more * kWide, 0,
                  static_cast<size_t>((count - more) * kWide) * sizeof(float));
    if (!more) return;
    float kept[kGroupRows * kWide];  // of rows that are cut off, what came from above
    const size_t bytes = kWide * sizeof(float);
    if (s_.resets && s.add)
      std::memcpy(kept, p.product, static_cast<size_t>(more) * bytes);
    s.rows = more;
    s.a = previous(l, lag - 1) + low * ld();
    s.b = layer_memory_[l].W + u * panel;
    if (far)
      s.next = (s.add ? layer_memory_[l + 1].U : layer_memory_[l].W) + then * panel;
    step_product(s);
    for (int64_t r = 0; s_.resets && r < more; ++r) {
      if (!is_cut_after(lag, low + r)) continue;
      if (s.add)
        std::memcpy(p.product + r * kWide, kept + r * kWide, bytes);
      else
        std::memset(p.product + r * kWide, 0, bytes);
    }
  }

  // Prefetches what `finish` will read and write.
  void fetch(int l, int64_t lag, int64_t r, int64_t u) const {
    const BackwardLayer& layer = b_.layer[l];
    const int64_t H = b_.hidden, at = u * kPanel, units = min(kPanel, H - at);
    const int64_t row = step_row(r, lag);
    if (l == b_.layers - 1 && !b_.dy_places)
      prefetch<false>(b_.dy + row * H + at, units);
    else if (l == b_.layers - 1 && passes_.step(pass_of(r), lag) >= kStepsAhead)
      prefetch<false>(b_.dy + b_.dy_places[step_row(r, lag + kStepsAhead)] * H + at,
                      units);
    if constexpr (!kCarry) prefetch<false>(layer.h + (row + s_.batch) * H + at, units);
    for (int block = 0; !fused() && block < kBlocks; ++block)
      prefetch<true>(layer.delta + (row * kBlocks + block) * H + at, units);
  }

  int64_t pass_of(int64_t r) const { return passes_.count == 1 ? 0 : r / s_.batch; }
  int64_t step_row(int64_t r, int64_t lag) const {
    const int64_t pass = pass_of(r);
    return begin_of(s_, passes_.step(pass, lag)) + r - pass * s_.batch;
  }

  // The cell's derivative for row r and panel u; deltas (delta_blocks * hidden) of the row.
  void finish(int l, int64_t lag, int64_t r, int64_t u, const float* ds,
              float* deltas) const {
    const BackwardLayer& layer = b_.layer[l];
    const LayerMemory& memory = layer_memory_[l];
    const int64_t H = b_.hidden, at = u * kPanel;
    const int64_t pass = pass_of(r), step = passes_.step(pass, lag);
    const int64_t b = r - pass * s_.batch, row = begin_of(s_, step) + b;
    const bool ends = step == s_.time - 1 || b >= rows_at(s_, step + 1);
    BackwardRow to{};
    to.hidden = H;
    to.ds = ds;
    if (l == b_.layers - 1 && lag < passes_.k1)
      to.dy = b_.dy + place_of(b_.dy_places, row) * H + at;
    if (ends && layer.dh_end) to.dh_end = layer.dh_end + b * H + at;
    if (ends && layer.dc_end) to.dc_end = layer.dc_end + b * H + at;
    if constexpr (kCarry) {
      to.tape = layer.tape + tape_at(kCell, panels(), s_, step, u, b);
      to.carry = memory.carry + r * carry_ld() + at;
    } else {
      to.h = layer.h + (row + s_.batch) * H + at;
    }
    to.previous = deltas + at;
    if (!fused()) to.delta = layer.delta + row * kBlocks * H + at;
    for (int64_t unit = 0; unit < min(kPanel, H - at); unit += kLanes) {
      const int first = static_cast<int>(unit);
      const int rest = static_cast<int>(min(kLanes, H - at - unit));
      const bool whole = rest == kLanes;  // a constant, so that nothing is masked
      if (fused())
        whole ? backward_units<kCell, Sum::kNone>(to, first, kLanes)
              : backward_units<kCell, Sum::kNone>(to, first, rest);
      else if (passes_.overlap())
        whole ? backward_units<kCell, Sum::kAdd>(to, first, kLanes)
              : backward_units<kCell, Sum::kAdd>(to, first, rest);
      else
        whole ? backward_units<kCell, Sum::kStore>(to, first, kLanes)
              : backward_units<kCell, Sum::kStore>(to, first, rest);
    }
    if (kCarry && (is_reset(s_, step, b) || begins_chunk(step)))
      std::memset(to.carry, 0, static_cast<size_t>(min(kPanel, H - at)) * sizeof(float));
  }

  // The pass that has just gone through step 0 gives the initial state its error.
  void start(const Part& p, int64_t lag) const {
    const int64_t H = b_.hidden, first = passes_.first(lag) * s_.batch;
    const int64_t begin = max(p.rows.begin, first);
    const int64_t rows = active(passes_.first(lag), 0);
    const int64_t end = min(p.rows.end, first + rows);
    for (int l = 0; l < b_.layers; ++l) {
      const BackwardLayer& layer = b_.layer[l];
      if (!layer.dh_start) continue;
      for (int64_t low = begin, count; low < end; low += count) {
        count = min(kGroupRows, end - low);
        for (int64_t u = p.panels.begin; u < p.panels.end; u += kTilePanels) {
          StepProduct s = product(p, count, u, rows);
          s.a = previous(l, lag) + low * ld();
          s.b = layer_memory_[l].W + u * depth() * kPanel;
          step_product(s);
          for (int64_t r = low; r < low + count; ++r)
            for (int64_t i = 0; !is_reset(s_, 0, r - first) &&
                                i < min(s.panels * kPanel, H - u * kPanel);
                 ++i) {
              int64_t unit = u * kPanel + i;
              float* dh = layer.dh_start + (r - first) * H + unit;
              *dh += p.product[(r - low) * kWide + i];
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
  const Steps& s_;
  const Passes passes_;
  const int64_t piece_;
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
