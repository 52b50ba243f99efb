// The GEMM epilogue on a tile: int32 sums of some rows by a strip of panels.
//
// What depends on the columns alone is gathered once per strip, what depends on the rows alone once per block of rows.
// Whole and Tail are an instruction set's lanes, as in for_lanes.
#pragma once

#include "kernels/cpu/epilogue.h"
#include "kernels/cpu/layout.h"

namespace ptq4arvg::cpu {
namespace {  // compiled for several instruction sets: internal linkage, see real.h

// What a micro-kernel's sums have too much: the same in every row (an excess times the column sums), or a column's zero
// point times the row's sum of `a` (where levels were multiplied, not codes).
enum class Excess : int { columns, levels };

// Column constants of a strip, padded to whole panels.
template <int Panels>
struct StripColumns {
  alignas(64) int32_t offset[Panels * kPanel];  // see Excess: to take off, or times a row's sum to take off
  alignas(64) int32_t sums[Panels * kPanel];    // times a row's a_zero
  alignas(64) float w_scale[Panels * kPanel];
  alignas(64) float bias[Panels * kPanel];  // -0 where there is none: adding it changes nothing
  int64_t first, end;

  int panels() const { return static_cast<int>((end - first + kPanel - 1) / kPanel); }
};

// packed_sums(i) gives where the packed weight keeps the column sums of the strip's panel i; the micro-kernel's sums
// are `excess` times those too large.
template <class Whole, class Tail, int Panels, class PackedSums>
static inline void gather_columns(const GemmProblem& p, int64_t first, int excess, const PackedSums& packed_sums,
                                  StripColumns<Panels>* out) {
  const Epilogue& e = p.epilogue;
  out->first = first;
  out->end = first + Panels * kPanel < p.n ? first + Panels * kPanel : p.n;
  for (int panel = 0; panel < out->panels(); ++panel) {
    int32_t* sums = out->sums + panel * kPanel;
    memcpy(sums, packed_sums(panel), kPanel * sizeof(int32_t));
    for (int c = 0; c < kPanel; ++c) out->offset[panel * kPanel + c] = excess * sums[c];
  }
  for_lanes<Whole, Tail>(out->end - first, [&](auto lanes, int64_t i) __attribute__((always_inline)) {
    using F = typename decltype(lanes)::F;
    if (e.w_sum) lanes.store_int(out->sums + i, lanes.load_int(e.w_sum + first + i));
    lanes.store(out->w_scale + i, lanes.load(e.w_scale + first + i));
    lanes.store(out->bias + i, e.bias ? lanes.load(e.bias + first + i) : F(-0.0f));
  });
}

// The zero points instead, for Excess::levels.
template <int Panels>
static inline void gather_zeros(const GemmProblem& p, StripColumns<Panels>* out) {
  for (int panel = 0; panel < out->panels(); ++panel) {
    int8_t zeros[kPanel];
    panel_zeros(p.w_zero, p.bits, p.n, out->first / kPanel + panel, zeros);
    for (int c = 0; c < kPanel; ++c) out->offset[panel * kPanel + c] = zeros[c];
  }
}

// Rows of sums, Panels * kPanel apart, by `width` columns of the strip. What holds for all of a GEMM is a template
// argument, so that no row asks for it again.
template <class Whole, class Tail, Excess excess, Activation kind, Output output, bool Mixed, int Panels>
PTQ4ARVG_FN void finish_rows(const GemmProblem& p, const StripColumns<Panels>& columns, const EpilogueRow* rows,
                             int count, const int32_t* sums, int64_t width) {
  static_assert(kMaxRotation % (Panels * kPanel) == 0, "a strip's signs lie together");
  const bool zeros = p.epilogue.a_zero;
  alignas(64) float signed_values[Panels * kPanel] = {};
  for (int r = 0; r < count; ++r, sums += Panels * kPanel) {
    for_lanes<Whole, Tail>(width, [&](auto lanes, int64_t i) __attribute__((always_inline)) {
      using L = decltype(lanes);
      using F = typename L::F;
      auto offset = lanes.load_int(columns.offset + i);
      if constexpr (excess == Excess::levels) offset = L::times(offset, rows[r].sum);
      auto sum = L::minus(lanes.load_int(sums + i), offset);
      if (zeros) sum = L::minus(sum, L::times(lanes.load_int(columns.sums + i), rows[r].a_zero));
      const F y = dequantize(L::to_float(sum), lanes.load(columns.w_scale + i), F(rows[r].a_scale));
      finish_lanes<kind, output, Mixed>(lanes, p, rows[r], columns.first + i, add(y, lanes.load(columns.bias + i)),
                                        signed_values + i);
    });
    if constexpr (output == Output::rotated) {
      store_rotated<Whole, Tail>(p, rows[r], columns.first, width, signed_values);
    }
  }
}

// Apart, so that the usual case need not save registers for it.
template <class Whole, class Tail, Excess excess, Activation kind, Output output, bool Mixed, int Panels>
static __attribute__((noinline)) void finish_last(const GemmProblem& p, const StripColumns<Panels>& columns,
                                                  const EpilogueRow* rows, int count, const int32_t* sums) {
  finish_rows<Whole, Tail, excess, kind, output, Mixed>(p, columns, rows, count, sums, columns.end - columns.first);
}

template <class Whole, class Tail, Excess excess, Activation kind, Output output, bool Mixed, int Panels>
static __attribute__((noinline)) void finish_tile(const GemmProblem& p, const StripColumns<Panels>& columns,
                                                  const EpilogueRow* rows, int count, const int32_t* sums) {
  constexpr int kWhole = Panels * kPanel;
  if (columns.end - columns.first < kWhole) {
    return finish_last<Whole, Tail, excess, kind, output, Mixed>(p, columns, rows, count, sums);
  }
  finish_rows<Whole, Tail, excess, kind, output, Mixed>(p, columns, rows, count, sums, kWhole);
}

template <int Panels>
using FinishTile = void (*)(const GemmProblem&, const StripColumns<Panels>&, const EpilogueRow*, int count,
                            const int32_t* sums);

// The one for this GEMM.
template <class Whole, class Tail, int Panels, Excess excess = Excess::columns>
static inline FinishTile<Panels> finish_of(const Epilogue& e) {
  FinishTile<Panels> finish = nullptr;
  with_activation(e.activation, [&](auto kind) {
    with_output(e, [&](auto output, auto mixed) {
      finish = finish_tile<Whole, Tail, excess, kind.value, output.value, mixed.value, Panels>;
    });
  });
  return finish;
}

}  // namespace
}  // namespace ptq4arvg::cpu
