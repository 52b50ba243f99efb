#include "kernels/cpu/attention.h"
#include "kernels/cpu/avx512_vnni_kernels.h"
#include "kernels/cpu/lanes_avx512.h"
#include "kernels/cpu/quantize_map.h"
#include "kernels/cpu/rowwise.h"
#include "kernels/cpu/store_kv.h"

namespace ptq4arvg::cpu {

const KernelTable& avx512_vnni_table() {
  static const KernelTable table{"avx512_vnni", gemm_avx512_vnni, gemm_float_avx512_vnni,
                                 quantize_rows<Avx512Lanes<true>, Avx512Lanes<false>>,
                                 norm_quantize_rows<Avx512Lanes<true>, Avx512Lanes<false>>, attention_avx512_vnni,
                                 store_kv_heads<Avx512Lanes<true>, Avx512Lanes<false>>,
                                 quantize_map_lines<Avx512Lanes<true>, Avx512Lanes<false>>};
  return table;
}

}  // namespace ptq4arvg::cpu
