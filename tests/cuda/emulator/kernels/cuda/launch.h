// In the place of kernels/cuda/launch.h: a launch is a loop over the blocks.
#pragma once

#include <cuda_runtime_api.h>

namespace ptq4arvg::cuda {

struct Device {
  int index = 0, sm = 90, sm_count = 132, shared_bytes = 227 * 1024;
};

struct Launch {
  Device device;
  cudaStream_t stream = nullptr;
};

template <class Kernel>
inline cudaError_t allow_shared(Kernel*, int) {
  return cudaSuccess;
}

template <class Problem>
cudaError_t launch_kernel(void (*kernel)(Problem), dim3 grid, dim3 block, int shared_bytes, cudaStream_t,
                          const Problem& problem) {
  emulator::launch(kernel, grid, block, shared_bytes, problem);
  return cudaSuccess;
}

inline bool starts_early(int) { return true; }

template <class Problem>
cudaError_t launch_early(void (*kernel)(Problem), dim3 grid, dim3 block, int shared_bytes, const Launch& launch,
                         const Problem& problem) {
  emulator::early = true;
  const cudaError_t error = launch_kernel(kernel, grid, block, shared_bytes, launch.stream, problem);
  emulator::early = false;
  return error;
}

}  // namespace ptq4arvg::cuda
