// Sixteen floats at a time, with the same operations in the same order as ScalarLanes. Tails are masked: loads give
// zeros past the end and stores leave what is there.
#pragma once

#include "kernels/cpu/intrinsics.h"
#include "kernels/cpu/lanes_avx2.h"
#include "kernels/format.h"

namespace ptq4arvg {
namespace {  // compiled for several instruction sets: internal linkage, see real.h

struct Float16 {
  __m512 v;
  explicit Float16(float x) : v(_mm512_set1_ps(x)) {}
  explicit Float16(__m512 x) : v(x) {}
};

inline Float16 add(Float16 a, Float16 b) { return Float16(_mm512_add_ps(a.v, b.v)); }
inline Float16 sub(Float16 a, Float16 b) { return Float16(_mm512_sub_ps(a.v, b.v)); }
inline Float16 mul(Float16 a, Float16 b) { return Float16(_mm512_mul_ps(a.v, b.v)); }
inline Float16 div(Float16 a, Float16 b) { return Float16(_mm512_div_ps(a.v, b.v)); }
inline Float16 fused(Float16 a, Float16 b, Float16 c) { return Float16(_mm512_fmadd_ps(a.v, b.v, c.v)); }
inline Float16 larger(Float16 a, Float16 b) { return Float16(_mm512_max_ps(a.v, b.v)); }
inline Float16 smaller(Float16 a, Float16 b) { return Float16(_mm512_min_ps(a.v, b.v)); }

inline Float16 if_negative(Float16 x, Float16 then, Float16 otherwise) {
  const __mmask16 negative = _mm512_cmp_ps_mask(x.v, _mm512_setzero_ps(), _CMP_LT_OQ);
  return Float16(_mm512_mask_blend_ps(negative, otherwise.v, then.v));
}

inline Float16 magnitude(Float16 x) {
  return Float16(_mm512_castsi512_ps(_mm512_and_si512(_mm512_castps_si512(x.v), _mm512_set1_epi32(0x7fffffff))));
}

inline Float16 round_even(Float16 x) { return sub(add(x, Float16(kRoundingShift)), Float16(kRoundingShift)); }

inline Float16 reciprocal(Float16 d) { return div(Float16(1.0f), d); }

inline Float16 times_power(Float16 x, Float16 shifted) {
  const __m512i exponents = _mm512_slli_epi32(_mm512_castps_si512(shifted.v), 23);
  return Float16(_mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(x.v), exponents)));
}

// Round to nearest even on the bits, NaN to 0x7fc0, as float_to_bf16. Not vcvtneps2bf16: that flushes subnormals.
inline __m256i floats_to_bf16(__m512 x) {
  const __m512i bits = _mm512_castps_si512(x);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  __m512i top = _mm512_srli_epi32(_mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd), 16);
  top = _mm512_mask_blend_epi32(_mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q), top, _mm512_set1_epi32(0x7fc0));
  return _mm512_cvtepi32_epi16(top);
}

// Whole: all sixteen; else the first `count` of them.
template <bool Whole>
struct Avx512Lanes {
  using F = Float16;
  using I = __m512i;
  static constexpr int width = 16;

  __mmask16 mask = 0xffff;

  static Avx512Lanes first(int64_t count) { return {static_cast<__mmask16>((1u << count) - 1)}; }

  F load(const float* p) const {
    return Float16(Whole ? _mm512_loadu_ps(p) : _mm512_maskz_loadu_ps(mask, p));
  }
  void store(float* p, F x) const { Whole ? _mm512_storeu_ps(p, x.v) : _mm512_mask_storeu_ps(p, mask, x.v); }
  I load_int(const int32_t* p) const { return Whole ? _mm512_loadu_si512(p) : _mm512_maskz_loadu_epi32(mask, p); }

  void store_int(int32_t* p, I x) const {
    Whole ? _mm512_storeu_si512(p, x) : _mm512_mask_storeu_ps(p, mask, _mm512_castsi512_ps(x));
  }

  static I minus(I a, I b) { return _mm512_sub_epi32(a, b); }
  static I minus(I a, int32_t b) { return minus(a, _mm512_set1_epi32(b)); }
  static I times(I a, int32_t factor) { return _mm512_mullo_epi32(a, _mm512_set1_epi32(factor)); }
  static F to_float(I a) { return Float16(_mm512_cvtepi32_ps(a)); }

  F load_any(const FloatMatrix& x, int64_t index) const {
    if (x.dtype == DType::f32) return load(static_cast<const float*>(x.data) + index);
    const uint16_t* p = static_cast<const uint16_t*>(x.data) + index;
    const __m256i half = Whole ? _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))
                               : _mm256_maskz_loadu_epi16(mask, p);
    if (x.dtype == DType::f16) return Float16(_mm512_cvtph_ps(half));
    return Float16(_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16)));
  }

  void store_any(void* out, DType dtype, int64_t index, F x) const {
    if (dtype == DType::f32) return store(static_cast<float*>(out) + index, x);
    const __m256i half = dtype == DType::f16 ? _mm512_cvtps_ph(x.v, _MM_FROUND_TO_NEAREST_INT) : floats_to_bf16(x.v);
    uint16_t* p = static_cast<uint16_t*>(out) + index;
    if constexpr (Whole) {
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), half);
    } else {
      _mm256_mask_storeu_epi16(p, mask, half);
    }
  }

  void store_codes(int8_t* out, F code) const {
    const __m128i bytes = _mm512_cvtepi32_epi8(_mm512_cvttps_epi32(code.v));
    if constexpr (Whole) {
      _mm_storeu_si128(reinterpret_cast<__m128i*>(out), bytes);
    } else {
      _mm_mask_storeu_epi8(out, mask, bytes);
    }
  }

  // Each element's partner H apart.
  template <int H>
  static F other(F x) {
    if constexpr (H <= 2) return Float16(_mm512_permute_ps(x.v, H == 1 ? 0xb1 : 0x4e));
    else return Float16(_mm512_shuffle_f32x4(x.v, x.v, H == 4 ? 0xb1 : 0x4e));
  }

  // a + b and a - b of elements H apart, whose index has bit H clear and set.
  template <int H>
  static F butterfly(F x) {
    constexpr __mmask16 second = H == 1 ? 0xaaaa : H == 2 ? 0xcccc : H == 4 ? 0xf0f0 : 0xff00;
    const __m512 partner = other<H>(x).v;
    return Float16(_mm512_mask_sub_ps(_mm512_add_ps(x.v, partner), second, partner, x.v));
  }
  static float first_of(F x) { return _mm512_cvtss_f32(x.v); }

  // Eight running sums in float64 of x - centre, or of its square.
  struct Sums {
    __m512d sums = _mm512_setzero_pd();

    template <bool Squared>
    void add_eight(const FloatMatrix& x, int64_t index, double centre) {
      const __m512d value = _mm512_cvtps_pd(Avx2Lanes{}.load_any(x, index).v);
      const __m512d d = _mm512_sub_pd(value, _mm512_set1_pd(centre));
      sums = _mm512_add_pd(sums, Squared ? _mm512_mul_pd(d, d) : d);
    }
    void store(double* out) const { _mm512_storeu_pd(out, sums); }
  };
};

using Avx512Whole = Avx512Lanes<true>;
using Avx512Tail = Avx512Lanes<false>;

}  // namespace
}  // namespace ptq4arvg
