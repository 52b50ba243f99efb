// The blocked GEMM around an instruction set's micro-kernel.
//
// Work is cut into tasks of one block of rows by one strip of panels. A task packs its rows of `a` into scratch, in
// blocks of Isa::kRows and padded to whole groups of k, unpacks its panels, runs the micro-kernel over all rows and
// hands each tile of int32 sums to the epilogue. An Isa gives
//   kRows, kStrip      rows and panels of a tile
//   kGroupBytes        bytes of one packed row and group of `a`
//   depth_step(bits)   groups are padded to a multiple of this (only ever where the panels are unpacked to scratch)
//   pack_group(codes, out)                         4 codes of `a` as the micro-kernel wants them
//   tile<Rows>(a, groups, w[kStrip], packed sums, bits, out)  sums of Rows rows by 16 kStrip columns
#pragma once

#include <cstring>

#include "kernels/cpu/epilogue.h"
#include "kernels/cpu/layout.h"
#include "kernels/cpu/scratch.h"
#include "kernels/parallel.h"

namespace ptq4arvg::cpu {
namespace {  // compiled for several instruction sets: internal linkage, see real.h

constexpr int64_t kBlockBytes = 192 * 1024;    // of packed `a`: stays in the second-level cache beside a panel
constexpr int64_t kGrain = 512 * 1024;         // multiplications that are worth a thread

static inline int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }
static inline int64_t round_up(int64_t a, int64_t b) { return divide_up(a, b) * b; }

struct GemmPlan {
  Layout layout;
  int64_t depth;         // padded groups
  int64_t strips;        // of kStrip panels
  int64_t block_rows, blocks;
  int64_t row_bytes;     // of packed a
  size_t a_bytes, scratch_bytes;
};

template <class Isa>
static inline GemmPlan plan_gemm(const GemmProblem& p) {
  GemmPlan plan;
  plan.layout = layout_of(p.n, p.k, p.bits);
  plan.depth = round_up(plan.layout.groups, Isa::depth_step(p.bits));
  plan.strips = divide_up(plan.layout.panels, Isa::kStrip);
  plan.row_bytes = plan.depth * Isa::kGroupBytes;
  const int64_t fit = kBlockBytes / plan.row_bytes / Isa::kRows * Isa::kRows;
  const int64_t most = fit < Isa::kRows ? Isa::kRows : fit;
  // Few strips: also cut the rows, so that every thread has a task.
  int64_t blocks = divide_up(p.m, most);
  const int64_t wanted = divide_up(parallel().threads(), plan.strips);
  const int64_t possible = divide_up(p.m, Isa::kRows);
  if (blocks < wanted) blocks = wanted < possible ? wanted : possible;
  plan.block_rows = round_up(divide_up(p.m, blocks), Isa::kRows);
  plan.blocks = divide_up(p.m, plan.block_rows);
  plan.a_bytes = round_up(plan.block_rows * plan.row_bytes, 64);
  plan.scratch_bytes = plan.a_bytes + (p.bits == 8 ? 0 : Isa::kStrip * plan.depth * kGroupCodes);
  return plan;
}

// Rows [begin, end) to blocks [group][row of the block]; a short last block has as many rows as it has.
template <class Isa>
static inline void pack_rows(const GemmProblem& p, const GemmPlan& plan, int64_t begin, int64_t end, uint8_t* out) {
  for (int64_t m = begin; m < end; m += Isa::kRows) {
    const int rows = static_cast<int>(end - m < Isa::kRows ? end - m : Isa::kRows);
    for (int r = 0; r < rows; ++r) {
      const int8_t* a = p.a + (m + r) * p.a_stride;
      uint8_t* to = out + r * Isa::kGroupBytes;
      const int64_t step = rows * Isa::kGroupBytes;
      int64_t g = 0;
      for (; g < p.k / kGroup; ++g) Isa::pack_group(a + g * kGroup, to + g * step);
      if (p.k % kGroup) {
        int8_t tail[kGroup] = {};
        memcpy(tail, a + g * kGroup, p.k % kGroup);
        Isa::pack_group(tail, to + g * step);
        ++g;
      }
      for (; g < plan.depth; ++g) memset(to + g * step, 0, Isa::kGroupBytes);
    }
    out += rows * plan.row_bytes;
  }
}

// Codes and column sums of the strip's panels; past the last panel the last one again, whose results nobody reads.
template <class Isa>
struct Strip {
  const int8_t* codes[Isa::kStrip];
  int32_t sums[Isa::kStrip * kPanel];
  int64_t first, end;  // columns
};

template <class Isa>
static inline void open_strip(const GemmProblem& p, const GemmPlan& plan, int64_t index, int8_t* scratch,
                              Strip<Isa>* strip) {
  strip->first = index * Isa::kStrip * kPanel;
  strip->end = strip->first + Isa::kStrip * kPanel < p.n ? strip->first + Isa::kStrip * kPanel : p.n;
  for (int i = 0; i < Isa::kStrip; ++i) {
    const int64_t panel = index * Isa::kStrip + i;
    if (panel >= plan.layout.panels) {
      strip->codes[i] = strip->codes[i > 0 ? i - 1 : 0];
      memset(strip->sums + i * kPanel, 0, kPanel * sizeof(int32_t));
      continue;
    }
    const uint8_t* bytes = p.w + panel * plan.layout.panel_bytes;
    int8_t zeros[kPanel];
    panel_zeros(p.w_zero, p.bits, p.n, panel, zeros);
    int8_t* out = scratch + i * plan.depth * kGroupCodes;
    strip->codes[i] = Isa::panel_codes(bytes, plan.layout, p.bits, zeros, out);
    if (p.bits != 8) {
      const int64_t pad = plan.depth - plan.layout.groups;
      memset(out + plan.layout.groups * kGroupCodes, 0, pad * kGroupCodes);
    }
    memcpy(strip->sums + i * kPanel, bytes + plan.layout.sums, kPanel * sizeof(int32_t));
  }
}

template <class Isa, int Rows>
static inline void run_tile(const GemmProblem& p, const GemmPlan& plan, int64_t m, int rows, const uint8_t* a,
                            const Strip<Isa>& strip) {
  if constexpr (Rows > 1) {
    if (rows < Rows) return run_tile<Isa, Rows - 1>(p, plan, m, rows, a, strip);
  }
  alignas(64) int32_t sums[Rows * Isa::kStrip * kPanel];
  Isa::template tile<Rows>(a, plan.depth, strip.codes, strip.sums, p.bits, sums);
  for (int r = 0; r < Rows; ++r) {
    epilogue<typename Isa::Lanes, ScalarLanes>(p, m + r, strip.first, strip.end, sums + r * Isa::kStrip * kPanel, strip.sums);
  }
}

template <class Isa>
static inline void gemm_blocked(const GemmProblem& p) {
  if (p.m == 0) return;
  const GemmPlan plan = plan_gemm<Isa>(p);
  const int64_t work = plan.block_rows * Isa::kStrip * kPanel * p.k;
  parallel_for(plan.blocks * plan.strips, kGrain / work, [&](int64_t begin, int64_t end) {
    uint8_t* a = static_cast<uint8_t*>(thread_scratch(plan.scratch_bytes));
    int8_t* w = reinterpret_cast<int8_t*>(a + plan.a_bytes);
    int64_t packed_block = -1;
    for (int64_t task = begin; task < end; ++task) {
      const int64_t block = task / plan.strips;
      const int64_t first = block * plan.block_rows;
      const int64_t last = first + plan.block_rows < p.m ? first + plan.block_rows : p.m;
      if (block != packed_block) pack_rows<Isa>(p, plan, first, last, a);
      packed_block = block;
      Strip<Isa> strip;
      open_strip(p, plan, task % plan.strips, w, &strip);
      for (int64_t m = first; m < last; m += Isa::kRows) {
        const int rows = static_cast<int>(last - m < Isa::kRows ? last - m : Isa::kRows);
        run_tile<Isa, Isa::kRows>(p, plan, m, rows, a + (m - first) * plan.row_bytes, strip);
      }
    }
  });
}

}  // namespace
}  // namespace ptq4arvg::cpu
