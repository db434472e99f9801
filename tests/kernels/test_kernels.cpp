// The kernels without Python and PyTorch, for `make sanitize`: every variant that runs
// here against backpropagation written out in double precision, one number at a time, one
// pass of the truncation after the other; that in turn against differences. All arrays
// end where their shapes say, so that a sanitizer sees whoever goes past.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <random>
#include <string>
#include <thread>
#include <vector>

#if defined(__unix__) || defined(__APPLE__)
#include <sys/wait.h>
#include <unistd.h>
#endif

#include "blocks.h"
#include "layer.h"
#include "threads.h"

namespace {

using namespace bptt;
using Doubles = std::vector<double>;

std::atomic<int> failures{0};

void check(bool right, const std::string& what) {
  if (!right && ++failures <= 20) std::printf("  FAILED: %s\n", what.c_str());
}

struct Case {
  Cell cell;
  int layers;
  int64_t T, B, I, H, k1, k2;
  bool along = false;  // gradients formed along the way, layer after layer if full BPTT
  bool ids = false, biases = true, masks = true;
  bool ends = true, starts = true, dx = true, weights = true;  // what is given, asked for
  bool shifted = false;                                        // arrays off by one float
  unsigned seed = 0;

  int64_t width() const { return gates(cell) * H; }
  int64_t inputs(int l) const { return l ? H : I; }
  int64_t state() const { return B * H; }
  bool masked(int l) const { return masks && l + 1 < layers; }
  std::string name() const {
    std::string text;
    auto add = [&](const char* key, int64_t value) {
      text += std::string(key) + "=" + std::to_string(value) + " ";
    };
    add("cell", static_cast<int>(cell)), add("layers", layers), add("T", T), add("B", B);
    add("I", I), add("H", H), add("k1", k1), add("k2", k2), add("along", along);
    add("ids", ids), add("biases", biases), add("masks", masks), add("ends", ends);
    add("starts", starts), add("dx", dx), add("weights", weights);
    add("shifted", shifted), add("seed", seed);
    return text;
  }
};

// What is given: numbers that a float holds exactly. Outer vectors are over layers.
struct Problem {
  Case s;
  std::vector<int64_t> ids;                    // (T, B)
  Doubles x, dy;                               // (T, B, I), (T, B, H)
  std::vector<Doubles> U, W, b_ih, b_hh;       // as in Forward
  std::vector<Doubles> mask, h0, c0, dh, dc;   // (T, B, H), (B, H)...

  explicit Problem(const Case& given) : s(given) {
    std::mt19937 random(s.seed);
    auto fill = [&](int64_t size, double scale) {
      Doubles a(size);
      for (double& each : a)
        each = static_cast<float>(scale * (static_cast<double>(random()) / 2147483648.0 - 1));
      return a;
    };
    for (int64_t i = 0; i < s.T * s.B; ++i) ids.push_back(random() % s.I);
    x = fill(s.T * s.B * s.I, 1);
    dy = fill(s.T * s.state(), 1);
    for (int l = 0; l < s.layers; ++l) {
      // Not so large that a single unit saturates, and its slope is lost to rounding.
      auto scale = [](int64_t terms) { return std::min(1.0, 2 / std::sqrt(terms)); };
      U.push_back(fill(s.width() * s.inputs(l), s.ids && !l ? 1 : scale(s.inputs(l))));
      W.push_back(fill(s.width() * s.H, scale(s.H)));
      for (auto* b : {&b_ih, &b_hh}) b->push_back(fill(s.width(), s.biases ? 0.5 : 0));
      mask.push_back(fill(s.T * s.state(), 2));
      for (auto* start : {&h0, &c0}) start->push_back(fill(s.state(), 1));
      for (auto* end : {&dh, &dc}) end->push_back(fill(s.state(), s.ends ? 1 : 0));
    }
  }
};

double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }

// (layers, ...) at one moment.
struct State {
  std::vector<Doubles> h, c;
};

// One step of one layer: U x + b_ih and W h + b_hh apart, as a GRU needs them.
struct Step {
  Doubles in, gx, gh, h_before, c_before, c;
};

