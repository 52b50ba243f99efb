// From the operators to the CUDA kernels: device, stream, scratch memory, errors.
#include "torch/cuda_run.h"

#include <torch/csrc/stable/accelerator.h>

#include <stdexcept>

#include "kernels/cuda/attention.h"
#include "kernels/cuda/gemm.h"
#include "kernels/cuda/pack.h"
#include "kernels/cuda/rowwise.h"
#include "kernels/cuda/unpack.h"
#include "kernels/last_kernel.h"
#include "torch/cuda/stream.h"

namespace ptq4arvg::cuda_ops {
namespace {

[[noreturn]] void fail(const std::string& op, const std::string& text) { throw std::runtime_error(op + ": " + text); }

// Not with the operator's name in front, as what arguments do wrong.
void check(const char* op, cudaError_t error, const cuda::Device& device) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // so that a later launch is not blamed for this one
  std::string text = std::string("the CUDA kernel of ") + op + " could not be started: ";
  text += std::string(cudaGetErrorName(error)) + ", " + cudaGetErrorString(error);
  if (error == cudaErrorNoKernelImageForDevice) {
    text += "; the device is sm_" + std::to_string(device.sm) + ", this build has " PTQ4ARVG_CUDA_ARCHS
            ", wanted a build with PTQ4ARVG_CUDA_ARCHS that covers it";
  }
  throw std::runtime_error(text);
}

// One call of an operator: makes the tensor's device the current one, for torch's runtime and for ours.
class Call {
 public:
  Call(const char* op, const Tensor& lead)
      : op_(op), torch_device_(lead.device()), guard_(lead.get_device_index()) {
    const int index = lead.get_device_index();
    int current = -1;
    check(op, cudaGetDevice(&current), launch.device);
    if (current != index) check(op, cudaSetDevice(index), launch.device);
    check(op, cuda::device_of(index, &launch.device), launch.device);
    launch.stream = current_stream(index);
  }

  cuda::Scratch scratch() {
    const auto allocate = [](void* context, size_t bytes) {
      Call& call = *static_cast<Call*>(context);
      const int64_t size = static_cast<int64_t>(bytes);
      call.kept_.push_back(torch::stable::empty(torch::headeronly::IntHeaderOnlyArrayRef(&size, 1), ScalarType::Byte,
                                                torch::headeronly::Layout::Strided, call.torch_device_));
      return call.kept_.back().mutable_data_ptr();
    };
    return {allocate, this};
  }

  // Our kernels' exceptions and error codes get the operator's name.
  template <class Function>
  void run(const Function& function) {
    cudaError_t error;
    try {
      error = function();
    } catch (const std::invalid_argument& exception) {
      fail(op_, exception.what());
    }
    check(op_, error, launch.device);
  }

  cuda::Launch launch;

 private:
  const char* op_;
  torch::stable::Device torch_device_;
  torch::stable::accelerator::DeviceGuard guard_;
  std::vector<Tensor> kept_;  // freed in the stream's order by torch's allocator
};

cudaError_t start(const GemmProblem& p, Call& call) { return cuda::gemm(p, call.launch, call.scratch()); }
cudaError_t start(const GemmFloatProblem& p, Call& call) { return cuda::gemm_float(p, call.launch, call.scratch()); }
cudaError_t start(const QuantizeProblem& p, Call& call) {
  set_last_kernel(p.gated ? "gate_quantize.cuda" : "quantize.cuda");
  return cuda::quantize(p, call.launch);
}
cudaError_t start(const NormQuantizeProblem& p, Call& call) {
  set_last_kernel("norm_quantize.cuda");
  return cuda::norm_quantize(p, call.launch);
}

cudaError_t start(const QuantizeMapProblem& p, Call& call) {
  set_last_kernel("quantize_map.cuda");
  return cuda::quantize_map(p, call.launch, call.scratch());
}
cudaError_t start(const StoreKvProblem& p, Call& call) {
  set_last_kernel("store_kv.cuda");
  return cuda::store_kv(p, call.launch);
}
cudaError_t start(const AttentionProblem& p, Call& call) {
  set_last_kernel("attention.cuda");
  return cuda::attention(p, call.launch);
}

}  // namespace

template <class Problem>
Run<Problem> Device::runner(const char* op, const Tensor& lead) {
  return [op, &lead](const Problem& problem) {
    Call call(op, lead);
    call.run([&] { return start(problem, call); });
  };
}

PTQ4ARVG_CUDA_RUNNERS

// On the host: it is done once for each weight, and checks every code.
Tensor Device::pack_weight(const Tensor& codes, const OptionalTensor& zero, int64_t bits) {
  Arguments args("pack_weight", "codes", codes);
  const int checked_bits = args.bits("bits", bits);
  args.require(codes.dim() == 2, "codes has shape ", shape_text(codes), ", wanted [N, K]");
  args.weight_zeros("zero", zero, codes.size(0), checked_bits);
  const torch::stable::Device cpu(torch::headeronly::DeviceType::CPU);
  OptionalTensor host_zero;
  if (zero) host_zero = torch::stable::to(*zero, cpu);
  const Tensor packed =
      call_pack_weight(torch::stable::to(codes, cpu), host_zero, bits, cuda::packed_bytes, cuda::pack_weight);
  return torch::stable::to(packed, codes.device());
}

Tensor Device::unpack_weight(const Tensor& packed, const OptionalTensor& zero, int64_t bits, int64_t n, int64_t k) {
  return call_unpack_weight(packed, zero, bits, n, k,
                            [&](const PackProblem& problem, const uint8_t* data, int8_t* codes) {
                              Call call("unpack_weight", packed);
                              call.run([&] { return cuda::unpack_weight(problem, data, codes, k, call.launch); });
                            });
}

}  // namespace ptq4arvg::cuda_ops
