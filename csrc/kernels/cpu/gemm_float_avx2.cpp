// Float activations, AVX2: codes become floats, then fused multiply-adds.
//
// Every sum runs over k in order whatever the number of rows, so a row's result does not depend on its company. With
// few rows the codes are converted on the way; with more, once for all of them into scratch.
#include "kernels/cpu/avx2_kernels.h"
#include "kernels/cpu/lanes_avx2.h"
#include "kernels/cpu/lanes_scalar.h"
#include "kernels/cpu/scratch.h"
#include "kernels/cpu/unpack_avx2.h"
#include "kernels/parallel.h"

namespace ptq4arvg::cpu {
namespace {

constexpr int kRows = 4;
constexpr int64_t kGrain = 128 * 1024;  // multiplications that are worth a thread

// Weights of k = 4 group + J, columns 8 half ... 8 half + 7, from codes [groups][16 columns][4]: each 32-bit lane
// holds four codes of a column, k ascending from its low byte.
struct CodeWeights {
  const int8_t* codes;

  template <int J>
  __m256 load(int64_t group, int half) const {
    const __m256i quads =
        _mm256_loadu_si256(reinterpret_cast<const __m256i*>(codes + group * kGroupCodes + half * 32));
    return _mm256_cvtepi32_ps(_mm256_srai_epi32(_mm256_slli_epi32(quads, 24 - 8 * J), 24));
  }
};

// The same from floats [k][16 columns].
struct FloatWeights {
  const float* values;

  template <int J>
  __m256 load(int64_t group, int half) const {
    return _mm256_loadu_ps(values + (group * kGroup + J) * kPanel + half * 8);
  }
};

template <int J>
static inline void convert_step(const CodeWeights& from, int64_t group, float* out) {
  float* to = out + (group * kGroup + J) * kPanel;
  _mm256_storeu_ps(to, from.load<J>(group, 0));
  _mm256_storeu_ps(to + 8, from.load<J>(group, 1));
}

void codes_to_floats(const int8_t* codes, int64_t groups, float* out) {
  const CodeWeights from{codes};
  for (int64_t g = 0; g < groups; ++g) {
    convert_step<0>(from, g, out);
    convert_step<1>(from, g, out);
    convert_step<2>(from, g, out);
    convert_step<3>(from, g, out);
  }
}

template <int Rows, int J, class Weights>
static inline void multiply_step(const Weights& w, int64_t group, const float* x, int64_t stride,
                                 __m256 (&sums)[Rows][2]) {
  const __m256 w0 = w.template load<J>(group, 0), w1 = w.template load<J>(group, 1);
  for (int r = 0; r < Rows; ++r) {
    const __m256 value = _mm256_set1_ps(x[r * stride + group * kGroup + J]);
    sums[r][0] = _mm256_fmadd_ps(value, w0, sums[r][0]);
    sums[r][1] = _mm256_fmadd_ps(value, w1, sums[r][1]);
  }
}

template <class L>
PTQ4ARVG_FN void finish(const L& lanes, const GemmFloatProblem& p, int64_t m, int64_t n, const float* sum) {
  using F = typename L::F;
  F y = mul(lanes.load(p.w_scale + n), lanes.load(sum));
  if (p.bias) y = add(y, lanes.load(p.bias + n));
  lanes.store_any(p.out, p.out_dtype, m * p.n + n, activate(p.activation, y));
}

// Rows m ... m + Rows - 1 of x (float32, rows `stride` apart) by the columns [first, end) of one panel.
template <int Rows, class Weights>
void tile(const GemmFloatProblem& p, const float* x, int64_t stride, const Weights& w, int64_t m, int64_t first,
          int64_t end) {
  __m256 sums[Rows][2];
  for (int r = 0; r < Rows; ++r) sums[r][0] = sums[r][1] = _mm256_setzero_ps();
  const int64_t whole = p.k / kGroup, rest = p.k % kGroup;
  for (int64_t g = 0; g < whole; ++g) {
    multiply_step<Rows, 0>(w, g, x, stride, sums);
    multiply_step<Rows, 1>(w, g, x, stride, sums);
    multiply_step<Rows, 2>(w, g, x, stride, sums);
    multiply_step<Rows, 3>(w, g, x, stride, sums);
  }
  if (rest > 0) multiply_step<Rows, 0>(w, whole, x, stride, sums);
  if (rest > 1) multiply_step<Rows, 1>(w, whole, x, stride, sums);
  if (rest > 2) multiply_step<Rows, 2>(w, whole, x, stride, sums);
  for (int r = 0; r < Rows; ++r) {
    alignas(32) float row[kPanel];
    _mm256_store_ps(row, sums[r][0]);
    _mm256_store_ps(row + 8, sums[r][1]);
    for_lanes<Avx2Lanes, ScalarLanes>(end - first,
                                      [&](auto lanes, int64_t i) { finish(lanes, p, m + r, first + i, row + i); });
  }
}

template <class Weights>
void rows_by_panel(const GemmFloatProblem& p, float* scratch, const Weights& w, int64_t first, int64_t end) {
  for (int64_t m = 0; m < p.m; m += kRows) {
    const int64_t rows = p.m - m < kRows ? p.m - m : kRows;
    const float* x = static_cast<const float*>(p.x.data) + m * p.x.row_stride;
    int64_t stride = p.x.row_stride;
    if (p.x.dtype != DType::f32) {
      for (int64_t r = 0; r < rows; ++r) {
        for (int64_t k = 0; k < p.k; ++k) {
          scratch[r * p.k + k] = ScalarLanes{}.load_any(p.x, (m + r) * p.x.row_stride + k);
        }
      }
      x = scratch;
      stride = p.k;
    }
    if (rows == 4) tile<4>(p, x, stride, w, m, first, end);
    if (rows == 3) tile<3>(p, x, stride, w, m, first, end);
    if (rows == 2) tile<2>(p, x, stride, w, m, first, end);
    if (rows == 1) tile<1>(p, x, stride, w, m, first, end);
  }
}

}  // namespace

void gemm_float_avx2(const GemmFloatProblem& p) {
  if (p.m == 0) return;
  const Layout layout = layout_of(p.n, p.k, p.bits);
  parallel_for(layout.panels, kGrain / (p.m * kPanel * p.k), [&](int64_t begin, int64_t end) {
    const int64_t codes = layout.groups * kGroupCodes;
    float* w = static_cast<float*>(thread_scratch(codes * (sizeof(float) + 1) + kRows * p.k * sizeof(float)));
    float* x = w + codes;
    int8_t* unpacked = reinterpret_cast<int8_t*>(x + kRows * p.k);
    for (int64_t i = begin; i < end; ++i) {
      int8_t zeros[kPanel];
      panel_zeros(p.w_zero, p.bits, p.n, i, zeros);
      const int8_t* panel = panel_codes(p.w + i * layout.panel_bytes, layout, p.bits, zeros, unpacked);
      const int64_t first = i * kPanel, last = first + kPanel < p.n ? first + kPanel : p.n;
      if (p.m <= 2 * kRows) {
        rows_by_panel(p, x, CodeWeights{panel}, first, last);
      } else {
        codes_to_floats(panel, layout.groups, w);
        rows_by_panel(p, x, FloatWeights{w}, first, last);
      }
    }
  });
}

}  // namespace ptq4arvg::cpu
