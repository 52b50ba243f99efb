// The largest tile of sm_90a: both warp groups on one tile, operands are read least often.
#include "kernels/cuda/cutlass/sm90_gemm.h"
#include "kernels/cuda/cutlass/table.h"

namespace ptq4arvg::cuda {

TileConfig sm90_128x256x128() { return Sm90Gemm<128, 256, 128, 2, Cooperative>::config("sm90_128x256x128"); }

}  // namespace ptq4arvg::cuda
