// One float at a time: the lane interface that the element-wise code of epilogue.h and rowwise.h is written against.
//
// Lanes are objects, because some carry the mask of a row's tail; for_lanes makes them.
#pragma once

#include "kernels/format.h"

namespace ptq4arvg::cpu {
namespace {  // compiled for several instruction sets: internal linkage, see real.h

struct ScalarLanes {
  using F = float;
  using I = int32_t;
  static constexpr int width = 1;

  F load(const float* p) const { return *p; }
  void store(float* p, F x) const { *p = x; }
  I load_int(const int32_t* p) const { return *p; }
  void store_int(int32_t* p, I x) const { *p = x; }
  static I minus(I a, I b) { return a - b; }
  static I times(I a, int32_t factor) { return a * factor; }
  static F to_float(I a) { return static_cast<float>(a); }
  F load_any(const FloatMatrix& x, int64_t index) const { return load_float(x.data, x.dtype, index); }
  void store_any(void* out, DType dtype, int64_t index, F x) const { store_float(out, dtype, index, x); }
  void store_codes(int8_t* out, F code) const { *out = static_cast<int8_t>(static_cast<int32_t>(code)); }

  // Eight running sums in float64 of x - centre, or of its square.
  struct Sums {
    double sums[8] = {};

    template <bool Squared>
    void add_eight(const FloatMatrix& x, int64_t index, double centre) {
      for (int i = 0; i < 8; ++i) {
        const double d = static_cast<double>(load_float(x.data, x.dtype, index + i)) - centre;
        sums[i] += Squared ? d * d : d;
      }
    }
    void store(double* out) const { memcpy(out, sums, sizeof sums); }
  };
};

// body(lanes, i) for i in steps over [0, count): whole vectors, then the tail with `Tail`, one float at a time or masked.
template <class Whole, class Tail, class Body>
PTQ4ARVG_FN void for_lanes(int64_t count, const Body& body) {
  int64_t i = 0;
  for (; i + Whole::width <= count; i += Whole::width) body(Whole{}, i);
  if constexpr (Tail::width == 1) {
    for (; i < count; ++i) body(Tail{}, i);
  } else if (i < count) {
    body(Tail::first(count - i), i);
  }
}

}  // namespace
}  // namespace ptq4arvg::cpu
