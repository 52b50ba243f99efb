// norm_quantize: one block a row. The row stays in registers between the two sums and the output; rows that are too
// long for that, or not aligned, are read again each time (from the caches).
#include "kernels/cuda/rotate.cuh"
#include "kernels/cuda/rows.cuh"
#include "kernels/cuda/rowwise.h"
#include "kernels/cuda/vector.cuh"

namespace ptq4arvg::cuda {
namespace {

// W neighbouring elements, 1, 4 or 8, whose type is known at run time only; those of 4 and 8 start at 16 bytes.
template <int W>
__device__ inline void load_columns(const FloatMatrix& from, int64_t index, float* out) {
  if constexpr (W == 1) {
    out[0] = load_float(from.data, from.dtype, index);
  } else if (W == 8 && from.dtype != DType::f32) {
    const uint4 raw = *reinterpret_cast<const uint4*>(static_cast<const uint16_t*>(from.data) + index);
    if (from.dtype == DType::bf16) widen<DType::bf16>(raw, out);
    else widen<DType::f16>(raw, out);
  } else {
    load_fours<W / 4>(from, index, 4, true, [](int) { return true; }, reinterpret_cast<float(*)[4]>(out));
  }
}

// The sum over all threads of the block, in a fixed order.
__device__ inline double block_sum(double value, double* shared) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) value += __shfl_xor_sync(0xffffffffu, value, step);
  const int warps = blockDim.x / 32;
  if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = value;
  __syncthreads();
  double sum = 0.0;
  for (int i = 0; i < warps; ++i) sum += shared[i];
  return sum;
}

