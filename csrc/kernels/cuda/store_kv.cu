// store_kv: a thread takes four neighbouring channels of the four positions of a group, which are 16 bytes of the cache,
// of the keys and of the values alike. Bound by memory.
#include "kernels/cuda/attention.h"
#include "kernels/cuda/vector.cuh"

namespace ptq4arvg::cuda {
namespace {

constexpr int kThreads = 128;

struct StoreKv {
  StoreKvProblem p;
  uint32_t groups;   // of positions, as many as the tokens may touch
  uint32_t threads;  // that have something to do
  bool wide_k, wide_v, wide_scales;  // four floats can be read at once
};

// Codes of four channels, the first one in the lowest byte.
__device__ inline uint32_t codes_of(const HeadTensor& x, int64_t index, bool wide, const float* shift,
                                    const float* inverse) {
  float codes[4];
  load_four(FloatMatrix{x.data, x.dtype, 0}, index, wide, codes);
#pragma unroll
  for (int i = 0; i < 4; ++i) codes[i] = cache_code(codes[i], shift[i], inverse[i]);
  return pack4(codes);
}

// Byte j of word i becomes byte i of word j.
__device__ inline void transpose_bytes(const uint32_t* in, uint32_t* out) {
  const uint32_t low01 = __byte_perm(in[0], in[1], 0x5140), high01 = __byte_perm(in[0], in[1], 0x7362);
  const uint32_t low23 = __byte_perm(in[2], in[3], 0x5140), high23 = __byte_perm(in[2], in[3], 0x7362);
  out[0] = __byte_perm(low01, low23, 0x5410), out[1] = __byte_perm(low01, low23, 0x7632);
  out[2] = __byte_perm(high01, high23, 0x5410), out[3] = __byte_perm(high01, high23, 0x7632);
}

__global__ void __launch_bounds__(kThreads) store_kv_kernel(const __grid_constant__ StoreKv s) {
  wait_for_earlier_kernels();
  let_later_kernels_start();
  const StoreKvProblem& p = s.p;
  const uint32_t thread = blockIdx.x * kThreads + threadIdx.x;
  if (thread >= s.threads) return;
  const uint32_t quads = static_cast<uint32_t>(p.size) / 4, heads = static_cast<uint32_t>(p.heads);
  const uint32_t of_head = thread / quads / s.groups;
  const int64_t image = of_head / heads, head = of_head % heads, c = thread % quads * 4;
  const int64_t begin = p.position ? *p.position : 0;
  const int64_t group = begin / kKeyGroup + thread / quads % s.groups;

  int8_t* keys = p.cache.keys + image * p.cache.image_keys + head * p.cache.capacity * p.size;
  int8_t* values = p.cache.values + image * p.cache.image_values + head * p.cache.capacity * p.size;
  const auto codes = [&](const HeadTensor& x, const float* scales, const float* shifts, bool wide, uint32_t* out) {
    float inverse[4], shift[4];
    load_four(scales + head * p.size, c, s.wide_scales, inverse);
    load_four(shifts + head * p.size, c, s.wide_scales, shift);
#pragma unroll
    for (int i = 0; i < 4; ++i) inverse[i] = div(1.0f, inverse[i]);
    uint32_t stored = 0;
#pragma unroll
    for (int i = 0; i < kKeyGroup; ++i) {
      const int64_t j = group * kKeyGroup + i, t = j - begin;
      if (t < 0 || t >= p.tokens || j < 0 || j >= p.cache.capacity) continue;
      out[i] = codes_of(x, image * x.of_image + head * x.of_head + t * x.of_token + c, wide, shift, inverse);
      stored |= 1u << i;
    }
    return stored;
  };

  uint32_t words[4] = {}, channels[4];
  const uint32_t stored = codes(p.k, p.k_scale, p.k_shift, s.wide_k, words);
  int8_t* to = keys + key_place(group * kKeyGroup, c, p.size);
  if (stored == 15) {
    *reinterpret_cast<uint4*>(to) = make_uint4(words[0], words[1], words[2], words[3]);
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (stored >> i & 1) *reinterpret_cast<uint32_t*>(to + 4 * i) = words[i];
    }
  }
  codes(p.v, p.v_scale, p.v_shift, s.wide_v, words);
  transpose_bytes(words, channels);
  to = values + value_place(group * kKeyGroup, c, p.size);
  if (stored == 15) {
    *reinterpret_cast<uint4*>(to) = make_uint4(channels[0], channels[1], channels[2], channels[3]);
  } else {
#pragma unroll
    for (int i = 0; i < 16; ++i) {
      if (stored >> i % 4 & 1) to[i] = static_cast<int8_t>(channels[i / 4] >> 8 * (i % 4));
    }
  }
}

}  // namespace

cudaError_t store_kv(const StoreKvProblem& p, const Launch& launch) {
  StoreKv s{p};
  // From the last position of a group on, they touch most.
  const int64_t groups = (p.tokens + 2 * (kKeyGroup - 1)) / kKeyGroup;
  const int64_t threads = p.batch * p.heads * groups * (p.size / 4);
  if (threads > 0x7fffffff) return cudaErrorInvalidConfiguration;
  s.groups = static_cast<uint32_t>(groups), s.threads = static_cast<uint32_t>(threads);
  s.wide_k = wide_channels(p.k), s.wide_v = wide_channels(p.v);
  s.wide_scales = wide_channels({p.k_scale, p.k_shift, p.v_scale, p.v_shift});
  return launch_early(store_kv_kernel, dim3((s.threads + kThreads - 1) / kThreads), kThreads, 0, launch, s);
}

}  // namespace ptq4arvg::cuda
