// The epilogue of the tiled GEMMs, once for all architectures: int32 sums in, float32 lanes or stored codes out.
//
// The same functions of format.h and activation.h that the CPU kernels use, in the order of cpu/epilogue.h, on several
// elements at a time. N lanes share one branch on the activation function, which is known at run time only. Knows
// neither CUTLASS nor CUDA: tests/cuda/test_cutlass_epilogue.cpp compares it with the CPU's epilogue bit for bit.
#pragma once

#include "kernels/gemm.h"

#if defined(__CUDACC__)
#define PTQ4ARVG_UNROLL _Pragma("unroll")
#else
#define PTQ4ARVG_UNROLL
#endif

namespace ptq4arvg::cuda {

// The number type that the functions of activation.h run on here: a float whose division and power of two are inline.
struct Lane {
  float v;

  PTQ4ARVG_HOST_DEVICE Lane() {}
  PTQ4ARVG_HOST_DEVICE explicit Lane(float x) : v(x) {}
};

PTQ4ARVG_FN Lane add(Lane a, Lane b) { return Lane(::ptq4arvg::add(a.v, b.v)); }
PTQ4ARVG_FN Lane sub(Lane a, Lane b) { return Lane(::ptq4arvg::sub(a.v, b.v)); }
PTQ4ARVG_FN Lane mul(Lane a, Lane b) { return Lane(::ptq4arvg::mul(a.v, b.v)); }
PTQ4ARVG_FN Lane larger(Lane a, Lane b) { return Lane(::ptq4arvg::larger(a.v, b.v)); }
PTQ4ARVG_FN Lane smaller(Lane a, Lane b) { return Lane(::ptq4arvg::smaller(a.v, b.v)); }
PTQ4ARVG_FN Lane magnitude(Lane a) { return Lane(::ptq4arvg::magnitude(a.v)); }
PTQ4ARVG_FN Lane round_even(Lane a) { return Lane(::ptq4arvg::round_even(a.v)); }
PTQ4ARVG_FN Lane if_negative(Lane x, Lane then, Lane otherwise) {
  return Lane(::ptq4arvg::if_negative(x.v, then.v, otherwise.v));
}

// 2^n for an integral n in [-126, 127], as real.h's, but without the conversion to an integer, an instruction of a
// fraction of the rate of others: n + 1.5 * 2^23 holds n in its low bits, and the shift drops the rest.
PTQ4ARVG_FN Lane power_of_two(Lane n) {
  return Lane(bits_float((float_bits(::ptq4arvg::add(n.v, kRoundingShift)) + 127u) << 23));
}

PTQ4ARVG_FN float fused(float a, float b, float c) {
#if defined(__CUDA_ARCH__)
  return __fmaf_rn(a, b, c);
#else
  return __builtin_fmaf(a, b, c);
#endif
}

// 1 / d to one unit in the last place, for d in [1, 2^64]; 0 for infinity.
PTQ4ARVG_FN float reciprocal_estimate(float d) {
#if defined(__CUDA_ARCH__)
  float r;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(d));
  return r;
#elif defined(PTQ4ARVG_ESTIMATE)
  return PTQ4ARVG_ESTIMATE(d);  // a test's
#else
  return 1.0f / d;
#endif
}

// x / d, correctly rounded, where d >= 1 as in all of activation.h, and the quotient is not subnormal or d is a power
// of two. These are the steps of the compiler's division without what it does in rare cases: call a function, and a
// call anywhere in a kernel makes ptxas serialize its wgmma instructions. Here the rare cases are selected: d past
// 2^64 is scaled, so that its reciprocal is not subnormal; infinities, and tiny x, whose remainder is not exact, keep
// the product with the reciprocal.
PTQ4ARVG_FN Lane div(Lane x, Lane d) {
  const float scale = d.v > 0x1p64f ? 0x1p-64f : 1.0f;
  const float divisor = ::ptq4arvg::mul(d.v, scale);
  const float estimate = reciprocal_estimate(divisor);
  const float error = ::ptq4arvg::smaller(fused(-divisor, estimate, 1.0f), 1.0f);  // NaN, from infinity, becomes 1
  const float reciprocal = fused(error, estimate, estimate);
  const float product = ::ptq4arvg::mul(x.v, reciprocal);
  const float remainder = fused(-divisor, product, x.v);
  const bool usual = ::ptq4arvg::magnitude(x.v) > 0x1p-64f && remainder == remainder;
  return Lane(::ptq4arvg::mul(usual ? fused(remainder, reciprocal, product) : product, scale));
}

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

// One branch for all lanes.
template <int N>
PTQ4ARVG_FN void activate_all(Activation kind, Lanes<N>& y) {
  switch (kind) {
    case Activation::gelu:
      PTQ4ARVG_UNROLL
      for (int i = 0; i < N; ++i) y.v[i] = gelu(Lane(y.v[i])).v;
      break;
    case Activation::gelu_tanh:
      PTQ4ARVG_UNROLL
      for (int i = 0; i < N; ++i) y.v[i] = gelu_tanh(Lane(y.v[i])).v;
      break;
    case Activation::silu:
      PTQ4ARVG_UNROLL
      for (int i = 0; i < N; ++i) y.v[i] = silu(Lane(y.v[i])).v;
      break;
    case Activation::none:
      break;
  }
}

// What stands in for an absent bias without changing a bit of the result: y + -0 = y, also for y = -0.
constexpr float kNoBias = -0.0f;

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

// The epilogue is y = residual + gate * activation(y), where y begins as
//   a_scale * (w_scale * float(sum - zero * w_sum)) + bias
// begin_element and activate_all, then apply_gate and add_residual where there are such operands.
PTQ4ARVG_FN float begin_element(int32_t sum, int32_t zero, int32_t w_sum, float w_scale, float a_scale, float bias) {
  return ::ptq4arvg::add(dequantize(static_cast<float>(sum - zero * w_sum), w_scale, a_scale), bias);
}

PTQ4ARVG_FN float apply_gate(float y, float gate) { return ::ptq4arvg::mul(gate, y); }
PTQ4ARVG_FN float add_residual(float y, float residual) { return ::ptq4arvg::add(residual, y); }

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
