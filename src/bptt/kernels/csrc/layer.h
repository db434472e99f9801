// One layer's work as its callers see it, made of the kernels. Shapes as in kernels.h;
// `inputs` is the width of x, or the number of ids.
#pragma once

#include "kernels.h"

namespace bptt {

// `U_columns` and `dU_columns` need not be given; dU is (gates * hidden, inputs).
bool layer_forward(const Kernels&, Team&, Forward);
bool layer_backward(const Kernels&, Team&, Backward);
bool layer_gradients(const Kernels&, Team&, Cell, int64_t time, int64_t batch,
                     int64_t hidden, const float* delta, const float* h, Gradients);

}  // namespace bptt
