// Only the integer product gains from AVX-VNNI; everything else is the AVX2 table's.
#include "kernels/cpu/avx_vnni_kernels.h"

namespace ptq4arvg::cpu {

const KernelTable& avx_vnni_table() {
  const KernelTable& other = avx2_table();
  static const KernelTable table{"avx_vnni", gemm_avx_vnni, other.gemm_float, other.quantize, other.norm_quantize,
                                 other.attention, other.store_kv, other.quantize_map};
  return table;
}

}  // namespace ptq4arvg::cpu
