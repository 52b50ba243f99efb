// Unpacking to row-major codes: a warp a block of 16 columns by 64 k, written 64 bytes of a row at a time.
#include "kernels/cuda/fragments.h"
#include "kernels/cuda/unpack.h"

namespace ptq4arvg::cuda {
namespace {

constexpr int kWarps = 8;

struct Unpack {
  Layout layout;
  int64_t n, k, ldc;
  const int32_t* zero;
  const uint8_t* packed;
  int8_t* codes;
  bool wide;  // rows can be stored 16 bytes at a time
};

// Word s of lane t to word t of lane s, within each four lanes.
__device__ inline void transpose(uint32_t* w, int lane) {
#pragma unroll
  for (int step = 1; step <= 2; step *= 2) {
    const bool upper = lane & step;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (i & step) continue;
      uint32_t& low = w[i];
      uint32_t& high = w[i + step];
      const uint32_t got = __shfl_xor_sync(0xffffffffu, upper ? low : high, step);
      (upper ? low : high) = got;
    }
  }
}

template <int Bits>
__global__ void __launch_bounds__(32 * kWarps) unpack_kernel(const __grid_constant__ Unpack u) {
  const int64_t block = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.y;
  const int lane = threadIdx.x;
  if (block >= u.layout.tiles * u.layout.depth_blocks) return;
  const int64_t first = block / u.layout.depth_blocks * kBlockColumns;
  const int64_t start = block % u.layout.depth_blocks * kBlockDepth;
  const uint4 nibbles = *reinterpret_cast<const uint4*>(u.packed + nibble_offset(block, lane));
  uint2 crumbs = make_uint2(0, 0);
  if (Bits == 6) crumbs = *reinterpret_cast<const uint2*>(u.packed + u.layout.crumbs + crumb_offset(block, lane));
  const LaneZeros zeros = lane_zeros(u.zero, Bits, u.n, first, lane);
  uint32_t parts[2][4];
  const uint32_t words[4] = {nibbles.x, nibbles.y, nibbles.z, nibbles.w};
  fragment<Bits>(words, crumbs.x, 0, zeros, parts[0]);
  fragment<Bits>(words, crumbs.y, 1, zeros, parts[1]);
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    // The lane's words of one row: k 4 (lane % 4) + 16 s, s = 0 to 3; after the exchange 16 (lane % 4) + 4 s.
    uint32_t w[4] = {parts[0][half], parts[0][half + 2], parts[1][half], parts[1][half + 2]};
    transpose(w, lane);
    const int64_t row = first + lane / 4 + 8 * half, k = start + lane % 4 * 16;
    if (row >= u.n || k >= u.ldc) continue;
    int8_t* out = u.codes + row * u.ldc + k;
    if (u.wide) {
      *reinterpret_cast<uint4*>(out) = make_uint4(w[0], w[1], w[2], w[3]);  // past k: the zero point, so code 0
    } else {
#pragma unroll
      for (int i = 0; i < 16; ++i) {
        if (k + i < u.ldc) out[i] = static_cast<int8_t>(w[i / 4] >> (8 * (i % 4)));
      }
    }
  }
}

__global__ void copy_rows_kernel(const __grid_constant__ Unpack u) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= u.n * u.ldc) return;
  const int64_t row = i / u.ldc, k = i % u.ldc;
  u.codes[i] = k < u.k ? static_cast<int8_t>(u.packed[row * u.layout.row_bytes + k]) : 0;
}

}  // namespace

cudaError_t unpack_weight(const PackProblem& p, const uint8_t* packed, int8_t* codes, int64_t ldc,
                          const Launch& launch) {
  const bool wide = ldc % 16 == 0 && reinterpret_cast<uintptr_t>(codes) % 16 == 0;
  const Unpack u{layout_of(p.n, p.k, p.bits), p.n, p.k, ldc, p.zero, packed, codes, wide};
  const int64_t blocks = p.bits == 8 ? (p.n * ldc + 255) / 256
                                     : (u.layout.tiles * u.layout.depth_blocks + kWarps - 1) / kWarps;
  if (blocks > 0x7fffffff) return cudaErrorInvalidConfiguration;
  const unsigned grid = static_cast<unsigned>(blocks);
  const dim3 block(32, kWarps);
  if (p.bits == 8) return launch_kernel(copy_rows_kernel, grid, 256, 0, launch.stream, u);
  return launch_kernel(p.bits == 6 ? unpack_kernel<6> : unpack_kernel<4>, grid, block, 0, launch.stream, u);
}

}  // namespace ptq4arvg::cuda
