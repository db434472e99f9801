// One layer's work as its callers see it: the loop through time with the products
// around it. Shapes as in kernels.h; `inputs` is the width of x, or the number of ids.
#pragma once

#include "kernels.h"

namespace bptt {

struct LayerForward {
  Cell cell;
  int64_t time, batch, inputs, hidden;
  const float* x;      // (time, batch, inputs); or null, and then
  const int64_t* ids;  // (time, batch), each in [0, inputs)
  const float* U;      // (gates * hidden, inputs)
  const float* W;      // (gates * hidden, hidden)
  const float* b_ih;   // (gates * hidden); both biases or none
  const float* b_hh;
  float* h;      // (time + 1, batch, hidden); entry 0 is given
  float* c;      // LSTM: as h if `keep`, else (batch, hidden), changed in place
  float* gates;  // GRU, LSTM, if `keep`: (time, batch, gates * hidden)
  float* extra;  // GRU, LSTM, if `keep`: (time, batch, hidden)
  bool keep;
};

struct LayerGradients {
  Cell cell;
  int64_t time, batch, inputs, hidden;
  const float* delta;  // (time, batch, delta_blocks * hidden)
  const float* x;      // as LayerForward
  const int64_t* ids;
  const float* U;
  const float* h;
  float* dU;     // (gates * hidden, inputs); or null
  float* dW;     // (gates * hidden, hidden); or null
  float* db_ih;  // (gates * hidden); or null
  float* db_hh;  // (gates * hidden); or null
  float* dx;     // (time, batch, inputs); or null
};

bool layer_forward(const Kernels&, Team&, const LayerForward&);
bool layer_gradients(const Kernels&, Team&, const LayerGradients&);

}  // namespace bptt
