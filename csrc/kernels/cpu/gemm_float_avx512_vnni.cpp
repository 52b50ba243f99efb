// Float activations, AVX-512: codes become floats, then fused multiply-adds; bit for bit what gemm_float_avx2.cpp gives.
//
// Every sum runs over k in order whatever the number of rows, so a row's result does not depend on its company. With
// few rows the codes are converted on the way; with more, once for all of them into scratch.
#include "kernels/cpu/avx512_vnni_kernels.h"
#include "kernels/cpu/epilogue.h"
#include "kernels/cpu/lanes_avx512.h"
#include "kernels/cpu/scratch.h"
#include "kernels/cpu/unpack_avx512.h"
#include "kernels/gemm_float.h"
#include "kernels/parallel.h"

namespace ptq4arvg::cpu {
namespace {

constexpr int kRows = 8;
constexpr int kStrip = 2;               // panels of a tile: 16 accumulators
constexpr int64_t kGrain = 128 * 1024;  // multiplications that are worth a thread

// Weights of k = 4 group + J from codes [groups][16 columns][4]: each 32-bit lane holds four codes of a column, k
// ascending from its low byte.
struct CodeWeights {
  const int8_t* codes;

  template <int J>
  __m512 load(int64_t group) const {
    const __m512i quads = _mm512_loadu_si512(codes + group * kGroupCodes);
    return _mm512_cvtepi32_ps(_mm512_srai_epi32(_mm512_slli_epi32(quads, 24 - 8 * J), 24));
  }
};

// The same from floats [k][16 columns].
struct FloatWeights {
  const float* values;

  template <int J>
  __m512 load(int64_t group) const {
    return _mm512_loadu_ps(values + (group * kGroup + J) * kPanel);
  }
};

void codes_to_floats(const int8_t* codes, int64_t groups, float* out) {
  const CodeWeights from{codes};
  for (int64_t g = 0; g < groups; ++g, out += kGroup * kPanel) {
    _mm512_storeu_ps(out, from.load<0>(g));
    _mm512_storeu_ps(out + kPanel, from.load<1>(g));
    _mm512_storeu_ps(out + 2 * kPanel, from.load<2>(g));
    _mm512_storeu_ps(out + 3 * kPanel, from.load<3>(g));
  }
}

template <int Rows, int J, class Weights>
PTQ4ARVG_FN void multiply_step(const Weights (&w)[kStrip], int64_t group, const float* x, int64_t stride,
                               __m512 (&sums)[Rows][kStrip]) {
  __m512 columns[kStrip];
  for (int i = 0; i < kStrip; ++i) columns[i] = w[i].template load<J>(group);
  for (int r = 0; r < Rows; ++r) {
    const __m512 value = _mm512_set1_ps(x[r * stride + group * kGroup + J]);
    for (int i = 0; i < kStrip; ++i) sums[r][i] = _mm512_fmadd_ps(value, columns[i], sums[r][i]);
  }
}

// Rows m ... m + Rows - 1 by the columns from `first` on: sums to `out`, kStrip panels a row.
template <int Rows, class Weights>
void tile(int64_t k, const float* x, int64_t stride, const Weights (&w)[kStrip], float* out) {
  __m512 sums[Rows][kStrip];
  for (int r = 0; r < Rows; ++r) sums[r][0] = sums[r][1] = _mm512_setzero_ps();
  const int64_t whole = k / kGroup, rest = k % kGroup;
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
    for (int i = 0; i < kStrip; ++i) _mm512_storeu_ps(out + (r * kStrip + i) * kPanel, sums[r][i]);
  }
}

template <class Weights, int Rows = kRows>
void run_tile(int rows, int64_t k, const float* x, int64_t stride, const Weights (&w)[kStrip], float* out) {
  if constexpr (Rows > 1) {
    if (rows < Rows) return run_tile<Weights, Rows - 1>(rows, k, x, stride, w, out);
  }
  tile<Rows>(k, x, stride, w, out);
}

void finish_row(const GemmFloatProblem& p, int64_t m, int64_t first, int64_t end, const float* sums) {
  with_activation(p.activation, [&](auto kind) {
    for_lanes<Avx512Lanes<true>, Avx512Lanes<false>>(end - first, [&](auto lanes, int64_t i) {
      Float16 y = mul(lanes.load(p.w_scale + first + i), lanes.load(sums + i));
      if (p.bias) y = add(y, lanes.load(p.bias + first + i));
      lanes.store_any(p.out, p.out_dtype, m * p.n + first + i, activate(kind.value, y));
    });
  });
}

template <class Weights>
void rows_by_strip(const GemmFloatProblem& p, float* scratch, const Weights (&w)[kStrip], int64_t first, int64_t end) {
  for (int64_t m = 0; m < p.m; m += kRows) {
    const int rows = static_cast<int>(p.m - m < kRows ? p.m - m : kRows);
    const float* x = static_cast<const float*>(p.x.data) + m * p.x.row_stride;
    int64_t stride = p.x.row_stride;
    if (p.x.dtype != DType::f32) {
      for (int r = 0; r < rows; ++r) {
        for_lanes<Avx512Lanes<true>, Avx512Lanes<false>>(p.k, [&](auto lanes, int64_t k) {
          lanes.store(scratch + r * p.k + k, lanes.load_any(p.x, (m + r) * p.x.row_stride + k));
        });
      }
      x = scratch;
      stride = p.k;
    }
    alignas(64) float sums[kRows * kStrip * kPanel];
    run_tile(rows, p.k, x, stride, w, sums);
    for (int r = 0; r < rows; ++r) finish_row(p, m + r, first, end, sums + r * kStrip * kPanel);
  }
}

// The panel's codes: where they lie (8 bits), or unpacked into scratch.
const int8_t* panel_codes(const GemmFloatProblem& p, const Layout& layout, int64_t panel, int8_t* scratch) {
  const uint8_t* bytes = p.w + panel * layout.panel_bytes;
  if (p.bits == 8) return reinterpret_cast<const int8_t*>(bytes);
  int8_t zeros[kPanel];
  panel_zeros(p.w_zero, p.bits, p.n, panel, zeros);
  const PanelBytes from = panel_bytes_of(bytes, layout);
  if (p.bits == 6) {
    unpack_groups<6>(from, spread_zeros_512(zeros), 0, layout.groups, scratch);
  } else {
    unpack_groups<4>(from, spread_zeros_512(zeros), 0, layout.groups, scratch);
  }
  return scratch;
}

}  // namespace

