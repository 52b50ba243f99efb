#include "kernels/cpu/avx2_kernels.h"
#include "kernels/cpu/avx512_vnni_kernels.h"
namespace ptq4arvg::cpu {
void gemm_float_avx512_vnni(const GemmFloatProblem& p) { gemm_float_avx2(p); }
}  // namespace ptq4arvg::cpu
