// What a launch needs to know of the device, and small helpers of all CUDA kernels.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace ptq4arvg::cuda {

struct Device {
  int index = 0;
  int sm = 0;         // compute capability: 80, 86, 89, 90, ...
  int sm_count = 0;
  int shared_bytes = 0;  // a block's most, opted in
};

struct Launch {
  Device device;
  cudaStream_t stream = nullptr;
};

// Properties of a device, asked for once. cudaErrorInvalidDevice where there is none of that index.
cudaError_t device_of(int index, Device* device);

// Raises a kernel's limit of dynamic shared memory on the current device where it needs more than the 48 KiB that
// every kernel has. Cheap enough to call before each launch; allowed while a graph is captured.
template <class Kernel>
inline cudaError_t allow_shared(Kernel* kernel, int bytes) {
  if (bytes <= 48 * 1024) return cudaSuccess;
  return cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize,
                              bytes);
}

template <class Problem>
inline cudaError_t launch_kernel(void (*kernel)(Problem), dim3 grid, dim3 block, int shared_bytes, cudaStream_t stream,
                                 const Problem& problem) {
  void* arguments[] = {const_cast<Problem*>(&problem)};
  return cudaLaunchKernel(reinterpret_cast<const void*>(kernel), grid, block, arguments, shared_bytes, stream);
}

}  // namespace ptq4arvg::cuda
