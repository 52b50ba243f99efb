// Rows of a product that are patches of maps of codes, so that the product is a convolution.
//
// A map holds the codes of an image's pixels, channels last, with a border that the patches at the edges reach into.
// The patch of an output pixel is `kernel` pixels of each of `kernel` lines, in this order: the columns of the weight
// too.
#pragma once

#include "kernels/real.h"

namespace ptq4arvg {

struct Patches {
  int64_t height = 0, width = 0;  // of the output, in pixels; height 0: rows are no patches
  int64_t channels = 0;
  int64_t kernel = 1;

  PTQ4ARVG_HOST_DEVICE int64_t piece() const { return kernel * channels; }               // codes of one line
  PTQ4ARVG_HOST_DEVICE int64_t line() const { return (width + kernel - 1) * channels; }  // from line to line
  PTQ4ARVG_HOST_DEVICE int64_t map() const { return (height + kernel - 1) * line(); }    // from map to map
  // Where the patch of row m begins; rows are pixels of the output, one line and one image after the other.
  PTQ4ARVG_HOST_DEVICE int64_t start(int64_t m) const {
    const int64_t y = m / width, image = y / height;
    return image * map() + (y - image * height) * line() + (m - y * width) * channels;
  }
};

}  // namespace ptq4arvg
