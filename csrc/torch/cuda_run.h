// How operators reach the CUDA kernels: cuda/run.cpp, or cuda_none.cpp in a build without them.
#pragma once

#include "torch/calls.h"

namespace ptq4arvg::cuda_ops {

// The kernel of an operator whose leading tensor is `lead`, on its device and that device's current stream. In a build
// without CUDA kernels an error that says so. Call what it returns before `lead` goes.
template <class Problem>
Run<Problem> runner(const char* op, const Tensor& lead);

Tensor pack_weight_cuda(const Tensor& codes, const OptionalTensor& zero, int64_t bits);
Tensor unpack_weight_cuda(const Tensor& packed, const OptionalTensor& zero, int64_t bits, int64_t n, int64_t k);

}  // namespace ptq4arvg::cuda_ops
