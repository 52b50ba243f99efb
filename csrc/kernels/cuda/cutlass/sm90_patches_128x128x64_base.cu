// Convolutions. Pairs of blocks share what they read of the weights: int8 tiles of this size want more from the L2 than
// it gives.
#include "kernels/cuda/cutlass/sm90_gemm.h"
#include "kernels/cuda/cutlass/table.h"

namespace ptq4arvg::cuda {

TileConfig sm90_patches_128x128x64() {
  return Sm90Gemm<128, 128, 64, 2, Pingpong, false, true>::config("sm90_patches_128x128x64");
}

}  // namespace ptq4arvg::cuda
