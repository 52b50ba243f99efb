// What works on packed weights: the decode kernel and its second one, unpacking, and products of floats.
#include "kernels/cuda/decode.h"

#include <vector>

#include "kernels/cuda/gemm_float.h"
#include "kernels/cuda/unpack.h"
#include "product.h"

using namespace ptq4arvg;

namespace {

void check_unpack(const Weight& w) {
  for (const int64_t ldc : {w.k, cuda::round_up(w.k, 16)}) {
    const DeviceArray<int8_t> codes(w.n * ldc);
    if (cuda::unpack_weight(w.problem(), w.cuda.data, codes.data, ldc, {}) != cudaSuccess)
      fail("unpack start", w.n, w.k);
    for (int64_t i = 0; i < w.n * ldc; ++i) {
      const int8_t wanted = i % ldc < w.k ? w.codes[i / ldc * w.k + i % ldc] : 0;
      if (codes[i] != wanted) fail("unpack", i / ldc, w.n, w.k, w.bits);
    }
  }
}

// The decode kernel draws each line of the weights into the cache (these are too small for its limit), and nothing
// else; none twice, but for those at the ends of a block's ranges, of which there are two at 6 bits.
void check_drawn(const Weight& w, const cuda::DecodePlan& plan) {
  constexpr int64_t kLine = 128;
  const int64_t bytes = cuda::layout_of(w.n, w.k, w.bits).sums;
  std::vector<bool> lines((bytes + kLine - 1) / kLine);
  for (const void* each : ptx::drawn) {
    const int64_t at = static_cast<const uint8_t*>(each) - w.cuda.data;
    if (at < 0 || at >= bytes) fail("drawn outside of the weights", at, w.n, w.k, w.bits);
    lines[at / kLine] = true;
  }
  for (const bool line : lines) {
    if (!line) fail("a line is not drawn", w.n, w.k, w.bits);
  }
  const size_t ranges = plan.blocks * plan.splits * (w.bits == 6 ? 2 : 1);
  if (ptx::drawn.size() > lines.size() + ranges) fail("drawn twice", ptx::drawn.size(), w.n, w.k, w.bits);
}

void check_decode(const Product& p) {
  for (const int multiprocessors : {1, 132}) {
    for (const int splits : {1, 3}) {
      setenv("PTQ4ARVG_CUDA_PDL", multiprocessors > 1 ? "1" : "0", 1);
      cuda::DecodePlan plan = cuda::plan_decode(p.m, p.n, p.k, multiprocessors);
      plan.splits = splits;
      const DeviceArray<int32_t> partial(splits == 1 ? 0 : splits * p.m * p.n);
      ptx::drawn.clear();
      if (cuda::decode_gemm(p.problem, plan, partial.data, {ptx_device()}) != cudaSuccess)
        fail("decode start", p.m, p.n, p.k);
      if (multiprocessors > 1) check_drawn(p.weight, plan);
      p.compare(splits == 1 ? "decode" : "decode in parts");
    }
  }
}

int count = 0;

void check(int64_t m, int64_t n, int64_t k, int bits) {
  const Product p(m, n, k, bits, Options(uniform(0, 2)));
  ++count;
  check_unpack(p.weight);
  if (m <= cuda::kDecodeRows) check_decode(p);
  const int64_t ldc = cuda::round_up(k, 16);
  const DeviceArray<int8_t> codes(n * ldc);
  check_float(p, [&](const GemmFloatProblem& f) {
    const cudaError_t error = cuda::unpack_weight(p.weight.problem(), f.w, codes.data, ldc, {});
    return error ? error : cuda::gemm_float(f, codes.data, ldc, {});
  });
}

}  // namespace

int main() {
  for (const int bits : {8, 6, 4}) {
    for (const int64_t m : {1, 7, 8, 9, 16, 17, 32, 33}) {
      check(m, uniform(1, 90), uniform(1, 700), bits);
      check(m, 8 * uniform(1, 11), uniform(1, 700), bits);
    }
    check(3, 16, 64, bits);
    check(16, 33, 1100, bits);
  }
  std::printf("decode: %d products agree, %.3f bank conflicts\nok\n", count, bank_conflicts());
  return 0;
}
