// The row-wise kernels: quantize and norm_quantize, all types, widths of access, rotations and vectors.
#include "kernels/cuda/rowwise.h"

#include "device.h"
#include "kernels/cpu/isa.h"
#include "kernels/cuda/layout.h"

using namespace ptq4arvg;

namespace {

constexpr int kPositions = 11;

void check(int64_t m, int64_t k, int bits, DType dtype) {
  const int64_t stride = cuda::round_up(k, 8) + (uniform(0, 2) ? 0 : 1);
  const DeviceArray<uint8_t> x(m * stride * (dtype == DType::f32 ? 4 : 2));
  // Now and then far from zero, and with a channel of its own size.
  const float centre = uniform(0, 2) ? 0.0f : 40.0f, outlier = uniform(0, 2) ? 1.0f : 100.0f;
  for (int64_t i = 0; i < m * stride; ++i) {
    store_float(x.data, dtype, i, centre + 0.01f * uniform(-300, 300) * (i % stride ? 1.0f : outlier));
  }
  const DeviceArray<float> inv = floats(kPositions, 1, 40);
  const Floats vector(k), rows((m + 1) * k);
  const DeviceArray<int32_t> zero(kPositions, [=] { return uniform(0, levels(bits) - 1); });
  const int64_t tokens = 1 + m % kPositions;
  const DeviceArray<int32_t> position(1, [=] { return uniform(0, kPositions - static_cast<int>(tokens)); });
  const DeviceArray<int8_t> expected(m * k), actual(m * k);
  QuantizeProblem q;
  q.m = m, q.k = k, q.x = {x.data, dtype, stride}, q.rows = {tokens, uniform(0, 1) ? position.data : nullptr};
  q.table = {inv.data, zero.data, bits};
  const int blocks[] = {0, 2, 4, 8, 16, 32, 64, 128};
  for (const int block : blocks) {
    if (rotation_fits(block, k, kMaxRotation) && uniform(0, 2)) q.rotation = block;
  }
  const auto compare = [&](const char* what) {
    if (memcmp(expected.data, actual.data, m * k)) fail(what, m, k, bits, int(dtype), q.rotation);
    actual.fill(0x33);
  };
  actual.fill(0x33);
  q.out = expected.data;
  cpu::scalar_table().quantize(q);
  q.out = actual.data;
  if (cuda::quantize(q, {ptx_device()}) != cudaSuccess) fail("quantize start", m, k);
  compare("quantize");

  // Rows of as many gates and values again, which may be off alignment where the others are not.
  const int64_t wide = cuda::round_up(2 * k, 8) + (uniform(0, 2) ? 0 : 1);
  const Floats both(m * wide, 300);
  QuantizeProblem g = q;
  g.x = both.all(wide), g.gated = true, g.activation = Activation(uniform(0, 3));
  g.out = expected.data;
  cpu::scalar_table().quantize(g);
  g.out = actual.data;
  if (cuda::quantize(g, {ptx_device()}) != cudaSuccess) fail("gate_quantize start", m, k);
  compare("gate_quantize");

  NormQuantizeProblem p;
  p.m = m, p.k = k, p.x = q.x, p.rows = q.rows, p.table = q.table;
  if (uniform(0, 1)) p.weight = p.bias = vector.all(k);
  if (uniform(0, 1)) p.constant = vector.all(k);
  if (uniform(0, 1)) p.scale = p.shift = rows.all(k);
  if (uniform(0, 1)) p.post_scale = p.post_shift = vector.all(k);
  p.rms = uniform(0, 1);
  p.rotation = q.rotation;
  p.out = expected.data;
  cpu::scalar_table().norm_quantize(p);
  p.out = actual.data;
  if (cuda::norm_quantize(p, {ptx_device()}) != cudaSuccess) fail("norm_quantize start", m, k);
  compare("norm_quantize");
}

}  // namespace

int main() {
  int count = 0;
  // 90 sums in float64, 86 in pairs of floats.
  for (const int sm : {90, 90, 86, 86}) {
    ptx::device.sm = sm;
    for (const int bits : {8, 6, 4}) {
      for (const DType dtype : {DType::f32, DType::f16, DType::bf16}) {
        for (const int64_t k : {1, 7, 64, 384, 520, 1032, 1152, 4096, 9000, 9088}) {
          const int64_t many = k <= 2048 && uniform(0, 1) ? 16 * ptx::device.sm_count : 0;
          check(many + uniform(1, 9), k, bits, dtype), ++count;
        }
      }
    }
  }
  std::printf("rows: %d cases agree, %.3f bank conflicts\nok\n", count, bank_conflicts());
  return 0;
}
