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

struct Forward {
  Cell cell;
  int64_t time, batch, inputs, hidden;
  const float* x;      // (time, batch, inputs); or null, and then
  const int64_t* ids;  // (time, batch), each in [0, inputs): one-hot input
  const float* U;      // (gates * hidden, inputs)
  const float* U_columns;  // for many ids: (inputs, gates * hidden), U transposed
  const float* W;      // (gates * hidden, hidden)
  const float* b_ih;   // (gates * hidden); both biases or none
  const float* b_hh;
  const float* h0;  // (batch, hidden), before the first step
  float* h;  // (time, batch, hidden)
  float* y;  // (time, batch, hidden), a copy of h; or null
  float* c;  // LSTM: (batch, hidden), changed in place
  float* tape;  // what the way back needs: Kernels::tape_floats; or null
};

// One layer of a stack on the way back.
struct BackwardLayer {
  const float* W;      // (gates * hidden, hidden)
  const float* U;      // (gates * hidden, hidden), towards the layer below; else null
  const float* h;      // (time + 1, batch, hidden)
  const float* tape;   // as this variant's forward wrote it
  const float* mask;   // (time, batch, hidden) on the way from the layer above; or null
  const float* dh_end; // (batch, hidden), error of the final state; or null
  const float* dc_end;
  float* delta;        // (time, batch, delta_blocks * hidden), summed over passes; zeros
                       // where no pass comes by, or where several do
  float* dh_start;     // (batch, hidden), zeros; added to; or null
  float* dc_start;
};

// Where the gradients of a layer's weights and input go.
struct Gradients {
  int64_t inputs;
  const float* x;      // as in Forward
  const int64_t* ids;
  const float* U;
  float* dU;      // (gates * hidden, inputs), or (inputs, gates * hidden) for
                  // `dU_columns`, then zeros and added to; or null
  bool dU_columns;     // for many ids
  float* dW;      // (gates * hidden, hidden); or null
  float* db_ih;   // (gates * hidden); or null
  float* db_hh;   // (gates * hidden); or null
  float* dx;      // (time, batch, inputs); or null
};

// All passes of a truncation back through a stack of layers of one width.
struct Backward {
  Cell cell;
  int64_t time, batch, hidden;
  int64_t k1, k2;            // full BPTT is (time, time)
  const float* dy;           // (time, batch, hidden), error of the top layer's outputs
  int layers;
  const BackwardLayer* layer;  // bottom first
  // For one layer, if no step is visited by two passes (k2 <= k1 <= time): its
  // gradients, formed along the way from deltas that are still in the cache; the layer's
  // `delta` is null then, and `dx` is written where a pass comes by. Else null.
  const Gradients* gradients;
};

struct Kernels {
  const char* name;
  // Size of the tape; its layout is the variant's own. 0 for RNN, whose h is enough.
  int64_t (*tape_floats)(Cell, int64_t time, int64_t batch, int64_t hidden);
  bool (*forward)(Team&, const Forward&);
  bool (*backward)(Team&, const Backward&);
  // The gradients from deltas (time, batch, delta_blocks * hidden), h being (time + 1,
  // batch, hidden).
  bool (*gradients)(Team&, Cell, int64_t time, int64_t batch, int64_t hidden,
                    const float* delta, const float* h, const Gradients&);
  // to (n, m) = the transpose of from (m, n).
  void (*transpose)(Team&, int64_t m, int64_t n, const float* from, float* to);
};

// The variants that were built, best first, ending with a null pointer.
extern const Kernels* const built_kernels[];
// Whether this processor can run it.
bool runs_here(const Kernels& kernels);

}  // namespace bptt
