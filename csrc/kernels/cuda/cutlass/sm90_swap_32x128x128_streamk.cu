// For up to 32 rows of great depth: few tiles, whose depth is shared among all multiprocessors.
#define PTQ4ARVG_NO_EARLY_START
#include "kernels/cuda/cutlass/sm90_gemm.h"
#include "kernels/cuda/cutlass/table.h"

namespace ptq4arvg::cuda {

TileConfig sm90_swap_32x128x128_streamk() {
  return Sm90Gemm<128, 32, 128, 1, StreamK, true>::config("sm90_swap_32x128x128_streamk");
}

}  // namespace ptq4arvg::cuda
