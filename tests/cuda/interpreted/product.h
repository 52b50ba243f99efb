// A random product: its operands and epilogue on the device, and what the scalar CPU kernel makes of them.
#pragma once

#include <cmath>

#include "device.h"
#include "kernels/cpu/isa.h"
#include "kernels/cuda/layout.h"
#include "kernels/cuda/pack.h"
#include "kernels/gemm.h"
#include "kernels/gemm_float.h"
#include "kernels/pack.h"

namespace ptq4arvg {

struct Weight {
  int64_t n, k;
  int bits;
  DeviceArray<int8_t> codes;
  DeviceArray<int32_t> zero;
  DeviceArray<uint8_t> cpu, cuda;

  Weight(int64_t n, int64_t k, int bits)
      : n(n), k(k), bits(bits), codes(n * k), zero(n, [=] { return uniform(0, levels(bits) - 1); }),
        cpu(cpu::packed_bytes(n, k, bits)), cuda(cuda::packed_bytes(n, k, bits)) {
    for (int64_t i = 0; i < n * k; ++i) {
      const int z = zero[i / k];
      codes[i] = static_cast<int8_t>(bits == 8 ? uniform(-127, 127) : uniform(-z, levels(bits) - 1 - z));
    }
    cpu::pack_weight(problem(), codes.data, cpu.data);
    cuda::pack_weight(problem(), codes.data, cuda.data);
  }
  PackProblem problem() const { return {n, k, bits, bits == 8 ? nullptr : zero.data}; }
};

// What a product has beside its size, at random. `aligned`: operands and epilogue as the CUTLASS kernels want them.
struct Options {
  bool aligned;
  bool position = uniform(0, 1), a_zero = uniform(0, 2), bias = uniform(0, 2), gate = uniform(0, 1);
  bool residual = uniform(0, 1), requantize = uniform(0, 2) == 0;
  Activation activation = Activation(uniform(0, 3));
  DType operand = DType(uniform(0, 2)), out_dtype = DType(uniform(0, 2));
  Patches patches;  // of `a`, if its rows are such

  explicit Options(bool aligned) : aligned(aligned) {}
  int64_t out_bytes() const { return requantize ? 1 : out_dtype == DType::f32 ? 4 : 2; }
};

struct Product {
  static constexpr int kPositions = 11;

  int64_t m, n, k, stride, tokens;
  Weight weight;
  DeviceArray<uint8_t> a;
  DeviceArray<float> a_scale, w_scale, bias, inv;
  DeviceArray<int32_t> a_zero, out_zero, position;
  int64_t operand_stride, residual_stride;  // 0: all rows add the same
  DeviceArray<uint8_t> gate, residual;
  GemmProblem problem;
  DeviceArray<uint8_t> expected, actual;

  static int64_t bytes_of(DType d) { return d == DType::f32 ? 4 : 2; }

  // Small numbers in any of the three types.
  static DeviceArray<uint8_t> operand_of(int64_t rows, int64_t stride, DType d) {
    DeviceArray<uint8_t> made(rows * stride * bytes_of(d));
    for (int64_t i = 0; i < rows * stride; ++i) store_float(made.data, d, i, 0.125f * uniform(-16, 16));
    return made;
  }

  int64_t codes_of(int64_t m, const Options& o) const {
    if (!o.patches.height) return m * stride;
    return m / (o.patches.height * o.patches.width) * o.patches.map();
  }