// The steps after the statistics, in the order of norm_quantize.h.
template <int W>
__device__ inline void modulate(const NormQuantizeProblem& p, float mean, float rstd, int64_t image, int64_t k,
                                float* y) {
  float v[W];
  const auto each = [&](auto step) {
#pragma unroll
    for (int i = 0; i < W; ++i) y[i] = step(y[i], v[i]);
  };
  const auto times = [](float a, float b) { return mul(a, b); };
  const auto plus = [](float a, float b) { return add(a, b); };
#pragma unroll
  for (int i = 0; i < W; ++i) y[i] = mul(p.rms ? y[i] : sub(y[i], mean), rstd);
  if (p.weight.data) load_columns<W>(p.weight, k, v), each(times);
  if (p.bias.data) load_columns<W>(p.bias, k, v), each(plus);
  if (p.scale.data) {
    load_columns<W>(p.scale, image * p.scale.row_stride + k, v);
    float constant[W];
#pragma unroll
    for (int i = 0; i < W; ++i) constant[i] = 1.0f;
    if (p.constant.data) load_columns<W>(p.constant, k, constant);
#pragma unroll
    for (int i = 0; i < W; ++i) v[i] = add(constant[i], v[i]);
    each(times);
  } else if (p.constant.data) {
    load_columns<W>(p.constant, k, v), each(times);
  }
  if (p.shift.data) load_columns<W>(p.shift, image * p.shift.row_stride + k, v), each(plus);
  if (p.post_scale.data) load_columns<W>(p.post_scale, k, v), each(times);
  if (p.post_shift.data) load_columns<W>(p.post_shift, k, v), each(plus);
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

// C chunks of W elements a thread are kept; C = 0 keeps none.
template <DType T, int W, int C, bool Rotated>
__global__ void __launch_bounds__(256) norm_quantize_kernel(const __grid_constant__ NormQuantizeProblem p) {
  wait_for_earlier_kernels();
  let_later_kernels_start();
  __shared__ double shared[2][8];
  __shared__ float exchange[W == 1 && Rotated ? 256 : 1];
  const int64_t row = blockIdx.x;
  const int64_t start = row * p.x.row_stride, chunks = p.k / W;
  float kept[C ? C : 1][W] = {};
  const auto for_each_chunk = [&](auto body) {
    if constexpr (C > 0) {
#pragma unroll
      for (int c = 0; c < C; ++c) {
        const int64_t chunk = threadIdx.x + static_cast<int64_t>(c) * blockDim.x;
        if (chunk < chunks) body(chunk, kept[c]);
      }
    } else {
      for (int64_t chunk = threadIdx.x; chunk < chunks; chunk += blockDim.x) {
        load_elements<T, W>(p.x, start + chunk * W, kept[0]);
        body(chunk, kept[0]);
      }
    }
  };
  if constexpr (C > 0) {
    for_each_chunk([&](int64_t chunk, float* x) { load_elements<T, W>(p.x, start + chunk * W, x); });
  }
  const double count = static_cast<double>(p.k);
  double mean = 0.0;
  if (!p.rms) {
    double sum = 0.0;
    for_each_chunk([&](int64_t, float* x) {
#pragma unroll
      for (int i = 0; i < W; ++i) sum += static_cast<double>(x[i]);
    });
    mean = block_sum(sum, shared[0]) / count;
  }
  double squares = 0.0;
  for_each_chunk([&](int64_t, float* x) {
#pragma unroll
    for (int i = 0; i < W; ++i) {
      const double d = static_cast<double>(x[i]) - mean;
      squares = fma(d, d, squares);
    }
  });
  const double variance = block_sum(squares, shared[1]) / count;
  const float rstd = static_cast<float>(1.0 / sqrt(variance + p.eps));
  const RowPlace place = place_of(p.rows, row);
  const QuantizeRow to = table_row(p.table, place.t);
  const auto write = [&](int64_t chunk, float* x) {
    const bool inside = chunk < chunks;
    if (inside) modulate<W>(p, static_cast<float>(mean), rstd, place.image, chunk * W, x);
    if constexpr (Rotated) rotate<W>(x, p.rotation, chunk * W, exchange);
    if (inside) quantize_and_store<W>(p.out + row * p.k + chunk * W, x, to);
  };
  if constexpr (!Rotated) {
    for_each_chunk(write);
  } else if constexpr (C > 0) {
#pragma unroll
    for (int c = 0; c < C; ++c) write(threadIdx.x + static_cast<int64_t>(c) * blockDim.x, kept[c]);
  } else {  // threads past the end take part in the exchange
    for (int64_t first = 0; first < chunks; first += blockDim.x) {
      const int64_t chunk = first + threadIdx.x;
      if (chunk < chunks) load_elements<T, W>(p.x, start + chunk * W, kept[0]);
      write(chunk, kept[0]);
    }
  }
}

bool aligned(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % 16 == 0; }

template <DType T, bool Rotated>
cudaError_t start(const NormQuantizeProblem& p, const Launch& launch) {
  constexpr int W = kWidth<T>;
  if (p.m > 0x7fffffff) return cudaErrorInvalidConfiguration;
  const dim3 grid(static_cast<unsigned>(p.m));
  bool wide = vector_rows(p.x) && vector_rows(p.scale) && vector_rows(p.shift) && p.k % W == 0 && aligned(p.out);
  for (const FloatMatrix& each : {p.weight, p.bias, p.constant, p.post_scale, p.post_shift}) {
    wide = wide && aligned(each.data);
  }
  const int64_t chunks = wide ? p.k / W : p.k;
  const auto run = [&](auto* kernel, int threads) { return launch_early(kernel, grid, threads, 0, launch, p); };
  if (!wide) return run(norm_quantize_kernel<T, 1, 0, Rotated>, 256);
  if (chunks <= 128) return run(norm_quantize_kernel<T, W, 1, Rotated>, 128);
  if (chunks <= 256) return run(norm_quantize_kernel<T, W, 2, Rotated>, 128);
  if (chunks <= 512) return run(norm_quantize_kernel<T, W, 4, Rotated>, 128);
  if (chunks <= 1024) return run(norm_quantize_kernel<T, W, 4, Rotated>, 256);
  return run(norm_quantize_kernel<T, W, 0, Rotated>, 256);
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