// The whole stack one step on; `steps` (layers) is what the way back needs.
void advance(const Problem& p, int64_t t, State& state, std::vector<Step>& steps) {
  const Case& s = p.s;
  steps.resize(s.layers);
  for (int l = 0; l < s.layers; ++l) {
    const int64_t I = s.inputs(l), H = s.H, width = s.width();
    Step& k = steps[l];
    k.in.assign(s.B * I, 0);
    for (int64_t i = 0; i < s.B * I; ++i)
      if (l)
        k.in[i] = state.h[l - 1][i] * (s.masks ? p.mask[l - 1][t * s.B * H + i] : 1);
      else
        k.in[i] = s.ids ? p.ids[t * s.B + i / I] == i % I : p.x[t * s.B * I + i];
    k.h_before = state.h[l];
    k.c_before = state.c[l];
    k.gx.resize(s.B * width);
    k.gh.resize(s.B * width);
    for (int64_t b = 0; b < s.B; ++b)
      for (int64_t j = 0; j < width; ++j) {
        double x = p.b_ih[l][j], h = p.b_hh[l][j];
        const double *u = &p.U[l][j * I], *w = &p.W[l][j * H];
        const double *in = &k.in[b * I], *before = &k.h_before[b * H];
        for (int64_t i = 0; i < I; ++i) x += u[i] * in[i];
        for (int64_t i = 0; i < H; ++i) h += w[i] * before[i];
        k.gx[b * width + j] = x;
        k.gh[b * width + j] = h;
      }
    for (int64_t i = 0; i < s.state(); ++i) {
      const double* gx = &k.gx[i / H * width + i % H];
      const double* gh = &k.gh[i / H * width + i % H];
      auto z = [&](int gate) { return gx[gate * H] + gh[gate * H]; };
      double &h = state.h[l][i], &c = state.c[l][i];
      if (s.cell == Cell::kTanh) h = std::tanh(z(0));
      if (s.cell == Cell::kRelu) h = std::max(0.0, z(0));
      if (s.cell == Cell::kGru) {
        const double n = std::tanh(gx[2 * H] + sigmoid(z(0)) * gh[2 * H]);
        h = (1 - sigmoid(z(1))) * n + sigmoid(z(1)) * h;
      }
      if (s.cell == Cell::kLstm) {
        c = sigmoid(z(1)) * c + sigmoid(z(0)) * std::tanh(z(2));
        h = sigmoid(z(3)) * std::tanh(c);
      }
    }
    k.c = state.c[l];
  }
}

// A name and an array; in the same order for the reference and the kernels.
template <typename T>
struct Named {
  std::string name;
  std::vector<T> data;
};

// One run back: the outputs [begin, ...) and the steps [first, last] of the stack.
struct Pass {
  int64_t begin, first, last;
};

std::vector<Pass> passes(const Case& s) {
  std::vector<Pass> all;
  for (int64_t begin = 0; begin < s.T; begin += s.k1) {
    const int64_t end = begin + s.k1 - 1;  // nominal
    all.push_back({begin, std::max<int64_t>(0, end - s.k2 + 1), std::min(end, s.T - 1)});
  }
  return all;
}

class Reference {
 public:
  explicit Reference(const Problem& problem) : p(problem), s(problem.s) {
    State state{p.h0, p.c0};
    states.push_back(state);
    for (int64_t t = 0; t < s.T; ++t) {
      steps.emplace_back();
      advance(p, t, state, steps.back());
      states.push_back(state);
    }
    for (int l = 0; l < s.layers; ++l) {
      dU.emplace_back(p.U[l].size());
      dW.emplace_back(p.W[l].size());
      for (auto* db : {&db_ih, &db_hh}) db->emplace_back(s.width());
      for (auto* start : {&dh0, &dc0}) start->emplace_back(s.state());
    }
    dx.resize(p.x.size());
    for (const Pass& pass : passes(s)) back(pass);
  }

