// The rotation of rotation.h on values that the lanes of a warp hold; all lanes of the warp take part.
#pragma once

#include "kernels/cuda/ptx.cuh"
#include "kernels/rotation.h"

namespace ptq4arvg::cuda {

// A stage on N values of each lane whose pairs are `apart` in a lane's values, and one whose pairs are in lanes whose
// numbers differ in the bit `apart`.
template <int N>
__device__ inline void rotate_held(float* v, int apart) {
#pragma unroll
  for (int i = 0; i < N; ++i) {
    if (i & apart) continue;
    const float a = v[i], b = v[i + apart];
    v[i] = add(a, b);
    v[i + apart] = sub(a, b);
  }
}
template <int N>
__device__ inline void rotate_across(float* v, int apart) {
  const float sign = threadIdx.x & apart ? -1.0f : 1.0f;  // the second one is taken from the first
#pragma unroll
  for (int i = 0; i < N; ++i) v[i] = fused(v[i], sign, __shfl_xor_sync(0xffffffffu, v[i], apart));
}

// W neighbouring columns a lane, lane after lane. k: the lane's first column; that of lane 0 is a multiple of 32 W.
template <int W>
__device__ inline void rotate_in_warp(float* v, int block, int64_t k) {
  // Pairs of ones in k + i are those in k, those in i, and the one of which each has half.
  const float low = negative_column(k) ? -1.0f : 1.0f, high = k & W ? -low : low;
#pragma unroll
  for (int i = 0; i < W; ++i) {
    const float sign = 2 * i < W ? low : high;
    v[i] = mul(v[i], negative_column(i) ? -sign : sign);
  }
#pragma unroll
  for (int stride = 1; stride < W; stride *= 2) {
    if (stride >= block) return;
    rotate_held<W>(v, stride);
  }
#pragma unroll
  for (int apart = 1; apart < 32; apart *= 2) {
    if (apart * W >= block) return;
    rotate_across<W>(v, apart);
  }
}

// Where a product's layout has the columns 1, 2, 4 and 8 apart: in a lane's values, or in lanes.
template <int apart>
struct Held {
  template <int N>
  __device__ static void rotate(float* v) { rotate_held<N>(v, apart); }
};
template <int apart>
struct Across {
  template <int N>
  __device__ static void rotate(float* v) { rotate_across<N>(v, apart); }
};

template <class One, class Two, class Four, class Eight>
struct RotationStages {
  static_assert(kMaxEpilogueRotation == 16);

  // N values of a lane, whose columns column_of gives: of each four in a row in one block of 16.
  template <int N, class ColumnOf>
  __device__ static void rotate(float* v, int block, const ColumnOf& column_of) {
#pragma unroll
    for (int i = 0; i < N; ++i) {
      const uint32_t signs = signs_of_sixteen(column_of(i / 4 * 4));
      v[i] = bits_float(float_bits(v[i]) ^ (signs << (31 - (column_of(i) & 15)) & 0x80000000u));
    }
    if (block > 1) One::template rotate<N>(v);
    if (block > 2) Two::template rotate<N>(v);
    if (block > 4) Four::template rotate<N>(v);
    if (block > 8) Eight::template rotate<N>(v);
  }
};

using LaneAfterLane = RotationStages<Across<1>, Across<2>, Across<4>, Across<8>>;
using FoursOfColumns = RotationStages<Held<1>, Held<2>, Across<1>, Across<2>>;
// The sums of mma where the right operand has the columns: a lane has pairs, of 8 columns in 4 lanes, and `next` on in
// its values the pair 8 columns on.
template <int next>
using PairsOfColumns = RotationStages<Held<1>, Across<1>, Across<2>, Held<next>>;
// Where the left operand has them: 8 in every fourth lane, and `next` on in its values the one 8 columns on.
template <int next>
using EveryFourthLane = RotationStages<Across<4>, Across<8>, Across<16>, Held<next>>;

}  // namespace ptq4arvg::cuda
