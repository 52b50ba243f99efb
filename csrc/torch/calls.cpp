#include "torch/calls.h"

#include <cmath>

namespace ptq4arvg {
namespace {

// Everything of a GEMM but its output.
GemmProblem gemm_problem(Arguments& args, const GemmArguments& given) {
  GemmProblem p;
  const Rows a = args.codes("a", given.a);
  p.a = static_cast<const int8_t*>(a.data);
  p.a_stride = a.stride;
  p.m = a.count;
  p.k = a.columns;
  fill_gemm(args, given, &p);
  return p;
}

}  // namespace

void fill_gemm(Arguments& args, const GemmArguments& given, GemmProblem* problem) {
  GemmProblem& p = *problem;
  p.bits = args.bits("bits", given.bits);
  args.require(p.k <= kMaxDepth, "a has K ", p.k, ", wanted at most ", kMaxDepth, " so that sums fit in int32");
  Epilogue& e = p.epilogue;
  e.w_scale = args.scales("w_scale", given.w_scale);
  p.n = given.w_scale.numel();
  p.w = args.packed("w", given.w, p.n, p.k, p.bits);
  p.w_zero = args.weight_zeros("w_zero", given.w_zero, p.n, p.bits);
  e.w_sum = args.integers("w_sum", given.w_sum, p.n, INT32_MIN, INT32_MAX, "N");
  e.bias = args.vector("bias", given.bias, p.n);
  e.a_scale = args.scales("a_scale", given.a_scale);
  const int64_t positions = given.a_scale.numel();
  e.a_zero = args.integers("a_zero", given.a_zero, positions, -128, 127, "one for each position of a_scale");
  p.rows = args.positions(given.position, given.tokens, "a_scale", positions);
  e.activation = args.activation(given.activation);
  e.residual = args.matrix("residual", given.residual, p.m, p.n, "as the output");
  if (given.gate) {
    args.require(p.m % p.rows.tokens == 0, "gate needs whole images, but ", p.m, " rows are not a multiple of tokens ",
                 p.rows.tokens);
    e.gate = args.matrix("gate", given.gate, p.m / p.rows.tokens, p.n, "images, N");
  }
}

Tensor call_pack_weight(const Tensor& codes, const OptionalTensor& zero, int64_t bits,
                        int64_t (*packed_bytes)(int64_t n, int64_t k, int bits),
                        void (*pack)(const PackProblem&, const int8_t* codes, uint8_t* packed)) {
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
  int64_t bytes = packed_bytes(p.n, p.k, p.bits);
  Tensor packed = torch::stable::empty(torch::headeronly::IntHeaderOnlyArrayRef(&bytes, 1), ScalarType::Byte,
                                       torch::headeronly::Layout::Strided, codes.device());
  pack(p, data, static_cast<uint8_t*>(packed.mutable_data_ptr()));
  return packed;
}

Tensor call_unpack_weight(const Tensor& packed, const OptionalTensor& zero, int64_t bits, int64_t n, int64_t k,
                          const std::function<void(const PackProblem&, const uint8_t* packed, int8_t* codes)>& unpack) {
  Arguments args("unpack_weight", "packed", packed);
  PackProblem p;
  p.bits = args.bits("bits", bits);
  args.require(n > 0 && k > 0, "n is ", n, " and k is ", k, ", wanted 1 or more");
  p.n = n;
  p.k = k;
  p.zero = args.weight_zeros("zero", zero, n, p.bits);
  const uint8_t* data = args.packed("packed", packed, n, k, p.bits);
  Tensor codes = torch::stable::empty({n, k}, ScalarType::Char, torch::headeronly::Layout::Strided, packed.device());
  unpack(p, data, static_cast<int8_t*>(codes.mutable_data_ptr()));
  return codes;
}

Tensor call_gemm(const GemmArguments& given, ScalarType out_dtype, const Run<GemmProblem>& run) {
  Arguments args("gemm", "a", given.a);
  GemmProblem p = gemm_problem(args, given);
  p.epilogue.out_dtype = args.out_dtype(out_dtype);
  Tensor out = args.empty(given.a, p.n, out_dtype);
  p.epilogue.out = out.mutable_data_ptr();
  if (p.m > 0) run(p);
  return out;
}

Tensor call_gemm_quantize(const GemmArguments& given, const Requantize& to, const Run<GemmProblem>& run) {
  Arguments args("gemm_quantize", "a", given.a);
  GemmProblem p = gemm_problem(args, given);
  p.epilogue.requantize = true;
  p.epilogue.out_table =
      args.table("out_inv_scale", "out_zero", to.inv_scale, to.zero, args.bits("out_bits", to.bits));
  args.covers("out_inv_scale", to.inv_scale.numel(), p.rows);
  p.epilogue.rotation = args.rotation("out_rotation", to.rotation, "N", p.n, kMaxEpilogueRotation);
  Tensor out = args.empty(given.a, p.n, ScalarType::Char);
  p.epilogue.out = out.mutable_data_ptr();
  if (p.m > 0) run(p);
  return out;
}

Tensor call_quantize(const QuantizeArguments& given, const Run<QuantizeProblem>& run) {
  const bool gated = given.activation != nullptr;
  Arguments args(gated ? "gate_quantize" : "quantize", "x", given.x);
  QuantizeProblem p;
  const int bits = args.bits("bits", given.bits);
  const Rows rows = args.floats("x", given.x);
  p.m = rows.count;
  p.k = rows.columns;
  p.x = as_matrix(rows);
  if (gated) {
    args.require(p.k % 2 == 0, "x has shape ", shape_text(given.x), ", wanted [..., 2 K]: gates, then what they gate");
    p.k /= 2;
    p.gated = true;
    p.activation = args.activation(*given.activation);
  }
  p.table = args.table("inv_scale", "zero", given.inv_scale, given.zero, bits);
  p.rows = args.positions(given.position, given.tokens, "inv_scale", given.inv_scale.numel());
  p.rotation = args.rotation("rotation", given.rotation, "K", p.k, kMaxRotation);
  Tensor out = args.empty(given.x, p.k, ScalarType::Char);
  p.out = static_cast<int8_t*>(out.mutable_data_ptr());
  if (p.m > 0) run(p);
  return out;
}

Tensor call_norm_quantize(const NormArguments& given, const Run<NormQuantizeProblem>& run) {
  Arguments args("norm_quantize", "x", given.x);
  NormQuantizeProblem p;
  const int bits = args.bits("bits", given.bits);
  const Rows rows = args.floats("x", given.x);
  p.m = rows.count;
  p.k = rows.columns;
  p.x = as_matrix(rows);
  p.table = args.table("inv_scale", "zero", given.inv_scale, given.zero, bits);
  p.rows = args.positions(given.position, given.tokens, "inv_scale", given.inv_scale.numel());
  p.weight = args.any_vector("weight", given.weight, p.k);
  p.bias = args.any_vector("bias", given.bias, p.k);
  p.constant = args.any_vector("constant", given.constant, p.k);
  p.post_scale = args.any_vector("post_scale", given.post_scale, p.k);
  p.post_shift = args.any_vector("post_shift", given.post_shift, p.k);
  if (given.scale || given.shift) {
    args.require(p.m % p.rows.tokens == 0, "scale and shift need whole images, but ", p.m,
                 " rows are not a multiple of tokens ", p.rows.tokens);
    p.scale = args.matrix("scale", given.scale, p.m / p.rows.tokens, p.k, "images, K");
    p.shift = args.matrix("shift", given.shift, p.m / p.rows.tokens, p.k, "images, K");
  }
  args.require(given.eps >= 0.0 && std::isfinite(given.eps), "eps is ", given.eps, ", wanted a finite number, 0 or more");
  p.eps = given.eps;
  p.rms = given.rms;
  p.rotation = args.rotation("rotation", given.rotation, "K", p.k, kMaxRotation);
  Tensor out = args.empty(given.x, p.k, ScalarType::Char);
  p.out = static_cast<int8_t*>(out.mutable_data_ptr());
  if (p.m > 0) run(p);
  return out;
}

Tensor call_gemm_float(const Tensor& x, const Tensor& w, const Tensor& w_scale, const OptionalTensor& w_zero,
                       const OptionalTensor& bias, int64_t bits, const std::string& activation, ScalarType out_dtype,
                       const Run<GemmFloatProblem>& run) {
  Arguments args("gemm_float", "x", x);
  GemmFloatProblem p;
  p.bits = args.bits("bits", bits);
  const Rows rows = args.floats("x", x);
  p.m = rows.count;
  p.k = rows.columns;
  p.x = as_matrix(rows);
  p.w_scale = args.scales("w_scale", w_scale);
  p.n = w_scale.numel();
  p.w = args.packed("w", w, p.n, p.k, p.bits);
  p.w_zero = args.weight_zeros("w_zero", w_zero, p.n, p.bits);
  p.bias = args.vector("bias", bias, p.n);
  p.activation = args.activation(activation);
  p.out_dtype = args.out_dtype(out_dtype);
  Tensor out = args.empty(x, p.n, out_dtype);
  p.out = out.mutable_data_ptr();
  if (p.m > 0) run(p);
  return out;
}

}  // namespace ptq4arvg
