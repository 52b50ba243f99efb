// Which kernel takes a product: a table, first row that fits. No CUDA in here.
#pragma once

#include <cstdint>

namespace ptq4arvg::cuda {

// What the choice depends on. out_bytes: of an element of the output, 1 for codes, 2 or 4 for floats.
struct ProductSize {
  int sm;  // compute capability
  int64_t m, n, k;
  int bits;  // of the weights
  int out_bytes;
};

struct TileChoice {
  ProductSize from, to;  // both ends included
  const char* kernel;
  const char* reason;
};

const TileChoice* tile_table(int* count);

inline bool fits(const TileChoice& row, const ProductSize& size) {
  const ProductSize &from = row.from, &to = row.to;
  return from.sm <= size.sm && size.sm <= to.sm && from.m <= size.m && size.m <= to.m && from.n <= size.n &&
         size.n <= to.n && from.k <= size.k && size.k <= to.k && from.bits <= size.bits && size.bits <= to.bits &&
         from.out_bytes <= size.out_bytes && size.out_bytes <= to.out_bytes;
}

}  // namespace ptq4arvg::cuda
