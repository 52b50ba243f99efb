// Our CUDA kernels run lane by lane on the CPU (emulator/), against the scalar CPU kernels: every byte of every output.
//
// What this cannot show: that the hardware does what the PTX manual says, races, and speed.
#include <cuda_runtime_api.h>

#include <cstdio>
#include <cstdlib>
#include <memory>
#include <random>
#include <vector>

#include "kernels/cpu/isa.h"
#include "kernels/cpu/rotate.h"
#include "kernels/cuda/decode.h"
#include "kernels/cuda/gemm_cuda.h"
#include "kernels/cuda/gemm_float.h"
#include "kernels/cuda/layout.h"
#include "kernels/cuda/pack.h"
#include "kernels/cuda/rotate.cuh"
#include "kernels/cuda/rowwise.h"
#include "kernels/cuda/tiled.h"
#include "kernels/cuda/unpack.h"

using namespace ptq4arvg;

namespace {

std::mt19937 generator(1);
constexpr int kPositions = 11;

int uniform(int low, int high) { return std::uniform_int_distribution<int>(low, high)(generator); }

template <class T, class F>
std::vector<T> made(size_t count, F make) {
  std::vector<T> out(count);
  for (T& each : out) each = static_cast<T>(make());
  return out;
}
std::vector<float> floats(size_t count, float low, float high) {
  return made<float>(count, [=] { return std::uniform_real_distribution<float>(low, high)(generator); });
}

// Memory of torch's alignment.
struct Aligned {
  explicit Aligned(size_t bytes) : data(static_cast<uint8_t*>(std::aligned_alloc(256, (bytes + 511) / 256 * 256))) {
    memset(data, 0xcd, bytes);
  }
  ~Aligned() { std::free(data); }
  Aligned(const Aligned&) = delete;
  uint8_t* data;
};

[[noreturn]] void fail(const char* what, int64_t m, int64_t n, int64_t k, int bits) {
  std::printf("FAILED: %s m=%d n=%d k=%d bits=%d\n", what, int(m), int(n), int(k), bits);
  std::exit(1);
}

struct Weight {
  int64_t n, k;
  int bits;
  std::vector<int8_t> codes;
  std::vector<int32_t> zero;
  Aligned cpu, cuda;

