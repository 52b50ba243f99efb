// CUDA's runtime library as the interpreter has it: kernels that nvcc compiled to PTX run on the CPU when launched.
//
// Link objects of `nvcc --no-compress -gencode arch=compute_90a,code=compute_90a` with it instead of libcudart. A
// launch runs the grid to its end before it returns.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace ptx {

struct Device {
  int sm = 90;        // compute capability
  int sm_count = 4;   // few, so that persistent blocks have several tiles; even, for clusters of two
  int shared_bytes = 227 << 10;
};
extern Device device;

// What the last failed call did wrong, in words; empty after none.
extern std::string trouble;

// Global memory. Kernels may touch nothing else, and not a byte past its end.
void* allocate(size_t bytes);
void release(void* memory);
bool is_allocated(const void* address);

// The addresses that kernels have drawn into the second-level cache since this was last emptied.
extern std::vector<const void*> drawn;
void note_drawn(const void* address);

// Instructions of warps that a launch may take; then it has failed.
extern uint64_t most_steps;

// Turns that the banks of shared memory took for all accesses of warps, and how many it would have been without
// conflicts. Without wgmma's and the memory engine's.
struct BankTurns {
  uint64_t taken = 0, least = 0;
};
extern BankTurns bank_turns;

// Turns of a scheduler that all instructions of warps have taken, about (traffic.h).
extern uint64_t slots_taken;

// Kernels that have run since the start.
extern uint64_t launches;

}  // namespace ptx
