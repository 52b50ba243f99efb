// The GEMM epilogue for one element: the steps and their order are those of kernels/cpu/epilogue.h.
#pragma once

#include "kernels/gemm.h"

namespace ptq4arvg::cuda {

// What all elements of a row share.
struct OutputRow {
  int64_t image;
  float a_scale;
  int32_t a_zero;
  QuantizeRow requantize;
};

PTQ4ARVG_FN OutputRow output_row(const Epilogue& e, int64_t t, int64_t image) {
  OutputRow row{image, e.a_scale[t], e.a_zero ? e.a_zero[t] : 0, {}};
  if (e.requantize) row.requantize = quantize_row(e.out_table.inv_scale[t], e.out_table.zero[t], e.out_table.bits);
  return row;
}

// What all elements of a column share.
struct OutputColumn {
  float w_scale, bias;
  int32_t sum;
};

PTQ4ARVG_FN OutputColumn output_column(const Epilogue& e, const int32_t* packed_sums, int64_t n) {
  return {e.w_scale[n], e.bias ? e.bias[n] : 0.0f, e.w_sum ? e.w_sum[n] : packed_sums[n]};
}

PTQ4ARVG_FN float output_value(const Epilogue& e, const OutputRow& row, const OutputColumn& column, int64_t m,
                               int64_t n, int32_t acc) {
  float y = dequantize(static_cast<float>(acc - row.a_zero * column.sum), column.w_scale, row.a_scale);
  if (e.bias) y = add(y, column.bias);
  y = activate(e.activation, y);
  if (e.gate.data) y = mul(load_float(e.gate.data, e.gate.dtype, row.image * e.gate.row_stride + n), y);
  if (e.residual.data) y = add(load_float(e.residual.data, e.residual.dtype, m * e.residual.row_stride + n), y);
  return y;
}

// `at`: the element's index in the output.
PTQ4ARVG_FN void store_value(const Epilogue& e, const OutputRow& row, int64_t at, float y) {
  if (e.requantize) {
    static_cast<int8_t*>(e.out)[at] = static_cast<int8_t>(static_cast<int32_t>(quantize(y, row.requantize)));
  } else {
    store_float(e.out, e.out_dtype, at, y);
  }
}

}  // namespace ptq4arvg::cuda
