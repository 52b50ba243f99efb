// AVX2 micro-kernels: 6 rows by 16 columns.
//
// At 8 bits both sides are widened to int16 and vpmaddwd adds pairs of products: vpmaddubsw would have to be fed |a|
// and w with the sign of a, one instruction more, because a pair of products of unsigned and signed bytes does not fit
// in int16. Packed weights are levels, the unsigned side of vpmaddubsw, and `a` the signed one: pairs of products are
// at least -2 * 128 * 63 at 6 bits and -2 * 128 * 15 at 4 bits, so that two or eight of them add up in int16 before they
// are widened.
#include "kernels/cpu/avx2_kernels.h"
#include "kernels/cpu/gemm_driver.h"
#include "kernels/cpu/lanes_avx2.h"
#include "kernels/cpu/tile_avx2.h"
#include "kernels/cpu/unpack_avx2.h"

namespace ptq4arvg::cpu {
namespace {

// Keeps the compiler from putting sums of many terms into another order: that takes more registers than there are.
PTQ4ARVG_FN void keep(__m256i& sum) { __asm__ volatile("" : "+x"(sum)); }

template <int Bits>
struct Avx2 {
  using Whole = Avx2Lanes;
  using Tail = ScalarLanes;
  static constexpr int kBits = Bits;
  static constexpr int kRows = 6;
  static constexpr int kCodeBytes = 1;
  static constexpr int kExcess = 0;
  static constexpr int kSteps = Bits == 6 ? 2 : 8;  // groups that add up in int16

  static int32_t pack_chunk(const int8_t* codes, uint8_t* out) { return pack_chunk_256<0>(codes, out); }

  static void unpack(const PanelBytes& panel, int64_t groups, int8_t* levels) {
    unpack_levels_256<Bits>(panel, groups, levels);
  }

  // Halves [First, First + Count) of the panel's columns.
  template <int Rows, int First, int Count, int Steps, int PanelBits>
  PTQ4ARVG_FN void step(const uint8_t* a, const PanelBytes& panel, int64_t group, __m256i (&sums)[Rows][Count]) {
    const __m256i ones = _mm256_set1_epi16(1);
    __m256i pairs[Rows][Count];
#pragma GCC unroll 8
    for (int s = 0; s < Steps; ++s) {
      const Group256 w = load_group_256<PanelBits>(panel, group + s);
#pragma GCC unroll 8
      for (int r = 0; r < Rows; ++r) {
        const __m256i row = broadcast(a + r * kChunk + s * kGroup);
#pragma GCC unroll 2
        for (int i = 0; i < Count; ++i) {
          const __m256i products = _mm256_maddubs_epi16(First + i == 0 ? w.low : w.high, row);
          pairs[r][i] = s == 0 ? products : _mm256_add_epi16(pairs[r][i], products);
          keep(pairs[r][i]);
        }
      }
    }
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 2
      for (int i = 0; i < Count; ++i) {
        sums[r][i] = _mm256_add_epi32(sums[r][i], _mm256_madd_epi16(pairs[r][i], ones));
      }
    }
  }

  template <int Rows, int First, int Count, int PanelBits>
  static __attribute__((noinline)) void halves(const uint8_t* a, int64_t groups, const PanelBytes& panel,
                                               int32_t* out) {
    __m256i sums[Rows][Count];
#pragma GCC unroll 16
    for (int i = 0; i < Rows * Count; ++i) sums[i / Count][i % Count] = _mm256_setzero_si256();
    int64_t g = 0;
    for (; g + kChunkGroups <= groups; a += kRows * kChunk) {
      for (int i = 0; i < kChunkGroups; i += kSteps, g += kSteps) {
        step<Rows, First, Count, kSteps, PanelBits>(a + i * kGroup, panel, g, sums);
      }
    }
    for (; g < groups; ++g, a += kGroup) step<Rows, First, Count, 1, PanelBits>(a, panel, g, sums);
#pragma GCC unroll 16
    for (int i = 0; i < Rows * Count; ++i) {
      int32_t* to = out + i / Count * kPanel + (First + i % Count) * 8;
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), sums[i / Count][i % Count]);
    }
  }

  // Every element has a sum in int32 and one in int16: more than three rows by all columns do not fit in registers.
  // Half of the rows at a time loads less, half of the columns unpacks nothing twice.
  template <int Rows, int PanelBits>
  static void tile(const uint8_t* a, int64_t groups, const PanelBytes& panel, int32_t* out) {
    if constexpr (Rows <= 3) {
      halves<Rows, 0, 2, PanelBits>(a, groups, panel, out);
    } else if constexpr (PanelBits == 8) {
      constexpr int kUpper = (Rows + 1) / 2;
      halves<kUpper, 0, 2, PanelBits>(a, groups, panel, out);
      halves<Rows - kUpper, 0, 2, PanelBits>(a + kUpper * kChunk, groups, panel, out + kUpper * kPanel);
    } else {
      halves<Rows, 0, 1, PanelBits>(a, groups, panel, out);
      halves<Rows, 1, 1, PanelBits>(a, groups, panel, out);
    }
  }
};

