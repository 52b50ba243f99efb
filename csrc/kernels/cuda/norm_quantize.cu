// norm_quantize: a row is one warp's where rows are many, and a block's where they are few or long. It stays in
// registers between the two sums and the output; rows that are too long for that, or not aligned, are read again each
// time (from the caches).
#include "kernels/cuda/moments.cuh"
#include "kernels/cuda/rotate.cuh"
#include "kernels/cuda/rows.cuh"
#include "kernels/cuda/rowwise.h"
#include "kernels/cuda/vector.cuh"

namespace ptq4arvg::cuda {
namespace {

// The columns of a thread: C chunks of W, `step` columns apart, and none from `end` on. begin: thread 0's first column.
template <int W, int C>
struct Columns {
  int64_t begin, step, end;

  __device__ int64_t at(int c) const { return begin + c * step + threadIdx.x * W; }
  __device__ bool has(int c) const { return at(c) < end; }
  __device__ bool any_has(int c) const { return begin + c * step < end; }
};

// Four or eight neighbours of a 16-bit type, from where they may be read at once.
template <DType T, int W>
__device__ inline void load_halves(const FloatMatrix& from, int64_t index, float* out) {
  if constexpr (W == 8) return load_elements<T, 8>(from, index, out);
  const uint2 four = __ldg(reinterpret_cast<const uint2*>(static_cast<const uint16_t*>(from.data) + index));
  float wide[8];
  widen<T>(make_uint4(four.x, four.y, 0, 0), wide);
#pragma unroll
  for (int i = 0; i < 4; ++i) out[i] = wide[i];
}

// y = step(y, v) where there is such a vector v. Its type is asked for once, so that all loads are on their way
// together.
template <int W, int C, class Step>
__device__ inline void apply(const FloatMatrix& vector, int64_t row, const Columns<W, C>& columns, float (*y)[W],
                             const Step& step) {
  if (!vector.data) return;
  const auto each = [&](auto load) {
#pragma unroll
    for (int c = 0; c < C; ++c) {
      if (!columns.has(c)) continue;
      float v[W];
      load(row * vector.row_stride + columns.at(c), v);
#pragma unroll
      for (int i = 0; i < W; ++i) y[c][i] = step(y[c][i], v[i]);
    }
  };
  if constexpr (W == 1) {
    each([&](int64_t at, float* v) { v[0] = load_float(vector.data, vector.dtype, at); });
  } else if (vector.dtype == DType::f32) {
    each([&](int64_t at, float* v) {
#pragma unroll
      for (int i = 0; i < W; i += 4) load_elements<DType::f32, 4>(vector, at + i, v + i);
    });
  } else if (vector.dtype == DType::bf16) {
    each([&](int64_t at, float* v) { load_halves<DType::bf16, W>(vector, at, v); });
  } else {
    each([&](int64_t at, float* v) { load_halves<DType::f16, W>(vector, at, v); });
  }
}

// The steps after the statistics, in the order of norm_quantize.h.
template <int W, int C>
__device__ inline void modulate(const NormQuantizeProblem& p, float mean, float rstd, int64_t image,
                                const Columns<W, C>& columns, float (*y)[W]) {
  const auto times = [](float a, float b) { return mul(a, b); };
  const auto plus = [](float a, float b) { return add(a, b); };
#pragma unroll
  for (int i = 0; i < C * W; ++i) {
    float& value = y[i / W][i % W];
    value = mul(sub(value, mean), rstd);  // rms: the mean is 0, and nothing is rounded
  }
  apply(p.weight, 0, columns, y, times);
  apply(p.bias, 0, columns, y, plus);
  if (p.scale.data && p.constant.data) {
#pragma unroll
    for (int c = 0; c < C; ++c) {
      const Columns<W, 1> chunk{columns.begin + c * columns.step, 0, columns.end};
      float factors[1][W] = {};
      apply(p.constant, 0, chunk, factors, [](float, float b) { return b; });
      apply(p.scale, image, chunk, factors, plus);
#pragma unroll
      for (int i = 0; i < W; ++i) y[c][i] = mul(y[c][i], factors[0][i]);
    }
  } else {
    apply(p.constant, 0, columns, y, times);
    apply(p.scale, image, columns, y, [](float a, float b) { return mul(a, add(1.0f, b)); });
  }
  apply(p.shift, image, columns, y, plus);
  apply(p.post_scale, 0, columns, y, times);
  apply(p.post_shift, 0, columns, y, plus);
}

// The rotation of the columns that a block of threads holds, W neighbouring ones a thread; all threads take part.
template <int W>
__device__ inline void rotate(float* y, int block, int64_t k, float* exchange) {
  rotate_in_warp<W>(y, block, k);
  if constexpr (W == 1) {
    for (int stride = 32; stride < block; stride *= 2) {
      __syncthreads();
      exchange[threadIdx.x] = y[0];
      __syncthreads();
      const float other = exchange[threadIdx.x ^ stride];
      y[0] = threadIdx.x & stride ? sub(other, y[0]) : add(y[0], other);
    }
  }
}

constexpr int kRows = 4;  // of a block, where a row is one warp's

struct Norm {
  NormQuantizeProblem p;
  RowConstants constants;
};

// A row is that of `Warps` warps, whose threads keep C chunks of W elements each; C = 0 keeps none.
template <DType T, int W, int C, int Warps, bool Rotated, class Sum>
__global__ void __launch_bounds__(Warps == 1 ? 32 * kRows : 32 * Warps, Warps == 1 ? 2 : 16 / Warps)
    norm_quantize_kernel(const __grid_constant__ Norm norm) {
  wait_for_earlier_kernels();
  let_later_kernels_start();
  __shared__ Sum shared[2][Warps];
  __shared__ float exchange[W == 1 && Rotated ? 32 * Warps : 1];
  const NormQuantizeProblem& p = norm.p;
  const int64_t row = Warps == 1 ? static_cast<int64_t>(blockIdx.x) * kRows + threadIdx.y : blockIdx.x;
  if (Warps == 1 && row >= p.m) return;
  const int64_t start = row * p.x.row_stride, span = 32 * Warps * W;
  float kept[C ? C : 1][W] = {};
  const Columns<W, C> mine{0, span, p.k};
  if constexpr (C > 0) {
#pragma unroll
    for (int c = 0; c < C; ++c) {
      if (mine.has(c)) load_elements<T, W>(p.x, start + mine.at(c), kept[c]);
    }
  }
  const auto for_each_element = [&](auto body) {
    const auto each = [&](int c) {
#pragma unroll
      for (int i = 0; i < W; ++i) body(kept[c][i]);
    };
    if constexpr (C > 0) {
#pragma unroll
      for (int c = 0; c < C; ++c) {
        if (mine.has(c)) each(c);
      }
    } else {
      for (int64_t k = threadIdx.x * W; k < p.k; k += span) load_elements<T, W>(p.x, start + k, kept[0]), each(0);
    }
  };
  Sum mean{}, squares{};
  if (!p.rms) {
    for_each_element([&](float x) { mean.add(x); });
    mean = row_sum<Warps>(mean, shared[0]).over(norm.constants);
  }
  for_each_element([&](float x) { squares.add_square(x, mean); });
  const float rstd = row_sum<Warps>(squares, shared[1]).over(norm.constants).reciprocal_root(norm.constants);
  const RowPlace place = place_of(p.rows, row);
  const QuantizeRow to = table_row(p.table, place.t);
  const float centre = mean.rounded();
  const auto write = [&](const auto& columns, float (*x)[W]) {
    modulate(p, centre, rstd, place.image, columns, x);
#pragma unroll
    for (int c = 0; c < (C ? C : 1); ++c) {
      if (!columns.any_has(c)) break;
      // Threads past the end take part in the exchange.
      if constexpr (Rotated) rotate<W>(x[c], p.rotation, columns.at(c), exchange);
      if (columns.has(c)) quantize_and_store<W>(p.out + row * p.k + columns.at(c), x[c], to);
    }
  };
  if constexpr (C > 0) {
    write(mine, kept);
  } else {
    for (int64_t begin = 0; begin < p.k; begin += span) {
      const Columns<W, 1> columns{begin, 0, p.k};
      if (columns.has(0)) load_elements<T, W>(p.x, start + columns.at(0), kept[0]);
      write(columns, kept);
    }
  }
}

bool aligned(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % 16 == 0; }

// So many rows that a warp each keeps every multiprocessor busy.
bool many_rows(int64_t m, const Device& device) { return m >= 16 * device.sm_count; }

template <DType T, bool Rotated, class Sum>
cudaError_t start(const Norm& norm, const Launch& launch) {
  constexpr int W = kWidth<T>;
  const NormQuantizeProblem& p = norm.p;
  if (p.m > 0x7fffffff) return cudaErrorInvalidConfiguration;
  bool wide = vector_rows(p.x) && vector_rows(p.scale) && vector_rows(p.shift) && p.k % W == 0 && aligned(p.out);
  for (const FloatMatrix& each : {p.weight, p.bias, p.constant, p.post_scale, p.post_shift}) {
    wide = wide && aligned(each.data);
  }
  const unsigned rows = static_cast<unsigned>(p.m);
  const auto block_a_row = [&](auto* kernel, int warps) {
    return launch_early(kernel, dim3(rows), 32 * warps, 0, launch, norm);
  };
  const auto warp_a_row = [&](auto* kernel) {
    return launch_early(kernel, dim3((rows + kRows - 1) / kRows), dim3(32, kRows), 0, launch, norm);
  };
  const int64_t chunks = p.k / W;
  if (!wide) return block_a_row(norm_quantize_kernel<T, 1, 0, 8, Rotated, Sum>, 8);
  if (many_rows(p.m, launch.device)) {
    if (p.k <= 1024) return warp_a_row(norm_quantize_kernel<T, W, 32 / W, 1, Rotated, Sum>);
    if (p.k <= 2048) return warp_a_row(norm_quantize_kernel<T, W, 64 / W, 1, Rotated, Sum>);
  }
  if (chunks <= 128) return block_a_row(norm_quantize_kernel<T, W, 1, 4, Rotated, Sum>, 4);
  if (chunks <= 256) return block_a_row(norm_quantize_kernel<T, W, 2, 4, Rotated, Sum>, 4);
  if (chunks <= 512) return block_a_row(norm_quantize_kernel<T, W, 4, 4, Rotated, Sum>, 4);
  if (chunks <= 1024) return block_a_row(norm_quantize_kernel<T, W, 4, 8, Rotated, Sum>, 8);
  return block_a_row(norm_quantize_kernel<T, W, 0, 8, Rotated, Sum>, 8);
}

template <DType T, bool Rotated>
cudaError_t start(const NormQuantizeProblem& p, const Launch& launch) {
  const Norm norm{p, row_constants(p.k, p.eps)};
  const bool doubles = fast_doubles(launch.device.sm);
  return doubles ? start<T, Rotated, DoubleSum>(norm, launch) : start<T, Rotated, PairSum>(norm, launch);
}

template <DType T>
cudaError_t start(const NormQuantizeProblem& p, const Launch& launch) {
  return p.rotation ? start<T, true>(p, launch) : start<T, false>(p, launch);
}

}  // namespace

cudaError_t norm_quantize(const NormQuantizeProblem& p, const Launch& launch) {
  if (p.x.dtype == DType::f32) return start<DType::f32>(p, launch);
  return p.x.dtype == DType::bf16 ? start<DType::bf16>(p, launch) : start<DType::f16>(p, launch);
}

}  // namespace ptq4arvg::cuda
