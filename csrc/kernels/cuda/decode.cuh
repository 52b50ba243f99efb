// The decode kernel: few rows of activations, each weight read once.
//
// A block has 16 or 32 columns and all rows. Its warps take steps of 128 k in turn, each with its own ring of buffers
// in shared memory, filled by cp.async some steps ahead; so no warp waits for another until the sums are added up. The
// weight is the A operand of mma.sync.m16n8k32 (see layout.h), the activations are the B operand. All sums are int32:
// the order in which warps and blocks are added changes nothing, so every run gives the same bits.
#pragma once

#include "kernels/cuda/copy.cuh"
#include "kernels/cuda/decode.h"
#include "kernels/cuda/finish.cuh"
#include "kernels/cuda/fragments.h"
#include "kernels/cuda/rows.cuh"

namespace ptq4arvg::cuda {
namespace {

constexpr int kChunks = kDecodeDepth / 16;  // of 16 bytes, in a row of 8-bit codes

struct Decode {
  GemmProblem p;
  Layout layout;
  const int32_t* packed_sums;
  int64_t steps;
  int splits;
  int32_t* partial;  // [splits, m, n], or null
  bool aligned;      // rows of a start at multiples of 16 bytes
  bool early;        // it may have started before earlier kernels have ended
};

constexpr int64_t kLine = 128;             // bytes of the second-level cache
constexpr int64_t kDrawnBytes = 64 * 1024;  // at most, by a block: with two on each multiprocessor, less than half of it

// Before the wait for earlier kernels: draws this block's weights into the second-level cache. The weights of neighbouring
// columns lie together, so those of a block are one range, or two at 6 bits; blocks that share columns share the range.
template <int Bits, int ColumnTiles>
__device__ inline void draw_weights(const Decode& d, int64_t first_column) {
  const auto draw = [&](int64_t begin, int64_t bytes) {
    const int64_t first = (begin + bytes * blockIdx.y / d.splits) / kLine * kLine;
    const int64_t last = begin + bytes * (blockIdx.y + 1) / d.splits;
    const int64_t end = last - first < kDrawnBytes ? last : first + kDrawnBytes;
    for (int64_t at = first + threadIdx.x * kLine; at < end; at += blockDim.x * kLine) draw_line(d.p.w + at);
  };
  if constexpr (Bits == 8) {
    const int64_t left = d.p.n - first_column, columns = ColumnTiles * kBlockColumns;
    draw(first_column * d.layout.row_bytes, (left < columns ? left : columns) * d.layout.row_bytes);
  } else {
    const int64_t tile = first_column / kBlockColumns, left = d.layout.tiles - tile;
    const int64_t first = tile * d.layout.depth_blocks;
    const int64_t blocks = (left < ColumnTiles ? left : ColumnTiles) * d.layout.depth_blocks;
    draw(nibble_offset(first, 0), blocks * kNibbleBytes);
    if constexpr (Bits == 6) draw(d.layout.crumbs + crumb_offset(first, 0), blocks * kCrumbBytes);
  }
}

// A warp's buffers of one step: weights, then activations.
template <int Bits, int ColumnTiles, int TokenTiles>
struct Stage {
  static constexpr int kNibbles = ColumnTiles * 2 * kNibbleBytes;
  static constexpr int kWeights = ColumnTiles * kBlockColumns * kDecodeDepth * Bits / 8;
  static constexpr int kBytes = kWeights + TokenTiles * 8 * kDecodeDepth;

  // Starts the copies of step `step`.
  __device__ static void fill(const Decode& d, uint32_t to, int64_t first_column, int64_t step, int lane) {
    if constexpr (Bits == 8) {
#pragma unroll
      for (int i = 0; i < ColumnTiles * kBlockColumns * kChunks / 32; ++i) {
        const int row = i * (32 / kChunks) + lane / kChunks, chunk = lane % kChunks;
        const int64_t column = first_column + row, k = step * kDecodeDepth + chunk * 16;
        const bool inside = column < d.p.n && k < d.layout.row_bytes;
        copy_async(to + swizzled<kChunks>(row, chunk), inside ? d.p.w + column * d.layout.row_bytes + k : d.p.w,
                   inside ? 16 : 0);
      }
    } else {
#pragma unroll
      for (int t = 0; t < ColumnTiles; ++t) {
        const int64_t tile = first_column / kBlockColumns + t;
        const int64_t depth = step * 2, block = tile * d.layout.depth_blocks + depth;
        const int64_t blocks = tile < d.layout.tiles ? d.layout.depth_blocks - depth : 0;  // that are left
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const bool inside = i < blocks;
          copy_async(to + (t * 2 + i) * kNibbleBytes + lane * 16,
                     inside ? d.p.w + nibble_offset(block + i, lane) : d.p.w, inside ? 16 : 0);
        }
        if constexpr (Bits == 6) {
          // Two blocks' crumbs lie together: 16 bytes for each lane, of which it reads back others' later on.
          const bool inside = lane / 16 < blocks;
          copy_async(to + kNibbles + t * 2 * kCrumbBytes + lane * 16,
                     inside ? d.p.w + d.layout.crumbs + block * kCrumbBytes + lane * 16 : d.p.w, inside ? 16 : 0);
        }
      }
    }
#pragma unroll
    for (int i = 0; i < TokenTiles * 2; ++i) {
      const int row = i * 4 + lane / kChunks, chunk = lane % kChunks;
      const int64_t k = step * kDecodeDepth + chunk * 16;
      const bool inside = row < d.p.m && k < d.p.k;
      copy_codes(to + kWeights + swizzled<kChunks>(row, chunk), inside ? d.p.a + row * d.p.a_stride + k : d.p.a,
                 inside ? d.p.k - k : 0, d.aligned);
    }
  }

