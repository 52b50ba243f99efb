// quantize_map: sums of runs, a group's statistics, codes. A thread takes W neighbouring channels of some pixels.
#include "kernels/cuda/rows.cuh"
#include "kernels/cuda/rowwise.h"
#include "kernels/cuda/vector.cuh"

namespace ptq4arvg::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kPixels = 8;     // of a thread: its channels' factors and offsets serve that many
constexpr int kChannels = 16;  // of a group that a block totals at a time

struct Map {
  QuantizeMapProblem p;
  float* runs;    // [images][runs][2][channels]: sums, then sums of squares
  float* affine;  // [images][2][channels]: factors, then offsets
};

template <DType T, int W>
__global__ void __launch_bounds__(kThreads) sum_runs(const __grid_constant__ Map map) {
  wait_for_earlier_kernels();
  let_later_kernels_start();
  const QuantizeMapProblem& p = map.p;
  const uint32_t chunks = static_cast<uint32_t>(p.channels / W), index = blockIdx.x * kThreads + threadIdx.x;
  const int64_t run = index / chunks, image = blockIdx.y, c = static_cast<int64_t>(index % chunks) * W;
  if (run >= p.runs()) return;
  const int64_t first = run * kMapRun, end = first + kMapRun < p.pixels() ? first + kMapRun : p.pixels();
  float sums[W] = {}, squares[W] = {};
#pragma unroll 8
  for (int64_t pixel = first; pixel < end; ++pixel) {
    float x[W];
    load_elements<T, W>(p.x, (image * p.pixels() + pixel) * p.x.row_stride + c, x);
#pragma unroll
    for (int i = 0; i < W; ++i) {
      sums[i] = add(sums[i], x[i]);
      squares[i] = add(squares[i], mul(x[i], x[i]));
    }
  }
  float* to = map.runs + (image * p.runs() + run) * 2 * p.channels + c;
#pragma unroll
  for (int i = 0; i < W; ++i) {
    to[i] = sums[i];
    to[p.channels + i] = squares[i];
  }
}

// A block takes a group of an image: a thread the runs of one lane, of one channel.
__global__ void __launch_bounds__(kChannels* kMapLanes) group_statistics(const __grid_constant__ Map map) {
  wait_for_earlier_kernels();
  let_later_kernels_start();
  __shared__ double lanes[2][kMapLanes][kChannels];
  __shared__ double totals[2][kChannels];
  __shared__ float found[2];
  const QuantizeMapProblem& p = map.p;
  const int64_t size = p.channels / p.groups, begin = blockIdx.x * size, image = blockIdx.y;
  const int lane = threadIdx.x / kChannels, channel = threadIdx.x % kChannels;
  const float* runs = map.runs + image * p.runs() * 2 * p.channels;
  double total = 0.0;  // of the group: thread 0 has that of the sums, thread 1 that of the squares
  for (int64_t first = 0; first < size; first += kChannels) {
    const int count = size - first < kChannels ? static_cast<int>(size - first) : kChannels;
    double sum = 0.0, square = 0.0;
    if (channel < count) {
      const float* from = runs + begin + first + channel;
      for (int64_t run = lane; run < p.runs(); run += kMapLanes) {
        sum += static_cast<double>(from[run * 2 * p.channels]);
        square += static_cast<double>(from[(run * 2 + 1) * p.channels]);
      }
    }
    lanes[0][lane][channel] = sum;
    lanes[1][lane][channel] = square;
    __syncthreads();
    if (lane < 2) {
      double each = lanes[lane][0][channel];
      for (int i = 1; i < kMapLanes; ++i) each += lanes[lane][i][channel];
      totals[lane][channel] = each;
    }
    __syncthreads();
    if (threadIdx.x < 2) {
      for (int i = 0; i < count; ++i) total += totals[threadIdx.x][i];
    }
  }
  if (threadIdx.x < 2) lanes[0][0][threadIdx.x] = total;
  __syncthreads();
  if (threadIdx.x == 0) {
    const double number = static_cast<double>(p.pixels() * size), mean = __ddiv_rn(lanes[0][0][0], number);
    const double difference = __dsub_rn(__ddiv_rn(lanes[0][0][1], number), __dmul_rn(mean, mean));
    const double variance = difference > 0.0 ? difference : 0.0;
    found[0] = static_cast<float>(mean);
    found[1] = static_cast<float>(__ddiv_rn(1.0, __dsqrt_rn(__dadd_rn(variance, p.eps))));
  }
  __syncthreads();
  float* to = map.affine + image * 2 * p.channels;
  for (int64_t c = begin + threadIdx.x; c < begin + size; c += blockDim.x) {
    const float factor = p.weight.data ? mul(found[1], load_float(p.weight.data, p.weight.dtype, c)) : found[1];
    const float bias = p.bias.data ? load_float(p.bias.data, p.bias.dtype, c) : 0.0f;
    to[c] = factor;
    to[p.channels + c] = sub(bias, mul(found[0], factor));
  }
}

// Where border pixel `index` of a map is: those above and below first, line by line, then those at the sides.
__device__ inline int64_t border_pixel(const QuantizeMapProblem& p, int64_t index) {
  const int64_t width = p.out_width(), ends = p.border * width;
  if (index < ends) return index;
  if (index < 2 * ends) return (p.out_height() - p.border) * width + index - ends;
  const int64_t side = index - 2 * ends, line = side / (2 * p.border), at = side % (2 * p.border);
  return (p.border + line) * width + (at < p.border ? at : width - 2 * p.border + at);
}

