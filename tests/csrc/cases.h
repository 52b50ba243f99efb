// What the checks of the kernels share: random numbers, blocks of exactly the size that is needed, weights, threads.
#pragma once

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <thread>

#include "kernels/cpu/isa.h"
#include "kernels/pack.h"
#include "kernels/parallel.h"

using namespace ptq4arvg;

namespace {

std::mt19937 generator(1);

int uniform(int low, int high) { return std::uniform_int_distribution<int>(low, high)(generator); }
float real(float low, float high) { return std::uniform_real_distribution<float>(low, high)(generator); }

// A heap block of exactly `count` elements.
template <class T>
struct Exact {
  explicit Exact(size_t count) : data(new T[count]), count(count) {}
  template <class F>
  Exact(size_t count, F make) : Exact(count) {
    for (size_t i = 0; i < count; ++i) data[i] = static_cast<T>(make());
  }
  T* get() const { return data.get(); }
  std::unique_ptr<T[]> data;
  size_t count;
};

Exact<float> floats(size_t count, float low, float high) {
  return Exact<float>(count, [=] { return real(low, high); });
}

struct Threads {
  static void run(int64_t begin, int64_t end, int64_t grain, RangeFunction function, void* context) {
    const int64_t middle = begin + (end - begin) / 2;
    if (middle - begin < grain) return function(begin, end, context);
    std::thread other(function, begin, middle, context);
    function(middle, end, context);
    other.join();
  }
  static int count() { return 2; }
};

[[noreturn]] void fail(const char* isa, const char* what, int64_t m, int64_t n, int64_t k, int bits) {
  std::printf("FAILED: %s %s m=%d n=%d k=%d bits=%d\n", isa, what, int(m), int(n), int(k), bits);
  std::exit(1);
}

struct Weights {
  PackProblem problem;
  Exact<int8_t> codes;
  Exact<int32_t> zero;
  Exact<uint8_t> packed;
};

// Codes at random, or each the largest or smallest that there is.
Weights make_weights(int64_t n, int64_t k, int bits, bool extreme) {
  const int top = levels(bits) - 1;
  Weights w{{},
            Exact<int8_t>(n * k),
            Exact<int32_t>(n, [=] { return extreme ? top * uniform(0, 1) : uniform(0, top); }),
            Exact<uint8_t>(cpu::packed_bytes(n, k, bits))};
  for (int64_t i = 0; i < n * k; ++i) {
    const int zero = bits == 8 ? 0 : w.zero.get()[i / k];
    const int low = bits == 8 ? -127 : -zero, high = bits == 8 ? 127 : top - zero;
    w.codes.get()[i] = static_cast<int8_t>(extreme ? (uniform(0, 1) ? low : high) : uniform(low, high));
  }
  w.problem = {n, k, bits, bits == 8 ? nullptr : w.zero.get()};
  cpu::pack_weight(w.problem, w.codes.get(), w.packed.get());
  Exact<int8_t> back(n * k);
  cpu::unpack_weight(w.problem, w.packed.get(), back.get());
  if (std::memcmp(back.get(), w.codes.get(), n * k)) fail("pack", "round trip", 0, n, k, bits);
  return w;
}

}  // namespace
