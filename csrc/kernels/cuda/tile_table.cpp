#include "kernels/cuda/tile_table.h"

namespace ptq4arvg::cuda {
namespace {

constexpr int64_t kAny = INT64_MAX;
constexpr char kFallback[] = "tiled.64x64x64";

// Reasons are expectations from tile counts and memory traffic until a tuning run on the device replaces them. A row
// whose kernel is not in the build, or cannot take the operands' alignment, is passed over.
const TileChoice kTable[] = {
    // sm_90a
    {90, 90, 1, 64, 1, kAny, 1, kAny, "sm90_64x64x128", "one tile of rows, and narrow ones so that columns fill the multiprocessors"},
    {90, 90, 65, 256, 1, 4096, 1, kAny, "sm90_64x64x128", "wider tiles would leave most multiprocessors idle"},
    {90, 90, 65, 512, 1, kAny, 1, kAny, "sm90_64x128x128", "twice the tiles of 128 x 128, which would fill less than one wave"},
    {90, 90, 8192, kAny, 1024, kAny, 1, kAny, "sm90_128x256x128", "several full waves: the widest tile reads the operands least often"},
    {90, 90, 1, kAny, 1, kAny, 1, kAny, "sm90_128x128x128", "one warp group multiplies while the other writes its tile"},
    // sm_80 to sm_89
    {80, 89, 1, 64, 1, kAny, 1, kAny, "sm80_64x64x128", "one tile of rows, and narrow ones so that columns fill the multiprocessors"},
    {80, 89, 65, 256, 1, 4096, 1, kAny, "sm80_64x64x128", "wider tiles would leave most multiprocessors idle"},
    {80, 89, 65, 512, 1, kAny, 1, kAny, "sm80_64x128x128", "twice the tiles of 128 x 128, which would fill less than one wave"},
    {80, 89, 4096, kAny, 1024, kAny, 1, kAny, "sm80_256x128x64", "several full waves: the largest tile reads the operands least often"},
    {80, 89, 1, kAny, 1, kAny, 1, kAny, "sm80_128x128x64", "128 sums a thread, enough to keep the tensor cores busy"},
    // The rest
    {80, 1 << 20, 1, kAny, 1, kAny, 1, kAny, kFallback, "takes every size, stride and alignment"},
};

}  // namespace

const TileChoice* tile_table(int* count) {
  *count = static_cast<int>(sizeof kTable / sizeof kTable[0]);
  return kTable;
}

}  // namespace ptq4arvg::cuda
