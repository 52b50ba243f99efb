// The GEMM epilogue for one element: the steps and their order are those of kernels/cpu/epilogue.h.
#pragma once

#include "kernels/gemm.h"

namespace ptq4arvg::cuda {

// A row's entries of the tables as they are in memory. Nothing waits for them before output_row.
struct RowEntries {
  float a_scale, out_inv_scale;
  int32_t a_zero, out_zero;
};

// requantize: e.requantize, which a kernel of one output type knows when it is compiled. A row past the last one has
// entries, too: row % tokens is inside the table for every row.
PTQ4ARVG_FN RowEntries row_entries(const Epilogue& e, int64_t t, bool requantize) {
  RowEntries of{e.a_scale[t], 0.0f, e.a_zero ? e.a_zero[t] : 0, 0};
  if (requantize) of.out_inv_scale = e.out_table.inv_scale[t], of.out_zero = e.out_table.zero[t];
  return of;
}

// What all elements of a row share.
struct OutputRow {
  float a_scale;
  int32_t a_zero;
  QuantizeRow requantize;
};

PTQ4ARVG_FN OutputRow output_row(const Epilogue& e, const RowEntries& of) {
  return {of.a_scale, of.a_zero, quantize_row(of.out_inv_scale, of.out_zero, e.out_table.bits)};
}

// What all elements of a column share.
struct OutputColumn {
  float w_scale, bias;
  int32_t sum;
};

PTQ4ARVG_FN OutputColumn output_column(const Epilogue& e, const int32_t* packed_sums, int64_t n) {
  return {e.w_scale[n], e.bias ? e.bias[n] : 0.0f, e.w_sum ? e.w_sum[n] : packed_sums[n]};
}

// What an element has of its own beside its sum, as it is in memory.
struct OutputOperands {
  uint32_t gate, residual;
};

PTQ4ARVG_FN OutputOperands output_operands(const Epilogue& e, int64_t image, int64_t m, int64_t n) {
  OutputOperands own{};
  if (e.gate.data) own.gate = load_bits(e.gate.data, e.gate.dtype, image * e.gate.row_stride + n);
  if (e.residual.data) own.residual = load_bits(e.residual.data, e.residual.dtype, m * e.residual.row_stride + n);
  return own;
}

PTQ4ARVG_FN float output_value(const Epilogue& e, const OutputRow& row, const OutputColumn& column,
                               const OutputOperands& own, int32_t acc) {
  float y = dequantize(static_cast<float>(acc - row.a_zero * column.sum), column.w_scale, row.a_scale);
  if (e.bias) y = add(y, column.bias);
  y = activate(e.activation, y);
  if (e.gate.data) y = mul(float_of_bits(own.gate, e.gate.dtype), y);
  if (e.residual.data) y = add(float_of_bits(own.residual, e.residual.dtype), y);
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
