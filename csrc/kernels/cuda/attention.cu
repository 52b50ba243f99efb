// attention: a warp has 16 queries of a head, and goes over their keys twice, first for the greatest scores, then for
// the levels of the probabilities and their products with the values.
//
// A block's four warps have 64 queries and share the tiles of keys that cp.async brings to shared memory. Where that
// makes few blocks (decoding) all four have the same 16 queries, and take steps of keys in turn, each through a ring of
// its own; maxima and sums are put together through shared memory. All sums are int32: their order changes nothing.
#include "kernels/cuda/attention.h"

#include "kernels/cuda/attention_ring.cuh"
#include "kernels/cuda/attention_softmax.cuh"
#include "kernels/cuda/rotate.cuh"

namespace ptq4arvg::cuda {
namespace {

constexpr int kWarpQueries = 16;

struct Attention {
  AttentionProblem p;
  int blocks;  // of a head
  bool wide;   // four floats can be read at once
};

template <bool Split>
constexpr int kBlockQueries = Split ? kWarpQueries : kWarps * kWarpQueries;

// Which queries a block and its warps have.
struct QueryPlace {
  int64_t image;
  int head, block_query, first_query;
};

template <bool Split>
__device__ inline QueryPlace query_place(const Attention& a) {
  const unsigned heads = static_cast<unsigned>(a.p.heads), head_of_all = blockIdx.x / a.blocks;
  const int block_query = static_cast<int>(blockIdx.x % a.blocks) * kBlockQueries<Split>;
  const int first_query = block_query + (Split ? 0 : static_cast<int>(threadIdx.x) / 32 * kWarpQueries);
  return {head_of_all / heads, static_cast<int>(head_of_all % heads), block_query, first_query};
}

__device__ inline int warp_max(int x, int first_step) {
  for (int step = first_step; step < 32; step *= 2) x = max(x, __shfl_xor_sync(kAllLanes, x, step));
  return x;
}

// Eight neighbouring columns in each of four lanes.
using EightsOfColumns = RotationStages<Held<1>, Held<2>, Held<4>, Across<1>>;

// Sums of the channels from 8 (lane % 4) on of 32 of them to outputs, for the two rows of a lane. All lanes of the warp
// take part.
__device__ inline void finish(const Attention& a, const QueryPlace& place, int first_channel, const int32_t (*sums)[4],
                              const float* reciprocals) {
  const AttentionProblem& p = a.p;
  const int size = static_cast<int>(p.size), lane = threadIdx.x % 32;
  const int first = first_channel + lane % 4 * 8, first_of_head = place.head * size + first;
  const auto inside = [&](int e) { return first + 4 * e < size; };
  float scale[2][4], shift[2][4];
  load_fours<2>({p.v_scale, DType::f32, 0}, first_of_head, 4, a.wide, inside, scale);
  load_fours<2>({p.v_shift, DType::f32, 0}, first_of_head, 4, a.wide, inside, shift);
  QuantizeRow entries[2];
#pragma unroll
  for (int row = 0; row < 2 && p.requantize; ++row) {
    const int query = place.first_query + lane / 4 + 8 * row;
    entries[row] = table_row(p.out_table, entry_of(p, min(query, static_cast<int>(p.tokens) - 1)));
  }
#pragma unroll
  for (int row = 0; row < 2; ++row) {
    float y[8];
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const float sum = static_cast<float>(sums[i % 4][2 * row + i / 4]);
      y[i] = attention_output(sum, reciprocals[row], scale[i / 4][i % 4], shift[i / 4][i % 4]);
    }
    if (p.rotation) EightsOfColumns::rotate<8>(y, p.rotation, [=](int i) { return first_of_head + i; });
    const int64_t query = place.first_query + lane / 4 + 8 * row;
    if (query >= p.tokens) continue;
    const int64_t at = (place.image * p.tokens + query) * p.heads * size + first_of_head;
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      if (!inside(e)) continue;
      if (p.requantize) quantize_and_store<4>(static_cast<int8_t*>(p.out) + at + 4 * e, y + 4 * e, entries[row]);
      else store_four(p.out, p.out_dtype, at + 4 * e, y + 4 * e);
    }
  }
}

// A number of each of the warps' 16 queries.
using OfWarps = int32_t[kWarps][kWarpQueries];

