// CPU kernels of the operators, and torch's threads for them.
#include "torch/calls.h"

#include "kernels/parallel.h"

namespace ptq4arvg::cpu_ops {
namespace {

Tensor pack_weight(const Tensor& codes, const OptionalTensor& zero, int64_t bits) {
  return call_pack_weight(codes, zero, bits, cpu::packed_bytes, cpu::pack_weight);
}

Tensor unpack_weight(const Tensor& packed, const OptionalTensor& zero, int64_t bits, int64_t n, int64_t k) {
  return call_unpack_weight(packed, zero, bits, n, k, cpu::unpack_weight);
}

Tensor quantize(const Tensor& x, const Tensor& inv_scale, const Tensor& zero, int64_t bits,
                const OptionalTensor& position, int64_t tokens, int64_t rotation) {
  return call_quantize(x, inv_scale, zero, bits, position, tokens, rotation, cpu::quantize);
}

Tensor gemm(const Tensor& a, const Tensor& w, const Tensor& a_scale, const Tensor& w_scale,
            const OptionalTensor& a_zero, const OptionalTensor& w_sum, const OptionalTensor& w_zero,
            const OptionalTensor& bias, int64_t bits, const OptionalTensor& position, int64_t tokens,
            const std::string& activation, const OptionalTensor& residual, const OptionalTensor& gate,
            ScalarType out_dtype) {
  return call_gemm({a, w, a_scale, w_scale, a_zero, w_sum, w_zero, bias, bits, position, tokens, activation, residual,
                    gate},
                   out_dtype, cpu::gemm);
}

Tensor gemm_quantize(const Tensor& a, const Tensor& w, const Tensor& a_scale, const Tensor& w_scale,
                     const OptionalTensor& a_zero, const OptionalTensor& w_sum, const OptionalTensor& w_zero,
                     const OptionalTensor& bias, const Tensor& out_inv_scale, const Tensor& out_zero, int64_t out_bits,
                     int64_t bits, const OptionalTensor& position, int64_t tokens, const std::string& activation,
                     const OptionalTensor& residual, const OptionalTensor& gate, int64_t out_rotation) {
  return call_gemm_quantize({a, w, a_scale, w_scale, a_zero, w_sum, w_zero, bias, bits, position, tokens, activation,
                             residual, gate},
                            {out_inv_scale, out_zero, out_bits, out_rotation}, cpu::gemm);
}

Tensor norm_quantize(const Tensor& x, const Tensor& inv_scale, const Tensor& zero, int64_t bits,
                     const OptionalTensor& weight, const OptionalTensor& bias, const OptionalTensor& scale,
                     const OptionalTensor& shift, const OptionalTensor& constant, const OptionalTensor& post_scale,
                     const OptionalTensor& post_shift, double eps, bool rms, const OptionalTensor& position,
                     int64_t tokens, int64_t rotation) {
  return call_norm_quantize({x, inv_scale, zero, bits, weight, bias, scale, shift, constant, post_scale, post_shift,
                             eps, rms, position, tokens, rotation},
                            cpu::norm_quantize);
}

Tensor gemm_float(const Tensor& x, const Tensor& w, const Tensor& w_scale, const OptionalTensor& w_zero,
                  const OptionalTensor& bias, int64_t bits, const std::string& activation, ScalarType out_dtype) {
  return call_gemm_float(x, w, w_scale, w_zero, bias, bits, activation, out_dtype, cpu::gemm_float);
}

void store_kv(const Tensor& k, const Tensor& v, const Tensor& k_cache, const Tensor& v_cache, const Tensor& k_scale,
              const Tensor& k_shift, const Tensor& v_scale, const Tensor& v_shift, const OptionalTensor& position) {
  call_store_kv({k, v, k_cache, v_cache, k_scale, k_shift, v_scale, v_shift, position}, cpu::store_kv);
}

Tensor store_qkv(const Tensor& qkv, const Tensor& k_cache, const Tensor& v_cache, const Tensor& k_scale,
                 const Tensor& k_shift, const Tensor& v_scale, const Tensor& v_shift, const std::string& norm, double eps,
                 const OptionalTensor& q_weight, const OptionalTensor& q_bias, const OptionalTensor& k_weight,
                 const OptionalTensor& k_bias, const OptionalTensor& rotation, const OptionalTensor& q_factors,
                 double q_factor, const OptionalTensor& position) {
  return call_store_qkv({qkv, k_cache, v_cache, k_scale, k_shift, v_scale, v_shift, norm, eps, q_weight, q_bias, k_weight,
                         k_bias, rotation, q_factors, q_factor, position},
                        cpu::store_kv);
}

Tensor attention(const Tensor& q, const Tensor& k_cache, const Tensor& v_cache, const Tensor& k_scale,
                 const Tensor& v_scale, const Tensor& v_shift, const OptionalTensor& limits,
                 const OptionalTensor& position, ScalarType out_dtype) {
  return call_attention({q, k_cache, v_cache, k_scale, v_scale, v_shift, limits, position}, out_dtype, cpu::attention);
}

void torch_parallel(int64_t begin, int64_t end, int64_t grain, RangeFunction function, void* context) {
  TORCH_ERROR_CODE_CHECK(torch_parallel_for(begin, end, grain, function, context));
}

int torch_threads() { return static_cast<int>(torch::stable::get_num_threads()); }

}  // namespace
}  // namespace ptq4arvg::cpu_ops

STABLE_TORCH_LIBRARY_IMPL(ptq4arvg, CPU, m) {
  ptq4arvg::set_parallel({ptq4arvg::cpu_ops::torch_parallel, ptq4arvg::cpu_ops::torch_threads});
  m.impl("pack_weight", TORCH_BOX(&ptq4arvg::cpu_ops::pack_weight));
  m.impl("unpack_weight", TORCH_BOX(&ptq4arvg::cpu_ops::unpack_weight));
  m.impl("quantize", TORCH_BOX(&ptq4arvg::cpu_ops::quantize));
  m.impl("gemm", TORCH_BOX(&ptq4arvg::cpu_ops::gemm));
  m.impl("gemm_quantize", TORCH_BOX(&ptq4arvg::cpu_ops::gemm_quantize));
  m.impl("norm_quantize", TORCH_BOX(&ptq4arvg::cpu_ops::norm_quantize));
  m.impl("gemm_float", TORCH_BOX(&ptq4arvg::cpu_ops::gemm_float));
  m.impl("store_kv", TORCH_BOX(&ptq4arvg::cpu_ops::store_kv));
  m.impl("store_qkv", TORCH_BOX(&ptq4arvg::cpu_ops::store_qkv));
  m.impl("attention", TORCH_BOX(&ptq4arvg::cpu_ops::attention));
}
