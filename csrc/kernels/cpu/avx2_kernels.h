// Kernels that avx2.cpp puts in its table and that avx512_vnni.cpp borrows.
#pragma once

#include "kernels/cpu/isa.h"

namespace ptq4arvg::cpu {

void gemm_avx2(const GemmProblem& problem);
void gemm_float_avx2(const GemmFloatProblem& problem);
void attention_avx2(const AttentionProblem& problem);

}  // namespace ptq4arvg::cpu
