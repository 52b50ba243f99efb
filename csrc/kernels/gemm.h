// Integer GEMM on packed weights with the fused epilogue.
//
//   acc[m, n] = sum_k a[m, k] w[n, k]                      int32, exact
//   y = a_scale[t] * (w_scale[n] * float(acc - a_zero[t] * w_sum[n])) + bias[n]
//   y = residual + gate * activation(y)                    then a cast, or rotated and the next layer's codes
#pragma once

#include "kernels/patches.h"
#include "kernels/quantize.h"

namespace ptq4arvg {

// |acc - a_zero * w_sum| <= 2 * 128 * 127 * k stays in int32 up to here.
constexpr int64_t kMaxDepth = 65536;

struct Epilogue {
  const float* a_scale = nullptr;    // [T]
  const int32_t* a_zero = nullptr;   // [T] residual zero point of the stored codes; null: 0
  const int32_t* w_sum = nullptr;    // [n]; null: the sums kept in the packed weight
  const float* w_scale = nullptr;    // [n]
  const float* bias = nullptr;       // [n] or null
  Activation activation = Activation::none;
  FloatMatrix gate;      // [m / tokens, n] or null data
  FloatMatrix residual;  // [m, n] or null data
  bool requantize = false;
  DType out_dtype = DType::f32;  // when not requantize
  QuantizeTable out_table;       // when requantize
  int rotation = 0;              // when requantize: columns of a block (rotation.h), at most kMaxEpilogueRotation
  void* out = nullptr;           // [m, n] contiguous
};

struct GemmProblem {
  int64_t m = 0, n = 0, k = 0;
  const int8_t* a = nullptr;
  int64_t a_stride = 0;          // elements from row to row
  Patches patches;               // of a, where its rows are such
  const uint8_t* w = nullptr;    // packed
  int bits = 8;                  // of the weights
  const int32_t* w_zero = nullptr;
  RowPositions rows;
  Epilogue epilogue;
};

namespace cpu {
void gemm(const GemmProblem& problem);
}

}  // namespace ptq4arvg
