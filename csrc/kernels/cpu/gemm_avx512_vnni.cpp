// AVX-512-VNNI micro-kernel: vpdpbusd takes unsigned times signed bytes, so `a` goes in as a + 128 (one XOR) and the
// sums start at -128 times the column sums that the packed weight carries.
#include "kernels/cpu/avx512_vnni_kernels.h"
#include "kernels/cpu/gemm_driver.h"
#include "kernels/cpu/lanes_avx2.h"
#include "kernels/cpu/unpack_avx2.h"

namespace ptq4arvg::cpu {
namespace {

struct Avx512Vnni {
  using Lanes = Avx2Lanes;
  static constexpr int kRows = 6;
  static constexpr int kStrip = 4;  // 24 accumulators, 4 registers of weights, 1 of activations
  static constexpr int kGroupBytes = 4;

  static int64_t depth_step(int) { return 1; }

  static void pack_group(const int8_t* codes, uint8_t* out) {
    uint32_t a;
    memcpy(&a, codes, sizeof a);
    a ^= 0x80808080u;
    memcpy(out, &a, sizeof a);
  }

  static const int8_t* panel_codes(const uint8_t* panel, const Layout& layout, int bits, const int8_t* zeros,
                                   int8_t* scratch) {
    return cpu::panel_codes(panel, layout, bits, zeros, scratch);
  }

  template <int Rows>
  static void tile(const uint8_t* a, int64_t depth, const int8_t* const* w, const int32_t* column_sums, int,
                   int32_t* out) {
    __m512i sums[Rows][kStrip];
    for (int i = 0; i < kStrip; ++i) {
      const __m512i columns = _mm512_loadu_si512(column_sums + i * kPanel);
      const __m512i start = _mm512_mullo_epi32(columns, _mm512_set1_epi32(-128));
      for (int r = 0; r < Rows; ++r) sums[r][i] = start;
    }
    for (int64_t g = 0; g < depth; ++g) {
      __m512i columns[kStrip];
      for (int i = 0; i < kStrip; ++i) columns[i] = _mm512_loadu_si512(w[i] + g * kGroupCodes);
      for (int r = 0; r < Rows; ++r) {
        int32_t codes;
        memcpy(&codes, a + (g * Rows + r) * kGroupBytes, sizeof codes);
        const __m512i row = _mm512_set1_epi32(codes);
        for (int i = 0; i < kStrip; ++i) sums[r][i] = _mm512_dpbusd_epi32(sums[r][i], row, columns[i]);
      }
    }
    for (int r = 0; r < Rows; ++r) {
      for (int i = 0; i < kStrip; ++i) _mm512_storeu_si512(out + (r * kStrip + i) * kPanel, sums[r][i]);
    }
  }
};

}  // namespace

void gemm_avx512_vnni(const GemmProblem& problem) { gemm_blocked<Avx512Vnni>(problem); }

}  // namespace ptq4arvg::cpu
