// The instructions of the int8 kernels: asynchronous copies, matrix loads, products.
#pragma once

#include <cstdint>

namespace ptq4arvg::cuda {

__device__ inline uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

// 16 bytes to shared memory past the first-level cache: `bytes` (0 to 16) of them from `from`, the rest zeros.
__device__ inline void copy_async(uint32_t to, const void* from, int bytes) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(bytes) : "memory");
}
__device__ inline void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int Pending>
__device__ inline void wait_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(Pending) : "memory");
}

// Four 8 x 16-byte matrices: lane l gives the address of row l % 8 of matrix l / 8, register j comes from matrix j.
__device__ inline void load_matrices(uint32_t address, uint32_t* out) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
               : "r"(address)
               : "memory");
}

// sums (16 x 8) += a (16 x 32) b (32 x 8), int8 to int32.
__device__ inline void multiply(int32_t* sums, const uint32_t* a, const uint32_t* b) {
  asm volatile(
      "mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+r"(sums[0]), "+r"(sums[1]), "+r"(sums[2]), "+r"(sums[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// Byte offset of 16-byte chunk `chunk` of a row of Chunks of them: turned by the row, so that eight rows of one chunk
// lie in different banks.
template <int Chunks>
__device__ inline uint32_t swizzled(int row, int chunk) {
  static_assert(Chunks == 8 || Chunks == 4);
  const int turned = Chunks == 8 ? chunk ^ (row & 7) : chunk ^ ((row >> 1) & 3);
  return static_cast<uint32_t>((row * Chunks + turned) * 16);
}

// Up to 16 bytes of a row of activations to shared memory: zeros past `left`, byte by byte where rows are not aligned.
__device__ inline void copy_codes(uint32_t to, const int8_t* from, int64_t left, bool aligned) {
  const int bytes = left < 0 ? 0 : left < 16 ? static_cast<int>(left) : 16;
  if (aligned) return copy_async(to, from, bytes);
  uint32_t words[4] = {};
#pragma unroll
  for (int i = 0; i < 16; ++i) {
    if (i < bytes) words[i / 4] |= (static_cast<uint32_t>(from[i]) & 0xffu) << (8 * (i % 4));
  }
  asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(to), "r"(words[0]), "r"(words[1]), "r"(words[2]),
               "r"(words[3])
               : "memory");
}

}  // namespace ptq4arvg::cuda
