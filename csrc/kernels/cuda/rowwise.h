// Entry points of the CUDA kernels on rows and maps. Problems hold device pointers; m > 0.
#pragma once

#include "kernels/cuda/launch.h"
#include "kernels/norm_quantize.h"
#include "kernels/quantize.h"
#include "kernels/quantize_map.h"

namespace ptq4arvg::cuda {

cudaError_t quantize(const QuantizeProblem& problem, const Launch& launch);

// The statistics are float64 sums as on the CPU, added up in another order: float32 mean and rstd differ from the CPU's
// in the last place where the two float64 sums (apart by about 1e-15 relative) straddle a rounding boundary of float32,
// about one row in 1e7; a code of such a row then moves by 1 if it lay that close to a boundary of its own.
cudaError_t norm_quantize(const NormQuantizeProblem& problem, const Launch& launch);

// The same codes as on the CPU: every sum has one order.
cudaError_t quantize_map(const QuantizeMapProblem& problem, const Launch& launch, const Scratch& scratch);

// Can all rows be read 16 bytes at a time?
inline bool vector_rows(const FloatMatrix& x) {
  const int64_t size = x.dtype == DType::f32 ? 4 : 2;
  return reinterpret_cast<uintptr_t>(x.data) % 16 == 0 && x.row_stride * size % 16 == 0;
}

}  // namespace ptq4arvg::cuda
