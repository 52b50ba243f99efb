// Whole calls, as the operator makes them: the choice of a kernel, unpacking, scratch memory, and the launch.
#include "kernels/cuda/gemm.h"

#include <set>
#include <string>
#include <vector>

#include "kernels/last_kernel.h"
#include "product.h"

using namespace ptq4arvg;

namespace {

// What a call allocates lives until the next one.
struct Allocations {
  std::vector<DeviceArray<uint8_t>> all;
  static void* allocate(void* context, size_t bytes) {
    return static_cast<Allocations*>(context)->all.emplace_back(bytes).data;
  }
};

std::set<std::string> taken;

void check(int64_t m, int64_t n, int64_t k, int bits, const char* forced = "") {
  setenv("PTQ4ARVG_CUDA_KERNEL", forced, 1);
  const Product p(m, n, k, bits, Options(*forced || uniform(0, 2)));
  Allocations scratch;
  if (cuda::gemm(p.problem, {ptx_device()}, {Allocations::allocate, &scratch}) != cudaSuccess)
    fail("gemm", m, n, k, bits);
  taken.insert(last_kernel());
  p.compare(last_kernel());
}

void check_float_call(int64_t m, int64_t n, int64_t k, int bits) {
  check_float(Product(m, n, k, bits, Options(true)), [](const GemmFloatProblem& f) {
    Allocations scratch;
    return cuda::gemm_float(f, {ptx_device()}, {Allocations::allocate, &scratch});
  });
  taken.insert(last_kernel());
}

}  // namespace

int main() {
  for (const int sm : {80, 86, 89, 90}) {
    ptx::device.sm = sm, ptx::device.shared_bytes = (sm == 80 ? 163 : sm == 90 ? 227 : 99) << 10;
    for (const int bits : {8, 6, 4}) {
      for (const int64_t m : {1, 3, 8, 20, 32, 33, 64, 130, 300})
        check(m, 16 * uniform(1, 20), 16 * uniform(1, 40), bits);
      check(150, 33, 70, bits);
      check(40, 144, 160, bits, sm == 90 ? "sm90_128x128x128" : "sm80_128x128x64");
      check_float_call(uniform(1, 70), uniform(1, 90), uniform(1, 200), bits);
    }
  }
  for (const std::string& each : taken) std::printf("%s\n", each.c_str());
  std::printf("ok\n");
  return 0;
}
