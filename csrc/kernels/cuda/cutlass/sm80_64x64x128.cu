// The smallest tile of sm_80: fills the multiprocessors where wider tiles are too few.
#include "kernels/cuda/cutlass/sm80_gemm.h"
#include "kernels/cuda/cutlass/table.h"

namespace ptq4arvg::cuda {

TileConfig sm80_64x64x128() { return Sm80Gemm<64, 64, 128, 32, 32, 4>::config("sm80_64x64x128"); }

}  // namespace ptq4arvg::cuda
