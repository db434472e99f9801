// One layer's work as its callers see it, made of the kernels. Shapes as in kernels.h;
// `inputs` is the width of x, or the number of ids.
#pragma once

#include "kernels.h"

namespace bptt {

struct LayerGradients {
  Cell cell;
  int64_t time, batch, inputs, hidden;
  const float* delta;  // (time, batch, delta_blocks * hidden)
  const float* x;      // as Forward
  const int64_t* ids;
  const float* U;
  const float* h;
  float* dU;     // (gates * hidden, inputs); or null
  float* dW;     // (gates * hidden, hidden); or null
  float* db_ih;  // (gates * hidden); or null
  float* db_hh;  // (gates * hidden); or null
  float* dx;     // (time, batch, inputs); or null
};

// `U_columns` need not be given.
bool layer_forward(const Kernels&, Team&, Forward);
bool layer_gradients(const Kernels&, Team&, const LayerGradients&);

}  // namespace bptt
