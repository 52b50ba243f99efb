// The int8 GEMM of sm_90a: CUTLASS 3.x with wgmma, TMA and specialized warps, and the fused epilogue tree.
#pragma once

#include "kernels/cuda/cutlass/no_asserts.h"

// CUTLASS's own waits of programmatic dependent launch: its kernels keep the rule of early_start.h. Its stream-K does not
// compile with them in 4.2; such kernels never start early, and later ones not before they end.
#if !defined(PTQ4ARVG_NO_EARLY_START)
#define CUTLASS_ENABLE_GDC_FOR_SM90
#endif

#include <cutlass/epilogue/collective/collective_builder.hpp>
#include <cutlass/epilogue/fusion/sm90_callbacks_tma_warpspecialized.hpp>
#include <cutlass/gemm/collective/collective_builder.hpp>
#include <cutlass/gemm/device/gemm_universal_adapter.h>
#include <cutlass/gemm/kernel/gemm_universal.hpp>

#include "kernels/cuda/cutlass/config.h"
#include "kernels/cuda/cutlass/sm90_finish.h"
#include "kernels/cuda/cutlass/sm90_patches.h"

namespace ptq4arvg::cuda {

// Two consumer warp groups: each with a tile of its own, one multiplying while the other is in its epilogue, or both
// on one tile, which may then be twice as large. The epilogue goes through a tile in pieces of 32 columns; CUTLASS's
// choice of 64 for int8 output holds twice the columns' constants, which do not fit the registers.
struct Pingpong {
  using Mainloop = cutlass::gemm::KernelTmaWarpSpecializedPingpong;
  using Epilogue = cutlass::epilogue::TmaWarpSpecialized;
  using Subtile = cute::Shape<cute::_64, cute::_32>;
  using Scheduler = cutlass::gemm::PersistentScheduler;
};
struct Cooperative {
  using Mainloop = cutlass::gemm::KernelTmaWarpSpecializedCooperative;
  using Epilogue = cutlass::epilogue::TmaWarpSpecializedCooperative;
  using Subtile = cute::Shape<cute::_128, cute::_32>;
  using Scheduler = cutlass::gemm::PersistentScheduler;
};
// Blocks share the depth of tiles that are too few for the device, and the last block of a tile adds up the sums of
// the others. They are integers, so that the order in which they are added does not matter.
struct StreamK : Cooperative {
  using Scheduler = cutlass::gemm::StreamKScheduler;
};

// swapped: the weights are the left operand, so that the 64 or more rows that wgmma wants are channels, and the
// columns, 8 at least, are tokens. The block is CUTLASS's: its first size counts channels then. patched: rows are patches
// of maps, for convolutions; their outputs are floats.
template <int block_m, int block_n, int block_k, int cluster_m, class Schedule, bool swapped = false,
          bool patched = false>
struct Sm90Gemm {
  using Block = cute::Shape<cute::Int<block_m>, cute::Int<block_n>, cute::Int<block_k>>;
  using Cluster = cute::Shape<cute::Int<cluster_m>, cute::_1, cute::_1>;
  static constexpr bool kStreamK = cute::is_same_v<typename Schedule::Scheduler, cutlass::gemm::StreamKScheduler>;

  using Reduction = cutlass::gemm::kernel::detail::PersistentTileSchedulerSm90StreamKParams::ReductionMode;

  template <Output output>
  struct Launch {
    using Row = cutlass::layout::RowMajor;
    using Column = cutlass::layout::ColumnMajor;
    using Out = typename CutlassElement<output>::Type;
    template <class Element>
    using PerChannel = cute::conditional_t<swapped, cutlass::epilogue::fusion::Sm90ColBroadcast<0, Block, Element>,
                                           cutlass::epilogue::fusion::Sm90RowBroadcast<0, Block, Element>>;
    using Finish = Sm90Finish<output, swapped>;
    using Source = cute::conditional_t<Finish::kFetches, Out, void>;  // a residual
    using Tree =
        cutlass::epilogue::fusion::Sm90EVT<Finish, PerChannel<float>, PerChannel<int32_t>, PerChannel<float>>;
    using OutLayout = cute::conditional_t<swapped, Column, Row>;  // of the product as CUTLASS sees it
    static constexpr int kOutWidth = 16 / output_bytes(output);  // TMA reads and writes rows in pieces of 16 bytes
    using CollectiveEpilogue = typename cutlass::epilogue::collective::CollectiveBuilder<
        cutlass::arch::Sm90, cutlass::arch::OpClassTensorOp, Block, Cluster,
        typename Schedule::Subtile, int32_t, float, Source, OutLayout, kOutWidth, Out, OutLayout, kOutWidth,
        typename Schedule::Epilogue, Tree>::CollectiveOp;
    using RowMainloop = typename cutlass::gemm::collective::CollectiveBuilder<
        cutlass::arch::Sm90, cutlass::arch::OpClassTensorOp, int8_t, Row, 16, int8_t, Column, 16, int32_t, Block,
        Cluster,
        cutlass::gemm::collective::StageCountAutoCarveout<static_cast<int>(
            sizeof(typename CollectiveEpilogue::SharedStorage))>,
        typename Schedule::Mainloop>::CollectiveOp;
    using CollectiveMainloop = cute::conditional_t<patched, PatchMainloop<RowMainloop>, RowMainloop>;
    using Kernel = cutlass::gemm::kernel::GemmUniversal<cute::Shape<int, int, int, int>, CollectiveMainloop,
                                                        CollectiveEpilogue, typename Schedule::Scheduler>;
    using Gemm = cutlass::gemm::device::GemmUniversalAdapter<Kernel>;