  // Whether a rectifier stands so close to its kink that rounding may turn it.
  bool at_kink() const {
    bool near = false;
    for (const auto& layers : steps)
      for (const Step& k : layers)
        for (size_t i = 0; s.cell == Cell::kRelu && i < k.gx.size(); ++i)
          near |= std::fabs(k.gx[i] + k.gh[i]) < 2e-6;
    return near;
  }

  std::vector<Named<double>> results() const {
    std::vector<Named<double>> all;
    Doubles y;
    for (int64_t t = 1; t <= s.T; ++t)
      y.insert(y.end(), states[t].h.back().begin(), states[t].h.back().end());
    all.push_back({"y", y});
    for (int l = 0; l < s.layers; ++l) {
      all.push_back({"h_end", states.back().h[l]});
      all.push_back({"c_end", s.cell == Cell::kLstm ? states.back().c[l] : Doubles()});
      all.push_back({"dU", s.weights ? dU[l] : Doubles()});
      all.push_back({"dW", s.weights ? dW[l] : Doubles()});
      all.push_back({"db_ih", s.weights ? db_ih[l] : Doubles()});
      all.push_back({"db_hh", s.weights ? db_hh[l] : Doubles()});
      all.push_back({"dh_start", s.starts ? dh0[l] : Doubles()});
      all.push_back({"dc_start", s.starts && s.cell == Cell::kLstm ? dc0[l] : Doubles()});
    }
    all.push_back({"dx", s.dx && !s.ids ? dx : Doubles()});
    return all;
  }

  // The gradient times a direction, and the same by differences: each pass's own error,
  // from its first step on, with the state before that step held fast.
  void check_differences() const {
    Case other = s;
    other.seed += 1000;
    const Problem direction(other);
    auto inner = [](const std::vector<Doubles>& a, const std::vector<Doubles>& b) {
      double sum = 0;
      for (size_t l = 0; l < a.size(); ++l)
        for (size_t i = 0; i < a[l].size(); ++i) sum += a[l][i] * b[l][i];
      return sum;
    };
    const double expected =
        inner(dU, direction.U) + inner(dW, direction.W) + inner(db_ih, direction.b_ih) +
        inner(db_hh, direction.b_hh) + inner(dh0, direction.h0) + inner({dx}, {direction.x}) +
        (s.cell == Cell::kLstm ? inner(dc0, direction.c0) : 0);
    const double e = 1e-6;
    const double found = (energy(direction, e) - energy(direction, -e)) / (2 * e);
    check(std::fabs(found - expected) < 1e-6 * (1 + std::fabs(expected)),
          "the reference against differences, " + s.name() + std::to_string(found) + " " +
              std::to_string(expected));
  }

 private:
  double energy(const Problem& direction, double e) const {
    Problem q = p;
    auto move = [&](std::vector<Doubles>& to, const std::vector<Doubles>& by) {
      for (size_t l = 0; l < to.size(); ++l)
        for (size_t i = 0; i < to[l].size(); ++i) to[l][i] += e * by[l][i];
    };
    move(q.U, direction.U), move(q.W, direction.W), move(q.b_ih, direction.b_ih);
    move(q.b_hh, direction.b_hh), move(q.h0, direction.h0), move(q.c0, direction.c0);
    for (size_t i = 0; i < q.x.size(); ++i) q.x[i] += e * direction.x[i];
    auto inner = [&](const Doubles& a, const double* b) {
      double sum = 0;
      for (size_t i = 0; i < a.size(); ++i) sum += a[i] * b[i];
      return sum;
    };
    double sum = 0;
    std::vector<Step> unused;
    for (const Pass& pass : passes(s)) {
      if (pass.first > pass.last) continue;  // all its steps lie past the end
      State state = pass.first ? states[pass.first] : State{q.h0, q.c0};
      for (int64_t t = pass.first; t <= pass.last; ++t) {
        advance(q, t, state, unused);
        if (t >= pass.begin) sum += inner(state.h.back(), &p.dy[t * s.state()]);
        for (int l = 0; t == s.T - 1 && l < s.layers; ++l) {
          sum += inner(state.h[l], p.dh[l].data());
          if (s.cell == Cell::kLstm) sum += inner(state.c[l], p.dc[l].data());
        }
      }
    }
    return sum;
  }