// Packed rows are int16 here, those of each group in the order 0, 2, 1, 3: that of the weights' even and odd bytes.
template <>
struct Avx2<8> {
  using Whole = Avx2Lanes;
  using Tail = ScalarLanes;
  static constexpr int kBits = 8;
  static constexpr int kRows = 6;
  static constexpr int kCodeBytes = 2;
  static constexpr int kExcess = 0;
  static constexpr int kBytes = kChunk * kCodeBytes;

  static int32_t pack_chunk(const int8_t* codes, uint8_t* out) {
    const __m128i order = _mm_setr_epi8(0, 2, 1, 3, 4, 6, 5, 7, 8, 10, 9, 11, 12, 14, 13, 15);
    for (int i = 0; i < kChunk; i += 16) {
      const __m128i bytes = _mm_shuffle_epi8(_mm_loadu_si128(reinterpret_cast<const __m128i*>(codes + i)), order);
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + 2 * i), _mm256_cvtepi8_epi16(bytes));
    }
    return 0;
  }

  static void unpack(const PanelBytes&, int64_t, int8_t*) {}

  template <int Rows>
  PTQ4ARVG_FN void step(const uint8_t* a, __m256i low, __m256i high, __m256i (&sums)[Rows][2]) {
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r) {
      const __m256i row = broadcast(a + r * kBytes);
      sums[r][0] = _mm256_add_epi32(sums[r][0], _mm256_madd_epi16(low, row));
      sums[r][1] = _mm256_add_epi32(sums[r][1], _mm256_madd_epi16(high, row));
      keep(sums[r][0]);
      keep(sums[r][1]);
    }
  }

  static __m256i even(__m256i w) { return _mm256_srai_epi16(_mm256_slli_epi16(w, 8), 8); }
  static __m256i odd(__m256i w) { return _mm256_srai_epi16(w, 8); }

  template <int Rows>
  PTQ4ARVG_FN void step(const uint8_t* a, const PanelBytes& panel, int64_t group, __m256i (&sums)[Rows][2]) {
    const Group256 w = load_group_256<8>(panel, group);
    if constexpr (Rows <= 4) prefetch_group<8>(panel, group);  // reading takes longer than multiplying
    step<Rows>(a, even(w.low), even(w.high), sums);
    const uint8_t* same = panel.codes;
    __asm__ volatile("" : "+r"(same));  // so that the codes are loaded again: there is no register to keep them in
    const Group256 again = load_group_256<8>({same, nullptr}, group);
    step<Rows>(a + 4, odd(again.low), odd(again.high), sums);
  }

  template <int Rows, int>
  static __attribute__((noinline)) void tile(const uint8_t* a, int64_t groups, const PanelBytes& panel, int32_t* out) {
    __m256i sums[Rows][2];
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r) sums[r][0] = sums[r][1] = _mm256_setzero_si256();
    int64_t g = 0;
    for (; g + kChunkGroups <= groups; a += kRows * kBytes) {
      for (int i = 0; i < kChunkGroups; ++i, ++g) step<Rows>(a + i * 2 * kGroup, panel, g, sums);
    }
    for (; g < groups; ++g, a += 2 * kGroup) step<Rows>(a, panel, g, sums);
    store_sums<Rows>(sums, out);
  }
};

}  // namespace

void gemm_avx2(const GemmProblem& problem) { gemm_by_bits<Avx2>(problem); }

}  // namespace ptq4arvg::cpu
