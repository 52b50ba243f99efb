// Weights into the CUDA layout, on the host: done once for each weight. Back again on the device: unpack.h.
#pragma once

#include "kernels/pack.h"

namespace ptq4arvg::cuda {

int64_t packed_bytes(int64_t n, int64_t k, int bits);

// codes [n, k], zero point taken off; every code + zero must be a level of `bits` bits. All in host memory.
void pack_weight(const PackProblem& problem, const int8_t* codes, uint8_t* packed);

}  // namespace ptq4arvg::cuda
