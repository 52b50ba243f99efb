// Packed weights to int8 codes, row-major, on the device.
#pragma once

#include "kernels/cuda/launch.h"
#include "kernels/pack.h"

namespace ptq4arvg::cuda {

// codes [n, ldc], ldc >= k; elements past k in a row become 0. Everything on the device.
cudaError_t unpack_weight(const PackProblem& problem, const uint8_t* packed, int8_t* codes, int64_t ldc,
                          const Launch& launch);

}  // namespace ptq4arvg::cuda
