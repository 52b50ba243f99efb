// A build without CUDA kernels: every operator on CUDA tensors says how to get them.
#if !defined(PTQ4ARVG_WITH_CUDA)

#include <string>
#include <type_traits>

#include "torch/cuda_run.h"

namespace ptq4arvg::cuda_ops {
namespace {

[[noreturn]] void fail(const char* op, const char* name, const Tensor& lead) {
  const Arguments args(op, name, lead);
  args.fail(name, " is on a CUDA device, but this build of ptq4arvg has CPU kernels only; wanted tensors on the CPU, ",
            "or a build with nvcc on PATH: PTQ4ARVG_BUILD=cuda pip install .");
}

}  // namespace

template <class Problem>
Run<Problem> Device::runner(const char* op, const Tensor& lead) {
  if (std::is_same_v<Problem, GemmProblem>) fail(op, "a", lead);
  if (std::is_same_v<Problem, AttentionProblem>) fail(op, "q", lead);
  if (std::is_same_v<Problem, StoreKvProblem>) fail(op, std::string(op) == "store_qkv" ? "qkv" : "k", lead);
  fail(op, "x", lead);
}

PTQ4ARVG_CUDA_RUNNERS

Tensor Device::pack_weight(const Tensor& codes, const OptionalTensor&, int64_t) { fail("pack_weight", "codes", codes); }

Tensor Device::unpack_weight(const Tensor& packed, const OptionalTensor&, int64_t, int64_t, int64_t) {
  fail("unpack_weight", "packed", packed);
}

}  // namespace ptq4arvg::cuda_ops

#endif
