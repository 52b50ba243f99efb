// For some hundred rows, few columns and great depth, as in the second layer of a feed-forward block: the tiles are a
// fraction of a wave, so that their depth is shared among the multiprocessors.
#define PTQ4ARVG_NO_EARLY_START
#include "kernels/cuda/cutlass/sm90_gemm.h"
#include "kernels/cuda/cutlass/table.h"

namespace ptq4arvg::cuda {

TileConfig sm90_128x128x128_streamk() {
  return Sm90Gemm<128, 128, 128, 1, StreamK>::config("sm90_128x128x128_streamk");
}

}  // namespace ptq4arvg::cuda
