// CUDA kernels of the operators. What they run is behind cuda_run.h, so that a build without them has the same text.
#include "torch/cuda_run.h"
#include "torch/operators.h"

STABLE_TORCH_LIBRARY_IMPL(ptq4arvg, CUDA, m) { ptq4arvg::Operators<ptq4arvg::cuda_ops::Device>::implement(m); }
