// The kernels without Python, for sanitizers: every variant, cell and truncation over odd
// sizes, in arrays that end where their shapes say, on several threads. The numbers are
// held to the baseline variant on one thread, which the Python tests hold to float64.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <thread>
#include <vector>

#include "layer.h"
#include "threads.h"

namespace {

using namespace bptt;

struct Array {
  std::vector<float> data;
  explicit Array(int64_t size) : data(static_cast<size_t>(size)) {}
  float* get() { return data.data(); }
};

struct Shape {
  int64_t time, batch, inputs, hidden;
  int layers;
  int64_t k1, k2;
  bool ids, bias, mask;
};

using Results = std::vector<std::vector<float>>;

// Forward and back; everything that comes out.
Results run(const Kernels& kernels, int threads, Cell cell, const Shape& s) {
  std::mt19937 random(7);
  std::normal_distribution<float> normal;
  auto fill = [&](int64_t size, float scale) {
    Array a(size);
    for (float& x : a.data) x = scale * normal(random);
    return a;
  };
  const int64_t T = s.time, B = s.batch, I = s.inputs, H = s.hidden;
  const int64_t width = gates(cell) * H, state = s.layers * B * H;
  const float scale = 1.0f / std::sqrt(static_cast<float>(H));
  const bool lstm = cell == Cell::kLstm;
  Array x = fill(T * B * I, 1), dy = fill(T * B * H, 1);
  Array dh = fill(state, 1), dc = fill(state, 1);
  std::vector<int64_t> ids(static_cast<size_t>(T * B));
  for (int64_t& id : ids) id = static_cast<int64_t>(random() % static_cast<unsigned>(I));
  std::vector<Array> U, W, b_ih, b_hh, mask, h, tape, delta;
  for (int l = 0; l < s.layers; ++l) {
    U.push_back(fill(width * (l ? H : I), scale));
    W.push_back(fill(width * H, scale));
    b_ih.push_back(fill(width, 0.1f));
    b_hh.push_back(fill(width, 0.1f));
    mask.push_back(fill(T * B * H, 1));
    h.emplace_back((T + 1) * B * H);
    tape.emplace_back(kernels.tape_floats(cell, T, B, H));
    delta.emplace_back(T * B * delta_blocks(cell) * H);
  }
  Array h0 = fill(state, 1), c0 = fill(state, 1), y(T * B * H), h_end(state), c_end(state);
  std::vector<StackLayer> stack;
  for (size_t l = 0; l < static_cast<size_t>(s.layers); ++l)
    stack.push_back({U[l].get(), W[l].get(), s.bias ? b_ih[l].get() : nullptr,
                     s.bias ? b_hh[l].get() : nullptr,
                     s.mask && l + 1 < static_cast<size_t>(s.layers) ? mask[l].get() : nullptr,
                     h[l].get(), tape[l].data.empty() ? nullptr : tape[l].get()});
  Stack forward{cell, T, B, I, H, s.layers, stack.data(), s.ids ? nullptr : x.get(),
                s.ids ? ids.data() : nullptr, h0.get(), lstm ? c0.get() : nullptr, y.get(),
                h_end.get(), lstm ? c_end.get() : nullptr};
  Team team(threads);
  bool done = stack_forward(kernels, team, forward);
  Results results{y.data, h_end.data, c_end.data};
  std::vector<StackLayer> loose = stack;
  for (StackLayer& layer : loose) layer.h = layer.tape = nullptr;
  forward.layer = loose.data();
  done = done && stack_forward(kernels, team, forward);
  results.push_back(y.data);

  const bool full = s.k1 >= T && s.k2 >= s.k1 && s.layers == 1;
  Array dh_start(state), dc_start(state);
  std::vector<BackwardLayer> layers;
  for (size_t l = 0; l < static_cast<size_t>(s.layers); ++l) {
    const size_t at = l * static_cast<size_t>(B * H);
    layers.push_back({W[l].get(), U[l].get(), h[l].get(), stack[l].tape, stack[l].mask,
                      dh.get() + at, lstm ? dc.get() + at : nullptr,
                      full ? nullptr : delta[l].get(), dh_start.get() + at,
                      lstm ? dc_start.get() + at : nullptr});
  }
  Array dU(width * I), dW(width * H), db_ih(width), db_hh(width), dx(T * B * I);
  Gradients g{I, forward.x, forward.ids, U[0].get(), dU.get(), false, dW.get(),
              db_ih.get(), db_hh.get(), s.ids ? nullptr : dx.get()};
  Backward backward{cell, T, B, H, full ? T : s.k1, full ? T : s.k2, dy.get(), s.layers,
                    layers.data(), full ? &g : nullptr};
  done = done && layer_backward(kernels, team, backward);
  if (!full)
    done = done && layer_gradients(kernels, team, cell, T, B, H, delta[0].get(),
                                   h[0].get(), g);
  if (!done) std::printf("no memory\n"), std::exit(1);
  for (Array* a : {&dU, &dW, &db_ih, &db_hh, &dx, &dh_start, &dc_start})
    results.push_back(a->data);
  return results;
}

double distance(const Results& a, const Results& b) {
  double worst = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    double most = 1e-30, apart = 0;
    for (size_t j = 0; j < a[i].size(); ++j) {
      most = std::max(most, std::fabs(static_cast<double>(b[i][j])));
      double error = std::fabs(static_cast<double>(a[i][j]) - b[i][j]);
      if (!(error <= apart)) apart = error;  // NaN too
    }
    if (!(apart / most <= worst)) worst = apart / most;
  }
  return worst;
}

}  // namespace