  void back(const Pass& pass) {
    std::vector<Doubles> dh(s.layers, Doubles(s.state())), dc = dh;
    for (int64_t t = pass.last; t >= pass.first; --t)
      for (int l = s.layers - 1; l >= 0; --l) {
        for (int64_t i = 0; i < s.state(); ++i) {
          if (l == s.layers - 1 && t >= pass.begin) dh[l][i] += p.dy[t * s.state() + i];
          if (t == s.T - 1) dh[l][i] += p.dh[l][i], dc[l][i] += p.dc[l][i];
        }
        back_step(t, l, dh, dc);
      }
    for (int l = 0; pass.first == 0 && l < s.layers; ++l)
      for (int64_t i = 0; i < s.state(); ++i)
        dh0[l][i] += dh[l][i], dc0[l][i] += dc[l][i];
  }

  // Layer l through step t; the errors of its state after the step become those before.
  void back_step(int64_t t, int l, std::vector<Doubles>& dh, std::vector<Doubles>& dc) {
    const int64_t I = s.inputs(l), H = s.H, width = s.width();
    const Step& k = steps[t][l];
    Doubles dgx(s.B * width), dgh(s.B * width), before(s.state());
    for (int64_t i = 0; i < s.state(); ++i) {
      const int64_t at = i / H * width + i % H;
      const double *gx = &k.gx[at], *gh = &k.gh[at], d = dh[l][i];
      auto z = [&](int gate) { return gx[gate * H] + gh[gate * H]; };
      auto both = [&](int gate, double v) { dgx[at + gate * H] = dgh[at + gate * H] = v; };
      auto slope = [](double y) { return y * (1 - y); };
      if (s.cell == Cell::kTanh) both(0, d * (1 - std::tanh(z(0)) * std::tanh(z(0))));
      if (s.cell == Cell::kRelu) both(0, z(0) > 0 ? d : 0);
      if (s.cell == Cell::kGru) {
        const double r = sigmoid(z(0)), u = sigmoid(z(1));
        const double n = std::tanh(gx[2 * H] + r * gh[2 * H]);
        const double dn = d * (1 - u) * (1 - n * n);
        both(0, dn * gh[2 * H] * slope(r));
        both(1, d * (k.h_before[i] - n) * slope(u));
        dgx[at + 2 * H] = dn;
        dgh[at + 2 * H] = dn * r;
        before[i] = d * u;
      }
      if (s.cell == Cell::kLstm) {
        const double in = sigmoid(z(0)), f = sigmoid(z(1)), g = std::tanh(z(2));
        const double o = sigmoid(z(3)), tanh_c = std::tanh(k.c[i]);
        const double e = dc[l][i] + d * o * (1 - tanh_c * tanh_c);
        both(0, e * g * slope(in));
        both(1, e * k.c_before[i] * slope(f));
        both(2, e * in * (1 - g * g));
        both(3, d * tanh_c * slope(o));
        dc[l][i] = e * f;
      }
    }
    Doubles din(s.B * I);
    for (int64_t b = 0; b < s.B; ++b)
      for (int64_t j = 0; j < width; ++j) {
        const double ex = dgx[b * width + j], eh = dgh[b * width + j];
        const double *u = &p.U[l][j * I], *w = &p.W[l][j * H];
        const double *x = &k.in[b * I], *h = &k.h_before[b * H];
        double *to_u = &dU[l][j * I], *to_w = &dW[l][j * H];
        double *to_x = &din[b * I], *to_h = &before[b * H];
        for (int64_t i = 0; i < I; ++i) to_u[i] += ex * x[i], to_x[i] += ex * u[i];
        for (int64_t i = 0; i < H; ++i) to_w[i] += eh * h[i], to_h[i] += eh * w[i];
        db_ih[l][j] += ex;
        db_hh[l][j] += eh;
      }
    dh[l] = before;
    for (int64_t i = 0; i < s.B * I; ++i)
      if (l)
        dh[l - 1][i] += din[i] * (s.masks ? p.mask[l - 1][t * s.state() + i] : 1);
      else if (!s.ids)
        dx[t * s.B * I + i] += din[i];
  }

