// Four floats at a time on Arm, with the same operations in the same order as ScalarLanes.
#pragma once

#include <arm_neon.h>

#include "kernels/format.h"

namespace ptq4arvg {
namespace {  // compiled for several instruction sets: internal linkage, see real.h

struct Float4 {
  float32x4_t v;
  explicit Float4(float x) : v(vdupq_n_f32(x)) {}
  explicit Float4(float32x4_t x) : v(x) {}
};

inline Float4 add(Float4 a, Float4 b) { return Float4(vaddq_f32(a.v, b.v)); }
inline Float4 sub(Float4 a, Float4 b) { return Float4(vsubq_f32(a.v, b.v)); }
inline Float4 mul(Float4 a, Float4 b) { return Float4(vmulq_f32(a.v, b.v)); }
inline Float4 div(Float4 a, Float4 b) { return Float4(vdivq_f32(a.v, b.v)); }

// Not vmaxq_f32 and vminq_f32: those give NaN where either is.
inline Float4 fused(Float4 a, Float4 b, Float4 c) { return Float4(vfmaq_f32(c.v, a.v, b.v)); }
inline Float4 larger(Float4 a, Float4 b) { return Float4(vbslq_f32(vcgtq_f32(a.v, b.v), a.v, b.v)); }
inline Float4 smaller(Float4 a, Float4 b) { return Float4(vbslq_f32(vcltq_f32(a.v, b.v), a.v, b.v)); }

inline Float4 if_negative(Float4 x, Float4 then, Float4 otherwise) {
  return Float4(vbslq_f32(vcltzq_f32(x.v), then.v, otherwise.v));
}

inline Float4 magnitude(Float4 x) { return Float4(vabsq_f32(x.v)); }

inline Float4 round_even(Float4 x) { return sub(add(x, Float4(kRoundingShift)), Float4(kRoundingShift)); }

inline Float4 reciprocal(Float4 d) { return div(Float4(1.0f), d); }

inline Float4 times_power(Float4 x, Float4 shifted) {
  const int32x4_t exponents = vshlq_n_s32(vreinterpretq_s32_f32(shifted.v), 23);
  return Float4(vreinterpretq_f32_s32(vaddq_s32(vreinterpretq_s32_f32(x.v), exponents)));
}

// Round to nearest even on the bits, NaN to 0x7fc0, as float_to_bf16.
inline uint16x4_t floats_to_bf16(float32x4_t x) {
  const uint32x4_t bits = vreinterpretq_u32_f32(x);
  const uint32x4_t odd = vandq_u32(vshrq_n_u32(bits, 16), vdupq_n_u32(1));
  const uint32x4_t top = vshrq_n_u32(vaddq_u32(vaddq_u32(bits, vdupq_n_u32(0x7fff)), odd), 16);
  return vmovn_u32(vbslq_u32(vceqq_f32(x, x), top, vdupq_n_u32(0x7fc0)));
}

struct NeonLanes {
  using F = Float4;
  using I = int32x4_t;
  static constexpr int width = 4;

  F load(const float* p) const { return Float4(vld1q_f32(p)); }
  void store(float* p, F x) const { vst1q_f32(p, x.v); }
  I load_int(const int32_t* p) const { return vld1q_s32(p); }
  void store_int(int32_t* p, I x) const { vst1q_s32(p, x); }

  static I minus(I a, I b) { return vsubq_s32(a, b); }
  static I minus(I a, int32_t b) { return minus(a, vdupq_n_s32(b)); }
  static I times(I a, int32_t factor) { return vmulq_n_s32(a, factor); }
  static F to_float(I a) { return Float4(vcvtq_f32_s32(a)); }

  F load_any(const FloatMatrix& x, int64_t index) const {
    if (x.dtype == DType::f32) return load(static_cast<const float*>(x.data) + index);
    const uint16x4_t half = vld1_u16(static_cast<const uint16_t*>(x.data) + index);
    if (x.dtype == DType::f16) return Float4(vcvt_f32_f16(vreinterpret_f16_u16(half)));
    return Float4(vreinterpretq_f32_u32(vshll_n_u16(half, 16)));
  }

  void store_any(void* out, DType dtype, int64_t index, F x) const {
    if (dtype == DType::f32) return store(static_cast<float*>(out) + index, x);
    const uint16x4_t half =
        dtype == DType::f16 ? vreinterpret_u16_f16(vcvt_f16_f32(x.v)) : floats_to_bf16(x.v);
    vst1_u16(static_cast<uint16_t*>(out) + index, half);
  }

  void store_codes(int8_t* out, F code) const {
    const int16x4_t words = vmovn_s32(vcvtq_s32_f32(code.v));
    const int8x8_t bytes = vmovn_s16(vcombine_s16(words, words));
    const int32_t four = vget_lane_s32(vreinterpret_s32_s8(bytes), 0);
    memcpy(out, &four, sizeof four);
  }

  // Each element's partner H apart.
  template <int H>
  static F other(F x) {
    return Float4(H == 1 ? vrev64q_f32(x.v) : vextq_f32(x.v, x.v, 2));
  }

  // a + b and a - b of elements H apart, whose index has bit H clear and set.
  template <int H>
  static F butterfly(F x) {
    const float32x4_t partner = other<H>(x).v;
    const uint32x4_t second = H == 1 ? uint32x4_t{0, ~0u, 0, ~0u} : uint32x4_t{0, 0, ~0u, ~0u};
    return Float4(vbslq_f32(second, vsubq_f32(partner, x.v), vaddq_f32(x.v, partner)));
  }
  static float first_of(F x) { return vgetq_lane_f32(x.v, 0); }

  // Eight running sums in float64 of x - centre, or of its square.
  struct Sums {
    float64x2_t sums[4] = {vdupq_n_f64(0), vdupq_n_f64(0), vdupq_n_f64(0), vdupq_n_f64(0)};

    template <bool Squared>
    static float64x2_t term(float32x2_t x, double centre) {
      const float64x2_t d = vsubq_f64(vcvt_f64_f32(x), vdupq_n_f64(centre));
      return Squared ? vmulq_f64(d, d) : d;
    }
    template <bool Squared>
    void add_eight(const FloatMatrix& x, int64_t index, double centre) {
      for (int i = 0; i < 2; ++i) {
        const float32x4_t values = NeonLanes{}.load_any(x, index + 4 * i).v;
        sums[2 * i] = vaddq_f64(sums[2 * i], term<Squared>(vget_low_f32(values), centre));
        sums[2 * i + 1] = vaddq_f64(sums[2 * i + 1], term<Squared>(vget_high_f32(values), centre));
      }
    }
    void store(double* out) const {
      for (int i = 0; i < 4; ++i) vst1q_f64(out + 2 * i, sums[i]);
    }
  };
};

}  // namespace
}  // namespace ptq4arvg
