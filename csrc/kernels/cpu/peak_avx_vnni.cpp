#include "kernels/cpu/intrinsics.h"
#include "kernels/cpu/peak_loops.h"

namespace ptq4arvg::cpu {
namespace {

constexpr int kSums = 12;  // more than the instruction's latency times its number per clock

int run_dot(int64_t rounds) {
  __m256i sums[kSums], a = _mm256_set1_epi8(1), b = _mm256_set1_epi8(2);
  for (__m256i& sum : sums) sum = _mm256_setzero_si256();
  for (int64_t i = 0; i < rounds; ++i) {
    touch(a);
    for (__m256i& sum : sums) sum = _mm256_dpbusd_avx_epi32(sum, a, b);
  }
  for (int i = 1; i < kSums; ++i) sums[0] = _mm256_add_epi32(sums[0], sums[i]);
  return _mm256_extract_epi32(sums[0], 0);
}

}  // namespace

const PeakLoop& dot_avx_vnni() {
  static const PeakLoop loop{kSums * 32 * 2.0, nullptr, nullptr, run_dot};
  return loop;
}

}  // namespace ptq4arvg::cpu
