// The decode kernel on 6-bit weights.
#include "kernels/cuda/decode.cuh"

namespace ptq4arvg::cuda {

cudaError_t decode_w6(const GemmProblem& problem, const DecodePlan& plan, int32_t* partial, const Launch& launch) {
  return decode<6>(problem, plan, partial, launch);
}

}  // namespace ptq4arvg::cuda
