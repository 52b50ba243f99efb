// Weights into a backend's kernel layout and back.
#pragma once

#include <cstdint>

namespace ptq4arvg {

struct PackProblem {
  int64_t n = 0, k = 0;
  int bits = 8;
  const int32_t* zero = nullptr;  // [n]; null: default_weight_zero(bits) for every column
};

namespace cpu {

int64_t packed_bytes(int64_t n, int64_t k, int bits);

// codes [n, k], zero point taken off; every code + zero must be a level of `bits` bits.
void pack_weight(const PackProblem& problem, const int8_t* codes, uint8_t* packed);
void unpack_weight(const PackProblem& problem, const uint8_t* packed, int8_t* codes);

}  // namespace cpu
}  // namespace ptq4arvg
