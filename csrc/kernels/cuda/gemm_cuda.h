// The interface between the choice of a CUDA GEMM and the tiled kernels that work on plain int8 codes.
//
// A configuration is a row of data: a name, the oldest architecture it runs on, its tile and three functions. The
// CUTLASS kernels fill one table of them, one configuration per file; the choice among them is in choose.cpp.
//
// What the build does with files below this folder goes by their names (csrc/ptq4arvg_build/sources.py): a .cu file
// with sm90 in its name is compiled for sm_90a alone and left out where that is not wanted, one with sm80 for all
// others, any other file for all. C++ and .cu files see PTQ4ARVG_HAS_SM80 and PTQ4ARVG_HAS_SM90A where those are built,
// and PTQ4ARVG_CUDA_REDUCED in the reduced set, which leaves out every .cu file in cutlass/ but those with `base` in
// the name.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

#include "kernels/gemm.h"

namespace ptq4arvg::cuda {

struct CodesGemm {
  GemmProblem problem;   // a and all pointers of the epilogue on the device; problem.w and its zero points are unused
  const int8_t* codes;   // [n, ldc] row-major, zero points taken off; the tail of a row past k is zero
  int64_t ldc;           // a multiple of 16, >= k
  const int32_t* w_sum;  // [n], never null
  void* workspace;       // what TileConfig::workspace asked for, 256-byte aligned
  size_t workspace_bytes;
  int sm;                // compute capability of the device, 80 to 90 and later
  int sm_count;
  cudaStream_t stream;
  bool early = false;    // early_start.h
};

using GemmLauncher = cudaError_t (*)(const CodesGemm&);

struct TileConfig {
  const char* name;
  int sm_min;  // 80 or 90
  int tile_m, tile_n, tile_k;
  size_t (*workspace)(const CodesGemm&);  // bytes; reads sizes only
  bool (*can_run)(const CodesGemm&);      // alignment and sizes; reads no memory
  GemmLauncher launch;
  bool patches = false;  // for rows that are patches, and no others
};

// Every CUTLASS configuration of this build, each once.
const TileConfig* cutlass_configs(int* count);

}  // namespace ptq4arvg::cuda
