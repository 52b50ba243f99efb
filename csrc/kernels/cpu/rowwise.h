// Row by row operations: quantize, and norm with quantize.
#pragma once

#include <cmath>

#include "kernels/cpu/lanes_scalar.h"
#include "kernels/norm_quantize.h"
#include "kernels/parallel.h"

namespace ptq4arvg::cpu {
namespace {  // compiled for several instruction sets: internal linkage, see real.h

constexpr int64_t kRowwiseGrain = 32768;  // elements that are worth a thread

PTQ4ARVG_FN QuantizeRow table_row(const QuantizeTable& table, int64_t t) {
  return quantize_row(table.inv_scale[t], table.zero[t], table.bits);
}

template <class L>
static inline void quantize_rows(const QuantizeProblem& p) {
  parallel_for(p.m, kRowwiseGrain / p.k, [&p](int64_t begin, int64_t end) {
    for (int64_t m = begin; m < end; ++m) {
      const QuantizeRow row = table_row(p.table, position_of(p.rows, m));
      const int64_t x = m * p.x.row_stride;
      int8_t* out = p.out + m * p.k;
      int64_t k = 0;
      for (; k + L::width <= p.k; k += L::width) L::store_codes(out + k, quantize(L::load_any(p.x, x + k), row));
      for (; k < p.k; ++k) ScalarLanes::store_codes(out + k, quantize(ScalarLanes::load_any(p.x, x + k), row));
    }
  });
}

struct NormRow {
  float mean, rstd;
};

// Float64 statistics. Eight running sums in a fixed order, so that every instruction set finds the same bits; in loops
// of eight, so that compilers keep them in vectors.
template <class L, bool Squared>
static inline double sum_row(const FloatMatrix& x, int64_t begin, int64_t count, double centre) {
  double sums[8] = {};
  const auto term = [centre](float value) {
    const double d = static_cast<double>(value) - centre;
    return Squared ? d * d : d;
  };
  int64_t k = 0;
  for (; k + 8 <= count; k += 8) {
    float values[8];
    for (int i = 0; i < 8; i += L::width) L::store(values + i, L::load_any(x, begin + k + i));
    for (int i = 0; i < 8; ++i) sums[i] += term(values[i]);
  }
  for (int i = 0; k + i < count; ++i) sums[i] += term(ScalarLanes::load_any(x, begin + k + i));
  return ((sums[0] + sums[4]) + (sums[2] + sums[6])) + ((sums[1] + sums[5]) + (sums[3] + sums[7]));
}

template <class L>
static inline NormRow norm_row(const NormQuantizeProblem& p, int64_t x) {
  const double count = static_cast<double>(p.k);
  const double mean = p.rms ? 0.0 : sum_row<L, false>(p.x, x, p.k, 0.0) / count;
  const double variance = sum_row<L, true>(p.x, x, p.k, mean) / count;
  return {static_cast<float>(mean), static_cast<float>(1.0 / std::sqrt(variance + p.eps))};
}

template <class L>
PTQ4ARVG_FN void norm_lanes(const NormQuantizeProblem& p, const NormRow& norm, const QuantizeRow& row, int64_t m,
                            int64_t image, int64_t k) {
  using F = typename L::F;
  F y = L::load_any(p.x, m * p.x.row_stride + k);
  if (!p.rms) y = sub(y, F(norm.mean));
  y = mul(y, F(norm.rstd));
  if (p.weight) y = mul(y, L::load(p.weight + k));
  if (p.bias) y = add(y, L::load(p.bias + k));
  if (p.scale.data) {
    const F constant = p.constant ? L::load(p.constant + k) : F(1.0f);
    y = mul(y, add(constant, L::load_any(p.scale, image * p.scale.row_stride + k)));
  } else if (p.constant) {
    y = mul(y, L::load(p.constant + k));
  }
  if (p.shift.data) y = add(y, L::load_any(p.shift, image * p.shift.row_stride + k));
  if (p.post_scale) y = mul(y, L::load(p.post_scale + k));
  if (p.post_shift) y = add(y, L::load(p.post_shift + k));
  L::store_codes(p.out + m * p.k + k, quantize(y, row));
}

template <class L>
static inline void norm_quantize_rows(const NormQuantizeProblem& p) {
  parallel_for(p.m, kRowwiseGrain / (4 * p.k), [&p](int64_t begin, int64_t end) {
    for (int64_t m = begin; m < end; ++m) {
      const NormRow norm = norm_row<L>(p, m * p.x.row_stride);
      const QuantizeRow row = table_row(p.table, position_of(p.rows, m));
      const int64_t image = m / p.rows.tokens;
      int64_t k = 0;
      for (; k + L::width <= p.k; k += L::width) norm_lanes<L>(p, norm, row, m, image, k);
      for (; k < p.k; ++k) norm_lanes<ScalarLanes>(p, norm, row, m, image, k);
    }
  });
}

}  // namespace
}  // namespace ptq4arvg::cpu