int main() {
  watch_forks();
  const Kernels* baseline = nullptr;
  for (auto k = built_kernels; *k; ++k) baseline = *k;
  const std::vector<Shape> shapes = {
      {1, 1, 1, 1, 1, 99, 99, false, true, false},
      {5, 3, 4, 7, 1, 99, 99, false, true, false},
      {9, 1, 33, 65, 1, 99, 99, true, true, false},
      {7, 33, 17, 31, 1, 99, 99, false, false, false},
      {4, 70, 65, 130, 1, 99, 99, false, true, false},
      {30, 12, 300, 40, 1, 99, 99, false, true, false},
      {9, 3, 5, 33, 1, 1, 4, false, true, false},
      {9, 2, 400, 16, 1, 2, 5, true, false, false},
      {9, 2, 5, 16, 1, 4, 2, false, true, false},
      {5, 9, 5, 17, 1, 9, 2, false, true, false},
      {8, 3, 4, 33, 3, 3, 7, false, true, true},
      {8, 3, 4, 20, 2, 4, 4, true, true, false},
      {20, 40, 24, 96, 1, 1, 5, false, true, false},
  };
  int failures = 0, checks = 0;
  for (auto k = built_kernels; *k; ++k) {
    if (!runs_here(**k)) continue;
    for (int cell = 0; cell < 4; ++cell)
      for (size_t i = 0; i < shapes.size(); ++i) {
        const Cell kind = static_cast<Cell>(cell);
        const Results expected = run(*baseline, 1, kind, shapes[i]);
        const Results one = run(**k, 1, kind, shapes[i]);
        bool right = distance(one, expected) < 2e-5;
        for (int threads : {2, 3, 5}) right = right && run(**k, threads, kind, shapes[i]) == one;
        ++checks;
        if (!right) {
          ++failures;
          std::printf("wrong: %s, cell %d, shape %zu, %g\n", (*k)->name, cell, i,
                      distance(one, expected));
        }
      }
    // Calls from several threads at once: one has the pool, the others run alone.
    const Results expected = run(**k, 1, Cell::kLstm, shapes[4]);
    std::vector<int> wrong(8, 0);
    std::vector<std::thread> callers;
    for (size_t at = 0; at < wrong.size(); ++at)
      callers.emplace_back([&, at] {
        for (int again = 0; again < 3; ++again)
          wrong[at] += run(**k, 2, Cell::kLstm, shapes[4]) != expected;
      });
    for (std::thread& caller : callers) caller.join();
    for (int each : wrong) failures += each > 0, ++checks;
    std::printf("%s: done\n", (*k)->name);
  }
  std::printf("%d checks, %d failures\n", checks, failures);
  return failures > 0;
}
