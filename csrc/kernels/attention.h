// Attention in integers over a cache of int8 keys and values, which store_kv.h fills.
//
// Static scales and shifts per head and channel. A shift of the keys adds the same to all scores of a query, which the
// softmax takes out again; one of the values adds itself to the output, since probabilities sum to one.
//
//   u = q * k_scale,  top = max |u|,  q_code = clamp(rne(u * (127 / top)), -127, 127)      one top for each query
//   score[j] = sum_c q_code[c] k_code[j, c]                                               int32, exact
//   p[j] = rne(255 exp(top / 127 (score[j] - max score)))                                 uint8
//   out[c] = v_scale[c] (sum_j p[j] v_code[j, c] / sum_j p[j]) + v_shift[c]               both sums int32, exact
//
// The output is floats, or the codes of the linear that reads it, rotated before that if asked for.
//
// Every sum is of integers, so that no order of summation, and no split of the keys, changes a bit.
#pragma once

#include "kernels/quantize.h"

namespace ptq4arvg {

constexpr int kKeyPanel = 16;  // keys of a panel
constexpr int kKeyGroup = 4;   // channels of a key, and keys of a channel of the values, that lie side by side
constexpr int64_t kMaxHeadSize = 128;  // so that differences of scores stay below 2^22, for round_even's sake
constexpr int64_t kMaxKeys = 65536;    // so that 255 * 127 * keys stays in int32

PTQ4ARVG_FN int64_t whole_panels(int64_t keys) { return (keys + kKeyPanel - 1) / kKeyPanel * kKeyPanel; }

// Where channel c of key j lies among the keys of a head of `size` channels: [panels][size / 4][16 keys][4 channels].
PTQ4ARVG_FN int64_t key_place(int64_t j, int64_t c, int64_t size) {
  const int64_t group = j / kKeyPanel * (size / kKeyGroup) + c / kKeyGroup;
  return (group * kKeyPanel + j % kKeyPanel) * kKeyGroup + c % kKeyGroup;
}

// The same among the values: [keys / 4][size][4 keys].
PTQ4ARVG_FN int64_t value_place(int64_t j, int64_t c, int64_t size) {
  return (j / kKeyGroup * size + c) * kKeyGroup + j % kKeyGroup;
}

constexpr float kTopCode = 127.0f;
constexpr float kTopLevel = 255.0f;  // of a probability
constexpr float kLeastTop = 1e-30f;  // a query below it has codes of zero: 127 / top would not be finite
constexpr float kMostTop = 1e30f;    // one above it, infinite or NaN, has no output but NaN

// NaN becomes -127.
template <class F>
PTQ4ARVG_FN F attention_code(F scaled) {
  return round_even(smaller(larger(scaled, F(-kTopCode)), F(kTopCode)));
}

struct QueryScale {
  float inverse;   // codes are those of u * inverse
  float exponent;  // scores differ by so many powers of two
};

// Of the greatest magnitude by its bits, so that NaN is greater than any number.
PTQ4ARVG_FN QueryScale query_scale(float top) {
  if (top < kLeastTop) return {0.0f, 0.0f};
  if (!(top <= kMostTop)) return {0.0f, bits_float(0x7fc00000u)};
  return {div(kTopCode, top), mul(top, 1.44269504088896341f / kTopCode)};
}

// 255 * 2^f for |f| <= 1/2, the cubic of least greatest relative error, 7.5e-5.
template <class F>
PTQ4ARVG_FN F level_of_fraction(F f) {
  return polynomial(f, 14.068731f, 61.865789f, 176.781553f, 254.981662f);
}

// 255 * 2^it is 0, and further down a float's exponent would end. A power of two: numbers over it have the same digits.
constexpr float kLeastPower = -32.0f;

// rne(255 * 2^y) for y <= 0, but within .02 of halfway, where it may be the other one. 2^y = 2^n 2^f with n = rne(y).
template <class F>
PTQ4ARVG_FN F probability_level(F y) {
  y = larger(y, F(kLeastPower));
  const F shifted = add(y, F(kRoundingShift));
  return round_even(times_power(level_of_fraction(sub(y, sub(shifted, F(kRoundingShift)))), shifted));
}

// The output of a channel; reciprocal = 1 / sum of the levels.
template <class F>
PTQ4ARVG_FN F attention_output(F sum, F reciprocal, F v_scale, F v_shift) {
  return add(mul(mul(sum, reciprocal), v_scale), v_shift);
}

// [batch, heads, tokens, size] of floats, the last dimension contiguous.
struct HeadTensor {
  const void* data = nullptr;
  DType dtype = DType::f32;
  int64_t of_image = 0, of_head = 0, of_token = 0;  // strides
};

// Keys and values of a cache, [batch, heads] of them; images may be farther apart than they are large.
template <class Byte>
struct KvCache {
  Byte *keys = nullptr, *values = nullptr;
  int64_t image_keys = 0, image_values = 0;  // bytes from image to image
  int64_t capacity = 0;                      // keys of a head, whole panels
};

struct AttentionProblem {
  int64_t batch = 0, heads = 0, tokens = 0, size = 0;  // tokens: queries of an image
  HeadTensor q;
  const float *k_scale = nullptr, *v_scale = nullptr, *v_shift = nullptr;  // [heads, size]
  KvCache<const int8_t> cache;
  const int32_t* limits = nullptr;    // [tokens]: a query reads so many keys; null: position + tokens, all of them
  const int32_t* position = nullptr;  // of the first query, one element in the device's memory; null means 0
  DType out_dtype = DType::f32;
  void* out = nullptr;  // [batch, tokens, heads * size] contiguous

  bool requantize = false;                // the output is codes by out_table, and out_dtype does not count
  QuantizeTable out_table;                // an entry for each position, or `one_entry` for all
  bool one_entry = false;
  const int32_t* out_position = nullptr;  // of the first query there, as `position`
  int rotation = 0;                       // when requantize: columns of a block (rotation.h), which divide a head
};

// Keys that query t reads; those past the cache's end are not there.
PTQ4ARVG_FN int64_t keys_of(const AttentionProblem& p, int64_t t) {
  const int64_t keys = p.limits ? p.limits[t] : (p.position ? *p.position : 0) + p.tokens;
  return keys < 0 ? 0 : keys < p.cache.capacity ? keys : p.cache.capacity;
}

// The entry of out_table for query t.
PTQ4ARVG_FN int64_t entry_of(const AttentionProblem& p, int64_t t) {
  return (p.out_position ? *p.out_position : 0) + (p.one_entry ? 0 : t);
}

namespace cpu {
void attention(const AttentionProblem& problem);
}  // namespace cpu

}  // namespace ptq4arvg
