// For some hundred rows: twice the tiles of 128 x 128, and two blocks share what they read of the weights.
#include "kernels/cuda/cutlass/sm90_gemm.h"
#include "kernels/cuda/cutlass/table.h"

namespace ptq4arvg::cuda {

TileConfig sm90_64x128x128() { return Sm90Gemm<64, 128, 128, 2, Pingpong>::config("sm90_64x128x128"); }

}  // namespace ptq4arvg::cuda
