// The kernels without Python and PyTorch, for `make sanitize`: every variant that runs
// here against the reference. All arrays end where their shapes say, so that a sanitizer
// sees whoever goes past.
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdio>
#include <cstring>
#include <numeric>
#include <random>
#include <string>
#include <thread>
#include <vector>

#if defined(__unix__) || defined(__APPLE__)
#include <sys/wait.h>
#include <unistd.h>
#endif

#include "layer.h"
#include "padded.h"
#include "reference.h"
#include "threads.h"

namespace {

// Floats for the kernels, which promise no alignment; NaN where they are to be written.
class Floats {
 public:
  Floats(bool shifted, int64_t size, float value = NAN)
      : shift_(shifted), data_(shift_ + size, value) {}
  Floats(bool shifted, const Doubles& from) : Floats(shifted, from.size()) {
    std::copy(from.begin(), from.end(), get());
  }
  float* get() { return data_.data() + shift_; }
  std::vector<float> values() const { return {data_.begin() + shift_, data_.end()}; }

 private:
  ptrdiff_t shift_;
  std::vector<float> data_;
};

using Results = std::vector<Named<float>>;

// Where a problem's steps stand: as they are counted, or in its owner's padded rows.
class Standing {
 public:
  Standing(const Problem& p, const Steps& steps) : rows_(p.rows()), size_(p.rows()) {
    if (!p.s.padded) return;
    order_.resize(p.s.B);
    std::iota(order_.begin(), order_.end(), 0);
    std::mt19937 random(p.s.seed);
    std::shuffle(order_.begin(), order_.end(), random);
    padded_ = {p.s.T + static_cast<int64_t>(random() % 3), order_.data(),
               random() % 2 > 0, random() % 2 > 0};
    check(fits(padded_, steps), "the order of the rows");
    places_.resize(rows_);
    find_places(padded_, steps, places_.data());
    size_ = padded_.time * p.s.B;
  }
  Standing(const Standing&) = delete;

  Places get() const { return places_.empty() ? nullptr : places_.data(); }
  int64_t size() const { return size_; }

  // (size, width), NaN where no step stands.
  Floats pad(Floats packed, bool shifted, int64_t width) const {
    if (!get()) return packed;
    Floats all(shifted, size_ * width);
    for (int64_t row = 0; row < rows_; ++row)
      std::copy_n(packed.get() + row * width, width, all.get() + places_[row] * width);
    return all;
  }

  // The inverse, after zeros are in the padding and nothing else is changed.
  std::vector<float> pack(Team& team, const Steps& steps, Floats all, int64_t width) const {
    if (!get()) return all.values();
    const std::vector<float> before = all.values();
    clear_padding(team, padded_, steps, width, all.get());
    std::vector<float> rest = all.values(), packed(rows_ * width);
    for (int64_t row = 0; row < rows_; ++row) {
      const int64_t at = places_[row] * width;
      std::copy_n(before.begin() + at, width, packed.begin() + row * width);
      check(!std::memcmp(&rest[at], &before[at], width * sizeof(float)), "a step was cleared");
      std::fill_n(rest.begin() + at, width, 0.0f);
    }
    for (float each : rest) check(each == 0, "the padding is not zero");
    return packed;
  }

