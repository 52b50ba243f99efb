// AMX for at most 16 rows, where reading the weights takes longer than multiplying them.
//
// As gemm_decode_avx512_vnni.cpp: every thread walks its own panels from front to back, four at a time, once. A chunk of
// packed weights is unpacked into one tile's worth of the first-level cache and loaded from there.
#include <cstring>

#include "kernels/cpu/amx_int8_kernels.h"
#include "kernels/cpu/amx_tiles.h"
#include "kernels/cpu/avx512_vnni_kernels.h"
#include "kernels/cpu/epilogue_tile.h"
#include "kernels/cpu/lanes_avx512.h"
#include "kernels/cpu/scratch.h"
#include "kernels/cpu/unpack_avx512.h"
#include "kernels/parallel.h"

namespace ptq4arvg::cpu {
namespace {

constexpr int kPanels = 4;  // at once, each with its accumulator: tiles 0 to 3
constexpr int kGroups = kTileRows;  // of a chunk
constexpr int kChunk = kGroups * kGroup;

// All rows of `a` as [chunk][16 rows][64 k], zeros past K. Rows past the last are never read.
void pack_rows(const GemmProblem& p, int64_t chunks, int8_t* out) {
  for (int64_t r = 0; r < p.m; ++r) {
    for (int64_t c = 0; c < chunks; ++c) {
      const int64_t left = p.k - c * kChunk;
      const __mmask64 mask = left < kChunk ? (1ull << left) - 1 : ~0ull;
      const __m512i codes = _mm512_maskz_loadu_epi8(mask, p.a + r * p.a_stride + c * kChunk);
      _mm512_store_si512(out + c * kTileBytes + r * kChunk, codes);
    }
  }
}

struct Panel {
  PanelBytes bytes;
  __m512i zeros;
};

// Where a tile can load the chunk from group `begin` on: the panel itself, or `tile` with its codes.
template <int Bits>
PTQ4ARVG_FN const int8_t* chunk_codes(const Panel& panel, int64_t begin, int64_t groups, int8_t* tile) {
  const int64_t end = begin + kGroups < groups ? begin + kGroups : groups;
  for (int64_t g = begin; g < begin + kGroups; ++g) prefetch_group<Bits>(panel.bytes, g);
  if constexpr (Bits == 8) {
    const int8_t* codes = reinterpret_cast<const int8_t*>(panel.bytes.codes) + begin * kGroupCodes;
    if (end == begin + kGroups) return codes;
    memcpy(tile, codes, (end - begin) * kGroupCodes);
  } else if (end == begin + kGroups) {
    unpack_groups<Bits>(panel.bytes, panel.zeros, begin, begin + kGroups, tile);
  } else {
    unpack_groups<Bits>(panel.bytes, panel.zeros, begin, end, tile);
  }
  return tile;
}

// Sums of all rows by four panels, 64 columns apart. What lies in `tiles` past K is multiplied by the zeros of `a`.
template <int Bits>
void panel_sums(const int8_t* a, int64_t groups, const Panel (&panels)[kPanels], int8_t* tiles, int32_t* out) {
  memory_barrier();
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (int64_t g = 0; g < groups; g += kGroups, a += kTileBytes) {
    const int8_t* codes[kPanels];
    for (int i = 0; i < kPanels; ++i) codes[i] = chunk_codes<Bits>(panels[i], g, groups, tiles + i * kTileBytes);
    memory_barrier();
    _tile_loadd(4, a, kChunk);
    _tile_loadd(5, codes[0], kGroupCodes);
    _tile_dpbssd(0, 4, 5);
    _tile_loadd(6, codes[1], kGroupCodes);
    _tile_dpbssd(1, 4, 6);
    _tile_loadd(7, codes[2], kGroupCodes);
    _tile_dpbssd(2, 4, 7);
    _tile_loadd(5, codes[3], kGroupCodes);
    _tile_dpbssd(3, 4, 5);
    // The other half of the buffers next, so that no store waits for these loads.
    tiles = reinterpret_cast<int8_t*>(reinterpret_cast<uintptr_t>(tiles) ^ (kPanels * kTileBytes));
  }
  constexpr int kStride = kPanels * kPanel * sizeof(int32_t);
  _tile_stored(0, out, kStride);
  _tile_stored(1, out + kPanel, kStride);
  _tile_stored(2, out + 2 * kPanel, kStride);
  _tile_stored(3, out + 3 * kPanel, kStride);
  memory_barrier();
}

template <int Bits>
void decode(const GemmProblem& p) {
  const Layout layout = layout_of(p.n, p.k, Bits);
  const int64_t chunks = (p.k + kChunk - 1) / kChunk;
  const int64_t cost = kPanels * layout.panel_bytes * (8 + p.m / 2) / 8;
  parallel_for((layout.panels + kPanels - 1) / kPanels, kDecodeGrain / cost, [&](int64_t begin, int64_t end) {
    int8_t* a = static_cast<int8_t*>(thread_scratch(chunks * kTileBytes));
    alignas(2 * kPanels * kTileBytes) int8_t tiles[2 * kPanels * kTileBytes];
    alignas(64) int32_t sums[kTileRows * kPanels * kPanel];
    EpilogueRow rows[kTileRows];
    pack_rows(p, chunks, a);
    for (int64_t r = 0; r < p.m; ++r) rows[r] = epilogue_row(p, r);
    const int count = static_cast<int>(p.m);
    configure_tiles(5, count);
    for (int64_t first = begin * kPanels; first < end * kPanels; first += kPanels) {
      const auto bytes_at = [&](int i) {
        const int64_t panel = first + i < layout.panels ? first + i : layout.panels - 1;  // again, for nobody
        return p.w + panel * layout.panel_bytes;
      };
      Panel panels[kPanels];
      for (int i = 0; i < kPanels; ++i) {
        int8_t zeros[kPanel];
        panel_zeros(p.w_zero, Bits, p.n, first + i, zeros);
        panels[i] = {panel_bytes_of(bytes_at(i), layout), spread_zeros_512(zeros)};
      }
      panel_sums<Bits>(a, layout.groups, panels, tiles, sums);
      StripColumns<kPanels> columns;
      gather_columns<Avx512Whole, Avx512Tail>(p, first * kPanel, 0,
                                              [&](int i) { return bytes_at(i) + layout.sums; }, &columns);
      finish_of<Avx512Whole, Avx512Tail, kPanels>(p.epilogue)(p, columns, rows, count, sums);
    }
    release_tiles();
  });
}

}  // namespace

void gemm_decode_amx_int8(const GemmProblem& p) {
  if (p.m == 0) return;
  if (p.bits == 8) return decode<8>(p);
  p.bits == 6 ? decode<6>(p) : decode<4>(p);
}

}  // namespace ptq4arvg::cpu
