// Attention of one block of queries after the other.
//
// A task is a few queries of one head: their codes, their scores with all keys that they read, the levels of the
// probabilities, and the sums over the values. What differs between instruction sets is the two integer products,
// which a Dots gives:
//   kRows                queries of a block
//   scores(rows, q, q_sums, keys, panels, size, out, stride)
//                        out[r * stride + j] of `rows` queries and all keys of the panels; q [rows][kMaxHeadSize],
//                        q_sums the sum of each query's codes
//   values(rows, levels, stride, values, groups, size, out)
//                        out[r * kMaxHeadSize + c] over groups of keys; levels [rows][stride]
#pragma once

#include "kernels/attention.h"
#include "kernels/cpu/rotate.h"
#include "kernels/cpu/scratch.h"
#include "kernels/parallel.h"

namespace ptq4arvg::cpu {
namespace {  // compiled for several instruction sets: internal linkage, see real.h

constexpr int64_t kAttentionGrain = 1024 * 1024;  // multiplications that are worth a thread

// One channel's sum over the values.
static inline int32_t value_sum(const uint8_t* levels, const int8_t* values, int64_t groups, int64_t size, int64_t c) {
  int32_t sum = 0;
  for (int64_t j = 0; j < groups * kKeyGroup; ++j) sum += levels[j] * values[value_place(j, c, size)];
  return sum;
}

// The products as plain loops.
struct PlainDots {
  static constexpr int kRows = 4;

  static void scores(int rows, const int8_t* q, const int32_t*, const int8_t* keys, int64_t panels, int64_t size,
                     int32_t* out, int64_t stride) {
    for (int r = 0; r < rows; ++r) {
      for (int64_t j = 0; j < panels * kKeyPanel; ++j) {
        int32_t sum = 0;
        for (int64_t c = 0; c < size; ++c) sum += q[r * kMaxHeadSize + c] * keys[key_place(j, c, size)];
        out[r * stride + j] = sum;
      }
    }
  }

  static void values(int rows, const uint8_t* levels, int64_t stride, const int8_t* values, int64_t groups,
                     int64_t size, int32_t* out) {
    for (int r = 0; r < rows; ++r) {
      for (int64_t c = 0; c < size; ++c) {
        out[r * kMaxHeadSize + c] = value_sum(levels + r * stride, values, groups, size, c);
      }
    }
  }
};

static inline int32_t greatest(const int32_t* x, int64_t count) {
  int32_t most = x[0];
  for (int64_t i = 1; i < count; ++i) most = x[i] > most ? x[i] : most;
  return most;
}

static inline int32_t sum_of(const int8_t* x, int64_t count) {
  int32_t sum = 0;
  for (int64_t i = 0; i < count; ++i) sum += x[i];
  return sum;
}

// One query: its codes, and by how many powers of two a difference of scores is. u: room for kMaxHeadSize floats.
template <class Whole, class Tail>
PTQ4ARVG_FN float quantize_query(const HeadTensor& q, int64_t first, const float* k_scale, int64_t size, float* u,
                                 int8_t* codes) {
  const FloatMatrix row{q.data, q.dtype, 0};
  for_lanes<Whole, Tail>(size, [&](auto lanes, int64_t c) __attribute__((always_inline)) {
    lanes.store(u + c, mul(lanes.load_any(row, first + c), lanes.load(k_scale + c)));
  });
  uint32_t most = 0;
  for (int64_t c = 0; c < size; ++c) {
    const uint32_t bits = float_bits(magnitude(u[c]));
    most = bits > most ? bits : most;
  }
  const QueryScale scale = query_scale(bits_float(most));
  for_lanes<Whole, Tail>(size, [&](auto lanes, int64_t c) __attribute__((always_inline)) {
    using F = typename decltype(lanes)::F;
    lanes.store_codes(codes + c, attention_code(mul(lanes.load(u + c), F(scale.inverse))));
  });
  return scale.exponent;
}

// Levels of the probabilities of `keys` keys, and zeros up to `padded`. Their sum.
template <class Whole, class Tail>
PTQ4ARVG_FN int32_t probabilities(const int32_t* scores, int64_t keys, int64_t padded, float exponent, uint8_t* levels) {
  const int32_t most = keys ? greatest(scores, keys) : 0;
  for_lanes<Whole, Tail>(keys, [&](auto lanes, int64_t j) __attribute__((always_inline)) {
    using F = typename decltype(lanes)::F;
    const F y = mul(lanes.to_float(lanes.minus(lanes.load_int(scores + j), most)), F(exponent));
    // As a signed code for the while of the store.
    lanes.store_codes(reinterpret_cast<int8_t*>(levels) + j, sub(probability_level(y), F(128.0f)));
  });
  int32_t sum = 0;
  for (int64_t j = 0; j < keys; ++j) {
    levels[j] ^= 0x80;
    sum += levels[j];
  }
  for (int64_t j = keys; j < padded; ++j) levels[j] = 0;
  return sum;
}

template <class Dots>
struct AttentionScratch {
  int64_t padded;  // keys
  float* u;
  int8_t* codes;
  int32_t *sums, *scores;
  uint8_t* levels;

