// The smallest tile of sm_90a: fills the multiprocessors where wider tiles are too few.
#include "kernels/cuda/cutlass/sm90_gemm.h"
#include "kernels/cuda/cutlass/table.h"

namespace ptq4arvg::cuda {

TileConfig sm90_64x64x128() { return Sm90Gemm<64, 64, 128, 1, Pingpong>::config("sm90_64x64x128"); }

}  // namespace ptq4arvg::cuda
