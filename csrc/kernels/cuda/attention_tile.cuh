// A tile of keys and values in shared memory, and the two products of a warp's 16 queries with 32 of its keys.
//
// A lane's words of the B operand of mma.sync.m16n8k32 are word lane % 4 of column lane / 4. Which key, or which channel,
// a column stands for is free to choose, so that
//   one load of 16 bytes gives the words of four products: keys 4n to 4n + 3 are column n of four tiles of scores, and
//   channels 4n to 4n + 3 column n of four tiles of sums;
//   a lane's scores are whole groups of keys: of 32, the eight from 8 (lane % 4) on, which are its words of the A operand
//   of the second product once they are levels. No lane needs another's.
#pragma once

#include "kernels/attention.h"
#include "kernels/cuda/ptx.cuh"

namespace ptq4arvg::cuda {
namespace {

constexpr int kStepKeys = 32;  // the depth of an mma
constexpr int kColumnTiles = 4;

// A head of the cache as far as it is read.
struct CachedHead {
  const int8_t *keys, *values;
  int size, panels;
};

// Size: channels with padding to whole mma. What lies behind the head's last channel or panel in shared memory is never
// written: codes of queries there are zero, and so are levels.
template <int Size, int Keys>
struct Tile {
  static constexpr int kBytes = 2 * Keys * Size;
  static constexpr int kSteps = Keys / kStepKeys;

  // Places, in chunks of 16 bytes, of four keys of a group of channels and of four channels of a group of keys. The
  // exchanges keep the eight lanes that load at once in different banks.
  __device__ static int key_chunk(int panel, int group, int keys) {
    return panel * Size + group * 4 + (keys ^ (group & 2));
  }
  __device__ static int value_chunk(int group, int channels) {
    return Keys * Size / 16 + group * (Size / 4) + (channels ^ (group & 6));
  }

  // Starts the copies of the tile that begins at key `first`, shared among `Threads` threads.
  template <int Threads>
  __device__ static void fill(uint32_t to, const CachedHead& head, int first, int thread, bool with_values) {
    constexpr int kChunks = Keys * Size / 16;
    static_assert(kChunks % Threads == 0);
    const int first_panel = first / kKeyPanel, panels = head.panels - first_panel;
    const int64_t begin = int64_t{first} * head.size;
#pragma unroll
    for (int i = 0; i < kChunks / Threads; ++i) {
      const int panel = (i * Threads + thread) / Size, chunk = (i * Threads + thread) % Size;
      if (panel >= panels || chunk >= head.size) continue;
      copy_async(to + 16 * key_chunk(panel, chunk / 4, chunk % 4), head.keys + begin + (panel * head.size + chunk) * 16,
                 16);
    }
    if (!with_values) return;
#pragma unroll
    for (int i = 0; i < kChunks / Threads; ++i) {
      const int group = (i * Threads + thread) / (Size / 4), chunk = (i * Threads + thread) % (Size / 4);
      if (group >= 4 * panels || chunk >= head.size / 4) continue;
      copy_async(to + 16 * value_chunk(group, chunk), head.values + begin + (group * (head.size / 4) + chunk) * 16, 16);
    }
  }

  // scores[t][2 h + e], row lane / 4 + 8 h of the queries: of key 8 (lane % 4) + 4 e + t of the step.
  __device__ static void score(uint32_t tile, int step, int lane, const uint32_t (*queries)[4], int32_t (*scores)[4]) {
    const int n = lane / 4, w = lane % 4;
    const uint32_t from = tile + 16 * key_chunk(2 * step + n / 4, w, n % 4);
#pragma unroll
    for (int i = 0; i < Size / 32; ++i) {
      uint32_t low[4], high[4];  // channels 32 i + 4 w, and 16 after them
      load_words(from + 512 * i, low);
      load_words(from + 512 * i + 256, high);
#pragma unroll
      for (int t = 0; t < kColumnTiles; ++t) {
        const uint32_t b[2] = {low[t], high[t]};
        multiply(scores[t], queries[i], b);
      }
    }
  }

  // sums[i][t][2 h + e] += channel 32 i + 8 (lane % 4) + 4 e + t; levels as an A operand.
  __device__ static void add_values(uint32_t tile, int step, int lane, const uint32_t* levels,
                                    int32_t (*sums)[kColumnTiles][4]) {
    const int n = lane / 4, w = lane % 4;
    const uint32_t from = tile + 16 * value_chunk(8 * step + 2 * w, n);
#pragma unroll
    for (int i = 0; i < Size / 32; ++i) {
      uint32_t low[4], high[4];  // keys 8 w of the step, and four after them
      load_words(from + 128 * i, low);
      load_words(from + 128 * i + 4 * Size, high);
#pragma unroll
      for (int t = 0; t < kColumnTiles; ++t) {
        const uint32_t b[2] = {low[t], high[t]};
        multiply_levels(sums[i][t], levels, b);
      }
    }
  }
};

}  // namespace
}  // namespace ptq4arvg::cuda
