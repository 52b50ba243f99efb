// The decode kernel on 4-bit weights.
#include "kernels/cuda/decode.cuh"

namespace ptq4arvg::cuda {

cudaError_t decode_w4(const GemmProblem& problem, const DecodePlan& plan, int32_t* partial, const Launch& launch) {
  return decode<4>(problem, plan, partial, launch);
}

}  // namespace ptq4arvg::cuda
