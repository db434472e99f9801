// The Python module `bptt.kernels._native`. It is given tensors by `bptt.kernels.native`,
// which has checked their dtype, device and layout; here every size is held to every shape
// before anything is read or written.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "blocks.h"
#include "layer.h"
#include "padded.h"
#include "scratch.h"
#include "tensors.h"
#include "threads.h"

namespace nb = nanobind;

namespace {

using bptt::Cell;

using MaybeArray = std::optional<Array>;

constexpr int64_t kMostElements = int64_t{1} << 46;  // products of sizes stay in range

// The number of elements of an array with these axes.
int64_t elements(std::initializer_list<int64_t> axes) {
  int64_t count = 1;
  for (int64_t axis : axes) {
    if (axis < 0) throw nb::value_error("a size is negative");
    if (axis > 0 && count > kMostElements / axis)
      throw nb::value_error("sizes too large");
    count *= axis;
  }
  return count;
}

template <typename T = float>
T* at(const Array& array, const char* name, std::initializer_list<int64_t> axes) {
  if (array.elements != elements(axes))
    throw nb::value_error((std::string(name) + " has " + std::to_string(array.elements) +
                           " elements; its shape needs " +
                           std::to_string(elements(axes)))
                              .c_str());
  if (array.address == 0 && array.elements != 0)
    throw nb::value_error((std::string(name) + " is null").c_str());
  if (array.bits && array.bits != 8 * static_cast<int>(sizeof(T)))
    throw nb::value_error((std::string(name) + " has another dtype").c_str());
  return reinterpret_cast<T*>(array.address);
}

template <typename T = float>
T* at(const MaybeArray& array, const char* name, std::initializer_list<int64_t> axes) {
  return array ? at<T>(*array, name, axes) : nullptr;
}

const bptt::Kernels& variant(const std::string& name) {
  for (auto kernels = bptt::built_kernels; *kernels; ++kernels)
    if (name == (*kernels)->name && bptt::runs_here(**kernels)) return **kernels;
  throw nb::value_error(("no kernels named " + name + " run here").c_str());
}

Cell cell_of(int cell) {
  if (cell < 0 || cell > 3) throw nb::value_error("cell must be 0, 1, 2 or 3");
  return static_cast<Cell>(cell);
}

void require(bool holds, const char* message) {
  if (!holds) throw nb::value_error(message);
}

void require_threads(int threads) {
  require(threads >= 1 && threads <= 4096, "threads must be from 1 to 4096");
}

void require_ids(const int64_t* ids, int64_t count, int64_t words) {
  for (int64_t i = 0; i < count; ++i)
    if (ids[i] < 0 || ids[i] >= words)
      throw nb::index_error("an id is not in [0, inputs)");
}

void require_memory(bool done) {
  if (!done) throw std::bad_alloc();
}

struct Sizes {
  int64_t time, batch, inputs, hidden;
};

// Offsets and resets, each or both absent.
using RowsTuple = std::pair<MaybeArray, MaybeArray>;

// The steps of a batch, and the number of all of its rows.
std::pair<bptt::Steps, int64_t> steps_of(int64_t T, int64_t B, const RowsTuple& rows) {
  bptt::Steps s{T, B, at<int64_t>(rows.first, "offsets", {T + 1}), nullptr};
  int64_t count = T * B;
  if (s.offsets) {
    require(s.offsets[0] == 0, "offsets must begin with 0");
    for (int64_t t = 0, before = B; t < T; ++t) {
      require(s.offsets[t + 1] >= 0, "offsets must not be negative");
      const int64_t here = s.offsets[t + 1] - s.offsets[t];
      require(here > 0 && here <= before && (t || here == B),
              "the rows of the steps must begin with all and not increase");
      before = here;
    }
    count = s.offsets[T];
  }
  s.resets = at<uint8_t>(rows.second, "resets", {count});
  return {s, count};
}

// to: order, inverse, sizes and offsets of `bptt::sort_rows`, one after another.
void sort_rows(const std::vector<int64_t>& lengths, Array to) {
  require(!lengths.empty(), "give the lengths");
  int64_t longest = 0;
  for (int64_t length : lengths) {
    require(length > 0, "lengths must be positive");
    longest = std::max(longest, length);
  }
  const auto batch = static_cast<int64_t>(lengths.size());
  elements({longest, batch});
  int64_t* order = at<int64_t>(to, "to", {2 * (batch + longest) + 1});
  int64_t* sizes = order + 2 * batch;
  bptt::sort_rows(lengths.data(), batch, order, order + batch, sizes, sizes + longest);
}

// Order, time, whether the batch is first and whether the rows run backwards; absent
// where nothing is padded.
using PaddedTuple = std::optional<std::tuple<Array, int64_t, bool, bool>>;

// A padded batch, and where the rows of its steps stand.
struct Placed {
  std::optional<bptt::Padded> padded;
  std::shared_ptr<bptt::Scratch<int64_t>> places;
  int64_t count;  // rows of an array that is padded, if any is

