// The tallest tile of sm_80: reads the weights least often, for many rows.
#include "kernels/cuda/cutlass/sm80_gemm.h"
#include "kernels/cuda/cutlass/table.h"

namespace ptq4arvg::cuda {

TileConfig sm80_256x128x64() { return Sm80Gemm<256, 128, 64, 64, 64, 3>::config("sm80_256x128x64"); }

}  // namespace ptq4arvg::cuda
