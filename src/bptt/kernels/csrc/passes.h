// Which steps the passes of a truncation visit, and what their rows read there.
#pragma once

#include "pack.h"

namespace bptt {
namespace {

// Where the passes stand: pass p at lag j at step p * k1 + k1 - 1 - j.
struct Passes {
  int64_t time, k1, k2, count, nominal_end;

  explicit Passes(const Backward& b)
      : time(b.steps.time), k1(b.k1), k2(b.k2), count(ceil_div(time, b.k1)),
        nominal_end(count * b.k1 - 1) {}
  int64_t first_lag() const { return max(0, k1 - time); }
  int64_t end_lag() const { return min(k2, nominal_end + 1); }
  int64_t first(int64_t lag) const { return lag / k1; }
  int64_t last(int64_t lag) const {
    return nominal_end - lag < time ? count : count - 1;
  }
  int64_t step(int64_t pass, int64_t lag) const { return pass * k1 + k1 - 1 - lag; }
  // Whether two passes may come by the same step.
  bool overlap() const { return k2 > k1 && count > 1; }
};

// For gradients that are formed lag by lag: what the layer read at the steps where the
// passes stand, side by side as their deltas are. Two lags are kept, so that one is
// gathered while other threads still read the one before.
class LagRows {
 public:
  // Without `wanted` nothing is kept, and nothing may be called.
  LagRows(const Backward& b, const Passes& passes, bool wanted)
      : b_(b), passes_(passes), rows_(wanted ? passes.count * b.steps.batch : 0),
        inputs_(wanted ? b.gradients->inputs : 0), h_(2 * rows_ * b.hidden),
        x_(wanted && b.gradients->x ? 2 * rows_ * inputs_ : 0),
        dx_(wanted && b.gradients->dx ? rows_ * inputs_ : 0),
        ids_(wanted && b.gradients->ids ? 2 * rows_ : 0) {}

  explicit operator bool() const { return h_ && x_ && dx_ && ids_; }

  // (rows, hidden), (rows, inputs), (rows), (rows, inputs), or null as in Gradients.
  const float* h(int64_t lag) const { return h_.get() + (lag & 1) * rows_ * b_.hidden; }
  const float* x(int64_t lag) const {
    return b_.gradients->x ? x_.get() + (lag & 1) * rows_ * inputs_ : nullptr;
  }
  const int64_t* ids(int64_t lag) const {
    return b_.gradients->ids ? ids_.get() + (lag & 1) * rows_ : nullptr;
  }
  float* dx() const { return b_.gradients->dx ? dx_.get() : nullptr; }

  // Thread `part`'s share of the rows of a lag.
  void gather(int part, int threads, int64_t lag) const {
    const Gradients& g = *b_.gradients;
    float* h_to = h_.get() + (lag & 1) * rows_ * b_.hidden;
    float* x_to = x_.get() + (lag & 1) * rows_ * inputs_;
    int64_t* ids_to = ids_.get() + (lag & 1) * rows_;
    for (int64_t pass = part; pass < passes_.last(lag); pass += threads) {
      const int64_t step = passes_.step(pass, lag);
      copy(b_.layer[0].h, step, h_to, pass, b_.hidden);
      if (g.x) copy(g.x, step, x_to, pass, inputs_);
      if (g.ids) copy(g.ids, step, ids_to, pass, 1);
    }
  }

  // The same rows of `dx`, to where they belong.
  void scatter(int part, int threads, int64_t lag) const {
    for (int64_t pass = part; pass < passes_.last(lag); pass += threads)
      copy(dx_.get(), pass, b_.gradients->dx, passes_.step(pass, lag), inputs_);
  }

 private:
  // A batch of rows.
  template <typename T>
  void copy(const T* from, int64_t from_at, T* to, int64_t to_at, int64_t width) const {
    const int64_t size = b_.steps.batch * width;
    std::memcpy(to + to_at * size, from + from_at * size,
                static_cast<size_t>(size) * sizeof(T));
  }

  const Backward& b_;
  const Passes& passes_;
  const int64_t rows_, inputs_;
  Scratch<> h_, x_, dx_;
  Scratch<int64_t> ids_;
};

}  // namespace
}  // namespace bptt