void gemm_float_avx512_vnni(const GemmFloatProblem& p) {
  if (p.m == 0) return;
  const Layout layout = layout_of(p.n, p.k, p.bits);
  const int64_t strips = (layout.panels + kStrip - 1) / kStrip, panel_codes_bytes = layout.groups * kGroupCodes;
  parallel_for(strips, kGrain / (p.m * kStrip * kPanel * p.k), [&](int64_t begin, int64_t end) {
    const size_t floats = kStrip * panel_codes_bytes + kRows * p.k;
    float* w = static_cast<float*>(thread_scratch(floats * sizeof(float) + kStrip * panel_codes_bytes));
    float* x = w + kStrip * panel_codes_bytes;
    int8_t* unpacked = reinterpret_cast<int8_t*>(w + floats);
    for (int64_t strip = begin; strip < end; ++strip) {
      const int64_t first = strip * kStrip * kPanel;
      const int64_t last = first + kStrip * kPanel < p.n ? first + kStrip * kPanel : p.n;
      CodeWeights codes[kStrip];
      for (int i = 0; i < kStrip; ++i) {
        const int64_t panel = strip * kStrip + i;  // past the last, the last again, for nobody
        codes[i].codes = panel_codes(p, layout, panel < layout.panels ? panel : layout.panels - 1,
                                     unpacked + i * panel_codes_bytes);
      }
      if (p.m <= kRows) {
        rows_by_strip(p, x, codes, first, last);
        continue;
      }
      FloatWeights converted[kStrip];
      for (int i = 0; i < kStrip; ++i) {
        codes_to_floats(codes[i].codes, layout.groups, w + i * panel_codes_bytes);
        converted[i].values = w + i * panel_codes_bytes;
      }
      rows_by_strip(p, x, converted, first, last);
    }
  });
}

}  // namespace ptq4arvg::cpu
