#include "torch/cuda/stream.h"

#include <dlfcn.h>

#include <cstdint>
#include <stdexcept>

namespace ptq4arvg::cuda_ops {
namespace {

using GetStream = int32_t (*)(int32_t device, void** stream);

// The function is in a library that only a torch with CUDA has, and has loaded by the time there are CUDA tensors.
GetStream find() {
  constexpr char kName[] = "aoti_torch_get_current_cuda_stream";
  void* symbol = dlsym(RTLD_DEFAULT, kName);
  if (!symbol) {
    if (void* library = dlopen("libtorch_cuda.so", RTLD_NOLOAD | RTLD_LAZY)) symbol = dlsym(library, kName);
  }
  return reinterpret_cast<GetStream>(symbol);
}

}  // namespace

cudaStream_t current_stream(int device) {
  static const GetStream get = find();
  if (!get) throw std::runtime_error("ptq4arvg: this torch has no libtorch_cuda.so; wanted a torch built for CUDA");
  void* stream = nullptr;
  if (get(device, &stream) != 0) throw std::runtime_error("ptq4arvg: torch has no current CUDA stream");
  return static_cast<cudaStream_t>(stream);
}

}  // namespace ptq4arvg::cuda_ops
