// The epilogue on values of a warp, which its lanes exchange where the results are rotated.
#pragma once

#include "kernels/cuda/epilogue.h"
#include "kernels/cuda/rotate.cuh"

namespace ptq4arvg::cuda {

// One sum of each lane, whose column is that of the lane before it and one, in blocks of 16 from a multiple of 16 on.
// All lanes of the warp take part; only those that are inside store.
__device__ inline void finish_neighbours(const Epilogue& e, const OutputRow& row, const OutputColumn& column,
                                         const OutputOperands& own, int64_t m, int64_t n, int64_t columns, bool inside,
                                         int32_t acc) {
  float y = inside ? output_value(e, row, column, own, acc) : 0.0f;
  if (e.rotation) LaneAfterLane::rotate<1>(&y, e.rotation, [=](int) { return n; });
  if (inside) store_value(e, row, m * columns + n, y);
}

}  // namespace ptq4arvg::cuda
