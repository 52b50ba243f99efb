// What a launch needs to know of the device, and small helpers of all CUDA kernels.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "kernels/cuda/early_start.h"

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

// Device memory that lives until the call returns, ordered by the call's stream. 256-byte aligned.
struct Scratch {
  void* (*allocate)(void* context, size_t bytes);
  void* context;
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

// Only sm_90 and later can, and only when asked to.
inline bool starts_early(int sm) { return sm >= 90 && early_start_wanted(); }

// The same for kernels that keep early_start.h's rule: where that is wanted they start before earlier ones have ended.
template <class Problem>
inline cudaError_t launch_early(void (*kernel)(Problem), dim3 grid, dim3 block, int shared_bytes, const Launch& launch,
                                const Problem& problem) {
  if (!starts_early(launch.device.sm)) return launch_kernel(kernel, grid, block, shared_bytes, launch.stream, problem);
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = static_cast<size_t>(shared_bytes);
  config.stream = launch.stream;
  config.attrs = &attribute;
  config.numAttrs = 1;
  void* arguments[] = {const_cast<Problem*>(&problem)};
  return cudaLaunchKernelExC(&config, reinterpret_cast<const void*>(kernel), arguments);
}

}  // namespace ptq4arvg::cuda