  // The A fragment of tile t and the h-th 32 k.
  __device__ static void weights(uint32_t from, int t, int h, int lane, const LaneZeros& zeros, uint32_t* out) {
    if constexpr (Bits == 8) {
      load_matrices(from + swizzled<kChunks>(t * kBlockColumns + lane % 16, 2 * h + lane / 16), out);
    } else {
      uint32_t nibbles[4], crumbs = 0;
      const int block = t * 2 + h / 2;
      load_words(from + block * kNibbleBytes + lane * 16, nibbles);
      if constexpr (Bits == 6) crumbs = load_word(from + kNibbles + block * kCrumbBytes + lane * 8 + h % 2 * 4);
      fragment<Bits>(nibbles, crumbs, h % 2, zeros, out);
    }
  }

  // The B fragments of token tile t for the two 32 k from 64 pair on: out[0..1] and out[2..3].
  __device__ static void tokens(uint32_t from, int t, int pair, int lane, uint32_t* out) {
    load_matrices(from + kWeights + swizzled<kChunks>(t * 8 + lane % 8, 4 * pair + lane / 8), out);
  }
};

// Where a sum of a warp's token lies among the others, in rows of kColumns. An mma spreads eight tokens of a column over
// four lanes, two each: without the exchange of columns the four would meet in one bank.
template <int kColumns>
__device__ inline int sum_place(int token, int column) {
  static_assert(kColumns == 16 || kColumns == 32);
  return (token * kColumns + column) ^ (token / 2 % 4 * 8);
}

template <int Bits, int ColumnTiles, int TokenTiles, int Warps, int Stages>
__global__ void __launch_bounds__(32 * Warps, 1) decode_kernel(const __grid_constant__ Decode d) {
  using S = Stage<Bits, ColumnTiles, TokenTiles>;
  constexpr int kColumns = ColumnTiles * kBlockColumns, kTokens = TokenTiles * 8;
  unsigned char* const shared = dynamic_shared();
  __shared__ OutputRow rows[kTokens];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int64_t first_column = static_cast<int64_t>(blockIdx.x) * kColumns;
  const Epilogue& e = d.p.epilogue;
  if (d.early) draw_weights<Bits, ColumnTiles>(d, first_column);
  wait_for_earlier_kernels();
  let_later_kernels_start();

  // This block's steps, and of those this warp's: begin, begin + Warps, ...
  const int64_t block_begin = d.steps * blockIdx.y / d.splits, block_end = d.steps * (blockIdx.y + 1) / d.splits;
  const uint32_t ring = shared_address(shared) + warp * (Stages * S::kBytes);
  int64_t filling = block_begin + warp;
#pragma unroll
  for (int s = 0; s < Stages - 1; ++s, filling += Warps) {
    if (filling < block_end) S::fill(d, ring + s * S::kBytes, first_column, filling, lane);
    commit_copies();
  }

  // While the first copies are under way: what the epilogue needs, and nothing waits for here.
  const int64_t column = first_column + threadIdx.x % kColumns;
  OutputColumn output{};
  constexpr int kRound = 32 * Warps / kColumns;  // tokens that the block's threads finish together
  const auto operands_of = [&](int token) {
    if (d.partial || token >= d.p.m || column >= d.p.n) return OutputOperands{};
    return output_operands(e, e.gate.data ? place_of(d.p.rows, token).image : 0, token, column);
  };
  OutputOperands own = operands_of(threadIdx.x / kColumns);
  RowEntries entries{};
  if (!d.partial) {
    if (threadIdx.x < d.p.m) entries = row_entries(e, place_of(d.p.rows, threadIdx.x).t, e.requantize);
    if (column < d.p.n) output = output_column(e, d.packed_sums, column);
  }
  LaneZeros zeros[ColumnTiles];
#pragma unroll
  for (int t = 0; t < ColumnTiles; ++t) {
    zeros[t] = lane_zeros(d.p.w_zero, Bits, d.p.n, first_column + t * kBlockColumns, lane);
  }

  int32_t sums[ColumnTiles][TokenTiles][4] = {};
  int stage = 0;
  for (int64_t step = block_begin + warp; step < block_end; step += Warps, filling += Warps) {
    wait_copies<Stages - 2>();
    __syncwarp();  // other lanes' copies too; and all have read the buffer that is filled next
    const int next = stage == 0 ? Stages - 1 : stage - 1;
    if (filling < block_end) S::fill(d, ring + next * S::kBytes, first_column, filling, lane);
    commit_copies();
    const uint32_t from = ring + stage * S::kBytes;
#pragma unroll
    for (int pair = 0; pair < 2; ++pair) {
      uint32_t b[TokenTiles][4];
#pragma unroll
      for (int t = 0; t < TokenTiles; ++t) S::tokens(from, t, pair, lane, b[t]);
#pragma unroll
      for (int h = 0; h < 2; ++h) {
#pragma unroll
        for (int c = 0; c < ColumnTiles; ++c) {
          uint32_t a[4];
          S::weights(from, c, 2 * pair + h, lane, zeros[c], a);
#pragma unroll
          for (int t = 0; t < TokenTiles; ++t) multiply(sums[c][t], a, b[t] + 2 * h);
        }
      }
    }
    stage = stage == Stages - 1 ? 0 : stage + 1;
  }

  if (threadIdx.x < d.p.m) rows[threadIdx.x] = output_row(e, entries);
  // The warps' sums side by side in shared memory, [warp][token][column], then added up.
  wait_copies<0>();
  __syncthreads();
  int32_t* all = reinterpret_cast<int32_t*>(shared);
#pragma unroll
  for (int c = 0; c < ColumnTiles; ++c) {
#pragma unroll
    for (int t = 0; t < TokenTiles; ++t) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const Place place = c_place(lane, i);
        all[sum_place<kColumns>(warp * kTokens + t * 8 + place.k, c * kBlockColumns + place.row)] = sums[c][t][i];
      }
    }
  }
  __syncthreads();
  // Rounds of all lanes, which may exchange values.
  for (int first = 0; first < d.p.m; first += kRound) {
    const int token = first + threadIdx.x / kColumns;
    const OutputOperands next = operands_of(token + kRound);
    const bool inside = token < d.p.m && column < d.p.n;
    int32_t sum = 0;
#pragma unroll
    for (int w = 0; w < Warps; ++w) {
      if (inside) sum += all[sum_place<kColumns>(w * kTokens + token, threadIdx.x % kColumns)];
    }
    if (!d.partial) {
      finish_neighbours(e, inside ? rows[token] : OutputRow{}, output, own, token, column, d.p.n, inside, sum);
    } else if (inside) {
      d.partial[(blockIdx.y * d.p.m + token) * d.p.n + column] = sum;
    }
    own = next;
  }
}

