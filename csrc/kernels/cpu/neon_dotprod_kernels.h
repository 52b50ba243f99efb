// Kernels that neon_dotprod.cpp puts in its table.
#pragma once

#include "kernels/cpu/isa.h"

namespace ptq4arvg::cpu {

void gemm_neon_dotprod(const GemmProblem& problem);

}  // namespace ptq4arvg::cpu
