// Eight floats at a time, with the same operations in the same order as ScalarLanes.
#pragma once

#include "kernels/cpu/intrinsics.h"
#include "kernels/format.h"

namespace ptq4arvg {
namespace {  // compiled for several instruction sets: internal linkage, see real.h

struct Float8 {
  __m256 v;
  explicit Float8(float x) : v(_mm256_set1_ps(x)) {}
  explicit Float8(__m256 x) : v(x) {}
};

inline Float8 add(Float8 a, Float8 b) { return Float8(_mm256_add_ps(a.v, b.v)); }
inline Float8 sub(Float8 a, Float8 b) { return Float8(_mm256_sub_ps(a.v, b.v)); }
inline Float8 mul(Float8 a, Float8 b) { return Float8(_mm256_mul_ps(a.v, b.v)); }
inline Float8 div(Float8 a, Float8 b) { return Float8(_mm256_div_ps(a.v, b.v)); }
inline Float8 fused(Float8 a, Float8 b, Float8 c) { return Float8(_mm256_fmadd_ps(a.v, b.v, c.v)); }
inline Float8 larger(Float8 a, Float8 b) { return Float8(_mm256_max_ps(a.v, b.v)); }
inline Float8 smaller(Float8 a, Float8 b) { return Float8(_mm256_min_ps(a.v, b.v)); }

inline Float8 if_negative(Float8 x, Float8 then, Float8 otherwise) {
  return Float8(_mm256_blendv_ps(otherwise.v, then.v, _mm256_cmp_ps(x.v, _mm256_setzero_ps(), _CMP_LT_OQ)));
}

inline Float8 magnitude(Float8 x) { return Float8(_mm256_andnot_ps(_mm256_set1_ps(-0.0f), x.v)); }

inline Float8 round_even(Float8 x) { return sub(add(x, Float8(kRoundingShift)), Float8(kRoundingShift)); }

inline Float8 reciprocal(Float8 d) { return div(Float8(1.0f), d); }

inline Float8 times_power(Float8 x, Float8 shifted) {
  const __m256i exponents = _mm256_slli_epi32(_mm256_castps_si256(shifted.v), 23);
  return Float8(_mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(x.v), exponents)));
}

// Round to nearest even on the bits, NaN to 0x7fc0, as float_to_bf16.
inline __m128i floats_to_bf16(__m256 x) {
  const __m256i bits = _mm256_castps_si256(x);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  __m256i top = _mm256_srli_epi32(_mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), odd), 16);
  const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
  top = _mm256_blendv_epi8(top, _mm256_set1_epi32(0x7fc0), nan);
  return _mm_packus_epi32(_mm256_castsi256_si128(top), _mm256_extracti128_si256(top, 1));
}

struct Avx2Lanes {
  using F = Float8;
  using I = __m256i;
  static constexpr int width = 8;

  F load(const float* p) const { return Float8(_mm256_loadu_ps(p)); }
  void store(float* p, F x) const { _mm256_storeu_ps(p, x.v); }
  I load_int(const int32_t* p) const { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }

  void store_int(int32_t* p, I x) const { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), x); }

  static I minus(I a, I b) { return _mm256_sub_epi32(a, b); }
  static I minus(I a, int32_t b) { return minus(a, _mm256_set1_epi32(b)); }
  static I times(I a, int32_t factor) { return _mm256_mullo_epi32(a, _mm256_set1_epi32(factor)); }
  static F to_float(I a) { return Float8(_mm256_cvtepi32_ps(a)); }

  F load_any(const FloatMatrix& x, int64_t index) const {
    if (x.dtype == DType::f32) return load(static_cast<const float*>(x.data) + index);
    const auto* half = reinterpret_cast<const __m128i*>(static_cast<const uint16_t*>(x.data) + index);
    const __m128i bits = _mm_loadu_si128(half);
    if (x.dtype == DType::f16) return Float8(_mm256_cvtph_ps(bits));
    return Float8(_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16)));
  }

  void store_any(void* out, DType dtype, int64_t index, F x) const {
    if (dtype == DType::f32) {
      _mm256_storeu_ps(static_cast<float*>(out) + index, x.v);
      return;
    }
    const __m128i half = dtype == DType::f16 ? _mm256_cvtps_ph(x.v, _MM_FROUND_TO_NEAREST_INT) : floats_to_bf16(x.v);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(static_cast<uint16_t*>(out) + index), half);
  }

  void store_codes(int8_t* out, F code) const {
    const __m256i wide = _mm256_cvttps_epi32(code.v);
    const __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(wide), _mm256_extracti128_si256(wide, 1));
    _mm_storel_epi64(reinterpret_cast<__m128i*>(out), _mm_packs_epi16(words, words));
  }

  // Each element's partner H apart.
  template <int H>
  static F other(F x) {
    if constexpr (H <= 2) return Float8(_mm256_permute_ps(x.v, H == 1 ? 0xb1 : 0x4e));
    else return Float8(_mm256_permute2f128_ps(x.v, x.v, 1));
  }

  // a + b and a - b of elements H apart, whose index has bit H clear and set.
  template <int H>
  static F butterfly(F x) {
    constexpr int second = H == 1 ? 0xaa : H == 2 ? 0xcc : 0xf0;
    const __m256 partner = other<H>(x).v;
    return Float8(_mm256_blend_ps(_mm256_add_ps(x.v, partner), _mm256_sub_ps(partner, x.v), second));
  }
  static float first_of(F x) { return _mm256_cvtss_f32(x.v); }

  // Eight running sums in float64 of x - centre, or of its square.
  struct Sums {
    __m256d low = _mm256_setzero_pd(), high = _mm256_setzero_pd();

    template <bool Squared>
    static __m256d term(__m128 x, double centre) {
      const __m256d d = _mm256_sub_pd(_mm256_cvtps_pd(x), _mm256_set1_pd(centre));
      return Squared ? _mm256_mul_pd(d, d) : d;
    }
    template <bool Squared>
    void add_eight(const FloatMatrix& x, int64_t index, double centre) {
      const __m256 values = Avx2Lanes{}.load_any(x, index).v;
      low = _mm256_add_pd(low, term<Squared>(_mm256_castps256_ps128(values), centre));
      high = _mm256_add_pd(high, term<Squared>(_mm256_extractf128_ps(values, 1), centre));
    }
    void store(double* out) const {
      _mm256_storeu_pd(out, low);
      _mm256_storeu_pd(out + 4, high);
    }
  };
};

}  // namespace
}  // namespace ptq4arvg