  explicit AttentionScratch(int64_t capacity) : padded(whole_panels(capacity)) {
    const int64_t rows = Dots::kRows, query = kMaxHeadSize;
    char* memory = static_cast<char*>(thread_scratch(query * sizeof(float) + rows * (5 * query + 5 * padded)));
    u = reinterpret_cast<float*>(memory);
    sums = reinterpret_cast<int32_t*>(u + query);
    scores = sums + rows * query;
    codes = reinterpret_cast<int8_t*>(scores + rows * padded);
    levels = reinterpret_cast<uint8_t*>(codes + rows * query);
  }
};

template <class Dots, class Whole, class Tail>
PTQ4ARVG_FN void attention_block(const AttentionProblem& p, int64_t image, int64_t head, int64_t first, int rows,
                                 const AttentionScratch<Dots>& s) {
  const int8_t* keys = p.cache.keys + image * p.cache.image_keys + head * p.cache.capacity * p.size;
  const int8_t* values = p.cache.values + image * p.cache.image_values + head * p.cache.capacity * p.size;
  const float* k_scale = p.k_scale + head * p.size;
  float exponents[Dots::kRows];
  int32_t code_sums[Dots::kRows];
  int64_t most = 0;
  for (int r = 0; r < rows; ++r) {
    const int64_t from = image * p.q.of_image + head * p.q.of_head + (first + r) * p.q.of_token;
    int8_t* codes = s.codes + r * kMaxHeadSize;
    exponents[r] = quantize_query<Whole, Tail>(p.q, from, k_scale, p.size, s.u, codes);
    code_sums[r] = sum_of(codes, p.size);
    const int64_t count = keys_of(p, first + r);
    most = count > most ? count : most;
  }
  const int64_t padded = whole_panels(most);
  Dots::scores(rows, s.codes, code_sums, keys, padded / kKeyPanel, p.size, s.scores, s.padded);
  float reciprocals[Dots::kRows];
  for (int r = 0; r < rows; ++r) {
    const int32_t sum = probabilities<Whole, Tail>(s.scores + r * s.padded, keys_of(p, first + r), padded, exponents[r],
                                                   s.levels + r * s.padded);
    reciprocals[r] = div(1.0f, static_cast<float>(sum));
  }
  Dots::values(rows, s.levels, s.padded, values, padded / kKeyGroup, p.size, s.sums);
  for (int r = 0; r < rows; ++r) {
    const int64_t channel = head * p.size, to = (image * p.tokens + first + r) * p.heads * p.size + channel;
    const auto output = [&](auto lanes, int64_t c) __attribute__((always_inline)) {
      using F = typename decltype(lanes)::F;
      const F sum = lanes.to_float(lanes.load_int(s.sums + r * kMaxHeadSize + c));
      return attention_output(sum, F(reciprocals[r]), lanes.load(p.v_scale + channel + c),
                              lanes.load(p.v_shift + channel + c));
    };
    if (p.requantize) {
      const QuantizeRow row = table_row(p.out_table, entry_of(p, first + r));
      emit_codes<Whole, Tail>(static_cast<int8_t*>(p.out) + to, channel, p.size, p.rotation, row, output);
    } else {
      for_lanes<Whole, Tail>(p.size, [&](auto lanes, int64_t c) __attribute__((always_inline)) {
        lanes.store_any(p.out, p.out_dtype, to + c, output(lanes, c));
      });
    }
  }
}

template <class Dots, class Whole, class Tail>
static inline void attention_heads(const AttentionProblem& p) {
  const int64_t blocks = (p.tokens + Dots::kRows - 1) / Dots::kRows;
  const int64_t work = 2 * Dots::kRows * p.size * p.cache.capacity;
  parallel_for(p.batch * p.heads * blocks, kAttentionGrain / work, [&](int64_t begin, int64_t end) {
    const AttentionScratch<Dots> scratch(p.cache.capacity);
    for (int64_t i = begin; i < end; ++i) {
      const int64_t head = i / blocks, first = i % blocks * Dots::kRows;
      const int64_t left = p.tokens - first;
      attention_block<Dots, Whole, Tail>(p, head / p.heads, head % p.heads, first,
                                         static_cast<int>(left < Dots::kRows ? left : Dots::kRows), scratch);
    }
  });
}

}  // namespace
}  // namespace ptq4arvg::cpu
