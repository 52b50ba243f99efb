// Mean and variance of a row to more digits than a float has, so that both are rounded once: in float64, or in pairs of
// floats on devices that have few units for float64.
#pragma once

#include "kernels/real.h"

namespace ptq4arvg::cuda {

struct RowConstants {
  double count, eps;
  float count_rounded, eps_high, eps_low;  // rows have less than 2^24 elements
};

inline RowConstants row_constants(int64_t count, double eps) {
  const float high = static_cast<float>(eps);
  return {static_cast<double>(count), eps, static_cast<float>(count), high, static_cast<float>(eps - high)};
}

// A multiprocessor of compute capability 8.0, 9.0 or 10.0 has 32 or 64 units for float64, others have as few as 2.
inline bool fast_doubles(int sm) { return sm == 80 || sm == 90 || sm == 100; }

struct DoubleSum {
  double value;

  __device__ void add(float x) { value += static_cast<double>(x); }
  __device__ void add_square(float x, const DoubleSum& mean) {
    const double d = static_cast<double>(x) - mean.value;
    value = fma(d, d, value);
  }
  __device__ void add(const DoubleSum& other) { value += other.value; }
  __device__ DoubleSum of_lane(int other) const { return {__shfl_xor_sync(0xffffffffu, value, other)}; }

  __device__ DoubleSum over(const RowConstants& row) const { return {value / row.count}; }
  __device__ float rounded() const { return static_cast<float>(value); }
  __device__ float reciprocal_root(const RowConstants& row) const {
    return static_cast<float>(1.0 / sqrt(value + row.eps));
  }
};

// high + low, low being what high has lost to rounding: about 46 bits. The squares of elements have to be finite.
struct PairSum {
  float high, low;

  __device__ void add(float x, float and_a_little = 0.0f) {
    const float sum = ::ptq4arvg::add(high, x), part = sub(sum, high);
    const float lost = ::ptq4arvg::add(sub(high, sub(sum, part)), sub(x, part));
    high = sum;
    low = ::ptq4arvg::add(low, ::ptq4arvg::add(lost, and_a_little));
  }
  __device__ void add_square(float x, const PairSum& mean) {
    PairSum d{x, 0.0f};
    d.add(-mean.high, -mean.low);
    const float square = mul(d.high, d.high);
    add(square, fused(::ptq4arvg::add(d.high, d.high), d.low, fused(d.high, d.high, -square)));
  }
  __device__ void add(const PairSum& other) { add(other.high, other.low); }
  __device__ PairSum of_lane(int other) const {
    return {__shfl_xor_sync(0xffffffffu, high, other), __shfl_xor_sync(0xffffffffu, low, other)};
  }

  __device__ PairSum over(const RowConstants& row) const {
    PairSum out{div(high, row.count_rounded), 0.0f};
    if (!(magnitude(high) < INFINITY)) return out;
    out.add(div(::ptq4arvg::add(fused(-out.high, row.count_rounded, high), low), row.count_rounded));
    return out;
  }
  __device__ float rounded() const { return high; }  // low is less than half a unit of its last place
  // A root in float32 and two terms of the series of what it lacks.
  __device__ float reciprocal_root(const RowConstants& row) const {
    PairSum v = *this;
    v.add(row.eps_high, row.eps_low);
    const float root = div(1.0f, square_root(v.high));
    const float square = mul(root, root), whole = mul(v.high, square);
    float rest = fused(v.high, square, -whole);  // v root^2 = whole + rest
    rest = fused(v.high, fused(root, root, -square), rest);
    rest = fused(v.low, square, rest);
    const float lack = sub(sub(1.0f, whole), rest);
    const float better = fused(mul(fused(lack, 0.375f, 0.5f), lack), root, root);
    return better == better ? better : root;
  }
};

// Over all threads of a row, `Warps` warps, in a fixed order.
template <int Warps, class Sum>
__device__ inline Sum row_sum(Sum sum, Sum* shared) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) sum.add(sum.of_lane(step));
  if constexpr (Warps == 1) return sum;
  if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = sum;
  __syncthreads();
  sum = shared[0];
#pragma unroll
  for (int i = 1; i < Warps; ++i) sum.add(shared[i]);
  return sum;
}

}  // namespace ptq4arvg::cuda
