// The GEMM for many rows: blocks of rows by strips of panels.
//
// A task is one block of rows by one strip. The block's rows of `a` are packed once into chunks of 64 k, the strip's
// weights are read where they lie (8 bits) or unpacked once into scratch that stays in cache, and each tile of sums goes
// straight from the micro-kernel through a small buffer to the epilogue. An Isa gives
//   kRows            rows of a tile, and the spacing of chunks in packed rows
//   kFlip            what is XORed onto the bytes of `a`
//   kExcess          the sums come out this many times the column sums too large, because of that
//   kWholeChunks     does the micro-kernel read weights in whole chunks only?
//   begin(), end()   around the tiles of a thread
//   kDepth           chunks of k in one go: a strip's weights for them stay in the first-level cache from tile to tile
//   tile(rows, a, groups, w, more, sums, work)   sums of `rows` rows by a strip, kStripColumns apart; added to what is
//                    in `sums` if `more`
//   kOverlap         tile calls work(step, steps) for every step in [0, steps) on the way: the epilogue of the tile
//                    before, which other execution ports can do meanwhile, and the fetching of the strip after
#pragma once

#include <cstring>

#include "kernels/cpu/epilogue_tile.h"
#include "kernels/cpu/lanes_avx512.h"
#include "kernels/cpu/patch_rows.h"
#include "kernels/cpu/scratch.h"
#include "kernels/cpu/unpack_avx512.h"
#include "kernels/parallel.h"

namespace ptq4arvg::cpu {
namespace {  // compiled for several instruction sets: internal linkage, see real.h

constexpr int kStrip = 2;
constexpr int kStripColumns = kStrip * kPanel;
constexpr int kChunkGroups = 16;
constexpr int kChunk = kChunkGroups * kGroup;  // k, and bytes of a packed row
constexpr int64_t kChunkCodes = kChunkGroups * kGroupCodes;  // bytes of a panel's chunk

constexpr int64_t kBlockBytes = 512 * 1024;  // of packed `a`: a quarter of the second-level cache
constexpr int64_t kSplitRows = 192;          // rows that are worth a block of their own
constexpr int64_t kGrain = 1024 * 1024;      // multiplications that are worth a thread
constexpr int64_t kLine = 64;                // bytes of a cache line
constexpr int64_t kPrefetchTiles = 4;        // of rows; with fewer there is no time to fetch a strip meanwhile

static inline int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }
static inline int64_t round_up(int64_t a, int64_t b) { return divide_up(a, b) * b; }

// A strip's weights: panel i in chunks from codes[i], the last chunk apart if it is short.
struct StripWeights {
  const int8_t* codes[kStrip];
  const int8_t* last[kStrip];

