// Packed panels (layout.h) to int8 codes [groups][16 columns][4], a group of 64 at a time.
#pragma once

#include "kernels/cpu/intrinsics.h"
#include "kernels/cpu/panel_bytes.h"

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

struct Group256 {
  __m256i low, high;  // columns 0 to 7, 8 to 15
};

// Levels of a group at 6 or 4 bits, unsigned; at 8 bits the codes themselves.
template <int Bits>
PTQ4ARVG_FN Group256 load_group_256(const PanelBytes& panel, int64_t group) {
  if constexpr (Bits == 8) {
    const __m256i* codes = reinterpret_cast<const __m256i*>(panel.codes + group * kGroupCodes);
    return {_mm256_loadu_si256(codes), _mm256_loadu_si256(codes + 1)};
  }
  const __m256i nibble = _mm256_set1_epi8(15);
  const __m256i packed = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(panel.codes + group * 32));
  const __m256i low = _mm256_and_si256(packed, nibble);
  const __m256i high = _mm256_and_si256(_mm256_srli_epi16(packed, 4), nibble);
  if constexpr (Bits == 4) return {low, high};
  // Bit pairs 0, 1 | 2, 3 of each of the 16 bytes, moved to bits 4 and 5.
  const __m128i pairs = _mm_loadu_si128(reinterpret_cast<const __m128i*>(panel.pairs + group * 16));
  const __m256i twice = _mm256_broadcastsi128_si256(pairs), mask = _mm256_set1_epi8(0x30);
  const __m256i top_low = _mm256_sllv_epi64(twice, _mm256_setr_epi64x(4, 4, 2, 2));
  const __m256i top_high = _mm256_srlv_epi64(twice, _mm256_setr_epi64x(0, 0, 2, 2));
  return {_mm256_or_si256(low, _mm256_and_si256(top_low, mask)),
          _mm256_or_si256(high, _mm256_and_si256(top_high, mask))};
}

PTQ4ARVG_FN void store_group(int8_t* codes, int64_t group, __m256i low, __m256i high) {
  __m256i* out = reinterpret_cast<__m256i*>(codes + group * kGroupCodes);
  _mm256_storeu_si256(out, low);
  _mm256_storeu_si256(out + 1, high);
}

template <int Bits>
static inline void unpack_planes(const uint8_t* panel, const Layout& layout, const int8_t* zeros, int8_t* codes) {
  __m256i zero_low, zero_high;
  spread_zeros(zeros, &zero_low, &zero_high);
  const PanelBytes bytes = panel_bytes_of(panel, layout);
  for (int64_t g = 0; g < layout.groups; ++g) {
    const Group256 levels = load_group_256<Bits>(bytes, g);
    store_group(codes, g, _mm256_sub_epi8(levels.low, zero_low), _mm256_sub_epi8(levels.high, zero_high));
  }
}

// Levels as they are, bytes in the order of 8-bit codes.
template <int Bits>
static inline void unpack_levels_256(const PanelBytes& panel, int64_t groups, int8_t* levels) {
  for (int64_t g = 0; g < groups; ++g) {
    const Group256 group = load_group_256<Bits>(panel, g);
    store_group(levels, g, group.low, group.high);
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
