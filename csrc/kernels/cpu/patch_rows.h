// The codes of a product's row in one piece.
#pragma once

#include <cstring>

#include "kernels/gemm.h"

namespace ptq4arvg::cpu {
namespace {  // compiled for several instruction sets: internal linkage, see real.h

// Bytes of `room` that row_codes needs.
PTQ4ARVG_FN int64_t row_room(const GemmProblem& p) { return p.patches.height ? (p.k + 63) / 64 * 64 : 0; }

// Where the codes of row m lie; those of a patch are gathered in `room`.
PTQ4ARVG_FN const int8_t* row_codes(const GemmProblem& p, int64_t m, int8_t* room) {
  if (!p.patches.height) return p.a + m * p.a_stride;
  const int64_t piece = p.patches.piece(), line = p.patches.line();
  const int8_t* from = p.a + p.patches.start(m);
  for (int64_t i = 0; i < p.patches.kernel; ++i) memcpy(room + i * piece, from + i * line, piece);
  return room;
}

}  // namespace
}  // namespace ptq4arvg::cpu
