// For up to 32 rows: the weights are the left operand, so that no row of a tile is multiplied for nothing.
#include "kernels/cuda/cutlass/sm90_gemm.h"
#include "kernels/cuda/cutlass/table.h"

namespace ptq4arvg::cuda {

TileConfig sm90_swap_32x128x128() {
  return Sm90Gemm<128, 32, 128, 1, Cooperative, true>::config("sm90_swap_32x128x128");
}

}  // namespace ptq4arvg::cuda
