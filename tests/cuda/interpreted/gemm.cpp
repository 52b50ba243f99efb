// Whole calls, as the operator makes them: the choice of a kernel, unpacking, scratch memory, and the launch.
#include "kernels/cuda/gemm.h"

#include <cmath>
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

void check_float(int64_t m, int64_t n, int64_t k, int bits) {
  const Product p(m, n, k, bits, Options(true));
  const DeviceArray<float> x = floats(m * k, -2, 2), exact(m * n), close(m * n);
  GemmFloatProblem f;
  f.m = m, f.n = n, f.k = k, f.bits = bits, f.x = {x.data, DType::f32, k};
  f.w = p.weight.cpu.data, f.w_zero = p.problem.w_zero, f.w_scale = p.w_scale.data, f.bias = p.bias.data;
  f.out = exact.data;
  cpu::scalar_table().gemm_float(f);
  f.w = p.weight.cuda.data, f.out = close.data;
  Allocations scratch;
  if (cuda::gemm_float(f, {ptx_device()}, {Allocations::allocate, &scratch}) != cudaSuccess)
    fail("gemm_float", m, n, k);
  taken.insert(last_kernel());
  for (int64_t i = 0; i < m * n; ++i) {
    if (!(std::fabs(exact[i] - close[i]) < 1e-3f)) fail("gemm_float", m, n, k, bits);
  }
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
      check_float(uniform(1, 70), uniform(1, 90), uniform(1, 200), bits);
    }
  }
  for (const std::string& each : taken) std::printf("%s\n", each.c_str());
  std::printf("ok\n");
  return 0;
}
