// Keys and values to codes, norms and rotary embeddings of q and k. All heads of a few tokens come one after the other,
// as they lie in memory; a thread takes whole panels of a cache, which stay near until they are full.
#pragma once

#include "kernels/cpu/lanes_scalar.h"
#include "kernels/cpu/scratch.h"
#include "kernels/parallel.h"
#include "kernels/store_kv.h"

namespace ptq4arvg::cpu {
namespace {  // compiled for several instruction sets: internal linkage, see real.h

constexpr int64_t kStoreGrain = 32768;  // elements that are worth a thread

// Vector I of N after as many additions of halves as leave N of them; see store_kv.h. leaf(i): the i-th of all.
template <class L, int All, int I, int N, class Leaf>
PTQ4ARVG_FN typename L::F halves(const Leaf& leaf) {
  if constexpr (N == All) {
    const auto x = leaf(I);
    const auto pairs = add(x, L::template other<1>(x));
    return add(pairs, L::template other<2>(pairs));
  } else {
    return add(halves<L, All, I, 2 * N>(leaf), halves<L, All, I + N, 2 * N>(leaf));
  }
}

// Of all elements, from the sums of neighbouring fours that each of them holds.
template <class L, int H>
PTQ4ARVG_FN float across(typename L::F x) {
  if constexpr (H < 4) return L::first_of(x);
  else return across<L, H / 2>(add(x, L::template other<H>(x)));
}

// Of x, or of its square; Padded: a power of two that the channels are filled up to with zeros.
template <class L, int Padded, bool Squared>
PTQ4ARVG_FN float head_sum(const float* x) {
  if constexpr (L::width >= 4) {
    const auto leaf = [&](int i) __attribute__((always_inline)) {
      const auto values = L{}.load(x + i * L::width);
      return Squared ? mul(values, values) : values;
    };
    return add(across<L, L::width / 2>(halves<L, Padded / L::width, 0, 1>(leaf)), 0.0f);
  } else {
    float sums[Padded / 4];
    const auto at = [&](int c) { return Squared ? mul(x[c], x[c]) : x[c]; };
    for (int i = 0; i < Padded / 4; ++i) {
      sums[i] = add(add(at(4 * i), at(4 * i + 1)), add(at(4 * i + 2), at(4 * i + 3)));
    }
    for (int n = Padded / 8; n > 0; n /= 2) {
      for (int i = 0; i < n; ++i) sums[i] = add(sums[i], sums[i + n]);
    }
    return add(sums[0], 0.0f);
  }
}

// Weight and bias of the heads of q or k, in float32.
struct HeadVectors {
  bool weighted, shifted;
  float weight[kMaxHeadSize], bias[kMaxHeadSize];