    // Can TMA bring the residual? If not, as where one row serves all, threads load it.
    static bool fetches(const GemmProblem& p) {
      const FloatMatrix& x = p.epilogue.residual;
      return Finish::kFetches && x.data && x.dtype == p.epilogue.out_dtype && aligned(x.data, 16) &&
             x.row_stride >= p.n && x.row_stride % kOutWidth == 0;
    }

    // *described: whether the driver takes the operands; only patches are described to it here.
    static typename Gemm::Arguments arguments_of(const CodesGemm& g, bool* described) {
      const GemmProblem& p = g.problem;
      const Epilogue& e = p.epilogue;
      typename Gemm::Arguments arguments;
      arguments.mode = cutlass::gemm::GemmUniversalMode::kGemm;
      const int m = static_cast<int>(p.m), n = static_cast<int>(p.n);
      int depth = padded_depth(g);
      *described = true;
      if constexpr (patched) {
        *described = CollectiveMainloop::describe(g, &arguments.mainloop) == CUDA_SUCCESS;
        depth = arguments.mainloop.steps() * block_k;
      }
      arguments.problem_shape = swapped ? cute::make_shape(n, m, depth, 1) : cute::make_shape(m, n, depth, 1);
      if constexpr (swapped) {
        arguments.mainloop.ptr_A = g.codes;
        arguments.mainloop.dA = {g.ldc, cute::_1{}, 0};
        arguments.mainloop.ptr_B = p.a;
        arguments.mainloop.dB = {p.a_stride, cute::_1{}, 0};
        arguments.epilogue.dD = {cute::_1{}, p.n, 0};
      } else {
        if constexpr (!patched) {
          arguments.mainloop.ptr_A = p.a;
          arguments.mainloop.dA = {p.a_stride, cute::_1{}, 0};
          arguments.mainloop.ptr_B = g.codes;
          arguments.mainloop.dB = {g.ldc, cute::_1{}, 0};
        }
        arguments.epilogue.dD = {p.n, cute::_1{}, 0};
      }
      arguments.epilogue.thread = {{e.w_scale},
                                   {e.a_zero ? g.w_sum : nullptr, 0},
                                   {e.bias, kNoBias},
                                   {e, p.rows, fetches(p)}};
      arguments.epilogue.ptr_D = static_cast<Out*>(e.out);
      if constexpr (Finish::kFetches) {  // described to the driver in any case
        const FloatMatrix source = fetches(p) ? e.residual : FloatMatrix{e.out, e.out_dtype, p.n};
        arguments.epilogue.ptr_C = static_cast<const Out*>(source.data);
        arguments.epilogue.dC = {source.row_stride, cute::_1{}, 0};
      }
      arguments.hw_info.sm_count = g.sm_count;
      if constexpr (kStreamK) arguments.scheduler.reduction_mode = Reduction::Nondeterministic;
      return arguments;
    }

    static size_t workspace(const CodesGemm& g) {
      bool described;
      return Gemm::get_workspace_size(arguments_of(g, &described));
    }

    static cudaError_t run(const CodesGemm& g) {
      bool described;
      const typename Gemm::Arguments arguments = arguments_of(g, &described);
      Gemm gemm;
      if (!described || Gemm::can_implement(arguments) != cutlass::Status::kSuccess) return cudaErrorInvalidValue;
      if (gemm.initialize(arguments, g.workspace, g.stream) != cutlass::Status::kSuccess) return failure();
      const bool early = g.early && !kStreamK;
      return gemm.run(g.stream, nullptr, early) == cutlass::Status::kSuccess ? cudaSuccess : failure();
    }

    static cudaError_t failure() {
      const cudaError_t error = cudaGetLastError();
      return error != cudaSuccess ? error : cudaErrorInvalidConfiguration;
    }
  };

  // sm_90a code runs on compute capability 9.0 alone.
  static bool can_run(const CodesGemm& g) {
    const int64_t width = 16 / output_bytes(output_of(g.problem.epilogue));
    if (patched && (!patches_fit(g.problem.patches) || g.problem.epilogue.requantize)) return false;
    if (!patched && g.problem.a_stride < g.problem.k) return false;  // TMA knows no rows within one another
    return g.sm == 90 && patched == (g.problem.patches.height > 0) && operands_fit(g) && epilogue_fits(g, 2) &&
           g.problem.n % width == 0 && aligned(g.problem.epilogue.out, 16);
  }

  // The partial sums and their barriers, which do not depend on the type of the output.
  static size_t workspace(const CodesGemm& g) {
    if constexpr (kStreamK) return g.problem.m == 0 ? 0 : Launch<Output::f32>::workspace(g);
    return 0;
  }

  static cudaError_t launch(const CodesGemm& g) { return launch_by_output<Launch, !patched>(g); }

  static TileConfig config(const char* name) {
    return {name, 90, swapped ? block_n : block_m, swapped ? block_m : block_n, block_k, workspace, can_run, launch,
            patched};
  }
};

}  // namespace ptq4arvg::cuda
