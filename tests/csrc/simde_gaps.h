// Intrinsics that SIMDe 0.7 does not have, one element at a time. Macros, because the compiler's own headers declare
// the names too.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

namespace simde_gaps {

template <class To, class From>
To cast(const From& from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}

template <class Element, int Count>
struct Array {
  Element at[Count];
};

// Each element of a vector by f.
template <class To, class ToElement, class FromElement, int Count, class From, class F>
To map(const From& from, const F& f) {
  const auto in = cast<Array<FromElement, Count>>(from);
  Array<ToElement, Count> out;
  for (int i = 0; i < Count; ++i) out.at[i] = f(in.at[i]);
  return cast<To>(out);
}

template <class To, class Element, int Count>
To masked_load(uint64_t mask, const void* from) {
  Array<Element, Count> out = {};
  for (int i = 0; i < Count; ++i) {
    if (mask >> i & 1) std::memcpy(&out.at[i], static_cast<const Element*>(from) + i, sizeof(Element));
  }
  return cast<To>(out);
}

template <class Element, int Count, class From>
void masked_store(void* to, uint64_t mask, const From& from) {
  const auto in = cast<Array<Element, Count>>(from);
  for (int i = 0; i < Count; ++i) {
    if (mask >> i & 1) std::memcpy(static_cast<Element*>(to) + i, &in.at[i], sizeof(Element));
  }
}

template <class To, class ToElement, class FromElement, int Count, class From>
To convert(const From& from) {
  return map<To, ToElement, FromElement, Count>(from, [](FromElement x) { return static_cast<ToElement>(x); });
}

inline __m512 half_to_float(__m256i x) {
  const auto in = cast<Array<__m128i, 2>>(x);
  return cast<__m512>(Array<__m256, 2>{{_mm256_cvtph_ps(in.at[0]), _mm256_cvtph_ps(in.at[1])}});
}

inline __m256i float_to_half(__m512 x) {
  const auto in = cast<Array<__m256, 2>>(x);
  return cast<__m256i>(Array<__m128i, 2>{{_mm256_cvtps_ph(in.at[0], 0), _mm256_cvtps_ph(in.at[1], 0)}});
}

inline int32_t sum_of(__m512i x) {
  uint32_t sum = 0;
  for (uint32_t element : cast<Array<uint32_t, 16>>(x).at) sum += element;
  return static_cast<int32_t>(sum);
}

}  // namespace simde_gaps

#define _mm256_mask_storeu_epi16(p, k, x) simde_gaps::masked_store<int16_t, 16>(p, k, x)
#define _mm_mask_storeu_epi8(p, k, x) simde_gaps::masked_store<int8_t, 16>(p, k, x)
#define _mm512_mask_storeu_epi32(p, k, x) simde_gaps::masked_store<int32_t, 16>(p, k, x)
#define _mm512_mask_storeu_ps(p, k, x) simde_gaps::masked_store<float, 16>(p, k, x)
#define _mm256_maskz_loadu_epi16(k, p) simde_gaps::masked_load<__m256i, int16_t, 16>(k, p)
#define _mm512_maskz_loadu_epi32(k, p) simde_gaps::masked_load<__m512i, int32_t, 16>(k, p)
#define _mm512_maskz_loadu_epi8(k, p) simde_gaps::masked_load<__m512i, int8_t, 64>(k, p)
#define _mm512_maskz_loadu_ps(k, p) simde_gaps::masked_load<__m512, float, 16>(k, p)
#define _mm512_cvtepi32_epi16(x) simde_gaps::convert<__m256i, int16_t, int32_t, 16>(x)
#define _mm512_cvtepi32_epi8(x) simde_gaps::convert<__m128i, int8_t, int32_t, 16>(x)
#define _mm512_cvtepi32_ps(x) simde_gaps::convert<__m512, float, int32_t, 16>(x)
#define _mm512_cvtepu16_epi32(x) simde_gaps::convert<__m512i, int32_t, uint16_t, 16>(x)
#define _mm512_cvtepu8_epi32(x) simde_gaps::convert<__m512i, int32_t, uint8_t, 16>(x)
#define _mm512_cvtps_pd(x) simde_gaps::convert<__m512d, double, float, 8>(x)
#define _mm512_cvttps_epi32(x) simde_gaps::convert<__m512i, int32_t, float, 16>(x)
#define _mm512_cvtph_ps(x) simde_gaps::half_to_float(x)
#define _mm512_cvtps_ph(x, rounding) simde_gaps::float_to_half(x)
#define _mm512_cvtss_f32(x) simde_gaps::cast<simde_gaps::Array<float, 16>>(x).at[0]
#define _mm512_permute_ps(x, imm) _mm512_shuffle_ps(x, x, imm)
#define _mm512_reduce_add_epi32(x) simde_gaps::sum_of(x)
#define _mm512_shuffle_f32x4(a, b, imm) \
  simde_gaps::cast<__m512>(_mm512_shuffle_i32x4(simde_gaps::cast<__m512i>(a), simde_gaps::cast<__m512i>(b), imm))
#define _mm512_srai_epi32(x, n) \
  simde_gaps::map<__m512i, int32_t, int32_t, 16>(x, [](int32_t element) { return element >> (n); })
