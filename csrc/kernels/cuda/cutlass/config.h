// What the configurations of all architectures share: alignment rules and the choice of the output type.
#pragma once

#include "kernels/cuda/cutlass/memory.h"
#include "kernels/cuda/gemm_cuda.h"

namespace ptq4arvg::cuda {

inline bool aligned(const void* p, int64_t bytes) { return reinterpret_cast<uintptr_t>(p) % bytes == 0; }

inline int64_t dtype_bytes(DType d) { return d == DType::f32 ? 4 : 2; }

// A matrix that is read in groups of `width` elements, or no matrix.
inline bool aligned(const FloatMatrix& x, int64_t width) {
  return !x.data || (aligned(x.data, width * dtype_bytes(x.dtype)) && x.row_stride % width == 0);
}

// CUTLASS reads rows of A and of the codes in pieces of 16 bytes, and sizes are 32 bits.
inline bool operands_fit(const CodesGemm& g) {
  const GemmProblem& p = g.problem;
  constexpr int64_t kLimit = int64_t{1} << 31;
  return aligned(p.a, 16) && p.a_stride % 16 == 0 && aligned(g.codes, 16) && g.ldc % 16 == 0 &&
         p.m < kLimit - 512 && p.n < kLimit - 512 && p.rows.tokens < kLimit && p.n > 0 && p.k > 0;
}

// Column vectors, gate, residual and output in groups of `width` elements.
inline bool epilogue_fits(const CodesGemm& g, int64_t width) {
  const GemmProblem& p = g.problem;
  const Epilogue& e = p.epilogue;
  return p.n % width == 0 && aligned(e.w_scale, width * 4) && aligned(e.bias, width * 4) &&
         aligned(g.w_sum, width * 4) && aligned(e.gate, width) && aligned(e.residual, width) &&
         aligned(e.out, width * output_bytes(output_of(e)));
}

// The rows of A and of the codes reach to the next multiple of 16, and the codes are zero there: what A holds there
// does not count, and the depth that CUTLASS sees can always be a multiple of its 16-byte pieces.
inline int padded_depth(const CodesGemm& g) { return static_cast<int>((g.problem.k + 15) / 16 * 16); }

inline size_t no_workspace(const CodesGemm&) { return 0; }

// Launch<output>::run(g) for the output type that the problem asks for; nothing for an empty problem. codes: may that be
// codes?
template <template <Output> class Launch, bool codes = true>
cudaError_t launch_by_output(const CodesGemm& g) {
  if (g.problem.m == 0) return cudaSuccess;
  switch (output_of(g.problem.epilogue)) {
    case Output::codes:
      if constexpr (codes) return Launch<Output::codes>::run(g);
      break;
    case Output::f32:
      return Launch<Output::f32>::run(g);
    case Output::f16:
      return Launch<Output::f16>::run(g);
    case Output::bf16:
      return Launch<Output::bf16>::run(g);
  }
  return cudaErrorInvalidValue;
}

}  // namespace ptq4arvg::cuda
