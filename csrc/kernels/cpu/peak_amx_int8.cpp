#include "kernels/cpu/amx_tiles.h"
#include "kernels/cpu/peak_loops.h"

namespace ptq4arvg::cpu {
namespace {

int run_tiles(int64_t rounds) {
  for (int64_t i = 0; i < rounds; ++i) {
    _tile_dpbssd(0, 4, 6);
    _tile_dpbssd(1, 4, 7);
    _tile_dpbssd(2, 5, 6);
    _tile_dpbssd(3, 5, 7);
  }
  return 0;
}

}  // namespace

const PeakLoop& tiles_amx_int8() {
  static const PeakLoop loop{4 * 16 * 16 * 64 * 2.0, [] { configure_tiles(); }, release_tiles, run_tiles};
  return loop;
}

}  // namespace ptq4arvg::cpu