  Product(int64_t m, int64_t n, int64_t k, int bits, Options o)
      : m(m),
        n(n),
        k(k),
        stride(o.patches.height ? o.patches.channels : o.aligned ? cuda::round_up(k, 16) : k + uniform(1, 3)),
        tokens(uniform(1, 5)),
        weight(n, k, bits),
        a(codes_of(m, o) + !o.aligned, [] { return uniform(0, 255); }),
        a_scale(floats(kPositions, 0.01f, 0.1f)),
        w_scale(floats(n, 1e-3f, 1e-2f)),
        bias(floats(n, -1, 1)),
        inv(floats(kPositions, 1, 40)),
        a_zero(kPositions, [] { return uniform(-128, 127); }),
        out_zero(kPositions, [=] { return uniform(0, levels(bits) - 1); }),
        position(1, [&] { return uniform(0, kPositions - static_cast<int>(tokens)); }),
        operand_stride(o.aligned ? n : n + 1),
        residual_stride(uniform(0, 4) ? operand_stride : 0),
        gate(operand_of((m + tokens - 1) / tokens, operand_stride, o.operand)),
        residual(operand_of(m, operand_stride, o.operand)),
        expected(m * n * o.out_bytes()),
        actual(expected.count) {
    GemmProblem& p = problem;
    p.m = m, p.n = n, p.k = k, p.bits = bits;
    p.a = reinterpret_cast<const int8_t*>(a.data) + !o.aligned, p.a_stride = stride;
    p.patches = o.patches;
    p.w_zero = weight.problem().zero;
    p.rows = {tokens, o.position ? position.data : nullptr};
    Epilogue& e = p.epilogue;
    e.a_scale = a_scale.data, e.w_scale = w_scale.data;
    if (o.a_zero) e.a_zero = a_zero.data;
    if (o.bias) e.bias = bias.data;
    e.activation = o.activation;
    if (o.gate) e.gate = {gate.data, o.operand, operand_stride};
    if (o.residual) e.residual = {residual.data, o.operand, residual_stride};
    e.requantize = o.requantize, e.out_dtype = o.out_dtype;
    e.out_table = {inv.data, out_zero.data, bits};
    const int blocks[] = {0, 2, 4, 8, 16};
    for (const int block : blocks) {
      if (e.requantize && rotation_fits(block, n, kMaxEpilogueRotation) && uniform(0, 2)) e.rotation = block;
    }
    p.w = weight.cpu.data, e.out = expected.data;
    cpu::scalar_table().gemm(p);
    p.w = weight.cuda.data, e.out = actual.data;
    actual.fill(0xee);
  }
  Product(const Product&) = delete;

  void compare(const char* what) const {
    for (size_t i = 0; i < expected.count; ++i) {
      if (expected[i] != actual[i]) fail(what, m, n, k, weight.bits, i);
    }
    actual.fill(0xee);
  }
};

// Rows of 8-bit codes as the tiled kernels read them, padded with zeros, and their sums.
struct PlainCodes {
  int64_t ldc;
  DeviceArray<int8_t> codes;
  DeviceArray<int32_t> sums;

  explicit PlainCodes(const Weight& weight)
      : ldc(cuda::round_up(weight.k, 16)), codes(weight.n * ldc), sums(weight.n) {
    codes.fill(0);
    for (int64_t row = 0; row < weight.n; ++row) {
      memcpy(codes.data + row * ldc, weight.codes.data + row * weight.k, weight.k);
      sums[row] = 0;
      for (int64_t i = 0; i < weight.k; ++i) sums[row] += codes[row * ldc + i];
    }
  }
};

// A product of floats on the same weights, within rounding of the scalar kernel's; start(problem) is the device's.
template <class Start>
void check_float(const Product& p, Start start) {
  const int64_t m = p.m, n = p.n, k = p.k;
  const DeviceArray<float> x = floats(m * k, -2, 2), exact(m * n), close(m * n);
  GemmFloatProblem f;
  f.m = m, f.n = n, f.k = k, f.bits = p.weight.bits, f.x = {x.data, DType::f32, k};
  f.w_zero = p.problem.w_zero, f.w_scale = p.w_scale.data, f.bias = p.bias.data;
  f.w = p.weight.cpu.data, f.out = exact.data;
  cpu::scalar_table().gemm_float(f);
  f.w = p.weight.cuda.data, f.out = close.data;
  if (start(f) != cudaSuccess) fail("gemm_float start", m, n, k);
  for (int64_t i = 0; i < m * n; ++i) {
    if (!(std::fabs(exact[i] - close[i]) < 1e-3f)) fail("gemm_float", m, n, k, p.weight.bits);
  }
}

}  // namespace ptq4arvg
