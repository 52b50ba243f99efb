// Floats to stored activation codes by a table of scales and zero points, rotated before that if asked for. Gated ones
// are activation(x[0 .. k - 1]) * x[k .. 2 k - 1] of rows of 2 k.
#pragma once

#include "kernels/format.h"
#include "kernels/rotation.h"

namespace ptq4arvg {

struct QuantizeTable {
  const float* inv_scale = nullptr;  // [T]
  const int32_t* zero = nullptr;     // [T], the level of zero
  int bits = 8;
};

PTQ4ARVG_FN QuantizeRow table_row(const QuantizeTable& table, int64_t t) {
  return quantize_row(table.inv_scale[t], table.zero[t], table.bits);
}

struct QuantizeProblem {
  int64_t m = 0, k = 0;
  FloatMatrix x;  // [m, k], or [m, 2 k]
  RowPositions rows;
  QuantizeTable table;
  int rotation = 0;  // columns of a block, 0: none; see rotation.h
  bool gated = false;
  Activation activation = Activation::none;  // where gated
  int8_t* out = nullptr;  // [m, k] contiguous
};

namespace cpu {
void quantize(const QuantizeProblem& problem);
}

}  // namespace ptq4arvg
