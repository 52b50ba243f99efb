// The tiles of a head's keys, then the same ones with values, through a ring of buffers in shared memory.
//
// A block's warps share the tiles; where keys are split among them, each has a ring of its own and takes the tiles that
// are the number of warps apart, so that no warp waits for another.
#pragma once

#include "kernels/cuda/attention_tile.cuh"

namespace ptq4arvg::cuda {
namespace {

constexpr int kWarps = 4;
constexpr int kThreads = 32 * kWarps;
constexpr int kStages = 3;

template <int Size, bool Split>
struct Ring {
  static constexpr int kKeys = Split ? kStepKeys : 2 * kStepKeys;  // of a tile
  using T = Tile<Size, kKeys>;
  static constexpr int kBytes = kStages * T::kBytes;
  static constexpr int kBlockBytes = (Split ? kWarps : 1) * kBytes;

  const CachedHead& head;
  uint32_t buffers;
  int thread, warp, tiles;
  int filled = 0, filling = 0, taking = 0;  // tiles; buffers

  __device__ Ring(const CachedHead& head, int keys) : head(head), thread(threadIdx.x), warp(threadIdx.x / 32) {
    buffers = shared_address(dynamic_shared());
    tiles = (keys + kKeys - 1) / kKeys;
    if constexpr (Split) {
      buffers += warp * kBytes;
      thread %= 32;
      tiles = (tiles - warp + kWarps - 1) / kWarps;
    }
#pragma unroll
    for (int i = 0; i < kStages - 1; ++i) fill();
  }

  // The next tile, all of it there. The one before it makes room for another.
  __device__ uint32_t take() {
    wait_copies<kStages - 2>();
    if constexpr (Split) __syncwarp();
    else __syncthreads();
    fill();
    const uint32_t tile = buffers + taking * T::kBytes;
    taking = taking == kStages - 1 ? 0 : taking + 1;
    return tile;
  }

  // body(address, key) for the steps up to key `end` of the next `tiles` tiles.
  template <class Body>
  __device__ void for_each_step(int end, Body body) {
    for (int n = 0; n < tiles; ++n) {
      const uint32_t tile = take();
#pragma unroll 1
      for (int step = 0; step < T::kSteps; ++step) {
        const int key = first_key(n) + step * kStepKeys;
        if (key < end) body(tile + step * T::kStepBytes, key);
      }
    }
  }

 private:
  __device__ int first_key(int n) const { return (Split ? n * kWarps + warp : n) * kKeys; }

  __device__ void fill() {
    if (filled < 2 * tiles) {
      const bool again = filled >= tiles;
      const int first = first_key(again ? filled - tiles : filled);
      T::template fill<Split ? 32 : kThreads>(buffers + filling * T::kBytes, head, first, thread, again);
    }
    ++filled;
    filling = filling == kStages - 1 ? 0 : filling + 1;
    commit_copies();
  }
};

}  // namespace
}  // namespace ptq4arvg::cuda
