// The widest tile of sm_80: reads A least often, for many rows and wide layers.
#include "kernels/cuda/cutlass/sm80_gemm.h"
#include "kernels/cuda/cutlass/table.h"

namespace ptq4arvg::cuda {

TileConfig sm80_128x256x64() { return Sm80Gemm<128, 256, 64, 64, 64, 3>::config("sm80_128x256x64"); }

}  // namespace ptq4arvg::cuda
