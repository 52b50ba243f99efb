// gemm_float is the plain one: its inner loop over 16 columns is what the compiler makes vectors of by itself. So are the
// products of attention.
#include "kernels/cpu/attention.h"
#include "kernels/cpu/lanes_neon.h"
#include "kernels/cpu/neon_dotprod_kernels.h"
#include "kernels/cpu/quantize_map.h"
#include "kernels/cpu/rowwise.h"
#include "kernels/cpu/store_kv.h"

namespace ptq4arvg::cpu {

const KernelTable& neon_dotprod_table() {
  static const KernelTable table{"neon_dotprod", gemm_neon_dotprod, scalar_table().gemm_float,
                                 quantize_rows<NeonLanes, ScalarLanes>, norm_quantize_rows<NeonLanes, ScalarLanes>,
                                 attention_heads<PlainDots, NeonLanes, ScalarLanes>,
                                 store_kv_heads<NeonLanes, ScalarLanes>,
                                 quantize_map_lines<NeonLanes, ScalarLanes>};
  return table;
}

}  // namespace ptq4arvg::cpu