  const Problem& p;
  const Case s;
  std::vector<State> states;             // (T + 1)
  std::vector<std::vector<Step>> steps;  // (T, layers)
  std::vector<Doubles> dU, dW, db_ih, db_hh, dh0, dc0;
  Doubles dx;
};

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

// Forward and back by the kernels.
Results compute(const Kernels& kernels, Team& team, const Problem& p) {
  const Case& s = p.s;
  const bool lstm = s.cell == Cell::kLstm;
  const int64_t states = s.T * s.state();
  const int64_t tape_size = kernels.tape_floats(s.cell, s.T, s.B, s.H);
  auto floats = [&](const Doubles& from) { return Floats(s.shifted, from); };
  auto empty = [&](int64_t size, float value = NAN) { return Floats(s.shifted, size, value); };
  auto join = [&](const std::vector<Doubles>& parts) {
    Doubles all;
    for (const Doubles& part : parts) all.insert(all.end(), part.begin(), part.end());
    return floats(all);
  };
  auto fail = [&](const char* what) { check(false, std::string(what) + ", " + s.name()); };

  Floats x = floats(p.x), dy = floats(p.dy), dh = join(p.dh), dc = join(p.dc);
  Floats h0 = join(p.h0), c0 = join(p.c0), y = empty(states);
  Floats h_end = empty(s.layers * s.state()), c_end = h_end;
  Floats dh_start = empty(s.layers * s.state(), 0), dc_start = dh_start;
  std::vector<Floats> U, W, b_ih, b_hh, mask, in, h, tape, delta, dU, dW, db_ih, db_hh;
  for (int l = 0; l < s.layers; ++l) {
    U.push_back(floats(p.U[l]));
    W.push_back(floats(p.W[l]));
    b_ih.push_back(floats(p.b_ih[l]));
    b_hh.push_back(floats(p.b_hh[l]));
    mask.push_back(floats(p.mask[l]));
    in.push_back(l ? empty(states) : x);
    h.push_back(empty(states + s.state()));
    tape.push_back(empty(tape_size));
    // Where every step is visited once, all of it is to be written.
    delta.push_back(empty(s.T * s.B * delta_blocks(s.cell) * s.H, s.k1 == s.k2 ? NAN : 0));
    dU.push_back(empty(s.width() * s.inputs(l)));
    dW.push_back(empty(s.width() * s.H));
    db_ih.push_back(empty(s.width()));
    db_hh.push_back(db_ih.back());
  }
  const int64_t* ids = s.ids ? p.ids.data() : nullptr;

  std::vector<StackLayer> stack;
  for (int l = 0; l < s.layers; ++l)
    stack.push_back({U[l].get(), W[l].get(), s.biases ? b_ih[l].get() : nullptr,
                     s.biases ? b_hh[l].get() : nullptr,
                     s.masked(l) ? mask[l].get() : nullptr, h[l].get(),
                     tape_size ? tape[l].get() : nullptr});
  Stack all{s.cell, s.T, s.B, s.I, s.H, s.layers, stack.data(), ids ? nullptr : x.get(), ids,
            h0.get(), lstm ? c0.get() : nullptr, y.get(), h_end.get(),
            lstm ? c_end.get() : nullptr};
  if (!stack_forward(kernels, team, all)) fail("stack_forward");
  Results results{{"y", y.values()}};

  // Without tapes, and layer by layer: the same bits.
  Floats again = empty(states);
  std::vector<StackLayer> loose = stack;
  for (StackLayer& layer : loose) layer.h = layer.tape = nullptr;
  all.layer = loose.data();
  all.y = again.get();
  if (!stack_forward(kernels, team, all)) fail("stack_forward");
  const size_t bytes = states * sizeof(float);
  if (std::memcmp(again.get(), y.get(), bytes)) fail("stack_forward without tapes");
  for (int l = 0; l < s.layers; ++l) {
    for (int64_t i = 0; l && i < states; ++i)
      in[l].get()[i] =
          h[l - 1].get()[s.state() + i] * (s.masks ? mask[l - 1].get()[i] : 1);
    Floats c = floats(p.c0[l]), copy = empty(states);
    Forward f{s.cell, s.T, s.B, s.inputs(l), s.H, l || !ids ? in[l].get() : nullptr,
              l ? nullptr : ids, U[l].get(), nullptr, W[l].get(), stack[l].b_ih, stack[l].b_hh,
              h0.get() + l * s.state(), again.get(), copy.get(), lstm ? c.get() : nullptr,
              l % 2 ? stack[l].tape : nullptr};
    if (!layer_forward(kernels, team, f)) fail("layer_forward");
    if (std::memcmp(again.get(), h[l].get() + s.state(), bytes) ||
        std::memcmp(copy.get(), again.get(), bytes) ||
        (lstm && std::memcmp(c.get(), c_end.get() + l * s.state(), s.state() * sizeof(float))))
      fail("layer_forward against stack_forward");
  }

  std::vector<BackwardLayer> layers;
  for (int l = 0; l < s.layers; ++l) {
    const int64_t at = l * s.state();
    layers.push_back({W[l].get(), l ? U[l].get() : nullptr, h[l].get(), stack[l].tape,
                      stack[l].mask, s.ends ? dh.get() + at : nullptr,
                      s.ends && lstm ? dc.get() + at : nullptr, delta[l].get(),
                      s.starts ? dh_start.get() + at : nullptr,
                      s.starts && lstm ? dc_start.get() + at : nullptr});
  }
  // Along the way it is written where a pass comes by.
  Floats dx = empty(s.T * s.B * s.I, s.along && s.k2 < s.k1 ? 0 : NAN);
  auto gradients = [&](int l, float* to) {
    Gradients g{};
    g.inputs = s.inputs(l);
    g.x = l || !ids ? in[l].get() : nullptr;
    g.ids = l ? nullptr : ids;
    g.U = U[l].get();
    g.dx = to;
    if (!s.weights) return g;
    g.dU = dU[l].get();
    g.dW = dW[l].get();
    g.db_ih = db_ih[l].get();
    g.db_hh = db_hh[l].get();
    return g;
  };
  Backward b{s.cell, s.T, s.B, s.H, s.k1, s.k2, dy.get(), s.layers, layers.data(), nullptr};
  if (!s.along && !layer_backward(kernels, team, b)) fail("layer_backward");
  Floats above = empty(states), below = above;
  for (int l = s.layers - 1; l >= 0; --l) {
    Gradients g = gradients(l, nullptr);
    if (l == 0 && s.dx && !ids) g.dx = dx.get();
    if (s.along) {
      if (l) g.dx = below.get();
      layers[l].delta = nullptr;
      layers[l].mask = nullptr;
      b.layers = 1;
      b.layer = &layers[l];
      b.gradients = &g;
      if (!layer_backward(kernels, team, b)) fail("layer_backward along the way");
      for (int64_t i = 0; l && i < states; ++i)
        above.get()[i] = below.get()[i] * (s.masks ? mask[l - 1].get()[i] : 1);
      b.dy = above.get();
    } else if (!layer_gradients(kernels, team, s.cell, s.T, s.B, s.H, delta[l].get(),
                                h[l].get(), g)) {
      fail("layer_gradients");
    }
  }

  auto part = [&](Floats& of, int l, bool asked) {
    if (!asked) return std::vector<float>();
    return std::vector<float>(of.get() + l * s.state(), of.get() + (l + 1) * s.state());
  };
  auto maybe = [](const Floats& of, bool asked) {
    return asked ? of.values() : std::vector<float>();
  };
  for (int l = 0; l < s.layers; ++l) {
    results.push_back({"h_end", part(h_end, l, true)});
    results.push_back({"c_end", part(c_end, l, lstm)});
    results.push_back({"dU", maybe(dU[l], s.weights)});
    results.push_back({"dW", maybe(dW[l], s.weights)});
    results.push_back({"db_ih", maybe(db_ih[l], s.weights)});
    results.push_back({"db_hh", maybe(db_hh[l], s.weights)});
    results.push_back({"dh_start", part(dh_start, l, s.starts)});
    results.push_back({"dc_start", part(dc_start, l, s.starts && lstm)});
  }
  results.push_back({"dx", maybe(dx, s.dx && !ids)});
  return results;
}

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
  return compute(kernels, team, p);
}

