// The tiled GEMMs' epilogue arithmetic on the host against the CPU kernels' scalar epilogue, bit for bit.
//
// Random sums, tables and operands, the largest and smallest that there are, absent operands, and all activations;
// floats before the final cast and stored codes. Then the device's reciprocal of every mantissa, of an estimate that is
// one unit in the last place off. Prints the number of values compared and "ok".
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <random>
#include <vector>

#include "kernels/cpu/epilogue.h"
#include "kernels/cuda/cutlass/epilogue_math.h"

using namespace ptq4arvg;

namespace {

constexpr int kWidth = 4, kColumns = 32, kTokens = 5, kTable = 9, kRows = 23, kPosition = 3;
std::mt19937 generator(7);

int uniform(int low, int high) { return std::uniform_int_distribution<int>(low, high)(generator); }

float real(float low, float high) { return std::uniform_real_distribution<float>(low, high)(generator); }

// Mostly ordinary values; now and then zeros of both signs, subnormals, huge ones and infinities.
float odd_real(float low, float high) {
  static const float odd[] = {0.0f, -0.0f, 1e-41f, -3e38f, 3e38f, 1e30f, -1e30f,
                              std::numeric_limits<float>::infinity()};
  return uniform(0, 9) ? real(low, high) : odd[uniform(0, 7)];
}

std::vector<float> floats(int count, float low, float high, bool odd) {
  std::vector<float> out(count);
  for (float& x : out) x = odd ? odd_real(low, high) : real(low, high);
  return out;
}

struct Case {
  bool odd, a_zero, bias, gate, residual;
  Activation activation;
  int out_bits;  // 0: floats
};

// NaN is NaN: which bits it has is up to the processor.
bool same(float a, float b) { return float_bits(a) == float_bits(b) || (a != a && b != b); }

long long compare(const Case& c) {
  std::vector<float> a_scale = floats(kTable, 1e-4f, 0.1f, false), w_scale = floats(kColumns, 1e-5f, 1e-2f, c.odd);
  std::vector<float> bias = floats(kColumns, -3, 3, c.odd), gate = floats(kColumns * kRows, -2, 2, c.odd);
  std::vector<float> residual = floats(kColumns * kRows, -4, 4, c.odd), inv_scale = floats(kTable, 0.5f, 40, false);
  std::vector<int32_t> a_zero(kTable), w_sum(kColumns), out_zero(kTable);
  for (int32_t& z : a_zero) z = c.odd ? -128 + 255 * uniform(0, 1) : uniform(-128, 127);
  for (int32_t& s : w_sum) s = c.odd ? 8323072 * (2 * uniform(0, 1) - 1) : uniform(-200000, 200000);
  for (int32_t& z : out_zero) z = uniform(0, levels(c.out_bits ? c.out_bits : 8) - 1);
  const int32_t position = kPosition;

  std::vector<float> y(kRows * kColumns);
  std::vector<int8_t> codes(kRows * kColumns);
  GemmProblem p;
  p.m = kRows, p.n = kColumns, p.k = 65536;
  p.rows = {kTokens, &position};
  Epilogue& e = p.epilogue;
  e.a_scale = a_scale.data(), e.w_scale = w_scale.data(), e.w_sum = w_sum.data();
  e.a_zero = c.a_zero ? a_zero.data() : nullptr;
  e.bias = c.bias ? bias.data() : nullptr;
  e.activation = c.activation;
  if (c.gate) e.gate = {gate.data(), DType::f32, kColumns};
  if (c.residual) e.residual = {residual.data(), DType::f32, kColumns};
  e.requantize = c.out_bits != 0;
  if (e.requantize) e.out_table = {inv_scale.data(), out_zero.data(), c.out_bits};
  e.out = e.requantize ? static_cast<void*>(codes.data()) : y.data();

  const cuda::TokenIndex tokens = cuda::token_index(p.rows);
  for (int m = 0; m < kRows; ++m) {
    int32_t sums[kColumns];
    for (int32_t& s : sums) s = c.odd ? 1065353216 * (2 * uniform(0, 1) - 1) : uniform(-(1 << 26), 1 << 26);
    for (int n = 0; n < kColumns; n += cpu::kPanel) {
      cpu::epilogue<cpu::ScalarLanes, cpu::ScalarLanes>(p, m, n, n + cpu::kPanel, sums + n, nullptr);
    }
    const cuda::OutputRow row = cuda::output_row(e, cuda::row_entries(e, tokens.table(m), e.requantize));
    for (int n = 0; n < kColumns; n += kWidth) {
      cuda::Lanes<kWidth> out;
      for (int i = 0; i < kWidth; ++i) {
        out.v[i] = cuda::begin_element(sums[n + i], row.a_zero, w_sum[n + i], w_scale[n + i], row.a_scale,
                                       c.bias ? bias[n + i] : cuda::kNoBias);
      }
      cuda::activate_all<kWidth>(c.activation, out.v);
      for (int i = 0; i < kWidth; ++i) {
        if (c.gate) out.v[i] = cuda::apply_gate(out.v[i], gate[tokens.image(m) * kColumns + n + i]);
        if (c.residual) out.v[i] = cuda::add_residual(out.v[i], residual[m * kColumns + n + i]);
      }
      uint32_t bits[kWidth];
      for (int i = 0; i < kWidth; ++i) bits[i] = e.requantize ? cuda::code_bits(out.v[i], row.requantize) : 0;
      const uint32_t packed = cuda::low_bytes(bits[0], bits[1], bits[2], bits[3]);
      for (int i = 0; i < kWidth; ++i) {
        const int at = m * kColumns + n + i;
        const int8_t code = static_cast<int8_t>(packed >> (8 * i));
        if (e.requantize ? codes[at] == code : same(y[at], out.v[i])) continue;
        std::printf("FAILED: row %d column %d activation %d odd %d bits %d: %a %a, %d %d\n", m, n + i,
                    static_cast<int>(c.activation), c.odd, c.out_bits, y[at], out.v[i], codes[at], code);
        std::exit(1);
      }
    }
  }
  return kRows * kColumns;
}

// Where the mantissa is all ones a wrong estimate would not be mended. The compiler's own division, which takes the same
// steps and is exact, needs the device to be right there, too.
long long compare_reciprocals() {
  constexpr uint32_t kAllOnes = 0x7fffff;
  const auto neighbour = [](float x, int off) { return bits_float(float_bits(x) + static_cast<uint32_t>(off)); };
  long long compared = 0;
  for (const int exponent : {0, 1, 63, 125}) {
    for (uint32_t mantissa = 0; mantissa <= kAllOnes; ++mantissa) {
      const float d = bits_float(static_cast<uint32_t>(127 + exponent) << 23 | mantissa), exact = reciprocal(d);
      const double unit = static_cast<double>(neighbour(exact, 1)) - exact, most = unit * (mantissa < kAllOnes);
      for (int off = -1; off <= 1; ++off) {
        const float estimate = neighbour(exact, off);
        if (off && std::abs(estimate - 1.0 / d) > most) continue;
        ++compared;
        const float mended = mended_reciprocal(d, estimate);
        if (mended == exact) continue;
        std::printf("FAILED: 1 / %a of an estimate that is %d off: %a, %a\n", d, off, exact, mended);
        std::exit(1);
      }
    }
  }
  return compared;
}

}  // namespace

int main() {
  long long compared = compare_reciprocals();
  for (int round = 0; round < 4; ++round) {
    for (int flags = 0; flags < 32; ++flags) {
      for (int activation = 0; activation < 4; ++activation) {
        for (const int bits : {0, 4, 6, 8}) {
          compared += compare({(flags & 1) != 0, (flags & 2) != 0, (flags & 4) != 0, (flags & 8) != 0,
                               (flags & 16) != 0, static_cast<Activation>(activation), bits});
        }
      }
    }
  }
  std::printf("%lld values\nok\n", compared);
}
