// Stored codes of floats, four to a word, for host and device.
#pragma once

#include "kernels/format.h"

namespace ptq4arvg::cuda {

// The low byte of the result is the stored code: quantize() without the way back from kRoundingShift, and without a
// conversion instruction, which has a fraction of the others' rate.
PTQ4ARVG_FN uint32_t code_bits(float y, const QuantizeRow& row) {
  return float_bits(add(add(clamped(y, row), kRoundingShift), row.shift));
}

PTQ4ARVG_FN uint32_t low_bytes(uint32_t a, uint32_t b, uint32_t c, uint32_t d) {
#if defined(__CUDA_ARCH__)
  return __byte_perm(__byte_perm(a, b, 0x0040), __byte_perm(c, d, 0x0040), 0x5410);
#else
  return (a & 255u) | (b & 255u) << 8 | (c & 255u) << 16 | d << 24;
#endif
}

// Of four integers in [-128, 127].
PTQ4ARVG_FN uint32_t pack_codes(const float* codes) {
  const auto bits = [=](int i) { return float_bits(add(codes[i], kRoundingShift)); };
  return low_bytes(bits(0), bits(1), bits(2), bits(3));
}

}  // namespace ptq4arvg::cuda
