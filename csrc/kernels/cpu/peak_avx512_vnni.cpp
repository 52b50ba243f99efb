#include "kernels/cpu/intrinsics.h"
#include "kernels/cpu/peak_loops.h"

namespace ptq4arvg::cpu {
namespace {

constexpr int kSums = 16;     // more than the instructions' latency times their number per clock
constexpr int kStreams = 4;   // one stream of bytes does not keep the memory busy
constexpr size_t kLine = 64;

int run_fma(int64_t rounds) {
  __m512 sums[kSums], a = _mm512_set1_ps(0.5f), b = _mm512_set1_ps(1.0f);
  for (__m512& sum : sums) sum = _mm512_setzero_ps();
  for (int64_t i = 0; i < rounds; ++i) {
    touch(a);
    for (__m512& sum : sums) sum = _mm512_fmadd_ps(sum, a, b);
  }
  for (int i = 1; i < kSums; ++i) sums[0] = _mm512_add_ps(sums[0], sums[i]);
  return static_cast<int>(_mm512_cvtss_f32(sums[0]));
}

int run_dot(int64_t rounds) {
  __m512i sums[kSums], a = _mm512_set1_epi8(1), b = _mm512_set1_epi8(2);
  for (__m512i& sum : sums) sum = _mm512_setzero_si512();
  for (int64_t i = 0; i < rounds; ++i) {
    touch(a);
    for (__m512i& sum : sums) sum = _mm512_dpbusd_epi32(sum, a, b);
  }
  for (int i = 1; i < kSums; ++i) sums[0] = _mm512_add_epi32(sums[0], sums[i]);
  return _mm_cvtsi128_si32(_mm512_castsi512_si128(sums[0]));
}

}  // namespace

const PeakLoop& fma_avx512_vnni() {
  static const PeakLoop loop{kSums * 16 * 2.0, nullptr, nullptr, run_fma};
  return loop;
}

const PeakLoop& dot_avx512_vnni() {
  static const PeakLoop loop{kSums * 64 * 2.0, nullptr, nullptr, run_dot};
  return loop;
}

int read_avx512_vnni(const uint8_t* data, size_t bytes) {
  const size_t part = bytes / (kStreams * kLine) * kLine;
  __m512i sums[kStreams];
  for (__m512i& sum : sums) sum = _mm512_setzero_si512();
  for (size_t i = 0; i < part; i += kLine) {
    for (int j = 0; j < kStreams; ++j) sums[j] = _mm512_xor_si512(sums[j], _mm512_loadu_si512(data + j * part + i));
  }
  for (size_t i = kStreams * part; i + kLine <= bytes; i += kLine) {
    sums[0] = _mm512_xor_si512(sums[0], _mm512_loadu_si512(data + i));
  }
  for (int i = 1; i < kStreams; ++i) sums[0] = _mm512_xor_si512(sums[0], sums[i]);
  return _mm_cvtsi128_si32(_mm512_castsi512_si128(sums[0]));
}

}  // namespace ptq4arvg::cpu
