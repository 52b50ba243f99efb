// Float activations on packed weights. m > 0; everything on the device.
#pragma once

#include "kernels/cuda/launch.h"
#include "kernels/gemm_float.h"

namespace ptq4arvg::cuda {

// codes: int8 [n, ldc], zero points taken off. Sums are float32 in a fixed order, the same for every row.
cudaError_t gemm_float(const GemmFloatProblem& problem, const int8_t* codes, int64_t ldc, const Launch& launch);

}  // namespace ptq4arvg::cuda
