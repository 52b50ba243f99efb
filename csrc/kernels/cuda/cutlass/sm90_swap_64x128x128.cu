// For 33 to 64 rows: the weights are the left operand, so that no row of a tile is multiplied for nothing.
#include "kernels/cuda/cutlass/sm90_gemm.h"
#include "kernels/cuda/cutlass/table.h"

namespace ptq4arvg::cuda {

TileConfig sm90_swap_64x128x128() {
  return Sm90Gemm<128, 64, 128, 1, Cooperative, true>::config("sm90_swap_64x128x128");
}

}  // namespace ptq4arvg::cuda
