// The operators of a device, which the schemas of library.cpp are registered with.
//
// A Device has
//   runner<Problem>(op, lead)    what runs an operator's kernel; `lead` is its leading tensor
//   pack_weight, unpack_weight   as the operators
#pragma once

#include "torch/calls.h"

namespace ptq4arvg {

template <class Device>
struct Operators {
  template <class Problem>
  static Run<Problem> runner(const char* op, const Tensor& lead) {
    return Device::template runner<Problem>(op, lead);
  }

  static Tensor quantize(const Tensor& x, const Tensor& inv_scale, const Tensor& zero, int64_t bits,
                         const OptionalTensor& position, int64_t tokens, int64_t rotation) {
    return call_quantize({x, inv_scale, zero, bits, position, tokens, rotation},
                         runner<QuantizeProblem>("quantize", x));
  }

  static Tensor gate_quantize(const Tensor& x, const Tensor& inv_scale, const Tensor& zero, int64_t bits,
                              const std::string& activation, const OptionalTensor& position, int64_t tokens,
                              int64_t rotation) {
    return call_quantize({x, inv_scale, zero, bits, position, tokens, rotation, &activation},
                         runner<QuantizeProblem>("gate_quantize", x));
  }

  static Tensor gemm(const Tensor& a, const Tensor& w, const Tensor& a_scale, const Tensor& w_scale,
                     const OptionalTensor& a_zero, const OptionalTensor& w_sum, const OptionalTensor& w_zero,
                     const OptionalTensor& bias, int64_t bits, const OptionalTensor& position, int64_t tokens,
                     const std::string& activation, const OptionalTensor& residual, const OptionalTensor& gate,
                     ScalarType out_dtype) {
    return call_gemm(
        {a, w, a_scale, w_scale, a_zero, w_sum, w_zero, bias, bits, position, tokens, activation, residual, gate},
        out_dtype, runner<GemmProblem>("gemm", a));
  }

  static Tensor gemm_quantize(const Tensor& a, const Tensor& w, const Tensor& a_scale, const Tensor& w_scale,
                              const OptionalTensor& a_zero, const OptionalTensor& w_sum, const OptionalTensor& w_zero,
                              const OptionalTensor& bias, const Tensor& out_inv_scale, const Tensor& out_zero,
                              int64_t out_bits, int64_t bits, const OptionalTensor& position, int64_t tokens,
                              const std::string& activation, const OptionalTensor& residual, const OptionalTensor& gate,
                              int64_t out_rotation) {
    return call_gemm_quantize(
        {a, w, a_scale, w_scale, a_zero, w_sum, w_zero, bias, bits, position, tokens, activation, residual, gate},
        {out_inv_scale, out_zero, out_bits, out_rotation}, runner<GemmProblem>("gemm_quantize", a));
  }

  static Tensor norm_quantize(const Tensor& x, const Tensor& inv_scale, const Tensor& zero, int64_t bits,
                              const OptionalTensor& weight, const OptionalTensor& bias, const OptionalTensor& scale,
                              const OptionalTensor& shift, const OptionalTensor& constant,
                              const OptionalTensor& post_scale, const OptionalTensor& post_shift, double eps, bool rms,
                              const OptionalTensor& position, int64_t tokens, int64_t rotation) {
    return call_norm_quantize({x, inv_scale, zero, bits, weight, bias, scale, shift, constant, post_scale, post_shift,
                               eps, rms, position, tokens, rotation},
                              runner<NormQuantizeProblem>("norm_quantize", x));
  }

  static Tensor gemm_float(const Tensor& x, const Tensor& w, const Tensor& w_scale, const OptionalTensor& w_zero,
                           const OptionalTensor& bias, int64_t bits, const std::string& activation,
                           ScalarType out_dtype) {
    return call_gemm_float(x, w, w_scale, w_zero, bias, bits, activation, out_dtype,
                           runner<GemmFloatProblem>("gemm_float", x));
  }

  static void store_kv(const Tensor& k, const Tensor& v, const Tensor& k_cache, const Tensor& v_cache,
                       const Tensor& k_scale, const Tensor& k_shift, const Tensor& v_scale, const Tensor& v_shift,
                       const OptionalTensor& position) {
    call_store_kv({k, v, k_cache, v_cache, k_scale, k_shift, v_scale, v_shift, position},
                  runner<StoreKvProblem>("store_kv", k));
  }

