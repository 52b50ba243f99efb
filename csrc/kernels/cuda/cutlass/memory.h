// Reads and writes of float groups of any supported type, vectorized and converted by the device's own instructions.
//
// The conversions round as real.h's do; only the bits of a NaN differ.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "kernels/cuda/cutlass/epilogue_math.h"

namespace ptq4arvg::cuda {

enum class Output : int { codes, f32, f16, bf16 };

constexpr int output_bytes(Output o) { return o == Output::codes ? 1 : o == Output::f32 ? 4 : 2; }

inline Output output_of(const Epilogue& e) {
  if (e.requantize) return Output::codes;
  return e.out_dtype == DType::f32 ? Output::f32 : e.out_dtype == DType::f16 ? Output::f16 : Output::bf16;
}

// Two floats of a 32-bit word of 16-bit floats.
__device__ inline float2 unpack_half2(uint32_t word, DType dtype) {
  if (dtype == DType::bf16) return {__uint_as_float(word << 16), __uint_as_float(word & 0xffff0000u)};
  __half2 pair;
  memcpy(&pair, &word, sizeof pair);
  return __half22float2(pair);
}

__device__ inline uint32_t pack_half2(float a, float b, Output output) {
  uint32_t word;
  if (output == Output::bf16) {
    const __nv_bfloat162 pair = __floats2bfloat162_rn(a, b);
    memcpy(&word, &pair, sizeof word);
  } else {
    const __half2 pair = __floats2half2_rn(a, b);
    memcpy(&word, &pair, sizeof word);
  }
  return word;
}

// One, two or four neighbours as they are in memory, in as many words as they fill there. Nothing waits for them before
// lanes_of.
template <int N>
struct Raw {
  uint32_t words[N];
};

// `index` is a multiple of N and the matrix is aligned to N elements.
template <int N>
__device__ inline Raw<N> load_raw(const void* data, DType dtype, int64_t index) {
  static_assert(N == 1 || N == 2 || N == 4);
  Raw<N> out;
  if (dtype == DType::f32) {
    const uint32_t* p = static_cast<const uint32_t*>(data) + index;
    if constexpr (N == 4) {
      const uint4 x = __ldg(reinterpret_cast<const uint4*>(p));
      out.words[0] = x.x, out.words[1] = x.y, out.words[2] = x.z, out.words[3] = x.w;
    } else if constexpr (N == 2) {
      const uint2 x = __ldg(reinterpret_cast<const uint2*>(p));
      out.words[0] = x.x, out.words[1] = x.y;
    } else {
      out.words[0] = __ldg(p);
    }
    return out;
  }
  const uint16_t* p = static_cast<const uint16_t*>(data) + index;
  if constexpr (N == 4) {
    const uint2 x = __ldg(reinterpret_cast<const uint2*>(p));
    out.words[0] = x.x, out.words[1] = x.y;
  } else if constexpr (N == 2) {
    out.words[0] = __ldg(reinterpret_cast<const uint32_t*>(p));
  } else {
    out.words[0] = __ldg(p);
  }
  return out;
}

template <int N>
__device__ inline Lanes<N> lanes_of(const Raw<N>& raw, DType dtype) {
  Lanes<N> out;
  if (dtype == DType::f32) {
    PTQ4ARVG_UNROLL
    for (int i = 0; i < N; ++i) out.v[i] = bits_float(raw.words[i]);
    return out;
  }
  PTQ4ARVG_UNROLL
  for (int i = 0; i < N; i += 2) {
    const float2 pair = unpack_half2(raw.words[i / 2], dtype);
    out.v[i] = pair.x;
    if constexpr (N > 1) out.v[i + 1] = pair.y;
  }
  return out;
}

template <int N>
__device__ inline Lanes<N> load_lanes(const void* data, DType dtype, int64_t index) {
  return lanes_of(load_raw<N>(data, dtype, index), dtype);
}

__device__ inline Integers<4> load_integers(const int32_t* p) {
  const int4 x = __ldg(reinterpret_cast<const int4*>(p));
  Integers<4> out;
  out.v[0] = x.x, out.v[1] = x.y, out.v[2] = x.z, out.v[3] = x.w;
  return out;
}

// Four neighbours of one row. The codes' row constants are used by Output::codes only.
template <Output output>
__device__ inline void store_lanes(void* data, int64_t index, const Lanes<4>& y, const QuantizeRow& row) {
  if constexpr (output == Output::codes) {
    const uint32_t codes = low_bytes(code_bits(y.v[0], row), code_bits(y.v[1], row), code_bits(y.v[2], row),
                                     code_bits(y.v[3], row));
    *reinterpret_cast<uint32_t*>(static_cast<int8_t*>(data) + index) = codes;
  } else if constexpr (output == Output::f32) {
    *reinterpret_cast<float4*>(static_cast<float*>(data) + index) = make_float4(y.v[0], y.v[1], y.v[2], y.v[3]);
  } else {
    *reinterpret_cast<uint2*>(static_cast<uint16_t*>(data) + index) =
        make_uint2(pack_half2(y.v[0], y.v[1], output), pack_half2(y.v[2], y.v[3], output));
  }
}

}  // namespace ptq4arvg::cuda
