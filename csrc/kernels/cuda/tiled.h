// The plain tiled GEMM on int8 codes: any sizes and strides, every architecture from sm_80. Where nothing better fits.
#pragma once

#include "kernels/cuda/gemm_cuda.h"

namespace ptq4arvg::cuda {

// One row of the same kind as the CUTLASS configurations.
const TileConfig& tiled_config();

}  // namespace ptq4arvg::cuda
