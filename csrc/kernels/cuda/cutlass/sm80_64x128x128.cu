// For some hundred rows: twice the tiles of 128 x 128, and two blocks fit a multiprocessor's shared memory.
#include "kernels/cuda/cutlass/sm80_gemm.h"
#include "kernels/cuda/cutlass/table.h"

namespace ptq4arvg::cuda {

TileConfig sm80_64x128x128() { return Sm80Gemm<64, 128, 128, 32, 64, 3>::config("sm80_64x128x128"); }

}  // namespace ptq4arvg::cuda
