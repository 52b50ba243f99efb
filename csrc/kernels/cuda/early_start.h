// Whether kernels may start while earlier ones of their stream still run (programmatic dependent launch, sm_90).
//
// What makes it safe: each block of a kernel that is launched so waits for the kernel before it (ptx.cuh) before it
// reads or writes global memory, and before it ends. So a kernel that has ended has waited, and when one has waited for
// the one before it, all earlier ones have ended, too.
#pragma once

namespace ptq4arvg::cuda {

// By PTQ4ARVG_CUDA_PDL: 1 for yes; 0, empty or not set for no. Throws std::invalid_argument for anything else.
bool early_start_wanted();

}  // namespace ptq4arvg::cuda
