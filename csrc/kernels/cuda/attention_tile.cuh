// A tile of keys and values in shared memory, and the two products of a warp's 16 queries with 32 of its keys.
//
// A lane's words of the B operand of mma.sync.m16n8k32 are word lane % 4 of column lane / 4. Which key, or which
// channel, a column stands for is free to choose, so that
//   one load of 16 bytes gives the words of four products: keys 4n to 4n + 3 are column n of four tiles of scores, and
//   channels 4n to 4n + 3 column n of four tiles of sums;
//   a lane's scores are whole groups of keys: of 32, the eight from 8 (lane % 4) on, which are its words of the A
//   operand of the second product once they are levels. No lane needs another's.
#pragma once

#include <algorithm>

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

// A thread's share of the copies of tiles, of `Rows` rows of up to `Chunks` chunks of 16 bytes each, which lie one
// after the other in the cache. `Across` threads share a row. Tiles are `Apart` rows apart. Places repeat their pattern
// every `Period` rows and `Across` chunks, so that addresses are sums.
template <int Threads, int Rows, int Chunks, int Across, int Apart, int Period>
struct Copies {
  static constexpr int kDown = Threads / Across;
  static constexpr int kOffsets = std::max(1, Period / kDown);
  static_assert(Rows % kDown == 0);

  // `from`: where the first tile begins; chunks of a row there; the place of a chunk in a tile.
  template <class Place>
  __device__ Copies(const int8_t* from, int chunks, int thread, Place place)
      : row(thread / Across), chunk(thread % Across), chunks(chunks), first(from + (row * chunks + chunk) * 16) {
#pragma unroll
    for (int k = 0; k < kOffsets; ++k) offsets[k] = kept(16 * place(row + k * kDown, chunk));
    rewind();
  }

  __device__ void rewind() { next = first; }

  // Starts those of the next tile, as far as its first `rows` rows.
  __device__ void start(uint32_t tile, int rows) {
    rows -= row;
#pragma unroll
    for (int j = 0; j < (Chunks + Across - 1) / Across; ++j) {
      if (chunk + j * Across >= chunks) break;
      const int8_t* from = next + 16 * j * Across;
#pragma unroll
      for (int i = 0; i < Rows / kDown; ++i, from += kDown * 16 * chunks) {
        const int k = i % kOffsets;
        if (i * kDown < rows) copy_async(tile + offsets[k] + 16 * ((i - k) * kDown * Chunks + j * Across), from, 16);
      }
    }
    next += Apart * 16 * chunks;
  }

 private:
  int row, chunk, chunks;
  uint32_t offsets[kOffsets];
  const int8_t *first, *next;
};

// Size: channels with padding to whole mma. What lies behind the head's last channel or panel in shared memory is never
// written: codes of queries there are zero, and so are levels.
template <int Size, int Keys>
struct Tile {
  static constexpr int kBytes = 2 * Keys * Size;
  static constexpr int kSteps = Keys / kStepKeys;
  static constexpr int kStepBytes = kStepKeys * Size;  // from step to step, of keys and of values alike

  // Places, in chunks of 16 bytes, of the cache's chunks: of a panel four keys of a group of channels, of a group of
  // keys four channels. The exchanges keep the eight lanes that load at once in different banks.
  __device__ static int key_chunk(int panel, int chunk) { return panel * Size + (chunk ^ (chunk >> 2 & 2)); }
  __device__ static int value_chunk(int group, int channels) {
    return Keys * Size / 16 + group * (Size / 4) + (channels ^ (group & 6));
  }

  // Where a lane's words of a step begin.
  __device__ static uint32_t lane_keys(int lane) { return 16 * key_chunk(lane / 16, lane % 4 * 4 + lane / 4 % 4); }
  __device__ static uint32_t lane_values(int lane) { return 16 * value_chunk(lane % 4 * 2, lane / 4); }

  // scores[t][2 h + e] = start[2 h + e] + the one of row lane / 4 + 8 h of the queries and key 8 (lane % 4) + 4 e + t
  // of the step.
  __device__ static void score(uint32_t from, const uint32_t (*queries)[4], const int32_t* start,
                               int32_t (*scores)[4]) {
#pragma unroll
    for (int i = 0; i < Size / 32; ++i) {
      uint32_t low[4], high[4];  // channels from 32 i + 4 (lane % 4) on, and 16 after them
      load_words(from + 512 * i, low);
      load_words(from + 512 * i + 256, high);
#pragma unroll
      for (int t = 0; t < kColumnTiles; ++t) {
        const uint32_t b[2] = {low[t], high[t]};
        multiply(scores[t], queries[i], b, i == 0 ? start : scores[t]);
      }
    }
  }

  // sums[i][t][2 h + e] += channel 32 i + 8 (lane % 4) + 4 e + t; levels as an A operand.
  __device__ static void add_values(uint32_t from, const uint32_t* levels, int32_t (*sums)[kColumnTiles][4]) {
#pragma unroll
    for (int i = 0; i < Size / 32; ++i) {
      uint32_t low[4], high[4];  // keys from 8 (lane % 4) on, and four after them
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
