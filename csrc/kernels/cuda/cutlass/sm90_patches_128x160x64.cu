// Convolutions to multiples of 160 channels, which VAR's tokenizer has: at 128 a fourth of a tile would be empty. Two
// warp groups share a tile, whose sums would not fit the registers of one.
#define CUTE_SM90_EXTENDED_MMA_SHAPES_ENABLED  // wgmma of 160 columns
#include "kernels/cuda/cutlass/sm90_gemm.h"
#include "kernels/cuda/cutlass/table.h"

namespace ptq4arvg::cuda {

TileConfig sm90_patches_128x160x64() {
  return Sm90Gemm<128, 160, 64, 2, Cooperative, false, true>::config("sm90_patches_128x160x64");
}

}  // namespace ptq4arvg::cuda