  Placed(const PaddedTuple& given, const bptt::Steps& steps, int64_t rows)
      : count(rows) {
    if (!given) return;
    const auto& [order, time, batch_first, backwards] = *given;
    require(time > 0, "padded rows have steps");
    count = elements({time, steps.batch});
    padded = {time, at<int64_t>(order, "order", {steps.batch}), batch_first, backwards};
    require(steps.offsets, "padded rows are ragged");
    require(bptt::fits(*padded, steps), "the order of padded rows must be one");
    places = std::make_shared<bptt::Scratch<int64_t>>(rows);
    require_memory(static_cast<bool>(*places));
    bptt::find_places(*padded, steps, places->get());
  }
  bptt::Places get() const { return padded ? places->get() : nullptr; }
};

Sizes sizes_of(int64_t time, int64_t batch, int64_t inputs, int64_t hidden) {
  require(time > 0 && batch > 0 && inputs > 0 && hidden > 0, "sizes must be positive");
  require(time < kMostElements, "sizes too large");  // so that time + 1 is one
  elements({time + 1, batch, 4, hidden});
  elements({time, batch, inputs});
  elements({4, hidden, std::max(hidden, inputs)});
  return {time, batch, inputs, hidden};
}

int64_t tape_floats(const std::string& name, int cell, int64_t rows, int64_t hidden) {
  sizes_of(rows, 1, hidden, hidden);
  elements({rows, 8, hidden + 64});
  return variant(name).tape_floats(cell_of(cell), rows, hidden);
}

int64_t packed_floats(const std::string& name, int cell, int64_t hidden) {
  sizes_of(1, 1, hidden, hidden);
  elements({4, hidden + 64, hidden});
  return variant(name).packed_floats(cell_of(cell), hidden);
}

using WeightTuple = std::tuple<Array, Array, MaybeArray, MaybeArray>;
using TapeTuple = std::pair<Array, MaybeArray>;

void forward(const std::string& name, int threads, int kind,
             std::tuple<int64_t, int64_t, int64_t, int64_t> sizes, const RowsTuple& rows,
             const PaddedTuple& padded, MaybeArray x, MaybeArray ids,
             const std::vector<WeightTuple>& weights, const std::vector<Array>& masks,
             Array h0, MaybeArray c0, Array y, Array h_end, MaybeArray c_end,
             const std::vector<TapeTuple>& tapes) {
  const bptt::Kernels& kernels = variant(name);
  const auto [T, B, I, H] = std::apply(sizes_of, sizes);
  require_threads(threads);
  bptt::Stack s{};
  s.cell = cell_of(kind);
  const int64_t width = bptt::gates(s.cell) * H;
  const bool lstm = s.cell == Cell::kLstm;
  const int64_t L = static_cast<int64_t>(weights.size());
  require(L > 0 && L < 1 << 20, "give the layers");
  require(masks.empty() || masks.size() + 1 == weights.size(),
          "masks belong between layers");
  require(tapes.empty() || tapes.size() == weights.size(), "a tape belongs to a layer");
  const auto [steps, N] = steps_of(T, B, rows);
  s.steps = steps;
  s.inputs = I;
  s.hidden = H;
  s.layers = static_cast<int>(L);
  const Placed placed(padded, steps, N);
  require(x.has_value() != ids.has_value(), "give x or ids");
  s.x = at(x, "x", {placed.count, I});
  s.ids = at<int64_t>(ids, "ids", {N});
  if (s.x) s.x_places = placed.get();
  s.h0 = at(h0, "h0", {L, B, H});
  s.y = at(y, "y", {placed.count, H});
  s.y_places = placed.get();
  s.h_end = at(h_end, "h_end", {L, B, H});
  require(c0.has_value() == lstm && c_end.has_value() == lstm, "c is for LSTM");
  s.c0 = at(c0, "c0", {L, B, H});
  s.c_end = at(c_end, "c_end", {L, B, H});
  const int64_t tape_size = kernels.tape_floats(s.cell, N, H);
  std::vector<bptt::StackLayer> layers(weights.size());
  for (size_t l = 0; l < layers.size(); ++l) {
    const auto& [U, W, b_ih, b_hh] = weights[l];
    layers[l].U = at(U, "U", {width, l ? H : I});
    layers[l].W = at(W, "W", {width, H});
    require(b_ih.has_value() == b_hh.has_value(), "give both biases or none");
    layers[l].b_ih = at(b_ih, "b_ih", {width});
    layers[l].b_hh = at(b_hh, "b_hh", {width});
    if (l < masks.size()) layers[l].mask = at(masks[l], "mask", {N, H});
    if (tapes.empty()) continue;
    const auto& [h, tape] = tapes[l];
    layers[l].h = at(h, "h", {B + N, H});
    require(tape.has_value() == (tape_size > 0), "the gated cells have a tape");
    layers[l].tape = at(tape, "tape", {tape_size});
  }
  s.layer = layers.data();
  nb::gil_scoped_release released;
  if (s.ids) require_ids(s.ids, N, I);
  // So few rows that the weights are read, not used again: then memory is the limit.
  const int64_t work = width * (H + (s.ids ? 0 : I)) * L;
  bptt::Team team(N <= 8 ? bptt::useful_threads(threads, 12 * work)
                         : bptt::useful_threads(threads, N * work));
  require_memory(bptt::stack_forward(kernels, team, s));
  if (placed.padded) bptt::clear_padding(team, *placed.padded, steps, H, s.y);
}

using LayerTuple =
    std::tuple<Array, MaybeArray, Array, MaybeArray, MaybeArray, MaybeArray, MaybeArray,
               MaybeArray, MaybeArray, MaybeArray>;

using GradientTuple =
    std::tuple<int64_t, MaybeArray, MaybeArray, Array, MaybeArray, MaybeArray, MaybeArray,
               MaybeArray, MaybeArray>;

// rows: of all steps; x and dx are padded if `placed` is.
bptt::Gradients gradients_of(const GradientTuple& tuple, const Placed& placed,
                             int64_t rows, int64_t H, int64_t width) {
  const auto& [I, x, ids, U, dU, dW, db_ih, db_hh, dx] = tuple;
  sizes_of(rows, 1, I, H);
  bptt::Gradients g{};
  g.inputs = I;
  require(x.has_value() != ids.has_value(), "give x or ids");
  elements({placed.count, I});
  g.x = at(x, "x", {placed.count, I});
  g.ids = at<int64_t>(ids, "ids", {rows});
  g.x_places = placed.get();
  g.U = at(U, "U", {width, I});
  g.dU = at(dU, "dU", {width, I});
  g.dW = at(dW, "dW", {width, H});
  g.db_ih = at(db_ih, "db_ih", {width});
  g.db_hh = at(db_hh, "db_hh", {width});
  g.dx = at(dx, "dx", {placed.count, I});
  if (g.ids) require_ids(g.ids, rows, I);
  return g;
}

void backward(const std::string& name, int threads, int kind,
              std::tuple<int64_t, int64_t, int64_t> sizes, const RowsTuple& rows_given,
              const PaddedTuple& padded_dy, const PaddedTuple& padded_x,
              std::optional<std::pair<int64_t, int64_t>> truncation, int64_t chunk,
              Array dy,
              const std::vector<LayerTuple>& layers,
              const std::optional<GradientTuple>& gradients) {
  const bptt::Kernels& kernels = variant(name);
  const auto [T, B, H] = sizes;
  sizes_of(T, B, H, H);
  require_threads(threads);
  bptt::Backward b{};
  b.cell = cell_of(kind);
  const int64_t width = bptt::gates(b.cell) * H;
  const auto [steps, N] = steps_of(T, B, rows_given);
  const int64_t tape_size = kernels.tape_floats(b.cell, N, H);
  b.steps = steps;
  b.hidden = H;
  b.k1 = truncation ? truncation->first : T;
  b.k2 = truncation ? truncation->second : T;
  b.chunk = chunk;
  require(b.k1 > 0 && b.k2 > 0, "k1 and k2 must be positive");
  require(chunk >= 0 && (!chunk || !truncation), "chunks are cut under full BPTT");
  elements({b.k1, 4});
  elements({b.k2, 4});
  elements({T + b.k1, B, 4, H});  // no more rows than that run
  const Placed placed_dy(padded_dy, steps, N);
  const Placed placed_x =
      padded_x == padded_dy ? placed_dy : Placed(padded_x, steps, N);
  b.dy = at(dy, "dy", {placed_dy.count, H});
  b.dy_places = placed_dy.get();
  require(!layers.empty() && layers.size() < 1u << 20, "give the layers");
  require(!gradients || (b.k2 <= b.k1 && b.k1 <= T && layers.size() == 1),
          "gradients along the way need one layer, and no step that two passes visit");
  require(!gradients || b.k2 == T || (!steps.offsets && !steps.resets),
          "gradients lag by lag need rows that are all alike");
  std::vector<bptt::BackwardLayer> each;
  for (const LayerTuple& tuple : layers) {
    const auto& [W, U, h, tape, mask, dh_end, dc_end, delta, dh_start, dc_start] = tuple;
    bptt::BackwardLayer l{};
    l.W = at(W, "W", {width, H});
    l.U = each.empty() ? nullptr : at(U, "U", {width, H});
    require(each.empty() || l.U, "U is needed towards the layer below");
    l.h = at(h, "h", {B + N, H});
    require(tape.has_value() == (tape_size > 0), "the gated cells have a tape");
    l.tape = at(tape, "tape", {tape_size});
    l.mask = at(mask, "mask", {N, H});
    l.dh_end = at(dh_end, "dh_end", {B, H});
    l.dc_end = at(dc_end, "dc_end", {B, H});
    require(delta.has_value() != gradients.has_value(), "give delta or gradients");
    l.delta = at(delta, "delta", {N, bptt::delta_blocks(b.cell) * H});
    l.dh_start = at(dh_start, "dh_start", {B, H});
    l.dc_start = at(dc_start, "dc_start", {B, H});
    each.push_back(l);
  }
  b.layers = static_cast<int>(each.size());
  b.layer = each.data();
  nb::gil_scoped_release released;
  bptt::Gradients g{};
  if (gradients) {
    g = gradients_of(*gradients, placed_x, N, H, width);
    b.gradients = &g;
  }
  const int64_t rows = N * std::min(b.k2, b.k2 / b.k1 + 1);
  bptt::Team team(bptt::useful_threads(threads, rows * width * H * b.layers * 3));
  require_memory(bptt::layer_backward(kernels, team, b));
  if (placed_x.padded && g.dx)
    bptt::clear_padding(team, *placed_x.padded, steps, g.inputs, g.dx);
}

void gradients(const std::string& name, int threads, int kind,
               std::tuple<int64_t, int64_t, int64_t> sizes, const RowsTuple& rows,
               const PaddedTuple& padded, Array delta, Array h,
               const GradientTuple& gradients) {
  const bptt::Kernels& kernels = variant(name);
  const auto [T, B, H] = sizes;
  sizes_of(T, B, H, H);
  require_threads(threads);
  const Cell cell = cell_of(kind);
  const auto [steps, N] = steps_of(T, B, rows);
  const float* delta_at = at(delta, "delta", {N, bptt::delta_blocks(cell) * H});
  const float* h_at = at(h, "h", {B + N, H});
  const Placed placed(padded, steps, N);
  nb::gil_scoped_release released;
  const bptt::Gradients g =
      gradients_of(gradients, placed, N, H, bptt::gates(cell) * H);
  bptt::Team team(
      bptt::useful_threads(threads, N * bptt::gates(cell) * H * (H + g.inputs)));
  require_memory(
      bptt::layer_gradients(kernels, team, cell, steps, H, delta_at, h_at, g));
  if (placed.padded && g.dx)
    bptt::clear_padding(team, *placed.padded, steps, g.inputs, g.dx);
}

void back_lag(const std::string& name, int threads, int kind,
              std::tuple<int64_t, int64_t, int64_t> sizes, int64_t count, MaybeArray W,
              Array packed, Array h, MaybeArray tape, Array ds, MaybeArray dc, MaybeArray delta,
              Array ds_before, MaybeArray dc_before, Array squares,
              MaybeArray squares_c) {
  const bptt::Kernels& kernels = variant(name);
  const auto [T, B, H] = sizes;
  sizes_of(T, B, H, H);
  require_threads(threads);
  bptt::LagBack g{};
  g.cell = cell_of(kind);
  g.time = T;
  g.batch = B;
  g.hidden = H;
  require(count >= 1 && count <= T, "steps must be from 1 to time");
  g.steps = count;
  const int64_t rows = count * B, width = bptt::gates(g.cell) * H;
  const int64_t tape_size = kernels.tape_floats(g.cell, T * B, H);
  const bool lstm = g.cell == Cell::kLstm;
  require(tape.has_value() == (tape_size > 0), "the gated cells have a tape");
  require(dc.has_value() == lstm && dc_before.has_value() == lstm &&
              squares_c.has_value() == lstm,
          "c is for LSTM");
  g.W = at(W, "W", {width, H});
  g.packed = at(packed, "packed", {kernels.packed_floats(g.cell, H)});
  require(packed.address % 64 == 0, "packed must lie at a multiple of 64 bytes");
  g.h = at(h, "h", {B + T * B, H});
  g.tape = at(tape, "tape", {tape_size});
  g.ds = at(ds, "ds", {rows, H});
  g.dc = at(dc, "dc", {rows, H});
  g.delta = at(delta, "delta", {rows, bptt::delta_blocks(g.cell) * H});
  g.ds_before = at(ds_before, "ds_before", {rows, H});
  g.dc_before = at(dc_before, "dc_before", {rows, H});
  g.squares = at(squares, "squares", {rows});
  g.squares_c = at(squares_c, "squares_c", {rows});
  nb::gil_scoped_release released;
  bptt::Team team(bptt::useful_threads(threads, rows * width * H));
  require_memory(kernels.back_lag(team, g));
}

// A float32 tensor of uninitialised memory that is used again.
nb::ndarray<nb::pytorch, float, nb::ndim<1>, nb::c_contig, nb::device::cpu> empty(
    int64_t count) {
  struct Owned {
    void* block;
    size_t capacity;
  };
  require(count >= 0 && count <= kMostElements, "a size is out of range");
  auto owned = std::make_unique<Owned>();
  owned->block = bptt::take_block(static_cast<size_t>(count) * sizeof(float),
                                  &owned->capacity);
  if (!owned->block) throw std::bad_alloc();
  void* block = owned->block;
  nb::capsule owner(owned.release(), [](void* data) noexcept {
    std::unique_ptr<Owned> mine(static_cast<Owned*>(data));
    bptt::give_block(mine->block, mine->capacity);
  });
  return {static_cast<float*>(block), {static_cast<size_t>(count)}, owner};
}

std::vector<std::string> variants() {
  std::vector<std::string> names;
  for (auto kernels = bptt::built_kernels; *kernels; ++kernels)
    if (bptt::runs_here(**kernels)) names.emplace_back((*kernels)->name);
  return names;
}

}  // namespace

