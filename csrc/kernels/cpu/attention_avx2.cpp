// The products of attention on AVX2: 8 keys, or 8 channels, a vector, four codes a lane.
#include "kernels/cpu/attention.h"
#include "kernels/cpu/avx2_kernels.h"
#include "kernels/cpu/lanes_avx2.h"

namespace ptq4arvg::cpu {
namespace {

PTQ4ARVG_FN __m256i load32(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }

PTQ4ARVG_FN __m256i broadcast_four(const void* p) {
  int32_t x;
  memcpy(&x, p, sizeof x);
  return _mm256_set1_epi32(x);
}

// Sums of four products a lane, of unsigned by signed bytes; two of them have to fit in int16.
PTQ4ARVG_FN __m256i dot_four(__m256i sums, __m256i a, __m256i b) {
  return _mm256_add_epi32(sums, _mm256_madd_epi16(_mm256_maddubs_epi16(a, b), _mm256_set1_epi16(1)));
}

struct Avx2Dots {
  static constexpr int kRows = 4;

  // |k| times q with k's sign: 2 * 127 * 127 fits.
  template <int Rows>
  static void score_rows(const int8_t* q, const int8_t* keys, int64_t panels, int64_t size, int32_t* out,
                         int64_t stride) {
    for (int64_t i = 0; i < panels; ++i) {
      __m256i sums[Rows][2] = {};
      for (int64_t c = 0; c < size; c += kKeyGroup, keys += kKeyPanel * kKeyGroup) {
        const __m256i k[2] = {load32(keys), load32(keys + 32)};
#pragma GCC unroll 4
        for (int r = 0; r < Rows; ++r) {
          const __m256i four = broadcast_four(q + r * kMaxHeadSize + c);
          sums[r][0] = dot_four(sums[r][0], _mm256_abs_epi8(k[0]), _mm256_sign_epi8(four, k[0]));
          sums[r][1] = dot_four(sums[r][1], _mm256_abs_epi8(k[1]), _mm256_sign_epi8(four, k[1]));
        }
      }
      for (int r = 0; r < Rows; ++r) {
        Avx2Lanes{}.store_int(out + r * stride + i * kKeyPanel, sums[r][0]);
        Avx2Lanes{}.store_int(out + r * stride + i * kKeyPanel + 8, sums[r][1]);
      }
    }
  }

  static void scores(int rows, const int8_t* q, const int32_t*, const int8_t* keys, int64_t panels, int64_t size,
                     int32_t* out, int64_t stride) {
    if (rows == kRows) return score_rows<kRows>(q, keys, panels, size, out, stride);
    for (int r = 0; r < rows; ++r) {
      score_rows<1>(q + r * kMaxHeadSize, keys, panels, size, out + r * stride, stride);
    }
  }

  // Levels go to 255, and 2 * 255 * 127 does not fit: every other one at a time.
  template <int Rows>
  static void value_rows(const uint8_t* levels, int64_t stride, const int8_t* values, int64_t groups, int64_t size,
                         int32_t* out) {
    const __m256i even = _mm256_set1_epi16(0xff);
    int64_t c = 0;
    for (; c + 8 <= size; c += 8) {
      __m256i sums[Rows] = {};
      for (int64_t g = 0; g < groups; ++g) {
        const __m256i v = load32(values + (g * size + c) * kKeyGroup);
#pragma GCC unroll 4
        for (int r = 0; r < Rows; ++r) {
          const __m256i four = broadcast_four(levels + r * stride + g * kKeyGroup);
          sums[r] = dot_four(sums[r], _mm256_and_si256(four, even), v);
          sums[r] = dot_four(sums[r], _mm256_andnot_si256(even, four), v);
        }
      }
      for (int r = 0; r < Rows; ++r) Avx2Lanes{}.store_int(out + r * kMaxHeadSize + c, sums[r]);
    }
    for (; c < size; ++c) {
      for (int r = 0; r < Rows; ++r) {
        out[r * kMaxHeadSize + c] = value_sum(levels + r * stride, values, groups, size, c);
      }
    }
  }

  static void values(int rows, const uint8_t* levels, int64_t stride, const int8_t* values, int64_t groups, int64_t size,
                     int32_t* out) {
    if (rows == kRows) return value_rows<kRows>(levels, stride, values, groups, size, out);
    for (int r = 0; r < rows; ++r) {
      value_rows<1>(levels + r * stride, stride, values, groups, size, out + r * kMaxHeadSize);
    }
  }
};

}  // namespace

void attention_avx2(const AttentionProblem& problem) {
  attention_heads<Avx2Dots, Avx2Lanes, ScalarLanes>(problem);
}

}  // namespace ptq4arvg::cpu
