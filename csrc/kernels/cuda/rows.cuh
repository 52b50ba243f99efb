// A row's place in the tables and its image; 32-bit divisions wherever they do.
#pragma once

#include <cuda_runtime_api.h>

#include "kernels/quantize.h"

namespace ptq4arvg::cuda {

struct RowPlace {
  int64_t t, image;  // index in the tables, row / tokens
};

__device__ inline RowPlace place_of(const RowPositions& rows, int64_t row) {
  int64_t image, token;
  if (((row | rows.tokens) >> 31) == 0) {
    const uint32_t r = static_cast<uint32_t>(row), tokens = static_cast<uint32_t>(rows.tokens);
    image = r / tokens;
    token = r % tokens;
  } else {
    image = row / rows.tokens;
    token = row % rows.tokens;
  }
  return {(rows.position ? *rows.position : 0) + token, image};
}

}  // namespace ptq4arvg::cuda
