// store_kv: a thread takes four neighbouring channels of the four positions of a group, which are 16 bytes of the
// cache, of the keys and of the values alike. The threads of a head are as many as a power of two and lie in one warp,
// so that a norm's sums are shuffles. Bound by memory.
#include "kernels/cuda/attention.h"
#include "kernels/cuda/vector.cuh"

namespace ptq4arvg::cuda {
namespace {

constexpr int kThreads = 128;

// Tensors and vectors of which four floats can be read at once.
struct Wide {
  bool q, k, v, scales, weights, rotation;
};

struct StoreKv {
  StoreKvProblem p;
  uint32_t groups;   // of positions, as many as the tokens may touch
  uint32_t threads;  // that have something to do, or keep a head's number a power of two
  int lanes_log2;    // threads of a head
  Wide wide;
};

// A thread's channels: four of one head, of four neighbouring positions.
struct Place {
  int64_t image, head, c, token;  // of the first position; it may be before the first token
  uint32_t present;               // bit i: the i-th position is a token's
  uint32_t stored;                // and there is room for it in the cache
  int lanes;                      // threads of the head
};

using Fours = float[4][4];  // [position][channel]

__device__ inline bool has(uint32_t bits, int i) { return bits >> i & 1; }

__device__ inline void load_vector(const FloatMatrix& from, int64_t c, bool wide, float* out) {
  load_fours<1>({from.data, from.dtype, 0}, c, 0, wide, [](int) { return true; }, reinterpret_cast<float(*)[4]>(out));
}

__device__ inline void load_heads(const HeadTensor& x, const Place& at, bool wide, uint32_t wanted, Fours& out) {
  const int64_t first = at.image * x.of_image + at.head * x.of_head + at.token * x.of_token + at.c;
  load_fours<4>({x.data, x.dtype, 0}, first, x.of_token, wide, [&](int i) { return has(wanted, i); }, out);
}

// Of all channels of the head, as store_kv.h orders it.
__device__ inline float head_sum(const float* x, int lanes) {
  float sum = add(add(x[0], x[1]), add(x[2], x[3]));
  for (int other = lanes / 2; other > 0; other /= 2) sum = add(sum, __shfl_xor_sync(0xffffffffu, sum, other));
  return add(sum, 0.0f);
}

// All threads of a warp have to be here together.
__device__ inline void normalize(const StoreKvProblem& p, const Place& at, Fours& x) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if (p.norm == HeadNorm::layer) {
      const float mean = head_mean(head_sum(x[i], at.lanes), p.size);
#pragma unroll
      for (int j = 0; j < 4; ++j) x[i][j] = at.c < p.size ? sub(x[i][j], mean) : 0.0f;
    }
    float squares[4];
#pragma unroll
    for (int j = 0; j < 4; ++j) squares[j] = mul(x[i][j], x[i][j]);
    const float factor = head_reciprocal(p.norm, head_sum(squares, at.lanes), p.size, p.eps);
#pragma unroll
    for (int j = 0; j < 4; ++j) x[i][j] = mul(x[i][j], factor);
  }
}

// Norm and rotary embedding of q or k.
__device__ inline void take_steps(const StoreKv& s, const Place& at, const FloatMatrix& weight, const FloatMatrix& bias,
                                  Fours& x) {
  const StoreKvProblem& p = s.p;
  if (p.norm != HeadNorm::none) normalize(p, at, x);
  if (!at.present) return;
  float vector[4];
  if (weight.data) {
    load_vector(weight, at.c, s.wide.weights, vector);
#pragma unroll
    for (int i = 0; i < 16; ++i) x[i / 4][i % 4] = mul(x[i / 4][i % 4], vector[i % 4]);
  }
  if (bias.data) {
    load_vector(bias, at.c, s.wide.weights, vector);
#pragma unroll
    for (int i = 0; i < 16; ++i) x[i / 4][i % 4] = add(x[i / 4][i % 4], vector[i % 4]);
  }
  if (!p.rotation) return;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if (!has(at.present, i)) continue;
    load_vector({p.rotation, DType::f32, 0}, (at.token + i) * p.size + at.c, s.wide.rotation, vector);
    turn(&x[i][0], &x[i][1], vector[0], vector[1]);
    turn(&x[i][2], &x[i][3], vector[2], vector[3]);
  }
}

// Word i has the codes of the i-th position.
__device__ inline void codes_of(const Fours& x, const float* scales, const float* shifts, bool wide, uint32_t* words) {
  float scale[4], shift[4];
  load_vector({scales, DType::f32, 0}, 0, wide, scale);
  load_vector({shifts, DType::f32, 0}, 0, wide, shift);
#pragma unroll
  for (int j = 0; j < 4; ++j) scale[j] = div(1.0f, scale[j]);
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    float codes[4];
#pragma unroll
    for (int j = 0; j < 4; ++j) codes[j] = cache_code(x[i][j], shift[j], scale[j]);
    words[i] = pack_codes(codes);
  }
}

// Byte j of word i becomes byte i of word j.
__device__ inline void transpose_bytes(const uint32_t* in, uint32_t* out) {
  const uint32_t low01 = __byte_perm(in[0], in[1], 0x5140), high01 = __byte_perm(in[0], in[1], 0x7362);
  const uint32_t low23 = __byte_perm(in[2], in[3], 0x5140), high23 = __byte_perm(in[2], in[3], 0x7362);
  out[0] = __byte_perm(low01, low23, 0x5410), out[1] = __byte_perm(low01, low23, 0x7632);
  out[2] = __byte_perm(high01, high23, 0x5410), out[3] = __byte_perm(high01, high23, 0x7632);
}