// Where keys are split: rows of a lane, the same in lanes of four. All warps' numbers are there after the barrier.
__device__ inline void share(OfWarps& of_warps, int32_t first, int32_t second) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  if (lane % 4 == 0) of_warps[warp][lane / 4] = first, of_warps[warp][lane / 4 + 8] = second;
  __syncthreads();
}

// Where keys are split: the warps' sums side by side in shared memory, [warp][32 channels][tile][lane]. Then each warp
// adds up 32 channels, and writes them.
template <int Size>
__device__ inline void finish_split(const Attention& a, const QueryPlace& place, const int32_t (*sums)[kColumnTiles][4],
                                    const int32_t* totals) {
  constexpr int kParts = Size / 32;
  static_assert(kParts <= kWarps);
  static_assert(Ring<Size, true>::kBlockBytes >= kWarps * Size * kWarpQueries * int(sizeof(int32_t)));
  __shared__ OfWarps of_warps;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const uint32_t lane_sums = shared_address(dynamic_shared()) + 16 * lane;
  const auto at = [&](int from, int part, int t) {
    return lane_sums + ((from * kParts + part) * kColumnTiles + t) * (32 * 16);
  };
  __syncthreads();  // all tiles have been read
#pragma unroll
  for (int i = 0; i < kParts * kColumnTiles; ++i) {
    const int32_t* four = sums[i / kColumnTiles][i % kColumnTiles];
    const uint32_t words[4] = {uint32_t(four[0]), uint32_t(four[1]), uint32_t(four[2]), uint32_t(four[3])};
    store_words(at(warp, i / kColumnTiles, i % kColumnTiles), words);
  }
  share(of_warps, totals[0], totals[2]);
  if (warp >= kParts) return;
  int32_t total[2] = {}, added[kColumnTiles][4] = {};
#pragma unroll
  for (int from = 0; from < kWarps; ++from) {
    total[0] += of_warps[from][lane / 4], total[1] += of_warps[from][lane / 4 + 8];
#pragma unroll
    for (int t = 0; t < kColumnTiles; ++t) {
      uint32_t words[4];
      load_words(at(from, warp, t), words);
#pragma unroll
      for (int j = 0; j < 4; ++j) added[t][j] += static_cast<int32_t>(words[j]);
    }
  }
  const float reciprocals[2] = {div(1.0f, static_cast<float>(total[0])), div(1.0f, static_cast<float>(total[1]))};
  finish(a, place, 32 * warp, added, reciprocals);
}

