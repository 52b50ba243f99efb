// The rotation of rotation.h on values that a warp holds.
#pragma once

#include "kernels/cuda/ptx.cuh"
#include "kernels/rotation.h"

namespace ptq4arvg::cuda {

// The stage of stride H * W of W neighbouring columns a lane, lane after lane; all lanes of the warp take part.
template <int W>
__device__ inline void rotate_between_lanes(float* v, int lanes_apart) {
  const bool second = threadIdx.x & lanes_apart;
#pragma unroll
  for (int i = 0; i < W; ++i) {
    const float other = __shfl_xor_sync(0xffffffffu, v[i], lanes_apart);
    v[i] = second ? sub(other, v[i]) : add(v[i], other);
  }
}

// Signs, then all stages of stride below 32 W. k: the lane's first column; that of lane 0 is a multiple of 32 W.
template <int W>
__device__ inline void rotate_in_warp(float* v, int block, int64_t k) {
#pragma unroll
  for (int i = 0; i < W; ++i) v[i] = negative_column(k + i) ? mul(v[i], -1.0f) : v[i];
#pragma unroll
  for (int stride = 1; stride < W; stride *= 2) {
    if (stride >= block) return;
#pragma unroll
    for (int i = 0; i < W; ++i) {
      if (i & stride) continue;
      const float a = v[i], b = v[i + stride];
      v[i] = add(a, b);
      v[i + stride] = sub(a, b);
    }
  }
#pragma unroll
  for (int apart = 1; apart < 32; apart *= 2) {
    if (apart * W >= block) return;
    rotate_between_lanes<W>(v, apart);
  }
}

}  // namespace ptq4arvg::cuda
