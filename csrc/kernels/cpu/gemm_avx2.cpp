// AVX2 micro-kernel: maddubs(|a|, sign(w, a)) pairs products of 8-bit codes exactly.
//
// A pair sum is at most 2 * 128 * 127 = 32512 and fits in int16 at 8 bits; with |w| <= 63 two of them fit
// (2 * 2 * 128 * 63 = 32256), with |w| <= 15 eight do, of which four are used. Only then are they widened to int32.
#include "kernels/cpu/avx2_kernels.h"

#include "kernels/cpu/gemm_driver.h"
#include "kernels/cpu/lanes_avx2.h"
#include "kernels/cpu/unpack_avx2.h"

namespace ptq4arvg::cpu {
namespace {

struct Avx2 {
  using Lanes = Avx2Lanes;
  static constexpr int kRows = 4;
  static constexpr int kStrip = 1;
  static constexpr int kGroupBytes = 8;  // |a|, a

  static int64_t depth_step(int bits) { return bits == 8 ? 1 : bits == 6 ? 2 : 4; }

  static void pack_group(const int8_t* codes, uint8_t* out) {
    int32_t a;
    memcpy(&a, codes, sizeof a);
    const int32_t absolute = _mm_cvtsi128_si32(_mm_abs_epi8(_mm_cvtsi32_si128(a)));
    memcpy(out, &absolute, sizeof a);
    memcpy(out + 4, &a, sizeof a);
  }

  static const int8_t* panel_codes(const uint8_t* panel, const Layout& layout, int bits, const int8_t* zeros,
                                   int8_t* scratch) {
    return cpu::panel_codes(panel, layout, bits, zeros, scratch);
  }

  static __m256i broadcast(const uint8_t* p) {
    int32_t x;
    memcpy(&x, p, sizeof x);
    return _mm256_set1_epi32(x);
  }

  template <int Rows, int Step>
  static void tile_steps(const uint8_t* a, int64_t depth, const int8_t* w, int32_t* out) {
    const __m256i ones = _mm256_set1_epi16(1);
    __m256i sums[Rows][2];
    for (int r = 0; r < Rows; ++r) sums[r][0] = sums[r][1] = _mm256_setzero_si256();
    for (int64_t g = 0; g < depth; g += Step) {
      __m256i pairs[Rows][2];
      for (int s = 0; s < Step; ++s) {
        const __m256i* columns = reinterpret_cast<const __m256i*>(w + (g + s) * kGroupCodes);
        const __m256i w0 = _mm256_loadu_si256(columns), w1 = _mm256_loadu_si256(columns + 1);
        for (int r = 0; r < Rows; ++r) {
          const uint8_t* codes = a + ((g + s) * Rows + r) * kGroupBytes;
          const __m256i absolute = broadcast(codes), sign = broadcast(codes + 4);
          const __m256i p0 = _mm256_maddubs_epi16(absolute, _mm256_sign_epi8(w0, sign));
          const __m256i p1 = _mm256_maddubs_epi16(absolute, _mm256_sign_epi8(w1, sign));
          pairs[r][0] = s == 0 ? p0 : _mm256_add_epi16(pairs[r][0], p0);
          pairs[r][1] = s == 0 ? p1 : _mm256_add_epi16(pairs[r][1], p1);
        }
      }
      for (int r = 0; r < Rows; ++r) {
        sums[r][0] = _mm256_add_epi32(sums[r][0], _mm256_madd_epi16(pairs[r][0], ones));
        sums[r][1] = _mm256_add_epi32(sums[r][1], _mm256_madd_epi16(pairs[r][1], ones));
      }
    }
    for (int r = 0; r < Rows; ++r) {
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + r * kPanel), sums[r][0]);
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + r * kPanel + 8), sums[r][1]);
    }
  }

  template <int Rows>
  static void tile(const uint8_t* a, int64_t depth, const int8_t* const* w, const int32_t*, int bits, int32_t* out) {
    if (bits == 8) return tile_steps<Rows, 1>(a, depth, w[0], out);
    if (bits == 6) return tile_steps<Rows, 2>(a, depth, w[0], out);
    tile_steps<Rows, 4>(a, depth, w[0], out);
  }
};

}  // namespace

void gemm_avx2(const GemmProblem& problem) { gemm_blocked<Avx2>(problem); }

}  // namespace ptq4arvg::cpu