__device__ inline Place place_of_thread(const StoreKv& s, uint32_t thread) {
  const StoreKvProblem& p = s.p;
  const uint32_t heads = static_cast<uint32_t>(p.heads), of_head = thread >> s.lanes_log2;
  const uint32_t head = of_head / s.groups;
  Place at;
  at.lanes = 1 << s.lanes_log2;
  at.c = (thread & (at.lanes - 1)) * 4;
  at.image = head / heads, at.head = head % heads;
  const int64_t begin = p.position ? *p.position : 0;
  at.token = (begin >> 2) * kKeyGroup + of_head % s.groups * kKeyGroup - begin;
  at.present = at.stored = 0;
  if (thread >= s.threads || at.c >= p.size) return at;
#pragma unroll
  for (int i = 0; i < kKeyGroup; ++i) {
    const int64_t t = at.token + i, j = begin + t;
    if (t < 0 || t >= p.tokens) continue;
    at.present |= 1u << i;
    if (j >= 0 && j < p.cache.capacity) at.stored |= 1u << i;
  }
  return at;
}

__device__ inline void store_queries(const StoreKv& s, const Place& at) {
  const StoreKvProblem& p = s.p;
  Fours x = {};
  load_heads(p.q, at, s.wide.q, at.present, x);
  take_steps(s, at, p.q_weight, p.q_bias, x);
  if (!at.present) return;
  const float factor = factor_of(p, at.head);
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if (!has(at.present, i)) continue;
#pragma unroll
    for (int j = 0; j < 4; ++j) x[i][j] = mul(x[i][j], factor);
    store_four(p.q_out, p.q.dtype, ((at.image * p.tokens + at.token + i) * p.heads + at.head) * p.size + at.c, x[i]);
  }
}

__global__ void __launch_bounds__(kThreads) store_kv_kernel(const __grid_constant__ StoreKv s) {
  wait_for_earlier_kernels();
  let_later_kernels_start();
  const StoreKvProblem& p = s.p;
  const Place at = place_of_thread(s, blockIdx.x * kThreads + threadIdx.x);
  if (p.q.data) store_queries(s, at);
  Fours x = {};
  load_heads(p.k, at, s.wide.k, at.stored, x);
  take_steps(s, at, p.k_weight, p.k_bias, x);
  if (!at.stored) return;  // no shuffles from here on

  const int64_t of_head = at.head * p.cache.capacity * p.size, channel = at.head * p.size + at.c;
  const int64_t j = at.token + (p.position ? *p.position : 0);
  uint32_t words[4], channels[4];
  codes_of(x, p.k_scale + channel, p.k_shift + channel, s.wide.scales, words);
  int8_t* to = p.cache.keys + at.image * p.cache.image_keys + of_head + key_place(j, at.c, p.size);
  if (at.stored == 15) {
    *reinterpret_cast<uint4*>(to) = make_uint4(words[0], words[1], words[2], words[3]);
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (has(at.stored, i)) *reinterpret_cast<uint32_t*>(to + 4 * i) = words[i];
    }
  }
  load_heads(p.v, at, s.wide.v, at.stored, x);
  codes_of(x, p.v_scale + channel, p.v_shift + channel, s.wide.scales, words);
  transpose_bytes(words, channels);
  to = p.cache.values + at.image * p.cache.image_values + of_head + value_place(j, at.c, p.size);
  if (at.stored == 15) {
    *reinterpret_cast<uint4*>(to) = make_uint4(channels[0], channels[1], channels[2], channels[3]);
  } else {
#pragma unroll
    for (int i = 0; i < 16; ++i) {
      if (has(at.stored, i % 4)) to[i] = static_cast<int8_t>(channels[i / 4] >> 8 * (i % 4));
    }
  }
}

bool wide_vectors(std::initializer_list<FloatMatrix> vectors) {
  for (const FloatMatrix& each : vectors) {
    if (each.data && !wide_channels(HeadTensor{each.data, each.dtype})) return false;
  }
  return true;
}

}  // namespace

cudaError_t store_kv(const StoreKvProblem& p, const Launch& launch) {
  StoreKv s{p};
  // From the last position of a group on, they touch most.
  const int64_t groups = (p.tokens + 2 * (kKeyGroup - 1)) / kKeyGroup;
  while (4 << s.lanes_log2 < p.size) ++s.lanes_log2;
  const int64_t threads = (p.batch * p.heads * groups) << s.lanes_log2;
  if (threads > 0x7fffffff) return cudaErrorInvalidConfiguration;
  s.groups = static_cast<uint32_t>(groups), s.threads = static_cast<uint32_t>(threads);
  s.wide.q = wide_channels(p.q), s.wide.k = wide_channels(p.k), s.wide.v = wide_channels(p.v);
  s.wide.scales = wide_channels({p.k_scale, p.k_shift, p.v_scale, p.v_shift});
  s.wide.weights = wide_vectors({p.q_weight, p.q_bias, p.k_weight, p.k_bias});
  s.wide.rotation = wide_channels({p.rotation});
  return launch_early(store_kv_kernel, dim3((s.threads + kThreads - 1) / kThreads), kThreads, 0, launch, s);
}

}  // namespace ptq4arvg::cuda
