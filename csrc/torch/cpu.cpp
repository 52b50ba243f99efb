// CPU kernels of the operators, and torch's threads for them.
#include "torch/calls.h"

#include "kernels/parallel.h"

namespace ptq4arvg::cpu_ops {
namespace {

Tensor pack_weight(const Tensor& codes, const OptionalTensor& zero, int64_t bits) {
  Arguments args("pack_weight", "codes", codes);
  PackProblem p;
  p.bits = args.bits("bits", bits);
  args.require(codes.dim() == 2, "codes has shape ", shape_text(codes), ", wanted [N, K]");
  const Tensor dense = torch::stable::contiguous(codes);
  const Rows rows = args.codes("codes", dense);
  p.n = rows.count;
  p.k = rows.columns;
  args.require(p.n > 0, "codes has shape ", shape_text(codes), ", wanted N of 1 or more");
  const int64_t top = levels(p.bits) - 1;
  p.zero = args.weight_zeros("zero", zero, p.n, p.bits);
  const int8_t* data = static_cast<const int8_t*>(rows.data);
  for (int64_t n = 0; n < p.n; ++n) {
    const int64_t shift = p.bits == 8 ? 0 : p.zero ? p.zero[n] : default_weight_zero(p.bits);
    const int64_t low = p.bits == 8 ? -127 : -shift, high = p.bits == 8 ? 127 : top - shift;
    for (int64_t k = 0; k < p.k; ++k) {
      const int code = data[n * p.k + k];
      args.require(code >= low && code <= high, "codes[", n, ", ", k, "] is ", code, ", wanted ", low, " to ", high,
                   " (", p.bits, " bits, zero ", shift, ")");
    }
  }
  int64_t bytes = cpu::packed_bytes(p.n, p.k, p.bits);
  Tensor packed = torch::stable::empty(torch::headeronly::IntHeaderOnlyArrayRef(&bytes, 1), ScalarType::Byte,
                                       torch::headeronly::Layout::Strided, codes.device());
  cpu::pack_weight(p, data, static_cast<uint8_t*>(packed.mutable_data_ptr()));
  return packed;
}

Tensor unpack_weight(const Tensor& packed, const OptionalTensor& zero, int64_t bits, int64_t n, int64_t k) {
  Arguments args("unpack_weight", "packed", packed);
  PackProblem p;
  p.bits = args.bits("bits", bits);
  args.require(n > 0 && k > 0, "n is ", n, " and k is ", k, ", wanted 1 or more");
  p.n = n;
  p.k = k;
  p.zero = args.weight_zeros("zero", zero, n, p.bits);
  const uint8_t* data = args.packed("packed", packed, n, k, p.bits);
  Tensor codes = torch::stable::empty({n, k}, ScalarType::Char, torch::headeronly::Layout::Strided, packed.device());
  cpu::unpack_weight(p, data, static_cast<int8_t*>(codes.mutable_data_ptr()));
  return codes;
}

Tensor quantize(const Tensor& x, const Tensor& inv_scale, const Tensor& zero, int64_t bits,
                const OptionalTensor& position, int64_t tokens) {
  return call_quantize(x, inv_scale, zero, bits, position, tokens, cpu::quantize);
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
                     const OptionalTensor& residual, const OptionalTensor& gate) {
  return call_gemm_quantize({a, w, a_scale, w_scale, a_zero, w_sum, w_zero, bias, bits, position, tokens, activation,
                             residual, gate},
                            {out_inv_scale, out_zero, out_bits}, cpu::gemm);
}

Tensor norm_quantize(const Tensor& x, const Tensor& inv_scale, const Tensor& zero, int64_t bits,
                     const OptionalTensor& weight, const OptionalTensor& bias, const OptionalTensor& scale,
                     const OptionalTensor& shift, const OptionalTensor& constant, const OptionalTensor& post_scale,
                     const OptionalTensor& post_shift, double eps, bool rms, const OptionalTensor& position,
                     int64_t tokens) {
  return call_norm_quantize({x, inv_scale, zero, bits, weight, bias, scale, shift, constant, post_scale, post_shift,
                             eps, rms, position, tokens},
                            cpu::norm_quantize);
}

Tensor gemm_float(const Tensor& x, const Tensor& w, const Tensor& w_scale, const OptionalTensor& w_zero,
                  const OptionalTensor& bias, int64_t bits, const std::string& activation, ScalarType out_dtype) {
  return call_gemm_float(x, w, w_scale, w_zero, bias, bits, activation, out_dtype, cpu::gemm_float);
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
}
