// Packed panels (layout.h) to codes in a register: a group of 64 at a time.
#pragma once

#include "kernels/cpu/intrinsics.h"
#include "kernels/cpu/panel_bytes.h"

namespace ptq4arvg::cpu {
namespace {  // compiled for several instruction sets: internal linkage, see real.h

// Levels of a group at 6 or 4 bits, unsigned; at 8 bits the codes themselves.
template <int Bits>
PTQ4ARVG_FN __m512i load_group(const PanelBytes& panel, int64_t group) {
  if constexpr (Bits == 8) return _mm512_loadu_si512(panel.codes + group * kGroupCodes);
  // The low halves of the 32 bytes make the first 32 elements, the high halves the others.
  const __m256i packed = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(panel.codes + group * 32));
  const __m512i halves = _mm512_srlv_epi64(_mm512_broadcast_i64x4(packed), _mm512_set_epi64(4, 4, 4, 4, 0, 0, 0, 0));
  if constexpr (Bits == 4) return _mm512_and_si512(halves, _mm512_set1_epi8(15));
  // Bit pair i of each of the 16 bytes belongs to elements 16 i ... 16 i + 15; rotated to bits 4 and 5.
  const __m128i pairs = _mm_loadu_si128(reinterpret_cast<const __m128i*>(panel.pairs + group * 16));
  const __m512i high = _mm512_rolv_epi64(_mm512_broadcast_i32x4(pairs), _mm512_set_epi64(62, 62, 0, 0, 2, 2, 4, 4));
  const __m512i either = _mm512_ternarylogic_epi32(_mm512_set1_epi8(15), halves, high, 0xca);  // mask ? halves : high
  return _mm512_and_si512(either, _mm512_set1_epi8(63));
}

// The zero points of 16 columns (as panel_zeros gives them), each four times over: one group's worth.
PTQ4ARVG_FN __m512i spread_zeros_512(const int8_t* zeros) {
  const __m512i z = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(zeros)));
  return _mm512_mullo_epi32(z, _mm512_set1_epi32(0x01010101));
}

// Groups [begin, end) of a packed panel as int8 codes.
template <int Bits>
PTQ4ARVG_FN void unpack_groups(const PanelBytes& panel, __m512i zeros, int64_t begin, int64_t end, int8_t* codes) {
  for (int64_t g = begin; g < end; ++g, codes += kGroupCodes) {
    _mm512_storeu_si512(codes, _mm512_sub_epi8(load_group<Bits>(panel, g), zeros));
  }
}

}  // namespace
}  // namespace ptq4arvg::cpu
