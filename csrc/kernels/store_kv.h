// Keys and values to the codes of a cache and, where they come as a linear gives them, together with the queries: what
// comes between that linear and attention on the way, norms of q and k, rotary embeddings, and the factor of q.
//
// A head x of q or k, of `size` channels:
//   n = x (1 / max(sqrt(sum x^2), eps))                                       l2
//   n = (x - mean x) (1 / sqrt(mean (x - mean x)^2 + eps))                    layer; rms: without the mean
//   n = n weight + bias
//   (n[2i], n[2i + 1]) as a complex number times (r[2i], r[2i + 1])           rotation
//   q = n factor
//   k_code = clamp(rne((k - k_shift) / k_scale), -127, 127), v_code likewise
// Sums take four neighbours as (x0 + x1) + (x2 + x3), then add the second half of what there is to the first until one
// is left. Zeros fill a head up to a power of two; to any, because a zero is added at the end: it makes +0 of the only
// sum, -0, that further zeros would change.
#pragma once

#include "kernels/attention.h"

namespace ptq4arvg {

enum class HeadNorm : int { none, l2, layer, rms };

// The stored code of x; inverse = 1 / scale.
template <class F>
PTQ4ARVG_FN F cache_code(F x, F shift, F inverse) {
  return attention_code(mul(sub(x, shift), inverse));
}

PTQ4ARVG_FN float head_mean(float sum, int64_t size) { return div(sum, static_cast<float>(size)); }

// What a head is multiplied by.
PTQ4ARVG_FN float head_reciprocal(HeadNorm norm, float squares, int64_t size, float eps) {
  if (norm == HeadNorm::l2) return div(1.0f, larger(square_root(squares), eps));
  return div(1.0f, square_root(add(head_mean(squares, size), eps)));
}

// Channels a and b, turned by (cosine, sine).
PTQ4ARVG_FN void turn(float* a, float* b, float cosine, float sine) {
  const float x = *a, y = *b;
  *a = sub(mul(x, cosine), mul(y, sine));
  *b = add(mul(x, sine), mul(y, cosine));
}

struct StoreKvProblem {
  int64_t batch = 0, heads = 0, tokens = 0, size = 0;
  HeadTensor q, k, v;  // q without data: keys and values only
  const float *k_scale = nullptr, *k_shift = nullptr, *v_scale = nullptr, *v_shift = nullptr;  // [heads, size]
  const int32_t* position = nullptr;  // of the first token, one element in the device's memory; null means 0
  KvCache<int8_t> cache;

  HeadNorm norm = HeadNorm::none;
  float eps = 0.0f;
  FloatMatrix q_weight, q_bias, k_weight, k_bias;  // [size] each, or without data
  const float* rotation = nullptr;                 // [tokens, size]: cosine, sine, cosine, ...
  FloatMatrix q_factors;                           // [heads], or without data:
  float q_factor = 1.0f;
  void* q_out = nullptr;  // [batch, tokens, heads, size] contiguous, of q's type
};

PTQ4ARVG_FN float factor_of(const StoreKvProblem& p, int64_t head) {
  return p.q_factors.data ? load_float(p.q_factors.data, p.q_factors.dtype, head) : p.q_factor;
}

namespace cpu {
void store_kv(const StoreKvProblem& problem);
}

}  // namespace ptq4arvg
