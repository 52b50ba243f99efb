// The rotation of a row before it is quantized: signs, then a Hadamard matrix over each block of neighbouring columns.
//
//   u = H s x     s: +1 and -1, the Golay-Rudin-Shapiro sequence; H: Sylvester's matrix, entries +1 and -1
//
// H is not divided by the square root of its size: scales take that up. It is applied in stages of stride 1, 2, 4, ...:
// of two elements a, b a stride apart, the first becomes a + b and the second a - b. The stages' order is part of the
// format, so that all backends agree bit for bit. The Walsh spectrum of s is flat, so that what all columns of a block
// have in common does not fall into one.
#pragma once

#include "kernels/real.h"

namespace ptq4arvg {

constexpr int kMaxRotation = 128;  // columns of a block: what a warp holds with 16-byte loads of float32
// The same in a GEMM's epilogue: a panel of the CPU's layout, and what a warp holds of a product whichever operand the
// weights are, since mma's tiles have 16 rows.
constexpr int kMaxEpilogueRotation = 16;

// Is the sign of a column -1? The number of pairs of neighbouring ones in its index, odd or even.
PTQ4ARVG_FN constexpr bool negative_column(int64_t k) {
  uint32_t pairs = static_cast<uint32_t>(k) & (static_cast<uint32_t>(k) >> 1) & (kMaxRotation / 2 - 1);
  pairs ^= pairs >> 4;
  pairs ^= pairs >> 2;
  return (pairs ^ (pairs >> 1)) & 1;
}

// Bit i: is that of the i-th column negative, of the 16 neighbours that begin at a multiple of 16 and k is one of?
PTQ4ARVG_FN constexpr uint32_t signs_of_sixteen(int64_t k) {
  uint32_t first = 0;
  for (int i = 0; i < 16; ++i) first |= static_cast<uint32_t>(negative_column(i)) << i;
  return first ^ (k & 16 ? 0xff00u : 0) ^ (negative_column(k & ~int64_t{15}) ? 0xffffu : 0);
}

PTQ4ARVG_FN bool rotation_fits(int64_t block, int64_t k, int64_t most) {
  return block == 0 || (block >= 2 && block <= most && (block & (block - 1)) == 0 && k % block == 0);
}

}  // namespace ptq4arvg
