#include "kernels/cuda/launch.h"

#include <mutex>

namespace ptq4arvg::cuda {

cudaError_t device_of(int index, Device* device) {
  constexpr int kMost = 64;
  static std::mutex mutex;
  static Device known[kMost];
  if (index < 0 || index >= kMost) return cudaErrorInvalidDevice;
  const std::lock_guard<std::mutex> lock(mutex);
  Device& d = known[index];
  if (d.sm == 0) {
    int major = 0, minor = 0;
    Device found;
    found.index = index;
    const struct {
      int* value;
      cudaDeviceAttr attribute;
    } wanted[] = {{&major, cudaDevAttrComputeCapabilityMajor},
                  {&minor, cudaDevAttrComputeCapabilityMinor},
                  {&found.sm_count, cudaDevAttrMultiProcessorCount},
                  {&found.shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin}};
    for (const auto& each : wanted) {
      if (const cudaError_t error = cudaDeviceGetAttribute(each.value, each.attribute, index)) return error;
    }
    found.sm = 10 * major + minor;
    d = found;
  }
  *device = d;
  return cudaSuccess;
}

}  // namespace ptq4arvg::cuda
