// A lane's A fragments out of a block of packed weights, the same functions for the GEMM and for unpacking.
#pragma once

#include "kernels/cuda/layout.h"

namespace ptq4arvg::cuda {

// Zero points of the two columns that a lane holds in a tile of 16: lane / 4 and 8 after it, once in each byte.
struct LaneZeros {
  uint32_t of[2];
};

PTQ4ARVG_FN LaneZeros lane_zeros(const int32_t* zero, int bits, int64_t n, int64_t first, int lane) {
  return {{four_times(zero_of_column(zero, bits, n, first + lane / 4)),
           four_times(zero_of_column(zero, bits, n, first + lane / 4 + 8))}};
}

// The four registers of the 32 k from 32 h on, from the lane's nibbles and, at 6 bits, its word h of crumbs.
template <int Bits>
PTQ4ARVG_FN void fragment(const uint32_t* nibbles, uint32_t crumbs, int h, const LaneZeros& zeros, uint32_t* out) {
  static_assert(Bits == 4 || Bits == 6);
#if defined(__CUDA_ARCH__)
#pragma unroll
#endif
  for (int j = 0; j < 4; ++j) {
    const uint32_t levels = Bits == 6 ? levels6(nibbles[j], crumbs, h, j) : levels4(nibbles[j], h);
    out[j] = codes_of_levels(levels, zeros.of[j & 1]);
  }
}

}  // namespace ptq4arvg::cuda
