// The epilogue of the tiled GEMMs, once for all architectures: int32 sums in, float32 lanes or stored codes out.
//
// The same functions of format.h and activation.h that the CPU kernels use, in the order of cpu/epilogue.h, on N
// elements at a time. N lanes share one branch on the activation function, which is known at run time only. Knows
// neither CUTLASS nor CUDA: tests/cuda/epilogue_math.cpp compares it with the CPU's epilogue bit for bit.
#pragma once

#include "kernels/gemm.h"

#if defined(__CUDACC__)
#define PTQ4ARVG_UNROLL _Pragma("unroll")
#else
#define PTQ4ARVG_UNROLL
#endif

namespace ptq4arvg::cuda {

// The vector type of activation.h and format.h: N floats in registers, every step on every lane.
template <int N>
struct Lanes {
  float v[N];

  PTQ4ARVG_HOST_DEVICE Lanes() {}
  PTQ4ARVG_HOST_DEVICE explicit Lanes(float x) {
    PTQ4ARVG_UNROLL
    for (int i = 0; i < N; ++i) v[i] = x;
  }
};

template <int N>
struct Integers {
  int32_t v[N];

  PTQ4ARVG_HOST_DEVICE Integers() {}
  PTQ4ARVG_HOST_DEVICE explicit Integers(int32_t x) {
    PTQ4ARVG_UNROLL
    for (int i = 0; i < N; ++i) v[i] = x;
  }
};

#define PTQ4ARVG_LANES_BINARY(name)                                                    \
  template <int N>                                                                     \
  PTQ4ARVG_FN Lanes<N> name(const Lanes<N>& a, const Lanes<N>& b) {                    \
    Lanes<N> out;                                                                      \
    PTQ4ARVG_UNROLL                                                                    \
    for (int i = 0; i < N; ++i) out.v[i] = ::ptq4arvg::name(a.v[i], b.v[i]);           \
    return out;                                                                        \
  }
PTQ4ARVG_LANES_BINARY(add)
PTQ4ARVG_LANES_BINARY(sub)
PTQ4ARVG_LANES_BINARY(mul)
PTQ4ARVG_LANES_BINARY(div)
PTQ4ARVG_LANES_BINARY(larger)
PTQ4ARVG_LANES_BINARY(smaller)
#undef PTQ4ARVG_LANES_BINARY

#define PTQ4ARVG_LANES_UNARY(name)                                                     \
  template <int N>                                                                     \
  PTQ4ARVG_FN Lanes<N> name(const Lanes<N>& a) {                                       \
    Lanes<N> out;                                                                      \
    PTQ4ARVG_UNROLL                                                                    \
    for (int i = 0; i < N; ++i) out.v[i] = ::ptq4arvg::name(a.v[i]);                   \
    return out;                                                                        \
  }
PTQ4ARVG_LANES_UNARY(magnitude)
PTQ4ARVG_LANES_UNARY(round_even)
#undef PTQ4ARVG_LANES_UNARY

// 2^n for an integral n in [-126, 127], as real.h's, but without the conversion to an integer, an instruction of a
// quarter of the rate of others: n + 1.5 * 2^23 holds n in its low bits, and the shift drops the rest.
template <int N>
PTQ4ARVG_FN Lanes<N> power_of_two(const Lanes<N>& n) {
  Lanes<N> out;
  PTQ4ARVG_UNROLL
  for (int i = 0; i < N; ++i) {
    out.v[i] = bits_float((float_bits(::ptq4arvg::add(n.v[i], kRoundingShift)) + 127u) << 23);
  }
  return out;
}

template <int N>
PTQ4ARVG_FN Lanes<N> if_negative(const Lanes<N>& x, const Lanes<N>& then, const Lanes<N>& otherwise) {
  Lanes<N> out;
  PTQ4ARVG_UNROLL
  for (int i = 0; i < N; ++i) out.v[i] = ::ptq4arvg::if_negative(x.v[i], then.v[i], otherwise.v[i]);
  return out;
}

// What stands in for an absent operand without changing a bit of the result: y + -0 = y also for y = -0, 1 * y = y.
constexpr float kNoAddend = -0.0f;
constexpr float kNoFactor = 1.0f;

// One row's entries of the static tables. The table index needs no bound check in rows past the end of the matrix:
// row % tokens is inside the table for every row.
struct TokenRow {
  float scale;
  int32_t zero;
  QuantizeRow out;  // set where the output is codes
};

PTQ4ARVG_FN TokenRow token_row(const Epilogue& e, int64_t t, bool requantize) {
  TokenRow row;
  row.scale = e.a_scale[t];
  row.zero = e.a_zero ? e.a_zero[t] : 0;
  if (requantize) row.out = quantize_row(e.out_table.inv_scale[t], e.out_table.zero[t], e.out_table.bits);
  return row;
}

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

// y = residual + gate * activation(a_scale * (w_scale * float(sum - zero * w_sum)) + bias)
template <int N>
PTQ4ARVG_FN Lanes<N> finish(const Integers<N>& sum, const Integers<N>& zero, const Integers<N>& w_sum,
                            const Lanes<N>& w_scale, const Lanes<N>& a_scale, const Lanes<N>& bias, Activation kind,
                            const Lanes<N>& gate, const Lanes<N>& residual) {
  Lanes<N> corrected;
  PTQ4ARVG_UNROLL
  for (int i = 0; i < N; ++i) corrected.v[i] = static_cast<float>(sum.v[i] - zero.v[i] * w_sum.v[i]);
  Lanes<N> y = add(dequantize(corrected, w_scale, a_scale), bias);
  y = activate(kind, y);
  return add(residual, mul(gate, y));
}

// The low byte of the result is the stored code (format.h). A code is an integer in [-128, 127]; adding 1.5 * 2^23
// leaves it in the low mantissa bits, which is cheaper than a conversion instruction.
PTQ4ARVG_FN uint32_t code_bits(float y, const QuantizeRow& row) {
  return float_bits(::ptq4arvg::add(quantize(y, row), kRoundingShift));
}

PTQ4ARVG_FN uint32_t low_bytes(uint32_t a, uint32_t b, uint32_t c, uint32_t d) {
#if defined(__CUDA_ARCH__)
  return __byte_perm(__byte_perm(a, b, 0x0040), __byte_perm(c, d, 0x0040), 0x5410);
#else
  return (a & 255u) | (b & 255u) << 8 | (c & 255u) << 16 | d << 24;
#endif
}

}  // namespace ptq4arvg::cuda
