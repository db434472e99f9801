// Backpropagation written out in double precision, one number at a time: each row of a
// batch alone, one pass of the truncation after the other, cut where the row is reset.
// That in turn is held to differences.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "check.h"
#include "kernels.h"

namespace {

using namespace bptt;
using Doubles = std::vector<double>;

struct Case {
  Cell cell;
  int layers;
  int64_t T, B, I, H, k1, k2;
  bool ragged = false, resets = false;
  bool padded = false;  // x, y, dy and dx are, as their owner has them
  bool along = false;  // gradients formed along the way, layer after layer if full BPTT
  bool chunked = false;  // along, chunks of k1 = k2 steps that follow each other
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
    add("I", I), add("H", H), add("k1", k1), add("k2", k2), add("ragged", ragged);
    add("resets", resets), add("padded", padded), add("along", along), add("chunked", chunked), add("ids", ids), add("biases", biases);
    add("masks", masks), add("ends", ends), add("starts", starts), add("dx", dx);
    add("weights", weights), add("shifted", shifted), add("seed", seed);
    return text;
  }
};

// What is given: numbers that a float holds exactly. Outer vectors are over layers;
// `rows` are those of all steps, of each step those that have it.
struct Problem {
  Case s;
  std::vector<int64_t> lengths;               // (B), the longest first
  std::vector<int64_t> offsets;               // (T + 1), also where all rows are alike
  std::vector<uint8_t> resets;                // (rows)
  std::vector<int64_t> ids;                   // (rows)
  Doubles x, dy;                              // (rows, I), (rows, H)
  std::vector<Doubles> U, W, b_ih, b_hh;      // as in Forward
  std::vector<Doubles> mask, h0, c0, dh, dc;  // (rows, H), (B, H)...

  explicit Problem(const Case& given) : s(given), lengths(s.B, s.T) {
    // The same rows for seeds that are 1000 apart.
    std::mt19937 shapes(s.seed % 1000), random(s.seed);
    set_rows(shapes);
    auto fill = [&](int64_t size, double scale) {
      Doubles a(size);
      for (double& each : a)
        each = static_cast<float>(scale * (static_cast<double>(random()) / 2147483648.0 - 1));
      return a;
    };
    ids.resize(rows());
    for (int64_t& id : ids) id = random() % s.I;
    x = fill(rows() * s.I, 1);
    dy = fill(rows() * s.H, 1);
    for (int l = 0; l < s.layers; ++l) {
      // Not so large that a single unit saturates, and its slope is lost to rounding.
      auto scale = [](int64_t terms) { return std::min(1.0, 2 / std::sqrt(terms)); };
      U.push_back(fill(s.width() * s.inputs(l), s.ids && !l ? 1 : scale(s.inputs(l))));
      W.push_back(fill(s.width() * s.H, scale(s.H)));
      for (auto* b : {&b_ih, &b_hh}) b->push_back(fill(s.width(), s.biases ? 0.5 : 0));
      mask.push_back(fill(rows() * s.H, 2));
      for (auto* start : {&h0, &c0}) start->push_back(fill(s.state(), 1));
      for (auto* end : {&dh, &dc}) end->push_back(fill(s.state(), s.ends ? 1 : 0));
    }
  }

  int64_t rows() const { return offsets[s.T]; }
  int64_t row(int64_t t, int64_t b) const { return offsets[t] + b; }
  bool is_reset(int64_t t, int64_t b) const { return resets[row(t, b)]; }

 private:
  void set_rows(std::mt19937& random) {
    const unsigned kind = random() % 8;
    for (int64_t& length : lengths) {
      const int64_t any = 1 + random() % s.T, other = 1 + random() % s.T;
      if (!s.ragged || kind == 0) continue;  // lengths that are all the same
      length = kind < 3 ? std::min(any, other) : kind < 5 ? std::max(any, other) : any;
    }
    std::sort(lengths.rbegin(), lengths.rend());
    lengths[0] = s.T;
    offsets.assign(s.T + 1, 0);
    for (int64_t t = 0; t < s.T; ++t) {
      offsets[t + 1] = offsets[t];
      for (int64_t length : lengths) offsets[t + 1] += length > t;
    }
    resets.assign(rows(), 0);
    const unsigned one_in = kind == 7 ? 1 : 2 + random() % 4;
    for (uint8_t& reset : resets) reset = random() % one_in == 0 && s.resets;
  }
};

