// Lag by lag, every output with a pass of its own, against the loop that sums over all
// lags; by every variant that runs here, with the same bits from any number of threads.
// Arrays end where their shapes say, so that a sanitizer sees whoever goes past.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <iterator>
#include <random>
#include <string>
#include <vector>

#include "check.h"
#include "layer.h"
#include "scratch.h"
#include "threads.h"

namespace {

using namespace bptt;
using Floats = std::vector<float>;

struct Sizes {
  int64_t T, B, H;
};

// One layer with random weights over random steps, run forward.
class Layer {
 public:
  Layer(const Kernels& kernels, Team& team, Cell cell, Sizes sizes)
      : kernels_(kernels), team_(team), cell_(cell), s_(sizes) {
    std::mt19937 random(7);
    auto fill = [&](int64_t size) {
      Floats a(size);
      for (float& each : a) each = static_cast<float>(random() / 2147483648.0 - 1);
      return a;
    };
    const int64_t width = gates(cell) * s_.H;
    U_ = fill(width * kInputs), W_ = fill(width * s_.H), x_ = fill(rows() * kInputs);
    for (float& each : W_) each *= 2 / std::sqrt(static_cast<float>(s_.H));
    dy_ = fill(rows() * s_.H), dc_ = fill(rows() * s_.H);
    Floats start(s_.B * s_.H), c = start, end = start, c_end = start, y(rows() * s_.H);
    h_.resize((s_.B + rows()) * s_.H);
    tape_.resize(kernels.tape_floats(cell, rows(), s_.H));
    StackLayer layer{U_.data(), W_.data(), nullptr, nullptr, nullptr, h_.data(),
                     tape_.empty() ? nullptr : tape_.data()};
    Stack stack{};
    stack.cell = cell, stack.steps = steps(), stack.inputs = kInputs;
    stack.hidden = s_.H, stack.layers = 1, stack.layer = &layer;
    stack.x = x_.data(), stack.h0 = start.data(), stack.y = y.data();
    stack.h_end = end.data();
    if (lstm()) stack.c0 = c.data(), stack.c_end = c_end.data();
    check(stack_forward(kernels, team, stack), "stack_forward");
  }

  // The deltas of all lags, (rows, delta_blocks * H), summed per step; `found` gets the
  // squares, and the errors that leave, of every lag.
  Floats by_lag(Floats& found) {
    const int64_t H = s_.H, blocks = delta_blocks(cell_) * H;
    Floats sums(rows() * blocks), ds = dy_, dc(lstm() ? rows() * H : 0);
    Scratch<> packed(kernels_.packed_floats(cell_, H));
    for (int64_t lag = 0; lag < s_.T; ++lag) {
      const int64_t steps = s_.T - lag, n = steps * s_.B;
      Floats delta(n * blocks, NAN), before(n * H, NAN), squares(n, NAN);
      Floats dc_before(dc.empty() ? 0 : n * H, NAN), squares_c(dc.empty() ? 0 : n, NAN);
      LagBack g{cell_, s_.T, s_.B, H, steps, lag ? nullptr : W_.data(), packed.get(),
                h_.data(), tape_.empty() ? nullptr : tape_.data(), ds.data(), data(dc),
                delta.data(), before.data(), data(dc_before), squares.data(),
                data(squares_c)};
      check(kernels_.back_lag(team_, g), "back_lag");
      unread(g, before);
      hold(squares, ds), hold(squares_c, dc);
      for (int64_t i = 0; i < n * blocks; ++i) sums[i] += delta[i];
      for (const Floats* each : {&squares, &squares_c, &before, &dc_before})
        found.insert(found.end(), each->begin(), each->end());
      // The pass at step i goes to step i - 1.
      ds.assign(before.begin() + s_.B * H, before.end());
      if (lstm()) dc.assign(dc_before.begin() + s_.B * H, dc_before.end());
    }
    return sums;
  }

