// The number format: quantized levels, stored codes, packed weights. Defined here once, for host and device.
//
// b bits, L = 2^b levels. Activations: q = clamp(rne(x * inv_scale) + zero, 0, L - 1); stored as int8: q - 128 at
// 8 bits, q - zero at 6 and 4 bits. Weights: the stored code has its zero point taken off, w = q - zero.
#pragma once

#include "kernels/activation.h"
#include "kernels/real.h"

namespace ptq4arvg {

PTQ4ARVG_FN int levels(int bits) { return 1 << bits; }

// What is subtracted from a level to get the stored activation code.
PTQ4ARVG_FN int32_t code_offset(int bits, int32_t zero) { return bits == 8 ? 128 : zero; }

// The zero point of a packed weight column when no tensor of zero points is given.
PTQ4ARVG_FN int32_t default_weight_zero(int bits) { return bits == 8 ? 0 : 1 << (bits - 1); }

// The row constants of a quantization: codes are clamp(rne(x * inv_scale), low, high) + shift.
struct QuantizeRow {
  float inv_scale, low, high, shift;
};

PTQ4ARVG_FN QuantizeRow quantize_row(float inv_scale, int32_t zero, int bits) {
  return {inv_scale, static_cast<float>(-zero), static_cast<float>(levels(bits) - 1 - zero),
          static_cast<float>(zero - code_offset(bits, zero))};
}

// What is rounded. The bounds are integers, so clamping first changes nothing and keeps round_even's argument small; NaN
// becomes the lower end.
template <class F>
PTQ4ARVG_FN F clamped(F x, const QuantizeRow& row) {
  return smaller(larger(mul(x, F(row.inv_scale)), F(row.low)), F(row.high));
}

// The stored code as a float.
template <class F>
PTQ4ARVG_FN F quantize(F x, const QuantizeRow& row) {
  return add(round_even(clamped(x, row)), F(row.shift));
}

// y = a_scale * (w_scale * corrected sum), the start of every epilogue.
template <class F>
PTQ4ARVG_FN F dequantize(F corrected_sum, F w_scale, F a_scale) {
  return mul(a_scale, mul(w_scale, corrected_sum));
}

// Position of a row in the tables: position + row % tokens.
struct RowPositions {
  int64_t tokens = 1;
  const int32_t* position = nullptr;  // one element, in the memory of the device that runs the kernel; null means 0

};

PTQ4ARVG_FN int64_t position_of(const RowPositions& rows, int64_t row) {
  return (rows.position ? *rows.position : 0) + row % rows.tokens;
}

// A matrix of floats of any supported type; the last dimension is contiguous.
struct FloatMatrix {
  const void* data = nullptr;
  DType dtype = DType::f32;
  int64_t row_stride = 0;
};

}  // namespace ptq4arvg
