// In the place of kernels/cuda/ptx.cuh: the instructions as the PTX manual describes them.
#pragma once

#include <cuda_runtime_api.h>

#include "kernels/real.h"

namespace emulator {

// A copy lands when its thread waits for it and not before, so that a missing wait shows.
void copy_later(uint32_t to, const void* from, int bytes);
void close_group();
void wait_for_groups(int pending);

}  // namespace emulator

namespace ptq4arvg::cuda {

inline unsigned char* dynamic_shared() { return emulator::shared_memory(); }
inline uint32_t shared_address(const void* p) {
  return static_cast<uint32_t>(static_cast<const unsigned char*>(p) - emulator::shared_memory());
}

inline void copy_async(uint32_t to, const void* from, int bytes) { emulator::copy_later(to, from, bytes); }
inline void commit_copies() { emulator::close_group(); }
template <int Pending>
void wait_copies() {
  emulator::wait_for_groups(Pending);
}

inline uint32_t load_word(uint32_t address) {
  uint32_t word;
  memcpy(&word, emulator::shared_memory() + address, sizeof word);
  return word;
}
inline void load_words(uint32_t address, uint32_t* out) {
  for (int i = 0; i < 4; ++i) out[i] = load_word(address + 4 * i);
}
inline void store_words(uint32_t address, const uint32_t* words) {
  memcpy(emulator::shared_memory() + address, words, 16);
}

// ldmatrix .x4: row r of matrix i is at lane 8 i + r's address; a lane gets word lane % 4 of row lane / 4 of each.
inline void load_matrices(uint32_t address, uint32_t* out) {
  const int lane = emulator::lane();
  memcpy(emulator::slot(lane), &address, sizeof address);
  emulator::wait_for_warp();
  for (int i = 0; i < 4; ++i) {
    uint32_t row;
    memcpy(&row, emulator::slot(8 * i + lane / 4), sizeof row);
    out[i] = load_word(row + 4 * (lane % 4));
  }
  emulator::wait_for_warp();
}

// mma.m16n8k32, PTX manual: groupID = lane / 4, threadID = lane % 4, and element i of a lane's fragment lies at
//   a: row groupID, + 8 unless i < 4 or 8 <= i < 12; column threadID * 4 + i % 4, + 16 from i = 8 on
//   b: row threadID * 4 + i % 4, + 16 from i = 4 on; column groupID
//   c: row groupID, + 8 from i = 2 on; column threadID * 2 + i % 2
inline void multiply(int32_t* sums, const uint32_t* a, const uint32_t* b) {
  const int lane = emulator::lane(), group = lane / 4, thread = lane % 4;
  memcpy(emulator::slot(lane), a, 16);
  memcpy(emulator::slot(lane) + 16, b, 8);
  emulator::wait_for_warp();
  const auto a_at = [](int row, int k) {
    const int i = (row < 8 ? 0 : 4) + (k < 16 ? 0 : 8) + k % 4;
    return static_cast<int8_t>(emulator::slot(row % 8 * 4 + k % 16 / 4)[i]);
  };
  const auto b_at = [](int k, int column) {
    return static_cast<int8_t>(emulator::slot(column * 4 + k % 16 / 4)[16 + (k < 16 ? 0 : 4) + k % 4]);
  };
  for (int i = 0; i < 4; ++i) {
    for (int k = 0; k < 32; ++k) sums[i] += a_at(group + i / 2 * 8, k) * b_at(k, thread * 2 + i % 2);
  }
  emulator::wait_for_warp();
}

inline void wait_for_earlier_kernels() { emulator::wait_for_earlier(); }
inline void let_later_kernels_start() { emulator::let_later_start(); }
inline void draw_line(const void* address) { emulator::drawn.push_back(address); }

inline void widen_halves(uint32_t word, float* out) {
  out[0] = f16_to_float(static_cast<uint16_t>(word));
  out[1] = f16_to_float(static_cast<uint16_t>(word >> 16));
}

}  // namespace ptq4arvg::cuda
