// Entry points of attention's CUDA kernels. Problems hold device pointers; batch and tokens > 0.
#pragma once

#include "kernels/attention.h"
#include "kernels/cuda/launch.h"

namespace ptq4arvg::cuda {

cudaError_t store_kv(const StoreKvProblem& problem, const Launch& launch);
cudaError_t attention(const AttentionProblem& problem, const Launch& launch);

}  // namespace ptq4arvg::cuda
