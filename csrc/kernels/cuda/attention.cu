// attention: a warp has 16 queries of a head, and goes over their keys twice, first for the greatest scores, then for
// the levels of the probabilities and their products with the values.
//
// A block's four warps have 64 queries and share the tiles of keys that cp.async brings to shared memory. Where there
// are 16 queries or fewer (decoding) all four have the same ones, and take steps of keys in turn, each through a ring
// of its own; maxima and sums are put together through shared memory. All sums are int32: their order changes nothing.
#include "kernels/cuda/attention.h"

#include "kernels/cuda/attention_softmax.cuh"
#include "kernels/cuda/attention_tile.cuh"

namespace ptq4arvg::cuda {
namespace {

constexpr int kWarps = 4;
constexpr int kThreads = 32 * kWarps;
constexpr int kWarpQueries = 16;
constexpr int kStages = 3;  // of a ring

struct Attention {
  AttentionProblem p;
  int blocks;  // of a head
  bool wide;   // four floats can be read at once
};

template <bool Split>
constexpr int kBlockQueries = Split ? kWarpQueries : kWarps * kWarpQueries;
template <bool Split>
constexpr int kTileKeys = Split ? kStepKeys : 2 * kStepKeys;

// Tiles of the keys, then the same ones with values, one after the other through a ring of buffers that the block
// shares, or where keys are split, the warp alone has.
template <int Size, bool Split>
struct Ring {
  using T = Tile<Size, kTileKeys<Split>>;
  static constexpr int kBytes = kStages * T::kBytes;

  const CachedHead& head;
  uint32_t buffers;
  int thread, warp, tiles;
  int filled = 0, filling = 0, taking = 0;

  __device__ Ring(const CachedHead& head, int keys) : head(head), thread(threadIdx.x), warp(threadIdx.x / 32) {
    buffers = shared_address(dynamic_shared());
    tiles = (keys + kTileKeys<Split> - 1) / kTileKeys<Split>;
    if constexpr (Split) {
      buffers += warp * kBytes;
      thread %= 32;
      tiles = (tiles - warp + kWarps - 1) / kWarps;
    }
#pragma unroll
    for (int i = 0; i < kStages - 1; ++i) fill();
  }

  __device__ int first_key(int n) const { return (Split ? n * kWarps + warp : n) * kTileKeys<Split>; }

  __device__ void fill() {
    if (filled < 2 * tiles) {
      const bool again = filled >= tiles;
      T::template fill<Split ? 32 : kThreads>(buffers + filling * T::kBytes, head,
                                              first_key(again ? filled - tiles : filled), thread, again);
    }
    ++filled;
    filling = filling == kStages - 1 ? 0 : filling + 1;
    commit_copies();
  }

