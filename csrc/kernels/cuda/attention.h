// Entry points of attention's CUDA kernels. Problems hold device pointers; batch and tokens > 0. Caches,
// and from image to image, as well as outputs start at multiples of 16 bytes.
#pragma once

#include <initializer_list>

#include "kernels/cuda/launch.h"
#include "kernels/store_kv.h"

namespace ptq4arvg::cuda {

cudaError_t store_kv(const StoreKvProblem& problem, const Launch& launch);
cudaError_t attention(const AttentionProblem& problem, const Launch& launch);

// Can four channels be read at once?
inline bool wide_channels(const HeadTensor& x) {
  const int64_t bytes = x.dtype == DType::f32 ? 16 : 8;
  return reinterpret_cast<uintptr_t>(x.data) % bytes == 0 && (x.of_image | x.of_head | x.of_token) % 4 == 0;
}
inline bool wide_channels(std::initializer_list<const float*> tables) {
  for (const float* each : tables) {
    if (reinterpret_cast<uintptr_t>(each) % 16) return false;
  }
  return true;
}

}  // namespace ptq4arvg::cuda
