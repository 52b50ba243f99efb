// The integer GEMM on CUDA devices: which kernel takes a call, and the call.
#pragma once

#include <vector>

#include "kernels/cuda/decode_plan.h"
#include "kernels/cuda/gemm_cuda.h"
#include "kernels/cuda/launch.h"
#include "kernels/gemm_float.h"

namespace ptq4arvg::cuda {

struct GemmChoice {
  const TileConfig* tile = nullptr;  // null: the decode kernel
  const char* name = nullptr;        // as last_kernel() reports it: "gemm.w6.decode", "gemm.w8.sm80_128x128x64"
  const char* reason = nullptr;
};

constexpr char kDecodeName[] = "decode";

// By the tile table, or by PTQ4ARVG_CUDA_KERNEL, which names one of kernel_names(); products of patches by their columns,
// or by PTQ4ARVG_CUDA_CONV_KERNEL. Reads sizes and the alignment of
// pointers only. Throws std::invalid_argument for a name that is unknown or cannot take the call.
GemmChoice choose_gemm(const GemmProblem& problem, const Device& device);

// The same for operands without any misalignment on an architecture, with no device at hand.
GemmChoice choose_gemm(int64_t m, int64_t n, int64_t k, int bits, int sm);

struct KernelName {
  const char* name;
  int sm_min;
  bool rows, patches;  // what it takes
};

// What choose_gemm can choose in this build: "decode", then the tiled kernels.
const std::vector<KernelName>& kernel_names();

// Device pointers throughout; m > 0. Sets last_kernel().
cudaError_t gemm(const GemmProblem& problem, const Launch& launch, const Scratch& scratch);

// The same for float activations (gemm_float.h works on codes).
cudaError_t gemm_float(const GemmFloatProblem& problem, const Launch& launch, const Scratch& scratch);

}  // namespace ptq4arvg::cuda
