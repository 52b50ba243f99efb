// store_kv: a thread takes four neighbouring channels of the four positions of a group, which are 16 bytes of the
// cache, of the keys and of the values alike. Bound by memory.
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

// Codes of four channels of the four tokens from `first` on (an element's index): word i has those of the i-th, if
// bit i of `stored` is set.
__device__ inline void codes_of(const HeadTensor& x, int64_t first, bool wide, uint32_t stored, const float* scales,
                                const float* shifts, bool wide_scales, uint32_t* words) {
  const auto all = [](int) { return true; };
  float scale[1][4], shift[1][4], values[4][4];
  load_fours<1>({scales, DType::f32, 0}, 0, 0, wide_scales, all, scale);
  load_fours<1>({shifts, DType::f32, 0}, 0, 0, wide_scales, all, shift);
  load_fours<4>({x.data, x.dtype, 0}, first, x.of_token, wide, [&](int i) { return stored >> i & 1; }, values);
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    const float inverse = div(1.0f, scale[0][j]);
#pragma unroll
    for (int i = 0; i < 4; ++i) values[i][j] = cache_code(values[i][j], shift[0][j], inverse);
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) words[i] = pack4(values[i]);
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
  const uint32_t head_of_all = thread / quads / s.groups;
  const int64_t image = head_of_all / heads, head = head_of_all % heads, c = thread % quads * 4;
  const int64_t begin = p.position ? *p.position : 0;
  const int64_t group = begin / kKeyGroup + thread / quads % s.groups;

  uint32_t stored = 0;  // bit i: the i-th position of the group is a token's, and there is room
#pragma unroll
  for (int i = 0; i < kKeyGroup; ++i) {
    const int64_t j = group * kKeyGroup + i;
    if (j >= begin && j < begin + p.tokens && j >= 0 && j < p.cache.capacity) stored |= 1u << i;
  }
  if (!stored) return;
  const auto from = [&](const HeadTensor& x) {
    return image * x.of_image + head * x.of_head + (group * kKeyGroup - begin) * x.of_token + c;
  };
  const int64_t of_head = head * p.cache.capacity * p.size, channel = head * p.size + c;
  uint32_t words[4], channels[4];
  codes_of(p.k, from(p.k), s.wide_k, stored, p.k_scale + channel, p.k_shift + channel, s.wide_scales, words);
  int8_t* to = p.cache.keys + image * p.cache.image_keys + of_head + key_place(group * kKeyGroup, c, p.size);
  if (stored == 15) {
    *reinterpret_cast<uint4*>(to) = make_uint4(words[0], words[1], words[2], words[3]);
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (stored >> i & 1) *reinterpret_cast<uint32_t*>(to + 4 * i) = words[i];
    }
  }
  codes_of(p.v, from(p.v), s.wide_v, stored, p.v_scale + channel, p.v_shift + channel, s.wide_scales, words);
  transpose_bytes(words, channels);
  to = p.cache.values + image * p.cache.image_values + of_head + value_place(group * kKeyGroup, c, p.size);
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
