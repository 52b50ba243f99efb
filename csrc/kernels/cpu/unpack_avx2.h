// Packed panels (layout.h) to int8 codes [groups][16 columns][4], a group of 64 at a time.
#pragma once

#include "kernels/cpu/intrinsics.h"
#include "kernels/cpu/layout.h"

namespace ptq4arvg::cpu {
namespace {  // compiled for several instruction sets: internal linkage, see real.h

// Zero points of 16 columns, each four times over: one group's worth.
static inline void spread_zeros(const int8_t* zeros, __m256i* low, __m256i* high) {
  const __m128i z = _mm_loadu_si128(reinterpret_cast<const __m128i*>(zeros));
  const __m128i first = _mm_setr_epi8(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3);
  const __m128i step = _mm_set1_epi8(4);
  const __m128i second = _mm_add_epi8(first, step), third = _mm_add_epi8(second, step);
  *low = _mm256_set_m128i(_mm_shuffle_epi8(z, second), _mm_shuffle_epi8(z, first));
  *high = _mm256_set_m128i(_mm_shuffle_epi8(z, _mm_add_epi8(third, step)), _mm_shuffle_epi8(z, third));
}

template <int Bits>
static inline void unpack_planes(const uint8_t* panel, const Layout& layout, const int8_t* zeros, int8_t* codes) {
  const __m256i nibble = _mm256_set1_epi8(15);
  __m256i zero_low, zero_high;
  spread_zeros(zeros, &zero_low, &zero_high);
  for (int64_t g = 0; g < layout.groups; ++g) {
    const __m256i packed = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(panel + g * 32));
    __m256i low = _mm256_and_si256(packed, nibble);
    __m256i high = _mm256_and_si256(_mm256_srli_epi16(packed, 4), nibble);
    if constexpr (Bits == 6) {
      const __m128i pairs = _mm_loadu_si128(reinterpret_cast<const __m128i*>(panel + layout.nibbles + g * 16));
      // Bit pairs 0, 1 | 2, 3 of each byte, moved to bits 4 and 5.
      const __m256i mask = _mm256_set1_epi8(0x30);
      const __m256i top_low = _mm256_set_m128i(_mm_slli_epi16(pairs, 2), _mm_slli_epi16(pairs, 4));
      const __m256i top_high = _mm256_set_m128i(_mm_srli_epi16(pairs, 2), pairs);
      low = _mm256_or_si256(low, _mm256_and_si256(top_low, mask));
      high = _mm256_or_si256(high, _mm256_and_si256(top_high, mask));
    }
    __m256i* out = reinterpret_cast<__m256i*>(codes + g * kGroupCodes);
    _mm256_storeu_si256(out, _mm256_sub_epi8(low, zero_low));
    _mm256_storeu_si256(out + 1, _mm256_sub_epi8(high, zero_high));
  }
}

// The codes of a panel: where they lie already (8 bits), or unpacked into scratch.
static inline const int8_t* panel_codes(const uint8_t* panel, const Layout& layout, int bits, const int8_t* zeros,
                                        int8_t* scratch) {
  if (bits == 8) return reinterpret_cast<const int8_t*>(panel);
  bits == 6 ? unpack_planes<6>(panel, layout, zeros, scratch) : unpack_planes<4>(panel, layout, zeros, scratch);
  return scratch;
}

}  // namespace
}  // namespace ptq4arvg::cpu