  StripWeights from(int64_t chunk) const {
    return {{codes[0] + chunk * kChunkCodes, codes[1] + chunk * kChunkCodes}, {last[0], last[1]}};
  }
};

struct TilePlan {
  Layout layout;
  int64_t strips, chunks;
  int64_t tile_rows;  // kRows or less, so that tiles are even
  int64_t block_rows, blocks;
  int64_t depths;      // goes over k, of kDepth chunks
  int64_t tile_bytes;  // of packed a
  int64_t a_bytes, w_bytes, row_bytes, sum_bytes, room_bytes;
  int64_t scratch() const { return a_bytes + w_bytes + sum_bytes + room_bytes + row_bytes; }
};

template <class Isa>
static inline TilePlan plan_tiles(const GemmProblem& p) {
  TilePlan plan;
  plan.layout = layout_of(p.n, p.k, p.bits);
  plan.strips = divide_up(plan.layout.panels, kStrip);
  plan.chunks = divide_up(p.k, kChunk);
  plan.tile_bytes = Isa::kRows * plan.chunks * kChunk;
  const int64_t tiles = divide_up(p.m, Isa::kRows);
  plan.tile_rows = Isa::kWholeChunks ? Isa::kRows : divide_up(p.m, tiles);
  const int64_t fit = kBlockBytes / plan.tile_bytes;
  int64_t blocks = divide_up(tiles, fit < 1 ? 1 : fit);
  // Whole blocks for every thread, so that no two pack the same rows; with few rows the strips are shared out instead.
  const int64_t threads = parallel().threads();
  const int64_t even = round_up(blocks, threads);
  if (p.m / even >= kSplitRows || plan.strips < threads) blocks = even < tiles ? even : tiles;
  plan.block_rows = divide_up(tiles, blocks) * plan.tile_rows;
  plan.blocks = divide_up(p.m, plan.block_rows);
  plan.a_bytes = plan.block_rows / plan.tile_rows * plan.tile_bytes;
  plan.w_bytes = kStrip * kChunkCodes * (p.bits == 8 ? 1 : plan.chunks);
  plan.row_bytes = round_up(plan.block_rows * sizeof(EpilogueRow), kLine);
  plan.depths = plan.block_rows > plan.tile_rows ? divide_up(plan.chunks, Isa::kDepth) : 1;
  // Of all tiles of a block that wait for more k; else of the one being made and the one before it.
  const int64_t waiting = plan.depths > 1 ? divide_up(plan.block_rows, plan.tile_rows) : 2;
  plan.sum_bytes = waiting * Isa::kRows * kStripColumns * sizeof(int32_t);
  plan.room_bytes = row_room(p);
  return plan;
}

// Rows [begin, end) of a as tiles [chunk][row][64 k].
template <class Isa>
static inline void pack_tiles(const GemmProblem& p, const TilePlan& plan, int64_t begin, int64_t end, int8_t* room,
                              uint8_t* out) {
  const __m512i flip = _mm512_set1_epi8(static_cast<char>(Isa::kFlip));
  const int64_t whole = p.k / kChunk;
  const int rest = static_cast<int>(p.k % kChunk);
  const __mmask64 mask = (1ull << rest) - 1;
  for (int64_t m = begin; m < end; ++m) {
    const int8_t* a = row_codes(p, m, room);
    const int64_t row = m - begin;
    uint8_t* to = out + row / plan.tile_rows * plan.tile_bytes + row % plan.tile_rows * kChunk;
    for (int64_t c = 0; c < whole; ++c, to += Isa::kRows * kChunk) {
      _mm512_store_si512(to, _mm512_xor_si512(_mm512_loadu_si512(a + c * kChunk), flip));
    }
    if (rest) {
      const __m512i tail = _mm512_maskz_loadu_epi8(mask, a + whole * kChunk);
      _mm512_store_si512(to, _mm512_xor_si512(tail, flip));
    }
  }
}

template <class Isa>
static inline void open_strip(const GemmProblem& p, const TilePlan& plan, int64_t strip, int8_t* scratch,
                              StripWeights* w, StripColumns<kStrip>* columns) {
  const auto panel_at = [&](int i) {
    const int64_t panel = strip * kStrip + i;
    return panel < plan.layout.panels ? panel : plan.layout.panels - 1;  // past the last, whose results nobody reads
  };
  const auto bytes_at = [&](int i) { return p.w + panel_at(i) * plan.layout.panel_bytes; };
  gather_columns<Avx512Whole, Avx512Tail>(p, strip * kStripColumns, Isa::kExcess,
                                          [&](int i) { return bytes_at(i) + plan.layout.sums; }, columns);
  const int64_t full = plan.layout.groups / kChunkGroups * kChunkGroups, tail = plan.layout.groups - full;
  for (int i = 0; i < kStrip; ++i) {
    if (p.bits == 8) {
      w->codes[i] = reinterpret_cast<const int8_t*>(bytes_at(i));
      w->last[i] = w->codes[i] + full * kGroupCodes;
      if (Isa::kWholeChunks && tail) {
        int8_t* copy = scratch + i * kChunkCodes;
        memcpy(copy, w->last[i], tail * kGroupCodes);
        w->last[i] = copy;
      }
      continue;
    }
    int8_t* codes = scratch + i * plan.chunks * kChunkCodes;
    w->codes[i] = codes;
    w->last[i] = codes + full * kGroupCodes;
    int8_t zeros[kPanel];
    panel_zeros(p.w_zero, p.bits, p.n, panel_at(i), zeros);
    const PanelBytes panel = panel_bytes_of(bytes_at(i), plan.layout);
    const __m512i spread = spread_zeros_512(zeros);
    if (p.bits == 6) {
      unpack_groups<6>(panel, spread, 0, plan.layout.groups, codes);
    } else {
      unpack_groups<4>(panel, spread, 0, plan.layout.groups, codes);
    }
  }
}

// A tile of sums that waits for its epilogue.
struct Pending {
  const StripColumns<kStrip>* columns = nullptr;
  const EpilogueRow* rows = nullptr;
  const int32_t* sums = nullptr;
  int count = 0;
};

// Asks for the weights of the strip after this one, a little with each step.
struct Prefetch {
  const uint8_t *at = nullptr, *end = nullptr;
  int64_t step = 0;  // bytes

