// Streams, events, copies and graphs of CUDA's runtime library, as far as PyTorch uses them. Work is done when it is
// submitted, in the order of submission, or recorded where its stream is captured.
#pragma once

#include <cuda_runtime_api.h>

#include <functional>
#include <string>

namespace ptx {

using Work = std::function<cudaError_t()>;

// The error, kept for cudaGetLastError, and in words.
cudaError_t told(cudaError_t error, const std::string& why);

// Does the work or records it. What a capture forbids ends with CUDA's error for it.
cudaError_t submit(cudaStream_t stream, Work work);

}  // namespace ptx
