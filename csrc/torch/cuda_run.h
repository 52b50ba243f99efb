// How operators reach the CUDA kernels: cuda/run.cpp, or cuda_none.cpp in a build without them.
#pragma once

#include "torch/calls.h"

namespace ptq4arvg::cuda_ops {

// See operators.h. In a build without CUDA kernels everything is an error that says so.
struct Device {
  // On the device of `lead` and that device's current stream. Call what it returns before `lead` goes.
  template <class Problem>
  static Run<Problem> runner(const char* op, const Tensor& lead);

  static Tensor pack_weight(const Tensor& codes, const OptionalTensor& zero, int64_t bits);
  static Tensor unpack_weight(const Tensor& packed, const OptionalTensor& zero, int64_t bits, int64_t n, int64_t k);
};

// Every runner that the operators call, for the file that defines them.
#define PTQ4ARVG_CUDA_RUNNERS \
  template Run<GemmProblem> Device::runner(const char*, const Tensor&); \
  template Run<GemmFloatProblem> Device::runner(const char*, const Tensor&); \
  template Run<QuantizeProblem> Device::runner(const char*, const Tensor&); \
  template Run<NormQuantizeProblem> Device::runner(const char*, const Tensor&); \
  template Run<StoreKvProblem> Device::runner(const char*, const Tensor&); \
  template Run<AttentionProblem> Device::runner(const char*, const Tensor&); \
  template Run<QuantizeMapProblem> Device::runner(const char*, const Tensor&);

}  // namespace ptq4arvg::cuda_ops
