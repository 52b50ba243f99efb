// Float activations on packed weights: y[m, n] = activation(w_scale[n] * sum_k x[m, k] w[n, k] + bias[n]).
// A row's result does not depend on the other rows of the call.
#pragma once

#include "kernels/format.h"

namespace ptq4arvg {

struct GemmFloatProblem {
  int64_t m = 0, n = 0, k = 0;
  FloatMatrix x;  // [m, k]
  const uint8_t* w = nullptr;
  int bits = 8;
  const int32_t* w_zero = nullptr;
  const float* w_scale = nullptr;  // [n]
  const float* bias = nullptr;     // [n] or null
  Activation activation = Activation::none;
  DType out_dtype = DType::f32;
  void* out = nullptr;  // [m, n] contiguous
};

namespace cpu {
void gemm_float(const GemmFloatProblem& problem);
}

}  // namespace ptq4arvg
