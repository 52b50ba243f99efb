// The decode kernel on 8-bit weights.
#include "kernels/cuda/decode.cuh"

namespace ptq4arvg::cuda {

cudaError_t decode_w8(const GemmProblem& problem, const DecodePlan& plan, int32_t* partial, const Launch& launch) {
  return decode<8>(problem, plan, partial, launch);
}

}  // namespace ptq4arvg::cuda
