#include "kernels/cpu/intrinsics.h"
#include "kernels/cpu/peak_loops.h"

namespace ptq4arvg::cpu {
namespace {

// At least the instructions' latency times their number per clock, and few enough for 16 registers.
constexpr int kSums = 10;

int run_fma(int64_t rounds) {
  __m256 sums[kSums], a = _mm256_set1_ps(0.5f), b = _mm256_set1_ps(1.0f);
  for (__m256& sum : sums) sum = _mm256_setzero_ps();
  for (int64_t i = 0; i < rounds; ++i) {
    touch(a);
    for (__m256& sum : sums) sum = _mm256_fmadd_ps(sum, a, b);
  }
  for (int i = 1; i < kSums; ++i) sums[0] = _mm256_add_ps(sums[0], sums[i]);
  return static_cast<int>(_mm256_cvtss_f32(sums[0]));
}

// A pair product, its widening and the sum: what 8-bit codes take without VNNI.
int run_maddubs(int64_t rounds) {
  __m256i sums[kSums], a = _mm256_set1_epi8(1), b = _mm256_set1_epi8(2);
  const __m256i ones = _mm256_set1_epi16(1);
  for (__m256i& sum : sums) sum = _mm256_setzero_si256();
  for (int64_t i = 0; i < rounds; ++i) {
    for (__m256i& sum : sums) {
      touch(a);
      sum = _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_maddubs_epi16(a, b), ones));
    }
  }
  for (int i = 1; i < kSums; ++i) sums[0] = _mm256_add_epi32(sums[0], sums[i]);
  return _mm256_extract_epi32(sums[0], 0);
}

}  // namespace

const PeakLoop& fma_avx2() {
  static const PeakLoop loop{kSums * 8 * 2.0, nullptr, nullptr, run_fma};
  return loop;
}

const PeakLoop& maddubs_avx2() {
  static const PeakLoop loop{kSums * 32 * 2.0, nullptr, nullptr, run_maddubs};
  return loop;
}

int read_avx2(const uint8_t* data, size_t bytes) {
  __m256i sums[4] = {};
  for (size_t i = 0; i + 128 <= bytes; i += 128) {
    for (int j = 0; j < 4; ++j) {
      const __m256i* from = reinterpret_cast<const __m256i*>(data + i) + j;
      sums[j] = _mm256_xor_si256(sums[j], _mm256_loadu_si256(from));
    }
  }
  const __m256i all = _mm256_xor_si256(_mm256_xor_si256(sums[0], sums[1]), _mm256_xor_si256(sums[2], sums[3]));
  return _mm256_movemask_epi8(all);
}

}  // namespace ptq4arvg::cpu