  HeadVectors(const FloatMatrix& given_weight, const FloatMatrix& given_bias, int64_t size)
      : weighted(given_weight.data), shifted(given_bias.data) {
    for (int64_t c = 0; weighted && c < size; ++c) weight[c] = load_float(given_weight.data, given_weight.dtype, c);
    for (int64_t c = 0; shifted && c < size; ++c) bias[c] = load_float(given_bias.data, given_bias.dtype, c);
  }
};

// A token's head from element `first` on, filled up with zeros.
template <class Whole, class Tail, int Padded>
PTQ4ARVG_FN void read_head(const HeadTensor& from, int64_t first, int64_t size, float* x) {
  const FloatMatrix row{from.data, from.dtype, 0};
  for (int64_t c = size; c < Padded; ++c) x[c] = 0.0f;
  for_lanes<Whole, Tail>(size, [&](auto lanes, int64_t c) __attribute__((always_inline)) {
    lanes.store(x + c, lanes.load_any(row, first + c));
  });
}

// turn() of all pairs. As sums throughout: of neighbouring differences and sums GCC 12 makes fused multiply-adds, asked
// or not.
template <int Padded>
PTQ4ARVG_FN void turn_pairs(const float* rotation, int64_t size, float* x) {
  float own[Padded], other[Padded];
  for (int64_t c = 0; c < size; c += 2) {
    own[c] = mul(x[c], rotation[c]), own[c + 1] = mul(x[c + 1], rotation[c]);
    other[c] = mul(x[c + 1], -rotation[c + 1]), other[c + 1] = mul(x[c], rotation[c + 1]);
  }
  for (int64_t c = 0; c < size; ++c) x[c] = add(own[c], other[c]);
}

template <class Whole, class Tail, int Padded>
PTQ4ARVG_FN void take_steps(const StoreKvProblem& p, const HeadVectors& of, const float* rotation, float* x) {
  const int64_t size = p.size;
  if (p.norm == HeadNorm::layer) {
    const float mean = head_mean(head_sum<Whole, Padded, false>(x), size);
    for_lanes<Whole, Tail>(size, [&](auto lanes, int64_t c) __attribute__((always_inline)) {
      lanes.store(x + c, sub(lanes.load(x + c), typename decltype(lanes)::F(mean)));
    });
  }
  const bool normalized = p.norm != HeadNorm::none;
  float factor = 1.0f;
  if (normalized) factor = head_reciprocal(p.norm, head_sum<Whole, Padded, true>(x), size, p.eps);
  if (normalized || of.weighted || of.shifted) {
    for_lanes<Whole, Tail>(size, [&](auto lanes, int64_t c) __attribute__((always_inline)) {
      auto y = lanes.load(x + c);
      if (normalized) y = mul(y, typename decltype(lanes)::F(factor));
      if (of.weighted) y = mul(y, lanes.load(of.weight + c));
      if (of.shifted) y = add(y, lanes.load(of.bias + c));
      lanes.store(x + c, y);
    });
  }
  if (rotation) turn_pairs<Padded>(rotation, size, x);
}

template <class Whole, class Tail>
PTQ4ARVG_FN void cache_codes(const float* shift, const float* inverse, const float* x, int64_t size, int8_t* codes) {
  for_lanes<Whole, Tail>(size, [&](auto lanes, int64_t c) __attribute__((always_inline)) {
    lanes.store_codes(codes + c, cache_code(lanes.load(x + c), lanes.load(shift + c), lanes.load(inverse + c)));
  });
}

// Codes of the `count` tokens, four at most, at position j of the values and after.
PTQ4ARVG_FN void place_values(const int8_t (*codes)[kMaxHeadSize], int64_t count, int64_t j, int64_t size, int8_t* values) {
  int8_t* to = values + value_place(j, 0, size);
  if (count < kKeyGroup) {
    for (int64_t i = 0; i < count; ++i) {
      for (int64_t c = 0; c < size; ++c) to[c * kKeyGroup + i] = codes[i][c];
    }
    return;
  }
  const auto byte = [&](int i, int64_t c) { return static_cast<uint32_t>(static_cast<uint8_t>(codes[i][c])); };
  for (int64_t c = 0; c < size; ++c) {
    const uint32_t word = byte(0, c) | byte(1, c) << 8 | byte(2, c) << 16 | byte(3, c) << 24;
    memcpy(to + c * kKeyGroup, &word, sizeof word);
  }
}

// Reciprocals of the scales of all heads' channels.
struct InverseScales {
  float *k, *v;

