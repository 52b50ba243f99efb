// The GEMM epilogue on a tile: int32 sums of some rows by a strip of panels, sixteen columns at a time.
//
// What depends on the columns alone is gathered once per strip, what depends on the rows alone once per block of rows.
#pragma once

#include "kernels/cpu/epilogue.h"
#include "kernels/cpu/lanes_avx512.h"
#include "kernels/cpu/layout.h"

namespace ptq4arvg::cpu {
namespace {  // compiled for several instruction sets: internal linkage, see real.h

// Column constants of a strip, padded to whole panels.
template <int Panels>
struct StripColumns {
  alignas(64) int32_t offset[Panels * kPanel];  // what the micro-kernel's sums have too much, in every row
  alignas(64) int32_t sums[Panels * kPanel];    // times a row's a_zero
  alignas(64) float w_scale[Panels * kPanel];
  alignas(64) float bias[Panels * kPanel];  // -0 where there is none: adding it changes nothing
  int64_t first, end;

  int panels() const { return static_cast<int>((end - first + kPanel - 1) / kPanel); }
  __mmask16 mask(int panel) const {
    const int64_t left = end - first - panel * kPanel;
    return left >= kPanel ? 0xffff : static_cast<__mmask16>((1u << left) - 1);
  }
};

// packed_sums(i) gives where the packed weight keeps the column sums of the strip's panel i; the micro-kernel's sums
// are `excess` times those too large.
template <int Panels, class PackedSums>
static inline void gather_columns(const GemmProblem& p, int64_t first, int excess, const PackedSums& packed_sums,
                                  StripColumns<Panels>* out) {
  const Epilogue& e = p.epilogue;
  out->first = first;
  out->end = first + Panels * kPanel < p.n ? first + Panels * kPanel : p.n;
  for (int i = 0; i < out->panels(); ++i) {
    const Avx512Lanes<false> lanes{out->mask(i)};
    const int64_t n = first + i * kPanel;
    const __m512i packed = _mm512_loadu_si512(packed_sums(i));
    const int at = i * kPanel;
    _mm512_store_si512(out->offset + at, _mm512_mullo_epi32(packed, _mm512_set1_epi32(excess)));
    _mm512_store_si512(out->sums + at, e.w_sum ? lanes.load_int(e.w_sum + n) : packed);
    _mm512_store_ps(out->w_scale + at, lanes.load(e.w_scale + n).v);
    _mm512_store_ps(out->bias + at, e.bias ? lanes.load(e.bias + n).v : _mm512_set1_ps(-0.0f));
  }
}

template <Activation kind, bool Whole, int Panels>
PTQ4ARVG_FN void epilogue_panel(const GemmProblem& p, const StripColumns<Panels>& columns, const EpilogueRow* rows,
                                int count, int panel, const int32_t* sums, int64_t stride) {
  const Avx512Lanes<Whole> lanes{columns.mask(panel)};
  const int at = panel * kPanel;
  const Float16 w_scale(_mm512_load_ps(columns.w_scale + at)), bias(_mm512_load_ps(columns.bias + at));
  int32_t zero = rows[0].a_zero;
  const auto excess_at = [&](int32_t a_zero) {
    const __m512i correction =
        _mm512_mullo_epi32(_mm512_set1_epi32(a_zero), _mm512_load_si512(columns.sums + at));
    return _mm512_add_epi32(correction, _mm512_load_si512(columns.offset + at));
  };
  __m512i excess = excess_at(zero);
  for (int r = 0; r < count; ++r) {
    if (rows[r].a_zero != zero) {
      zero = rows[r].a_zero;
      excess = excess_at(zero);
    }
    const __m512i sum = _mm512_sub_epi32(_mm512_loadu_si512(sums + r * stride + at), excess);
    const Float16 y = add(dequantize(Float16(_mm512_cvtepi32_ps(sum)), w_scale, Float16(rows[r].a_scale)), bias);
    finish_lanes<kind>(lanes, p, rows[r], columns.first + at, y);
  }
}

// Rows of sums, `stride` apart, by the panels of the strip.
template <Activation kind, int Panels>
PTQ4ARVG_FN void epilogue_tile(const GemmProblem& p, const StripColumns<Panels>& columns, const EpilogueRow* rows,
                               int count, const int32_t* sums, int64_t stride) {
  for (int panel = 0; panel < columns.panels(); ++panel) {
    if (columns.mask(panel) == 0xffff) {
      epilogue_panel<kind, true>(p, columns, rows, count, panel, sums, stride);
    } else {
      epilogue_panel<kind, false>(p, columns, rows, count, panel, sums, stride);
    }
  }
}

// The same for any activation; one copy for all the micro-kernels that differ in rows only.
template <int Panels>
static __attribute__((noinline)) void finish_strip(const GemmProblem& p, const StripColumns<Panels>& columns,
                                                   const EpilogueRow* rows, int count, const int32_t* sums) {
  with_activation(p.epilogue.activation, [&](auto kind) {
    epilogue_tile<kind.value>(p, columns, rows, count, sums, Panels * kPanel);
  });
}

}  // namespace
}  // namespace ptq4arvg::cpu
