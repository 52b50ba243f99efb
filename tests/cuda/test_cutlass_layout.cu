// The sm_80 epilogue's coordinates on the host: the groups that its visitor stores cover each tile exactly once, and four
// lanes have sixteen neighbours, as its rotation takes them to.
//
// Needs nvcc for CUTLASS's headers, but no GPU: everything runs on the host. Prints "ok".
#include <cstdio>
#include <cstdlib>
#include <vector>

#include <cutlass/cutlass.h>
#include <cutlass/numeric_conversion.h>
#include <cutlass/gemm/gemm.h>
#include <cutlass/epilogue/threadblock/default_thread_map_tensor_op.h>
#include <cutlass/epilogue/fusion/sm90_visitor_tma_warpspecialized.hpp>

// The coordinates are plain arithmetic that CUTLASS marks as the device's alone: let the host do it too.
#undef CUTLASS_DEVICE
#define CUTLASS_DEVICE CUTLASS_HOST_DEVICE
#include <cutlass/epilogue/threadblock/fusion/visitor_2x.hpp>

namespace {

[[noreturn]] void fail(const char* what, int m, int n) {
  std::printf("FAILED: %s: %d x %d\n", what, m, n);
  std::exit(1);
}

template <int block_m, int block_n, int block_k, int warp_m, int warp_n>
void check() {
  using Block = cutlass::gemm::GemmShape<block_m, block_n, block_k>;
  using Warp = cutlass::gemm::GemmShape<warp_m, warp_n, block_k>;
  using ThreadMap = cutlass::epilogue::threadblock::OutputTileThreadLayout<Block, Warp, float, 4, 1>;
  constexpr int kThreads = block_m / warp_m * (block_n / warp_n) * 32;
  constexpr int kRows = ThreadMap::Iterations::kRow, kColumns = ThreadMap::Iterations::kColumn;
  constexpr int kTileM = 2, kTileN = 1;  // any tile
  std::vector<int> seen(block_m * block_n, 0);
  auto all = cute::make_identity_tensor(cute::make_shape(block_m * 4, block_n * 4, 1));
  for (int thread = 0; thread < kThreads; ++thread) {
    auto mine = cute::group_modes<3, 6>(ThreadMap::partition(all, thread, {kTileM, kTileN, 0}));
    auto leader = cute::group_modes<3, 6>(ThreadMap::partition(all, thread / 4 * 4, {kTileM, kTileN, 0}));
    if (cute::size<0>(mine) != 4 || cute::size<1>(mine) != kColumns || cute::size<2>(mine) != kRows) {
      fail("shape", block_m, block_n);
    }
    for (int step = 0; step < static_cast<int>(cute::size<3>(mine)); ++step) {
      for (int row = 0; row < kRows; ++row) {
        for (int column = 0; column < kColumns; ++column) {
          auto first = mine(0, column, row, step);
          // What the visitor reads off: rows from column group 0, columns from row group and step 0.
          if (cute::get<0>(first) != cute::get<0>(mine(0, 0, row, step))) fail("row", block_m, block_n);
          if (cute::get<1>(first) != cute::get<1>(mine(0, column, 0, 0))) fail("column", block_m, block_n);
          auto block = leader(0, column, row, step);
          if (cute::get<0>(first) != cute::get<0>(block) || cute::get<1>(block) % 16 != 0 ||
              cute::get<1>(first) != cute::get<1>(block) + thread % 4 * 4) {
            fail("lanes", block_m, block_n);
          }
          for (int i = 0; i < 4; ++i) {
            const int m = cute::get<0>(first) - kTileM * block_m, n = cute::get<1>(first) - kTileN * block_n + i;
            if (m < 0 || m >= block_m || n < 0 || n >= block_n) fail("outside", block_m, block_n);
            ++seen[m * block_n + n];
          }
        }
      }
    }
  }
  for (const int count : seen) {
    if (count != 1) fail("coverage", block_m, block_n);
  }
}

}  // namespace

int main() {
  check<64, 64, 128, 32, 32>();
  check<64, 128, 128, 32, 64>();
  check<128, 128, 64, 64, 64>();
  check<128, 256, 64, 64, 64>();
  check<256, 128, 64, 64, 64>();
  std::printf("ok\n");
}
