// The int8 GEMM of sm_80 to sm_89: CUTLASS 2.x with mma.m16n8k32 and cp.async stages, and the fused epilogue.
#pragma once

#include "kernels/cuda/cutlass/no_asserts.h"

#include <cutlass/gemm/device/gemm_universal_base.h>
#include <cutlass/gemm/kernel/default_gemm_universal_with_visitor.h>

#include "kernels/cuda/cutlass/config.h"
#include "kernels/cuda/cutlass/sm80_visitor.h"

namespace ptq4arvg::cuda {

// The tile of a block, the tile of a warp and the number of stages in shared memory.
template <int block_m, int block_n, int block_k, int warp_m, int warp_n, int stages>
struct Sm80Gemm {
  using Block = cutlass::gemm::GemmShape<block_m, block_n, block_k>;
  using Warp = cutlass::gemm::GemmShape<warp_m, warp_n, block_k>;

  template <Output output>
  struct Launch {
    using Row = cutlass::layout::RowMajor;
    using Column = cutlass::layout::ColumnMajor;
    using Swizzle = cutlass::gemm::threadblock::GemmIdentityThreadblockSwizzle<8>;
    // float, 4: how CUTLASS lays out threads over the tile; the visitor stores what the output type asks for.
    using ThreadMap = cutlass::epilogue::threadblock::OutputTileThreadLayout<Block, Warp, float, 4, 1>;
    using Visitor = Sm80Visitor<ThreadMap, output>;
    using Plain = typename cutlass::gemm::kernel::DefaultGemmUniversal<
        int8_t, Row, cutlass::ComplexTransform::kNone, 16, int8_t, Column, cutlass::ComplexTransform::kNone, 16, float,
        Row, int32_t, cutlass::arch::OpClassTensorOp, cutlass::arch::Sm80, Block, Warp,
        cutlass::gemm::GemmShape<16, 8, 32>, cutlass::epilogue::thread::LinearCombination<float, 4, int32_t, float>,
        Swizzle, stages, cutlass::arch::OpMultiplyAddSaturate>::GemmKernel;
    // One stage and a loop over the steps that is not unrolled: three activation functions make a step long.
    using Fused = cutlass::epilogue::threadblock::EpilogueWithVisitorCallbacks<typename Plain::Epilogue, Visitor, 1, 0>;
    using Kernel = cutlass::gemm::kernel::GemmWithEpilogueVisitor<typename Plain::Mma, Fused, Swizzle>;
    using Gemm = cutlass::gemm::device::GemmUniversalBase<Kernel>;

    static cudaError_t run(const CodesGemm& g) {
      const GemmProblem& p = g.problem;
      Epilogue epilogue = p.epilogue;
      epilogue.w_sum = g.w_sum;
      const cutlass::gemm::GemmCoord shape(static_cast<int>(p.m), static_cast<int>(p.n), padded_depth(g));
      typename Gemm::Arguments arguments(cutlass::gemm::GemmUniversalMode::kGemm, shape, 1, {epilogue, p.rows}, p.a,
                                         g.codes, nullptr, nullptr, 0, 0, 0, 0, p.a_stride, g.ldc, 0, 0);
      Gemm gemm;
      if (gemm.initialize(arguments, nullptr, g.stream) != cutlass::Status::kSuccess) return failure();
      return gemm.run(g.stream) == cutlass::Status::kSuccess ? cudaSuccess : failure();
    }

    static cudaError_t failure() {
      const cudaError_t error = cudaGetLastError();
      return error != cudaSuccess ? error : cudaErrorInvalidConfiguration;
    }
  };

  static constexpr int64_t kSharedBytes = Launch<Output::f32>::Gemm::kSharedStorageSize;

  // sm_90 has its own kernels; this code is not compiled for it.
  static bool can_run(const CodesGemm& g) {
    const int64_t shared = g.sm == 80 || g.sm == 87 ? 163 << 10 : 99 << 10;
    return g.sm >= 80 && g.sm < 90 && kSharedBytes <= shared && operands_fit(g) && epilogue_fits(g, 4);
  }

  static cudaError_t launch(const CodesGemm& g) { return launch_by_output<Launch>(g); }

  static TileConfig config(const char* name) {
    return {name, 80, block_m, block_n, block_k, no_workspace, can_run, launch};
  }
};

}  // namespace ptq4arvg::cuda
