// Kernels that amx_int8.cpp puts in its table.
#pragma once

#include "kernels/cpu/isa.h"

namespace ptq4arvg::cpu {

constexpr int kAmxFewRows = 4;  // up to so many rows AVX-512-VNNI is faster

void gemm_amx_int8(const GemmProblem& problem);
void gemm_decode_amx_int8(const GemmProblem& problem);

}  // namespace ptq4arvg::cpu
