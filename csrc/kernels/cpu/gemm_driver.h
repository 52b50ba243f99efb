// The GEMM of instruction sets with vectors of 128 or 256 bits, for any number of rows.
//
// A task is one block of rows by one panel. The block's rows of `a` are packed once into tiles [chunk][row][64 k], and
// each tile of sums goes straight from the micro-kernel through a small buffer to the epilogue. Weights of 8 bits are
// read where they lie; packed ones are multiplied as the levels that they are (their zero points come off the sums),
// unpacked once into scratch that stays in cache or, where one tile of rows uses them, in registers. An Isa, one for
// each number of bits, gives
//   Whole, Tail        lanes of the epilogue
//   kBits              of the weights
//   kRows              rows of a tile, and the spacing of chunks in packed rows
//   kCodeBytes         bytes of a packed code of `a`
//   kExcess            at 8 bits, the sums come out this many times the column sums too large
//   pack_chunk(codes, out)       64 codes of `a` as the micro-kernel wants them; their sum, if kBits is not 8
//   unpack(panel, groups, levels)                the levels of a packed panel, in the order of 8-bit codes
//   tile<Rows, Bits>(a, groups, panel, sums)     sums of Rows rows by a panel of `Bits` bits: kBits, or 8 for unpacked
#pragma once

#include <cstring>

#include "kernels/cpu/epilogue_tile.h"
#include "kernels/cpu/panel_bytes.h"
#include "kernels/cpu/patch_rows.h"
#include "kernels/cpu/scratch.h"
#include "kernels/parallel.h"

