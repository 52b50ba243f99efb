// Maps of codes and convolutions: an instruction set against the scalar table, as the checks of test_kernels.cpp.
#pragma once

#include "cases.h"

namespace {

int draw_divisor(int64_t number) {
  int divisor;
  do divisor = uniform(1, static_cast<int>(number));
  while (number % divisor);
  return divisor;
}

// Floats of any of the types, of magnitudes from 2^-5 to 8, in a block that ends with the last one.
struct Noise {
  Noise(size_t count, DType dtype)
      : dtype(dtype),
        halves(dtype == DType::f32 ? 2 * count : count, [] { return uniform(0x3d00, 0x4100) | uniform(0, 1) << 15; }) {}
  FloatMatrix matrix(int64_t stride = 0) const { return {halves.get(), dtype, stride}; }

  DType dtype;
  Exact<uint16_t> halves;
};

DType draw_dtype() { return DType(uniform(0, 2)); }

void check_map(const cpu::KernelTable& table, int64_t images, int64_t height, int64_t width, int64_t channels,
               int bits) {
  const int64_t rows = images * height * width, stride = channels + uniform(0, 1) * uniform(0, 5);
  const Noise x(rows ? (rows - 1) * stride + channels : 0, draw_dtype());
  const Noise weight(channels, draw_dtype()), bias(channels, draw_dtype());
  const auto inv = floats(1, 1, 40);
  const Exact<int32_t> zero(1, [=] { return uniform(0, levels(bits) - 1); });
  QuantizeMapProblem p;
  p.images = images, p.height = height, p.width = width, p.channels = channels;
  p.x = x.matrix(stride);
  p.groups = uniform(0, 3) ? draw_divisor(channels) : 0;
  if (p.groups && uniform(0, 2)) p.weight = weight.matrix();
  if (p.groups && uniform(0, 2)) p.bias = bias.matrix();
  p.eps = uniform(0, 1) ? 1e-6 : 0.0;
  p.activation = Activation(uniform(0, 3));
  p.table = {inv.get(), zero.get(), bits};
  p.scale = uniform(1, 3), p.border = uniform(0, 2);
  const size_t bytes = images * p.out_height() * p.out_width() * channels;
  const Exact<int8_t> expected(bytes, [] { return 85; }), actual(bytes, [] { return -86; });
  p.out = expected.get();
  cpu::scalar_table().quantize_map(p);
  p.out = actual.get();
  table.quantize_map(p);
  if (bytes && std::memcmp(expected.get(), actual.get(), bytes)) {
    fail(table.isa, "quantize_map", images, height * width, channels, bits);
  }
}

// The scalar table, too, is checked: against the same product of patches that lie one after the other.
void check_convolution(const cpu::KernelTable& table, int64_t images, int64_t height, int64_t width, int64_t channels,
                       int64_t n, int bits, bool extreme) {
  const int64_t kernel = uniform(2, 5), m = images * height * width, k = kernel * kernel * channels;
  const int64_t line = (width + kernel - 1) * channels, map = (height + kernel - 1) * line;
  const Weights w = make_weights(n, k, bits, extreme);
  const Exact<int8_t> a(images * map, [=] { return extreme ? (uniform(0, 1) ? 127 : -128) : uniform(-128, 127); });
  const Exact<int8_t> patches(m * k);
  int8_t* to = patches.get();
  for (int64_t image = 0; image < images; ++image) {
    for (int64_t y = 0; y < height; ++y) {
      for (int64_t x = 0; x < width; ++x) {
        for (int64_t i = 0; i < kernel; ++i, to += kernel * channels) {
          std::memcpy(to, a.get() + image * map + (y + i) * line + x * channels, kernel * channels);
        }
      }
    }
  }
  const auto a_scale = floats(1, 0.01f, 0.1f), w_scale = floats(n, 1e-3f, 1e-2f), bias = floats(n, -1, 1);
  const Exact<int32_t> a_zero(1, [] { return uniform(-128, 127); });
  const Exact<int32_t> w_sum(n, [] { return uniform(-1000, 1000); });
  const Noise residual(m * n, draw_dtype());
  GemmProblem p;
  p.m = m, p.n = n, p.k = k, p.bits = bits;
  p.a = patches.get(), p.a_stride = k;
  p.w = w.packed.get(), p.w_zero = w.problem.zero;
  p.rows = {1, nullptr};
  Epilogue& e = p.epilogue;
  e.a_scale = a_scale.get(), e.w_scale = w_scale.get();
  if (uniform(0, 2)) e.a_zero = a_zero.get();
  if (uniform(0, 1)) e.w_sum = w_sum.get();
  if (uniform(0, 2)) e.bias = bias.get();
  if (uniform(0, 1)) e.residual = residual.matrix(n);
  e.activation = Activation(uniform(0, 3)), e.out_dtype = draw_dtype();
  const size_t bytes = m * n * (e.out_dtype == DType::f32 ? 4 : 2);
  const Exact<uint8_t> product(bytes), expected(bytes), actual(bytes);
  e.out = product.get();
  cpu::scalar_table().gemm(p);
  p.a = a.get(), p.a_stride = channels;
  p.patches = {height, width, channels, kernel};
  e.out = expected.get();
  cpu::scalar_table().gemm(p);
  e.out = actual.get();
  table.gemm(p);
  if (bytes && std::memcmp(product.get(), expected.get(), bytes)) fail("scalar", "convolution", m, n, k, bits);
  if (bytes && std::memcmp(expected.get(), actual.get(), bytes)) fail(table.isa, "convolution", m, n, k, bits);
}

}  // namespace
