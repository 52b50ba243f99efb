// The main loop of a convolution on sm_90a: CUTLASS's for products, but its producer copies patches of maps.
//
// TMA's im2col mode finds the pixels of a tile of rows by itself, so that nothing is copied twice in memory. A step of
// the depth is a piece of kStep channels of one pixel of the patch; past the last channel the copied codes are zeros,
// and what the weights hold there, the next pixel's, does not count.
#pragma once

#include <cuda.h>

#include <cute/tensor.hpp>
#include <cutlass/cuda_host_adapter.hpp>

#include "kernels/cuda/gemm_cuda.h"

namespace ptq4arvg::cuda {

// Offsets within a patch and steps back from a map's ends have 8 bits, sizes 31; addresses are multiples of 16.
inline bool patches_fit(const Patches& p) {
  constexpr int64_t kLimit = int64_t{1} << 31;
  return p.height > 0 && p.kernel <= 128 && p.channels % 16 == 0 && p.map() < kLimit;
}

// Mainloop: a collective of CUTLASS for int8 operands with K contiguous. The blocks of a cluster are neighbours in the
// rows, and each of them copies its share of the weights to all.
template <class Mainloop>
struct PatchMainloop : Mainloop {
  using TileShape = typename Mainloop::TileShape;
  static constexpr int kRows = cute::size<0>(TileShape{}), kColumns = cute::size<1>(TileShape{}),
                       kStep = cute::size<2>(TileShape{});
  using Cluster = typename Mainloop::DispatchPolicy::ClusterShape;
  static constexpr int kBlocks = cute::size(Cluster{}), kShare = kColumns / kBlocks;
  static_assert(cute::size<0>(Cluster{}) == kBlocks && kColumns % kBlocks == 0);
  // A box lies in shared memory as rows of kStep bytes, whose 16-byte pieces are exchanged over that length.
  template <class Smem, int rows>
  static constexpr bool as_boxes_lie() {
    constexpr auto plain = Smem{}.layout_b();
    return plain(0, 1, 0) == 1 && plain(1, 0, 0) == kStep && plain(8, 0, 0) == 8 * kStep &&
           plain(rows - 1, 0, 0) == (rows - 1) * kStep && plain(0, 0, 1) == rows * kStep;
  }
  static_assert(kStep == 64 || kStep == 128);
  static_assert(as_boxes_lie<typename Mainloop::SmemLayoutA, kRows>());
  static_assert(as_boxes_lie<typename Mainloop::SmemLayoutB, kColumns>());

  struct Params {
    CUtensorMap patches, weights;
    int32_t height, width, channels, kernel;
    uint32_t tma_transaction_bytes = Mainloop::TmaTransactionBytes;

    CUTLASS_HOST_DEVICE int32_t pieces() const { return (channels + kStep - 1) / kStep; }
    CUTLASS_HOST_DEVICE int32_t steps() const { return kernel * kernel * pieces(); }
  };
  using Arguments = Params;

