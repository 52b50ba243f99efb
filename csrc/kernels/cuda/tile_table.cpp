#include "kernels/cuda/tile_table.h"

namespace ptq4arvg::cuda {
namespace {

constexpr int64_t any = INT64_MAX;

const TileChoice kTable[] = {
#define ROW(sm0, sm1, m0, m1, n0, n1, k0, k1, bits0, bits1, out0, out1, kernel, reason) \
  {{sm0, m0, n0, k0, bits0, out0}, {sm1, m1, n1, k1, bits1, out1}, kernel, reason},
#include "kernels/cuda/tile_table.inc"
#undef ROW
};

}  // namespace

const TileChoice* tile_table(int* count) {
  *count = static_cast<int>(sizeof kTable / sizeof kTable[0]);
  return kTable;
}

}  // namespace ptq4arvg::cuda
