// 16-byte accesses and float conversions of the row-wise kernels.
#pragma once

#include "kernels/cuda/ptx.cuh"
#include "kernels/format.h"

namespace ptq4arvg::cuda {

// How many elements of a type fill 16 bytes.
template <DType T>
constexpr int kWidth = T == DType::f32 ? 4 : 8;

__device__ inline float to_float(uint32_t bits, DType type) {
  return type == DType::bf16 ? bf16_to_float(static_cast<uint16_t>(bits)) : f16_to_float(static_cast<uint16_t>(bits));
}

template <DType T>
__device__ inline float load_one(const void* data, int64_t index) {
  return load_float(data, T, index);
}

// kWidth<T> floats from 16 aligned bytes.
template <DType T>
__device__ inline void widen(uint4 raw, float* out) {
  const uint32_t words[4] = {raw.x, raw.y, raw.z, raw.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if constexpr (T == DType::f32) {
      out[i] = bits_float(words[i]);
    } else if constexpr (T == DType::bf16) {
      out[2 * i] = bits_float(words[i] << 16);
      out[2 * i + 1] = bits_float(words[i] & 0xffff0000u);
    } else {
      widen_halves(words[i], out + 2 * i);
    }
  }
}

// Codes as floats to one byte each.
__device__ inline uint32_t pack4(const float* codes) {
  uint32_t out = 0;
#pragma unroll
  for (int i = 0; i < 4; ++i) out |= (static_cast<uint32_t>(static_cast<int32_t>(codes[i])) & 0xffu) << (8 * i);
  return out;
}

}  // namespace ptq4arvg::cuda
