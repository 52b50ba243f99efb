// From checked operator arguments to a kernel's problem. The same for every device; `run` is the device's kernel.
#pragma once

#include <functional>

#include "kernels/attention.h"
#include "kernels/gemm.h"
#include "kernels/gemm_float.h"
#include "kernels/norm_quantize.h"
#include "kernels/pack.h"
#include "kernels/quantize.h"
#include "kernels/quantize_map.h"
#include "kernels/store_kv.h"
#include "torch/arguments.h"

namespace ptq4arvg {

// A device's kernel for checked arguments.
template <class Problem>
using Run = std::function<void(const Problem&)>;

// codes and zero in host memory; the result too.
Tensor call_pack_weight(const Tensor& codes, const OptionalTensor& zero, int64_t bits,
                        int64_t (*packed_bytes)(int64_t n, int64_t k, int bits),
                        void (*pack)(const PackProblem&, const int8_t* codes, uint8_t* packed));
Tensor call_unpack_weight(const Tensor& packed, const OptionalTensor& zero, int64_t bits, int64_t n, int64_t k,
                          const std::function<void(const PackProblem&, const uint8_t* packed, int8_t* codes)>& unpack);

struct GemmArguments {
  const Tensor &a, &w, &a_scale, &w_scale;
  const OptionalTensor &a_zero, &w_sum, &w_zero, &bias;
  int64_t bits;
  const OptionalTensor& position;
  int64_t tokens;
  const std::string& activation;
  const OptionalTensor &residual, &gate;
};

// Of a problem whose a, m and k are filled in: everything else but the output.
void fill_gemm(Arguments& args, const GemmArguments& given, GemmProblem* problem);

struct Requantize {
  const Tensor &inv_scale, &zero;
  int64_t bits, rotation;
};

Tensor call_gemm(const GemmArguments& given, ScalarType out_dtype, const Run<GemmProblem>& run);
Tensor call_gemm_quantize(const GemmArguments& given, const Requantize& to, const Run<GemmProblem>& run);

struct QuantizeArguments {
  const Tensor &x, &inv_scale, &zero;
  int64_t bits;
  const OptionalTensor& position;
  int64_t tokens, rotation;
  const std::string* activation = nullptr;  // of the first half of a row, which then gates the second
};

Tensor call_quantize(const QuantizeArguments& given, const Run<QuantizeProblem>& run);

struct NormArguments {
  const Tensor &x, &inv_scale, &zero;
  int64_t bits;
  const OptionalTensor &weight, &bias, &scale, &shift, &constant, &post_scale, &post_shift;
  double eps;
  bool rms;
  const OptionalTensor& position;
  int64_t tokens, rotation;
};

Tensor call_norm_quantize(const NormArguments& given, const Run<NormQuantizeProblem>& run);

Tensor call_gemm_float(const Tensor& x, const Tensor& w, const Tensor& w_scale, const OptionalTensor& w_zero,
                       const OptionalTensor& bias, int64_t bits, const std::string& activation, ScalarType out_dtype,
                       const Run<GemmFloatProblem>& run);

struct QuantizeMapArguments {
  const Tensor &x, &inv_scale, &zero;
  int64_t bits, groups;
  const OptionalTensor &weight, &bias;
  double eps;
  const std::string& activation;
  int64_t scale, border;
};

Tensor call_quantize_map(const QuantizeMapArguments& given, const Run<QuantizeMapProblem>& run);

Tensor call_conv2d(const GemmArguments& given, int64_t kernel_size, ScalarType out_dtype, const Run<GemmProblem>& run);

struct StoreKvArguments {
  const Tensor &k, &v, &k_cache, &v_cache, &k_scale, &k_shift, &v_scale, &v_shift;
  const OptionalTensor& position;
};

void call_store_kv(const StoreKvArguments& given, const Run<StoreKvProblem>& run);

struct StoreQkvArguments {
  const Tensor &qkv, &k_cache, &v_cache, &k_scale, &k_shift, &v_scale, &v_shift;
  const std::string& norm;
  double eps;
  const OptionalTensor &q_weight, &q_bias, &k_weight, &k_bias, &rotation, &q_factors;
  double q_factor;
  const OptionalTensor& position;
};

// Queries [B, t, H, d].
Tensor call_store_qkv(const StoreQkvArguments& given, const Run<StoreKvProblem>& run);

struct AttentionArguments {
  const Tensor &q, &k_cache, &v_cache, &k_scale, &v_scale, &v_shift;
  const OptionalTensor &limits, &position;
};

Tensor call_attention(const AttentionArguments& given, ScalarType out_dtype, const Run<AttentionProblem>& run);

Tensor call_attention_quantize(const AttentionArguments& given, const Requantize& to,
                               const OptionalTensor& out_position, const Run<AttentionProblem>& run);

}  // namespace ptq4arvg