  static Tensor store_qkv(const Tensor& qkv, const Tensor& k_cache, const Tensor& v_cache, const Tensor& k_scale,
                          const Tensor& k_shift, const Tensor& v_scale, const Tensor& v_shift, const std::string& norm,
                          double eps, const OptionalTensor& q_weight, const OptionalTensor& q_bias,
                          const OptionalTensor& k_weight, const OptionalTensor& k_bias, const OptionalTensor& rotation,
                          const OptionalTensor& q_factors, double q_factor, const OptionalTensor& position) {
    return call_store_qkv({qkv, k_cache, v_cache, k_scale, k_shift, v_scale, v_shift, norm, eps, q_weight, q_bias,
                           k_weight, k_bias, rotation, q_factors, q_factor, position},
                          runner<StoreKvProblem>("store_qkv", qkv));
  }

  static Tensor attention(const Tensor& q, const Tensor& k_cache, const Tensor& v_cache, const Tensor& k_scale,
                          const Tensor& v_scale, const Tensor& v_shift, const OptionalTensor& limits,
                          const OptionalTensor& position, ScalarType out_dtype) {
    return call_attention({q, k_cache, v_cache, k_scale, v_scale, v_shift, limits, position}, out_dtype,
                          runner<AttentionProblem>("attention", q));
  }

  static Tensor attention_quantize(const Tensor& q, const Tensor& k_cache, const Tensor& v_cache, const Tensor& k_scale,
                                   const Tensor& v_scale, const Tensor& v_shift, const Tensor& out_inv_scale,
                                   const Tensor& out_zero, int64_t out_bits, const OptionalTensor& limits,
                                   const OptionalTensor& position, const OptionalTensor& out_position,
                                   int64_t out_rotation) {
    return call_attention_quantize({q, k_cache, v_cache, k_scale, v_scale, v_shift, limits, position},
                                   {out_inv_scale, out_zero, out_bits, out_rotation}, out_position,
                                   runner<AttentionProblem>("attention_quantize", q));
  }

  static Tensor quantize_map(const Tensor& x, const Tensor& inv_scale, const Tensor& zero, int64_t bits, int64_t groups,
                             const OptionalTensor& weight, const OptionalTensor& bias, double eps,
                             const std::string& activation, int64_t scale, int64_t border) {
    return call_quantize_map({x, inv_scale, zero, bits, groups, weight, bias, eps, activation, scale, border},
                             runner<QuantizeMapProblem>("quantize_map", x));
  }

  static Tensor conv2d(const Tensor& a, const Tensor& w, const Tensor& a_scale, const Tensor& w_scale,
                       const OptionalTensor& a_zero, const OptionalTensor& w_sum, const OptionalTensor& w_zero,
                       const OptionalTensor& bias, int64_t bits, int64_t kernel_size, const std::string& activation,
                       const OptionalTensor& residual, ScalarType out_dtype) {
    const OptionalTensor none;
    return call_conv2d({a, w, a_scale, w_scale, a_zero, w_sum, w_zero, bias, bits, none, 0, activation, residual, none},
                       kernel_size, out_dtype, runner<GemmProblem>("conv2d", a));
  }

  template <class Library>
  static void implement(Library& m) {
    m.impl("pack_weight", TORCH_BOX(&Device::pack_weight));
    m.impl("unpack_weight", TORCH_BOX(&Device::unpack_weight));
    m.impl("quantize", TORCH_BOX(&Operators::quantize));
    m.impl("gate_quantize", TORCH_BOX(&Operators::gate_quantize));
    m.impl("gemm", TORCH_BOX(&Operators::gemm));
    m.impl("gemm_quantize", TORCH_BOX(&Operators::gemm_quantize));
    m.impl("norm_quantize", TORCH_BOX(&Operators::norm_quantize));
    m.impl("gemm_float", TORCH_BOX(&Operators::gemm_float));
    m.impl("store_kv", TORCH_BOX(&Operators::store_kv));
    m.impl("store_qkv", TORCH_BOX(&Operators::store_qkv));
    m.impl("quantize_map", TORCH_BOX(&Operators::quantize_map));
    m.impl("conv2d", TORCH_BOX(&Operators::conv2d));
    m.impl("attention", TORCH_BOX(&Operators::attention));
    m.impl("attention_quantize", TORCH_BOX(&Operators::attention_quantize));
  }
};

}  // namespace ptq4arvg