 private:
  const int64_t rows_;
  int64_t size_;
  std::vector<int64_t> order_, places_;
  Padded padded_{};
};

// Forward and back by the kernels, once.
class Computation {
 public:
  Computation(const Kernels& with, Team& by, const Problem& problem)
      : kernels(with), team(by), p(problem), s(problem.s),
        steps{s.T, s.B, s.ragged ? p.offsets.data() : nullptr,
              s.resets ? p.resets.data() : nullptr},
        standing(p, steps), ids(s.ids ? p.ids.data() : nullptr),
        tape_size(kernels.tape_floats(s.cell, p.rows(), s.H)) {
    for (int l = 0; l < s.layers; ++l) {
      U.push_back(floats(p.U[l]));
      W.push_back(floats(p.W[l]));
      b_ih.push_back(floats(p.b_ih[l]));
      b_hh.push_back(floats(p.b_hh[l]));
      mask.push_back(floats(p.mask[l]));
      in.push_back(l ? empty(states) : standing.pad(floats(p.x), s.shifted, s.I));
      h.push_back(empty(states + s.state()));
      tape.push_back(empty(tape_size));
      // Where every step is visited once, all of it is to be written.
      const int64_t deltas = p.rows() * delta_blocks(s.cell) * s.H;
      delta.push_back(empty(deltas, s.k1 == s.k2 ? NAN : 0));
      dU.push_back(empty(s.width() * s.inputs(l)));
      dW.push_back(empty(s.width() * s.H));
      db_ih.push_back(empty(s.width()));
      db_hh.push_back(empty(s.width()));
    }
    for (int l = 0; l < s.layers; ++l)
      stack.push_back({U[l].get(), W[l].get(), s.biases ? b_ih[l].get() : nullptr,
                       s.biases ? b_hh[l].get() : nullptr,
                       s.masked(l) ? mask[l].get() : nullptr, h[l].get(),
                       tape_size ? tape[l].get() : nullptr});
  }

  Results run() {
    Stack all{s.cell, steps, s.I, s.H, s.layers, stack.data(),
              ids ? nullptr : in[0].get(), ids, ids ? nullptr : standing.get(),
              h0.get(), lstm ? c0.get() : nullptr, y.get(), standing.get(),
              h_end.get(), lstm ? c_end.get() : nullptr};
    if (!stack_forward(kernels, team, all)) fail("stack_forward");
    forward_without_tapes(all);
    for (int l = 0; l < s.layers; ++l) forward_alone(l);
    s.along ? backward_along() : backward_together();
    return results();
  }

 private:
  Floats floats(const Doubles& from) const { return Floats(s.shifted, from); }
  Floats empty(int64_t size, float value = NAN) const {
    return Floats(s.shifted, size, value);
  }
  Floats join(const std::vector<Doubles>& parts) const {
    Doubles all;
    for (const Doubles& part : parts) all.insert(all.end(), part.begin(), part.end());
    return floats(all);
  }
  void fail(const char* what) const { check(false, std::string(what) + ", " + s.name()); }

  // The same bits.
  void forward_without_tapes(Stack all) {
    Floats again = empty(standing.size() * s.H);
    std::vector<StackLayer> loose = stack;
    for (StackLayer& layer : loose) layer.h = layer.tape = nullptr;
    all.layer = loose.data();
    all.y = again.get();
    if (!stack_forward(kernels, team, all)) fail("stack_forward");
    if (std::memcmp(again.get(), y.get(), standing.size() * s.H * sizeof(float)))
      fail("stack_forward without tapes");
  }

  // Layer l, whose input this forms: the same bits.
  void forward_alone(int l) {
    const size_t bytes = states * sizeof(float);
    for (int64_t i = 0; l && i < states; ++i)
      in[l].get()[i] = h[l - 1].get()[s.state() + i] * (s.masks ? mask[l - 1].get()[i] : 1);
    Floats again = empty(states), copy = again, start = floats(p.h0[l]), c = floats(p.c0[l]);
    Forward f{s.cell, steps, s.inputs(l), s.H, l || !ids ? in[l].get() : nullptr,
              l ? nullptr : ids, l || ids ? nullptr : standing.get(), U[l].get(), nullptr,
              W[l].get(), stack[l].b_ih, stack[l].b_hh, start.get(), again.get(),
              copy.get(), nullptr, lstm ? c.get() : nullptr, l % 2 ? stack[l].tape : nullptr};
    if (!layer_forward(kernels, team, f)) fail("layer_forward");
    if (std::memcmp(again.get(), h[l].get() + s.state(), bytes) ||
        std::memcmp(copy.get(), again.get(), bytes) ||
        (lstm && std::memcmp(c.get(), c_end.get() + l * s.state(), s.state() * sizeof(float))))
      fail("layer_forward against stack_forward");
  }

