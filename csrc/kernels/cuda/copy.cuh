// Operands to shared memory.
#pragma once

#include "kernels/cuda/layout.h"
#include "kernels/cuda/ptx.cuh"

namespace ptq4arvg::cuda {

// Up to 16 bytes of a row of activations: zeros past `left`, byte by byte where rows are not aligned.
__device__ inline void copy_codes(uint32_t to, const int8_t* from, int64_t left, bool aligned) {
  const int bytes = left < 0 ? 0 : left < 16 ? static_cast<int>(left) : 16;
  if (aligned) return copy_async(to, from, bytes);
  uint32_t words[4] = {};
#pragma unroll
  for (int i = 0; i < 16; ++i) {
    if (i < bytes) words[i / 4] |= (static_cast<uint32_t>(from[i]) & 0xffu) << (8 * (i % 4));
  }
  store_words(to, words);
}

}  // namespace ptq4arvg::cuda
