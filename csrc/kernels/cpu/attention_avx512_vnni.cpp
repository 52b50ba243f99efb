// The products of attention on AVX-512-VNNI: 16 keys, or 16 channels, a vector, four codes a lane.
#include "kernels/cpu/attention.h"
#include "kernels/cpu/avx512_vnni_kernels.h"
#include "kernels/cpu/lanes_avx512.h"

namespace ptq4arvg::cpu {
namespace {

PTQ4ARVG_FN int32_t four_bytes(const void* p) {
  int32_t x;
  memcpy(&x, p, sizeof x);
  return x;
}

// sums += a b, kept in its register: GCC 12 copies all sums to others and back in every step of a loop otherwise. For
// the same reason the loops are functions of their own, which have all registers.
PTQ4ARVG_FN void accumulate(__m512i& sums, __m512i a, __m512i b) {
  sums = _mm512_dpbusd_epi32(sums, a, b);
#if !defined(PTQ4ARVG_EMULATE)
  __asm__("" : "+v"(sums));
#endif
}

// The instruction multiplies unsigned bytes by signed ones. The keys are made unsigned by adding 128, and the sums start
// at -128 times the query's sum.
template <int Rows, int Panels>
__attribute__((noinline)) static void score_panels(const int8_t* q, const int32_t* q_sums, const int8_t* keys, int64_t size, int32_t* out,
                                int64_t stride) {
  const int64_t groups = size / kKeyGroup, panel = kKeyPanel * size;
  const __m512i sign = _mm512_set1_epi8(static_cast<char>(0x80));
  __m512i sums[Rows][Panels];
#pragma GCC unroll 8
  for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 8
    for (int i = 0; i < Panels; ++i) sums[r][i] = _mm512_set1_epi32(-128 * q_sums[r]);
  }
  for (int64_t g = 0; g < groups; ++g) {
    __m512i k[Panels];
#pragma GCC unroll 8
    for (int i = 0; i < Panels; ++i) {
      k[i] = _mm512_xor_si512(_mm512_loadu_si512(keys + i * panel + g * kKeyPanel * kKeyGroup), sign);
    }
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r) {
      const __m512i four = _mm512_set1_epi32(four_bytes(q + r * kMaxHeadSize + g * kKeyGroup));
#pragma GCC unroll 8
      for (int i = 0; i < Panels; ++i) accumulate(sums[r][i], k[i], four);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 8
    for (int i = 0; i < Panels; ++i) _mm512_storeu_si512(out + r * stride + i * kKeyPanel, sums[r][i]);
  }
}

template <int Rows>
static inline void score_rows(const int8_t* q, const int32_t* q_sums, const int8_t* keys, int64_t panels, int64_t size,
                              int32_t* out, int64_t stride) {
  constexpr int kPanels = Rows == 1 ? 8 : Rows <= 3 ? 4 : 2;  // enough sums that none waits for itself
  int64_t i = 0;
  for (; i + kPanels <= panels; i += kPanels) {
    score_panels<Rows, kPanels>(q, q_sums, keys + i * kKeyPanel * size, size, out + i * kKeyPanel, stride);
  }
  for (; i < panels; ++i) {
    score_panels<Rows, 1>(q, q_sums, keys + i * kKeyPanel * size, size, out + i * kKeyPanel, stride);
  }
}

// Vectors of 16 channels, the last one masked.
template <int Rows, int Vectors>
__attribute__((noinline)) static void value_columns(const uint8_t* levels, int64_t stride, const int8_t* values, int64_t groups,
                                 int64_t size, __mmask16 last, int32_t* out) {
  __m512i sums[Rows][Vectors] = {};
  for (int64_t g = 0; g < groups; ++g, values += size * kKeyGroup) {
    __m512i v[Vectors];
#pragma GCC unroll 4
    for (int i = 0; i < Vectors; ++i) {
      v[i] = _mm512_maskz_loadu_epi32(i + 1 < Vectors ? 0xffff : last, values + i * 16 * kKeyGroup);
    }
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r) {
      const __m512i four = _mm512_set1_epi32(four_bytes(levels + r * stride + g * kKeyGroup));
#pragma GCC unroll 4
      for (int i = 0; i < Vectors; ++i) accumulate(sums[r][i], four, v[i]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 4
    for (int i = 0; i < Vectors; ++i) {
      _mm512_mask_storeu_epi32(out + r * kMaxHeadSize + i * 16, i + 1 < Vectors ? 0xffff : last, sums[r][i]);
    }
  }
}

template <int Rows>
static inline void value_rows(const uint8_t* levels, int64_t stride, const int8_t* values, int64_t groups, int64_t size,
                              int32_t* out) {
  for (int64_t c = 0; c < size; c += 64) {
    const int64_t left = size - c < 64 ? size - c : 64, vectors = (left + 15) / 16;
    const __mmask16 last = static_cast<__mmask16>((1u << (left - (vectors - 1) * 16)) - 1);
    const int8_t* from = values + c * kKeyGroup;
    if (vectors == 4) value_columns<Rows, 4>(levels, stride, from, groups, size, last, out + c);
    if (vectors == 3) value_columns<Rows, 3>(levels, stride, from, groups, size, last, out + c);
    if (vectors == 2) value_columns<Rows, 2>(levels, stride, from, groups, size, last, out + c);
    if (vectors == 1) value_columns<Rows, 1>(levels, stride, from, groups, size, last, out + c);
  }
}

// body(the number as a constant), for 1 to 6.
template <class Body>
static inline void with_rows(int rows, const Body& body) {
  switch (rows) {
    case 1: return body(std::integral_constant<int, 1>());
    case 2: return body(std::integral_constant<int, 2>());
    case 3: return body(std::integral_constant<int, 3>());
    case 4: return body(std::integral_constant<int, 4>());
    case 5: return body(std::integral_constant<int, 5>());
    default: return body(std::integral_constant<int, 6>());
  }
}

struct VnniDots {
  static constexpr int kRows = 6;

  static void scores(int rows, const int8_t* q, const int32_t* q_sums, const int8_t* keys, int64_t panels, int64_t size,
                     int32_t* out, int64_t stride) {
    with_rows(rows, [&](auto n) { score_rows<n()>(q, q_sums, keys, panels, size, out, stride); });
  }

  static void values(int rows, const uint8_t* levels, int64_t stride, const int8_t* values, int64_t groups, int64_t size,
                     int32_t* out) {
    with_rows(rows, [&](auto n) { value_rows<n()>(levels, stride, values, groups, size, out); });
  }
};

}  // namespace

void attention_avx512_vnni(const AttentionProblem& problem) {
  attention_heads<VnniDots, Avx512Whole, Avx512Tail>(problem);
}

}  // namespace ptq4arvg::cpu
