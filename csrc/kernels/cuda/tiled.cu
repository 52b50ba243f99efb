// 64 x 64 outputs a block, 64 k a step, four warps of 32 x 32, three stages of cp.async. Rows of activations, or patches
// of maps, are the A operand here, weights the B operand.
#include "kernels/cuda/copy.cuh"
#include "kernels/cuda/finish.cuh"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/rows.cuh"
#include "kernels/cuda/tiled.h"

namespace ptq4arvg::cuda {
namespace {

constexpr int kTile = 64, kDepth = 64, kChunks = kDepth / 16, kStages = 3, kThreads = 128;
constexpr int kOperandBytes = kTile * kDepth, kStageBytes = 2 * kOperandBytes;

struct Tiled {
  GemmProblem p;
  const int8_t* codes;
  int64_t ldc;
  const int32_t* w_sum;
  bool aligned;
};

constexpr int kCopies = kTile * kChunks / kThreads;  // of 16 bytes of an operand, a thread and a stage

// The row that a thread's copy is of, and which 16 bytes of its 64.
__device__ inline int copied_row(int copy) { return copy * (kThreads / kChunks) + threadIdx.x / kChunks; }
__device__ inline int copied_chunk() { return threadIdx.x % kChunks; }

// Where code k of a patch lies behind its first. Whole chunks lie together where lines of patches are aligned.
__device__ inline int64_t within(const Patches& patches, int64_t k) {
  const uint32_t piece = static_cast<uint32_t>(patches.piece()), at = static_cast<uint32_t>(k);
  return at / piece * patches.line() + at % piece;
}

// 16 codes of a patch from k on, zeros past the depth.
__device__ inline void copy_patch(const Tiled& t, uint32_t to, const int8_t* patch, int64_t k) {
  if (t.aligned) return copy_async(to, patch + (k < t.p.k ? within(t.p.patches, k) : 0), k < t.p.k ? 16 : 0);
  uint32_t words[4] = {};
  for (int i = 0; i < 16 && k + i < t.p.k; ++i) {
    words[i / 4] |= (static_cast<uint32_t>(patch[within(t.p.patches, k + i)]) & 0xffu) << (8 * (i % 4));
  }
  store_words(to, words);
}

// rows: where the rows of a that this thread copies begin; null past the last.
template <bool patched>
__device__ inline void fill(const Tiled& t, uint32_t to, const int8_t* const (&rows)[kCopies], int64_t n,
                            int64_t step) {
#pragma unroll
  for (int i = 0; i < kCopies; ++i) {
    const int row = copied_row(i), chunk = copied_chunk();
    const int64_t k = step * kDepth + chunk * 16;
    const uint32_t at = to + swizzled<kChunks>(row, chunk);
    const bool a = rows[i] && k < t.p.k, b = n + row < t.p.n && k < t.ldc;
    if constexpr (patched) copy_patch(t, at, a ? rows[i] : t.p.a, a ? k : t.p.k);
    else copy_codes(at, a ? rows[i] + k : t.p.a, a ? t.p.k - k : 0, t.aligned);
    copy_async(at + kOperandBytes, b ? t.codes + (n + row) * t.ldc + k : t.codes, b ? 16 : 0);
  }
}

template <bool patched>
__global__ void __launch_bounds__(kThreads, 4) tiled_kernel(const __grid_constant__ Tiled t) {
  __shared__ OutputRow rows[kTile];
  __shared__ int64_t images[kTile];
  __shared__ OutputColumn columns[kTile];
  const uint32_t ring = shared_address(dynamic_shared());
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int warp_m = warp % 2 * 32, warp_n = warp / 2 * 32;
  const int64_t m = static_cast<int64_t>(blockIdx.x) * kTile, n = static_cast<int64_t>(blockIdx.y) * kTile;
  const int64_t steps = (t.p.k + kDepth - 1) / kDepth;
  const int8_t* copied[kCopies];
#pragma unroll
  for (int i = 0; i < kCopies; ++i) {
    const int64_t row = m + copied_row(i);
    copied[i] = row < t.p.m ? t.p.a + (patched ? t.p.patches.start(row) : row * t.p.a_stride) : nullptr;
  }
  int64_t filling = 0;
#pragma unroll
  for (int s = 0; s < kStages - 1; ++s, ++filling) {
    if (filling < steps) fill<patched>(t, ring + s * kStageBytes, copied, n, filling);
    commit_copies();
  }
  if (threadIdx.x < kTile) {
    if (m + threadIdx.x < t.p.m) {
      const RowPlace place = place_of(t.p.rows, m + threadIdx.x);
      const Epilogue& e = t.p.epilogue;
      rows[threadIdx.x] = output_row(e, row_entries(e, place.t, e.requantize));
      images[threadIdx.x] = place.image;
    }
    if (n + threadIdx.x < t.p.n) columns[threadIdx.x] = output_column(t.p.epilogue, t.w_sum, n + threadIdx.x);
  }

  int32_t sums[2][4][4] = {};
  int stage = 0;
  for (int64_t step = 0; step < steps; ++step, ++filling) {
    wait_copies<kStages - 2>();
    __syncthreads();  // all copies of this stage are in, and all have read the one that is filled next
    if (filling < steps) fill<patched>(t, ring + (stage + kStages - 1) % kStages * kStageBytes, copied, n, filling);
    commit_copies();
    const uint32_t from = ring + stage * kStageBytes;
#pragma unroll
    for (int h = 0; h < kDepth / 32; ++h) {
      uint32_t a[2][4], b[2][4];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        load_matrices(from + swizzled<kChunks>(warp_m + i * 16 + lane % 16, 2 * h + lane / 16), a[i]);
        // Sixteen columns: those of the first eight in registers 0 and 1, of the others in 2 and 3.
        load_matrices(from + kOperandBytes +
                          swizzled<kChunks>(warp_n + i * 16 + lane / 16 * 8 + lane % 8, 2 * h + lane / 8 % 2),
                      b[i]);
      }
#pragma unroll
      for (int i = 0; i < 2; ++i) {
#pragma unroll
        for (int j = 0; j < 4; ++j) multiply(sums[i][j], a[i], b[j / 2] + j % 2 * 2);
      }
    }
    stage = stage == kStages - 1 ? 0 : stage + 1;
  }

