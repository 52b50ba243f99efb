// Float32 primitives and the 16-bit float types, for host and device.
//
// Every float step of the library is one of these: separately rounded, never contracted to a fused multiply-add that the
// text does not ask for, so that all backends agree bit for bit. Kernels with vectors overload the same names for their
// vector type.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__CUDACC__)
#define PTQ4ARVG_HOST_DEVICE __host__ __device__
#else
#define PTQ4ARVG_HOST_DEVICE
#endif

// Internal linkage and forced inlining: the same headers are compiled for several instruction sets, and a linker that
// merges inline functions could hand the baseline code a copy with AVX instructions.
#define PTQ4ARVG_FN static inline __attribute__((always_inline)) PTQ4ARVG_HOST_DEVICE

namespace ptq4arvg {

enum class DType : int { f32, f16, bf16 };

PTQ4ARVG_FN uint32_t float_bits(float x) {
  uint32_t bits;
  memcpy(&bits, &x, sizeof bits);
  return bits;
}

PTQ4ARVG_FN float bits_float(uint32_t bits) {
  float x;
  memcpy(&x, &bits, sizeof x);
  return x;
}

#if defined(__CUDA_ARCH__)
PTQ4ARVG_FN float add(float a, float b) { return __fadd_rn(a, b); }
PTQ4ARVG_FN float sub(float a, float b) { return __fsub_rn(a, b); }
PTQ4ARVG_FN float mul(float a, float b) { return __fmul_rn(a, b); }
PTQ4ARVG_FN float div(float a, float b) { return __fdiv_rn(a, b); }
PTQ4ARVG_FN float square_root(float a) { return __fsqrt_rn(a); }
PTQ4ARVG_FN float fused(float a, float b, float c) { return __fmaf_rn(a, b, c); }
PTQ4ARVG_FN float larger(float a, float b) { return fmaxf(a, b); }
PTQ4ARVG_FN float smaller(float a, float b) { return fminf(a, b); }
#else
PTQ4ARVG_FN float add(float a, float b) { return a + b; }
PTQ4ARVG_FN float sub(float a, float b) { return a - b; }
PTQ4ARVG_FN float mul(float a, float b) { return a * b; }
PTQ4ARVG_FN float div(float a, float b) { return a / b; }
PTQ4ARVG_FN float square_root(float a) { return std::sqrt(a); }
PTQ4ARVG_FN float fused(float a, float b, float c) { return std::fma(a, b, c); }  // a b + c, rounded once
// `b` where `a` is NaN. No `b` in the library is, and no result's sign counts where it is zero.
PTQ4ARVG_FN float larger(float a, float b) { return a > b ? a : b; }
PTQ4ARVG_FN float smaller(float a, float b) { return a < b ? a : b; }
#endif

// 1 / d, correctly rounded, of an estimate that is right to one unit in the last place. For d in [1, 2^126] these are
// the steps of the compiler's own division. Other d it leaves to a function, and a call anywhere in a kernel makes ptxas
// serialize its wgmma instructions.
PTQ4ARVG_FN float mended_reciprocal(float d, float estimate) {
  return fused(fused(-d, estimate, 1.0f), estimate, estimate);
}

// 1 / d for d in [1, 2^126].
PTQ4ARVG_FN float reciprocal(float d) {
#if defined(__CUDA_ARCH__)
  float estimate;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(estimate) : "f"(d));
  return mended_reciprocal(d, estimate);
#else
  return 1.0f / d;
#endif
}

PTQ4ARVG_FN float if_negative(float x, float then, float otherwise) {
  return x < 0.0f ? then : otherwise;
}
PTQ4ARVG_FN float magnitude(float x) { return bits_float(float_bits(x) & 0x7fffffffu); }

// Round to nearest even, |x| < 2^22: the sum has no bits left for a fraction, and the integer in its lowest ones.
constexpr float kRoundingShift = 12582912.0f;  // 1.5 * 2^23
PTQ4ARVG_FN float round_even(float x) { return sub(add(x, kRoundingShift), kRoundingShift); }

