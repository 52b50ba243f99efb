#include "kernels/cpu/attention.h"
#include "kernels/cpu/avx2_kernels.h"
#include "kernels/cpu/lanes_avx2.h"
#include "kernels/cpu/quantize_map.h"
#include "kernels/cpu/rowwise.h"
#include "kernels/cpu/store_kv.h"

namespace ptq4arvg::cpu {

const KernelTable& avx2_table() {
  static const KernelTable table{"avx2", gemm_avx2, gemm_float_avx2, quantize_rows<Avx2Lanes, ScalarLanes>,
                                 norm_quantize_rows<Avx2Lanes, ScalarLanes>, attention_avx2,
                                 store_kv_heads<Avx2Lanes, ScalarLanes>,
                                 quantize_map_lines<Avx2Lanes, ScalarLanes>};
  return table;
}

}  // namespace ptq4arvg::cpu
