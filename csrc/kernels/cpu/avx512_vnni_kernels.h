// Kernels that avx512_vnni.cpp puts in its table.
#pragma once

#include "kernels/cpu/isa.h"

namespace ptq4arvg::cpu {

void gemm_avx512_vnni(const GemmProblem& problem);
void gemm_float_avx512_vnni(const GemmFloatProblem& problem);

}  // namespace ptq4arvg::cpu
