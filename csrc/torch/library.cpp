// The operator schemas; the kernels of each device register themselves beside it (cpu.cpp).
//
// SymInt where a size may vary under torch.compile without compiling again.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(ptq4arvg, m) {
  m.def("pack_weight(Tensor codes, Tensor? zero, int bits) -> Tensor");
  m.def("unpack_weight(Tensor packed, Tensor? zero, int bits, SymInt n, SymInt k) -> Tensor");
  m.def(
      "quantize(Tensor x, Tensor inv_scale, Tensor zero, int bits, Tensor? position=None, SymInt tokens=0, "
      "int rotation=0) -> Tensor");
  m.def(
      "gate_quantize(Tensor x, Tensor inv_scale, Tensor zero, int bits, *, str activation=\"silu\", "
      "Tensor? position=None, SymInt tokens=0, int rotation=0) -> Tensor");
  m.def(
      "gemm(Tensor a, Tensor w, Tensor a_scale, Tensor w_scale, Tensor? a_zero=None, Tensor? w_sum=None, "
      "Tensor? w_zero=None, Tensor? bias=None, *, int bits=8, Tensor? position=None, SymInt tokens=0, "
      "str activation=\"none\", Tensor? residual=None, Tensor? gate=None, ScalarType out_dtype=6) -> Tensor");
  m.def(
      "gemm_quantize(Tensor a, Tensor w, Tensor a_scale, Tensor w_scale, Tensor? a_zero=None, Tensor? w_sum=None, "
      "Tensor? w_zero=None, Tensor? bias=None, *, Tensor out_inv_scale, Tensor out_zero, int out_bits, int bits=8, "
      "Tensor? position=None, SymInt tokens=0, str activation=\"none\", Tensor? residual=None, Tensor? gate=None, "
      "int out_rotation=0) -> Tensor");
  m.def(
      "norm_quantize(Tensor x, Tensor inv_scale, Tensor zero, int bits, *, Tensor? weight=None, Tensor? bias=None, "
      "Tensor? scale=None, Tensor? shift=None, Tensor? constant=None, Tensor? post_scale=None, "
      "Tensor? post_shift=None, float eps=1e-6, bool rms=False, Tensor? position=None, SymInt tokens=0, int rotation=0) "
      "-> Tensor");
  m.def(
      "gemm_float(Tensor x, Tensor w, Tensor w_scale, Tensor? w_zero=None, Tensor? bias=None, *, int bits=8, "
      "str activation=\"none\", ScalarType out_dtype=6) -> Tensor");
  m.def(
      "quantize_map(Tensor x, Tensor inv_scale, Tensor zero, int bits, *, int groups=0, Tensor? weight=None, "
      "Tensor? bias=None, float eps=1e-6, str activation=\"none\", int scale=1, int border=0) -> Tensor");
  m.def(
      "conv2d(Tensor a, Tensor w, Tensor a_scale, Tensor w_scale, Tensor? a_zero=None, Tensor? w_sum=None, "
      "Tensor? w_zero=None, Tensor? bias=None, *, int bits=8, int kernel_size=3, str activation=\"none\", "
      "Tensor? residual=None, ScalarType out_dtype=6) -> Tensor");
  m.def(
      "store_kv(Tensor k, Tensor v, Tensor(a!) k_cache, Tensor(b!) v_cache, Tensor k_scale, Tensor k_shift, "
      "Tensor v_scale, Tensor v_shift, Tensor? position=None) -> ()");
  m.def(
      "store_qkv(Tensor qkv, Tensor(a!) k_cache, Tensor(b!) v_cache, Tensor k_scale, Tensor k_shift, "
      "Tensor v_scale, Tensor v_shift, *, str norm=\"none\", float eps=1e-6, Tensor? q_weight=None, "
      "Tensor? q_bias=None, Tensor? k_weight=None, Tensor? k_bias=None, Tensor? rotation=None, "
      "Tensor? q_factors=None, float q_factor=1.0, Tensor? position=None) -> Tensor");
  m.def(
      "attention(Tensor q, Tensor k_cache, Tensor v_cache, Tensor k_scale, Tensor v_scale, Tensor v_shift, *, "
      "Tensor? limits=None, Tensor? position=None, ScalarType out_dtype=6) -> Tensor");
  m.def(
      "attention_quantize(Tensor q, Tensor k_cache, Tensor v_cache, Tensor k_scale, Tensor v_scale, Tensor v_shift, *, "
      "Tensor out_inv_scale, Tensor out_zero, int out_bits, Tensor? limits=None, Tensor? position=None, "
      "Tensor? out_position=None, int out_rotation=0) -> Tensor");
}
