// One float at a time: the lane interface that the element-wise code of epilogue.h and rowwise.h is written against.
#pragma once

#include "kernels/format.h"

namespace ptq4arvg::cpu {
namespace {  // compiled for several instruction sets: internal linkage, see real.h

struct ScalarLanes {
  using F = float;
  using I = int32_t;
  static constexpr int width = 1;

  static F load(const float* p) { return *p; }
  static void store(float* p, F x) { *p = x; }
  static I load_int(const int32_t* p) { return *p; }
  static F dot_correction(I sum, int32_t zero, I column_sum) { return static_cast<float>(sum - zero * column_sum); }
  static F load_any(const FloatMatrix& x, int64_t index) { return load_float(x.data, x.dtype, index); }
  static void store_any(void* out, DType dtype, int64_t index, F x) { store_float(out, dtype, index, x); }
  static void store_codes(int8_t* out, F code) { *out = static_cast<int8_t>(static_cast<int32_t>(code)); }
};

}  // namespace
}  // namespace ptq4arvg::cpu
