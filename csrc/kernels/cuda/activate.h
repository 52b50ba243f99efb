// Activation functions of several values at a time, for host and device.
#pragma once

#include "kernels/activation.h"

#if defined(__CUDACC__)
#define PTQ4ARVG_UNROLL _Pragma("unroll")
#else
#define PTQ4ARVG_UNROLL
#endif

namespace ptq4arvg::cuda {

// One branch for all N.
template <int N>
PTQ4ARVG_FN void activate_all(Activation kind, float* y) {
  switch (kind) {
    case Activation::gelu:
      PTQ4ARVG_UNROLL
      for (int i = 0; i < N; ++i) y[i] = gelu(y[i]);
      break;
    case Activation::gelu_tanh:
      PTQ4ARVG_UNROLL
      for (int i = 0; i < N; ++i) y[i] = gelu_tanh(y[i]);
      break;
    case Activation::silu:
      PTQ4ARVG_UNROLL
      for (int i = 0; i < N; ++i) y[i] = silu(y[i]);
      break;
    case Activation::none:
      break;
  }
}

}  // namespace ptq4arvg::cuda
