// Maps of floats to maps of codes (kernels/quantize_map.h): statistics of every group, then line after line.
#pragma once

#include <cmath>
#include <cstring>

#include "kernels/cpu/rowwise.h"
#include "kernels/cpu/scratch.h"
#include "kernels/cpu/with_activation.h"
#include "kernels/quantize_map.h"

namespace ptq4arvg::cpu {
namespace {  // compiled for several instruction sets: internal linkage, see real.h

// A channel's float32 sums of x and of x^2 over the pixels of one run.
template <class Whole, class Tail>
PTQ4ARVG_FN void sum_run(const QuantizeMapProblem& p, const FloatMatrix& x, int64_t image, int64_t run, float* sums,
                         float* squares) {
  const int64_t first = run * kMapRun, end = first + kMapRun < p.pixels() ? first + kMapRun : p.pixels();
  for_lanes<Whole, Tail>(p.channels, [&](auto lanes, int64_t c) __attribute__((always_inline)) {
    using F = typename decltype(lanes)::F;
    F sum(0.0f), square(0.0f);
    for (int64_t pixel = first; pixel < end; ++pixel) {
      const F value = lanes.load_any(x, (image * p.pixels() + pixel) * x.row_stride + c);
      sum = add(sum, value);
      square = add(square, mul(value, value));
    }
    lanes.store(sums + c, sum);
    lanes.store(squares + c, square);
  });
}

// Totals of the channels, from their sums [run][channel]; lanes: room for kMapLanes * channels.
static inline void total_runs(int64_t runs, int64_t run_stride, const float* sums, int64_t channels, double* lanes,
                              double* totals) {
  memset(lanes, 0, kMapLanes * channels * sizeof(double));
  for (int64_t run = 0; run < runs; ++run) {
    double* lane = lanes + run % kMapLanes * channels;
    for (int64_t c = 0; c < channels; ++c) lane[c] += static_cast<double>(sums[run * run_stride + c]);
  }
  memcpy(totals, lanes, channels * sizeof(double));
  for (int lane = 1; lane < kMapLanes; ++lane) {
    for (int64_t c = 0; c < channels; ++c) totals[c] += lanes[lane * channels + c];
  }
}

// factor and offset [channels] of an image, from the totals of its channels.
static inline void map_affine(const QuantizeMapProblem& p, const double* sums, const double* squares, float* factor,
                              float* offset) {
  const int64_t size = p.channels / p.groups;
  const double count = static_cast<double>(p.pixels() * size);
  for (int64_t group = 0; group < p.groups; ++group) {
    double sum = 0.0, square = 0.0;
    for (int64_t c = group * size; c < (group + 1) * size; ++c) {
      sum += sums[c];
      square += squares[c];
    }
    const double mean = sum / count, product = mean * mean, difference = square / count - product;
    const double variance = difference > 0.0 ? difference : 0.0;
    const float rstd = static_cast<float>(1.0 / std::sqrt(variance + p.eps)), centre = static_cast<float>(mean);
    for (int64_t c = group * size; c < (group + 1) * size; ++c) {
      factor[c] = p.weight.data ? mul(rstd, load_float(p.weight.data, p.weight.dtype, c)) : rstd;
      const float bias = p.bias.data ? load_float(p.bias.data, p.bias.dtype, c) : 0.0f;
      offset[c] = sub(bias, mul(centre, factor[c]));
    }
  }
}

// factor and offset of every image: [images][2][channels].
template <class Whole, class Tail>
static inline void map_statistics(const QuantizeMapProblem& p, float* runs, double* lanes, float* affine) {
  const int64_t stride = 2 * p.channels;  // of runs: sums, then squares
  parallel_for(p.images * p.runs(), kRowwiseGrain / (kMapRun * p.channels), [&](int64_t begin, int64_t end) {
    with_dtype(p.x, [&](FloatMatrix x) __attribute__((always_inline)) {
      for (int64_t i = begin; i < end; ++i) {
        float* to = runs + i * stride;
        sum_run<Whole, Tail>(p, x, i / p.runs(), i % p.runs(), to, to + p.channels);
      }
    });
  });
  parallel_for(p.images, 1, [&](int64_t begin, int64_t end) {
    for (int64_t image = begin; image < end; ++image) {
      const float* sums = runs + image * p.runs() * stride;
      double* room = lanes + image * (kMapLanes + 2) * p.channels;
      double *total = room + kMapLanes * p.channels, *squares = total + p.channels;
      total_runs(p.runs(), stride, sums, p.channels, room, total);
      total_runs(p.runs(), stride, sums + p.channels, p.channels, room, squares);
      map_affine(p, total, squares, affine + image * stride, affine + image * stride + p.channels);
    }
  });
}

// The codes of one line of an image, without its borders, once.
template <class Whole, class Tail, bool Norm, Activation kind>
PTQ4ARVG_FN void map_line(const QuantizeMapProblem& p, const FloatMatrix& x, int64_t line, const float* affine,
                          const QuantizeRow& row, int8_t* out) {
  const float *factor = affine, *offset = affine + p.channels;
  for (int64_t pixel = 0; pixel < p.width; ++pixel) {
    int8_t* to = out + pixel * p.scale * p.channels;
    for_lanes<Whole, Tail>(p.channels, [&](auto lanes, int64_t c) __attribute__((always_inline)) {
      auto y = lanes.load_any(x, (line * p.width + pixel) * x.row_stride + c);
      if constexpr (Norm) y = add(mul(y, lanes.load(factor + c)), lanes.load(offset + c));
      lanes.store_codes(to + c, quantize(activate(kind, y), row));
    });
    for (int64_t copy = 1; copy < p.scale; ++copy) memcpy(to + copy * p.channels, to, p.channels);
  }
}

// Lines [begin, end) of x, all images in turn, with what belongs to them of the borders.
template <class Whole, class Tail, bool Norm, Activation kind>
static inline void map_lines(const QuantizeMapProblem& p, const FloatMatrix& x, const float* affine, int64_t begin,
                             int64_t end) {
  const QuantizeRow row = table_row(p.table, 0);
  const int8_t zero = code_of_zero(p.table);
  const int64_t line_bytes = p.out_width() * p.channels, side = p.border * p.channels;
  for (int64_t line = begin; line < end; ++line) {
    const int64_t image = line / p.height, y = line % p.height;
    int8_t* map = p.out + image * p.out_height() * line_bytes;
    int8_t* to = map + (p.border + y * p.scale) * line_bytes;
    memset(to, zero, side);
    map_line<Whole, Tail, Norm, kind>(p, x, line, affine + image * 2 * p.channels, row, to + side);
    memset(to + line_bytes - side, zero, side);
    for (int64_t copy = 1; copy < p.scale; ++copy) memcpy(to + copy * line_bytes, to, line_bytes);
    if (y == 0) memset(map, zero, p.border * line_bytes);
    if (y + 1 == p.height) memset(to + p.scale * line_bytes, zero, p.border * line_bytes);
  }
}

template <class Whole, class Tail>
static inline void quantize_map_lines(const QuantizeMapProblem& p) {
  float* affine = nullptr;
  if (p.groups) {
    // Of this thread, for all: what runs below takes no scratch.
    const int64_t lanes = p.images * (kMapLanes + 2) * p.channels, each = 2 * p.images * p.channels;
    double* room = static_cast<double*>(thread_scratch(lanes * sizeof(double) + (p.runs() + 1) * each * sizeof(float)));
    affine = reinterpret_cast<float*>(room + lanes);
    map_statistics<Whole, Tail>(p, affine + each, room, affine);
  }
  parallel_for(p.images * p.height, kRowwiseGrain / (p.width * p.channels), [&](int64_t begin, int64_t end) {
    with_dtype(p.x, [&](FloatMatrix x) __attribute__((always_inline)) {
      with_activation(p.activation, [&](auto kind) __attribute__((always_inline)) {
        affine ? map_lines<Whole, Tail, true, kind.value>(p, x, affine, begin, end)
               : map_lines<Whole, Tail, false, kind.value>(p, x, affine, begin, end);
      });
    });
  });
}

}  // namespace
}  // namespace ptq4arvg::cpu
