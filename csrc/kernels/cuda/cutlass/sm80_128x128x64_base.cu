// The tile of most large problems on sm_80: 128 accumulators a thread in four warps.
#include "kernels/cuda/cutlass/sm80_gemm.h"
#include "kernels/cuda/cutlass/table.h"

namespace ptq4arvg::cuda {

TileConfig sm80_128x128x64() { return Sm80Gemm<128, 128, 64, 64, 64, 5>::config("sm80_128x128x64"); }

}  // namespace ptq4arvg::cuda