  BackwardLayer on_the_way_back(int l) {
    const int64_t at = l * s.state();
    return {W[l].get(), l ? U[l].get() : nullptr, h[l].get(), stack[l].tape,
            stack[l].mask, s.ends ? dh.get() + at : nullptr,
            s.ends && lstm ? dc.get() + at : nullptr, delta[l].get(),
            s.starts ? dh_start.get() + at : nullptr,
            s.starts && lstm ? dc_start.get() + at : nullptr};
  }

  Gradients gradients(int l, float* to) {
    Gradients g{};
    g.inputs = s.inputs(l);
    g.x = l || !ids ? in[l].get() : nullptr;
    g.ids = l ? nullptr : ids;
    g.x_places = l || ids ? nullptr : standing.get();
    g.U = U[l].get();
    g.dx = to;
    if (!s.weights) return g;
    g.dU = dU[l].get();
    g.dW = dW[l].get();
    g.db_ih = db_ih[l].get();
    g.db_hh = db_hh[l].get();
    return g;
  }

  float* input_error() { return s.dx && !ids ? dx.get() : nullptr; }

  // All layers and passes, then the products of the sums.
  void backward_together() {
    std::vector<BackwardLayer> layers;
    for (int l = 0; l < s.layers; ++l) layers.push_back(on_the_way_back(l));
    Backward b{s.cell, steps, s.H, s.k1, s.k2, 0, dy.get(), standing.get(), s.layers,
               layers.data(), nullptr};
    if (!layer_backward(kernels, team, b)) fail("layer_backward");
    for (int l = s.layers - 1; l >= 0; --l)
      if (!layer_gradients(kernels, team, s.cell, steps, s.H, delta[l].get(), h[l].get(),
                           gradients(l, l ? nullptr : input_error())))
        fail("layer_gradients");
  }

  // Layer after layer, each with its gradients.
  void backward_along() {
    Floats above = empty(states), below = above;
    Backward b{s.cell, steps, s.H, s.chunked ? s.T : s.k1, s.chunked ? s.T : s.k2,
               s.chunked ? s.k1 : 0, dy.get(), standing.get(), 1, nullptr, nullptr};
    for (int l = s.layers - 1; l >= 0; --l) {
      const Gradients g = gradients(l, l ? below.get() : input_error());
      BackwardLayer layer = on_the_way_back(l);
      layer.delta = nullptr;
      layer.mask = nullptr;
      b.layer = &layer;
      b.gradients = &g;
      if (!layer_backward(kernels, team, b)) fail("layer_backward along the way");
      for (int64_t i = 0; l && i < states; ++i)
        above.get()[i] = below.get()[i] * (s.masks ? mask[l - 1].get()[i] : 1);
      b.dy = above.get();
      b.dy_places = nullptr;
    }
  }

  Results results() {
    auto part = [&](Floats& of, int l, bool asked) {
      if (!asked) return std::vector<float>();
      return std::vector<float>(of.get() + l * s.state(), of.get() + (l + 1) * s.state());
    };
    auto maybe = [](const Floats& of, bool asked) {
      return asked ? of.values() : std::vector<float>();
    };
    Results all{{"y", standing.pack(team, steps, y, s.H)}};
    for (int l = 0; l < s.layers; ++l) {
      all.push_back({"h_end", part(h_end, l, true)});
      all.push_back({"c_end", part(c_end, l, lstm)});
      all.push_back({"dU", maybe(dU[l], s.weights)});
      all.push_back({"dW", maybe(dW[l], s.weights)});
      all.push_back({"db_ih", maybe(db_ih[l], s.weights)});
      all.push_back({"db_hh", maybe(db_hh[l], s.weights)});
      all.push_back({"dh_start", part(dh_start, l, s.starts)});
      all.push_back({"dc_start", part(dc_start, l, s.starts && lstm)});
    }
    all.push_back({"dx", input_error() ? standing.pack(team, steps, dx, s.I)
                                       : std::vector<float>()});
    return all;
  }

