// The core's functions: pointers and shapes only. All arrays are float32, row-major and
// contiguous unless strides are given; every pointer's shape stands beside it, in the
// order slowest axis first. Functions return false if memory for their scratch is
// lacking, and have then written nothing that the caller may use.
#pragma once

#include <cstdint>

namespace bptt {

class Team;

// Gates, in the order of the rows of U and W: RNN one; GRU r z n; LSTM i f g o.
enum class Cell : int { kTanh = 0, kRelu = 1, kGru = 2, kLstm = 3 };

constexpr int gates(Cell cell) {
  return cell == Cell::kLstm ? 4 : cell == Cell::kGru ? 3 : 1;
}

// Blocks of `hidden` columns in a row of `delta`: RNN the error of z; LSTM those of
// i f g o; GRU hn r z n, where hn is the error of W_n h + b_hn, so that columns
// [0, 3 hidden) are the error of W h and columns [hidden, 4 hidden) that of U x.
constexpr int delta_blocks(Cell cell) { return cell == Cell::kGru ? 4 : gates(cell); }

// The steps of a batch of rows, which are all alike, or packed: sorted by length, the
// longest first, and of each step the rows that have it, step after step. `rows` is
// below the number of all, time * batch or offsets[time].
struct Steps {
  int64_t time, batch;
  const int64_t* offsets;  // (time + 1), where each step's rows begin; null if all alike
  const uint8_t* resets;   // (rows), whether the state is zeroed before; or null
};

// Where each of the rows stands in an array that its owner has in another order or with
// more rows: (rows) of int64, no place twice; null where they stand as they are counted.
using Places = const int64_t*;

struct Forward {
  Cell cell;
  Steps steps;
  int64_t inputs, hidden;
  const float* x;      // (rows, inputs); or null, and then
  const int64_t* ids;  // (rows), each in [0, inputs): one-hot input
  Places x_places;     // in x
  const float* U;      // (gates * hidden, inputs)
  const float* U_columns;  // for many ids: (inputs, gates * hidden), U transposed
  const float* W;      // (gates * hidden, hidden)
  const float* b_ih;   // (gates * hidden); both biases or none
  const float* b_hh;
  const float* h0;  // (batch, hidden), before the first step
  float* h;  // (rows, hidden)
  float* y;  // (rows, hidden), a copy of h; or null
  Places y_places;  // in y
  float* c;  // LSTM: (batch, hidden), changed in place
  float* tape;  // what the way back needs: Kernels::tape_floats; or null
};

// One layer of a stack on the way back.
struct BackwardLayer {
  const float* W;      // (gates * hidden, hidden)
  const float* U;      // (gates * hidden, hidden), towards the layer below; else null
  const float* h;      // (batch + rows, hidden), the initial state before the steps
  const float* tape;   // as this variant's forward wrote it
  const float* mask;   // (rows, hidden) on the way from the layer above; or null
  const float* dh_end; // (batch, hidden), error of the final state; or null
  const float* dc_end;
  float* delta;        // (rows, delta_blocks * hidden), summed over passes; zeros
                       // where no pass comes by, or where several do
  float* dh_start;     // (batch, hidden), zeros; added to; or null
  float* dc_start;
};

// Where the gradients of a layer's weights and input go.
struct Gradients {
  int64_t inputs;
  const float* x;      // as in Forward
  const int64_t* ids;
  Places x_places;     // in x and dx
  const float* U;
  float* dU;      // (gates * hidden, inputs), or (inputs, gates * hidden) for
                  // `dU_columns`, then zeros and added to; or null
  bool dU_columns;     // for many ids
  float* dW;      // (gates * hidden, hidden); or null
  float* db_ih;   // (gates * hidden); or null
  float* db_hh;   // (gates * hidden); or null
  float* dx;      // (rows, inputs); or null
};

// All passes of a truncation back through a stack of layers of one width.
struct Backward {
  Cell cell;
  Steps steps;
  int64_t hidden;
  int64_t k1, k2;            // full BPTT is (time, time)
  int64_t chunk;             // under full BPTT: no error goes from a step that is a
                             // multiple of it to the one before; 0: all do
  const float* dy;           // (rows, hidden), error of the top layer's outputs
  Places dy_places;          // in dy
  int layers;
  const BackwardLayer* layer;  // bottom first
  // For one layer, if no step is visited by two passes (k2 <= k1 <= time): its
  // gradients, formed along the way from deltas that are still in the cache (under a
  // truncation for rows that are all alike); the layer's `delta` is null then, and `dx`
  // is written where a pass comes by. Else null.
  const Gradients* gradients;
};

// One lag of the passes of a layer's outputs, one an output: they stand at the steps
// [0, steps), all of whose rows are alike.
struct LagBack {
  Cell cell;
  int64_t time, batch, hidden;
  int64_t steps;        // 1 to time
  const float* W;       // (gates * hidden, hidden); or null: it is in `packed`
  float* packed;        // packed_floats, aligned; W in the variant's own order
  const float* h;       // (batch + time * batch, hidden), as in BackwardLayer
  const float* tape;    // of all steps, as forward wrote it
  const float* ds;      // (steps * batch, hidden), error of h after the step
  const float* dc;      // LSTM: the same of c
  float* delta;         // (steps * batch, delta_blocks * hidden); or null
  float* ds_before;     // (steps * batch, hidden), error of h before the step
  float* dc_before;     // LSTM
  float* squares;       // (steps * batch), of each row's ds the sum of squares
  float* squares_c;     // LSTM: of dc
};

struct Kernels {
  const char* name;
  // Size of the tape; its layout is the variant's own. 0 for RNN, whose h is enough.
  int64_t (*tape_floats)(Cell, int64_t rows, int64_t hidden);
  bool (*forward)(Team&, const Forward&);
  bool (*backward)(Team&, const Backward&);
  // The gradients from deltas (rows, delta_blocks * hidden) and the states before their
  // steps, h (rows, hidden), or at their places there.
  bool (*gradients)(Team&, Cell, int64_t rows, int64_t hidden, const float* delta,
                    const float* h, Places h_places, const Gradients&);
  int64_t (*packed_floats)(Cell, int64_t hidden);
  bool (*back_lag)(Team&, const LagBack&);
  // to (n, m) = the transpose of from (m, n).
  void (*transpose)(Team&, int64_t m, int64_t n, const float* from, float* to);
};

// The variants that were built, best first, ending with a null pointer.
extern const Kernels* const built_kernels[];
// Whether this processor can run it.
bool runs_here(const Kernels& kernels);
// Floats that a core's second-level cache holds beside all else: three quarters of it.
int64_t cached_floats();

}  // namespace bptt