  __syncthreads();  // a product without any step has not had one
#pragma unroll
  for (int i = 0; i < 2; ++i) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const Epilogue& e = t.p.epilogue;
      const int row = warp_m + i * 16 + lane / 4 + half * 8;
      const auto column_of = [=](int c) { return warp_n + c / 2 * 8 + lane % 4 * 2 + c % 2; };
      const auto inside = [&](int c) { return m + row < t.p.m && n + column_of(c) < t.p.n; };
      float y[8] = {};
#pragma unroll
      for (int c = 0; c < 8; ++c) {
        const int column = column_of(c);
        const int32_t sum = sums[i][c / 2][half * 2 + c % 2];
        if (!inside(c)) continue;
        const OutputOperands own = output_operands(e, images[row], m + row, n + column);
        y[c] = output_value(e, rows[row], columns[column], own, sum);
      }
      if (e.rotation) PairsOfColumns<2>::rotate<8>(y, e.rotation, [&](int c) { return n + column_of(c); });
#pragma unroll
      for (int c = 0; c < 8; ++c) {
        if (inside(c)) store_value(e, rows[row], (m + row) * t.p.n + n + column_of(c), y[c]);
      }
    }
  }
}

size_t no_workspace(const CodesGemm&) { return 0; }
bool always(const CodesGemm&) { return true; }

cudaError_t launch_tiled(const CodesGemm& g) {
  const int64_t tiles_m = (g.problem.m + kTile - 1) / kTile, tiles_n = (g.problem.n + kTile - 1) / kTile;
  if (tiles_m > 0x7fffffff || tiles_n > 65535) return cudaErrorInvalidConfiguration;
  const bool aligned = reinterpret_cast<uintptr_t>(g.problem.a) % 16 == 0 && g.problem.a_stride % 16 == 0;
  const auto kernel = g.problem.patches.height ? tiled_kernel<true> : tiled_kernel<false>;
  const Tiled t{g.problem, g.codes, g.ldc, g.w_sum, aligned};
  const dim3 grid(static_cast<unsigned>(tiles_m), static_cast<unsigned>(tiles_n));
  return launch_kernel(kernel, grid, kThreads, kStages * kStageBytes, g.stream, t);
}

}  // namespace

const TileConfig& tiled_config() {
  static const TileConfig config{"tiled.64x64x64", 80, kTile, kTile, kDepth, no_workspace, always, launch_tiled};
  return config;
}

}  // namespace ptq4arvg::cuda
