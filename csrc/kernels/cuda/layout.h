// The packed weight on CUDA devices, and where an element of it lies in the operands of mma.sync.m16n8k32.
//
//   8 bits  int8 [n, round_up(k, 16)] row-major, what CUTLASS reads as it stands
//   4 bits  blocks of 16 columns by 64 k, those of one 16 columns after another along k. A block is 512 bytes: 16 for
//           each lane of a warp, that is four words; word j holds register j of the lane's two A fragments (k 0 to 31
//           in the low halves of its bytes, k 32 to 63 in the high halves)
//   6 bits  a plane as at 4 bits with the low four bits, then a plane with the high two: 256 bytes a block, two words
//           for each lane, word h for k 32 h onwards, register j at bit 2 j of its bytes
// and last the column sums, int32. The weight is the A operand, 16 columns of it at a time, so that up to 8 tokens
// take one instruction. Levels are stored at 6 and 4 bits, so zero points come off when unpacking. Elements past k
// hold their column's zero point and columns past n hold level 0 with zero point 0: both unpack to code 0.
#pragma once

#include "kernels/format.h"

namespace ptq4arvg::cuda {

constexpr int kBlockColumns = 16;
constexpr int kBlockDepth = 64;  // two instructions of 32 k
constexpr int kNibbleBytes = 512, kCrumbBytes = 256;  // of a block
constexpr int kRowAlign = 16;  // bytes: a row of 8-bit codes starts at a multiple, as TMA and 16-byte copies want

PTQ4ARVG_FN int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }
PTQ4ARVG_FN int64_t round_up(int64_t a, int64_t b) { return divide_up(a, b) * b; }

struct Layout {
  int64_t row_bytes;            // 8 bits: of a row
  int64_t tiles, depth_blocks;  // 6 and 4 bits: blocks along n and along k
  int64_t crumbs;               // byte offset of the second plane
  int64_t sums;                 // byte offset of the column sums
  int64_t bytes;
};

PTQ4ARVG_FN Layout layout_of(int64_t n, int64_t k, int bits) {
  const int64_t tiles = divide_up(n, kBlockColumns), blocks = divide_up(k, kBlockDepth);
  Layout layout{round_up(k, kRowAlign), tiles, blocks, tiles * blocks * kNibbleBytes, 0, 0};
  layout.sums = bits == 8 ? n * layout.row_bytes : layout.crumbs + (bits == 6 ? tiles * blocks * kCrumbBytes : 0);
  const int64_t columns = bits == 8 ? n : tiles * kBlockColumns;
  layout.bytes = layout.sums + columns * static_cast<int64_t>(sizeof(int32_t));
  return layout;
}

// Row and k of byte b of register j in a lane's A fragment (16 x 32), and of register j of its B fragment (32 x 8).
struct Place {
  int row, k;
};
PTQ4ARVG_FN Place a_place(int lane, int j, int b) { return {lane / 4 + 8 * (j & 1), 16 * (j >> 1) + lane % 4 * 4 + b}; }
PTQ4ARVG_FN Place b_place(int lane, int j, int b) { return {lane / 4, 16 * j + lane % 4 * 4 + b}; }
// Row and column of element i of a lane's sums (16 x 8).
PTQ4ARVG_FN Place c_place(int lane, int i) { return {lane / 4 + 8 * (i >> 1), lane % 4 * 2 + (i & 1)}; }

// The other way round: which lane, register and byte of a block (h: which 32 k) holds (row, k).
struct Slot {
  int lane, j, b, h;
};
PTQ4ARVG_FN Slot a_slot(int row, int k) {
  const int in = k % 32;
  return {row % 8 * 4 + in % 16 / 4, row / 8 + 2 * (in / 16), in % 4, k / 32};
}

// Byte offsets of a lane's words in the planes; `block` counts as the planes do.
PTQ4ARVG_FN int64_t nibble_offset(int64_t block, int lane) { return block * kNibbleBytes + lane * 16; }
PTQ4ARVG_FN int64_t crumb_offset(int64_t block, int lane) { return block * kCrumbBytes + lane * 8; }

// Four levels below 64 to four codes by four zero points below 64. The top bits keep borrows inside their bytes.
PTQ4ARVG_FN uint32_t codes_of_levels(uint32_t levels, uint32_t zeros) {
  return ((levels | 0x80808080u) - zeros) ^ 0x80808080u;
}
PTQ4ARVG_FN uint32_t four_times(int32_t zero) { return static_cast<uint32_t>(zero) * 0x01010101u; }

// Register j of the A fragment of the 32 k from 32 h on: word j of the lane's nibbles, word h of its crumbs.
PTQ4ARVG_FN uint32_t levels4(uint32_t nibbles, int h) { return (nibbles >> (4 * h)) & 0x0f0f0f0fu; }
PTQ4ARVG_FN uint32_t levels6(uint32_t nibbles, uint32_t crumbs, int h, int j) {
  const uint32_t high = j < 2 ? crumbs << (4 - 2 * j) : crumbs >> (2 * j - 4);
  return levels4(nibbles, h) | (high & 0x30303030u);
}

// Byte offset in shared memory of 16-byte chunk `chunk` of a row of Chunks of them: turned by the row, so that eight
// rows of one chunk lie in different banks.
template <int Chunks>
PTQ4ARVG_FN uint32_t swizzled(int row, int chunk) {
  static_assert(Chunks == 8 || Chunks == 4);
  const int turned = Chunks == 8 ? chunk ^ (row & 7) : chunk ^ ((row >> 1) & 3);
  return static_cast<uint32_t>((row * Chunks + turned) * 16);
}

PTQ4ARVG_FN int32_t zero_of_column(const int32_t* zero, int bits, int64_t n, int64_t column) {
  if (bits == 8 || column >= n) return 0;
  return zero ? zero[column] : default_weight_zero(bits);
}

}  // namespace ptq4arvg::cuda
