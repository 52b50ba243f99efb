// 16-byte accesses and float conversions of the row-wise kernels.
#pragma once

#include "kernels/cuda/activate.h"
#include "kernels/cuda/codes.h"
#include "kernels/cuda/ptx.cuh"

namespace ptq4arvg::cuda {

// How many elements of a type fill 16 bytes.
template <DType T>
constexpr int kWidth = T == DType::f32 ? 4 : 8;

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

// W neighbours: what fills 16 bytes, which start at a multiple of 16, or 1.
template <DType T, int W>
__device__ inline void load_elements(const FloatMatrix& x, int64_t index, float* out) {
  if constexpr (W == 1) {
    out[0] = load_float(x.data, T, index);
  } else {
    const char* from = static_cast<const char*>(x.data) + index * (16 / W);
    widen<T>(__ldg(reinterpret_cast<const uint4*>(from)), out);
  }
}

// `Count` times four neighbouring elements, `step` elements from one four to the next: those for which inside(i), and
// zeros. Sixteen or eight bytes at once where `wide`. All are on their way before any is waited for.
template <int Count, class Inside>
__device__ inline void load_fours(const FloatMatrix& from, int64_t first, int64_t step, bool wide, Inside inside,
                                  float (*out)[4]) {
  const auto each = [&](auto load) {
#pragma unroll
    for (int i = 0; i < Count; ++i) {
      if (inside(i)) load(i, first + i * step);
    }
  };
  uint32_t words[Count][4] = {};
  if (from.dtype == DType::f32) {
    const uint32_t* data = static_cast<const uint32_t*>(from.data);
    if (wide) {
      each([&](int i, int64_t at) {
        const uint4 all = *reinterpret_cast<const uint4*>(data + at);
        words[i][0] = all.x, words[i][1] = all.y, words[i][2] = all.z, words[i][3] = all.w;
      });
    } else {
      each([&](int i, int64_t at) {
#pragma unroll
        for (int j = 0; j < 4; ++j) words[i][j] = data[at + j];
      });
    }
#pragma unroll
    for (int i = 0; i < 4 * Count; ++i) out[i / 4][i % 4] = bits_float(words[i / 4][i % 4]);
    return;
  }
  const uint16_t* data = static_cast<const uint16_t*>(from.data);
  if (wide) {
    each([&](int i, int64_t at) {
      const uint2 all = *reinterpret_cast<const uint2*>(data + at);
      words[i][0] = all.x, words[i][1] = all.y;
    });
  } else {
    each([&](int i, int64_t at) {
#pragma unroll
      for (int j = 0; j < 4; ++j) words[i][j / 2] |= static_cast<uint32_t>(data[at + j]) << 16 * (j % 2);
    });
  }
#pragma unroll
  for (int i = 0; i < 2 * Count; ++i) {
    float* const to = out[i / 2] + i % 2 * 2;
    const uint32_t pair = words[i / 2][i % 2];
    if (from.dtype == DType::f16) widen_halves(pair, to);
    else to[0] = bits_float(pair << 16), to[1] = bits_float(pair & 0xffff0000u);
  }
}

// Four elements to where they may be written at once.
__device__ inline void store_four(void* data, DType dtype, int64_t index, const float* x) {
  if (dtype == DType::f32) {
    *reinterpret_cast<float4*>(static_cast<float*>(data) + index) = make_float4(x[0], x[1], x[2], x[3]);
    return;
  }
  uint2 pairs;
  if (dtype == DType::f16) pairs = make_uint2(narrow_to_f16(x[0], x[1]), narrow_to_f16(x[2], x[3]));
  else pairs = make_uint2(narrow_to_bf16(x[0], x[1]), narrow_to_bf16(x[2], x[3]));
  *reinterpret_cast<uint2*>(static_cast<uint16_t*>(data) + index) = pairs;
}

// W codes, each the low byte of its word, to where they may be written at once.
template <int W>
__device__ inline void store_codes(int8_t* out, const uint32_t* codes) {
  const auto four = [=](int i) { return low_bytes(codes[i], codes[i + 1], codes[i + 2], codes[i + 3]); };
  if constexpr (W == 1) *out = static_cast<int8_t>(codes[0]);
  else if constexpr (W == 4) *reinterpret_cast<uint32_t*>(out) = four(0);
  else *reinterpret_cast<uint2*>(out) = make_uint2(four(0), four(4));
}

// The same of values that are to be quantized.
template <int W>
__device__ inline void quantize_and_store(int8_t* out, const float* values, const QuantizeRow& row) {
  uint32_t codes[W];
#pragma unroll
  for (int i = 0; i < W; ++i) codes[i] = code_bits(values[i], row);
  store_codes<W>(out, codes);
}

}  // namespace ptq4arvg::cuda
