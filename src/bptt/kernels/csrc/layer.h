// One layer's work as its callers see it, made of the kernels. Shapes as in kernels.h;
// `inputs` is the width of x, or the number of ids.
#pragma once

#include "kernels.h"

namespace bptt {

// `U_columns` and `dU_columns` need not be given; dU is (gates * hidden, inputs); h is
// (batch + rows, hidden), as in BackwardLayer.
bool layer_forward(const Kernels&, Team&, Forward);
bool layer_backward(const Kernels&, Team&, Backward);
bool layer_gradients(const Kernels&, Team&, Cell, const Steps&, int64_t hidden,
                     const float* delta, const float* h, Gradients);

// One layer of a stack on the way forward; shapes as in Forward.
struct StackLayer {
  const float* U;
  const float* W;
  const float* b_ih;
  const float* b_hh;
  const float* mask;  // (rows, hidden) on the way to the layer above; or null
  float* h;     // (batch + rows, hidden), the initial state first; or null, and
  float* tape;  // then null too
};

struct Stack {
  Cell cell;
  Steps steps;
  int64_t inputs, hidden;
  int layers;
  const StackLayer* layer;  // bottom first
  const float* x;           // as in Forward
  const int64_t* ids;
  Places x_places;
  const float* h0;  // (layers, batch, hidden)
  const float* c0;  // LSTM: the same
  float* y;         // (rows, hidden), of the top layer
  Places y_places;
  float* h_end;     // (layers, batch, hidden)
  float* c_end;
};

bool stack_forward(const Kernels&, Team&, const Stack&);

// How many of `threads` are worth the meeting, for so many multiplications in all.
int useful_threads(int threads, int64_t multiplications);

}  // namespace bptt
