// quantize, gated or not: a warp takes a piece of a row, four 16-byte loads a lane at once. Bound by memory.
#include "kernels/cuda/rotate.cuh"
#include "kernels/cuda/rows.cuh"
#include "kernels/cuda/rowwise.h"
#include "kernels/cuda/vector.cuh"

#include <type_traits>

namespace ptq4arvg::cuda {
namespace {

constexpr int kWarps = 8;
constexpr int kLoads = 4;  // of a lane

// The rotation of a warp's columns, `loads` times 32 lanes of W.
template <int W>
__device__ inline void rotate(float (*values)[W], int loads, int block, int64_t k) {
#pragma unroll
  for (int i = 0; i < kLoads; ++i) {
    if (i < loads) rotate_in_warp<W>(values[i], block, k + 32 * W * i);
  }
  if constexpr (W == 1) {  // a lane's columns are 32 apart, so that stages are left
    static_assert(32 * kLoads >= kMaxRotation);
#pragma unroll
    for (int stride = 1; stride < kLoads; stride *= 2) {
      if (32 * stride >= block) return;
#pragma unroll
      for (int i = 0; i < kLoads; ++i) {
        if (i & stride) continue;
        const float a = values[i][0], b = values[i + stride][0];
        values[i][0] = add(a, b);
        values[i + stride][0] = sub(a, b);
      }
    }
  }
}

// W elements at a time: what fills 16 bytes, or 1 where rows are not aligned.
template <DType T, int W, bool Rotated, bool Gated>
__global__ void __launch_bounds__(32 * kWarps) quantize_kernel(const __grid_constant__ QuantizeProblem p) {
  wait_for_earlier_kernels();
  let_later_kernels_start();
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.y;
  if (row >= p.m) return;
  const int64_t chunks = p.k / W;
  const int64_t begin = static_cast<int64_t>(blockIdx.y) * (32 * kLoads), first = begin + threadIdx.x;
  const int loads = static_cast<int>((chunks - begin + 31) / 32);  // of the warp, that is, of any of its lanes
  const int64_t start = row * p.x.row_stride;
  float values[kLoads][W] = {};
#pragma unroll
  for (int i = 0; i < kLoads; ++i) {
    const int64_t chunk = first + 32 * i;
    if (chunk >= chunks) break;
    load_elements<T, W>(p.x, start + chunk * W, values[i]);
  }
  if constexpr (Gated) {
    float gated[kLoads][W] = {};
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
      const int64_t chunk = first + 32 * i;
      if (chunk >= chunks) break;
      load_elements<T, W>(p.x, start + p.k + chunk * W, gated[i]);
    }
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
      if (i >= loads) break;
      activate_all<W>(p.activation, values[i]);
#pragma unroll
      for (int j = 0; j < W; ++j) values[i][j] = mul(values[i][j], gated[i][j]);
    }
  }
  if constexpr (Rotated) rotate<W>(values, loads, p.rotation, first * W);
  const QuantizeRow to = table_row(p.table, place_of(p.rows, row).t);
#pragma unroll
  for (int i = 0; i < kLoads; ++i) {
    const int64_t chunk = first + 32 * i;
    if (chunk >= chunks) break;
    quantize_and_store<W>(p.out + row * p.k + chunk * W, values[i], to);
  }
}

template <DType T>
cudaError_t start(const QuantizeProblem& p, const Launch& launch) {
  constexpr int W = kWidth<T>;
  const bool wide = vector_rows(p.x) && p.k % W == 0 && reinterpret_cast<uintptr_t>(p.out) % W == 0;
  const int64_t chunks = wide ? p.k / W : p.k;
  const int64_t pieces = (chunks + 32 * kLoads - 1) / (32 * kLoads);
  const int64_t blocks = (p.m + kWarps - 1) / kWarps;
  if (blocks > 0x7fffffff || pieces > 65535) return cudaErrorInvalidConfiguration;
  const dim3 grid(static_cast<unsigned>(blocks), static_cast<unsigned>(pieces)), block(32, kWarps);
  const auto run = [&](auto* kernel) { return launch_early(kernel, grid, block, 0, launch, p); };
  const auto choose = [&](auto rotated, auto gated) {
    constexpr bool kRotated = decltype(rotated)::value, kGated = decltype(gated)::value;
    return run(wide ? quantize_kernel<T, W, kRotated, kGated> : quantize_kernel<T, 1, kRotated, kGated>);
  };
  const std::true_type yes;
  const std::false_type no;
  if (p.gated) return p.rotation ? choose(yes, yes) : choose(no, yes);
  return p.rotation ? choose(yes, no) : choose(no, no);
}

}  // namespace

cudaError_t quantize(const QuantizeProblem& p, const Launch& launch) {
  if (p.x.dtype == DType::f32) return start<DType::f32>(p, launch);
  return p.x.dtype == DType::bf16 ? start<DType::bf16>(p, launch) : start<DType::f16>(p, launch);
}

}  // namespace ptq4arvg::cuda