  const Kernels& kernels;
  Team& team;
  const Problem& p;
  const Case& s;
  const Steps steps;
  const Standing standing;
  const int64_t* const ids;
  const int64_t tape_size;
  const bool lstm = s.cell == Cell::kLstm;
  const int64_t states = p.rows() * s.H;
  Floats dy = standing.pad(floats(p.dy), s.shifted, s.H), dh = join(p.dh), dc = join(p.dc), h0 = join(p.h0);
  Floats c0 = join(p.c0), y = empty(standing.size() * s.H), h_end = empty(s.layers * s.state());
  Floats c_end = h_end, dh_start = empty(s.layers * s.state(), 0), dc_start = dh_start;
  // Along the way it is written where a pass comes by.
  Floats dx = empty(standing.size() * s.I, s.along && s.k2 < s.k1 ? 0 : NAN);
  std::vector<Floats> U, W, b_ih, b_hh, mask, in, h, tape, delta, dU, dW, db_ih, db_hh;
  std::vector<StackLayer> stack;
};

bool equal(const Results& a, const Results& b) {
  for (size_t i = 0; i < a.size(); ++i)
    if (a[i].data.size() != b[i].data.size() ||
        (!a[i].data.empty() && std::memcmp(a[i].data.data(), b[i].data.data(),
                                           a[i].data.size() * sizeof(float))))
      return false;
  return true;
}

// The largest difference, relative to the largest entry of its array.
double compare(const Results& found, const std::vector<Named<double>>& expected,
               const std::string& where) {
  double worst = 0;
  for (size_t i = 0; i < expected.size(); ++i) {
    const std::vector<float>& a = found[i].data;
    const Doubles& right = expected[i].data;
    check(found[i].name == expected[i].name && a.size() == right.size(), "shape, " + where);
    double largest = 0, apart = 0;
    for (double each : right) largest = std::max(largest, std::fabs(each));
    for (size_t j = 0; j < a.size(); ++j) {
      const double error = std::fabs(a[j] - right[j]);
      apart = std::isnan(error) || error > apart ? error : apart;
      if (std::isnan(error)) break;
    }
    check(apart <= 2e-5 * largest, found[i].name + " of array " + std::to_string(i) +
                                       " apart by " + std::to_string(apart) + " of " +
                                       std::to_string(largest) + ", " + where);
    if (largest > 0) worst = std::max(worst, apart / largest);
  }
  return worst;
}

std::vector<const Kernels*> variants() {
  std::vector<const Kernels*> found;
  for (auto kernels = built_kernels; *kernels; ++kernels)
    if (runs_here(**kernels)) found.push_back(*kernels);
  return found;
}

Results alone(const Kernels& kernels, int threads, const Problem& p) {
  Team team(threads);
  check(team.size() == threads, "a team of " + std::to_string(threads));
  return Computation(kernels, team, p).run();
}

// Lengths and resets, each alone and together.
constexpr bool kDiffering[][2] = {{true, false}, {false, true}, {true, true}};

// Sizes at which something begins or ends (a lane, a panel, a piece, the rows of the
// unpacked path), and random ones; where rows differ, also small ones under each
// truncation.
std::vector<Case> cases(Cell cell, bool along, bool differ) {
  const int64_t edges[][4] = {{1, 1, 1, 1},    {8, 1, 65, 33},  {2, 4, 3, 129}, {9, 1, 2, 31},
                              {9, 70, 4, 6},   {3, 7, 65, 130}, {2, 5, 300, 9}, {2, 5, 4, 270},
                              {2, 300, 3, 5},  {9, 16, 16, 16}, {5, 48, 7, 32}, {9, 2, 1, 64},
                              {4, 13, 40, 97}, {4, 2, 270, 300},
                              {1, 1, 65, 5}};
  const int64_t count = std::size(edges), large = count + 16;
  const int64_t total = large + (differ ? along ? 12 : 72 : 0);
  std::mt19937 random(100 * static_cast<unsigned>(cell) + 10 * differ + along);
  auto upto = [&](int64_t most) { return static_cast<int64_t>(1 + random() % most); };
#if defined(__SANITIZE_THREAD__)
  const int64_t stride = 5;  // races do not hide in sizes, and each number costs more
#else
  const int64_t stride = 1;
#endif
  std::vector<Case> all;
  for (int64_t at = 0; at < total; at += stride) {
    const bool edge = at < count, small = at >= large;
    Case s{};
    s.cell = cell;
    do {
      s.T = edge ? edges[at][0] + (differ ? 3 : 0) : upto(small ? 14 : 9);
      s.B = edge ? edges[at][1] : upto(small ? 20 : 70);
      s.I = edge ? edges[at][2] : upto(small ? 9 : 65);
      s.H = edge ? edges[at][3] : upto(small ? 24 : 130);
    } while (!edge && s.T * s.B * s.width() * (s.H + s.I) > 3000000);
    const int64_t T = s.T;
    const int64_t cuts[][2] = {{1, 3}, {4, 2}, {2, 5},     {3, 3},         {1, T + 3}, {T + 2, 5},
                               {5, 6}, {1, 1}, {3, T + 9}, {T + 2, T + 2}, {T, T},     {T + 9, 2}};
    s.k1 = along ? T : cuts[at % std::size(cuts)][0];
    s.k2 = along ? T : cuts[at % std::size(cuts)][1];
    s.along = along;
    s.layers = (small ? at / 36 : at) % 3 == 1 && s.H * s.B < 3000 ? 3 : 1;
    if (differ) {
      s.ragged = kDiffering[(at + at / 12) % 3][0];
      s.resets = kDiffering[(at + at / 12) % 3][1];
      s.padded = s.ragged && at % 5 > 1;
    } else if (along && s.layers == 1 && at % 2) {  // no step is visited twice
      s.k1 = 1 + (T - 1) * (at % 5 + 1) / 5;
      s.k2 = at % 3 ? s.k1 : (s.k1 + 1) / 2;
    }
    if (along && at % 3 == 1) {
      s.k1 = s.k2 = 1 + (T - 1) * (at % 4) / 4;
      s.chunked = true;
    }
    s.ids = at % 4 == 3 || at + 1 == count;
    s.biases = at % 5 != 2;
    s.masks = at % 7 != 4;
    s.ends = at % 6 != 5;
    s.starts = at % 5 != 4;
    s.dx = at % 4 != 0;
    s.weights = at % 11 != 10;
    s.shifted = at % 2;
    s.seed = static_cast<unsigned>(at);
    all.push_back(s);
  }
  return all;
}

void test_reference() {
  int count = 0;
  for (int cell = 0; cell < 4; ++cell)
    for (int64_t k1 = 1; k1 <= 6; ++k1)
      for (int64_t k2 : {1, 2, 3, 5, 9})
        for (int layers : {1, 3})
          for (int rows = 0; rows < 4; ++rows) {
            Case s{};
            s.cell = static_cast<Cell>(cell);
            s.layers = layers;
            s.T = 5, s.B = 3, s.I = 3, s.H = 4, s.k1 = k1, s.k2 = k2;
            s.ragged = rows & 1;
            s.resets = rows & 2;
            s.seed = static_cast<unsigned>(++count);
            const Problem p(s);
            Reference(p).check_differences();
          }
  std::printf("the reference against differences: %d truncations\n", count);
}

// A problem whose results do not hang on rounding.
Problem steady(Case s) {
  Problem p(s);
  while (s.cell == Cell::kRelu && Reference(p).at_kink()) s.seed += 1000, p = Problem(s);
  return p;
}

void test_cell(Cell cell, bool along, bool differ) {
  double worst = 0;
  const std::vector<Case> all = cases(cell, along, differ);
  for (const Case& s : all) {
    const Problem p = steady(s);
    const std::vector<Named<double>> expected = Reference(p).results();
    for (const Kernels* kernels : variants()) {
      const std::string where = std::string(kernels->name) + ", " + p.s.name();
      const Results one = alone(*kernels, 1, p);
      if (s.padded) {
        Problem packed = p;
        packed.s.padded = false;
        check(equal(alone(*kernels, 1, packed), one), "padded rows give other bits, " + where);
      }
      worst = std::max(worst, compare(one, expected, where));
      // Whether they share the units or some help depends on what it costs to meet.
      for (int threads : {2, 3, 5})
        for (double meeting : {1.0, 1e6}) {
          Team::assume_meeting(meeting);
          check(equal(alone(*kernels, threads, p), one),
                std::to_string(threads) + " threads give other bits, " + where);
        }
      Team::assume_meeting(0);
    }
  }
  const char* names[] = {"tanh", "relu", "GRU", "LSTM"};
  std::printf("%s, %s%s: %zu cases, at most %.1e apart\n", names[static_cast<int>(cell)],
              along ? "gradients along the way" : "truncated",
              differ ? ", lengths or resets" : "", all.size(), worst);
}

// As much padding as several threads share.
void test_padding() {
  Case s{};
  s.T = 9, s.B = 7, s.I = s.H = 1;
  s.ragged = s.padded = true;
  constexpr int64_t kWidth = 40000;
  for (int threads : {1, 3})
    for (s.seed = 0; s.seed < 8; ++s.seed) {
      const Problem p(s);
      const Steps steps{s.T, s.B, p.offsets.data(), nullptr};
      const Standing standing(p, steps);
      Team team(threads);
      const Floats ones(false, p.rows() * kWidth, 1);
      check(standing.pack(team, steps, standing.pad(ones, false, kWidth), kWidth) ==
                ones.values(),
            "wide padding, seed " + std::to_string(s.seed));
    }
  std::printf("wide padding: done\n");
}

// LSTM is what uses most of everything.
Problem typical() {
  Case s{};
  s.cell = Cell::kLstm;
  s.layers = 2;
  s.T = 7, s.B = 21, s.I = 9, s.H = 37, s.k1 = 2, s.k2 = 5;
  s.ragged = s.resets = s.padded = true;
  return Problem(s);
}

void test_callers() {
  const Problem p = typical();
  for (const Kernels* kernels : variants()) {
    const Results expected = alone(*kernels, 1, p);
    std::vector<int> wrong(8, 0);
    std::vector<std::thread> callers;
    for (int& mine : wrong)
      callers.emplace_back([&, at = &mine] {
        for (int again = 0; again < 4; ++again) {
          Team team(3);  // one caller has the pool, the others run alone
          *at += !equal(Computation(*kernels, team, p).run(), expected);
        }
      });
    for (std::thread& caller : callers) caller.join();
    for (int each : wrong) check(!each, std::string("8 callers at once, ") + kernels->name);
  }
  std::printf("8 callers at once: done\n");
}

// A child has threads of its own, whatever its parent did with the pool.
void test_fork([[maybe_unused]] const char* when) {
#if (defined(__unix__) || defined(__APPLE__)) && !defined(__SANITIZE_THREAD__)
  const pid_t child = fork();
  if (child == 0) {
    alarm(30);
    const Problem p = typical();
    const Kernels& kernels = *variants()[0];
    const int before = failures;
    check(equal(alone(kernels, 3, p), alone(kernels, 1, p)), "in a child");
    std::fflush(stdout);
    _exit(failures > before);
  }
  int status = 1;
  check(child > 0 && waitpid(child, &status, 0) == child && status == 0,
        std::string("fork ") + when + ", status " + std::to_string(status));
  std::printf("fork %s: done\n", when);
  std::fflush(stdout);
#endif
}

}  // namespace

int main() {
  std::setvbuf(stdout, nullptr, _IOLBF, 0);
  watch_forks();
  std::printf("variants:");
  for (const Kernels* kernels : variants()) std::printf(" %s", kernels->name);
  std::printf("\n");
  test_fork("before the pool is used");
  test_reference();
  for (int cell = 0; cell < 4; ++cell)
    for (bool along : {true, false})
      for (bool differ : {false, true}) test_cell(static_cast<Cell>(cell), along, differ);
  test_padding();
  test_callers();
  test_fork("beside idle workers");
  {
    Team held(2);
    test_fork("while a call has the pool");
  }
  return finish();
}
