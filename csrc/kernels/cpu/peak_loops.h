// The loops behind peak.h, one set for each instruction set.
#pragma once

#include <cstddef>
#include <cstdint>

namespace ptq4arvg::cpu {

struct PeakLoop {
  double operations;        // multiplications and additions of one round
  void (*begin)();          // before and after the rounds of a thread; may be null
  void (*end)();
  int (*run)(int64_t rounds);  // its result depends on everything, so that nothing can be left out
};

using ReadLoop = int (*)(const uint8_t* data, size_t bytes);

int read_baseline(const uint8_t* data, size_t bytes);
int read_avx2(const uint8_t* data, size_t bytes);
int read_avx512_vnni(const uint8_t* data, size_t bytes);
const PeakLoop& fma_avx2();
const PeakLoop& maddubs_avx2();
const PeakLoop& fma_avx512_vnni();
const PeakLoop& dot_avx512_vnni();
const PeakLoop& dot_avx_vnni();
const PeakLoop& tiles_amx_int8();

// Keeps a register's value alive and unknown to the compiler.
template <class V>
static inline __attribute__((always_inline)) void touch(V& value) {
#if defined(PTQ4ARVG_EMULATE)
  __asm__ volatile("" : "+m"(value));
#else
  __asm__ volatile("" : "+v"(value));
#endif
}

}  // namespace ptq4arvg::cpu
