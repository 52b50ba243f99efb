// Kernels that avx512_vnni.cpp puts in its table.
#pragma once

#include "kernels/cpu/isa.h"

namespace ptq4arvg::cpu {

constexpr int kDecodeRows = 16;  // at most so many are few: gemm_decode_avx512_vnni
constexpr int64_t kDecodeGrain = 192 * 1024;  // bytes of weights that are worth a thread

void gemm_avx512_vnni(const GemmProblem& problem);
void gemm_decode_avx512_vnni(const GemmProblem& problem);
void gemm_float_avx512_vnni(const GemmFloatProblem& problem);
void attention_avx512_vnni(const AttentionProblem& problem);

}  // namespace ptq4arvg::cpu
