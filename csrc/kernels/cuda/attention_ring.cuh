// The tiles of a head's keys, then the same ones with values, through a ring of buffers in shared memory.
//
// A block's warps share the tiles; where keys are split among them, each has a ring of its own and takes the tiles that
// are the number of warps apart, so that no warp waits for another.
#pragma once

#include <bit>

#include "kernels/cuda/attention_tile.cuh"

namespace ptq4arvg::cuda {
namespace {

constexpr int kWarps = 4;
constexpr int kThreads = 32 * kWarps;

template <int Size, bool Split>
struct Ring {
  // Of a tile: each costs a thread some hundred instructions beside those for its scores.
  static constexpr int kKeys = Split ? kStepKeys : Size <= 64 ? 4 * kStepKeys : 2 * kStepKeys;
  static constexpr int kApart = Split ? kWarps * kKeys : kKeys;  // keys from tile to tile
  static constexpr int kStages = Split ? 3 : 2;
  static constexpr int kThreadsOfTile = Split ? 32 : kThreads;
  using T = Tile<Size, kKeys>;
  static constexpr int kBytes = kStages * T::kBytes;
  static constexpr int kBlockBytes = (Split ? kWarps : 1) * kBytes;

  // Of `keys` keys. Heads have a multiple of 4 channels.
  __device__ Ring(const CachedHead& head, int keys)
      : first_key(Split ? threadIdx.x / 32 * kKeys : 0), panels(head.panels), fill_key(first_key),
        keys(head.keys + first_key * head.size, head.size, threadIdx.x % kThreadsOfTile, T::key_chunk),
        values(head.values + first_key * head.size, head.size / 4, threadIdx.x % kThreadsOfTile, T::value_chunk) {
    begin = kept(shared_address(dynamic_shared()) + (Split ? threadIdx.x / 32 * kBytes : 0));
    taking = filling = begin;
    tiles = (keys - first_key + kApart - 1) / kApart;
#pragma unroll
    for (int i = 0; i < kStages - 1; ++i) fill();
  }

  // body(address, key) for the steps up to key `end` of all tiles.
  template <class Body>
  __device__ void for_each_step(int end, Body body) {
    for (int n = 0, key = first_key; n < tiles; ++n, key += kApart) {
      const uint32_t tile = take();
#pragma unroll 1
      for (int step = 0; step < T::kSteps && key + step * kStepKeys < end; ++step) {
        body(tile + step * T::kStepBytes, key + step * kStepKeys);
      }
    }
  }

 private:
  // The next tile, all of it there. The one before it makes room for another.
  __device__ uint32_t take() {
    wait_copies<kStages - 2>();
    if constexpr (Split) __syncwarp();
    else __syncthreads();
    fill();
    const uint32_t tile = taking;
    step(&taking);
    return tile;
  }

  __device__ void fill() {
    if (filled == tiles) fill_key = first_key, keys.rewind(), values.rewind();
    if (filled < 2 * tiles) {
      const int rows = panels - fill_key / kKeyPanel;
      keys.start(filling, rows);
      if (filled >= tiles) values.start(filling, rows * (kKeyPanel / kKeyGroup));
    }
    ++filled, fill_key += kApart;
    step(&filling);
    commit_copies();
  }

  __device__ void step(uint32_t* buffer) const {
    *buffer = *buffer == begin + (kStages - 1) * T::kBytes ? begin : *buffer + T::kBytes;
  }

  int first_key, panels, tiles, filled = 0, fill_key;
  uint32_t begin, taking, filling;  // addresses of buffers
  static constexpr int kPanels = kKeys / kKeyPanel;
  static constexpr int kAcrossKeys = std::max(16, kThreadsOfTile / kPanels);
  static constexpr int kAcrossValues = std::min<int>(std::bit_ceil(Size / 4u), std::max(8, kThreadsOfTile / 8));
  Copies<kThreadsOfTile, kPanels, Size, kAcrossKeys, kApart / kKeyPanel, 1> keys;
  Copies<kThreadsOfTile, kKeys / kKeyGroup, Size / 4, kAcrossValues, kApart / kKeyGroup, 8> values;
};

}  // namespace
}  // namespace ptq4arvg::cuda
