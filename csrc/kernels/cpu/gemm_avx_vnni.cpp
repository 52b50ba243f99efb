// AVX-VNNI micro-kernel: 6 rows by 16 columns in 12 accumulators.
//
// vpdpbusd takes unsigned times signed bytes. At 8 bits `a` goes in as a + 128 (one XOR) and 128 times the column sums
// come off in the epilogue; packed weights are levels and unsigned themselves, so that `a` goes in as it is.
#include "kernels/cpu/avx_vnni_kernels.h"
#include "kernels/cpu/gemm_driver.h"
#include "kernels/cpu/lanes_avx2.h"
#include "kernels/cpu/tile_avx2.h"
#include "kernels/cpu/unpack_avx2.h"

namespace ptq4arvg::cpu {
namespace {

template <int Bits>
struct AvxVnni {
  using Whole = Avx2Lanes;
  using Tail = ScalarLanes;
  static constexpr int kBits = Bits;
  static constexpr int kRows = 6;
  static constexpr int kCodeBytes = 1;
  static constexpr int kExcess = Bits == 8 ? 128 : 0;

  static int32_t pack_chunk(const int8_t* codes, uint8_t* out) {
    const int32_t sum = pack_chunk_256<Bits == 8 ? 0x80 : 0>(codes, out);
    return Bits == 8 ? 0 : sum;
  }

  static void unpack(const PanelBytes& panel, int64_t groups, int8_t* levels) {
    unpack_levels_256<Bits>(panel, groups, levels);
  }

  PTQ4ARVG_FN __m256i multiply(__m256i sum, __m256i row, __m256i w) {
    return Bits == 8 ? _mm256_dpbusd_avx_epi32(sum, row, w) : _mm256_dpbusd_avx_epi32(sum, w, row);
  }

  template <int Rows, int PanelBits>
  PTQ4ARVG_FN void step(const uint8_t* a, const PanelBytes& panel, int64_t group, __m256i (&sums)[Rows][2]) {
    const Group256 w = load_group_256<PanelBits>(panel, group);
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r) {
      const __m256i row = broadcast(a + r * kChunk);
      sums[r][0] = multiply(sums[r][0], row, w.low);
      sums[r][1] = multiply(sums[r][1], row, w.high);
    }
  }

  // With few rows several sums for each element: one waits for the one before.
  template <int Rows, int PanelBits>
  static __attribute__((noinline)) void tile(const uint8_t* a, int64_t groups, const PanelBytes& panel, int32_t* out) {
    constexpr int kWays = Rows == 1 ? 4 : Rows <= 3 ? 2 : 1;
    __m256i sums[kWays][Rows][2];
#pragma GCC unroll 16
    for (int i = 0; i < kWays * Rows * 2; ++i) (&sums[0][0][0])[i] = _mm256_setzero_si256();
    int64_t g = 0;
    for (; g + kChunkGroups <= groups; a += kRows * kChunk) {
      for (int i = 0; i < kChunkGroups; i += kWays, g += kWays) {
#pragma GCC unroll 4
        for (int way = 0; way < kWays; ++way) step<Rows, PanelBits>(a + (i + way) * kGroup, panel, g + way, sums[way]);
      }
    }
    for (; g < groups; ++g, a += kGroup) step<Rows, PanelBits>(a, panel, g, sums[0]);
#pragma GCC unroll 4
    for (int way = 1; way < kWays; ++way) {
#pragma GCC unroll 8
      for (int r = 0; r < Rows; ++r) {
        sums[0][r][0] = _mm256_add_epi32(sums[0][r][0], sums[way][r][0]);
        sums[0][r][1] = _mm256_add_epi32(sums[0][r][1], sums[way][r][1]);
      }
    }
    store_sums<Rows>(sums[0], out);
  }
};

}  // namespace

void gemm_avx_vnni(const GemmProblem& problem) { gemm_by_bits<AvxVnni>(problem); }

}  // namespace ptq4arvg::cpu
