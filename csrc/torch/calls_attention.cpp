// Checked arguments of the attention operators, and the problems that they make.
#include <climits>
#include <cmath>

#include "torch/calls.h"

namespace ptq4arvg {
namespace {

HeadTensor strided(const Tensor& tensor, int64_t heads_dimension, int64_t tokens_dimension) {
  return {tensor.const_data_ptr(), kernel_dtype(tensor.scalar_type()), tensor.stride(0), tensor.stride(heads_dimension),
          tensor.stride(tokens_dimension)};
}

// Floats [B, H, t, d] with contiguous channels.
HeadTensor heads_of(Arguments& args, const char* name, const Tensor& tensor) {
  args.require(tensor.dim() == 4, name, " has shape ", shape_text(tensor), ", wanted [B, H, t, d]");
  return strided(args.channels(name, tensor), 1, 2);
}

void check_head(const Arguments& args, const char* name, const Tensor& tensor, int64_t heads, const char* wanted) {
  const int64_t size = tensor.size(tensor.dim() - 1);
  args.require(heads > 0 && size > 0 && size % kKeyGroup == 0 && size <= kMaxHeadSize, name, " has shape ",
               shape_text(tensor), ", wanted heads ", wanted, " of d channels, a multiple of ", kKeyGroup, " up to ",
               kMaxHeadSize);
}

constexpr char kOfChannels[] = "one for each channel of a head";
constexpr char kHeads[] = "[B, H, t, d]", kProjections[] = "[B, t, 3, H, d]";

void check_same(const Arguments& args, const char* name, const Tensor& tensor, const Tensor& like) {
  bool same = tensor.dim() == like.dim();
  for (int64_t i = 0; same && i < like.dim(); ++i) same = tensor.size(i) == like.size(i);
  args.require(same, name, " has shape ", shape_text(tensor), ", wanted ", shape_text(like));
}

// The cache's sizes and addresses.
template <class Byte>
KvCache<Byte> cache_of(Arguments& args, int64_t batch, int64_t heads, int64_t size, const Tensor& keys,
                       const Tensor& values) {
  args.require(keys.dim() == 6 && keys.size(0) == batch && keys.size(1) == heads && keys.size(2) > 0 &&
                   keys.size(3) == size / kKeyGroup && keys.size(4) == kKeyPanel && keys.size(5) == kKeyGroup,
               "k_cache has shape ", shape_text(keys), ", wanted [", batch, ", ", heads, ", panels, ", size / kKeyGroup,
               ", ", kKeyPanel, ", ", kKeyGroup, "] as kv_cache_shapes gives them");
  const int64_t capacity = keys.size(2) * kKeyPanel;
  args.require(capacity <= kMaxKeys, "k_cache has ", capacity, " keys, wanted at most ", kMaxKeys,
               " so that sums fit in int32");
  const int64_t groups = capacity / kKeyGroup;
  args.require(values.dim() == 5 && values.size(0) == batch && values.size(1) == heads && values.size(2) == groups &&
                   values.size(3) == size && values.size(4) == kKeyGroup,
               "v_cache has shape ", shape_text(values), ", wanted [", batch, ", ", heads, ", ", groups, ", ", size,
               ", ", kKeyGroup, "], as many keys as k_cache has");
  KvCache<Byte> cache;
  cache.keys = static_cast<Byte*>(args.cache("k_cache", keys));
  cache.values = static_cast<Byte*>(args.cache("v_cache", values));
  cache.image_keys = keys.stride(0);
  cache.image_values = values.stride(0);
  cache.capacity = capacity;
  return cache;
}

// Where the first token is; the tokens have to be in the cache.
const int32_t* position_in(Arguments& args, const OptionalTensor& position, int64_t tokens, int64_t capacity) {
  return args.positions(position, tokens, "k_cache", capacity).position;
}

// Cache and tables of the storing operators.
template <class Given>
void set_cache(Arguments& args, const Given& given, StoreKvProblem* p) {
  p->cache = cache_of<int8_t>(args, p->batch, p->heads, p->size, given.k_cache, given.v_cache);
  p->k_scale = args.of_heads("k_scale", given.k_scale, p->heads, p->size, true);
  p->k_shift = args.of_heads("k_shift", given.k_shift, p->heads, p->size, false);
  p->v_scale = args.of_heads("v_scale", given.v_scale, p->heads, p->size, true);
  p->v_shift = args.of_heads("v_shift", given.v_shift, p->heads, p->size, false);
}

HeadNorm norm_of(const Arguments& args, const std::string& name) {
  if (name == "none") return HeadNorm::none;
  if (name == "l2") return HeadNorm::l2;
  if (name == "layer") return HeadNorm::layer;
  if (name == "rms") return HeadNorm::rms;
  args.fail("norm is '", name, "', wanted one of none, l2, layer, rms");
}

// What both operators of attention have. Without a position where there is nothing to compute.
AttentionProblem attention_problem(Arguments& args, const AttentionArguments& given) {
  AttentionProblem p;
  p.q = heads_of(args, "q", given.q);
  check_head(args, "q", given.q, given.q.size(1), kHeads);
  p.batch = given.q.size(0);
  p.heads = given.q.size(1);
  p.tokens = given.q.size(2);
  p.size = given.q.size(3);
  p.cache = cache_of<const int8_t>(args, p.batch, p.heads, p.size, given.k_cache, given.v_cache);
  p.k_scale = args.of_heads("k_scale", given.k_scale, p.heads, p.size, true);
  p.v_scale = args.of_heads("v_scale", given.v_scale, p.heads, p.size, true);
  p.v_shift = args.of_heads("v_shift", given.v_shift, p.heads, p.size, false);
  args.require(!given.limits || !given.position, "limits and position are both given, wanted one of them");
  p.limits = args.integers("limits", given.limits, p.tokens, 1, p.cache.capacity, "one for each query");
  if (!p.limits && p.batch * p.tokens > 0) {
    p.position = position_in(args, given.position, p.tokens, p.cache.capacity);
  }
  return p;
}

// [B, t, H d] of a type, computed.
Tensor run_attention(AttentionProblem p, ScalarType type, const Tensor& lead, const Run<AttentionProblem>& run) {
  Tensor out = torch::stable::empty({p.batch, p.tokens, p.heads * p.size}, type, torch::headeronly::Layout::Strided,
                                    lead.device());
  p.out = out.mutable_data_ptr();
  if (p.batch * p.tokens > 0) run(p);
  return out;
}

}  // namespace

void call_store_kv(const StoreKvArguments& given, const Run<StoreKvProblem>& run) {
  Arguments args("store_kv", "k", given.k);
  StoreKvProblem p;
  p.k = heads_of(args, "k", given.k);
  check_head(args, "k", given.k, given.k.size(1), kHeads);
  check_same(args, "v", given.v, given.k);
  p.v = heads_of(args, "v", given.v);
  p.batch = given.k.size(0);
  p.heads = given.k.size(1);
  p.tokens = given.k.size(2);
  p.size = given.k.size(3);
  set_cache(args, given, &p);
  if (p.batch * p.tokens == 0) return;
  p.position = position_in(args, given.position, p.tokens, p.cache.capacity);
  run(p);
}

Tensor call_store_qkv(const StoreQkvArguments& given, const Run<StoreKvProblem>& run) {
  Arguments args("store_qkv", "qkv", given.qkv);
  args.require(given.qkv.dim() == 5 && given.qkv.size(2) == 3, "qkv has shape ", shape_text(given.qkv), ", wanted ",
               kProjections);
  const Tensor qkv = args.channels("qkv", given.qkv);
  check_head(args, "qkv", qkv, qkv.size(3), kProjections);
  StoreKvProblem p;
  p.batch = qkv.size(0), p.tokens = qkv.size(1), p.heads = qkv.size(3), p.size = qkv.size(4);
  const int64_t part = qkv.stride(2) * (qkv.scalar_type() == ScalarType::Float ? 4 : 2);  // bytes
  p.q = p.k = p.v = strided(qkv, 3, 1);
  p.k.data = static_cast<const char*>(p.q.data) + part;
  p.v.data = static_cast<const char*>(p.q.data) + 2 * part;
  set_cache(args, given, &p);
  p.norm = norm_of(args, given.norm);
  p.eps = static_cast<float>(given.eps);
  args.require(p.norm == HeadNorm::none || (p.eps > 0 && std::isfinite(p.eps)), "eps is ", given.eps,
               ", wanted a finite float32 above 0");
  p.q_weight = args.any_vector("q_weight", given.q_weight, p.size, kOfChannels);
  p.q_bias = args.any_vector("q_bias", given.q_bias, p.size, kOfChannels);
  p.k_weight = args.any_vector("k_weight", given.k_weight, p.size, kOfChannels);
  p.k_bias = args.any_vector("k_bias", given.k_bias, p.size, kOfChannels);
  p.q_factors = args.any_vector("q_factors", given.q_factors, p.heads, "one for each head");
  p.q_factor = static_cast<float>(given.q_factor);
  p.rotation = args.rotations("rotation", given.rotation, p.tokens, p.size);
  Tensor q = torch::stable::empty({p.batch, p.tokens, p.heads, p.size}, qkv.scalar_type(),
                                  torch::headeronly::Layout::Strided, qkv.device());
  p.q_out = q.mutable_data_ptr();
  if (p.batch * p.tokens == 0) return q;
  p.position = position_in(args, given.position, p.tokens, p.cache.capacity);
  run(p);
  return q;
}

Tensor call_attention(const AttentionArguments& given, ScalarType out_dtype, const Run<AttentionProblem>& run) {
  Arguments args("attention", "q", given.q);
  AttentionProblem p = attention_problem(args, given);
  p.out_dtype = args.out_dtype(out_dtype);
  return run_attention(p, out_dtype, given.q, run);
}

Tensor call_attention_quantize(const AttentionArguments& given, const Requantize& to,
                               const OptionalTensor& out_position, const Run<AttentionProblem>& run) {
  Arguments args("attention_quantize", "q", given.q);
  AttentionProblem p = attention_problem(args, given);
  p.requantize = true;
  p.out_table = args.table("out_inv_scale", "out_zero", to.inv_scale, to.zero, args.bits("out_bits", to.bits));
  p.one_entry = to.inv_scale.numel() == 1;
  const int64_t entries = p.one_entry ? 1 : p.tokens;
  if (entries > 0) {
    p.out_position =
        args.positions(out_position, entries, "out_inv_scale", to.inv_scale.numel(), "out_position").position;
  }
  p.rotation = args.rotation("out_rotation", to.rotation, "d", p.size, kMaxEpilogueRotation);
  return run_attention(p, ScalarType::Char, given.q, run);
}

}  // namespace ptq4arvg