  // What the driver has to say of an input that it does not take: not CUDA_SUCCESS.
  static CUresult describe(const CodesGemm& g, Arguments* out) {
    const Patches& p = g.problem.patches;
    out->height = static_cast<int32_t>(p.height), out->width = static_cast<int32_t>(p.width);
    out->channels = static_cast<int32_t>(p.channels), out->kernel = static_cast<int32_t>(p.kernel);
    constexpr auto kSwizzle = kStep == 64 ? CU_TENSOR_MAP_SWIZZLE_64B : CU_TENSOR_MAP_SWIZZLE_128B;
    const cuuint32_t ones[4] = {1, 1, 1, 1};
    const cuuint64_t images = g.problem.m / (p.height * p.width);
    const cuuint64_t map_sizes[4] = {cuuint64_t(p.channels), cuuint64_t(p.width + p.kernel - 1),
                                     cuuint64_t(p.height + p.kernel - 1), images};
    const cuuint64_t map_strides[3] = {cuuint64_t(p.channels), cuuint64_t(p.line()), cuuint64_t(p.map())};
    // Patches begin at all pixels but the last ones of lines and of the map.
    const int lower[2] = {0, 0}, upper[2] = {1 - out->kernel, 1 - out->kernel};
    if (const CUresult error = CUTLASS_CUDA_DRIVER_WRAPPER_CALL(cuTensorMapEncodeIm2col)(
            &out->patches, CU_TENSOR_MAP_DATA_TYPE_UINT8, 4, const_cast<int8_t*>(g.problem.a), map_sizes, map_strides,
            lower, upper, kStep, kRows, ones, CU_TENSOR_MAP_INTERLEAVE_NONE, kSwizzle,
            CU_TENSOR_MAP_L2_PROMOTION_L2_128B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE)) {
      return error;
    }
    const cuuint64_t sizes[2] = {cuuint64_t(g.ldc), cuuint64_t(g.problem.n)}, strides[1] = {cuuint64_t(g.ldc)};
    const cuuint32_t box[2] = {kStep, kShare};
    return CUTLASS_CUDA_DRIVER_WRAPPER_CALL(cuTensorMapEncodeTiled)(
        &out->weights, CU_TENSOR_MAP_DATA_TYPE_UINT8, 2, const_cast<int8_t*>(g.codes), sizes, strides, box, ones,
        CU_TENSOR_MAP_INTERLEAVE_NONE, kSwizzle, CU_TENSOR_MAP_L2_PROMOTION_L2_128B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  }

  template <class Shape>
  static Params to_underlying_arguments(const Shape&, const Arguments& arguments, void*) {
    return arguments;
  }
  template <class Shape>
  static bool can_implement(const Shape&, const Arguments&) {
    return true;
  }

  CUTLASS_DEVICE static void prefetch_tma_descriptors(const Params& params) {
    cute::prefetch_tma_descriptor(reinterpret_cast<const cute::TmaDescriptor*>(&params.patches));
    cute::prefetch_tma_descriptor(reinterpret_cast<const cute::TmaDescriptor*>(&params.weights));
  }

  // Nothing but sizes: (row, depth, tile of rows, step, 1) and (column, depth, tile of columns, step, 1).
  template <class Shape>
  CUTLASS_DEVICE auto load_init(const Shape& shape, const Params& params) const {
    const auto tiles = [&](auto tile, int32_t length) {
      return cute::make_identity_tensor(cute::make_shape(tile, cute::Int<kStep>{},
                                                         (length + decltype(tile)::value - 1) / decltype(tile)::value,
                                                         params.steps(), cute::_1{}));
    };
    return cute::make_tuple(tiles(cute::Int<kRows>{}, cute::get<0>(shape)),
                            tiles(cute::Int<kColumns>{}, cute::get<1>(shape)));
  }

  template <class Inputs, class BlockCoord, class Steps>
  CUTLASS_DEVICE void load(const Params& params, typename Mainloop::MainloopPipeline pipeline,
                           typename Mainloop::PipelineState state, const Inputs&, const BlockCoord& block, Steps,
                           int count, int, uint32_t rank, typename Mainloop::TensorStorage& shared) {
    if (!cute::elect_one_sync()) return;
    const int32_t row = static_cast<int32_t>(cute::get<0>(block)) * kRows, share = static_cast<int32_t>(rank) * kShare,
                  column = static_cast<int32_t>(cute::get<1>(block)) * kColumns + share;
    const int32_t line = row / params.width, x = row - line * params.width;
    const int32_t image = line / params.height, y = line - image * params.height;
    int32_t channel = 0;
    uint16_t right = 0, down = 0;
    for (; count > 0; --count) {
      pipeline.producer_acquire(state);
      uint64_t* barrier = reinterpret_cast<uint64_t*>(pipeline.producer_get_barrier(state));
      const int stage = state.index();
      cute::SM90_TMA_LOAD_IM2COL_4D::copy(&params.patches, barrier, shared.smem_A.data() + stage * kRows * kStep,
                                          channel, x, y, image, right, down);
      const int32_t k = (down * params.kernel + right) * params.channels + channel;
      copy_weights(&params.weights, barrier, shared.smem_B.data() + (stage * kColumns + share) * kStep, k, column);
      ++state;
      channel += kStep;
      if (channel < params.channels) continue;
      channel = 0;
      if (++right < params.kernel) continue;
      right = 0;
      ++down;
    }
  }

  CUTLASS_DEVICE static void copy_weights(const CUtensorMap* map, uint64_t* barrier, void* to, int32_t k,
                                          int32_t column) {
    constexpr auto kHint = static_cast<uint64_t>(cute::TMA::CacheHintSm90::EVICT_NORMAL);
    if constexpr (kBlocks == 1) {
      cute::SM90_TMA_LOAD_2D::copy(map, barrier, kHint, to, k, column);
    } else {
      constexpr uint16_t kAll = (1 << kBlocks) - 1;
      cute::SM90_TMA_LOAD_MULTICAST_2D::copy(map, barrier, kAll, kHint, to, k, column);
    }
  }

  template <class Accumulators>
  CUTLASS_DEVICE void mma(typename Mainloop::MainloopPipeline pipeline, typename Mainloop::PipelineState state,
                          Accumulators& sums, int count, int thread, typename Mainloop::TensorStorage& shared,
                          const Params&) {
    const typename Mainloop::Params unused{};
    Mainloop::mma(pipeline, state, sums, count, thread, shared, unused);
  }
};

}  // namespace ptq4arvg::cuda
