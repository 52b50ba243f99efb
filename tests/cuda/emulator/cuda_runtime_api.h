// In the place of CUDA's header: just enough of CUDA C++ to run our kernels on a CPU, a fiber for each thread of a block,
// blocks one after another. It checks indices and arithmetic, not the hardware and not memory ordering.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <utility>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __shared__ static
#define __grid_constant__
#define __launch_bounds__(...)
#define __align__(n) alignas(n)

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
struct uint2 {
  uint32_t x, y;
};
struct alignas(16) uint4 {
  uint32_t x, y, z, w;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
inline uint2 make_uint2(uint32_t x, uint32_t y) { return {x, y}; }
inline uint4 make_uint4(uint32_t x, uint32_t y, uint32_t z, uint32_t w) { return {x, y, z, w}; }
template <class T>
T __ldg(const T* p) {
  return *p;
}

namespace emulator {

extern dim3 thread, block, grid_block, grid;  // the running fiber's
using Body = void (*)(void* context);
void run_grid(dim3 grid, dim3 block, int shared_bytes, Body body, void* context);

// All threads that are still running, of the warp or of the block.
void wait_for_warp();
void wait_for_block();
unsigned char* shared_memory();
// 32 bytes of a lane of the warp, for the others to read between two waits.
unsigned char* slot(int lane);
int lane();

template <class T>
T exchange(T value, int from) {
  static_assert(sizeof(T) <= 32);
  memcpy(slot(lane()), &value, sizeof value);
  wait_for_warp();
  memcpy(&value, slot(from), sizeof value);
  wait_for_warp();
  return value;
}

// Programmatic dependent launch: every thread of a kernel that may start early must wait for earlier kernels, before it
// copies anything and before it lets later ones start.
extern bool early;
void wait_for_earlier();
void let_later_start();
// The places that were drawn into the cache since the last launch.
extern std::vector<const void*> drawn;

template <class Problem>
void launch(void (*kernel)(Problem), dim3 grid, dim3 block, int shared_bytes, const Problem& problem) {
  std::pair<void (*)(Problem), const Problem*> call{kernel, &problem};
  const Body body = [](void* context) {
    auto& [kernel, problem] = *static_cast<decltype(call)*>(context);
    kernel(*problem);
  };
  run_grid(grid, block, shared_bytes, body, &call);
}

}  // namespace emulator

#define threadIdx emulator::thread
#define blockIdx emulator::grid_block
#define blockDim emulator::block
#define gridDim emulator::grid

inline void __syncthreads() { emulator::wait_for_block(); }
inline void __syncwarp() { emulator::wait_for_warp(); }
template <class T>
T __shfl_xor_sync(uint32_t, T value, int mask) {
  return emulator::exchange(value, emulator::lane() ^ mask);
}

using cudaStream_t = void*;
enum cudaError_t { cudaSuccess, cudaErrorInvalidValue, cudaErrorInvalidConfiguration, cudaErrorInvalidDevice };
