// The interpreter tells what a kernel may not do: each kernel here has one fault, but for a few that have none.
#include <cuda.h>
#include <cuda_runtime.h>

#include <cstring>
#include <string>

#include "../ptx/tensor_map.h"
#include "device.h"
#include "kernels/cuda/ptx.cuh"

using namespace ptq4arvg;

namespace {

__global__ void read_past_end(const int* in, int* out) { out[threadIdx.x] = in[threadIdx.x + 1]; }
__global__ void write_past_end(const int*, int* out) { out[threadIdx.x + 1] = 1; }
__global__ void read_off_alignment(const int* in, int* out) {
  const int4 x = *reinterpret_cast<const int4*>(in + 1);
  out[threadIdx.x] = x.x + x.y + x.z + x.w;
}
__global__ void write_past_shared(const int*, int* out) {
  __shared__ int shared[32];
  volatile int* const far = shared;
  far[threadIdx.x + 1000] = 1;
  out[threadIdx.x] = far[threadIdx.x];
}
__global__ void write_next_to_shared(const int*, int* out) {
  __shared__ int shared[128];
  volatile int* const next = shared;
  next[threadIdx.x + 1] = 1;
  out[threadIdx.x] = next[threadIdx.x];
}
__global__ void nothing(const int*, int*) {}
__global__ void wait_alone(const int*, int* out) {
  if (threadIdx.x < 32) asm volatile("bar.sync 1, 64;" ::: "memory");
  out[threadIdx.x] = 0;
}
__global__ void shuffle_apart(const int* in, int* out) {
  int x = in[threadIdx.x];
  if (threadIdx.x < 16) x = __shfl_sync(0xffffffffu, x, 0);
  out[threadIdx.x] = x;
}
__global__ void spin(const int* in, int* out) {
  while (*const_cast<const volatile int*>(in) != 12345) {
  }
  out[threadIdx.x] = 0;
}
__global__ void __launch_bounds__(32) few_threads(const int*, int* out) { out[0] = 0; }
__global__ void __launch_bounds__(128) wait_too_late(const int* in, int* out) {
  const int x = in[threadIdx.x];
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
  out[threadIdx.x] = x;
}

// Reverses 128 numbers by way of shared memory, with or without the barrier or the wait that it takes.
template <bool barrier>
__global__ void reverse(const int* in, int* out) {
  __shared__ int shared[128];
  shared[threadIdx.x] = in[threadIdx.x];
  if (barrier) __syncthreads();
  out[threadIdx.x] = shared[127 - threadIdx.x];
}
template <bool wait>
__global__ void copy(const int* in, int* out) {
  __shared__ int4 shared[128];
  const auto to = static_cast<unsigned>(__cvta_generic_to_shared(shared + threadIdx.x));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(in + 4 * (threadIdx.x / 4)) : "memory");
  asm volatile("cp.async.commit_group;" ::: "memory");
  if (wait) asm volatile("cp.async.wait_group 0;" ::: "memory");
  out[threadIdx.x] = reinterpret_cast<volatile int*>(shared + threadIdx.x)[threadIdx.x % 4];
}

// A warp's product of 16 x 32 and 32 x 8 bytes: the lane's words of the first are 32 apart.
__host__ __device__ int right_word(int lane, int j) { return (7 * lane + 50 * j) % 128; }
template <bool Unsigned>
__global__ void multiply_bytes(const int* in, int* out) {
  const int lane = threadIdx.x;
  uint32_t a[4], b[2];
  int32_t sums[4] = {};
  for (int j = 0; j < 4; ++j) a[j] = in[lane + 32 * j];
  for (int j = 0; j < 2; ++j) b[j] = in[right_word(lane, j)];
  if (Unsigned) cuda::multiply_levels(sums, a, b);
  else cuda::multiply(sums, a, b);
  for (int j = 0; j < 4; ++j) out[lane + 32 * j] = sums[j];
}

using Kernel = void (*)(const int*, int*);

struct Buffers {
  DeviceArray<int> in{128}, out{128};
  Buffers() {
    for (int i = 0; i < 128; ++i) in[i] = i;
  }
};

void must_say(const char* what, Kernel kernel, const char* words, int threads = 128, int shared = 0,
              bool early = false) {
  const Buffers b;
  const int* in = b.in.data;
  int* out = b.out.data;
  void* arguments[] = {&in, &out};
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = 1, config.blockDim = threads, config.dynamicSmemBytes = shared;
  config.attrs = &attribute, config.numAttrs = early;
  ptx::trouble.clear();
  const cudaError_t error = cudaLaunchKernelExC(&config, reinterpret_cast<const void*>(kernel), arguments);
  if (error == cudaSuccess || cudaGetLastError() != error || ptx::trouble.find(words) == std::string::npos)
    fail(what, error);
}

