// Float activations, AVX2: codes become floats in scratch, a block of k at a time, then fused multiply-adds.
// Every sum runs over k in order whatever the number of rows, so a row's result does not depend on its company.
#include "kernels/cpu/avx2_kernels.h"
#include "kernels/cpu/epilogue.h"
#include "kernels/cpu/lanes_avx2.h"
#include "kernels/cpu/scratch.h"
#include "kernels/cpu/unpack_avx2.h"
#include "kernels/parallel.h"

namespace ptq4arvg::cpu {
namespace {

using Lanes = Avx2Lanes;

constexpr int kRows = 4;
constexpr int64_t kGrain = 128 * 1024;  // multiplications that are worth a thread

// Codes [groups][16 columns][4] to floats [4 groups][16 columns].
void codes_to_floats(const int8_t* codes, int64_t groups, float* out) {
  for (int64_t g = 0; g < groups; ++g) {
    for (int half = 0; half < 2; ++half) {
      const __m256i quads =
          _mm256_loadu_si256(reinterpret_cast<const __m256i*>(codes + g * kGroupCodes + half * 32));
      float* to = out + g * kGroupCodes + half * 8;
      // Each 32-bit lane holds four codes of a column, k ascending from its low byte.
      const __m256i k0 = _mm256_srai_epi32(_mm256_slli_epi32(quads, 24), 24);
      const __m256i k1 = _mm256_srai_epi32(_mm256_slli_epi32(quads, 16), 24);
      const __m256i k2 = _mm256_srai_epi32(_mm256_slli_epi32(quads, 8), 24);
      const __m256i k3 = _mm256_srai_epi32(quads, 24);
      _mm256_storeu_ps(to, _mm256_cvtepi32_ps(k0));
      _mm256_storeu_ps(to + kPanel, _mm256_cvtepi32_ps(k1));
      _mm256_storeu_ps(to + 2 * kPanel, _mm256_cvtepi32_ps(k2));
      _mm256_storeu_ps(to + 3 * kPanel, _mm256_cvtepi32_ps(k3));
    }
  }
}

template <int Rows>
void tile(const GemmFloatProblem& p, const float* x, const float* w, int64_t m, int64_t first, int64_t end) {
  __m256 sums[Rows][2];
  for (int r = 0; r < Rows; ++r) sums[r][0] = sums[r][1] = _mm256_setzero_ps();
  for (int64_t k = 0; k < p.k; ++k) {
    const __m256 w0 = _mm256_loadu_ps(w + k * kPanel), w1 = _mm256_loadu_ps(w + k * kPanel + 8);
    for (int r = 0; r < Rows; ++r) {
      const __m256 value = _mm256_set1_ps(x[r * p.k + k]);
      sums[r][0] = _mm256_fmadd_ps(value, w0, sums[r][0]);
      sums[r][1] = _mm256_fmadd_ps(value, w1, sums[r][1]);
    }
  }
  for (int r = 0; r < Rows; ++r) {
    alignas(32) float row[kPanel];
    _mm256_store_ps(row, sums[r][0]);
    _mm256_store_ps(row + 8, sums[r][1]);
    for (int64_t n = first; n < end; ++n) {
      float y = mul(p.w_scale[n], row[n - first]);
      if (p.bias) y = add(y, p.bias[n]);
      ScalarLanes::store_any(p.out, p.out_dtype, (m + r) * p.n + n, activate(p.activation, y));
    }
  }
}

}  // namespace

void gemm_float_avx2(const GemmFloatProblem& p) {
  const Layout layout = layout_of(p.n, p.k, p.bits);
  parallel_for(layout.panels, kGrain / (p.m * kPanel * p.k + 1), [&](int64_t begin, int64_t end) {
    const int64_t codes = layout.groups * kGroupCodes;
    float* w = static_cast<float*>(thread_scratch(codes * (sizeof(float) + 1) + kRows * p.k * sizeof(float)));
    float* x = w + codes;
    int8_t* scratch = reinterpret_cast<int8_t*>(x + kRows * p.k);
    for (int64_t i = begin; i < end; ++i) {
      int8_t zeros[kPanel];
      panel_zeros(p.w_zero, p.bits, p.n, i, zeros);
      codes_to_floats(panel_codes(p.w + i * layout.panel_bytes, layout, p.bits, zeros, scratch), layout.groups, w);
      const int64_t first = i * kPanel, last = first + kPanel < p.n ? first + kPanel : p.n;
      for (int64_t m = 0; m < p.m; m += kRows) {
        const int64_t rows = p.m - m < kRows ? p.m - m : kRows;
        for (int64_t r = 0; r < rows; ++r) {
          for (int64_t k = 0; k < p.k; ++k) x[r * p.k + k] = ScalarLanes::load_any(p.x, (m + r) * p.x.row_stride + k);
        }
        if (rows == 4) tile<4>(p, x, w, m, first, last);
        if (rows == 3) tile<3>(p, x, w, m, first, last);
        if (rows == 2) tile<2>(p, x, w, m, first, last);
        if (rows == 1) tile<1>(p, x, w, m, first, last);
      }
    }
  });
}

}  // namespace ptq4arvg::cpu