  // The same sums by the loop of training.
  Floats at_once() {
    Floats sums(rows() * delta_blocks(cell_) * s_.H);
    BackwardLayer layer{};
    layer.W = W_.data(), layer.h = h_.data();
    layer.tape = tape_.empty() ? nullptr : tape_.data();
    layer.delta = sums.data();
    Backward b{};
    b.cell = cell_, b.steps = steps(), b.hidden = s_.H, b.k1 = 1, b.k2 = s_.T;
    b.dy = dy_.data(), b.layers = 1, b.layer = &layer;
    check(layer_backward(kernels_, team_, b), "layer_backward");
    return sums;
  }

 private:
  static constexpr int64_t kInputs = 3;

  bool lstm() const { return cell_ == Cell::kLstm; }
  int64_t rows() const { return s_.T * s_.B; }
  Steps steps() const {
    Steps all{};
    all.time = s_.T, all.batch = s_.B;
    return all;
  }
  static float* data(Floats& a) { return a.empty() ? nullptr : a.data(); }

  // Deltas that nobody reads change no error.
  void unread(LagBack g, const Floats& before) const {
    Floats again(before.size(), NAN), squares(g.steps * s_.B, NAN), dc_again = again;
    g.delta = nullptr, g.ds_before = again.data(), g.squares = squares.data();
    if (lstm()) g.dc_before = dc_again.data(), g.squares_c = squares.data();
    check(kernels_.back_lag(team_, g), "back_lag");
    check(!std::memcmp(again.data(), before.data(), again.size() * sizeof(float)),
          "errors without deltas");
  }

  void hold(const Floats& squares, const Floats& errors) const {
    for (size_t r = 0; r < squares.size(); ++r) {
      double sum = 0;
      for (int64_t i = 0; i < s_.H; ++i) sum += std::pow(double{errors[r * s_.H + i]}, 2);
      check(std::fabs(squares[r] - sum) <= 1e-5 * sum, "squares");
    }
  }

  const Kernels& kernels_;
  Team& team_;
  const Cell cell_;
  const Sizes s_;
  Floats U_, W_, x_, dy_, dc_, h_, tape_;
};

void test(const Kernels& kernels, Cell cell, Sizes sizes) {
  const std::string name = std::string(kernels.name) + " cell " +
                           std::to_string(static_cast<int>(cell)) + " T " +
                           std::to_string(sizes.T) + " B " + std::to_string(sizes.B) +
                           " H " + std::to_string(sizes.H);
  Floats first;
  for (int threads : {1, 2, 3}) {
    Team team(threads);
    Layer layer(kernels, team, cell, sizes);
    Floats found;
    const Floats sums = layer.by_lag(found), expected = layer.at_once();
    float largest = 0, apart = 0;
    for (size_t i = 0; i < sums.size(); ++i) {
      largest = std::max(largest, std::fabs(expected[i]));
      const float error = std::fabs(sums[i] - expected[i]);
      apart = error > apart || std::isnan(error) ? error : apart;
    }
    check(apart <= 2e-5f * largest, "sums, " + name);
    found.insert(found.end(), sums.begin(), sums.end());
    if (threads == 1) first = found;
    check(!std::memcmp(first.data(), found.data(), found.size() * sizeof(float)),
          "bits, " + name);
  }
}

}  // namespace

int main() {
  const Sizes sizes[] = {{1, 1, 1},   {5, 1, 31},  {4, 3, 33},  {3, 50, 64},
                         {9, 2, 130}, {2, 300, 5}, {6, 16, 16}, {3, 8, 300}};
  for (auto kernels = built_kernels; *kernels; ++kernels) {
    if (!runs_here(**kernels)) continue;
    for (int cell = 0; cell < 4; ++cell)
      for (const Sizes& each : sizes) test(**kernels, static_cast<Cell>(cell), each);
  }
  return finish();
}
