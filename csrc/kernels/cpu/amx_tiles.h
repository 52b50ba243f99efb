// Tile registers as the AMX code here uses them: eight of 16 rows by 64 bytes.
#pragma once

#include "kernels/cpu/intrinsics.h"
#include "kernels/real.h"

namespace ptq4arvg::cpu {
namespace {  // compiled for several instruction sets: internal linkage, see real.h

constexpr int kTileRows = 16;
constexpr int kTileBytes = kTileRows * 64;

// The compiler does not know that tile loads and stores touch memory.
PTQ4ARVG_FN void memory_barrier() { __asm__ volatile("" ::: "memory"); }

struct alignas(64) TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

// The registers belong to this thread until release_tiles: while they hold something, every switch of threads saves them.
//
// Of the first `shortened` of them only some rows count: a product takes as many clocks as there are rows of `a`.
static inline void configure_tiles(int shortened = 0, int rows = kTileRows) {
  TileConfig config;
  for (int i = 0; i < shortened; ++i) config.rows[i] = static_cast<uint8_t>(rows);
  memory_barrier();
  _tile_loadconfig(&config);
}

static inline void release_tiles() { _tile_release(); }

}  // namespace
}  // namespace ptq4arvg::cpu