  explicit InverseScales(const StoreKvProblem& p) {
    const int64_t count = p.heads * p.size;
    k = static_cast<float*>(thread_scratch(2 * count * sizeof(float)));
    v = k + count;
    for (int64_t i = 0; i < count; ++i) k[i] = div(1.0f, p.k_scale[i]), v[i] = div(1.0f, p.v_scale[i]);
  }
};

// Tokens of an image whose positions, from j on, are of one group; those behind the cache's end have queries only.
struct GroupTokens {
  int64_t image, token, j, count;
};

template <class Whole, class Tail, int Padded>
PTQ4ARVG_FN void store_head(const StoreKvProblem& p, const GroupTokens& group, int64_t head, const HeadVectors& q_of,
                            const HeadVectors& k_of, const InverseScales& inverse) {
  alignas(64) float x[Padded];
  int8_t codes[kKeyGroup][kMaxHeadSize];
  const int64_t table = head * p.size;
  const auto read = [&](const HeadTensor& part, int64_t i) __attribute__((always_inline)) {
    const int64_t first = group.image * part.of_image + head * part.of_head + (group.token + i) * part.of_token;
    read_head<Whole, Tail, Padded>(part, first, p.size, x);
  };
  const auto take = [&](const HeadVectors& of, int64_t i) __attribute__((always_inline)) {
    const float* rotation = p.rotation ? p.rotation + (group.token + i) * p.size : nullptr;
    take_steps<Whole, Tail, Padded>(p, of, rotation, x);
  };
  for (int64_t i = 0; p.q.data && i < group.count; ++i) {
    read(p.q, i);
    take(q_of, i);
    const float factor = factor_of(p, head);
    const int64_t to = ((group.image * p.tokens + group.token + i) * p.heads + head) * p.size;
    for_lanes<Whole, Tail>(p.size, [&](auto lanes, int64_t c) __attribute__((always_inline)) {
      using F = typename decltype(lanes)::F;
      lanes.store_any(p.q_out, p.q.dtype, to + c, mul(lanes.load(x + c), F(factor)));
    });
  }
  const int64_t room = p.cache.capacity - group.j, stored = room < group.count ? room : group.count;
  if (stored <= 0) return;
  int8_t* keys = p.cache.keys + group.image * p.cache.image_keys + table * p.cache.capacity;
  for (int64_t i = 0; i < stored; ++i) {
    read(p.k, i);
    take(k_of, i);
    cache_codes<Whole, Tail>(p.k_shift + table, inverse.k + table, x, p.size, codes[0]);
    int8_t* to = keys + key_place(group.j + i, 0, p.size);
    for (int64_t c = 0; c < p.size; c += kKeyGroup) memcpy(to + c * kKeyPanel, codes[0] + c, kKeyGroup);
  }
  for (int64_t i = 0; i < stored; ++i) {
    read(p.v, i);
    cache_codes<Whole, Tail>(p.v_shift + table, inverse.v + table, x, p.size, codes[i]);
  }
  int8_t* values = p.cache.values + group.image * p.cache.image_values + table * p.cache.capacity;
  place_values(codes, stored, group.j, p.size, values);
}

template <class Whole, class Tail, int Padded>
static inline void store_groups(const StoreKvProblem& p) {
  const int64_t start = p.position ? *p.position : 0, end = start + p.tokens;
  const int64_t first_panel = start / kKeyPanel, panels = (end - 1) / kKeyPanel - first_panel + 1;
  const int64_t work = (p.tokens < kKeyPanel ? p.tokens : kKeyPanel) * p.heads * p.size;
  parallel_for(p.batch * panels, kStoreGrain / work, [&](int64_t from, int64_t to) {
    const HeadVectors q_of(p.q_weight, p.q_bias, p.size), k_of(p.k_weight, p.k_bias, p.size);
    const InverseScales inverse(p);
    for (int64_t task = from; task < to; ++task) {
      const int64_t panel = (first_panel + task % panels) * kKeyPanel, after = panel + kKeyPanel;
      const int64_t stop = after < end ? after : end;
      for (int64_t j = panel > start ? panel : start; j < stop;) {
        const int64_t left = kKeyGroup - j % kKeyGroup, count = left < stop - j ? left : stop - j;
        const GroupTokens group{task / panels, j - start, j, count};
        for (int64_t head = 0; head < p.heads; ++head) {
          store_head<Whole, Tail, Padded>(p, group, head, q_of, k_of, inverse);
        }
        j += count;
      }
    }
  });
}

template <class Whole, class Tail>
static inline void store_kv_heads(const StoreKvProblem& p) {
  if (p.size <= 64) store_groups<Whole, Tail, 64>(p);
  else store_groups<Whole, Tail, 128>(p);
}

}  // namespace
}  // namespace ptq4arvg::cpu
