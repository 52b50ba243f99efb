// AMX micro-kernel: 32 rows by 32 columns in four tile registers.
//
// tdpbssd takes signed bytes on both sides, so `a` goes in as it is; a chunk of 16 rows and a chunk of a panel are each
// one tile of 16 rows of 64 bytes as they lie. Rows and groups past the end are multiplied too, by zeros or for nobody.
#include "kernels/cpu/amx_int8_kernels.h"
#include "kernels/cpu/amx_tiles.h"
#include "kernels/cpu/gemm_tiles.h"

namespace ptq4arvg::cpu {
namespace {

struct AmxInt8 {
  static constexpr int kRows = 2 * kTileRows;
  static constexpr int kFlip = 0;
  static constexpr int kExcess = 0;
  static constexpr bool kWholeChunks = true;
  static constexpr bool kOverlap = true;
  static constexpr int kDepth = 16;

  static void begin() { configure_tiles(); }
  static void end() { release_tiles(); }

  template <bool Both>
  PTQ4ARVG_FN void step(const uint8_t* a, const int8_t* w0, const int8_t* w1) {
    _tile_stream_loadd(4, a, kChunk);
    _tile_loadd(6, w0, kGroupCodes);
    _tile_dpbssd(0, 4, 6);
    _tile_loadd(7, w1, kGroupCodes);
    _tile_dpbssd(1, 4, 7);
    if constexpr (Both) {
      _tile_stream_loadd(5, a + kTileBytes, kChunk);
      _tile_dpbssd(2, 5, 6);
      _tile_dpbssd(3, 5, 7);
    }
  }

  template <bool Both, bool More, class Work>
  static void tile_of(const uint8_t* a, int64_t groups, const StripWeights& w, int32_t* out, const Work& work) {
    constexpr int kStride = kStripColumns * sizeof(int32_t);
    int32_t* below = out + kTileRows * kStripColumns;
    memory_barrier();
    if constexpr (More) {
      _tile_loadd(0, out, kStride);
      _tile_loadd(1, out + kPanel, kStride);
      _tile_loadd(2, below, kStride);
      _tile_loadd(3, below + kPanel, kStride);
    } else {
      _tile_zero(0);
      _tile_zero(1);
      _tile_zero(2);
      _tile_zero(3);
    }
    const int64_t whole = groups / kChunkGroups, steps = whole > 0 ? whole : 1;
    for (int64_t c = 0; c < whole; ++c, a += kRows * kChunk) {
      step<Both>(a, w.codes[0] + c * kChunkCodes, w.codes[1] + c * kChunkCodes);
      work(c, steps);
    }
    if (whole == 0) work(0, steps);
    if (groups % kChunkGroups) step<Both>(a, w.last[0], w.last[1]);
    _tile_stored(0, out, kStride);
    _tile_stored(1, out + kPanel, kStride);
    if constexpr (Both) {
      _tile_stored(2, below, kStride);
      _tile_stored(3, below + kPanel, kStride);
    }
    memory_barrier();
  }

  template <class Work>
  static void tile(int rows, const uint8_t* a, int64_t groups, const StripWeights& w, bool more, int32_t* out,
                   const Work& work) {
    if (rows <= kTileRows) {
      return more ? tile_of<false, true>(a, groups, w, out, work) : tile_of<false, false>(a, groups, w, out, work);
    }
    more ? tile_of<true, true>(a, groups, w, out, work) : tile_of<true, false>(a, groups, w, out, work);
  }
};

}  // namespace

void gemm_amx_int8(const GemmProblem& problem) {
  const bool few = problem.m <= kTileRows && !problem.patches.height;
  few ? gemm_decode_amx_int8(problem) : gemm_tiles<AmxInt8>(problem);
}

}  // namespace ptq4arvg::cpu
