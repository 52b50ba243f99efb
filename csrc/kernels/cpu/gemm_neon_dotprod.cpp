// Arm dot-product micro-kernel: 6 rows by 16 columns in 24 accumulators. sdot takes signed bytes on both sides, so that
// `a` goes in as it is; levels of packed weights are below 64 and so signed bytes too.
//
// Tested for its results in an emulator, never run on an Arm processor: its speed is unknown.
#include "kernels/cpu/gemm_driver.h"
#include "kernels/cpu/lanes_neon.h"
#include "kernels/cpu/neon_dotprod_kernels.h"
#include "kernels/cpu/unpack_neon.h"

namespace ptq4arvg::cpu {
namespace {

constexpr int kQuarters = 4;  // vectors of columns in a panel

template <int Bits>
struct NeonDotprod {
  using Whole = NeonLanes;
  using Tail = ScalarLanes;
  static constexpr int kBits = Bits;
  static constexpr int kRows = 6;
  static constexpr int kCodeBytes = 1;
  static constexpr int kExcess = 0;

  static int32_t pack_chunk(const int8_t* codes, uint8_t* out) {
    int32_t sum = 0;
    for (int i = 0; i < kChunk; i += 16) {
      const int8x16_t a = vld1q_s8(codes + i);
      vst1q_s8(reinterpret_cast<int8_t*>(out) + i, a);
      sum += vaddlvq_s8(a);
    }
    return sum;
  }

  static void unpack(const PanelBytes& panel, int64_t groups, int8_t* levels) {
    for (int64_t g = 0; g < groups; ++g, levels += kGroupCodes) {
      const Group128 group = load_group_128<Bits>(panel, g);
      for (int i = 0; i < kQuarters; ++i) vst1q_s8(levels + 16 * i, group.quarters[i]);
    }
  }

  template <int Rows, int PanelBits>
  PTQ4ARVG_FN void step(const uint8_t* a, const PanelBytes& panel, int64_t group,
                        int32x4_t (&sums)[Rows][kQuarters]) {
    const Group128 w = load_group_128<PanelBits>(panel, group);
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r) {
      int32_t codes;
      memcpy(&codes, a + r * kChunk, sizeof codes);
      const int8x16_t row = vreinterpretq_s8_s32(vdupq_n_s32(codes));
#pragma GCC unroll 4
      for (int i = 0; i < kQuarters; ++i) sums[r][i] = vdotq_s32(sums[r][i], w.quarters[i], row);
    }
  }

  template <int Rows, int PanelBits>
  static __attribute__((noinline)) void tile(const uint8_t* a, int64_t groups, const PanelBytes& panel, int32_t* out) {
    int32x4_t sums[Rows][kQuarters];
#pragma GCC unroll 32
    for (int i = 0; i < Rows * kQuarters; ++i) sums[i / kQuarters][i % kQuarters] = vdupq_n_s32(0);
    int64_t g = 0;
    for (; g + kChunkGroups <= groups; a += kRows * kChunk) {
      for (int i = 0; i < kChunkGroups; ++i, ++g) step<Rows, PanelBits>(a + i * kGroup, panel, g, sums);
    }
    for (; g < groups; ++g, a += kGroup) step<Rows, PanelBits>(a, panel, g, sums);
#pragma GCC unroll 32
    for (int i = 0; i < Rows * kQuarters; ++i) vst1q_s32(out + 4 * i, sums[i / kQuarters][i % kQuarters]);
  }
};

}  // namespace

void gemm_neon_dotprod(const GemmProblem& problem) { gemm_by_bits<NeonDotprod>(problem); }

}  // namespace ptq4arvg::cpu
