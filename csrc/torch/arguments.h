// Checks of operator arguments. Every message names the operator, the argument, what came and what was wanted.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "kernels/gemm.h"

namespace ptq4arvg {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;

// A tensor as rows: [..., columns] with the leading dimensions joined and a contiguous last one.
struct Rows {
  const void* data;
  ScalarType dtype;
  int64_t count, columns, stride;
};

class Arguments {
 public:
  // All tensors must be on the device of the leading one.
  Arguments(const char* op, const char* lead_name, const Tensor& lead);

  template <class... Parts>
  [[noreturn]] void fail(const Parts&... parts) const {
    std::ostringstream text;
    text << op_ << ": ";
    (text << ... << parts);
    throw std::runtime_error(text.str());
  }
  template <class... Parts>
  void require(bool condition, const Parts&... parts) const {
    if (!condition) fail(parts...);
  }

  int bits(const char* name, int64_t value) const;
  // Of `columns`, in blocks of at most `most`.
  int rotation(const char* name, int64_t block, const char* columns_name, int64_t columns, int most) const;
  Activation activation(const std::string& value) const;
  DType out_dtype(ScalarType value) const;

  // int8 rows.
  Rows codes(const char* name, const Tensor& tensor);
  // float32, float16 or bfloat16 rows.
  Rows floats(const char* name, const Tensor& tensor);
  // The same with the size that is wanted; null data where absent.
  FloatMatrix matrix(const char* name, const OptionalTensor& tensor, int64_t rows, int64_t columns, const char* meaning);
  // float32 [length], finite and above 0; length -1: any but 0.
  const float* scales(const char* name, const Tensor& tensor, int64_t length = -1);
  // float32, float16 or bfloat16 [length] as float32; null where absent.
  const float* vector(const char* name, const OptionalTensor& tensor, int64_t length);
  // The same as it is; null data where absent.
  FloatMatrix any_vector(const char* name, const OptionalTensor& tensor, int64_t length,
                         const char* length_name = "one for each column");
  // int32 [length] with values in [low, high]; null where absent.
  const int32_t* integers(const char* name, const OptionalTensor& tensor, int64_t length, int64_t low, int64_t high,
                          const char* length_name);
  // Scales and zero points of quantization, one for each position.
  QuantizeTable table(const char* scale_name, const char* zero_name, const Tensor& inv_scale, const Tensor& zero,
                      int bits);
  // Zero points of a weight's columns, levels of `bits` bits; 8-bit weights are symmetric and have none.
  const int32_t* weight_zeros(const char* name, const OptionalTensor& tensor, int64_t n, int bits);
  const uint8_t* packed(const char* name, const Tensor& tensor, int64_t n, int64_t k, int bits);

  // float32, float16 or bfloat16 with a contiguous last dimension, copied if need be.
  Tensor channels(const char* name, const Tensor& tensor);
  // float32 [heads, size], finite, and above 0 if `positive`.
  const float* of_heads(const char* name, const Tensor& tensor, int64_t heads, int64_t size, bool positive);
  // float32 [tokens, size / 2, 2], cosines and sines; null where absent.
  const float* rotations(const char* name, const OptionalTensor& tensor, int64_t tokens, int64_t size);
  // int8 whose dimensions but the first are contiguous.
  void* cache(const char* name, const Tensor& tensor);

  // The rows' places in tables of `length` positions called `table`.
  RowPositions positions(const OptionalTensor& position, int64_t tokens, const char* table, int64_t length,
                         const char* name = "position");
  // Is a further table long enough?
  void covers(const char* table, int64_t length, const RowPositions& rows, const char* name = "position") const;

  Tensor empty(const Tensor& lead, int64_t columns, ScalarType dtype) const;  // lead's shape, other last dimension

 private:
  Tensor keep(Tensor tensor);  // as long as the call runs
  Rows rows(const char* name, const Tensor& tensor);
  void same_device(const char* name, const Tensor& tensor) const;
  void one_dimension(const char* name, const Tensor& tensor, int64_t length, const char* length_name) const;

  const char* op_;
  const char* lead_name_;
  torch::stable::Device device_;
  bool cpu_;
  std::vector<Tensor> kept_;
};

std::string dtype_name(ScalarType dtype);
std::string shape_text(const Tensor& tensor);
DType kernel_dtype(ScalarType dtype);
FloatMatrix as_matrix(const Rows& rows);

}  // namespace ptq4arvg
