// torch's current CUDA stream, without linking to torch's CUDA library.
#pragma once

#include <cuda_runtime_api.h>

namespace ptq4arvg::cuda_ops {

cudaStream_t current_stream(int device);

}  // namespace ptq4arvg::cuda_ops
