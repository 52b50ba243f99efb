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

// W floats of a vector of columns.
template <int W>
__device__ inline void load_columns(const float* from, int64_t k, float* out) {
  if constexpr (W == 1) {
    out[0] = from[k];
  } else {
#pragma unroll
    for (int i = 0; i < W; i += 4) *reinterpret_cast<float4*>(out + i) = *reinterpret_cast<const float4*>(from + k + i);
  }
}

// W elements of a matrix whose type is known at run time only.
template <int W>
__device__ inline void load_columns(const FloatMatrix& from, int64_t index, float* out) {
  if constexpr (W == 1) {
    out[0] = load_float(from.data, from.dtype, index);
  } else if (from.dtype == DType::f32) {
    load_columns<W>(static_cast<const float*>(from.data), index, out);
  } else {
#pragma unroll
    for (int i = 0; i < W; i += 4) {
      const uint2 raw = *reinterpret_cast<const uint2*>(static_cast<const uint16_t*>(from.data) + index + i);
      const uint32_t halves[4] = {raw.x & 0xffffu, raw.x >> 16, raw.y & 0xffffu, raw.y >> 16};
#pragma unroll
      for (int j = 0; j < 4; ++j) out[i + j] = to_float(halves[j], from.dtype);
    }
  }
}

// Four elements, at once where `wide`.
template <class From>
__device__ inline void load_four(const From& from, int64_t index, bool wide, float* out) {
  if (wide) return load_columns<4>(from, index, out);
#pragma unroll
  for (int i = 0; i < 4; ++i) load_columns<1>(from, index + i, out + i);
}

// Four elements of a tensor whose type is known at run time only, aligned to their own size.
__device__ inline void store_four(void* data, DType dtype, int64_t index, const float* x) {
  if (dtype == DType::f32) {
    *reinterpret_cast<float4*>(static_cast<float*>(data) + index) = make_float4(x[0], x[1], x[2], x[3]);
  } else {
    uint32_t halves[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) halves[i] = dtype == DType::f16 ? float_to_f16(x[i]) : float_to_bf16(x[i]);
    *reinterpret_cast<uint2*>(static_cast<uint16_t*>(data) + index) =
        make_uint2(halves[0] | halves[1] << 16, halves[2] | halves[3] << 16);
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