// How many of some orders of warps and copies give the wrong result.
int wrong(Kernel kernel, bool reversed) {
  int count = 0;
  for (int i = 0; i < 30; ++i) {
    const Buffers b;
    kernel<<<1, 128>>>(b.in.data, b.out.data);
    if (const cudaError_t error = cudaGetLastError()) fail("a launch", error);
    bool same = true;
    for (int n = 0; n < 128; ++n) same = same && b.out[n] == (reversed ? 127 - n : n);
    count += !same;
  }
  return count;
}

// Signs, and which lane has which element.
void check_products() {
  const Buffers buffers;
  for (int i = 0; i < 128; ++i) buffers.in[i] = uniform(INT32_MIN, INT32_MAX);
  const auto byte_of = [&](int word, int k) { return static_cast<int8_t>(buffers.in[word] >> 8 * (k % 4)); };
  for (const bool is_unsigned : {false, true}) {
    const Kernel kernel = is_unsigned ? multiply_bytes<true> : multiply_bytes<false>;
    kernel<<<1, 32>>>(buffers.in.data, buffers.out.data);
    if (const cudaError_t error = cudaGetLastError()) fail("a product", error);
    for (int i = 0; i < 128; ++i) {
      const int lane = i % 32, row = lane / 4 + i / 64 * 8, column = lane % 4 * 2 + i / 32 % 2;
      int sum = 0;
      for (int k = 0; k < 32; ++k) {
        const int a = byte_of(row % 8 * 4 + k % 16 / 4 + 32 * (row / 8 + k / 16 * 2), k);
        sum += (is_unsigned ? a & 255 : a) * byte_of(right_word(column * 4 + k % 16 / 4, k / 16), k);
      }
      if (buffers.out[i] != sum) fail("a product of bytes", is_unsigned, i);
    }
  }
}

void check_tensor_maps() {
  alignas(64) CUtensorMap map;
  const DeviceArray<uint8_t> data(4096);
  const auto made = [&](void* base, uint64_t stride, uint32_t row, CUtensorMapSwizzle swizzle) {
    const cuuint64_t sizes[] = {128, 32}, strides[] = {stride};
    const cuuint32_t box[] = {row, 8}, ones[] = {1, 1};
    return ptx::encode_tiled(&map, CU_TENSOR_MAP_DATA_TYPE_UINT8, 2, base, sizes, strides, box, ones,
                             CU_TENSOR_MAP_INTERLEAVE_NONE, swizzle, CU_TENSOR_MAP_L2_PROMOTION_NONE,
                             CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) == CUDA_SUCCESS;
  };
  const auto swizzle = CU_TENSOR_MAP_SWIZZLE_128B;
  if (!made(data.data, 128, 128, swizzle)) fail("a tensor map that is right", 0);
  if (made(data.data + 8, 128, 128, swizzle)) fail("a tensor map off its alignment", 0);
  if (made(data.data, 120, 128, swizzle)) fail("a tensor map with a stride of 120", 0);
  if (made(data.data, 128, 256, swizzle)) fail("a tensor map with rows longer than its swizzle", 0);
}

}  // namespace

int main() {
  must_say("read_past_end", read_past_end, "4 bytes at 512 of an allocation of 512");
  must_say("write_past_end", write_past_end, "4 bytes at 512 of an allocation of 512");
  must_say("read_off_alignment", read_off_alignment, "off its alignment");
  must_say("write_past_shared", write_past_shared, "shared memory: 4 bytes at");
  must_say("wait_alone", wait_alone, "wait for one another");
  must_say("shuffle_apart", shuffle_apart, "it waits for lanes that have ended");
  must_say("few_threads", few_threads, "more threads than the kernel was compiled for");
  must_say("too much shared memory", read_past_end, "more shared memory than the kernel may have", 128, 64 << 10);
  must_say("a block of no warps", read_past_end, "sizes of the grid", 33);
  must_say("wait_too_late", wait_too_late, "before earlier grids have ended", 128, 0, true);
  must_say("no wait", nothing, "without a wait for earlier grids", 32, 0, true);
  must_say("write_next_to_shared", write_next_to_shared, "shared memory: 4 bytes at 512");
  ptx::most_steps = 100'000;
  must_say("spin", spin, "no end");
  ptx::most_steps = 10'000'000;
  must_say("no barrier", reverse<false>, "a race for byte");
  if (wrong(reverse<true>, true) != 0) fail("a barrier", 0);
  if (wrong(copy<true>, false) != 0 || wrong(copy<false>, false) == 0) fail("a copy's wait", 0);
  check_products();
  check_tensor_maps();
  std::printf("faults: all told\nok\n");
  return 0;
}