// x * 2^n, neither subnormal nor zero, as x is; shifted = n + kRoundingShift, whose lowest bits go to the exponent.
PTQ4ARVG_FN float times_power(float x, float shifted) {
  return bits_float(float_bits(x) + (float_bits(shifted) << 23));
}

// Horner's scheme, highest power first. F is float or a vector type.
template <class F, class... Floats>
PTQ4ARVG_FN F polynomial(F x, float first, Floats... coefficients) {
  F y = F(first);
  ((y = fused(y, x, F(coefficients))), ...);
  return y;
}

PTQ4ARVG_FN float bf16_to_float(uint16_t h) { return bits_float(static_cast<uint32_t>(h) << 16); }

PTQ4ARVG_FN uint16_t float_to_bf16(float x) {
  const uint32_t bits = float_bits(x);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return 0x7fc0;  // NaN: rounding could turn it into infinity
  return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

PTQ4ARVG_FN float f16_to_float(uint16_t h) {
  const uint32_t sign = static_cast<uint32_t>(h & 0x8000u) << 16;
  const uint32_t body = static_cast<uint32_t>(h & 0x7fffu) << 13;  // exponent and mantissa in float32's places
  const uint32_t exponent = body & 0x0f800000u;
  uint32_t bits = body + (112u << 23);  // from bias 15 to bias 127
  if (exponent == 0x0f800000u) {
    bits += 112u << 23;  // infinity or NaN
  } else if (exponent == 0) {
    // Subnormal: let a float subtraction normalize it.
    bits = float_bits(sub(bits_float(bits + (1u << 23)), bits_float(113u << 23)));
  }
  return bits_float(sign | bits);
}

PTQ4ARVG_FN uint16_t float_to_f16(float x) {
  const uint32_t bits = float_bits(x);
  const uint32_t sign = (bits >> 16) & 0x8000u;
  uint32_t body = bits & 0x7fffffffu;
  if (body > 0x7f800000u) return static_cast<uint16_t>(sign | 0x7e00u);   // NaN
  if (body >= 0x477ff000u) return static_cast<uint16_t>(sign | 0x7c00u);  // 65520 and more round to infinity
  if (body < 0x38800000u) {
    // Below 2^-14: adding 0.5 rounds to multiples of 2^-24, the spacing of float16's subnormals.
    body = float_bits(add(bits_float(body), 0.5f)) - float_bits(0.5f);
    return static_cast<uint16_t>(sign | body);
  }
  body += 0xfffu + ((body >> 13) & 1u);
  return static_cast<uint16_t>(sign | ((body - (112u << 23)) >> 13));
}

// A float of any type as it is in memory, and what it is.
PTQ4ARVG_FN uint32_t load_bits(const void* data, DType dtype, int64_t index) {
  if (dtype == DType::f32) return static_cast<const uint32_t*>(data)[index];
  return static_cast<const uint16_t*>(data)[index];
}
PTQ4ARVG_FN float float_of_bits(uint32_t bits, DType dtype) {
  if (dtype == DType::f32) return bits_float(bits);
  const uint16_t half = static_cast<uint16_t>(bits);
  return dtype == DType::f16 ? f16_to_float(half) : bf16_to_float(half);
}

PTQ4ARVG_FN float load_float(const void* data, DType dtype, int64_t index) {
  if (dtype == DType::f32) return static_cast<const float*>(data)[index];
  return float_of_bits(load_bits(data, dtype, index), dtype);
}

PTQ4ARVG_FN void store_float(void* data, DType dtype, int64_t index, float x) {
  if (dtype == DType::f32) {
    static_cast<float*>(data)[index] = x;
  } else {
    static_cast<uint16_t*>(data)[index] = dtype == DType::f16 ? float_to_f16(x) : float_to_bf16(x);
  }
}

}  // namespace ptq4arvg
