// The decode product as a whole: one kernel, or partial sums and a second kernel that adds them up.
#include "kernels/cuda/decode.h"
#include "kernels/cuda/finish.cuh"
#include "kernels/cuda/rows.cuh"

namespace ptq4arvg::cuda {
namespace {

struct AddUp {
  GemmProblem p;
  const int32_t* packed_sums;
  const int32_t* partial;
  int splits;
};

__global__ void __launch_bounds__(128) add_up_kernel(const __grid_constant__ AddUp s) {
  const int64_t n = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x, m = blockIdx.y;
  const bool inside = n < s.p.n;
  const Epilogue& e = s.p.epilogue;
  const RowPlace place = place_of(s.p.rows, m);
  const RowEntries entries = row_entries(e, place.t, e.requantize);
  const OutputOperands own = inside ? output_operands(e, place.image, m, n) : OutputOperands{};
  const OutputColumn column = inside ? output_column(e, s.packed_sums, n) : OutputColumn{};
  int32_t sum = 0;
  for (int i = 0; i < s.splits && inside; ++i) sum += s.partial[(i * s.p.m + m) * s.p.n + n];
  finish_neighbours(e, output_row(e, entries), column, own, m, n, s.p.n, inside, sum);
}

}  // namespace

cudaError_t decode_gemm(const GemmProblem& p, const DecodePlan& plan, void* workspace, const Launch& launch) {
  if (p.m < 1 || p.m > kDecodeRows || plan.blocks > 0x7fffffff) return cudaErrorInvalidValue;
  int32_t* partial = plan.splits > 1 ? static_cast<int32_t*>(workspace) : nullptr;
  DecodeLauncher* const run = p.bits == 8 ? decode_w8 : p.bits == 6 ? decode_w6 : decode_w4;
  const cudaError_t error = run(p, plan, partial, launch);
  if (error != cudaSuccess || !partial) return error;
  const int64_t sums = layout_of(p.n, p.k, p.bits).sums;
  const AddUp s{p, reinterpret_cast<const int32_t*>(p.w + sums), partial, plan.splits};
  const dim3 grid(static_cast<unsigned>((p.n + 127) / 128), static_cast<unsigned>(p.m));
  return launch_kernel(add_up_kernel, grid, 128, 0, launch.stream, s);
}

}  // namespace ptq4arvg::cuda
