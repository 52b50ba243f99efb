// How the decode kernel cuts a product with few rows. Plain arithmetic, so that it can be checked anywhere.
#pragma once

#include "kernels/cuda/layout.h"

namespace ptq4arvg::cuda {

constexpr int64_t kDecodeRows = 32;   // the most it takes
constexpr int kDecodeDepth = 128;     // k of one step of one warp
constexpr int kDecodeSharedBytes = 96 * 1024;  // of a block at most: sm_86 and sm_89 have 99 KiB

struct DecodePlan {
  int column_tiles;   // of 16 columns, in a block
  int token_tiles;    // of 8 rows
  int warps, stages;
  int64_t steps;      // of kDecodeDepth, in all
  int splits;         // blocks that share a tile's k, each with its own partial sums
  int64_t blocks;     // along n
  int64_t workspace;  // bytes for partial sums; 0 where splits is 1
};

PTQ4ARVG_FN int decode_stage_bytes(int bits, int column_tiles, int token_tiles) {
  return column_tiles * kBlockColumns * kDecodeDepth * bits / 8 + token_tiles * 8 * kDecodeDepth;
}

// The warps of a block take steps in turn, so each needs no other until the end. Narrow blocks of eight warps where
// there are few columns, so that more multiprocessors pull on the memory; wide ones of four where blocks abound or where
// many rows make the activations a large part of what is read.
PTQ4ARVG_FN DecodePlan plan_decode(int64_t m, int64_t n, int64_t k, int sm_count) {
  DecodePlan plan{};
  plan.token_tiles = m <= 8 ? 1 : m <= 16 ? 2 : 4;
  const bool narrow = plan.token_tiles < 4 && divide_up(n, 2 * kBlockColumns) < sm_count;
  plan.column_tiles = narrow ? 1 : 2;
  plan.warps = narrow ? 8 : 4;
  plan.stages = plan.token_tiles == 1 || (!narrow && plan.token_tiles == 2) ? 4 : 3;
  plan.steps = divide_up(k, kDecodeDepth);
  plan.blocks = divide_up(n, plan.column_tiles * kBlockColumns);
  // The second kernel that adds up partial sums costs about as much as 8 steps of every warp, so only very deep
  // products with few columns are split among blocks.
  const int64_t turns = divide_up(plan.steps, plan.warps), idle = sm_count / plan.blocks;
  const int64_t splits = turns / 8 < idle ? turns / 8 : idle;
  plan.splits = static_cast<int>(splits < 1 ? 1 : splits > 16 ? 16 : splits);
  plan.workspace = plan.splits == 1 ? 0 : plan.splits * m * n * static_cast<int64_t>(sizeof(int32_t));
  return plan;
}

}  // namespace ptq4arvg::cuda
