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
    if (left <= 0) return 0;
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

// Rows of sums, Panels * kPanel apart, by the panels of the strip. What holds for all of a GEMM is a template argument,
// so that no row asks for it again; Whole: no column of the strip is past the end.
template <Activation kind, Output output, bool Mixed, bool Whole, int Panels>
PTQ4ARVG_FN void finish_rows(const GemmProblem& p, const StripColumns<Panels>& columns, const EpilogueRow* rows,
                             int count, const int32_t* sums) {
  Avx512Lanes<Whole> lanes[Panels];
  for (int i = 0; i < Panels; ++i) lanes[i].mask = columns.mask(i);
  const bool zeros = p.epilogue.a_zero;
  for (int r = 0; r < count; ++r, sums += Panels * kPanel) {
    const Float16 a_scale(rows[r].a_scale);
    const __m512i a_zero = _mm512_set1_epi32(rows[r].a_zero);
    for (int i = 0; i < Panels; ++i) {
      const int at = i * kPanel;
      __m512i sum = _mm512_sub_epi32(_mm512_loadu_si512(sums + at), _mm512_load_si512(columns.offset + at));
      if (zeros) sum = _mm512_sub_epi32(sum, _mm512_mullo_epi32(a_zero, _mm512_load_si512(columns.sums + at)));
      const Float16 w_scale(_mm512_load_ps(columns.w_scale + at)), bias(_mm512_load_ps(columns.bias + at));
      const Float16 y = add(dequantize(Float16(_mm512_cvtepi32_ps(sum)), w_scale, a_scale), bias);
      finish_lanes<kind, output, Mixed>(lanes[i], p, rows[r], columns.first + at, y);
    }
  }
}

template <Activation kind, Output output, bool Mixed, int Panels>
static __attribute__((noinline)) void finish_tile(const GemmProblem& p, const StripColumns<Panels>& columns,
                                                  const EpilogueRow* rows, int count, const int32_t* sums) {
  if (columns.end - columns.first == Panels * kPanel) {
    finish_rows<kind, output, Mixed, true>(p, columns, rows, count, sums);
  } else {
    finish_rows<kind, output, Mixed, false>(p, columns, rows, count, sums);
  }
}

template <int Panels>
using FinishTile = void (*)(const GemmProblem&, const StripColumns<Panels>&, const EpilogueRow*, int count,
                            const int32_t* sums);

// The one for this GEMM.
template <int Panels>
static inline FinishTile<Panels> finish_of(const Epilogue& e) {
  FinishTile<Panels> finish = nullptr;
  with_activation(e.activation, [&](auto kind) {
    with_output(e, [&](auto output, auto mixed) { finish = finish_tile<kind.value, output.value, mixed.value, Panels>; });
  });
  return finish;
}

}  // namespace
}  // namespace ptq4arvg::cpu
