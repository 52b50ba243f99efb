// AVX-512-VNNI for at most 16 rows, where reading the weights takes longer than multiplying them.
//
// Every thread walks its own panels from front to back, a few at a time, once. Packed weights are unpacked in
// registers on the way: their levels are the unsigned operand of vpdpbusd, `a` the signed one, and the zero points come
// off the sums (zero times the row's sum of `a`). At 8 bits `a` is the unsigned operand, as in gemm_avx512_vnni.cpp.
#include <cstring>

#include "kernels/cpu/avx512_vnni_kernels.h"
#include "kernels/cpu/epilogue_tile.h"
#include "kernels/cpu/lanes_avx512.h"
#include "kernels/cpu/scratch.h"
#include "kernels/cpu/unpack_avx512.h"
#include "kernels/parallel.h"

namespace ptq4arvg::cpu {
namespace {

constexpr int kChunkGroups = 16;
constexpr int kChunk = kChunkGroups * kGroup;

// All rows of `a` as [chunk][row][64 k], zeros past K, and the rows' sums.
template <int Bits, int Rows>
void pack_rows(const GemmProblem& p, uint8_t* out, int32_t* row_sums) {
  const __m512i flip = _mm512_set1_epi8(Bits == 8 ? static_cast<char>(0x80) : 0);
  const __m512i ones = _mm512_set1_epi8(1);
  for (int r = 0; r < Rows; ++r) {
    const int8_t* a = p.a + r * p.a_stride;
    __m512i sum = _mm512_setzero_si512();
    uint8_t* to = out + r * kChunk;
    for (int64_t k = 0; k < p.k; k += kChunk, to += Rows * kChunk) {
      const __mmask64 mask = p.k - k < kChunk ? (1ull << (p.k - k)) - 1 : ~0ull;
      const __m512i codes = _mm512_maskz_loadu_epi8(mask, a + k);
      if constexpr (Bits != 8) sum = _mm512_dpbusd_epi32(sum, ones, codes);
      _mm512_store_si512(to, _mm512_xor_si512(codes, flip));
    }
    row_sums[r] = Bits == 8 ? 0 : _mm512_reduce_add_epi32(sum);
  }
}

template <int Bits, int Rows, int Panels>
PTQ4ARVG_FN void step(const uint8_t* a, const PanelBytes (&panels)[Panels], int64_t group,
                      __m512i (&sums)[Rows][Panels]) {
  __m512i columns[Panels];
  for (int i = 0; i < Panels; ++i) {
    columns[i] = load_group<Bits>(panels[i], group);
    prefetch_group<Bits>(panels[i], group);
  }
  for (int r = 0; r < Rows; ++r) {
    int32_t codes;
    memcpy(&codes, a + r * kChunk, sizeof codes);
    const __m512i row = _mm512_set1_epi32(codes);
    for (int i = 0; i < Panels; ++i) {
      sums[r][i] = Bits == 8 ? _mm512_dpbusd_epi32(sums[r][i], row, columns[i])
                             : _mm512_dpbusd_epi32(sums[r][i], columns[i], row);
    }
  }
}

// Sums of all rows by some panels. With few of both, two sums for each: one waits for the one before.
template <int Bits, int Rows, int Panels>
void panel_sums(const uint8_t* a, int64_t groups, const PanelBytes (&panels)[Panels], int32_t* out) {
  constexpr int kWays = Rows * Panels >= 8 ? 1 : Rows * Panels >= 4 ? 2 : 4;
  __m512i sums[kWays][Rows][Panels];
  for (int i = 0; i < kWays * Rows * Panels; ++i) (&sums[0][0][0])[i] = _mm512_setzero_si512();
  int64_t g = 0;
  for (; g + kChunkGroups <= groups; g += kChunkGroups, a += Rows * kChunk) {
    for (int i = 0; i < kChunkGroups; i += kWays) {
      for (int way = 0; way < kWays; ++way) step<Bits>(a + (i + way) * kGroup, panels, g + i + way, sums[way]);
    }
  }
  for (int i = 0; g < groups; ++g, ++i) step<Bits>(a + i * kGroup, panels, g, sums[0]);
  for (int r = 0; r < Rows; ++r) {
    for (int i = 0; i < Panels; ++i) {
      __m512i sum = sums[0][r][i];
      for (int way = 1; way < kWays; ++way) sum = _mm512_add_epi32(sum, sums[way][r][i]);
      _mm512_store_si512(out + (r * Panels + i) * kPanel, sum);
    }
  }
}

// Takes the zero points off the sums of one panel.
template <int Panels>
void take_off_zeros(const GemmProblem& p, int64_t panel, const int32_t* row_sums, int32_t* sums) {
  int8_t zeros[kPanel];
  panel_zeros(p.w_zero, p.bits, p.n, panel, zeros);
  const __m512i zero = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(zeros)));
  for (int64_t r = 0; r < p.m; ++r) {
    int32_t* row = sums + r * Panels * kPanel;
    const __m512i excess = _mm512_mullo_epi32(zero, _mm512_set1_epi32(row_sums[r]));
    _mm512_store_si512(row, _mm512_sub_epi32(_mm512_load_si512(row), excess));
  }
}

