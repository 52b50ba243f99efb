// Row by row operations: quantize, and norm with quantize.
#pragma once

#include <cmath>
#include <type_traits>

#include "kernels/cpu/lanes_scalar.h"
#include "kernels/cpu/rotate.h"
#include "kernels/cpu/with_activation.h"
#include "kernels/norm_quantize.h"
#include "kernels/parallel.h"

namespace ptq4arvg::cpu {
namespace {  // compiled for several instruction sets: internal linkage, see real.h

constexpr int64_t kRowwiseGrain = 32768;  // elements that are worth a thread

// body(matrix) with the matrix's dtype known to the compiler: no branch in the loops over its elements.
template <class Body>
PTQ4ARVG_FN void with_dtype(const FloatMatrix& x, const Body& body) {
  if (x.dtype == DType::f32) return body(FloatMatrix{x.data, DType::f32, x.row_stride});
  if (x.dtype == DType::f16) return body(FloatMatrix{x.data, DType::f16, x.row_stride});
  body(FloatMatrix{x.data, DType::bf16, x.row_stride});
}

// The codes of row m, whose values load(lanes, k) gives.
template <class Whole, class Tail, class Problem, class Load>
PTQ4ARVG_FN void emit_row(const Problem& p, const QuantizeRow& row, int64_t m, const Load& load) {
  emit_codes<Whole, Tail>(p.out + m * p.k, 0, p.k, p.rotation, row, load);
}

// Rows [begin, end); value(lanes, index of element k of the row) is what they hold.
template <class Whole, class Tail, class Value>
PTQ4ARVG_FN void quantize_some(const QuantizeProblem& p, int64_t begin, int64_t end, const Value& value) {
  for (int64_t m = begin; m < end; ++m) {
    const QuantizeRow row = table_row(p.table, position_of(p.rows, m));
    emit_row<Whole, Tail>(p, row, m, [&](auto lanes, int64_t k) __attribute__((always_inline)) {
      return value(lanes, m * p.x.row_stride + k);
    });
  }
}

template <class Whole, class Tail>
static inline void quantize_rows(const QuantizeProblem& p) {
  parallel_for(p.m, kRowwiseGrain / p.k, [&p](int64_t begin, int64_t end) {
    with_dtype(p.x, [&](FloatMatrix x) __attribute__((always_inline)) {
      if (!p.gated) {
        return quantize_some<Whole, Tail>(p, begin, end, [&](auto lanes, int64_t at) __attribute__((always_inline)) {
          return lanes.load_any(x, at);
        });
      }
      with_activation(p.activation, [&](auto kind) __attribute__((always_inline)) {
        quantize_some<Whole, Tail>(p, begin, end, [&](auto lanes, int64_t at) __attribute__((always_inline)) {
          return mul(activate(kind.value, lanes.load_any(x, at)), lanes.load_any(x, at + p.k));
        });
      });
    });
  });
}

struct NormRow {
  float mean, rstd;
};

// Float64 statistics of Rows rows from m. Eight running sums a row in a fixed order, so that every instruction set finds
// the same bits; several rows together, because the additions of one wait for each other.
template <class L, int Rows, bool Squared>
PTQ4ARVG_FN void sum_rows(const FloatMatrix& x, int64_t m, int64_t count, const double* centre, double* out) {
  typename L::Sums sums[Rows];
  int64_t k = 0;
  for (; k + 8 <= count; k += 8) {
    for (int r = 0; r < Rows; ++r) sums[r].template add_eight<Squared>(x, (m + r) * x.row_stride + k, centre[r]);
  }
  for (int r = 0; r < Rows; ++r) {
    double s[8];
    sums[r].store(s);
    for (int i = 0; k + i < count; ++i) {
      const double d = static_cast<double>(ScalarLanes{}.load_any(x, (m + r) * x.row_stride + k + i)) - centre[r];
      s[i] += Squared ? d * d : d;
    }
    out[r] = ((s[0] + s[4]) + (s[2] + s[6])) + ((s[1] + s[5]) + (s[3] + s[7]));
  }
}

template <class L, int Rows>
PTQ4ARVG_FN void norm_statistics(const NormQuantizeProblem& p, const FloatMatrix& x, int64_t m, NormRow* out) {
  const double count = static_cast<double>(p.k);
  double mean[Rows] = {}, squares[Rows];
  if (!p.rms) {
    const double zero[Rows] = {};
    sum_rows<L, Rows, false>(x, m, p.k, zero, mean);
    for (int r = 0; r < Rows; ++r) mean[r] /= count;
  }
  sum_rows<L, Rows, true>(x, m, p.k, mean, squares);
  for (int r = 0; r < Rows; ++r) {
    out[r] = {static_cast<float>(mean[r]), static_cast<float>(1.0 / std::sqrt(squares[r] / count + p.eps))};
  }
}

template <class L>
PTQ4ARVG_FN typename L::F norm_lanes(const L& lanes, const NormQuantizeProblem& p, const FloatMatrix& x,
                                     const NormRow& norm, int64_t m, int64_t image, int64_t k) {
  using F = typename L::F;
  F y = lanes.load_any(x, m * x.row_stride + k);
  if (!p.rms) y = sub(y, F(norm.mean));
  y = mul(y, F(norm.rstd));
  if (p.weight.data) y = mul(y, lanes.load_any(p.weight, k));
  if (p.bias.data) y = add(y, lanes.load_any(p.bias, k));
  if (p.scale.data) {
    const F constant = p.constant.data ? lanes.load_any(p.constant, k) : F(1.0f);
    y = mul(y, add(constant, lanes.load_any(p.scale, image * p.scale.row_stride + k)));
  } else if (p.constant.data) {
    y = mul(y, lanes.load_any(p.constant, k));
  }
  if (p.shift.data) y = add(y, lanes.load_any(p.shift, image * p.shift.row_stride + k));
  if (p.post_scale.data) y = mul(y, lanes.load_any(p.post_scale, k));
  if (p.post_shift.data) y = add(y, lanes.load_any(p.post_shift, k));
  return y;
}

template <class Whole, class Tail, int Rows>
PTQ4ARVG_FN void norm_quantize_some(const NormQuantizeProblem& p, const FloatMatrix& x, int64_t first) {
  NormRow norms[Rows];
  norm_statistics<Whole, Rows>(p, x, first, norms);
  for (int64_t m = first; m < first + Rows; ++m) {
    const NormRow norm = norms[m - first];
    const QuantizeRow row = table_row(p.table, position_of(p.rows, m));
    const int64_t image = m / p.rows.tokens;
    emit_row<Whole, Tail>(p, row, m, [&](auto lanes, int64_t k) __attribute__((always_inline)) {
      return norm_lanes(lanes, p, x, norm, m, image, k);
    });
  }
}

template <class Whole, class Tail>
static inline void norm_quantize_rows(const NormQuantizeProblem& p) {
  parallel_for(p.m, kRowwiseGrain / (4 * p.k), [&p](int64_t begin, int64_t end) {
    with_dtype(p.x, [&](FloatMatrix x) {
      int64_t m = begin;
      for (; m + 4 <= end; m += 4) norm_quantize_some<Whole, Tail, 4>(p, x, m);
      for (; m < end; ++m) norm_quantize_some<Whole, Tail, 1>(p, x, m);
    });
  });
}

}  // namespace
}  // namespace ptq4arvg::cpu