template <int Size, bool Split>
__global__ void __launch_bounds__(kThreads, Size <= 64 ? 4 : 3) attention_kernel(const __grid_constant__ Attention a) {
  wait_for_earlier_kernels();
  let_later_kernels_start();
  using R = Ring<Size, Split>;
  using T = typename R::T;
  const AttentionProblem& p = a.p;
  const int lane = threadIdx.x % 32, size = static_cast<int>(p.size);
  const QueryPlace place = query_place<Split>(a);
  // Rows past the last query are that query once more: they are not written.
  const int last_query = static_cast<int>(p.tokens) - 1;
  const auto limit_of = [&](int query) { return static_cast<int>(keys_of(p, min(query, last_query))); };

  int most = 0;  // keys of the block's queries
  for (int i = lane; i < kBlockQueries<Split>; i += 32) most = max(most, limit_of(place.block_query + i));
  most = warp_max(most, 1);
  const int64_t cached = place.head * p.cache.capacity * size;
  const CachedHead head{p.cache.keys + place.image * p.cache.image_keys + cached,
                        p.cache.values + place.image * p.cache.image_values + cached, size,
                        static_cast<int>(whole_panels(most)) / kKeyPanel};
  R ring(head, most);

  // While the first tiles are under way: the queries.
  uint32_t queries[Size / 32][4];
  float exponents[2];
  int limits[2];
  int64_t first[2];
#pragma unroll
  for (int row = 0; row < 2; ++row) {
    const int query = min(place.first_query + lane / 4 + 8 * row, last_query);
    first[row] = place.image * p.q.of_image + place.head * p.q.of_head + query * p.q.of_token;
    limits[row] = limit_of(query);
  }
  quantize_queries<Size>(p.q, first, p.k_scale + place.head * size, size, a.wide, lane % 4, queries, exponents);
  // Keys that all of the warp's queries see, and that any does.
  const int all_see = -warp_max(-min(limits[0], limits[1]), 4);
  const int any_sees = place.first_query <= last_query ? warp_max(max(limits[0], limits[1]), 4) : 0;
  const uint32_t lane_keys = kept(T::lane_keys(lane)), lane_values = kept(T::lane_values(lane));

  const int32_t zeros[4] = {};
  int32_t least[2] = {INT32_MAX, INT32_MAX};  // of the negated scores
  ring.for_each_step(any_sees, [&](uint32_t at, int key) {
    int32_t scores[kColumnTiles][4];
    T::score(at + lane_keys, queries, zeros, scores);
    if (key + kStepKeys > all_see) hide_scores(key + lane % 4 * 8, limits, scores);
#pragma unroll
    for (int i = 0; i < 4 * kColumnTiles; ++i) least[i / 2 % 2] = min(least[i / 2 % 2], scores[i / 4][i % 4]);
  });
#pragma unroll
  for (int row = 0; row < 2; ++row) {
#pragma unroll
    for (int step = 1; step < 4; step *= 2) {
      least[row] = min(least[row], __shfl_xor_sync(kAllLanes, least[row], step));
    }
  }
  if constexpr (Split) {
    __shared__ OfWarps of_warps;
    share(of_warps, least[0], least[1]);
#pragma unroll
    for (int i = 0; i < 2 * kWarps; ++i) least[i % 2] = min(least[i % 2], of_warps[i / 2][lane / 4 + i % 2 * 8]);
  }

  const Softmax rows[2] = {Softmax(least[0], exponents[0]), Softmax(least[1], exponents[1])};
  // A lane's own number, shuffled: the compiler would copy registers that it knows to be equal for each product.
  int32_t start[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) start[i] = __shfl_sync(kAllLanes, rows[i / 2].start, lane);
  int32_t sums[Size / 32][kColumnTiles][4] = {}, totals[4] = {};
  ring.for_each_step(any_sees, [&](uint32_t at, int key) {
    int32_t scores[kColumnTiles][4];
    T::score(at + lane_keys, queries, start, scores);
    uint32_t levels[4];
    levels_of(scores, rows, levels);
    if (key + kStepKeys > all_see) hide_levels(key + lane % 4 * 8, limits, levels);
    const uint32_t ones[2] = {0x01010101u, 0x01010101u};
    multiply_levels(totals, levels, ones);
    T::add_values(at + lane_values, levels, sums);
  });

  if constexpr (Split) {
    finish_split<Size>(a, place, sums, totals);
  } else {
    const float reciprocals[2] = {div(1.0f, static_cast<float>(totals[0])), div(1.0f, static_cast<float>(totals[2]))};
#pragma unroll
    for (int i = 0; i < Size / 32; ++i) finish(a, place, 32 * i, sums[i], reciprocals);
  }
}

template <bool Split>
int64_t blocks_of_head(const AttentionProblem& p) {
  return (p.tokens + kBlockQueries<Split> - 1) / kBlockQueries<Split>;
}

template <int Size, bool Split>
cudaError_t start(const AttentionProblem& p, const Launch& launch) {
  const int64_t blocks = blocks_of_head<Split>(p);
  if (p.tokens > 0x7fffffff || p.batch * p.heads * blocks > 0x7fffffff) return cudaErrorInvalidConfiguration;
  const bool wide = wide_channels(p.q) && wide_channels({p.k_scale, p.v_scale, p.v_shift});
  const Attention a{p, static_cast<int>(blocks), wide};
  auto* kernel = attention_kernel<Size, Split>;
  constexpr int kBytes = Ring<Size, Split>::kBlockBytes;
  if (const cudaError_t error = allow_shared(kernel, kBytes)) return error;
  return launch_early(kernel, dim3(static_cast<unsigned>(p.batch * p.heads * blocks)), kThreads, kBytes, launch, a);
}

// The keys are split where blocks of many queries would be too few for the device.
template <int Size>
cudaError_t start(const AttentionProblem& p, const Launch& launch) {
  const bool few = p.batch * p.heads * blocks_of_head<false>(p) < 2 * launch.device.sm_count;
  return few || p.tokens <= kWarpQueries ? start<Size, true>(p, launch) : start<Size, false>(p, launch);
}

}  // namespace

cudaError_t attention(const AttentionProblem& p, const Launch& launch) {
  if (p.size <= 32) return start<32>(p, launch);
  if (p.size <= 64) return start<64>(p, launch);
  return p.size <= 96 ? start<96>(p, launch) : start<128>(p, launch);
}

}  // namespace ptq4arvg::cuda
