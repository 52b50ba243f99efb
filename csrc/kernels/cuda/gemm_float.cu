// A warp a column and up to four rows: lanes share k, and their sums are added by halving. For a few sink tokens; its
// rows are few and its weights are read once for each four of them.
#include "kernels/cuda/gemm_float.h"

namespace ptq4arvg::cuda {
namespace {

constexpr int kWarps = 4, kRows = 4;

struct GemmFloat {
  GemmFloatProblem p;
  const int8_t* codes;
  int64_t ldc;  // a multiple of 4; codes are aligned to 4
};

__global__ void __launch_bounds__(32 * kWarps) gemm_float_kernel(const __grid_constant__ GemmFloat g) {
  const int64_t n = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.y;
  const int64_t first = static_cast<int64_t>(blockIdx.y) * kRows;
  if (n >= g.p.n) return;
  const int rows = static_cast<int>(g.p.m - first < kRows ? g.p.m - first : kRows);
  float sums[kRows] = {};
  for (int64_t k = threadIdx.x * 4; k < g.p.k; k += 128) {
    const uint32_t word = *reinterpret_cast<const uint32_t*>(g.codes + n * g.ldc + k);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (k + i >= g.p.k) break;
      const float w = static_cast<float>(static_cast<int8_t>(word >> (8 * i)));
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        if (r >= rows) break;
        const float x = load_float(g.p.x.data, g.p.x.dtype, (first + r) * g.p.x.row_stride + k + i);
        sums[r] = add(sums[r], mul(x, w));
      }
    }
  }
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
#pragma unroll
    for (int step = 16; step > 0; step /= 2) sums[r] = add(sums[r], __shfl_xor_sync(0xffffffffu, sums[r], step));
  }
  if (threadIdx.x != 0) return;
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    if (r >= rows) break;
    float y = mul(g.p.w_scale[n], sums[r]);
    if (g.p.bias) y = add(y, g.p.bias[n]);
    store_float(g.p.out, g.p.out_dtype, (first + r) * g.p.n + n, activate(g.p.activation, y));
  }
}

}  // namespace

cudaError_t gemm_float(const GemmFloatProblem& p, const int8_t* codes, int64_t ldc, const Launch& launch) {
  if (ldc % 4) return cudaErrorInvalidValue;
  const int64_t blocks = (p.n + kWarps - 1) / kWarps;
  const dim3 block(32, kWarps);
  // Grids are at most 65535 high: more rows take several launches.
  constexpr int64_t kMost = 65535 * kRows;
  const int64_t out_size = p.out_dtype == DType::f32 ? 4 : 2, x_size = p.x.dtype == DType::f32 ? 4 : 2;
  for (int64_t m = 0; m < p.m; m += kMost) {
    GemmFloat g{p, codes, ldc};
    g.p.m = p.m - m < kMost ? p.m - m : kMost;
    g.p.x.data = static_cast<const char*>(p.x.data) + m * p.x.row_stride * x_size;
    g.p.out = static_cast<char*>(p.out) + m * p.n * out_size;
    const dim3 grid(static_cast<unsigned>(blocks), static_cast<unsigned>((g.p.m + kRows - 1) / kRows));
    if (const cudaError_t error = launch_kernel(gemm_float_kernel, grid, block, 0, launch.stream, g)) return error;
  }
  return cudaSuccess;
}

}  // namespace ptq4arvg::cuda
