// The tile of most large problems on sm_90a: each warp group multiplies 128 x 128 while the other writes its tile.
#include "kernels/cuda/cutlass/sm90_gemm.h"
#include "kernels/cuda/cutlass/table.h"

namespace ptq4arvg::cuda {

TileConfig sm90_128x128x128() { return Sm90Gemm<128, 128, 128, 2, Pingpong>::config("sm90_128x128x128"); }

}  // namespace ptq4arvg::cuda
