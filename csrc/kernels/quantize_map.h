// Maps of floats to maps of codes, as convolutions read them: GroupNorm, activation, quantization, nearest-neighbour
// upsampling and a border, in one operation.
//
//   y = activation(x * factor[image, c] + offset[image, c])      without a norm: activation(x)
//   factor = rstd * weight[c], offset = bias[c] - mean * factor  of the channel's group in the image
//
// Statistics: a channel's sums of x and x^2 over kMapRun pixels in turn, in float32; those of every kMapLanes-th run in
// turn, of the kMapLanes results in turn, and of the group's channels in turn, in float64. Then mean = sum / count and
// variance = max(0, squares / count - mean^2), both rounded once, as rstd is.
#pragma once

#include "kernels/quantize.h"

namespace ptq4arvg {

constexpr int kMapRun = 64;
constexpr int kMapLanes = 16;

struct QuantizeMapProblem {
  int64_t images = 0, height = 0, width = 0, channels = 0;
  FloatMatrix x;             // [images * height * width, channels]
  int64_t groups = 0;        // of channels; 0: no norm
  FloatMatrix weight, bias;  // [channels], or without data
  double eps = 1e-6;
  Activation activation = Activation::none;
  QuantizeTable table;    // one position
  int64_t scale = 1;      // pixels of the output for each of x, both ways
  int64_t border = 0;     // pixels around that hold the code of 0
  int8_t* out = nullptr;  // [images, scale * height + 2 * border, scale * width + 2 * border, channels]

  PTQ4ARVG_HOST_DEVICE int64_t pixels() const { return height * width; }
  PTQ4ARVG_HOST_DEVICE int64_t runs() const { return (pixels() + kMapRun - 1) / kMapRun; }
  PTQ4ARVG_HOST_DEVICE int64_t out_height() const { return scale * height + 2 * border; }
  PTQ4ARVG_HOST_DEVICE int64_t out_width() const { return scale * width + 2 * border; }
};

// The stored code of 0.
PTQ4ARVG_FN int8_t code_of_zero(const QuantizeTable& table) {
  return static_cast<int8_t>(table.zero[0] - code_offset(table.bits, table.zero[0]));
}

namespace cpu {
void quantize_map(const QuantizeMapProblem& problem);
}

}  // namespace ptq4arvg