// What a thread needs of all rows.
struct DecodeRows {
  const uint8_t* a;
  const int32_t* sums;
  const EpilogueRow* rows;
};

template <int Bits, int Rows, int Panels>
void decode_panels(const GemmProblem& p, const Layout& layout, const DecodeRows& in, int64_t first) {
  const auto bytes_at = [&](int i) { return p.w + (first + i) * layout.panel_bytes; };
  PanelBytes panels[Panels];
  for (int i = 0; i < Panels; ++i) panels[i] = panel_bytes_of(bytes_at(i), layout);
  alignas(64) int32_t sums[Rows * Panels * kPanel];
  panel_sums<Bits, Rows>(in.a, layout.groups, panels, sums);
  if constexpr (Bits != 8) {
    for (int i = 0; i < Panels; ++i) take_off_zeros<Panels>(p, first + i, in.sums, sums + i * kPanel);
  }
  StripColumns<Panels> columns;
  gather_columns<Avx512Whole, Avx512Tail>(p, first * kPanel, Bits == 8 ? 128 : 0,
                                          [&](int i) { return bytes_at(i) + layout.sums; }, &columns);
  finish_of<Avx512Whole, Avx512Tail, Panels>(p.epilogue)(p, columns, in.rows, Rows, sums);
}

template <int Bits, int Rows>
void decode_rows(const GemmProblem& p) {
  // As many panels at once as there are registers for: one stream of bytes does not keep the memory busy.
  constexpr int kPanels = Rows <= 6 ? 4 : Rows <= 12 ? 2 : 1;
  const Layout layout = layout_of(p.n, p.k, Bits);
  const int64_t chunks = (p.k + kChunk - 1) / kChunk;
  const int64_t cost = kPanels * layout.panel_bytes * (8 + Rows) / 8;
  parallel_for((layout.panels + kPanels - 1) / kPanels, kDecodeGrain / cost, [&](int64_t begin, int64_t end) {
    uint8_t* a = static_cast<uint8_t*>(thread_scratch(chunks * Rows * kChunk));
    int32_t row_sums[Rows];
    EpilogueRow rows[Rows];
    pack_rows<Bits, Rows>(p, a, row_sums);
    for (int r = 0; r < Rows; ++r) rows[r] = epilogue_row(p, r);
    const DecodeRows in{a, row_sums, rows};
    const int64_t last = end * kPanels < layout.panels ? end * kPanels : layout.panels;
    int64_t i = begin * kPanels;
    for (; i + kPanels <= last; i += kPanels) decode_panels<Bits, Rows, kPanels>(p, layout, in, i);
    for (; i < last; ++i) decode_panels<Bits, Rows, 1>(p, layout, in, i);
  });
}

template <int Bits, int Rows = kDecodeRows>
void decode(const GemmProblem& p) {
  if constexpr (Rows > 1) {
    if (p.m < Rows) return decode<Bits, Rows - 1>(p);
  }
  decode_rows<Bits, Rows>(p);
}

}  // namespace

void gemm_decode_avx512_vnni(const GemmProblem& p) {
  if (p.m == 0) return;
  if (p.bits == 8) return decode<8>(p);
  p.bits == 6 ? decode<6>(p) : decode<4>(p);
}

}  // namespace ptq4arvg::cpu