// Sizes at which something begins or ends (a lane, a panel, a piece, the rows of the
// unpacked path), and random ones.
std::vector<Case> cases(Cell cell, bool along) {
  const int64_t edges[][4] = {{1, 1, 1, 1},    {8, 1, 65, 33},  {2, 4, 3, 129}, {9, 1, 2, 31},
                              {9, 70, 4, 6},   {3, 7, 65, 130}, {2, 5, 300, 9}, {2, 5, 4, 270},
                              {2, 300, 3, 5},  {9, 16, 16, 16}, {5, 48, 7, 32}, {9, 2, 1, 64},
                              {4, 13, 40, 97}, {4, 2, 270, 300},
                              {1, 1, 65, 5}};
  const int64_t count = std::size(edges), total = count + 16;
  std::mt19937 random(100 * static_cast<unsigned>(cell) + along);
  auto upto = [&](int64_t most) { return static_cast<int64_t>(1 + random() % most); };
#if defined(__SANITIZE_THREAD__)
  const int64_t stride = 5;  // races do not hide in sizes, and each number costs more
#else
  const int64_t stride = 1;
#endif
  std::vector<Case> all;
  for (int64_t at = 0; at < total; at += stride) {
    Case s{};
    s.cell = cell;
    do {
      s.T = at < count ? edges[at][0] : upto(9);
      s.B = at < count ? edges[at][1] : upto(70);
      s.I = at < count ? edges[at][2] : upto(65);
      s.H = at < count ? edges[at][3] : upto(130);
    } while (at >= count && s.T * s.B * s.width() * (s.H + s.I) > 3000000);
    const int64_t T = s.T;
    const int64_t cuts[][2] = {{1, 3}, {4, 2}, {2, 5},     {3, 3},         {1, T + 3}, {T + 2, 5},
                               {5, 6}, {1, 1}, {3, T + 9}, {T + 2, T + 2}, {T, T},     {T + 9, 2}};
    s.k1 = along ? T : cuts[at % std::size(cuts)][0];
    s.k2 = along ? T : cuts[at % std::size(cuts)][1];
    s.along = along;
    s.layers = at % 3 == 1 && s.H * s.B < 3000 ? 3 : 1;
    if (along && s.layers == 1 && at % 2) {  // no step is visited twice
      s.k1 = 1 + (T - 1) * (at % 5 + 1) / 5;
      s.k2 = at % 3 ? s.k1 : (s.k1 + 1) / 2;
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
        for (int layers : {1, 3}) {
          Case s{};
          s.cell = static_cast<Cell>(cell);
          s.layers = layers;
          s.T = 5, s.B = 2, s.I = 3, s.H = 4, s.k1 = k1, s.k2 = k2;
          s.seed = static_cast<unsigned>(++count);
          const Problem p(s);
          Reference(p).check_differences();
        }
  std::printf("the reference against differences: %d truncations\n", count);
}

void test_cells() {
  const char* names[] = {"tanh", "relu", "GRU", "LSTM"};
  for (int cell = 0; cell < 4; ++cell)
    for (bool along : {true, false}) {
      double worst = 0;
      const std::vector<Case> all = cases(static_cast<Cell>(cell), along);
      for (Case s : all) {
        Problem p(s);
        while (Reference(p).at_kink()) s.seed += 1000, p = Problem(s);
        const std::vector<Named<double>> expected = Reference(p).results();
        for (const Kernels* kernels : variants()) {
          const std::string where = std::string(kernels->name) + ", " + s.name();
          const Results one = alone(*kernels, 1, p);
          worst = std::max(worst, compare(one, expected, where));
          for (int threads : {2, 3, 5})
            check(equal(alone(*kernels, threads, p), one),
                  std::to_string(threads) + " threads give other bits, " + where);
        }
      }
      std::printf("%s, %s: %zu cases, at most %.1e apart\n", names[cell],
                  along ? "gradients along the way" : "truncated", all.size(), worst);
    }
}

// LSTM is what uses most of everything.
Problem typical() {
  Case s{};
  s.cell = Cell::kLstm;
  s.layers = 2;
  s.T = 7, s.B = 21, s.I = 9, s.H = 37, s.k1 = 2, s.k2 = 5;
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
          *at += !equal(compute(*kernels, team, p), expected);
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

void test_blocks() {
  auto take = [](size_t bytes, size_t* capacity) {
    char* block = static_cast<char*>(take_block(bytes, capacity));
    check(block && reinterpret_cast<uintptr_t>(block) % 64 == 0 && *capacity >= bytes,
          "a block of " + std::to_string(bytes));
    return block;
  };
  const size_t small = size_t{1} << 18, page = size_t{1} << 21;
  size_t capacity = 0, other = 0;
  for (size_t middle : {size_t{1}, size_t{64}, size_t{4096}, small, page, 3 * page})
    for (size_t bytes = middle - 1; bytes <= middle + 1; ++bytes) {
      char* block = take(bytes, &capacity);
      std::memset(block, 1, capacity);
      give_block(block, capacity);
      block = take(bytes, &other);
      if (bytes >= small) check(other < 2 * bytes + page, "a block that is far too large");
      std::memset(block, 2, other);
      give_block(block, other);
    }
  // Again for what fills more than half of it, and for one owner at a time.
  const size_t size = 37 * page;
  char* block = take(size, &capacity);
  give_block(block, capacity);
  check(take(size / 2 + 1, &other) == block && other == capacity, "a block used again");
  char* second = take(size, &other);
  check(second != block, "two owners of a block");
  give_block(block, capacity);
  char* third = take(size / 2 - page, &capacity);
  check(third != block, "a block used for less than half of it");
  give_block(third, capacity);
  give_block(second, other);
  give_block(nullptr, 0);
  check(!take_block(SIZE_MAX, &capacity), "more memory than there is");

  // More blocks, and more bytes, than are kept; what is kept is somebody's once.
  for (size_t bytes : {small + 1, 9 * page, 140 * page}) {
    std::vector<std::pair<char*, size_t>> taken(bytes > 100 * page ? 3 : 100);
    for (int again = 0; again < 2; ++again) {
      for (auto& [address, room] : taken) address = take(bytes, &room), *address = 1;
      std::sort(taken.begin(), taken.end());
      for (size_t i = 1; i < taken.size(); ++i)
        check(taken[i - 1].first + taken[i - 1].second <= taken[i].first, "blocks overlap");
      for (auto& [address, room] : taken) give_block(address, room);
    }
  }
  std::vector<std::thread> owners;
  std::vector<int> wrong(8, 0);
  for (size_t at = 0; at < wrong.size(); ++at)
    owners.emplace_back([&, at] {
      std::mt19937 random(static_cast<unsigned>(at));
      for (int again = 0; again < 300; ++again) {
        size_t room = 0;
        const size_t bytes = small / 2 + random() % (2 * small);
        int* mine = static_cast<int*>(take_block(bytes, &room));
        int* last = mine + bytes / sizeof(int) - 1;
        *mine = *last = static_cast<int>(at);
        std::this_thread::yield();
        wrong[at] += *mine != static_cast<int>(at) || *last != static_cast<int>(at);
        give_block(mine, room);
      }
    });
  for (std::thread& owner : owners) owner.join();
  for (int each : wrong) check(!each, "two owners of a block");
  std::printf("blocks: done\n");
}

}  // namespace

int main() {
  std::setvbuf(stdout, nullptr, _IOLBF, 0);
  watch_forks();
  std::printf("variants:");
  for (const Kernels* kernels : variants()) std::printf(" %s", kernels->name);
  std::printf("\n");
  test_fork("before the pool is used");
  test_blocks();
  test_reference();
  test_cells();
  test_callers();
  test_fork("beside idle workers");
  {
    Team held(2);
    test_fork("while a call has the pool");
  }
  std::printf("%s: %d failures\n", failures ? "FAILED" : "passed", failures.load());
  return failures > 0;
}