template <DType T, int W>
__global__ void __launch_bounds__(kThreads) write_codes(const __grid_constant__ Map map) {
  wait_for_earlier_kernels();
  let_later_kernels_start();
  const QuantizeMapProblem& p = map.p;
  const uint32_t chunks = static_cast<uint32_t>(p.channels / W), index = blockIdx.x * kThreads + threadIdx.x;
  const int64_t part = index / chunks, image = blockIdx.y, c = static_cast<int64_t>(index % chunks) * W;
  const int64_t parts = (p.pixels() + kPixels - 1) / kPixels;
  int8_t* out = p.out + image * p.out_height() * p.out_width() * p.channels + c;
  uint32_t codes[W];
  if (part >= parts) {
    const int64_t around = p.out_height() * p.out_width() - p.scale * p.scale * p.pixels();
    if (part - parts >= around) return;
#pragma unroll
    for (int i = 0; i < W; ++i) codes[i] = static_cast<uint32_t>(code_of_zero(p.table));
    return store_codes<W>(out + border_pixel(p, part - parts) * p.channels, codes);
  }
  const QuantizeRow to = table_row(p.table, 0);
  float factor[W], offset[W];
  if (p.groups) {
    const float* affine = map.affine + image * 2 * p.channels + c;
#pragma unroll
    for (int i = 0; i < W; ++i) {
      factor[i] = affine[i];
      offset[i] = affine[p.channels + i];
    }
  }
  const int64_t first = part * kPixels, end = first + kPixels < p.pixels() ? first + kPixels : p.pixels();
  const uint32_t width = static_cast<uint32_t>(p.width), line = static_cast<uint32_t>(first) / width;
  uint32_t column = static_cast<uint32_t>(first) % width;
  // The first of the pixels that a pixel becomes, and what lies between those of two lines or of two pixels.
  int8_t* corner = out + ((p.border + line * p.scale) * p.out_width() + p.border + column * p.scale) * p.channels;
  const int64_t line_bytes = p.out_width() * p.channels, step = p.scale * p.channels;
  int64_t from = (image * p.pixels() + first) * p.x.row_stride + c;
#pragma unroll 2
  for (int64_t pixel = first; pixel < end; ++pixel, from += p.x.row_stride) {
    float y[W];
    load_elements<T, W>(p.x, from, y);
    if (p.groups) {
#pragma unroll
      for (int i = 0; i < W; ++i) y[i] = add(mul(y[i], factor[i]), offset[i]);
    }
    activate_all<W>(p.activation, y);
#pragma unroll
    for (int i = 0; i < W; ++i) codes[i] = code_bits(y[i], to);
    int8_t* to_line = corner;
    for (int64_t i = 0; i < p.scale; ++i, to_line += line_bytes) {
      int8_t* to_pixel = to_line;
      for (int64_t j = 0; j < p.scale; ++j, to_pixel += p.channels) store_codes<W>(to_pixel, codes);
    }
    corner += step;
    if (++column == width) column = 0, corner += p.scale * line_bytes - p.width * step;
  }
}

// Blocks for `items` of an image, each for every chunk of W channels; 0 where there are too many.
unsigned blocks_of(int64_t items, int64_t chunks) {
  const int64_t blocks = (items * chunks + kThreads - 1) / kThreads;
  return blocks * kThreads > 0x7fffffff ? 0 : static_cast<unsigned>(blocks);
}

template <DType T, int W>
cudaError_t start(const Map& map, const Launch& launch) {
  const QuantizeMapProblem& p = map.p;
  const int64_t chunks = p.channels / W, parts = (p.pixels() + kPixels - 1) / kPixels;
  const int64_t around = p.out_height() * p.out_width() - p.scale * p.scale * p.pixels();
  const unsigned images = static_cast<unsigned>(p.images);
  const unsigned writing = blocks_of(parts + around, chunks), summing = blocks_of(p.runs(), chunks);
  if (p.images > 65535 || !writing || !summing) return cudaErrorInvalidConfiguration;
  if (p.groups) {
    cudaError_t error = launch_early(sum_runs<T, W>, dim3(summing, images), kThreads, 0, launch, map);
    if (error) return error;
    const dim3 groups(static_cast<unsigned>(p.groups), images);
    error = launch_early(group_statistics, groups, kChannels * kMapLanes, 0, launch, map);
    if (error) return error;
  }
  return launch_early(write_codes<T, W>, dim3(writing, images), kThreads, 0, launch, map);
}

template <DType T>
cudaError_t start(const Map& map, const Launch& launch) {
  constexpr int W = kWidth<T>;
  const QuantizeMapProblem& p = map.p;
  const bool wide = vector_rows(p.x) && p.channels % W == 0 && reinterpret_cast<uintptr_t>(p.out) % W == 0;
  return wide ? start<T, W>(map, launch) : start<T, 1>(map, launch);
}

}  // namespace

cudaError_t quantize_map(const QuantizeMapProblem& p, const Launch& launch, const Scratch& scratch) {
  Map map{p, nullptr, nullptr};
  if (p.groups) {
    const int64_t affine = p.images * 2 * p.channels;
    map.affine = static_cast<float*>(scratch.allocate(scratch.context, (p.runs() + 1) * affine * sizeof(float)));
    map.runs = map.affine + affine;
  }
  if (p.x.dtype == DType::f32) return start<DType::f32>(map, launch);
  return p.x.dtype == DType::bf16 ? start<DType::bf16>(map, launch) : start<DType::f16>(map, launch);
}

}  // namespace ptq4arvg::cuda
