// The epilogue of the tiled GEMMs, once for all architectures: int32 sums in, float32 lanes or stored codes out.
//
// The same functions of format.h and activation.h that the CPU kernels use, in the order of cpu/epilogue.h, on several
// elements at a time. N lanes share one branch on the activation function, which is known at run time only. Knows
// neither CUTLASS nor CUDA: tests/cuda/test_cutlass_epilogue.cpp compares it with the CPU's epilogue bit for bit.
#pragma once

#include "kernels/cuda/activate.h"
#include "kernels/cuda/codes.h"
#include "kernels/cuda/epilogue.h"

namespace ptq4arvg::cuda {

// N neighbours in registers.
template <class T, int N>
struct Group {
  T v[N];

  PTQ4ARVG_HOST_DEVICE Group() {}
  PTQ4ARVG_HOST_DEVICE explicit Group(T x) {
    PTQ4ARVG_UNROLL
    for (int i = 0; i < N; ++i) v[i] = x;
  }
};

template <int N>
using Lanes = Group<float, N>;
template <int N>
using Integers = Group<int32_t, N>;

// What stands in for an absent bias without changing a bit of the result: y + -0 = y, also for y = -0.
constexpr float kNoBias = -0.0f;

// Rows fit 32 bits (CUTLASS's sizes do), and a 32-bit remainder is several times cheaper than position_of's.
struct TokenIndex {
  uint32_t tokens;
  int32_t position;

  PTQ4ARVG_HOST_DEVICE int32_t table(int32_t row) const {
    return position + static_cast<int32_t>(static_cast<uint32_t>(row) % tokens);
  }
  PTQ4ARVG_HOST_DEVICE int32_t image(int32_t row) const {
    return static_cast<int32_t>(static_cast<uint32_t>(row) / tokens);
  }
};

PTQ4ARVG_FN TokenIndex token_index(const RowPositions& rows) {
  return {static_cast<uint32_t>(rows.tokens), rows.position ? *rows.position : 0};
}

// The epilogue is y = residual + gate * activation(y), where y begins as
//   a_scale * (w_scale * float(sum - zero * w_sum)) + bias
// begin_element and activate_all, then apply_gate and add_residual where there are such operands.
PTQ4ARVG_FN float begin_element(int32_t sum, int32_t zero, int32_t w_sum, float w_scale, float a_scale, float bias) {
  return ::ptq4arvg::add(dequantize(static_cast<float>(sum - zero * w_sum), w_scale, a_scale), bias);
}

PTQ4ARVG_FN float apply_gate(float y, float gate) { return ::ptq4arvg::mul(gate, y); }
PTQ4ARVG_FN float add_residual(float y, float residual) { return ::ptq4arvg::add(residual, y); }

}  // namespace ptq4arvg::cuda
