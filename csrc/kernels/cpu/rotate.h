// Values to codes, with the rotation of rotation.h on a piece of a row in a buffer.
#pragma once

#include "kernels/cpu/lanes_scalar.h"
#include "kernels/format.h"
#include "kernels/rotation.h"

namespace ptq4arvg::cpu {
namespace {  // compiled for several instruction sets: internal linkage, see real.h

// Of twice as many columns as they repeat after, so that a piece may begin at any.
struct Signs {
  float of[2 * kMaxRotation];
  constexpr Signs() : of() {
    for (int k = 0; k < 2 * kMaxRotation; ++k) of[k] = negative_column(k) ? -1.0f : 1.0f;
  }
};
constexpr Signs kSigns;

// Stages of strides H, 2 H, ... that stay inside a vector.
template <class L, int H = 1>
PTQ4ARVG_FN typename L::F within_vector(typename L::F x, int block) {
  if constexpr (H < L::width) {
    if (H < block) return within_vector<L, 2 * H>(L::template butterfly<H>(x), block);
  }
  return x;
}

// `count` signed values in place: at most kMaxRotation, whole blocks.
// Reads and writes whole vectors, which may end behind them.
template <class L>
PTQ4ARVG_FN void rotate_blocks(float* v, int count, int block) {
  const L lanes{};
  for (int i = 0; i < count; i += L::width) lanes.store(v + i, within_vector<L>(lanes.load(v + i), block));
  for (int stride = L::width; stride < block; stride *= 2) {
    for (int i = 0; i < count; i += 2 * stride) {
      for (int j = i; j < i + stride; j += L::width) {
        const auto a = lanes.load(v + j), b = lanes.load(v + j + stride);
        lanes.store(v + j, add(a, b));
        lanes.store(v + j + stride, sub(a, b));
      }
    }
  }
}

// load(lanes, k) for `columns` columns of a row from column `first` on, whole blocks, rotated, to
// store(lanes, k, value).
template <class Whole, class Tail, class Load, class Store>
PTQ4ARVG_FN void rotate_row(int64_t first, int64_t columns, int block, const Load& load, const Store& store) {
  alignas(64) float buffer[kMaxRotation] = {};
  for (int64_t k = 0; k < columns; k += kMaxRotation) {
    const int count = static_cast<int>(columns - k < kMaxRotation ? columns - k : kMaxRotation);
    for_lanes<Whole, Tail>(count, [&](auto lanes, int64_t i) __attribute__((always_inline)) {
      lanes.store(buffer + i, mul(load(lanes, k + i), lanes.load(kSigns.of + (first + k) % kMaxRotation + i)));
    });
    rotate_blocks<Whole>(buffer, count, block);
    for_lanes<Whole, Tail>(count, [&](auto lanes, int64_t i) __attribute__((always_inline)) {
      store(lanes, k + i, lanes.load(buffer + i));
    });
  }
}

// Codes of the same by a row's table entry, rotated unless `block` is 0.
template <class Whole, class Tail, class Load>
PTQ4ARVG_FN void emit_codes(int8_t* out, int64_t first, int64_t columns, int block, const QuantizeRow& row,
                            const Load& load) {
  const auto store = [&](auto lanes, int64_t k, auto value) __attribute__((always_inline)) {
    lanes.store_codes(out + k, quantize(value, row));
  };
  if (block) return rotate_row<Whole, Tail>(first, columns, block, load, store);
  for_lanes<Whole, Tail>(columns, [&](auto lanes, int64_t k) __attribute__((always_inline)) {
    store(lanes, k, load(lanes, k));
  });
}

}  // namespace
}  // namespace ptq4arvg::cpu
