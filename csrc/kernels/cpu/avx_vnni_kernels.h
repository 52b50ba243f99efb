// Kernels that avx_vnni.cpp puts in its table.
#pragma once

#include "kernels/cpu/isa.h"

namespace ptq4arvg::cpu {

void gemm_avx_vnni(const GemmProblem& problem);

}  // namespace ptq4arvg::cpu
