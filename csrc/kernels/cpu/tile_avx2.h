// What the 256-bit micro-kernels share: codes of `a` in, sums of a tile out.
#pragma once

#include "kernels/cpu/intrinsics.h"
#include "kernels/cpu/layout.h"

namespace ptq4arvg::cpu {
namespace {  // compiled for several instruction sets: internal linkage, see real.h

// 64 codes XOR Flip. Their sum.
template <int Flip>
PTQ4ARVG_FN int32_t pack_chunk_256(const int8_t* codes, uint8_t* out) {
  const __m256i sign = _mm256_set1_epi8(static_cast<char>(0x80)), change = _mm256_set1_epi8(static_cast<char>(Flip));
  __m256i sums = _mm256_setzero_si256();
  for (int i = 0; i < 64; i += 32) {
    const __m256i a = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(codes + i));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + i), _mm256_xor_si256(a, change));
    sums = _mm256_add_epi64(sums, _mm256_sad_epu8(_mm256_xor_si256(a, sign), _mm256_setzero_si256()));
  }
  const __m128i two = _mm_add_epi64(_mm256_castsi256_si128(sums), _mm256_extracti128_si256(sums, 1));
  return _mm_cvtsi128_si32(two) + _mm_extract_epi32(two, 2) - 64 * 128;
}

// The four codes of a row and group for every column.
PTQ4ARVG_FN __m256i broadcast(const uint8_t* p) {
  int32_t x;
  memcpy(&x, p, sizeof x);
  return _mm256_set1_epi32(x);
}

template <int Rows>
PTQ4ARVG_FN void store_sums(const __m256i (&sums)[Rows][2], int32_t* out) {
#pragma GCC unroll 8
  for (int r = 0; r < Rows; ++r) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + r * kPanel), sums[r][0]);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + r * kPanel + 8), sums[r][1]);
  }
}

}  // namespace
}  // namespace ptq4arvg::cpu