namespace ptq4arvg::cpu {
namespace {  // compiled for several instruction sets: internal linkage, see real.h

constexpr int kChunkGroups = 16;
constexpr int kChunk = kChunkGroups * kGroup;  // k
constexpr int64_t kBlockBytes = 192 * 1024;    // of packed `a`: stays in the second-level cache beside a panel
constexpr int64_t kGrain = 512 * 1024;         // multiplications that are worth a thread
constexpr int64_t kGrainBytes = 96 * 1024;     // or bytes of weights

static inline int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }
static inline int64_t round_up(int64_t a, int64_t b) { return divide_up(a, b) * b; }

struct GemmPlan {
  Layout layout;
  int64_t chunks, tile_bytes;  // of packed a
  int64_t block_rows, blocks;
  bool unpack;                 // the weights, into scratch
  int64_t a_bytes, w_bytes, row_bytes;
};

template <class Isa>
static inline GemmPlan plan_gemm(const GemmProblem& p) {
  GemmPlan plan;
  plan.layout = layout_of(p.n, p.k, p.bits);
  plan.chunks = divide_up(p.k, kChunk);
  plan.tile_bytes = plan.chunks * Isa::kRows * kChunk * Isa::kCodeBytes;
  const int64_t tiles = divide_up(p.m, Isa::kRows), fit = kBlockBytes / plan.tile_bytes;
  // Few panels: also cut the rows, so that every thread has a task.
  int64_t blocks = divide_up(tiles, fit < 1 ? 1 : fit);
  const int64_t wanted = divide_up(parallel().threads(), plan.layout.panels);
  if (blocks < wanted) blocks = wanted < tiles ? wanted : tiles;
  const int64_t block_tiles = divide_up(tiles, blocks);
  plan.block_rows = block_tiles * Isa::kRows;
  plan.blocks = divide_up(p.m, plan.block_rows);
  plan.unpack = Isa::kBits != 8 && p.m > Isa::kRows;
  plan.a_bytes = block_tiles * plan.tile_bytes;
  plan.w_bytes = plan.unpack ? plan.layout.groups * kGroupCodes : 0;
  plan.row_bytes = plan.block_rows * static_cast<int64_t>(sizeof(EpilogueRow));
  return plan;
}

// Rows [begin, end) of a, and what the epilogue has to know of them.
template <class Isa>
static inline void pack_rows(const GemmProblem& p, int64_t tile_bytes, int64_t begin, int64_t end, int8_t* room,
                             uint8_t* out, EpilogueRow* rows) {
  constexpr int kBytes = kChunk * Isa::kCodeBytes;
  for (int64_t m = begin; m < end; ++m) {
    const int8_t* a = row_codes(p, m, room);
    uint8_t* to = out + (m - begin) / Isa::kRows * tile_bytes + (m - begin) % Isa::kRows * kBytes;
    EpilogueRow row = epilogue_row(p, m);
    int64_t k = 0;
    for (; k + kChunk <= p.k; k += kChunk, to += Isa::kRows * kBytes) row.sum += Isa::pack_chunk(a + k, to);
    if (k < p.k) {
      int8_t tail[kChunk] = {};
      memcpy(tail, a + k, p.k - k);
      row.sum += Isa::pack_chunk(tail, to);
    }
    rows[m - begin] = row;
  }
}

template <class Isa, int Bits, int Rows = Isa::kRows>
static inline void tile_sums(int64_t rows, const uint8_t* a, int64_t groups, const PanelBytes& panel, int32_t* sums) {
  if constexpr (Rows > 1) {
    if (rows < Rows) return tile_sums<Isa, Bits, Rows - 1>(rows, a, groups, panel, sums);
  }
  Isa::template tile<Rows, Bits>(a, groups, panel, sums);
}

template <class Isa>
static inline void run_tasks(const GemmProblem& p, const GemmPlan& plan, int64_t begin, int64_t end) {
  constexpr Excess kKind = Isa::kBits == 8 ? Excess::columns : Excess::levels;
  using Whole = typename Isa::Whole;
  using Tail = typename Isa::Tail;
  uint8_t* a = static_cast<uint8_t*>(thread_scratch(plan.a_bytes + plan.w_bytes + row_room(p) + plan.row_bytes));
  int8_t* levels = reinterpret_cast<int8_t*>(a + plan.a_bytes);
  int8_t* room = levels + plan.w_bytes;
  EpilogueRow* rows = reinterpret_cast<EpilogueRow*>(room + row_room(p));
  const FinishTile<1> finish = finish_of<Whole, Tail, 1, kKind>(p.epilogue);
  const int64_t groups = plan.layout.groups;
  int64_t packed_block = -1;
  for (int64_t task = begin; task < end; ++task) {
    const int64_t block = task / plan.layout.panels, first = block * plan.block_rows, panel = task % plan.layout.panels;
    const int64_t last = first + plan.block_rows < p.m ? first + plan.block_rows : p.m;
    if (block != packed_block) pack_rows<Isa>(p, plan.tile_bytes, first, last, room, a, rows);
    packed_block = block;
    const uint8_t* bytes = p.w + panel * plan.layout.panel_bytes;
    StripColumns<1> columns;
    const auto packed_sums = [&](int) { return bytes + plan.layout.sums; };
    gather_columns<Whole, Tail>(p, panel * kPanel, Isa::kExcess, packed_sums, &columns);
    if constexpr (kKind == Excess::levels) gather_zeros(p, &columns);
    const PanelBytes packed = panel_bytes_of(bytes, plan.layout);
    if (plan.unpack) Isa::unpack(packed, groups, levels);
    for (int64_t m = first; m < last; m += Isa::kRows) {
      const int64_t count = last - m < Isa::kRows ? last - m : Isa::kRows;
      const uint8_t* tile = a + (m - first) / Isa::kRows * plan.tile_bytes;
      alignas(64) int32_t sums[Isa::kRows * kPanel];
      if (plan.unpack) {
        tile_sums<Isa, 8>(count, tile, groups, {reinterpret_cast<const uint8_t*>(levels), nullptr}, sums);
      } else {
        tile_sums<Isa, Isa::kBits>(count, tile, groups, packed, sums);
      }
      finish(p, columns, rows + (m - first), static_cast<int>(count), sums);
    }
  }
}

template <class Isa>
static inline void gemm_blocked(const GemmProblem& p) {
  if (p.m == 0) return;
  const GemmPlan plan = plan_gemm<Isa>(p);
  const int64_t work = divide_up(kGrain, plan.block_rows * kPanel * p.k), bytes = kGrainBytes / plan.layout.panel_bytes;
  parallel_for(plan.blocks * plan.layout.panels, work < bytes ? work : bytes,
               [&](int64_t begin, int64_t end) { run_tasks<Isa>(p, plan, begin, end); });
}

// The Isa for the weights' bits.
template <template <int Bits> class Isa>
static inline void gemm_by_bits(const GemmProblem& p) {
  if (p.bits == 8) return gemm_blocked<Isa<8>>(p);
  p.bits == 6 ? gemm_blocked<Isa<6>>(p) : gemm_blocked<Isa<4>>(p);
}

}  // namespace
}  // namespace ptq4arvg::cpu
