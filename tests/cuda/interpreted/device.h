// What all these programs share: random numbers, memory of the interpreter's device, and how they fail.
#pragma once

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <utility>

#include "../ptx/runtime.h"
#include "kernels/cuda/launch.h"
#include "kernels/format.h"

namespace ptq4arvg {

inline std::mt19937 generator(1);

inline int uniform(int low, int high) { return std::uniform_int_distribution<int>(low, high)(generator); }
inline float uniform_float(float low, float high) {
  return std::uniform_real_distribution<float>(low, high)(generator);
}

// The interpreter's device as launches are told of it.
inline cuda::Device ptx_device() { return {0, ptx::device.sm, ptx::device.sm_count, ptx::device.shared_bytes}; }

// Memory that kernels may touch, and not a byte more.
template <class T>
struct DeviceArray {
  size_t count;
  T* data;

  explicit DeviceArray(size_t count) : count(count), data(static_cast<T*>(ptx::allocate(count * sizeof(T)))) {}
  template <class Make>
  DeviceArray(size_t count, Make make) : DeviceArray(count) {
    for (size_t i = 0; i < count; ++i) data[i] = static_cast<T>(make());
  }
  DeviceArray(DeviceArray&& other) noexcept : count(other.count), data(std::exchange(other.data, nullptr)) {}
  ~DeviceArray() {
    if (data) ptx::release(data);
  }

  T& operator[](size_t i) const { return data[i]; }
  size_t bytes() const { return count * sizeof(T); }
  void fill(int byte) const { std::memset(data, byte, bytes()); }
};

inline DeviceArray<float> floats(size_t count, float low, float high) {
  return DeviceArray<float>(count, [=] { return uniform_float(low, high); });
}

// Numbers of any type.
struct Floats {
  DType type = DType(uniform(0, 2));
  DeviceArray<uint8_t> data;

  explicit Floats(int64_t count, int reach = 100) : data(count * (type == DType::f32 ? 4 : 2)) {
    for (int64_t i = 0; i < count; ++i) store_float(data.data, type, i, 0.01f * uniform(-reach, reach));
  }
  FloatMatrix all(int64_t row_stride) const { return {data.data, type, row_stride}; }
};

template <class... Rest>
[[noreturn]] void fail(const char* what, Rest... sizes) {
  std::printf("FAILED: %s,", what);
  (std::printf(" %lld", static_cast<long long>(sizes)), ...);
  std::printf("\n%s\n", ptx::trouble.c_str());
  std::exit(1);
}

// Conflicts between banks of shared memory: turns beyond the least, for each of those.
inline double bank_conflicts() {
  const ptx::BankTurns& turns = ptx::bank_turns;
  return turns.least ? static_cast<double>(turns.taken) / static_cast<double>(turns.least) - 1 : 0;
}

}  // namespace ptq4arvg