NB_MODULE(_native, m) {
  bptt::watch_forks();
  m.def("variants", &variants);
  m.def("read_tensors", &tensors::use, nb::arg("of"), nb::arg("parameter"),
        nb::arg("exchange"));
  m.def("are_fit", &tensors::are_fit, nb::arg("tensors"));
  m.def("forward", &forward, nb::arg("name"), nb::arg("threads"), nb::arg("cell"),
        nb::arg("sizes"), nb::arg("rows"), nb::arg("padded").none(),
        nb::arg("x").none(), nb::arg("ids").none(), nb::arg("weights"),
        nb::arg("masks"), nb::arg("h0"), nb::arg("c0").none(), nb::arg("y"),
        nb::arg("h_end"), nb::arg("c_end").none(), nb::arg("tapes"));
  m.def("tape_floats", &tape_floats, nb::arg("name"), nb::arg("cell"), nb::arg("rows"),
        nb::arg("hidden"));
  m.def("packed_floats", &packed_floats, nb::arg("name"), nb::arg("cell"),
        nb::arg("hidden"));
  m.def("empty", &empty, nb::arg("elements"));
  m.def("sort_rows", &sort_rows, nb::arg("lengths"), nb::arg("to"));
  m.def("backward", &backward, nb::arg("name"), nb::arg("threads"), nb::arg("cell"),
        nb::arg("sizes"), nb::arg("rows"), nb::arg("padded_dy").none(),
        nb::arg("padded_x").none(), nb::arg("truncation").none(), nb::arg("chunk"),
        nb::arg("dy"), nb::arg("layers"), nb::arg("gradients").none());
  m.def("back_lag", &back_lag, nb::arg("name"), nb::arg("threads"), nb::arg("cell"),
        nb::arg("sizes"), nb::arg("steps"), nb::arg("W").none(), nb::arg("packed"), nb::arg("h"),
        nb::arg("tape").none(),
        nb::arg("ds"), nb::arg("dc").none(), nb::arg("delta").none(), nb::arg("ds_before"),
        nb::arg("dc_before").none(), nb::arg("squares"), nb::arg("squares_c").none());
  m.def("gradients", &gradients, nb::arg("name"), nb::arg("threads"), nb::arg("cell"),
        nb::arg("sizes"), nb::arg("rows"), nb::arg("padded").none(), nb::arg("delta"),
        nb::arg("h"), nb::arg("gradients"));
}