template <int Bits, int ColumnTiles, int TokenTiles, int Warps, int Stages>
cudaError_t start(const Decode& d, const DecodePlan& plan, const Launch& launch) {
  constexpr int kBytes = Warps * Stages * Stage<Bits, ColumnTiles, TokenTiles>::kBytes;
  static_assert(kBytes <= kDecodeSharedBytes);
  static_assert(kBytes >= Warps * TokenTiles * 8 * ColumnTiles * kBlockColumns * int(sizeof(int32_t)));
  auto* kernel = decode_kernel<Bits, ColumnTiles, TokenTiles, Warps, Stages>;
  if (const cudaError_t error = allow_shared(kernel, kBytes)) return error;
  const dim3 grid(static_cast<unsigned>(plan.blocks), static_cast<unsigned>(plan.splits));
  return launch_early(kernel, grid, 32 * Warps, kBytes, launch, d);
}

template <int Bits>
cudaError_t decode(const GemmProblem& p, const DecodePlan& plan, int32_t* partial, const Launch& launch) {
  Decode d{p, layout_of(p.n, p.k, Bits), nullptr, plan.steps, plan.splits, partial, false, starts_early(launch.device.sm)};
  d.packed_sums = reinterpret_cast<const int32_t*>(p.w + d.layout.sums);
  d.aligned = reinterpret_cast<uintptr_t>(p.a) % 16 == 0 && p.a_stride % 16 == 0;
  if (plan.column_tiles == 1) {
    if (plan.token_tiles == 1) return start<Bits, 1, 1, 8, 4>(d, plan, launch);
    if (plan.token_tiles == 2) return start<Bits, 1, 2, 8, 3>(d, plan, launch);
  } else {
    if (plan.token_tiles == 1) return start<Bits, 2, 1, 4, 4>(d, plan, launch);
    if (plan.token_tiles == 2) return start<Bits, 2, 2, 4, 4>(d, plan, launch);
    if (plan.token_tiles == 4) return start<Bits, 2, 4, 4, 3>(d, plan, launch);
  }
  return cudaErrorInvalidValue;
}

}  // namespace
}  // namespace ptq4arvg::cuda