inline double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }

// (layers, H), of one row at one moment.
struct State {
  std::vector<Doubles> h, c;
};

inline State part_of(const std::vector<Doubles>& h, const std::vector<Doubles>& c,
                     int64_t b, int64_t H) {
  State state;
  for (size_t l = 0; l < h.size(); ++l) {
    state.h.emplace_back(h[l].begin() + b * H, h[l].begin() + (b + 1) * H);
    state.c.emplace_back(c[l].begin() + b * H, c[l].begin() + (b + 1) * H);
  }
  return state;
}

inline State zeros(const Case& s) {
  const std::vector<Doubles> part(s.layers, Doubles(s.H));
  return {part, part};
}

// One step of one row of one layer: U x + b_ih and W h + b_hh apart, as a GRU needs them.
struct Step {
  Doubles in, gx, gh, h_before, c_before, c;
};

// Row b, the whole stack, step t on; `steps` (layers) is what the way back needs.
inline void advance(const Problem& p, int64_t b, int64_t t, State& state,
                    std::vector<Step>& steps) {
  const Case& s = p.s;
  const int64_t row = p.row(t, b), H = s.H, width = s.width();
  steps.resize(s.layers);
  if (p.is_reset(t, b)) state = zeros(s);
  for (int l = 0; l < s.layers; ++l) {
    const int64_t I = s.inputs(l);
    Step& k = steps[l];
    k.in.assign(I, 0);
    for (int64_t i = 0; i < I; ++i)
      if (l)
        k.in[i] = state.h[l - 1][i] * (s.masks ? p.mask[l - 1][row * H + i] : 1);
      else
        k.in[i] = s.ids ? p.ids[row] == i : p.x[row * I + i];
    k.h_before = state.h[l];
    k.c_before = state.c[l];
    k.gx = p.b_ih[l];
    k.gh = p.b_hh[l];
    for (int64_t j = 0; j < width; ++j) {
      const double *u = &p.U[l][j * I], *w = &p.W[l][j * H];
      for (int64_t i = 0; i < I; ++i) k.gx[j] += u[i] * k.in[i];
      for (int64_t i = 0; i < H; ++i) k.gh[j] += w[i] * k.h_before[i];
    }
    for (int64_t i = 0; i < H; ++i) {
      const double *gx = &k.gx[i], *gh = &k.gh[i];
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

// Those of a row of `length` steps.
inline std::vector<Pass> passes(const Case& s, int64_t length) {
  std::vector<Pass> all;
  for (int64_t begin = 0; begin < length; begin += s.k1) {
    const int64_t end = begin + s.k1 - 1;  // nominal
    all.push_back({begin, std::max<int64_t>(0, end - s.k2 + 1), std::min(end, length - 1)});
  }
  return all;
}

class Reference {
 public:
  explicit Reference(const Problem& problem) : p(problem), s(problem.s), courses(s.B) {
    for (int l = 0; l < s.layers; ++l) {
      dU.emplace_back(p.U[l].size());
      dW.emplace_back(p.W[l].size());
      for (auto* db : {&db_ih, &db_hh}) db->emplace_back(s.width());
      for (auto* start : {&dh0, &dc0}) start->emplace_back(s.state());
    }
    dx.resize(p.x.size());
    for (int64_t b = 0; b < s.B; ++b) {
      State state = part_of(p.h0, p.c0, b, s.H);
      Course& course = courses[b];
      course.states.push_back(state);
      for (int64_t t = 0; t < p.lengths[b]; ++t) {
        course.steps.emplace_back();
        advance(p, b, t, state, course.steps.back());
        course.states.push_back(state);
      }
      for (const Pass& pass : passes(s, p.lengths[b])) back(b, pass);
    }
  }

  // Whether a rectifier stands so close to its kink that rounding may turn it.
  bool at_kink() const {
    bool near = false;
    for (const Course& course : courses)
      for (const auto& layers : course.steps)
        for (const Step& k : layers)
          for (size_t i = 0; s.cell == Cell::kRelu && i < k.gx.size(); ++i)
            near |= std::fabs(k.gx[i] + k.gh[i]) < 2e-6;
    return near;
  }

  std::vector<Named<double>> results() const {
    std::vector<Named<double>> all;
    Doubles y;
    for (int64_t t = 0; t < s.T; ++t)
      for (int64_t b = 0; p.row(t, b) < p.offsets[t + 1]; ++b)
        append(y, courses[b].states[t + 1].h.back());
    all.push_back({"y", y});
    const bool lstm = s.cell == Cell::kLstm;
    for (int l = 0; l < s.layers; ++l) {
      Doubles h_end, c_end;
      for (const Course& course : courses) {
        append(h_end, course.states.back().h[l]);
        append(c_end, course.states.back().c[l]);
      }
      all.push_back({"h_end", h_end});
      all.push_back({"c_end", lstm ? c_end : Doubles()});
      all.push_back({"dU", s.weights ? dU[l] : Doubles()});
      all.push_back({"dW", s.weights ? dW[l] : Doubles()});
      all.push_back({"db_ih", s.weights ? db_ih[l] : Doubles()});
      all.push_back({"db_hh", s.weights ? db_hh[l] : Doubles()});
      all.push_back({"dh_start", s.starts ? dh0[l] : Doubles()});
      all.push_back({"dc_start", s.starts && lstm ? dc0[l] : Doubles()});
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
  // A row's way forward.
  struct Course {
    std::vector<State> states;             // (length + 1)
    std::vector<std::vector<Step>> steps;  // (length, layers)
  };

  static void append(Doubles& to, const Doubles& from) {
    to.insert(to.end(), from.begin(), from.end());
  }

  // The passes' errors where everything has been moved by e in a direction.
  double energy(const Problem& direction, double e) const {
    Problem q = p;
    auto move = [&](std::vector<Doubles>& to, const std::vector<Doubles>& by) {
      for (size_t l = 0; l < to.size(); ++l)
        for (size_t i = 0; i < to[l].size(); ++i) to[l][i] += e * by[l][i];
    };
    move(q.U, direction.U), move(q.W, direction.W), move(q.b_ih, direction.b_ih);
    move(q.b_hh, direction.b_hh), move(q.h0, direction.h0), move(q.c0, direction.c0);
    for (size_t i = 0; i < q.x.size(); ++i) q.x[i] += e * direction.x[i];
    auto inner = [](const Doubles& a, const double* b) {
      double sum = 0;
      for (size_t i = 0; i < a.size(); ++i) sum += a[i] * b[i];
      return sum;
    };
    double sum = 0;
    std::vector<Step> unused;
    for (int64_t b = 0; b < s.B; ++b)
      for (const Pass& pass : passes(s, p.lengths[b])) {
        if (pass.first > pass.last) continue;  // all its steps lie past the row's end
        State state = pass.first ? courses[b].states[pass.first]
                                 : part_of(q.h0, q.c0, b, s.H);
        for (int64_t t = pass.first; t <= pass.last; ++t) {
          advance(q, b, t, state, unused);
          if (t >= pass.begin) sum += inner(state.h.back(), &p.dy[p.row(t, b) * s.H]);
          for (int l = 0; t == p.lengths[b] - 1 && l < s.layers; ++l) {
            sum += inner(state.h[l], &p.dh[l][b * s.H]);
            if (s.cell == Cell::kLstm) sum += inner(state.c[l], &p.dc[l][b * s.H]);
          }
        }
      }
    return sum;
  }

  void back(int64_t b, const Pass& pass) {
    State d = zeros(s);  // the errors of the state after the step
    for (int64_t t = pass.last; t >= pass.first; --t) {
      for (int l = s.layers - 1; l >= 0; --l) {
        for (int64_t i = 0; i < s.H; ++i) {
          if (l == s.layers - 1 && t >= pass.begin) d.h[l][i] += p.dy[p.row(t, b) * s.H + i];
          if (t < p.lengths[b] - 1) continue;
          d.h[l][i] += p.dh[l][b * s.H + i];
          d.c[l][i] += p.dc[l][b * s.H + i];
        }
        back_step(b, t, l, d);
      }
      if (p.is_reset(t, b)) d = zeros(s);
    }
    for (int l = 0; pass.first == 0 && l < s.layers; ++l)
      for (int64_t i = 0; i < s.H; ++i) {
        dh0[l][b * s.H + i] += d.h[l][i];
        dc0[l][b * s.H + i] += d.c[l][i];
      }
  }

  // Layer l through step t; the errors of its state after the step become those before.
  void back_step(int64_t b, int64_t t, int l, State& d) {
    const int64_t I = s.inputs(l), H = s.H, width = s.width(), row = p.row(t, b);
    const Step& k = courses[b].steps[t][l];
    Doubles dgx(width), dgh(width), before(H), din(I);
    for (int64_t i = 0; i < H; ++i) {
      const double *gx = &k.gx[i], *gh = &k.gh[i], dh = d.h[l][i];
      auto z = [&](int gate) { return gx[gate * H] + gh[gate * H]; };
      auto both = [&](int gate, double v) { dgx[gate * H + i] = dgh[gate * H + i] = v; };
      auto slope = [](double y) { return y * (1 - y); };
      if (s.cell == Cell::kTanh) both(0, dh * (1 - std::tanh(z(0)) * std::tanh(z(0))));
      if (s.cell == Cell::kRelu) both(0, z(0) > 0 ? dh : 0);
      if (s.cell == Cell::kGru) {
        const double r = sigmoid(z(0)), u = sigmoid(z(1));
        const double n = std::tanh(gx[2 * H] + r * gh[2 * H]);
        const double dn = dh * (1 - u) * (1 - n * n);
        both(0, dn * gh[2 * H] * slope(r));
        both(1, dh * (k.h_before[i] - n) * slope(u));
        dgx[2 * H + i] = dn;
        dgh[2 * H + i] = dn * r;
        before[i] = dh * u;
      }
      if (s.cell == Cell::kLstm) {
        const double in = sigmoid(z(0)), f = sigmoid(z(1)), g = std::tanh(z(2));
        const double o = sigmoid(z(3)), tanh_c = std::tanh(k.c[i]);
        const double e = d.c[l][i] + dh * o * (1 - tanh_c * tanh_c);
        both(0, e * g * slope(in));
        both(1, e * k.c_before[i] * slope(f));
        both(2, e * in * (1 - g * g));
        both(3, dh * tanh_c * slope(o));
        d.c[l][i] = e * f;
      }
    }
    for (int64_t j = 0; j < width; ++j) {
      const double *u = &p.U[l][j * I], *w = &p.W[l][j * H];
      double *to_u = &dU[l][j * I], *to_w = &dW[l][j * H];
      for (int64_t i = 0; i < I; ++i) to_u[i] += dgx[j] * k.in[i], din[i] += dgx[j] * u[i];
      for (int64_t i = 0; i < H; ++i)
        to_w[i] += dgh[j] * k.h_before[i], before[i] += dgh[j] * w[i];
      db_ih[l][j] += dgx[j];
      db_hh[l][j] += dgh[j];
    }
    d.h[l] = before;
    for (int64_t i = 0; i < I; ++i)
      if (l)
        d.h[l - 1][i] += din[i] * (s.masks ? p.mask[l - 1][row * H + i] : 1);
      else if (!s.ids)
        dx[row * I + i] += din[i];
  }

  const Problem& p;
  const Case s;
  std::vector<Course> courses;  // (B)
  std::vector<Doubles> dU, dW, db_ih, db_hh, dh0, dc0;
  Doubles dx;
};

}  // namespace