  Weight(int64_t n, int64_t k, int bits)
      : n(n), k(k), bits(bits), codes(n * k), zero(made<int32_t>(n, [=] { return uniform(0, levels(bits) - 1); })),
        cpu(cpu::packed_bytes(n, k, bits)), cuda(cuda::packed_bytes(n, k, bits)) {
    for (int64_t i = 0; i < n * k; ++i) {
      const int z = zero[i / k];
      codes[i] = static_cast<int8_t>(bits == 8 ? uniform(-127, 127) : uniform(-z, levels(bits) - 1 - z));
    }
    cpu::pack_weight(problem(), codes.data(), cpu.data);
    cuda::pack_weight(problem(), codes.data(), cuda.data);
  }
  PackProblem problem() const { return {n, k, bits, bits == 8 ? nullptr : zero.data()}; }
};

void check_unpack(const Weight& w) {
  for (const int64_t ldc : {w.k, cuda::round_up(w.k, 16)}) {
    Aligned out(w.n * ldc);
    int8_t* codes = reinterpret_cast<int8_t*>(out.data);
    cuda::unpack_weight(w.problem(), w.cuda.data, codes, ldc, {});
    for (int64_t i = 0; i < w.n * ldc; ++i) {
      const int8_t wanted = i % ldc < w.k ? w.codes[i / ldc * w.k + i % ldc] : 0;
      if (codes[i] != wanted) fail("unpack", i / ldc, w.n, w.k, w.bits);
    }
  }
}

// The decode kernel draws each line of the weights into the cache (these are too small for its limit), and nothing else.
void check_drawn(const Weight& w) {
  constexpr int64_t kLine = 128;
  const int64_t bytes = cuda::layout_of(w.n, w.k, w.bits).sums;
  std::vector<bool> lines((bytes + kLine - 1) / kLine);
  for (const void* each : emulator::drawn) {
    const int64_t at = static_cast<const uint8_t*>(each) - w.cuda.data;
    if (at < 0 || at >= bytes) fail("drawn outside of the weights", at, w.n, w.k, w.bits);
    lines[at / kLine] = true;
  }
  for (const bool drawn : lines) {
    if (!drawn) fail("a line is not drawn", 0, w.n, w.k, w.bits);
  }
}

// One product by the scalar kernel and by every CUDA kernel of ours.
void check_gemm(int64_t m, int64_t n, int64_t k, int bits, int count) {
  const Weight w(n, k, bits);
  check_unpack(w);
  const bool aligned = count % 3 != 0;
  const int64_t stride = aligned ? cuda::round_up(k, 16) : k + uniform(1, 3), tokens = uniform(1, 5);
  const int64_t images = (m + tokens - 1) / tokens;
  Aligned a(m * stride);
  for (int64_t i = 0; i < m * stride; ++i) a.data[i] = static_cast<uint8_t>(uniform(0, 255));
  const auto a_scale = floats(kPositions, 0.01f, 0.1f), w_scale = floats(n, 1e-3f, 1e-2f), bias = floats(n, -1, 1);
  const auto gate = floats(images * n, -1, 1), residual = floats(m * n, -1, 1), inv = floats(kPositions, 1, 40);
  const auto a_zero = made<int32_t>(kPositions, [] { return uniform(-128, 127); });
  const auto out_zero = made<int32_t>(kPositions, [=] { return uniform(0, levels(bits) - 1); });
  const int32_t position = uniform(0, kPositions - static_cast<int>(tokens));
  GemmProblem p;
  p.m = m, p.n = n, p.k = k, p.bits = bits;
  p.a = reinterpret_cast<const int8_t*>(a.data) + (aligned ? 0 : m * stride > (m - 1) * stride + k ? 1 : 0);
  p.a_stride = stride;
  p.w = w.cpu.data, p.w_zero = w.problem().zero;
  p.rows = {tokens, count % 2 ? &position : nullptr};
  Epilogue& e = p.epilogue;
  e.a_scale = a_scale.data(), e.w_scale = w_scale.data();
  if (count % 4) e.a_zero = a_zero.data();
  if (count % 5) e.bias = bias.data();
  e.activation = Activation(count % 4);
  if (count % 3) e.gate = {gate.data(), DType::f32, n};
  if (count % 5 != 2) e.residual = {residual.data(), DType::f32, n};
  e.requantize = count % 4 == 3, e.out_dtype = DType(count % 3);
  e.out_table = {inv.data(), out_zero.data(), bits};
  const int blocks[] = {0, 2, 4, 8, 16};
  for (const int block : blocks) {
    if (e.requantize && rotation_fits(block, n, kMaxEpilogueRotation) && uniform(0, 2)) e.rotation = block;
  }
  const size_t bytes = m * n * (e.requantize ? 1 : e.out_dtype == DType::f32 ? 4 : 2);
  std::vector<uint8_t> expected(bytes), actual(bytes);
  e.out = expected.data();
  cpu::scalar_table().gemm(p);

  e.out = actual.data();
  p.w = w.cuda.data;
  const auto compare = [&](const char* what) {
    if (memcmp(expected.data(), actual.data(), bytes)) fail(what, m, n, k, bits);
    std::fill(actual.begin(), actual.end(), 0xee);
  };
  if (m <= cuda::kDecodeRows) {
    for (const int sms : {1, 132}) {
      for (const int splits : {1, 3}) {
        cuda::DecodePlan plan = cuda::plan_decode(m, n, k, sms);
        plan.splits = splits;
        std::vector<int32_t> partial(splits * m * n, 0x7a7a7a7a);
        if (cuda::decode_gemm(p, plan, partial.data(), {}) != cudaSuccess) fail("decode start", m, n, k, bits);
        if (splits == 1) check_drawn(w);
        compare(splits == 1 ? "decode" : "decode in parts");
      }
    }
  }
  const int64_t ldc = cuda::round_up(k, 16);
  Aligned codes(n * ldc);
  cuda::unpack_weight(w.problem(), w.cuda.data, reinterpret_cast<int8_t*>(codes.data), ldc, {});
  const auto* sums = reinterpret_cast<const int32_t*>(w.cuda.data + cuda::layout_of(n, k, bits).sums);
  const cuda::CodesGemm g{p, reinterpret_cast<const int8_t*>(codes.data), ldc, sums, nullptr, 0, 80, 108, nullptr};
  if (cuda::tiled_config().launch(g) != cudaSuccess) fail("tiled start", m, n, k, bits);
  compare("tiled");

  GemmFloatProblem f;
  const auto x = floats(m * k, -2, 2);
  f.m = m, f.n = n, f.k = k, f.bits = bits, f.x = {x.data(), DType::f32, k};
  f.w = w.cpu.data, f.w_zero = p.w_zero, f.w_scale = w_scale.data(), f.bias = bias.data();
  std::vector<float> exact(m * n), close(m * n);
  f.out = exact.data();
  cpu::scalar_table().gemm_float(f);
  f.out = close.data();
  cuda::gemm_float(f, reinterpret_cast<const int8_t*>(codes.data), ldc, {});
  for (int64_t i = 0; i < m * n; ++i) {
    if (!(std::fabs(exact[i] - close[i]) < 1e-3f)) fail("gemm_float", m, n, k, bits);
  }
}

void check_rows(int64_t m, int64_t k, int bits, DType dtype, int count) {
  const int64_t stride = cuda::round_up(k, 8) + (count % 3 ? 0 : 1);
  Aligned x(m * stride * 4);
  for (int64_t i = 0; i < m * stride * (dtype == DType::f32 ? 1 : 2) / 2; ++i) {
    reinterpret_cast<uint32_t*>(x.data)[i] = uniform(0x3d00, 0x4100) * 0x10001u | (uniform(0, 1) ? 0x80008000u : 0u);
  }
  if (dtype == DType::f32) {
    for (int64_t i = 0; i < m * stride; ++i) reinterpret_cast<float*>(x.data)[i] = 0.01f * uniform(-300, 300);
  }
  const auto inv = floats(kPositions, 1, 40), vector = floats(k, -1, 1), rows = floats((m + 1) * k, -1, 1);
  const auto zero = made<int32_t>(kPositions, [=] { return uniform(0, levels(bits) - 1); });
  Aligned expected(m * k), actual(m * k);
  QuantizeProblem q;
  q.m = m, q.k = k, q.x = {x.data, dtype, stride}, q.rows = {1 + m % kPositions, nullptr};
  q.table = {inv.data(), zero.data(), bits};
  const int blocks[] = {0, 2, 4, 8, 16, 32, 64, 128};
  for (const int block : blocks) {
    if (rotation_fits(block, k, kMaxRotation) && uniform(0, 2)) q.rotation = block;
  }
  q.out = reinterpret_cast<int8_t*>(expected.data);
  cpu::scalar_table().quantize(q);
  q.out = reinterpret_cast<int8_t*>(actual.data);
  cuda::quantize(q, {});
  if (memcmp(expected.data, actual.data, m * k)) fail("quantize", m, 0, k, bits);

  NormQuantizeProblem p;
  p.m = m, p.k = k, p.x = q.x, p.rows = q.rows, p.table = q.table;
  if (count % 2) p.weight = p.bias = vector.data();
  if (count % 5) p.constant = vector.data();
  if (count % 3) p.scale = p.shift = {rows.data(), DType::f32, k};
  if (count % 4) p.post_scale = p.post_shift = vector.data();
  p.rms = count % 2;
  p.rotation = q.rotation;
  p.out = reinterpret_cast<int8_t*>(expected.data);
  cpu::scalar_table().norm_quantize(p);
  p.out = reinterpret_cast<int8_t*>(actual.data);
  memset(actual.data, 0x33, m * k);
  cuda::norm_quantize(p, {});
  if (memcmp(expected.data, actual.data, m * k)) fail("norm_quantize", m, 0, k, bits);
}

// Rows of 16 columns as a product's layout spreads them over a warp: lane l's value i is that of place(l, i).
struct MatrixPlace {
  int row, column;
};
using PlaceOf = MatrixPlace (*)(int lane, int i);

struct Spread {
  float* rows;
  int block;
  PlaceOf place;
};

template <class Stages, int N>
__global__ void rotate_kernel(const Spread s) {
  float v[N];
  const auto at = [&](int i) -> float& {
    const MatrixPlace place = s.place(threadIdx.x, i);
    return s.rows[place.row * kMaxEpilogueRotation + place.column];
  };
  for (int i = 0; i < N; ++i) v[i] = at(i);
  Stages::template rotate<N>(v, s.block, [&](int i) { return s.place(threadIdx.x, i).column; });
  for (int i = 0; i < N; ++i) at(i) = v[i];
}

template <class Stages, int N>
void check_spread(const char* what, PlaceOf place) {
  constexpr int kColumns = kMaxEpilogueRotation, kRows = 32 * N / kColumns;
  for (int block = 2; block <= kColumns; block *= 2) {
    auto expected = floats(kRows * kColumns, -2, 2), actual = expected;
    for (int row = 0; row < kRows; ++row) {
      float* v = expected.data() + row * kColumns;
      const std::vector<float> given(v, v + kColumns);
      cpu::rotate_row<cpu::ScalarLanes, cpu::ScalarLanes>(
          kColumns, block, [&](auto, int64_t k) { return given[k]; }, [&](auto, int64_t k, float y) { v[k] = y; });
    }
    cuda::launch_kernel(rotate_kernel<Stages, N>, 1, 32, 0, nullptr, Spread{actual.data(), block, place});
    if (memcmp(expected.data(), actual.data(), expected.size() * sizeof(float))) fail(what, kRows, kColumns, block, 0);
  }
}

void check_spreads() {
  check_spread<cuda::LaneAfterLane, 1>("decode", [](int lane, int) -> MatrixPlace { return {lane / 16, lane % 16}; });
  check_spread<cuda::FoursOfColumns, 4>(
      "fours", [](int lane, int i) -> MatrixPlace { return {lane / 4, lane % 4 * 4 + i}; });
  // mma's sums: of one row the pairs eight columns apart; of two tokens the channels eight apart.
  check_spread<cuda::PairsOfColumns<2>, 4>("pairs", [](int lane, int i) -> MatrixPlace {
    return {lane / 4, lane % 4 * 2 + i % 2 + i / 2 * 8};
  });
  check_spread<cuda::EveryFourthLane<2>, 4>("transposed", [](int lane, int i) -> MatrixPlace {
    return {lane % 4 * 2 + i % 2, lane / 4 + i / 2 * 8};
  });
}

}  // namespace

int main() {
  check_spreads();
  int count = 0;
  for (int bits : {8, 6, 4}) {
    for (int64_t m : {1, 7, 8, 9, 16, 17, 32, 33, 70}) {
      check_gemm(m, uniform(1, 90), uniform(1, 700), bits, ++count);
      check_gemm(m, 8 * uniform(1, 11), uniform(1, 700), bits, ++count);
    }
    check_gemm(3, 16, 64, bits, ++count);
    check_gemm(16, 33, 1100, bits, ++count);
    check_gemm(65, 64, 128, bits, ++count);
    for (DType dtype : {DType::f32, DType::f16, DType::bf16}) {
      for (int64_t k : {1, 7, 64, 384, 520, 1032, 1152, 4096, 9000, 9088}) check_rows(uniform(1, 9), k, bits, dtype, ++count);
    }
  }
  std::printf("%d cases agree\nok\n", count);
  return 0;
}
