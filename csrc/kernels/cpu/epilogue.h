// The GEMM epilogue on a strip of one row: int32 sums in, floats or codes out.
#pragma once

#include <type_traits>

#include "kernels/cpu/layout.h"
#include "kernels/cpu/rotate.h"
#include "kernels/cpu/with_activation.h"
#include "kernels/gemm.h"

namespace ptq4arvg::cpu {
namespace {  // compiled for several instruction sets: internal linkage, see real.h

struct EpilogueRow {
  int64_t row, image;
  float a_scale;
  int32_t a_zero;
  QuantizeRow requantize;
  int32_t sum = 0;  // of the row's codes, where a kernel needs it
};

PTQ4ARVG_FN EpilogueRow epilogue_row(const GemmProblem& p, int64_t row) {
  const Epilogue& e = p.epilogue;
  const int64_t t = position_of(p.rows, row);
  EpilogueRow out{row, row / p.rows.tokens, e.a_scale[t], e.a_zero ? e.a_zero[t] : 0, {}, 0};
  if (e.requantize) out.requantize = quantize_row(e.out_table.inv_scale[t], e.out_table.zero[t], e.out_table.bits);
  return out;
}

// What the results are stored as.
enum class Output : int { f32, f16, bf16, codes, rotated };

// y in lanes n, n + 1, ... of a row, before the activation, to where it belongs: the output or, before a rotation,
// `signed_values`. Mixed: there may be a gate or a residual.
template <Activation kind, Output output, bool Mixed, class L>
PTQ4ARVG_FN void finish_lanes(const L& lanes, const GemmProblem& p, const EpilogueRow& r, int64_t n, typename L::F y,
                              float* signed_values) {
  const Epilogue& e = p.epilogue;
  y = activate(kind, y);
  if constexpr (Mixed) {
    if (e.gate.data) y = mul(lanes.load_any(e.gate, r.image * e.gate.row_stride + n), y);
    if (e.residual.data) y = add(lanes.load_any(e.residual, r.row * e.residual.row_stride + n), y);
  }
  const int64_t at = r.row * p.n + n;
  if constexpr (output == Output::rotated) {
    lanes.store(signed_values, mul(y, lanes.load(kSigns.of + n % kMaxRotation)));
  } else if constexpr (output == Output::codes) {
    lanes.store_codes(static_cast<int8_t*>(e.out) + at, quantize(y, r.requantize));
  } else {
    constexpr DType dtype = output == Output::f32 ? DType::f32 : output == Output::f16 ? DType::f16 : DType::bf16;
    lanes.store_any(e.out, dtype, at, y);
  }
}

// A row's signed values of `count` columns from n on, rotated, to their codes; n begins a block.
template <class Whole, class Tail>
PTQ4ARVG_FN void store_rotated(const GemmProblem& p, const EpilogueRow& r, int64_t n, int64_t count,
                               float* signed_values) {
  rotate_blocks<Whole>(signed_values, static_cast<int>(count), p.epilogue.rotation);
  int8_t* out = static_cast<int8_t*>(p.epilogue.out) + r.row * p.n + n;
  for_lanes<Whole, Tail>(count, [&](auto lanes, int64_t i) __attribute__((always_inline)) {
    lanes.store_codes(out + i, quantize(lanes.load(signed_values + i), r.requantize));
  });
}

template <Activation kind, Output output, bool Mixed, class L>
PTQ4ARVG_FN void epilogue_lanes(const L& lanes, const GemmProblem& p, const EpilogueRow& r, int64_t n,
                                const int32_t* sums, const int32_t* column_sums, float* signed_values) {
  using F = typename L::F;
  const Epilogue& e = p.epilogue;
  const auto sum = L::minus(lanes.load_int(sums), L::times(lanes.load_int(column_sums), r.a_zero));
  F y = dequantize(L::to_float(sum), lanes.load(e.w_scale + n), F(r.a_scale));
  if (e.bias) y = add(y, lanes.load(e.bias + n));
  finish_lanes<kind, output, Mixed>(lanes, p, r, n, y, signed_values);
}

// body(output, mixed), constants both.
template <class Body>
PTQ4ARVG_FN void with_output(const Epilogue& e, const Body& body) {
  const auto mixed = [&](auto output) {
    if (e.gate.data || e.residual.data) return body(output, std::true_type{});
    body(output, std::false_type{});
  };
  if (e.requantize && e.rotation) return body(std::integral_constant<Output, Output::rotated>{}, std::true_type{});
  if (e.requantize) return mixed(std::integral_constant<Output, Output::codes>{});
  switch (e.out_dtype) {
    case DType::f32:
      return mixed(std::integral_constant<Output, Output::f32>{});
    case DType::f16:
      return mixed(std::integral_constant<Output, Output::f16>{});
    case DType::bf16:
      return mixed(std::integral_constant<Output, Output::bf16>{});
  }
}

// Columns [n, end) of one row, of one panel. sums and packed_sums start at column n; the packed sums serve where w_sum
// is absent.
template <class Whole, class Tail>
static inline void epilogue(const GemmProblem& p, int64_t row, int64_t n, int64_t end, const int32_t* sums,
                            const int32_t* packed_sums) {
  const EpilogueRow r = epilogue_row(p, row);
  const int32_t* column_sums = p.epilogue.w_sum ? p.epilogue.w_sum + n : packed_sums;
  alignas(64) float signed_values[kPanel] = {};
  with_activation(p.epilogue.activation, [&](auto kind) __attribute__((always_inline)) {
    with_output(p.epilogue, [&](auto output, auto mixed) __attribute__((always_inline)) {
      for_lanes<Whole, Tail>(end - n, [&](auto lanes, int64_t i) __attribute__((always_inline)) {
        epilogue_lanes<kind.value, output.value, mixed.value>(lanes, p, r, n + i, sums + i, column_sums + i,
                                                              signed_values + i);
      });
      if constexpr (output.value == Output::rotated) store_rotated<Whole, Tail>(p, r, n, end - n, signed_values);
    });
  });
}

}  // namespace
}  // namespace ptq4arvg::cpu
