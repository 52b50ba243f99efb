// Convolutions on maps of codes, and what makes such maps.
#include <cmath>

#include "torch/calls.h"

namespace ptq4arvg {
namespace {

void require_map(const Arguments& args, const char* name, const Tensor& map) {
  bool filled = map.dim() == 4;
  for (int64_t d = 1; filled && d < 4; ++d) filled = map.size(d) > 0;
  args.require(filled, name, " has shape ", shape_text(map), ", wanted [B, H, W, C] with H, W and C of 1 or more");
}

void require_one(const Arguments& args, const char* name, const Tensor& table) {
  args.require(table.numel() == 1, name, " has ", table.numel(), " entries, wanted 1: pixels have no positions");
}

Tensor empty_map(const Tensor& like, int64_t height, int64_t width, int64_t channels, ScalarType dtype) {
  return torch::stable::empty({like.size(0), height, width, channels}, dtype, torch::headeronly::Layout::Strided,
                              like.device());
}

}  // namespace

Tensor call_quantize_map(const QuantizeMapArguments& given, const Run<QuantizeMapProblem>& run) {
  Arguments args("quantize_map", "x", given.x);
  QuantizeMapProblem p;
  const int bits = args.bits("bits", given.bits);
  require_map(args, "x", given.x);
  p.images = given.x.size(0);
  p.height = given.x.size(1);
  p.width = given.x.size(2);
  p.channels = given.x.size(3);
  p.x = as_matrix(args.floats("x", given.x));
  require_one(args, "inv_scale", given.inv_scale);
  p.table = args.table("inv_scale", "zero", given.inv_scale, given.zero, bits);
  args.require(given.groups >= 0 && (given.groups == 0 || p.channels % given.groups == 0), "groups is ", given.groups,
               " and C ", p.channels, "; wanted 0 (no norm), or a number that divides C");
  p.groups = given.groups;
  args.require(p.groups || (!given.weight && !given.bias),
               "weight or bias is given, but groups is 0 (no norm); wanted ", "both None, or groups of 1 or more");
  p.weight = args.any_vector("weight", given.weight, p.channels);
  p.bias = args.any_vector("bias", given.bias, p.channels);
  args.require(given.eps >= 0.0 && std::isfinite(given.eps), "eps is ", given.eps,
               ", wanted a finite number, 0 or more");
  p.eps = given.eps;
  p.activation = args.activation(given.activation);
  args.require(given.scale >= 1 && given.scale <= 8, "scale is ", given.scale, ", wanted 1 to 8");
  args.require(given.border >= 0 && given.border <= 8, "border is ", given.border, ", wanted 0 to 8");
  p.scale = given.scale;
  p.border = given.border;
  Tensor out = empty_map(given.x, p.out_height(), p.out_width(), p.channels, ScalarType::Char);
  p.out = static_cast<int8_t*>(out.mutable_data_ptr());
  if (p.images > 0) run(p);
  return out;
}

Tensor call_conv2d(const GemmArguments& given, int64_t kernel_size, ScalarType out_dtype, const Run<GemmProblem>& run) {
  Arguments args("conv2d", "a", given.a);
  GemmProblem p;
  require_map(args, "a", given.a);
  args.require(given.a.scalar_type() == ScalarType::Char, "a has dtype ", dtype_name(given.a.scalar_type()),
               ", wanted int8");
  const int64_t k = kernel_size, most = given.a.size(1) < given.a.size(2) ? given.a.size(1) : given.a.size(2);
  args.require(k >= 1 && k <= most, "kernel_size is ", k, " and a has shape ", shape_text(given.a),
               "; wanted one from 1 to H and W");
  const int64_t height = given.a.size(1) - k + 1, width = given.a.size(2) - k + 1;
  require_one(args, "a_scale", given.a_scale);
  const Tensor a = given.a.is_contiguous() ? given.a : torch::stable::contiguous(given.a);
  p.a = static_cast<const int8_t*>(a.const_data_ptr());
  p.m = a.size(0) * height * width;
  p.a_stride = a.size(3);
  p.k = k * k * a.size(3);
  if (k > 1) p.patches = {height, width, a.size(3), k};
  fill_gemm(args, given, &p);
  if (given.residual) {
    const Tensor& r = *given.residual;
    const bool same = r.dim() == 4 && r.size(0) == a.size(0) && r.size(1) == height && r.size(2) == width;
    args.require(same, "residual has shape ", shape_text(r), ", wanted [", a.size(0), ", ", height, ", ", width, ", ",
                 p.n, "] (as the output)");
  }
  p.epilogue.out_dtype = args.out_dtype(out_dtype);
  Tensor out = empty_map(a, height, width, p.n, out_dtype);
  p.epilogue.out = out.mutable_data_ptr();
  if (p.m > 0) run(p);
  return out;
}

}  // namespace ptq4arvg
