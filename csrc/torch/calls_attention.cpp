// Checked arguments of the attention operators, and the problems that they make.
#include <climits>

#include "torch/calls.h"

namespace ptq4arvg {
namespace {

// Floats [B, H, t, d] with contiguous channels.
HeadTensor heads_of(Arguments& args, const char* name, const Tensor& tensor) {
  args.require(tensor.dim() == 4, name, " has shape ", shape_text(tensor), ", wanted [B, H, t, d]");
  const Tensor kept = args.channels(name, tensor);
  return {kept.const_data_ptr(), kernel_dtype(kept.scalar_type()), kept.stride(0), kept.stride(1), kept.stride(2)};
}

void check_head(const Arguments& args, const char* name, const Tensor& tensor) {
  const int64_t size = tensor.size(3);
  args.require(tensor.size(1) > 0 && size > 0 && size % kKeyGroup == 0 && size <= kMaxHeadSize, name, " has shape ",
               shape_text(tensor), ", wanted heads [B, H, t, d] of d channels, a multiple of ", kKeyGroup, " up to ",
               kMaxHeadSize);
}

void check_same(const Arguments& args, const char* name, const Tensor& tensor, const Tensor& like) {
  bool same = tensor.dim() == like.dim();
  for (int64_t i = 0; same && i < like.dim(); ++i) same = tensor.size(i) == like.size(i);
  args.require(same, name, " has shape ", shape_text(tensor), ", wanted ", shape_text(like));
}

// The cache's sizes and addresses; its heads are those of `lead`.
template <class Byte>
KvCache<Byte> cache_of(Arguments& args, const Tensor& lead, const Tensor& keys, const Tensor& values) {
  const int64_t batch = lead.size(0), heads = lead.size(1), size = lead.size(3);
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

}  // namespace

void call_store_kv(const StoreKvArguments& given, const Run<StoreKvProblem>& run) {
  Arguments args("store_kv", "k", given.k);
  StoreKvProblem p;
  p.k = heads_of(args, "k", given.k);
  check_head(args, "k", given.k);
  check_same(args, "v", given.v, given.k);
  p.v = heads_of(args, "v", given.v);
  p.batch = given.k.size(0);
  p.heads = given.k.size(1);
  p.tokens = given.k.size(2);
  p.size = given.k.size(3);
  p.cache = cache_of<int8_t>(args, given.k, given.k_cache, given.v_cache);
  p.k_scale = args.of_heads("k_scale", given.k_scale, p.heads, p.size, true);
  p.k_shift = args.of_heads("k_shift", given.k_shift, p.heads, p.size, false);
  p.v_scale = args.of_heads("v_scale", given.v_scale, p.heads, p.size, true);
  p.v_shift = args.of_heads("v_shift", given.v_shift, p.heads, p.size, false);
  if (p.batch * p.tokens == 0) return;
  p.position = position_in(args, given.position, p.tokens, p.cache.capacity);
  run(p);
}

Tensor call_attention(const AttentionArguments& given, ScalarType out_dtype, const Run<AttentionProblem>& run) {
  Arguments args("attention", "q", given.q);
  AttentionProblem p;
  p.q = heads_of(args, "q", given.q);
  check_head(args, "q", given.q);
  p.batch = given.q.size(0);
  p.heads = given.q.size(1);
  p.tokens = given.q.size(2);
  p.size = given.q.size(3);
  p.cache = cache_of<const int8_t>(args, given.q, given.k_cache, given.v_cache);
  p.k_scale = args.of_heads("k_scale", given.k_scale, p.heads, p.size, true);
  p.v_scale = args.of_heads("v_scale", given.v_scale, p.heads, p.size, true);
  p.v_shift = args.of_heads("v_shift", given.v_shift, p.heads, p.size, false);
  args.require(!given.limits || !given.position, "limits and position are both given, wanted one of them");
  p.limits = args.integers("limits", given.limits, p.tokens, 1, p.cache.capacity, "one for each query");
  p.out_dtype = args.out_dtype(out_dtype);
  Tensor out = torch::stable::empty({p.batch, p.tokens, p.heads * p.size}, out_dtype,
                                    torch::headeronly::Layout::Strided, given.q.device());
  p.out = out.mutable_data_ptr();
  if (p.batch * p.tokens == 0) return out;
  if (!p.limits) p.position = position_in(args, given.position, p.tokens, p.cache.capacity);
  run(p);
  return out;
}

}  // namespace ptq4arvg
