// What a lane does with numbers of its own: queries to codes, scores to levels, sums to outputs.
#pragma once

#include "kernels/attention.h"
#include "kernels/cuda/vector.cuh"

namespace ptq4arvg::cuda {
namespace {

constexpr unsigned kAllLanes = 0xffffffffu;

// Codes of a lane's two queries, negated, as the A operand: word [i][2 h + row] has channels 32 i + 16 h + 4 w to 3
// after it of lane w of four, zeros past the last channel. By how many powers of two a difference of scores is, to
// exponents.
template <int Size>
__device__ inline void quantize_queries(const HeadTensor& q, const int64_t* first, const float* k_scale, int size,
                                        bool wide, int w, uint32_t (*codes)[4], float* exponents) {
  constexpr int kFours = Size / 16;
  const auto inside = [&](int i) { return 16 * i + 4 * w < size; };
  float scale[kFours][4], u[2][kFours][4];
  load_fours<kFours>({k_scale, DType::f32, 0}, 4 * w, 16, wide, inside, scale);
#pragma unroll
  for (int row = 0; row < 2; ++row) {
    load_fours<kFours>({q.data, q.dtype, 0}, first[row] + 4 * w, 16, wide, inside, u[row]);
  }
#pragma unroll
  for (int row = 0; row < 2; ++row) {
    uint32_t top = 0;
#pragma unroll
    for (int i = 0; i < 4 * kFours; ++i) {
      float& x = u[row][i / 4][i % 4];
      x = mul(x, scale[i / 4][i % 4]);
      top = max(top, float_bits(magnitude(x)));
    }
#pragma unroll
    for (int step = 1; step < 4; step *= 2) top = max(top, __shfl_xor_sync(kAllLanes, top, step));
    const QueryScale to = query_scale(bits_float(top));
    exponents[row] = to.exponent;
#pragma unroll
    for (int i = 0; i < kFours; ++i) {
#pragma unroll
      for (int j = 0; j < 4; ++j) u[row][i][j] = attention_code(mul(u[row][i][j], -to.inverse));
      codes[i / 2][i % 2 * 2 + row] = pack_codes(u[row][i]);
    }
  }
}

// A query's way from scores to levels, in fewer instructions than the text of probability_level has, and the same bits.
//
// Scores are summed negated, from `start` on: a score less than 2^22 below the greatest then is the fraction of a float
// at 2^23, which a fused multiplication takes off again and rounds nothing. What it gives is y / kLeastPower: between 0
// and 1 for free, and exact multiples of a power of two apart from y.
struct Softmax {
  int32_t start;
  float scale, minus_lift;

  // `least`: of the negated scores.
  __device__ Softmax(int32_t least, float exponent)
      : start(static_cast<int32_t>(float_bits(kLift) - static_cast<uint32_t>(least))),
        scale(div(exponent, -kLeastPower)), minus_lift(-mul(kLift, scale)) {
    if (!(exponent == exponent)) scale = 0.0f, minus_lift = 1.0f;  // no level but 0, whose sum divides to NaN
  }

  // The level is the lowest byte.
  __device__ uint32_t level_bits(int32_t difference) const {
    const float z = fused_saturated(bits_float(static_cast<uint32_t>(difference)), scale, minus_lift);
    const float shifted = fused(z, kLeastPower, kRoundingShift);
    const float p = level_of_fraction(fused(z, kLeastPower, -sub(shifted, kRoundingShift)));
    return float_bits(add(times_power(p, shifted), kRoundingShift));
  }

 private:
  static constexpr float kLift = 8388608.0f;
};

// Levels of a lane's scores (attention_tile.cuh) as an A operand.
__device__ inline void levels_of(const int32_t (*scores)[4], const Softmax* rows, uint32_t* levels) {
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    const int row = j % 2, column = j / 2;
    uint32_t words[4];
#pragma unroll
    for (int t = 0; t < 4; ++t) words[t] = rows[row].level_bits(scores[t][2 * row + column]);
    levels[j] = low_bytes(words[0], words[1], words[2], words[3]);
  }
}

// What a query does not see: `first` is the key of the lane's first column, limits are those of its rows. Such scores,
// negated, become the greatest there is, and such levels zero.
__device__ inline void hide_scores(int first, const int* limits, int32_t (*scores)[4]) {
#pragma unroll
  for (int i = 0; i < 16; ++i) {
    const int t = i / 4, row = i % 4 / 2, column = i % 2;
    if (first + 4 * column + t >= limits[row]) scores[t][i % 4] = INT32_MAX;
  }
}
__device__ inline void hide_levels(int first, const int* limits, uint32_t* levels) {
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    const int seen = limits[j % 2] - first - j / 2 * 4;
    if (seen < 4) levels[j] &= seen <= 0 ? 0 : (1u << 8 * seen) - 1;
  }
}

}  // namespace
}  // namespace ptq4arvg::cuda