  // The next tile, all of it there. The one before it makes room for another.
  __device__ uint32_t take() {
    wait_copies<kStages - 2>();
    if constexpr (Split) __syncwarp();
    else __syncthreads();
    fill();
    const uint32_t tile = buffers + taking * T::kBytes;
    taking = taking == kStages - 1 ? 0 : taking + 1;
    return tile;
  }
};

__device__ inline int warp_max(int x, int first_step) {
  for (int step = first_step; step < 32; step *= 2) x = max(x, __shfl_xor_sync(kAllLanes, x, step));
  return x;
}

// Sums of the channels from 8 (lane % 4) on of 32 of them to outputs, for the two rows of a lane.
__device__ inline void finish(const Attention& a, int64_t image, int head, int first_query, int first_channel,
                              const int32_t (*sums)[4], const float* reciprocals) {
  const AttentionProblem& p = a.p;
  const int size = static_cast<int>(p.size), lane = threadIdx.x % 32;
  const int first = first_channel + lane % 4 * 8, first_of_head = head * size;
  const auto inside = [&](int e) { return first + 4 * e < size; };
  float scale[2][4], shift[2][4];
  load_fours<2>({p.v_scale, DType::f32, 0}, first_of_head + first, 4, a.wide, inside, scale);
  load_fours<2>({p.v_shift, DType::f32, 0}, first_of_head + first, 4, a.wide, inside, shift);
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int row = i / 2, e = i % 2;
    const int64_t query = first_query + lane / 4 + 8 * row;
    if (query >= p.tokens || !inside(e)) continue;
    float y[4];
#pragma unroll
    for (int t = 0; t < 4; ++t) {
      const float sum = static_cast<float>(sums[t][i]);
      y[t] = attention_output(sum, reciprocals[row], scale[e][t], shift[e][t]);
    }
    store_four(p.out, p.out_dtype, (image * p.tokens + query) * p.heads * size + first_of_head + first + 4 * e, y);
  }
}

template <int Size, bool Split>
__global__ void __launch_bounds__(kThreads, Size <= 64 ? 4 : 3) attention_kernel(const __grid_constant__ Attention a) {
  wait_for_earlier_kernels();
  let_later_kernels_start();
  using T = typename Ring<Size, Split>::T;
  const AttentionProblem& p = a.p;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const unsigned heads = static_cast<unsigned>(p.heads), head_of_all = blockIdx.x / a.blocks;
  const int64_t image = head_of_all / heads;
  const int head_index = static_cast<int>(head_of_all % heads), size = static_cast<int>(p.size);
  const int block_query = static_cast<int>(blockIdx.x % a.blocks) * kBlockQueries<Split>;
  const int first_query = block_query + (Split ? 0 : warp * kWarpQueries);
  // Rows past the last query are that query once more: they are not written.
  const int last_query = static_cast<int>(p.tokens) - 1;
  const auto limit_of = [&](int query) { return static_cast<int>(keys_of(p, min(query, last_query))); };

  int block_most = 0;
  for (int i = lane; i < kBlockQueries<Split>; i += 32) block_most = max(block_most, limit_of(block_query + i));
  block_most = warp_max(block_most, 1);
  const int64_t cached = head_index * p.cache.capacity * size;
  const CachedHead head{p.cache.keys + image * p.cache.image_keys + cached,
                        p.cache.values + image * p.cache.image_values + cached, size,
                        (block_most + kKeyPanel - 1) / kKeyPanel};
  Ring<Size, Split> ring(head, block_most);

  // While the first tiles are under way: the queries.
  uint32_t queries[Size / 32][4];
  float exponents[2];
  int limits[2];
  int64_t first[2];
#pragma unroll
  for (int row = 0; row < 2; ++row) {
    const int query = min(first_query + lane / 4 + 8 * row, last_query);
    first[row] = image * p.q.of_image + head_index * p.q.of_head + query * p.q.of_token;
    limits[row] = limit_of(query);
  }
  quantize_queries<Size>(p.q, first, p.k_scale + head_index * size, size, a.wide, lane % 4, queries, exponents);
  const int least = -warp_max(-min(limits[0], limits[1]), 4);
  const int most = first_query <= last_query ? warp_max(max(limits[0], limits[1]), 4) : 0;
  // body(address, key) for the warp's steps of the next `tiles` tiles.
  const auto for_each_step = [&](auto body) {
    for (int n = 0; n < ring.tiles; ++n) {
      const uint32_t tile = ring.take();
#pragma unroll 1
      for (int step = 0; step < T::kSteps; ++step) {
        const int key = ring.first_key(n) + step * kStepKeys;
        if (key < most) body(tile + step * T::kStepBytes, key);
      }
    }
  };
  const uint32_t lane_keys = T::lane_keys(lane), lane_values = T::lane_values(lane);

  int32_t greatest[2] = {INT32_MIN, INT32_MIN};
  for_each_step([&](uint32_t at, int key) {
    int32_t scores[kColumnTiles][4] = {};
    T::score(at + lane_keys, queries, scores);
    if (key + kStepKeys > least) hide_scores(key + lane % 4 * 8, limits, scores);
#pragma unroll
    for (int i = 0; i < 4 * kColumnTiles; ++i) greatest[i / 2 % 2] = max(greatest[i / 2 % 2], scores[i / 4][i % 4]);
  });
#pragma unroll
  for (int row = 0; row < 2; ++row) {
    for (int step = 1; step < 4; step *= 2) {
      greatest[row] = max(greatest[row], __shfl_xor_sync(kAllLanes, greatest[row], step));
    }
  }
  __shared__ int32_t of_warps[2][kWarps][kWarpQueries];  // what the warps put together: maxima, sums of levels
  if constexpr (Split) {
    if (lane % 4 == 0) of_warps[0][warp][lane / 4] = greatest[0], of_warps[0][warp][lane / 4 + 8] = greatest[1];
    __syncthreads();
#pragma unroll
    for (int i = 0; i < 2 * kWarps; ++i) {
      greatest[i % 2] = max(greatest[i % 2], of_warps[0][i / 2][lane / 4 + i % 2 * 8]);
    }
  }

  const Softmax rows[2] = {Softmax(greatest[0], exponents[0]), Softmax(greatest[1], exponents[1])};
  int32_t sums[Size / 32][kColumnTiles][4] = {}, totals[4] = {};
  for_each_step([&](uint32_t at, int key) {
    int32_t scores[kColumnTiles][4] = {};
    T::score(at + lane_keys, queries, scores);
    uint32_t levels[4];
    levels_of(scores, rows, levels);
    if (key + kStepKeys > least) hide_levels(key + lane % 4 * 8, limits, levels);
    const uint32_t ones[2] = {0x01010101u, 0x01010101u};
    multiply_levels(totals, levels, ones);
    T::add_values(at + lane_values, levels, sums);
  });

  float reciprocals[2];
  if constexpr (!Split) {
#pragma unroll
    for (int row = 0; row < 2; ++row) reciprocals[row] = div(1.0f, static_cast<float>(totals[2 * row]));
#pragma unroll
    for (int i = 0; i < Size / 32; ++i) finish(a, image, head_index, first_query, 32 * i, sums[i], reciprocals);
  } else {
    // The warps' sums side by side, [warp][32 channels][tile][lane]; then each warp adds up 32 channels.
    static_assert(Size / 32 <= kWarps);
    static_assert(kWarps * Ring<Size, Split>::kBytes >= kWarps * Size * kWarpQueries * int(sizeof(int32_t)));
    const uint32_t all = shared_address(dynamic_shared());
    const auto place = [&](int from, int i, int t) {
      return all + (((from * (Size / 32) + i) * kColumnTiles + t) * 32 + lane) * 16;
    };
    __syncthreads();
#pragma unroll
    for (int i = 0; i < Size / 32 * kColumnTiles; ++i) {
      store_words(place(warp, i / 4, i % 4), reinterpret_cast<const uint32_t*>(sums[i / 4][i % 4]));
    }
    if (lane % 4 == 0) of_warps[1][warp][lane / 4] = totals[0], of_warps[1][warp][lane / 4 + 8] = totals[2];
    __syncthreads();
    if (warp >= Size / 32) return;
#pragma unroll
    for (int row = 0; row < 2; ++row) {
      int32_t total = 0;
      for (int from = 0; from < kWarps; ++from) total += of_warps[1][from][lane / 4 + 8 * row];
      reciprocals[row] = div(1.0f, static_cast<float>(total));
    }
    int32_t added[kColumnTiles][4] = {};
#pragma unroll
    for (int i = 0; i < kWarps * kColumnTiles; ++i) {
      uint32_t words[4];
      load_words(place(i / 4, warp, i % 4), words);
#pragma unroll
      for (int j = 0; j < 4; ++j) added[i % 4][j] += static_cast<int32_t>(words[j]);
    }
    finish(a, image, head_index, first_query, 32 * warp, added, reciprocals);
  }
}

template <int Size, bool Split>
cudaError_t start(const AttentionProblem& p, const Launch& launch) {
  const int64_t blocks = (p.tokens + kBlockQueries<Split> - 1) / kBlockQueries<Split>;
  if (p.tokens > 0x7fffffff || p.batch * p.heads * blocks > 0x7fffffff) return cudaErrorInvalidConfiguration;
  const bool wide = wide_channels(p.q) && wide_channels({p.k_scale, p.v_scale, p.v_shift});
  const Attention a{p, static_cast<int>(blocks), wide};
  constexpr int kBytes = Ring<Size, Split>::kBytes * (Split ? kWarps : 1);
  auto* kernel = attention_kernel<Size, Split>;
  if (const cudaError_t error = allow_shared(kernel, kBytes)) return error;
  return launch_early(kernel, dim3(static_cast<unsigned>(p.batch * p.heads * blocks)), kThreads, kBytes, launch, a);
}

template <int Size>
cudaError_t start(const AttentionProblem& p, const Launch& launch) {
  return p.tokens <= kWarpQueries ? start<Size, true>(p, launch) : start<Size, false>(p, launch);
}

}  // namespace

cudaError_t attention(const AttentionProblem& p, const Launch& launch) {
  if (p.size <= 32) return start<32>(p, launch);
  if (p.size <= 64) return start<64>(p, launch);
  return p.size <= 96 ? start<96>(p, launch) : start<128>(p, launch);
}

}  // namespace ptq4arvg::cuda
