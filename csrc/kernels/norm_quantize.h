// LayerNorm or RMSNorm, AdaLN modulation and static quantization in one pass over the rows.
//
//   n = (x - mean) * rstd            (rms: x * rstd), mean and variance in float64, rounded once to float32
//   n = n * weight + bias            [k] each
//   u = n * (constant + scale[i]) + shift[i]      i = row / tokens; constant [k], 1 where absent
//   u = u * post_scale + post_shift  [k] each
//   u rotated, see rotation.h
#pragma once

#include "kernels/quantize.h"

namespace ptq4arvg {

struct NormQuantizeProblem {
  int64_t m = 0, k = 0;
  FloatMatrix x;  // [m, k]
  RowPositions rows;
  QuantizeTable table;
  FloatMatrix weight, bias, constant, post_scale, post_shift;  // [k] each, or without data
  FloatMatrix scale, shift;                                    // [m / tokens, k], or without data
  double eps = 1e-6;
  bool rms = false;
  int rotation = 0;  // columns of a block, 0: none
  int8_t* out = nullptr;  // [m, k] contiguous
};

namespace cpu {
void norm_quantize(const NormQuantizeProblem& problem);
}

}  // namespace ptq4arvg
