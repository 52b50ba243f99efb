// Products with at most kDecodeRows rows, straight from packed weights.
#pragma once

#include "kernels/cuda/decode_plan.h"
#include "kernels/cuda/launch.h"
#include "kernels/gemm.h"

namespace ptq4arvg::cuda {

// Device pointers throughout; workspace of plan.workspace bytes.
cudaError_t decode_gemm(const GemmProblem& problem, const DecodePlan& plan, void* workspace, const Launch& launch);

// One file for each number of bits.
using DecodeLauncher = cudaError_t(const GemmProblem&, const DecodePlan&, int32_t*, const Launch&);
DecodeLauncher decode_w8, decode_w6, decode_w4;

}  // namespace ptq4arvg::cuda