  void operator()() {
    for (const uint8_t* stop = at + step; at < stop && at < end; at += kLine) {
      _mm_prefetch(reinterpret_cast<const char*>(at), _MM_HINT_T1);
    }
  }
};

template <class Isa>
static inline void run_tasks(const GemmProblem& p, const TilePlan& plan, int64_t begin, int64_t end) {
  uint8_t* a = static_cast<uint8_t*>(thread_scratch(plan.scratch()));
  int8_t* unpacked = reinterpret_cast<int8_t*>(a + plan.a_bytes);
  int32_t* sums = reinterpret_cast<int32_t*>(unpacked + plan.w_bytes);
  EpilogueRow* rows = reinterpret_cast<EpilogueRow*>(a + plan.scratch() - plan.row_bytes);
  int8_t* room = reinterpret_cast<int8_t*>(rows) - plan.room_bytes;
  StripColumns<kStrip> columns[2];
  Pending pending;
  Prefetch prefetch;
  const FinishTile<kStrip> finish = finish_of<Avx512Whole, Avx512Tail, kStrip>(p.epilogue);
  const auto work = [&](int64_t step, int64_t steps) __attribute__((always_inline)) {
    prefetch();
    const int64_t begin = pending.count * step / steps, end = pending.count * (step + 1) / steps;
    if (begin == end) return;
    finish(p, *pending.columns, pending.rows + begin, static_cast<int>(end - begin),
           pending.sums + begin * kStripColumns);
  };
  int64_t packed_block = -1, tiles = 0;
  for (int64_t task = begin; task < end; ++task) {
    const int64_t block = task / plan.strips, first = block * plan.block_rows, strip = task % plan.strips;
    const int64_t last = first + plan.block_rows < p.m ? first + plan.block_rows : p.m;
    if (block != packed_block) {
      work(0, 1);
      pending.count = 0;
      pack_tiles<Isa>(p, plan, first, last, room, a);
      for (int64_t m = first; m < last; ++m) rows[m - first] = epilogue_row(p, m);
      packed_block = block;
    }
    StripWeights w;
    open_strip<Isa>(p, plan, strip, unpacked, &w, &columns[task % 2]);
    const int64_t row_tiles = divide_up(last - first, plan.tile_rows);
    if (Isa::kOverlap && task + 1 < end && strip + 1 < plan.strips && row_tiles >= kPrefetchTiles) {
      const int64_t bytes = kStrip * plan.layout.panel_bytes;
      const int64_t steps = row_tiles * plan.chunks;
      prefetch.at = p.w + (strip + 1) * bytes;
      prefetch.end = p.w + plan.layout.panels * plan.layout.panel_bytes;
      prefetch.step = round_up(divide_up(bytes, steps), kLine);
    }
    for (int64_t depth = 0; depth < plan.depths; ++depth) {
      const int64_t chunk = depth * Isa::kDepth, left = plan.layout.groups - chunk * kChunkGroups;
      const int64_t groups = depth + 1 < plan.depths ? Isa::kDepth * kChunkGroups : left;
      for (int64_t m = first; m < last; m += plan.tile_rows, ++tiles) {
        const int count = static_cast<int>(last - m < plan.tile_rows ? last - m : plan.tile_rows);
        const int64_t tile = (m - first) / plan.tile_rows, slot = plan.depths > 1 ? tile : tiles % 2;
        int32_t* out = sums + slot * Isa::kRows * kStripColumns;
        Isa::tile(count, a + tile * plan.tile_bytes + chunk * Isa::kRows * kChunk, groups, w.from(chunk), depth > 0,
                  out, work);
        pending.count = 0;
        if (depth + 1 < plan.depths) continue;
        pending = {&columns[task % 2], rows + (m - first), out, count};
        if (Isa::kOverlap) continue;
        work(0, 1);
        pending.count = 0;
      }
    }
  }
  work(0, 1);
}

template <class Isa>
static inline void gemm_tiles(const GemmProblem& p) {
  if (p.m == 0) return;
  const TilePlan plan = plan_tiles<Isa>(p);
  const int64_t work = plan.block_rows * kStripColumns * p.k;
  parallel_for(plan.blocks * plan.strips, kGrain / work, [&](int64_t begin, int64_t end) {
    Isa::begin();
    run_tasks<Isa>(p, plan, begin, end);
    Isa::end();
  });
}

}  // namespace
}  // namespace ptq4arvg::cpu
