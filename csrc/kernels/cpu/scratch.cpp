#include "kernels/cpu/scratch.h"

#include <cstdlib>
#include <new>

namespace ptq4arvg::cpu {
namespace {

struct Scratch {
  void* memory = nullptr;
  size_t size = 0;
  ~Scratch() { std::free(memory); }
};

thread_local Scratch scratch;

}  // namespace

void* thread_scratch(size_t bytes) {
  if (bytes > scratch.size) {
    std::free(scratch.memory);
    scratch = {};
    const size_t rounded = (bytes + 4095) / 4096 * 4096;
    scratch.memory = std::aligned_alloc(64, rounded);
    if (!scratch.memory) throw std::bad_alloc();
    scratch.size = rounded;
  }
  return scratch.memory;
}

}  // namespace ptq4arvg::cpu
