// Tiles pay from some rows on; everything else is the AVX-512-VNNI table's.
#include "kernels/cpu/amx_int8_kernels.h"
#include "kernels/cpu/avx512_vnni_kernels.h"

namespace ptq4arvg::cpu {
namespace {

const KernelTable& choose(const GemmProblem& problem);

}  // namespace

const KernelTable& amx_int8_table() {
  const KernelTable& other = avx512_vnni_table();
  static const KernelTable table{"amx_int8", gemm_amx_int8, other.gemm_float, other.quantize, other.norm_quantize,
                                 other.attention, other.store_kv, other.quantize_map, choose};
  return table;
}

namespace {

const KernelTable& choose(const GemmProblem& problem) {
  return problem.m <= kAmxFewRows ? avx512_vnni_table() : amx_int8_table();
}

}  // namespace
}  // namespace ptq4arvg::cpu
