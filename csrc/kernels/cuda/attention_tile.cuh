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
#include <bit>

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
  static constexpr int kStepBytes = kStepKeys * Size;  // from step to step, of keys and of values alike

  // Places, in chunks of 16 bytes, of four keys of a group of channels and of four channels of a group of keys. The
  // exchanges keep the eight lanes that load at once in different banks.
  __device__ static int key_chunk(int panel, int group, int keys) {
    return panel * Size + group * 4 + (keys ^ (group & 2));
  }
  __device__ static int value_chunk(int group, int channels) {
    return Keys * Size / 16 + group * (Size / 4) + (channels ^ (group & 6));
  }

  // Copies `rows` rows of `chunks` chunks, one after the other in the cache from byte `begin` on, to place(row, chunk)
  // in the tile, which has Rows rows of up to Chunks. A thread's chunks are below and beside one another, so that
  // addresses are sums.
  template <int Threads, int Rows, int Chunks, class Place>
  __device__ static void copy_rows(uint32_t to, const int8_t* from, uint32_t begin, int rows, int chunks, int thread,
                                   Place place) {
    constexpr int kAcross = std::min(Threads, static_cast<int>(std::bit_ceil(unsigned{Chunks})));
    constexpr int kDown = Threads / kAcross;
    static_assert(Rows % kDown == 0);
    const int first_row = thread / kAcross, first_chunk = thread % kAcross;
#pragma unroll
    for (int j = 0; j < (Chunks + kAcross - 1) / kAcross; ++j) {
      const int chunk = first_chunk + j * kAcross;
      if (chunk >= chunks) break;
      const int8_t* next = from + (begin + static_cast<uint32_t>(first_row * chunks + chunk) * 16);
#pragma unroll
      for (int i = 0; i < Rows / kDown; ++i, next += kDown * 16 * chunks) {
        const int row = first_row + i * kDown;
        if (row < rows) copy_async(to + 16 * place(row, chunk), next, 16);
      }
    }
  }

  // Starts the copies of the tile that begins at key `first`, shared among `Threads` threads.
  template <int Threads>
  __device__ static void fill(uint32_t to, const CachedHead& head, int first, int thread, bool with_values) {
    const int panels = head.panels - first / kKeyPanel;
    const uint32_t begin = first * head.size;
    copy_rows<Threads, Keys / kKeyPanel, Size>(to, head.keys, begin, panels, head.size, thread,
                                               [](int row, int i) { return key_chunk(row, i / 4, i % 4); });
    if (!with_values) return;
    copy_rows<Threads, Keys / kKeyGroup, Size / 4>(to, head.values, begin, 4 * panels, head.size / 4, thread,
                                                   [](int row, int i) { return value_chunk(row, i); });
  }

  // Where a lane's words of a step begin.
  __device__ static uint32_t lane_keys(int lane) { return 16 * key_chunk(lane / 16, lane % 4, lane / 4 % 4); }
  __device__ static uint32_t lane_values(int lane) { return 16 * value_chunk(lane % 4 * 2, lane / 4); }

  // scores[t][2 h + e], row lane / 4 + 8 h of the queries: of key 8 (lane % 4) + 4 e + t of the step.
  __device__ static void score(uint32_t from, const uint32_t (*queries)[4], int32_t (*scores)[4]) {
#pragma unroll
    for (int i = 0; i < Size / 32; ++i) {
      uint32_t low[4], high[4];  // channels from 32 i + 4 (lane % 4) on, and 16 after them
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
