// The configurations, one function per file.
#pragma once

#include "kernels/cuda/gemm_cuda.h"

namespace ptq4arvg::cuda {

TileConfig sm80_128x128x64();

}  // namespace ptq4arvg::cuda
