// AVX-512-VNNI micro-kernel for many rows: 12 rows by 32 columns in 24 accumulators.
//
// vpdpbusd takes unsigned times signed bytes, so `a` goes in as a + 128 (one XOR) and 128 times the column sums come off
// in the epilogue. Two panels rather than four: a strip of weights then stays in the first-level cache at K = 1024.
#include "kernels/cpu/avx512_vnni_kernels.h"
#include "kernels/cpu/gemm_tiles.h"

namespace ptq4arvg::cpu {
namespace {

struct Avx512Vnni {
  static constexpr int kRows = 12;
  static constexpr int kFlip = 0x80;
  static constexpr int kExcess = 128;
  static constexpr bool kWholeChunks = false;
  static constexpr bool kOverlap = false;  // the epilogue needs the same execution ports
  static constexpr int kDepth = kMaxDepth / kChunk;  // all: multiplying takes longer than reading

  static void begin() {}
  static void end() {}

  template <int Rows>
  PTQ4ARVG_FN void step(const uint8_t* a, const int8_t* w0, const int8_t* w1, __m512i (&sums)[Rows][kStrip]) {
    const __m512i columns0 = _mm512_loadu_si512(w0), columns1 = _mm512_loadu_si512(w1);
    for (int r = 0; r < Rows; ++r) {
      int32_t codes;
      memcpy(&codes, a + r * kChunk, sizeof codes);
      const __m512i row = _mm512_set1_epi32(codes);
      sums[r][0] = _mm512_dpbusd_epi32(sums[r][0], row, columns0);
      sums[r][1] = _mm512_dpbusd_epi32(sums[r][1], row, columns1);
    }
  }

  template <int Rows>
  static void tile_of(const uint8_t* a, int64_t groups, const StripWeights& w, bool more, int32_t* out) {
    __m512i sums[Rows][kStrip];
    for (int r = 0; r < Rows; ++r) {
      for (int i = 0; i < kStrip; ++i) {
        sums[r][i] = more ? _mm512_load_si512(out + r * kStripColumns + i * kPanel) : _mm512_setzero_si512();
      }
    }
    const int8_t *w0 = w.codes[0], *w1 = w.codes[1];
    for (int64_t left = groups; left > 0; left -= kChunkGroups, a += kRows * kChunk) {
      const int count = left < kChunkGroups ? static_cast<int>(left) : kChunkGroups;
      for (int g = 0; g < count; ++g, w0 += kGroupCodes, w1 += kGroupCodes) {
        step<Rows>(a + g * kGroup, w0, w1, sums);
      }
    }
    for (int r = 0; r < Rows; ++r) {
      for (int i = 0; i < kStrip; ++i) _mm512_store_si512(out + r * kStripColumns + i * kPanel, sums[r][i]);
    }
  }

  template <class Work, int Rows = kRows>
  static void tile(int rows, const uint8_t* a, int64_t groups, const StripWeights& w, bool more, int32_t* out,
                   const Work& work) {
    if constexpr (Rows > 1) {
      if (rows < Rows) return tile<Work, Rows - 1>(rows, a, groups, w, more, out, work);
    }
    tile_of<Rows>(a, groups, w, more, out);
  }
};

}  // namespace

void gemm_avx512_vnni(const GemmProblem& problem) {
  const bool few = problem.m <= kDecodeRows && !problem.patches.height;
  few ? gemm_decode_avx512_vnni(problem) : gemm_tiles<Avx512Vnni>(problem);
}

}  // namespace ptq4arvg::cpu
