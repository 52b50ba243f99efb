// The integer product has its own micro-kernel here; what is bound by memory or by float arithmetic in a fixed order
// takes the AVX2 code.
#include "kernels/cpu/avx2_kernels.h"
#include "kernels/cpu/avx512_vnni_kernels.h"

namespace ptq4arvg::cpu {

const KernelTable& avx512_vnni_table() {
  static const KernelTable table{"avx512_vnni", gemm_avx512_vnni, gemm_float_avx2, avx2_table().quantize,
                                 avx2_table().norm_quantize};
  return table;
}

}  // namespace ptq4arvg::cpu
